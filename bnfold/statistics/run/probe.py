"""The moments of one layer's input, measured where it stands: exact for every type, rank and offset.

The reduction is ONNX Runtime's own training-mode kernel (opset 14 and later, channels on axis 1),
which subtracts the batch's mean before it squares anything; elsewhere the same two passes are nodes:

    m = ReduceMean(x),   d = x - m,   v = ReduceMean(d·d)       over all axes but the channels'

Three small tensors leave the runtime: m, v, and the shape of x, which says how many samples there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.statistics.data.ports import Array
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.run.tap import Reading, Writer, rows

# Types to reduce in; half precision, which squares overflow, is widened first.
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Probe:
    """The names of one layer's three outputs."""

    layer: Layer
    mean: str
    variance: str
    shape: str

    def read(self, outputs: Mapping[str, Sequence[Array]]) -> dict[str, Reading]:
        """See ``Tap``."""
        count = np.stack(outputs[self.shape]).prod(axis=1) // max(1, self.layer.mean.size)
        mean, variance = rows(outputs[self.mean]), rows(outputs[self.variance])
        for reduced in (mean, variance):
            reduced[count == 0] = 0.0  # the mean of nothing is NaN
        return {self.layer.output: Reading(count, mean, variance, np.ones(len(count), bool))}


@dataclass
class Probing:
    """The nodes that measure one layer, and normalize as it does but by what was measured."""

    write: Writer
    layer: Layer
    x: ir.Value
    y: ir.Value | None = None
    dtype: ir.DataType = field(init=False)

    def __post_init__(self) -> None:
        stored = ir.DataType[self.layer.dtype]
        self.dtype = stored if stored in _WIDE else ir.DataType.FLOAT
        self.wide = self.x if stored is self.dtype else self.write.node("Cast", [self.x], to=self.dtype)[0]

    def attach(self) -> Probe:
        """Measure."""
        (shape,) = self.write.node("Shape", [self.x])
        if self.write.opset >= 14 and self.layer.axis == 1 and self.layer.rank != 1:
            self.y, mean, variance = self._kernel()
        else:
            mean, variance = self._two_passes()
        output = self.write.output
        return Probe(
            self.layer,
            output(mean, self.dtype),
            output(variance, self.dtype),
            output(shape, ir.DataType.INT64),
        )

    def normalized(self) -> ir.Value:
        """The layer's output with the moments of the batch in place of the stored ones."""
        y = self._by_hand() if self.y is None else self.y
        if self.wide is self.x:
            return y
        return self.write.node("Cast", [y], to=ir.DataType[self.layer.dtype])[0]

    def _kernel(self) -> Sequence[ir.Value]:
        layer, channels = self.layer, self.layer.mean.size
        given = (layer.gain, layer.bias, np.zeros(channels), np.ones(channels))
        inputs = [self.wide, *map(self._constant, given)]
        # With momentum 0 the running statistics that come out are those of the batch.
        attributes = {"training_mode": 1, "momentum": 0.0, "epsilon": layer.epsilon}
        return self.write.node("BatchNormalization", inputs, 3, **attributes)

    def _two_passes(self) -> tuple[ir.Value, ir.Value]:
        node, x = self.write.node, self.wide
        if not self.layer.rank:  # all axes behind the channels are as good as one
            (x,) = node("Reshape", [x, self.write.constant(np.array([0, 0, -1]), ir.DataType.INT64)])
        self.mean = self._mean_of(x)
        (self.centred,) = node("Sub", [x, self.mean])
        self.variance = self._mean_of(node("Mul", [self.centred, self.centred])[0])
        return self.mean, self.variance

    def _by_hand(self) -> ir.Value:
        node = self.write.node
        shape = [-1 if axis == self.layer.axis else 1 for axis in range(self.layer.rank or 3)]
        gain, bias = (self._constant(each.reshape(shape)) for each in (self.layer.gain, self.layer.bias))
        (power,) = node("Add", [self.variance, self._constant(np.array(self.layer.epsilon))])
        (unit,) = node("Div", [self.centred, node("Sqrt", [power])[0]])
        (y,) = node("Add", [node("Mul", [unit, gain])[0], bias])
        return y if self.layer.rank else node("Reshape", [y, *node("Shape", [self.x])])[0]

    def _mean_of(self, value: ir.Value) -> ir.Value:
        axes = [axis for axis in range(self.layer.rank or 3) if axis != self.layer.axis]
        return self.write.mean(value, axes)

    def _constant(self, array: npt.NDArray[Any]) -> ir.Value:
        return self.write.constant(array, self.dtype)
