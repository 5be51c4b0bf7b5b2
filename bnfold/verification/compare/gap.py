"""The distance of two tensors, and the bound that rounding alone keeps.

Distances are counted in units in the last place (ulp) of the tensor's dtype at its largest magnitude::

    ulp(a) = 2^⌊log2 max|a|⌋ · ε        ε = 2⁻²³ float32, 2⁻⁵² float64, 2⁻¹⁰ float16, 2⁻⁷ bfloat16

A fold rounds every weight once and makes each sum round differently. The rounding errors of a sum of K terms
are a random walk: they grow like √K, up to the length of the blocks in which runtimes add (256 or less). The
errors of several summing operators (Conv, MatMul, ...) are independent, so their squares add. A net that is
normalized passes them on about as large as they came, so that

    max|b - a|  ≤  ULP_PER_TERM · √(Σ K) · ulp(a)        over the summing operators on the longest path

with 32 ≤ K ≤ 256 in each. A path through a whole net is judged with K = 32 throughout: it averages over
its operators, and the pieces (module ``pieces``) decide what exceeds that. Types of 16 bits and less
are summed in float32 by the runtimes and rounded once per operator: K = 4. ``ULP_PER_TERM`` is measured,
not assumed: docs/verification.md, benchmarks/verification_bound.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ULP_PER_TERM = 1.5
SHORTEST_SUM, LONGEST_SUM = 32, 256
TELLING = 10.0
_NARROW_SUM = 4
_CHUNK = 1 << 16
_PROBES = 1024


def rounding_bound(dtype: np.dtype[Any], sums: Sequence[int], *, whole: bool = False) -> float:
    """The ulp that rounding explains; 0 for discrete dtypes.

    Args:
        dtype: of the tensor in question.
        sums: the lengths of the sums on the longest path to it; none count as one of the shortest.
        whole: judge a path through the whole net, where every sum counts as one of the shortest.
    """
    if not is_float(dtype):
        return 0.0
    if dtype.itemsize <= 2:
        terms = _NARROW_SUM * max(1, len(sums))
    elif whole or not sums:
        terms = SHORTEST_SUM * max(1, len(sums))
    else:
        terms = sum(min(max(each, SHORTEST_SUM), LONGEST_SUM) for each in sums)
    return ULP_PER_TERM * math.sqrt(terms)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of the dtype round: IEEE floats and those of ml_dtypes (bfloat16, float8)."""
    return dtype.kind in "fc" or (dtype.kind == "V" and "float" in dtype.name)


def ulp_at(dtype: np.dtype[Any], magnitude: float) -> float:
    """The unit in the last place of a float dtype at a magnitude, in float64; at 0 the smallest subnormal."""
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    smallest = float(info.smallest_subnormal)
    if magnitude == 0.0:
        return smallest
    return max(math.ldexp(float(info.eps), math.frexp(magnitude)[1] - 1), smallest)


@dataclass
class Gap:
    """How far ``b`` is from ``a``, on the worst input seen so far.

    Attributes:
        dtype: element type of ``a``.
        max_abs: largest finite ``|b - a|``.
        scale: largest finite ``|a|``.
        ulp: ``max_abs / ulp(a)``; infinite where the two disagree in kind (shape, infinity, NaN, discrete
            value).
        clash: what disagrees in kind, or "".
        same_shape: whether both had one shape and dtype.
        rails: the largest distance of a probe from both 0 and 1, in ulp; nothing for a saturated tensor.
        spread: ``max a - min a`` in ulp.
        probes: up to 1024 values of the first ``a`` seen, at random places that depend on its size alone.
        moved: largest change of ``probes`` by another input, in ulp; None while only one input was seen.
    """

    dtype: np.dtype[Any]
    max_abs: float = 0.0
    scale: float = 0.0
    ulp: float = 0.0
    clash: str = ""
    same_shape: bool = True
    rails: float = 0.0
    spread: float = 0.0
    probes: Array | None = None
    moved: float | None = None

    def tells(self, bound: float) -> bool:
        """Whether a wrong value would show: the tensor is off its rails, and inputs move it, by far.

        That is, by more than ``TELLING`` times the bound; with one input only, its elements have to differ.
        """
        moved = self.spread if self.moved is None else self.moved
        return min(self.rails, moved) > TELLING * bound

    @property
    def lost(self) -> bool:
        """Whether infinities or NaN stand in one model only: no rounding explains that."""
        return bool(self.clash) and self.same_shape and is_float(self.dtype)

    @property
    def max_rel(self) -> float:
        """``max_abs`` relative to the largest magnitude of ``a``."""
        return self.max_abs / self.scale if self.scale else math.inf * bool(self.max_abs)

    def worse(self, other: Gap) -> Gap:
        """The worse of two inputs' gaps, knowing what both saw."""
        worst = self if self.ulp >= other.ulp else other
        worst.rails, worst.spread = max(self.rails, other.rails), max(self.spread, other.spread)
        worst.moved = max(self.moved or 0.0, _moved(self.probes, other.probes))
        worst.probes = self.probes
        return worst

    def contrast(self, a: Array) -> None:
        """Take note of the original's value on one more input, on which nothing is compared."""
        self.moved = max(self.moved or 0.0, _moved(self.probes, _probe(a)))


