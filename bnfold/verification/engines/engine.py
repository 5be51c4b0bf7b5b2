"""What runs a model: the interface of the engines, and their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

Array = NDArray[Any]
Shape = Sequence[int | str | None]


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

    Attributes:
        name: what to call it.
        condition: in what mode it runs a model, for the report.

    Args:
        stage: told "original" or "candidate" before anything of it runs, so that a crash can be attributed.
    """

    name: str
    condition = ""

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
