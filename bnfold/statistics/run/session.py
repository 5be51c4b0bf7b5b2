"""ONNX Runtime, opened on a model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from bnfold import files
from bnfold.errors import InputsError, UnsupportedModelError
from bnfold.statistics.data.ports import Array, Feeds
from bnfold.statistics.optional import optional


class Session:
    """A model in ONNX Runtime on the CPU.

    Args:
        model: what to run, on the thread that asks; external data are read from where they are.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """

    def __init__(self, model: ir.Model) -> None:
        ort = optional("onnxruntime", "ort")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = _opened(ort, model, options)
        except Exception as error:  # the runtime's own types are not exported
            raise UnsupportedModelError(
                f"ONNX Runtime cannot load the model ({one_line(error)}); convert it to a newer opset."
            ) from error
        self.names: list[str] = [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> list[Array]:
        """The outputs of one batch in the order of ``names``; ``InputsError`` if the model fails on it."""
        try:
            return list(self._session.run(self.names, feeds))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputsError(
                f"The model fails on a batch of {shapes} ({one_line(error)}); the data do not fit it."
            ) from error


def _opened(ort: Any, model: ir.Model, options: Any) -> Any:
    providers = ["CPUExecutionProvider"]
    external = next(files.external_tensors(model), None)
    if external is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(external.base_dir))
        content = ir.serde.serialize_model(model).SerializeToString()
        return ort.InferenceSession(content, options, providers=providers)
    with TemporaryDirectory(prefix="bnfold-stats-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        files.write(model, path)  # a message of more than 2 GiB could not be handed over in memory
        return ort.InferenceSession(str(path), options, providers=providers)


def one_line(error: BaseException) -> str:
    """The text of an error on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
