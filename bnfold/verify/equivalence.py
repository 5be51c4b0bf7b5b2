"""Whether two models are equal: what is run, what is compared, and what the answer rests on.

**End to end.** Both models get the same inputs and every output is compared against the bound that rounding keeps
(``bnfold.verify.compare``). That settles shallow nets with lively outputs. It does not settle a deep net that
amplifies rounding, a classifier whose softmax is saturated on random inputs, or an ArgMax that flips on a tie.

**Piece by piece.** A tensor with one name in both graphs cuts both into pieces. Give every piece of the candidate the
*original's* values of the tensors it reads, and compare what it computes with the original's value. If all pieces
agree, the models agree, by induction along the graph, whatever the names were meant to say; and each piece is so
shallow that the bound is a few ulp at any depth of the net. Discrete operators read the original's floats, so
that no tie flips. The cuts stand around the operators that changed (``graph.shared_cuts``), within a limit of memory.

Pieces that agree are a proof for any pair. Pieces that disagree are evidence against the candidate only where one
name is promised to mean one value (``shared``, which ``bnfold.fold`` promises). For two arbitrary models the
pieces are asked only if the outputs leave a question open; names on which the models differ by more than 1/16
end to end are no cuts then, and if the pieces disagree as well, the outputs decide.

**Ill-conditioned pieces.** Where a mean of 1000 is taken from values of 1000, rounding exceeds any bound made from
depth. So before a tensor beyond its bound is called different, the original is measured: every weight is moved by at
most 1 ulp at random, and the bound is raised to ``pieces.MARGIN`` times what that changes: rounding the folded
weights moves them by at most half an ulp.

**Inputs that cannot tell.** A tensor that varies by less than ``compare.TELLING`` times its bound, over its elements
or from one input to the next, would hide an error. If no compared float tensor shows anything, the verdict is
NOT_VERIFIED (unless the model has no inputs, so that nothing was left untried).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import GraphProto, ModelProto

from bnfold.verify import graph as graphs
from bnfold.verify.compare import gap, is_float, rounding_bound
from bnfold.verify.inputs import Feeds, port, reversed_inputs, runnable, user_inputs
from bnfold.verify.pieces import Findings, Models, excuse, pieces, whole
from bnfold.verify.runtime import CannotRunError, Engine, Session, choose
from bnfold.verify.verdict import Deviation, Status, Verdict


@dataclass(frozen=True)
class Job:
    """What to verify: two files, the user's .npz or None, and the options of ``bnfold.verify.verify``."""

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
    difference = _signature_difference(a.graph, b.graph)
    if difference:
        return Verdict(Status.DIFFERENT, difference)
    try:
        return _compare(job, a, b, stage)
    except CannotRunError as error:
        return Verdict(Status.NOT_VERIFIED, f"{str(error)[0].upper()}{str(error)[1:]}.")


def _compare(job: Job, a: ModelProto, b: ModelProto, stage: Callable[[str], None]) -> Verdict:
    ports = [port(each) for each in graphs.required_inputs(a.graph)]
    given = user_inputs(ports, job.inputs) if job.inputs else None
    engine, original = choose(job.a, stage)
    outputs = [each.name for each in a.graph.output]
    if given is None:
        samples = runnable(ports, lambda feeds: original.run(outputs, feeds), job.seed)
    else:
        samples = [given]
    contrasts = _contrasts(original, outputs, given) if given else []
    models = Models(engine, (job.a, job.b), a, b, original, outputs, samples, contrasts)
    unsteady = _unsteady(models)
    if unsteady:
        text = f"The original model is not deterministic: its output {unsteady!r} differs between two runs."
        return Verdict(Status.NOT_VERIFIED, text, runtime=_runtime(engine))
    return _decide(job, models, has_inputs=bool(ports))


def _decide(job: Job, models: Models, has_inputs: bool) -> Verdict:
    found = whole(models)
    inner, trouble = None, ""
    if job.shared or found.over or not found.telling:
        try:
            inner = pieces(models, job.shared)
        except CannotRunError as error:
            trouble = f" (inner tensors could not be compared: {error})"
    if found.over and inner is None:
        excuse(models, found)
