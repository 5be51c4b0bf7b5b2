"""The two things that can run a model: ONNX Runtime, and onnx's reference evaluator where it is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto

from .engine import Backend, CannotRunError, Engine, Session, one_line
from .ort import OnnxRuntime

__all__ = ["CannotRunError", "Engine", "OnnxRuntime", "ReferenceEvaluator", "Session", "choose", "one_line"]


class ReferenceEvaluator(Engine):
    """onnx's reference evaluator; it refuses operators on which it is not known to be exact."""

    name = f"the reference evaluator of onnx {onnx.__version__}"

    def load(self, model: Path | ModelProto, folder: Path, optimize: bool) -> Backend:
        """See ``Engine.load``."""
        from .reference import Reference, require_exact

        if isinstance(model, Path):
            model = onnx.load(model, load_external_data=False)
        require_exact(model)
        onnx.load_external_data_for_model(model, str(folder))
        return Reference(model)


def choose(model: Path, stage: Callable[[str], None]) -> tuple[Engine, Session]:
    """The engine that can load the original, and the original loaded by it.

    Raises:
        CannotRunError: ONNX Runtime is not installed, or none can load it; the text says why.
    """
    engine: Engine = OnnxRuntime(stage)
    try:
        return engine, engine.open("original", model, model.parent)
    except CannotRunError as refusal:
        engine = ReferenceEvaluator(stage)
        try:
            return engine, engine.open("original", model, model.parent)
        except CannotRunError as error:
            raise CannotRunError(f"{refusal}, and {error}") from error