def gap(a: Array | None, b: Array | None) -> Gap:
    """Compare one tensor of both models in float64, ``a`` the original's; None where a model lacks it."""
    if a is None or b is None:
        present = next((each.dtype for each in (a, b) if each is not None), np.dtype(object))
        return Gap(present, math.inf, ulp=math.inf, clash="only one model has it", same_shape=False)
    if a.shape != b.shape or a.dtype != b.dtype:
        clash = f"{b.dtype.name}{list(b.shape)} instead of {a.dtype.name}{list(a.shape)}"
        return Gap(a.dtype, math.inf, 0.0, math.inf, clash, same_shape=False, probes=_probe(a))
    return _float_gap(a, b) if is_float(a.dtype) else _discrete_gap(a, b)


def _float_gap(a: Array, b: Array) -> Gap:
    worst, low, high, lost = 0.0, math.inf, -math.inf, 0
    for x, y in _chunks(a, b):
        with np.errstate(invalid="ignore", over="ignore"):
            difference = y - x
        if not math.isfinite(difference.max() - difference.min()):
            lost += _clashes(x, y)
            both = np.isfinite(difference)
            difference, x = difference[both], x[np.isfinite(x)]
        worst = max(worst, difference.max(initial=0.0), -difference.min(initial=0.0))
        low, high = min(low, x.min(initial=math.inf)), max(high, x.max(initial=-math.inf))
    scale = float(max(abs(low), abs(high))) if low <= high else 0.0
    unit = ulp_at(a.dtype, scale)
    clash = f"{lost} of {a.size} values are infinite or NaN in one model only" if lost else ""
    ulp = math.inf if lost else float(worst) / unit
    probes = _probe(a)
    rails, spread = _off_rails(probes) / unit, max(0.0, float(high - low)) / unit
    return Gap(a.dtype, float(worst), scale, ulp, clash, True, rails, spread, probes)


def _clashes(x: Array, y: Array) -> int:
    """How many elements are infinite or NaN in one tensor but not likewise in the other."""
    special = ~(np.isfinite(x) & np.isfinite(y))
    return int(np.count_nonzero(special & (x != y) & ~(np.isnan(x) & np.isnan(y))))


def _off_rails(probes: Array) -> float:
    """The largest distance of a finite value from both 0 and 1."""
    values = probes.reshape(-1).view(probes.real.dtype).astype(np.float64)
    values = values[np.isfinite(values)]
    return float(np.minimum(np.abs(values), np.abs(1.0 - values)).max(initial=0.0))


def _discrete_gap(a: Array, b: Array) -> Gap:
    wrong = int(np.count_nonzero(a != b))
    clash = f"{wrong} of {a.size} values differ" if wrong else ""
    numeric = wrong and a.dtype.kind in "iu"
    step = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if numeric else 0.0
    scale = float(np.abs(a.astype(np.float64)).max(initial=0.0)) if a.dtype.kind in "iu" else 0.0
    alike = a.size == 0 or bool((a == a.reshape(-1)[0]).all())
    spread = 0.0 if alike else math.inf
    return Gap(a.dtype, step, scale, math.inf if wrong else 0.0, clash, True, math.inf, spread, _probe(a))


def _chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both tensors piece by piece in float64 (complex ones as pairs): a large tensor is never held twice."""
    flat = [each.reshape(-1).view(each.real.dtype) for each in map(np.ascontiguousarray, (a, b))]
    for start in range(0, flat[0].size, _CHUNK):
        x, y = (each[start : start + _CHUNK].astype(np.float64) for each in flat)
        yield x, y


def _probe(a: Array) -> Array:
    flat = a.reshape(-1)
    if flat.size > _PROBES:  # at random places, for a stride could keep to the border of every image
        flat = flat[np.random.default_rng(0).integers(0, flat.size, _PROBES)]
    return flat.copy()


def _moved(a: Array | None, b: Array | None) -> float:
    return gap(a, b).ulp
