"""What every way of measuring inside the graph has in common: nodes it adds, and numbers it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.core.graph.shapes import opset_of
from bnfold.statistics.data.ports import Array
from bnfold.statistics.graph.rewrite import add_initializer, fresh, names
from bnfold.training.moments import Floats


@dataclass(frozen=True)
class Reading:
    """What each of B batches says of one layer's input.

    Attributes:
        count: how often each channel was seen, of shape (B,).
        mean: of shape (B, C).
        variance: population variance of shape (B, C).
        sure: whether rounding has left them intact, of shape (B,).
    """

    count: NDArray[np.int64]
    mean: Floats
    variance: Floats
    sure: NDArray[np.bool_]

    def replace(self, index: int, other: Reading) -> None:
        """Let batch ``index`` be the only one of ``other``."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[index] = theirs[0]


class Tap(Protocol):
    """Outputs that were added to a model to measure layers."""

    def read(self, outputs: Mapping[str, Sequence[Array]]) -> dict[str, Reading]:
        """The moments of each layer's input, by layer output, from what the model returned for each batch."""


def rows(arrays: Sequence[Array]) -> Floats:
    """What the model returned for B batches, in float64 of shape (B, ·)."""
    return np.concatenate(arrays, axis=None, dtype=np.float64).reshape(len(arrays), -1)


class Writer:
    """Adds nodes to a model; every name it makes is new."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.opset, self._taken = model, opset_of(model), names(model)

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], outputs: int = 1, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node and return what it makes."""
        made = ir.node(op_type, inputs, attributes, num_outputs=outputs)
        self.model.graph.append(made)
        for value in made.outputs:
            value.name = fresh(self._taken, f"{inputs[0].name}_{op_type}")
        return made.outputs

    def constant(self, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        """Store a constant."""
        name = fresh(self._taken, "probe")
        tensor = ir.Tensor(np.asarray(array.astype(dtype.numpy())), name=name)
        return add_initializer(self.model, name, tensor)

    def mean(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Add a mean over these axes, which stay with size 1."""
        if self.opset < 18:
            return self.node("ReduceMean", [value], axes=list(axes), keepdims=1)[0]
        given = self.constant(np.array(axes), ir.DataType.INT64)
        return self.node("ReduceMean", [value, given], keepdims=1)[0]

    def output(self, value: ir.Value, dtype: ir.DataType) -> str:
        """Let the model return a value, and say under which name."""
        value.type = ir.TensorType(dtype)
        self.model.graph.outputs.append(value)
        return value.name or ""
