"""``recalibrate``: write newly estimated statistics into a model, and keep the way back."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold import files
from bnfold.core.engine import Fold
from bnfold.errors import InputsError, VerificationError
from bnfold.folding import ModelLike, _like, _to_ir
from bnfold.passes.fold import FoldPass
from bnfold.provenance import provenance, restore
from bnfold.report import Report
from bnfold.statistics.check import require_layers, subject_of
from bnfold.statistics.data.paths import source_of
from bnfold.statistics.data.preprocess import Preprocess
from bnfold.statistics.estimate import Estimated, Estimator
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.layers import Unmeasured, survey
from bnfold.statistics.graph.rewrite import put
from bnfold.statistics.run.measure import Task
from bnfold.training import MovingAverage


@dataclass(frozen=True)
class Recalibration:
    """A model with new statistics.

    Attributes:
        model: of the type that was given (a path gives an ``onnx_ir.Model``).
        layers: as they were, stored statistics included.
        left: batch norms whose statistics could not be estimated, and why.
        estimated: the new statistics, and how they came about.
        report: what was folded afterwards, None if nobody asked.
    """

    model: Any
    layers: tuple[Layer, ...]
    left: tuple[Unmeasured, ...]
    estimated: Estimated
    report: Report | None
    _original: ir.Model = field(repr=False)
    _result: ir.Model = field(repr=False)
    _folds: tuple[Fold, ...] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically; raises ``OutputError`` if it cannot be written."""
        files.save(self._result, path)

    def map(self) -> dict[str, Any]:
        """Where everything went, old statistics included: what ``unfold`` needs."""
        made = provenance(self._folds, self._original, self._result)
        return {**made, "statistics": [self._entry(layer) for layer in self.layers]}

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data, without the vectors."""
        return {
            "schema_version": 1,
            "method": self.estimated.method,
            "samples": self.estimated.samples,
            "layers": [self._summary(layer) for layer in self.layers],
            "not_estimated": [{"name": each.name, "why": each.why} for each in self.left],
            "report": None if self.report is None else self.report.to_dict(),
        }

    def _entry(self, layer: Layer) -> dict[str, Any]:
        after = self.estimated.new[layer.output]
        return {
            "layer": layer.name,
            "before": {"mean": layer.mean.tolist(), "variance": layer.variance.tolist()},
            "after": {"mean": after.mean.tolist(), "variance": after.variance.tolist()},
        }

    def _summary(self, layer: Layer) -> dict[str, Any]:
        after = self.estimated.new[layer.output]
        shift, ratio = layer.relative(after)
        return {
            "name": layer.name,
            "wave": layer.wave,
            "channels": int(shift.size),
            "shift": float(np.sqrt(np.mean(np.square(shift)))),
            "ratio": float(np.exp(np.mean(np.log(np.maximum(ratio, 1e-300))))),
            "unsettled": self.estimated.moved.get(layer.output, 0.0),
            "note": layer.note,
        }


def recalibrate(
    model: ModelLike,
    data: Any,
    *,
    passes: int | None = None,
    moving: MovingAverage | None = None,
    fold: bool = False,
    verify: bool = True,
    batch: int = 0,
    preprocess: str | None = None,
    executor: Executor | None = None,
    shards: int = 0,
    to_inference: bool = False,
    base_dir: str | os.PathLike[str] | None = None,
) -> Recalibration:
    """Estimate the moving statistics of every batch norm anew.

    Args:
        model: a path, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``torch.onnx.ONNXProgram``.
            It is not changed.
        data: as for ``stats``; an iterable has to start anew for every run.
        passes: measure all layers this many times, instead of one wave of layers after the other.
        moving: update the stored statistics batch by batch in training mode, by this rule.
        fold: fold the batch norms afterwards.
        verify: show that folding changed no output.
        batch: how many samples run at once, 0 for as many as fit (with ``moving``, on which the batch has
            an effect, for 32); the model or the data may fix it.
        preprocess: what is done to files and arrays first, such as ``"divide 255"``.
        executor: where to measure, as for ``stats``.
        shards: into how many parts the executor's work is cut; 0 for the default.
        to_inference: take nodes out of training mode first.
        base_dir: the folder of the external data of a ``ModelProto`` that was loaded without them.

    Raises:
        InputsError: the data do not fit the model, or hold too little.
        UnsupportedModelError: the model has no batch norm whose statistics could be estimated.
        UnfinishedError: a worker was lost.
        VerificationError: the folded model could not be shown to equal the recalibrated one.
    """
    source = source_of(data, batch or (32 if moving else 0), Preprocess.of(preprocess))
    subject = subject_of(model, base_dir, to_inference, remote=executor is not None)
    original, result = _to_ir(model, base_dir), subject.open()
    found, left = survey(result)
    require_layers(found, left)
    layers = tuple(each.layer for each in found)
    estimated = _estimate(Estimator(Task(subject, source), layers, executor, shards), passes, moving)
    put(result, found, estimated.new)
    report, folds = _fold(result, verify) if fold else (None, ())
    return Recalibration(
        _like(model, result), layers, tuple(left), estimated, report, original, result, folds
    )


def unfold(model: ModelLike, made: dict[str, Any], *, base_dir: str | os.PathLike[str] | None = None) -> Any:
    """Restore the model that was folded or recalibrated, bit for bit.

    Args:
        model: the folded or recalibrated model; it is not changed.
        made: the map that was written with it (``--map``, ``Recalibration.map``).
        base_dir: the folder of the external data of a ``ModelProto`` that was loaded without them.

    Returns:
        The original model, of the type that was given (a path gives an ``onnx_ir.Model``).

    Raises:
        InputsError: the map belongs to another model or is damaged.
    """
    return _like(model, restore(_to_ir(model, base_dir), made))


def _estimate(estimator: Estimator, passes: int | None, moving: MovingAverage | None) -> Estimated:
    if moving is not None:
        if passes is not None:
            raise InputsError("A moving average is one pass; leave passes out.")
        return estimator.moving(moving)
    if passes is None:
        return estimator.waves()
    if passes < 1:
        raise InputsError(f"{passes} passes estimate nothing; allow at least one.")
    return estimator.passes(passes)


def _fold(model: ir.Model, verify: bool) -> tuple[Report, tuple[Fold, ...]]:
    """Fold a model in place, and show that its outputs stayed the same."""
    before, folding = model.clone(), FoldPass()
    folding(model)
    if verify and folding.report.changed:
        from bnfold import verification

        verdict = verification.verify(before, model, shared=True)
        if not verdict.ok:
            raise VerificationError(verdict.reason, verdict)
    return folding.report, tuple(folding.folds)
