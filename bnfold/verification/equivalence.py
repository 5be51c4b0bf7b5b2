"""Whether two models are equal: what is run, what is compared, and what the answer rests on.

**End to end.** Both models get the same inputs and every output is compared against the bound that rounding
keeps (``compare.gap``). That settles shallow nets with lively outputs. It does not settle a deep net that
amplifies rounding, a classifier whose softmax is saturated on random inputs, or an ArgMax that flips a tie.

**Piece by piece.** A tensor with one name in both graphs cuts both into pieces. Give every piece of the
candidate the *original's* values of the tensors it reads, and compare what it computes with the original's
value. If all pieces agree, the models agree, by induction along the graph, whatever the names were meant to
say; and each piece is so shallow that the bound is a few ulp at any depth of the net. Discrete operators read
the original's floats, so that no tie flips. The cuts stand around the operators that changed
(``compare.graph.shared_cuts``), within a limit of memory.

Pieces that agree are a proof for any pair. Pieces that disagree are evidence against the candidate only where
one name is promised to mean one value (``shared``, which ``bnfold.fold`` promises). For two arbitrary models
the pieces are asked only if the outputs leave a question open; names on which the models differ by more than
1/16 end to end are no cuts then, and if the pieces disagree as well, the outputs decide.

**Sums that round badly.** Where a mean of 1000 is taken from values of 1000, or where 256 equal terms are
rounded alike, no bound made from depth holds. So before a tensor beyond its bound is called different,
both pieces in front of it are evaluated in float64 (``compare.float64``). What then differs is the rounding
of the weights alone, and how far that reaches is measured: every weight of the original is moved by 1
ulp, which must change the tensor at least ``1 / MARGIN`` times as much as the candidate does. And the
candidate must not lose more than ``LOSS`` times what the original loses to its own arithmetic.

**Inputs that cannot tell.** A tensor that is saturated at 0 and 1, or that no input moves by more than
``TELLING`` times its bound, would hide an error. If no compared float tensor shows
anything, the verdict is NOT_VERIFIED (unless the model has no inputs or no operator differs, so that
nothing was left untried).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from .compare import graph as graphs
from .compare.findings import Findings
from .compare.gap import gap, rounding_bound
from .compare.models import Models
from .compare.pieces import from_truth, judge_exactly, pieces, whole
from .engines import CannotRunError, OnnxRuntime, Session, choose
from .inputs import Feeds, port, reversed_inputs, runnable, user_inputs
from .verdict import Status, Verdict
from .wording import agreement, deviation, deviations, difference, inner_names


@dataclass(frozen=True)
class Job:
    """What to verify: two files, the user's .npz or None, and the options of ``runner.verify``."""

    a: Path
    b: Path
    inputs: Path | None
    noise: bool
    seed: int
    shared: bool
    exact: bool = False


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
    unlike = graphs.signature_difference(a.graph, b.graph)
    if unlike:
        return Verdict(Status.DIFFERENT, unlike)
    try:
        models = load_models(job, a, b, stage)
        unsteady = _unsteady(models)
        if unsteady:
            text = f"the original model is not deterministic: {unsteady!r} differs between two runs"
            raise CannotRunError(text)
        return _verdict(job, models)
    except CannotRunError as error:
        return Verdict(Status.NOT_VERIFIED, f"{str(error)[0].upper()}{str(error)[1:]}.")


def load_models(job: Job, a: ModelProto, b: ModelProto, stage: Callable[[str], None]) -> Models:
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
    changed = bool(graphs.changed(a, b) or graphs.changed(b, a))
    return Models(engine, (job.a, job.b), a, b, original, outputs, samples, contrasts, changed)


def _verdict(job: Job, models: Models) -> Verdict:
    found = whole(models)
    truth = from_truth(models) if job.exact else {}
    inner, trouble = _pieces(job, models, found)
    if found.over and inner is None:
        judge_exactly(models, found)
    doubtful = bool(found.over) or bool(inner and inner.over)
    noise = optimization_noise(models) if job.noise or doubtful else {}
    proven = inner if inner and not inner.over else None
    status, reason = _judge(models, found, inner, job.shared)
    return Verdict(
        status,
        f"{reason}{trouble}.",
        outputs=deviations(found, proven, noise, varies=bool(models.samples[0])),
        runtime=models.engine.name + models.engine.condition,
        seed=None if job.inputs else job.seed,
        samples=found.samples,
        shared=len(inner_names(found, inner)),
        worst=deviation(inner, inner.nearest) if inner else None,
        from_truth=truth,
    )


def _pieces(job: Job, models: Models, found: Findings) -> tuple[Findings | None, str]:
    """Compare the pieces where the outputs do not settle the question; also why that failed, or ""."""
    if not (job.shared or found.over or not found.telling):
        return None, ""
    try:
        return pieces(models, job.shared), ""
    except CannotRunError as error:
        models.a, models.b = graphs.read_model(job.a), graphs.read_model(job.b)
        return None, f"; inner tensors were not compared ({error})"


def _judge(models: Models, found: Findings, inner: Findings | None, shared: bool) -> tuple[Status, str]:
    """The answer and its reason without a final stop; see the module's text."""
    if inner and inner.over and shared:
        return Status.DIFFERENT, difference(inner, inner.nearest, models.outputs)
    lost = [name for name in found.over if found.gaps[name].lost]
    if found.over and (lost or inner is None or inner.over):
        name = lost[0] if lost else found.nearest
        judged = inner if inner and name in inner.over else found
        return Status.DIFFERENT, difference(judged, name, models.outputs)
    proven = inner if inner and not inner.over else None
    told = found.telling or (proven is not None and proven.telling)
    if not told and models.samples[0] and models.changed:
        text = "Nothing compared can tell: all is discrete, constant or saturated on these inputs"
        return Status.NOT_VERIFIED, f"{text}; give inputs of your own as .npz"
    return Status.EQUAL, agreement(found, proven)


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


def optimization_noise(models: Models) -> dict[str, float]:
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
