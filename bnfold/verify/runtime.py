"""The two things that can run a model: ONNX Runtime, and onnx's reference evaluator where it is exact."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

Array = NDArray[Any]
Shape = Sequence[int | str | None]
# Element types that ONNX Runtime exchanges with numpy without help.
_NATIVE = frozenset(
    "float double float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string".split()
)


class CannotRunError(Exception):
    """A runtime refuses a model or fails on it; the text is a clause without a final stop."""


class Backend(Protocol):
    """A model as one runtime has loaded it; every method may raise whatever the runtime raises."""

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Iterable[Any]:
        """The named outputs, in order."""

    def size(self, name: str) -> int:
        """Bytes of an output as far as its shape is known before running; unknown dimensions count 1."""


class Engine(ABC):
    """Loads models.

    Args:
        stage: told "original" or "candidate" before anything of it runs, so that a crash can be attributed.
    """

    name: str

    def __init__(self, stage: Callable[[str], None]) -> None:
        self.stage = stage

    def open(self, role: str, model: Path | ModelProto, folder: Path, *, optimize: bool = False) -> Session:
        """Load the ``role`` ("original" or "candidate"); ``folder`` holds the external data of a ModelProto.

        Raises:
            CannotRunError: the runtime cannot load it.
        """
        self.stage(role)
        try:
            return Session(self, role, self.load(model, folder, optimize))
        except Exception as error:
            raise CannotRunError(f"{self.name} cannot load the {role} ({one_line(error)})") from error

    @abstractmethod
    def load(self, model: Path | ModelProto, folder: Path, optimize: bool) -> Backend:
        """Load a model; may raise anything."""


class Session:
    """A loaded model that knows its role."""

    def __init__(self, engine: Engine, role: str, backend: Backend) -> None:
        self._engine, self._role, self._backend = engine, role, backend

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The named outputs for these inputs; a sequence of tensors yields ``name[0]``, ``name[1]``, ...

        Raises:
            CannotRunError: the runtime fails, or an output is neither an array nor made of arrays.
        """
        self._engine.stage(self._role)
        try:
            values = self._backend.run(names, feeds)
            return _flatten(zip(names, values, strict=True))
        except Exception as error:
            text = f"{self._engine.name} fails on the {self._role} ({one_line(error)})"
            raise CannotRunError(text) from error

    def size(self, name: str) -> int:
        """See ``Backend.size``."""
        return self._backend.size(name)


class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU, all optimizations off unless asked for.

    Raises:
        CannotRunError: it is not installed.
    """

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


def one_line(error: BaseException) -> str:
    """The text of an error on one line of at most 300 characters, without a final stop."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _flatten(values: Iterable[tuple[str, Any]]) -> dict[str, Array]:
    """Arrays by name; sequences and maps become one array per element."""
    flat: dict[str, Array] = {}
    for name, value in values:
        if isinstance(value, (list, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            flat |= _flatten((f"{name}[{key}]", each) for key, each in items)
        elif isinstance(value, (np.ndarray, np.generic, int, float, str)):
            flat[name] = np.asarray(value)
        else:
            raise TypeError(f"output {name} is a {type(value).__name__}, which cannot be compared")
    return flat


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
