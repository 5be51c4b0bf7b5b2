"""What a model takes: the check that every batch has to pass before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import InputsError

Array = NDArray[Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Port:
    """One input of a model.

    Attributes:
        name: its name.
        dtype: its numpy dtype.
        shape: sizes, None where open; None altogether if not even the rank is declared.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def fits(self, array: Array) -> bool:
        """Whether a batch of this type and shape can be fed; the size of the first axis is open."""
        return self._casts(array) and self._has_shape(array.shape)

    def fitted(self, array: Array) -> Array:
        """The array in the input's own floating-point type.

        Raises:
            InputsError: its type or shape is another.
        """
        if not self._casts(array):
            raise InputsError(
                f"Input {self.name!r} needs {self.dtype.name}, and the data are {array.dtype.name}; "
                "convert them, or say with --preprocess what was done in training (such as 'divide 255')."
            )
        if not self._has_shape(array.shape):
            wanted = " × ".join("?" if size is None else str(size) for size in self.shape or ())
            raise InputsError(
                f"Input {self.name!r} needs shape {wanted or 'scalar'}, and the data have "
                f"{list(array.shape)}; reshape them."
            )
        return array.astype(self.dtype, copy=False)

    @property
    def fixed(self) -> int | None:
        """How many samples make a batch, if the model leaves no choice."""
        return self.shape[0] if self.shape else None

    def _casts(self, array: Array) -> bool:
        both_float = array.dtype.kind == "f" and self.dtype.kind in "fV"
        return array.dtype == self.dtype or both_float

    def _has_shape(self, shape: tuple[int, ...]) -> bool:
        if self.shape is None:
            return True
        pairs = zip(self.shape[1:], shape[1:], strict=False)
        return len(shape) == len(self.shape) and all(size in (None, given) for size, given in pairs)


def ports_of(model: ir.Model) -> list[Port]:
    """The inputs that a caller has to feed."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return [_port(value) for value in inputs]


def _port(value: ir.Value) -> Port:
    dtype = np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy())
    shape = value.shape
    sizes = None if shape is None else tuple(dim if isinstance(dim, int) else None for dim in shape)
    return Port(value.name or "", dtype, sizes)


def matched(ports: list[Port], arrays: Mapping[str, Array]) -> Feeds:
    """Give every input its array: by name, or the only array that fits a model's only input.

    Arrays that no input takes (labels, say) are left out.

    Raises:
        InputsError: an input has no array, or one that does not fit.
    """
    if all(port.name in arrays for port in ports):
        return {port.name: port.fitted(arrays[port.name]) for port in ports}
    if len(ports) == 1:
        fitting = [array for array in arrays.values() if ports[0].fits(array)]
        if len(fitting) == 1 or (fitting and len(arrays) == 1):
            return {ports[0].name: ports[0].fitted(fitting[0])}
        if len(arrays) == 1:
            return {ports[0].name: ports[0].fitted(next(iter(arrays.values())))}
    missing = next(port.name for port in ports if port.name not in arrays)
    raise InputsError(
        f"The data hold {', '.join(map(repr, arrays)) or 'no array'}, and the model needs "
        f"{missing!r}; name the arrays as the model names its inputs."
    )
