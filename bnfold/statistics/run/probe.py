"""A model that measures itself: per batch norm, the mean and variance of what it normalizes.

The reduction is ONNX Runtime's own training-mode kernel (opset 14 and later, channels on axis 1),
which subtracts the batch's mean before it squares anything; elsewhere the same two passes are nodes:

    m = ReduceMean(x),   d = x - m,   v = ReduceMean(d·d)       over all axes but the channels'

Three small tensors per layer leave the runtime: m, v, and the shape of x, which says how many samples
there were. No activation is copied out, and nodes that only the model's own outputs need are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.rewrite import add_initializer, fresh, names

# Types to reduce in; half precision, which squares overflow, is widened first.
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Tap:
    """The names of one layer's three outputs: mean, variance, shape."""

    layer: Layer
    outputs: tuple[str, str, str]


def instrument(model: ir.Model, layers: Sequence[Layer], *, training: bool = False) -> list[Tap]:
    """Let ``model`` itself return the moments of each layer's input, and nothing else.

    Args:
        model: is changed in place.
        layers: what to measure.
        training: normalize by the moments of each batch, as in training, instead of the stored ones.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    values.update((value.name, value) for value in model.graph.inputs)
    taken, taps = names(model), []
    model.graph.outputs.clear()
    for layer in layers:
        tapping = _Tapping(model, taken, layer, values[layer.tensor])
        taps.append(tapping.attach())
        if training:
            values[layer.output].replace_all_uses_with(tapping.normalized())
    model.graph.sort()
    RemoveUnusedNodesPass()(model)
    return taps


@dataclass
class _Tapping:
    """The nodes that measure one layer, and normalize as it does but by what was measured."""

    model: ir.Model
    taken: set[str | None]
    layer: Layer
    x: ir.Value
    y: ir.Value | None = None
    dtype: ir.DataType = field(init=False)
    opset: int = field(init=False)

    def __post_init__(self) -> None:
        stored = ir.DataType[self.layer.dtype]
        self.dtype = stored if stored in _WIDE else ir.DataType.FLOAT
        self.opset = self.model.graph.opset_imports.get("", 1)
        self.wide = self.x if stored is self.dtype else self._node("Cast", [self.x], to=self.dtype)[0]

    def attach(self) -> Tap:
        """Measure."""
        (shape,) = self._node("Shape", [self.x])
        if self.opset >= 14 and self.layer.axis == 1 and self.layer.rank != 1:
            self.y, mean, variance = self._kernel()
        else:
            mean, variance = self._two_passes()
        for value, dtype in ((mean, self.dtype), (variance, self.dtype), (shape, ir.DataType.INT64)):
            value.type = ir.TensorType(dtype)
            self.model.graph.outputs.append(value)
        return Tap(self.layer, (mean.name or "", variance.name or "", shape.name or ""))

    def normalized(self) -> ir.Value:
        """The layer's output with the moments of the batch in place of the stored ones."""
        y = self._by_hand() if self.y is None else self.y
        if self.wide is self.x:
            return y
        return self._node("Cast", [y], to=ir.DataType[self.layer.dtype])[0]

    def _kernel(self) -> Sequence[ir.Value]:
        layer, channels = self.layer, self.layer.mean.size
        given = (layer.gain, layer.bias, np.zeros(channels), np.ones(channels))
        inputs = [self.wide, *map(self._constant, given)]
        # With momentum 0 the running statistics that come out are those of the batch.
        attributes = {"training_mode": 1, "momentum": 0.0, "epsilon": layer.epsilon}
        return self._node("BatchNormalization", inputs, 3, **attributes)

    def _two_passes(self) -> tuple[ir.Value, ir.Value]:
        x = self.wide
        if not self.layer.rank:  # all axes behind the channels are as good as one
            (x,) = self._node("Reshape", [x, self._constant(np.array([0, 0, -1]), ir.DataType.INT64)])
        self.mean = self._mean_of(x)
        (self.centred,) = self._node("Sub", [x, self.mean])
        self.variance = self._mean_of(self._node("Mul", [self.centred, self.centred])[0])
        return self.mean, self.variance

    def _by_hand(self) -> ir.Value:
        shape = [-1 if axis == self.layer.axis else 1 for axis in range(self.layer.rank or 3)]
        gain, bias = (self._constant(each.reshape(shape)) for each in (self.layer.gain, self.layer.bias))
        epsilon = self._constant(np.array(self.layer.epsilon))
        (power,) = self._node("Add", [self.variance, epsilon])
        (deviation,) = self._node("Sqrt", [power])
        (unit,) = self._node("Div", [self.centred, deviation])
        (scaled,) = self._node("Mul", [unit, gain])
        (y,) = self._node("Add", [scaled, bias])
        return y if self.layer.rank else self._node("Reshape", [y, *self._node("Shape", [self.x])])[0]

    def _mean_of(self, value: ir.Value) -> ir.Value:
        axes = [axis for axis in range(self.layer.rank or 3) if axis != self.layer.axis]
        if self.opset < 18:
            return self._node("ReduceMean", [value], axes=axes, keepdims=1)[0]
        given = self._constant(np.array(axes), ir.DataType.INT64)
        return self._node("ReduceMean", [value, given], keepdims=1)[0]

    def _constant(self, array: npt.NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
        name = fresh(self.taken, f"{self.layer.output}_probe")
        kind = dtype or self.dtype
        return add_initializer(self.model, name, ir.Tensor(array.astype(kind.numpy()), name=name))

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], outputs: int = 1, **attributes: Any
    ) -> Sequence[ir.Value]:
        made = ir.node(op_type, inputs, attributes, num_outputs=outputs)
        self.model.graph.append(made)
        for value in made.outputs:
            value.name = fresh(self.taken, f"{self.layer.output}_{op_type}")
        return made.outputs
