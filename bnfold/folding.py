"""The Python door: ``fold`` for any form of model, ``FoldPass`` for onnx_ir pipelines."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from bnfold import files
from bnfold.core.engine import Engine, Fold, Progress
from bnfold.core.functions import inline_where_it_helps
from bnfold.core.view import Look, View
from bnfold.errors import InvalidModelError, UnreadableModelError, VerificationError
from bnfold.inference import to_inference as convert
from bnfold.report import Report
from bnfold.selection import Patterns, Selection

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

ModelLike: TypeAlias = Union[str, os.PathLike[str], onnx.ModelProto, ir.Model, "ONNXProgram"]
Inputs = str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None


class FoldPass(InPlacePass):
    """Fold every affine map of a model in place, as a pass for ``onnx_ir.passes.Sequential``.

    Args:
        only: fold only nodes whose name matches one of these globs.
        skip: leave nodes alone whose name matches one of these globs.
        freeze_initializers: take initializers that are also graph inputs as constants, and out of
            the model's signature.
        portable: keep to rewrites that help on every runtime: merge no leftovers.
        to_inference: first let nodes in training mode use their stored statistics, which changes what the
            model computes.
        progress: called with the number of nodes done and of nodes in all.

    Attributes:
        report: what the last call did.
        folds: each fold's map and the constants it replaced, for ``bnfold.provenance``.
    """

    def __init__(
        self,
        *,
        only: Patterns = None,
        skip: Patterns = None,
        freeze_initializers: bool = False,
        portable: bool = False,
        to_inference: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.selection = Selection(only, skip)
        self.freeze_initializers = freeze_initializers
        self.portable = portable
        self.to_inference = to_inference
        self.progress = progress
        self.look: Look = lambda model: View(model, self.selection.chosen, self.portable)
        self.report = Report()
        self.folds: list[Fold] = []

    def call(self, model: ir.Model) -> PassResult:
        """Fold ``model`` itself.

        Raises:
            SelectionError: a glob of ``only`` or ``skip`` matches no node.
            InvalidModelError: a batch norm's parameters do not fit its tensor.
            UnsupportedModelError: with ``to_inference``, something reads the statistics of a batch.
        """
        started, before = time.perf_counter(), files.constant_bytes(model)
        self.selection.check(model)
        converted = convert(model) if self.to_inference else 0
        frozen = self.freeze_initializers and freeze(model)
        inlined = inline_where_it_helps(
            model, lambda trial: _run(View(trial, self.selection.chosen, portable=True)).touched
        )
        engine = _run(self.look(model), self.progress)
        self.report, self.folds = engine.report, engine.folds
        self.report.inlined, self.report.converted = inlined, converted
        self.report.constant_bytes = files.constant_bytes(model) - before
        self.report.seconds = time.perf_counter() - started
        return PassResult(model, self.report.changed or frozen)


def _run(view: View, progress: Progress = lambda done, total: None) -> Engine:
    engine = Engine(view, progress)
    # What overflows float64, or is divided by zero, is refused where it would be stored.
    with np.errstate(all="ignore"):
        engine.run()
    return engine


@dataclass(frozen=True)
class FoldResult:
    """A folded model.

    Attributes:
        model: the folded model, of the type that was given (a path gives an ``onnx_ir.Model``).
        report: what was folded, and why the rest was not.
    """

    model: Any
    report: Report
    _ir: ir.Model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        files.save(self._ir, path)


def fold(
    model: ModelLike,
    *,
    only: Patterns = None,
    skip: Patterns = None,
    freeze_initializers: bool = False,
    portable: bool = False,
    to_inference: bool = False,
    merge: bool = True,
    prune_below: float | None = 0.0,
    verify: bool = False,
    inputs: Inputs = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> FoldResult:
    """Fold every inference-mode batch norm of a model into the weights around it.

    Args:
        model: a path, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``torch.onnx.ONNXProgram``.
            It is not changed.
        only: fold only nodes whose name matches one of these globs.
        skip: leave nodes alone whose name matches one of these globs.
        freeze_initializers: take initializers that are also graph inputs as constants.
        portable: keep to rewrites that help on every runtime.
        to_inference: first let nodes in training mode use their stored statistics, which changes what the
            model computes; the report counts them, and ``verify`` compares with the model so changed.
        merge: make one layer of linear branches that are added.
        prune_below: remove channels with |γ/σ| up to this, which changes the outputs; with 0 those alone
            that hold one value, None for none.
        verify: show that both models give the same outputs before returning.
        inputs: what to verify with: a ``.npz`` path or arrays by input name; random without.
        base_dir: the folder of the external data of a ``ModelProto`` that was loaded without them.

    Returns:
        The folded model, of the type that was given, and the report.

    Raises:
        BnfoldError: a subclass that says what is the matter: the model cannot be read or is invalid,
            or (with ``verify``) ``VerificationError``.
    """
    from bnfold.optimizing import OptimizePass
    from bnfold.pruning.flatten import flatten

    folded = _to_ir(model, base_dir)
    folding = OptimizePass(
        only=only,
        skip=skip,
        freeze_initializers=freeze_initializers,
        portable=portable,
        to_inference=to_inference,
        merge=merge,
        prune_below=prune_below,
    )
    folding(folded)
    if verify and folding.report.changed:
        original = _to_ir(model, base_dir)
        if to_inference:
            convert(original)
        flatten(original, folding.flattened)
        _verify(original, folded, inputs)
    return FoldResult(_like(model, folded), folding.report, folded)


def _to_ir(model: Any, base_dir: str | os.PathLike[str] | None) -> ir.Model:
    """A model of our own, whatever form was given."""
    if isinstance(model, (str, os.PathLike)):
        return files.load(model)
    if isinstance(model, onnx.ModelProto):
        return files.from_proto(model, base_dir)
    if isinstance(model, ir.Model):
        return _clone(model)
    if isinstance(inner := getattr(model, "model", None), ir.Model):
        return _clone(inner)
    raise UnreadableModelError(
        f"cannot fold a {type(model).__name__}; pass a path, an onnx.ModelProto, an onnx_ir.Model "
        "or a torch.onnx.ONNXProgram."
    )


def _clone(model: ir.Model) -> ir.Model:
    try:
        return model.clone()
    except (RuntimeError, ValueError) as error:
        raise InvalidModelError(
            "the onnx_ir.Model cannot be cloned; bring its nodes into topological order with graph.sort()."
        ) from error


def _like(given: Any, folded: ir.Model) -> Any:
    """The folded model in the form that was given."""
    if isinstance(given, onnx.ModelProto):
        return ir.serde.serialize_model(folded)
    if isinstance(given, (str, os.PathLike, ir.Model)):
        return folded
    program = copy.copy(given)
    program.model = folded
    return program


def _verify(original: ir.Model, folded: ir.Model, inputs: Inputs) -> None:
    from bnfold.verification import verify

    verdict = verify(original, folded, inputs=inputs, shared=True)
    if not verdict.ok:
        raise VerificationError(verdict.reason, verdict)


def freeze(model: ir.Model) -> bool:
    """Take initializers out of the graph's inputs; before IR version 4 they have to be listed there."""
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    frozen = model.ir_version >= 4 and len(kept) < len(model.graph.inputs)
    if frozen:
        model.graph.inputs[:] = kept
    return frozen
