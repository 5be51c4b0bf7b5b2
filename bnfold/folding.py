"""The Python door: ``fold`` for any form of model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy.typing as npt
import onnx
import onnx_ir as ir

from bnfold import files
from bnfold.errors import InvalidModelError, UnreadableModelError, VerificationError
from bnfold.passes.inference import to_inference as convert
from bnfold.passes.selection import Patterns
from bnfold.report import Report

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

ModelLike: TypeAlias = Union[str, os.PathLike[str], onnx.ModelProto, ir.Model, "ONNXProgram"]
Inputs = str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None


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
    from bnfold.passes.optimize import OptimizePass
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
