"""How findings are put into words and records."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .compare.findings import Findings
from .compare.gap import TELLING, Gap, is_float
from .verdict import Deviation


def agreement(found: Findings, inner: Findings | None) -> str:
    """Why the models are equal, without a final stop.

    Args:
        found: the outputs, compared end to end.
        inner: the pieces, all of which agree; None if they were not compared.
    """
    count = len(inner_names(found, inner))
    if found.over:
        start = f"Beyond the bound end to end ({_nearest(found)}), but only by rounding"
    else:
        start = f"Every output agrees within rounding (nearest: {_nearest(found)})"
    if inner is None or not (count or found.over):
        return start
    what = f"all {count} shared tensors agree" if count else "every output agrees"
    blind = len([name for name in inner_names(found, inner) if not inner.tells(name)])
    hidden = f"; {blind} of them cannot tell on these inputs" if blind else ""
    return f"{start}; {what}, each computed from the original's values (nearest: {_nearest(inner)}){hidden}"


def difference(found: Findings, name: str, outputs: Collection[str]) -> str:
    """How one tensor differs, without a final stop."""
    each, (ulp, bound) = found.gaps[name], found.measure(name)
    what = f"Output {name!r}" if name in outputs else f"Tensor {name!r}, computed from the original's values,"
    if each.clash:
        return f"{what} differs: {each.clash}"
    if name in found.exact and found.exact[name].lossy:
        exact = found.exact[name]
        rounded = f"rounding takes it {exact.loss:.3g} ulp from its value in float64"
        return f"{what} loses precision: {rounded}, the original's only {exact.original_loss:.3g}"
    where = " in float64" if name in found.exact else ""
    trouble = f" (float64 could not be asked: {found.trouble})" if found.trouble else ""
    return f"{what} differs{where} by {ulp:.3g} ulp, where rounding explains {bound:.3g}{trouble}"


def deviations(
    found: Findings, inner: Findings | None, noise: Mapping[str, float], *, varies: bool
) -> tuple[Deviation, ...]:
    """One record per output.

    Args:
        found: the outputs, compared end to end.
        inner: the pieces, all of which agree; None if they were not compared or disagree.
        noise: in ulp, what optimizations change in the original.
        varies: whether the models have inputs; without, every output is constant and nothing is left untried.
    """
    records = []
    for name, each in found.gaps.items():
        excused = name in found.over and inner is not None and not each.lost
        blind = "" if found.tells(name) or not varies else _blindness(each, found.bounds[name])
        note = "; ".join(filter(None, (blind, _excuse(found, inner if excused else None, name))))
        records.append(deviation(found, name, noise.get(name), note, excused=excused))
    return tuple(records)


def deviation(
    found: Findings, name: str, noise: float | None = None, note: str = "", *, excused: bool = False
) -> Deviation:
    """The record of one tensor; ``excused`` if the pieces prove what the bound does not."""
    each = found.gaps[name]
    ok = excused or name not in found.over
    values = (each.max_abs, each.max_rel, each.ulp, found.bounds[name])
    return Deviation(name, each.dtype.name, ok, *values, noise=noise, note=note or each.clash)


def inner_names(found: Findings, inner: Findings | None) -> list[str]:
    """The tensors of the pieces that are no outputs."""
    return [name for name in inner.gaps if name not in found.gaps] if inner else []


def _blindness(each: Gap, bound: float) -> str:
    saturated = each.rails <= TELLING * bound
    return f"inputs cannot tell: {'saturated' if saturated else 'constant'}"


def _excuse(found: Findings, inner: Findings | None, name: str) -> str:
    """Why a tensor beyond its bound is accepted, by its float64 value or by the pieces."""
    for judged in filter(None, (found, inner)):
        if name in judged.exact:
            return "in float64 {:.3g} of {:.3g} ulp".format(*judged.measure(name))
    if inner is None:
        return ""
    clash = found.gaps[name].clash
    return f"ties flipped: {clash}" if clash else "accumulated rounding"


def _nearest(found: Findings) -> str:
    name = found.nearest
    each, (ulp, bound) = found.gaps[name], found.measure(name)
    if each.clash or not is_float(each.dtype):
        return f"{name!r}, {each.clash or 'identical'}"
    return f"{name!r} with {ulp:.3g} of {bound:.3g} ulp{' in float64' * (name in found.exact)}"
