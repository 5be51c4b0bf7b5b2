"""Whether two models are equal: what is run, what is compared, and what the answer rests on.

**End to end.** Both models get the same inputs and every output is compared against the bound that rounding
keeps (module ``compare``). That settles shallow nets with lively outputs. It does not settle a deep net that
amplifies rounding, a classifier whose softmax is saturated on random inputs, or an ArgMax that flips on a tie.

**Piece by piece.** A tensor with one name in both graphs cuts both into pieces. Give every piece of the
candidate the *original's* values of the tensors it reads, and compare what it computes with the original's
value. If all pieces agree, the models agree, by induction along the graph, whatever the names were meant to
say; and each piece is so shallow that the bound is a few ulp at any depth of the net. Discrete operators read the
original's floats, so that no tie flips. The cuts stand around the operators that changed
(``graph.shared_cuts``), within a limit of memory.

Pieces that agree are a proof for any pair. Pieces that disagree are evidence against the candidate only where
one name is promised to mean one value (``shared``, which ``bnfold.fold`` promises). For two arbitrary models
the pieces are asked only if the outputs leave a question open; names on which the models differ by more than
1/16 end to end are no cuts then, and if the pieces disagree as well, the outputs decide.

**Sums that round badly.** Where a mean of 1000 is taken from values of 1000, or where 256 equal terms are rounded
alike, no bound made from depth holds. So before a tensor beyond its bound is called different, both pieces in front
of it are evaluated in float64 (module ``exact``). What then differs is the rounding of the weights alone, and
that is bounded by measuring: every weight of the original is moved by 1 ulp, which may change the tensor
``1 / pieces.MARGIN`` times as much as the candidate does.

**Inputs that cannot tell.** A tensor that varies by less than ``compare.TELLING`` times its bound, over its
elements or from one input to the next, would hide an error. If no compared float tensor shows anything, the
verdict is NOT_VERIFIED (unless the model has no inputs, so that nothing was left untried).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from . import graph as graphs
from .compare import TELLING, Gap, gap, is_float, rounding_bound
from .inputs import Feeds, port, reversed_inputs, runnable, user_inputs
from .pieces import Findings, Models, judge_exactly, pieces, whole
from .runtime import CannotRunError, OnnxRuntime, Session, choose
from .verdict import Deviation, Status, Verdict


@dataclass(frozen=True)
class Job:
    """What to verify: two files, the user's .npz or None, and the options of ``runner.verify``."""

    a: Path
    b: Path
    inputs: Path | None
    noise: bool
    seed: int
    shared: bool


def examine(job: Job, stage: Callable[[str], None]) -> Verdict:
    """Answer a job in this process.

    Args:
        job: what to verify.
        stage: told "original" or "candidate" before either is loaded or run.

    Raises:
        UnreadableModelError: a file is no ONNX model.
        InputsError: the user's inputs do not fit the original.
    """
    a, b = graphs.read_model(job.a), graphs.read_model(job.b)
    difference = graphs.signature_difference(a.graph, b.graph)
    if difference:
        return Verdict(Status.DIFFERENT, difference)
    try:
        models = _load(job, a, b, stage)
        unsteady = _unsteady(models)
        if unsteady:
            text = f"the original model is not deterministic: {unsteady!r} differs between two runs"
            raise CannotRunError(text)
        return _verdict(job, models)
    except CannotRunError as error:
        return Verdict(Status.NOT_VERIFIED, f"{str(error)[0].upper()}{str(error)[1:]}.")


def _load(job: Job, a: ModelProto, b: ModelProto, stage: Callable[[str], None]) -> Models:
    """Choose the engine and the inputs; runs the original."""
    ports = [port(each) for each in graphs.required_inputs(a.graph)]
    given = user_inputs(ports, job.inputs) if job.inputs else None
    engine, original = choose(job.a, stage)
    outputs = [each.name for each in a.graph.output]
    if given is None:
        samples = runnable(ports, lambda feeds: original.run(outputs, feeds), job.seed)
    else:
        samples = [given]
    contrasts = _contrasts(original, outputs, given) if given else []
    return Models(engine, (job.a, job.b), a, b, original, outputs, samples, contrasts)


def _verdict(job: Job, models: Models) -> Verdict:
    found = whole(models)
    inner, trouble = None, ""
    if job.shared or found.over or not found.telling:
        try:
            inner = pieces(models, job.shared)
        except CannotRunError as error:
            trouble = f"; inner tensors were not compared ({error})"
            models.a = graphs.read_model(job.a)
    if found.over and inner is None:
        judge_exactly(models, found)
    status, reason = _judge(models, found, inner, job.shared)
    doubtful = bool(found.over) or bool(inner and inner.over)
    noise = _noise(models) if job.noise or doubtful else {}
    return Verdict(
        status,
        f"{reason}{trouble}.",
        outputs=tuple(_deviations(models, found, inner, noise)),
        runtime=f"{models.engine.name}, optimizations off",
        seed=None if job.inputs else job.seed,
        samples=found.samples,
        shared=len(_inner_names(models, inner)),
        worst=_deviation(inner.nearest, inner) if inner else None,
    )


