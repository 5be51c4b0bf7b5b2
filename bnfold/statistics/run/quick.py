"""Moments of many layers in one vector: about half of what ``probe`` costs.

Pooling and multiplying are operators that ONNX Runtime has for its blocked layout of images, and the output
y = s·x + t of a batch norm tells the moments of its input x, while a Conv may go on taking up the batch norm:

    mean(x) = mean + (mean(y) - bias)/s,    var(x) = (mean(y·y) - mean(y)²)/s²

The difference cancels where y is far from 0 for its spread, and squares may leave float32. ``read`` says
where; these layers are to be measured by ``probe`` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, starmap

import numpy as np
import onnx_ir as ir

from bnfold.core.graph.shapes import infer, opset_of
from bnfold.statistics.data.ports import Array
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.run.tap import Reading, Writer, rows
from bnfold.training.moments import Floats

# By how much mean(y·y) may exceed the variance, which is by how much rounding to float32 grows.
_CANCELS = 16.0

# Below this, squares of single values may have become denormal or zero in float32.
_UNDERFLOWS = 1e-30


@dataclass(frozen=True)
class Place:
    """Where one layer is measured.

    Attributes:
        layer: what is measured.
        behind: whether at its output instead of its input.
        positions: how often one sample shows it each channel, H·W.
    """

    layer: Layer
    behind: bool
    positions: int

    @property
    def map(self) -> tuple[Floats, Floats, Floats]:
        """Of what is measured, mean + (· - bias)/s gives the layer's input: mean, bias and s."""
        it = self.layer
        if self.behind:
            return it.mean, it.bias, it.gain / it.deviation
        return np.zeros_like(it.mean), np.zeros_like(it.mean), np.ones_like(it.mean)


@dataclass(frozen=True)
class Quick:
    """Layers that see equally many samples, and the two outputs that tell of all of them.

    Attributes:
        places: where each layer is measured.
        sums: the name of the vector of every layer's means, and then of every layer's mean squares,
            added up over the samples.
        samples: the name of their number.
    """

    places: tuple[Place, ...]
    sums: str
    samples: str

    def read(self, outputs: Mapping[str, Sequence[Array]]) -> dict[str, Reading]:
        """See ``Tap``."""
        samples = np.concatenate(outputs[self.samples])
        sums = rows(outputs[self.sums])
        first, squares = np.hsplit(sums / np.maximum(samples, 1)[:, None], 2)
        center, bias, gain = self._maps
        with np.errstate(all="ignore"):
            variance = squares - np.square(first)
            fine = (squares <= _CANCELS * variance) & (squares > _UNDERFLOWS) & np.isfinite(variance)
            sure = np.logical_and.reduceat(fine, self._starts, axis=1)
            mean, variance = center + (first - bias) / gain, variance / np.square(gain)
        return {
            place.layer.output: Reading(
                samples * place.positions, mean[:, part], variance[:, part], sure[:, k]
            )
            for k, (place, part) in enumerate(zip(self.places, self._parts, strict=True))
        }

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(place.layer.mean.size for place in self.places[:-1])]

    @cached_property
    def _parts(self) -> list[slice]:
        return list(starmap(slice, pairwise([*self._starts, None])))

    @cached_property
    def _maps(self) -> list[Floats]:
        return [np.concatenate(each) for each in zip(*(place.map for place in self.places), strict=True)]


def groups(model: ir.Model, layers: Sequence[Layer]) -> list[list[Place]]:
    """Those layers that can be measured together, and where."""
    facts = infer(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    found: dict[object, list[Place]] = {}
    for layer in layers:
        y = values[layer.output]
        samples, *rest = facts.shape(y) or (None,)
        sizes = [size for size in rest if isinstance(size, int) and size]
        if _suits(model, layer) and len(sizes) == 3:
            place = Place(layer, _is_behind(y), math.prod(sizes[1:]))
            found.setdefault(object() if samples is None else samples, []).append(place)
    return list(found.values())


def _suits(model: ir.Model, layer: Layer) -> bool:
    """Whether the layer sees images in float32, and what it makes of them can be inverted."""
    if layer.dtype != "FLOAT" or layer.axis != 1 or layer.rank != 4 or opset_of(model) < 9:
        return False
    if layer.broken.any():
        return False
    gain, numbers = np.abs(layer.gain / layer.deviation), np.finfo(np.float32)
    return bool(((gain > numbers.tiny) & (gain < numbers.max)).all())


def _is_behind(y: ir.Value) -> bool:
    """Whether the output is the cheaper place.

    Not if nobody else needs it, nor in front of a sum, which the runtime computes together with what
    makes one of its terms, but only if that is not needed itself.
    """
    readers = {use.node.op_type for use in y.uses()}
    return bool(readers) and readers.isdisjoint({"Add", "Sum"})


def attach(places: Sequence[Place], values: Mapping[str | None, ir.Value], write: Writer) -> Quick:
    """Let the model return the means of one group."""
    means: list[ir.Value] = []
    squares: list[ir.Value] = []
    for place in places:
        tensor = values[place.layer.output if place.behind else place.layer.tensor]
        means += write.node("GlobalAveragePool", [tensor])
        squares += write.node("GlobalAveragePool", write.node("Mul", [tensor, tensor]))
    together = write.node("Concat", means + squares, axis=1)
    # Of height and width 1 nothing changes places, but to this order the runtime copies whole blocks.
    (rows,) = write.node("Flatten", write.node("Transpose", together, perm=[0, 2, 3, 1]))
    first = write.constant(np.array([0]), ir.DataType.INT64)
    samples = write.node("Gather", [*write.node("Shape", [rows]), first])
    # Of all ways to add rows up, the runtime has the fastest kernel for a product.
    ones = write.node("ConstantOfShape", samples, value=ir.tensor([np.float32(1)]))
    (sums,) = write.node("MatMul", [*ones, rows])
    names = write.output(sums, ir.DataType.FLOAT), write.output(samples[0], ir.DataType.INT64)
    return Quick(tuple(places), *names)
