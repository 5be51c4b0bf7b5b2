"""ONNX Runtime on the CPU, as far as it exchanges every element type."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from .engine import Array, Backend, CannotRunError, Engine, Shape

# Element types that ONNX Runtime exchanges with numpy without help.
_NATIVE = frozenset(
    [
        "float",
        "double",
        "float16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "string",
    ]
)


class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU, all optimizations off unless asked for.

    Raises:
        CannotRunError: it is not installed.
    """

    condition = ", optimizations off"

    def __init__(self, stage: Callable[[str], None]) -> None:
        super().__init__(stage)
        try:
            self._ort = import_module("onnxruntime")
        except ImportError as error:
            text = "ONNX Runtime is not installed; run: pip install 'bnfold[ort]'"
            raise CannotRunError(text) from error
        self.name = f"ONNX Runtime {self._ort.__version__}"

    def load(self, model: Path | ModelProto, folder: Path, optimize: bool) -> Backend:
        """See ``Engine.load``."""
        levels = self._ort.GraphOptimizationLevel
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(folder))
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        only = ["CPUExecutionProvider"]
        return _OrtBackend(self._ort, self._ort.InferenceSession(source, options, providers=only))


class _OrtBackend:
    def __init__(self, ort: Any, session: Any) -> None:
        self._ort = ort
        self._session = session
        self._inputs: dict[str, str] = {each.name: each.type for each in session.get_inputs()}
        self._outputs: dict[str, tuple[str, Shape]] = {
            each.name: (each.type, each.shape) for each in session.get_outputs()
        }

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Iterable[Any]:
        given = {name: feeds[name] for name in self._inputs if name in feeds}
        types = [self._inputs[name] for name in given] + [self._outputs[name][0] for name in names]
        if all(_element(each) in _NATIVE or not _is_tensor(each) for each in types):
            return self._session.run(list(names), given)  # type: ignore[no-any-return]
        values = self._session.run_with_ort_values(list(names), self._wrap(given))
        return [_from_ort_value(each) for each in values]

    def size(self, name: str) -> int:
        kind, shape = self._outputs[name]
        if not _is_tensor(kind) or kind == "tensor(string)":
            return 1
        known = [size for size in shape if isinstance(size, int)]
        return int(np.prod(known, dtype=np.float64)) * _numpy_type(kind).itemsize

    def _wrap(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        make = self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type
        types = {name: _onnx_type(self._inputs[name]) for name in feeds}
        return {name: make(np.ascontiguousarray(feeds[name]), types[name]) for name in feeds}


def _is_tensor(kind: str) -> bool:
    return kind.startswith("tensor(")


def _element(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")")


def _onnx_type(kind: str) -> int:
    return int(TensorProto.DataType.Value(_element(kind).upper()))


def _numpy_type(kind: str) -> np.dtype[Any]:
    return np.dtype(tensor_dtype_to_np_dtype(_onnx_type(kind)))


def _from_ort_value(value: Any) -> Array:
    """Read an OrtValue of any element type: numpy() refuses bfloat16 and gives float8 as bytes."""
    dtype, size = _numpy_type(value.data_type()), value.tensor_size_in_bytes()
    memory = (ctypes.c_char * size).from_address(value.data_ptr()) if size else b""
    return np.frombuffer(bytes(memory), dtype).reshape(value.shape())