def _judge(models: Models, found: Findings, inner: Findings | None, shared: bool) -> tuple[Status, str]:
    """The answer and its reason without a final stop; see the module's text."""
    lost = [name for name in found.over if _is_lost(found.gaps[name])]
    if inner and inner.over and shared:
        return Status.DIFFERENT, _difference(models, inner, inner.nearest)
    if found.over and (lost or inner is None or inner.over):
        return Status.DIFFERENT, _difference(models, found, (lost or found.over)[0])
    proven = inner if inner and not inner.over else None
    if not (found.telling or (proven and proven.telling) or not models.samples[0]):
        text = "No output can tell: all are constant or saturated on these inputs"
        return Status.NOT_VERIFIED, f"{text}; give inputs of your own as .npz"
    return Status.EQUAL, _agreement(models, found, proven)


def _agreement(models: Models, found: Findings, inner: Findings | None) -> str:
    name = found.nearest
    if found.over:
        start = f"Beyond the bound end to end ({_measure(found, name)}), but that is accumulated rounding"
    else:
        start = f"Every output agrees within rounding (nearest: {_measure(found, name)})"
    if inner is None:
        return start
    count = len(_inner_names(models, inner))
    each = f"all {count} shared tensors agree, each" if count else "the outputs agree,"
    return f"{start}; {each} computed from the original's values (nearest: {_measure(inner, inner.nearest)})"


def _difference(models: Models, found: Findings, name: str) -> str:
    each, (ulp, bound) = found.gaps[name], found.measure(name)
    what = "Output" if name in models.outputs else "Tensor"
    where = "" if what == "Output" else ", computed from the original's values,"
    if each.clash:
        return f"{what} {name!r}{where} differs: {each.clash}"
    where += " in float64" * (name in found.exact)
    trouble = f" (float64 could not be asked: {found.trouble})" if found.trouble else ""
    return f"{what} {name!r}{where} differs by {ulp:.3g} ulp, where rounding explains {bound:.3g}{trouble}"


def _measure(found: Findings, name: str) -> str:
    each, (ulp, bound) = found.gaps[name], found.measure(name)
    if each.clash or not is_float(each.dtype):
        return f"{name!r}, {each.clash or 'identical'}"
    return f"{name!r} with {ulp:.3g} of {bound:.3g} ulp{' in float64' * (name in found.exact)}"


def _deviations(
    models: Models, found: Findings, inner: Findings | None, noise: dict[str, float]
) -> list[Deviation]:
    proven = inner is not None and not inner.over
    deviations = []
    for name, each in found.gaps.items():
        notes = [_blindness(each, found.bounds[name])] if models.samples[0] else []
        if name in found.over and proven and not _is_lost(each):
            flipped = each.clash and not is_float(each.dtype)
            notes.append(f"ties flipped: {each.clash}" if flipped else "accumulated rounding")
        note = "; ".join(filter(None, notes))
        deviations.append(_deviation(name, found, noise.get(name), note, proven))
    return deviations


def _deviation(
    name: str, found: Findings, noise: float | None = None, note: str = "", proven: bool = False
) -> Deviation:
    each, bound = found.gaps[name], found.bounds[name]
    ok = name not in found.over or (proven and not _is_lost(each))
    values = (each.max_abs, each.max_rel, each.ulp, bound)
    return Deviation(name, each.dtype.name, ok, *values, noise=noise, note=note or each.clash)


def _blindness(each: Gap, bound: float) -> str:
    if each.tells(bound):
        return ""
    constant = each.moved is not None and not each.moved > TELLING * bound
    return f"inputs cannot tell: {'constant' if constant else 'saturated'}"


def _is_lost(each: Gap) -> bool:
    """Whether infinities or NaN stand in one model only: no rounding explains that."""
    return bool(each.clash) and is_float(each.dtype) and each.same_shape


def _inner_names(models: Models, inner: Findings | None) -> list[str]:
    return [name for name in inner.gaps if name not in models.outputs] if inner else []


def _contrasts(original: Session, outputs: list[str], given: Feeds) -> list[Feeds]:
    """The user's inputs in reverse order, if the original runs on them and they differ."""
    other = reversed_inputs(given)
    if not any((other[name] != given[name]).any() for name in given):
        return []
    try:
        original.run(outputs, other)
    except CannotRunError:
        return []
    return [other]


def _unsteady(models: Models) -> str:
    """The first output that differs between two runs of the original on one input, or ""."""
    sums = graphs.sums(models.a.graph)
    first, again = (models.original.run(models.outputs, models.samples[0]) for _ in range(2))
    for name, value in first.items():
        bound = rounding_bound(value.dtype, sums.get(name, ()), whole=True)
        if name not in again or gap(value, again[name]).ulp > bound:
            return name
    return ""


def _noise(models: Models) -> dict[str, float]:
    """In ulp, what ONNX Runtime's own optimizations change in the original; nothing if they cannot run."""
    if not isinstance(models.engine, OnnxRuntime):
        return {}
    path, feeds = models.paths[0], models.samples[0]
    try:
        optimized = models.engine.open("original", path, path.parent, optimize=True)
        values = optimized.run(models.outputs, feeds)
    except CannotRunError:
        return {}
    plain = models.original.run(models.outputs, feeds)
    return {name: gap(plain[name], values[name]).ulp for name in plain if name in values}
