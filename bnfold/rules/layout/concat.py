"""Concat and Split carry a map in slices.

    Concat    pull: every input takes its slice       push: the slices that arrive become one map
    Split     push: every output takes its slice      pull: the slices that are asked for become one map

A part that brings no map keeps its value. The sizes of the parts along the axis have to be known where
the map varies along it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.graph.shapes import Shape
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Concat", versions={4, 11, 13})
class Concat(Rule):
    """See the module."""

    def pull(self, concat: Site, out: Affine) -> Moved:
        axis, count = concat.attr("axis", 1), len(concat.node.inputs)
        pieces = _pieces(out, axis, concat.out_shape(), [concat.shape(i) for i in range(count)])
        return Moved(inputs=dict(enumerate(pieces)))

    def push(self, concat: Site, into: Arriving) -> Moved:
        axis, shapes = concat.attr("axis", 1), [concat.shape(i) for i in range(len(concat.node.inputs))]
        return Moved(output=_whole(into, axis, concat.out_shape(), shapes))


@rule("Split", versions={1, 2, 11, 13, 18})
class Split(Rule):
    """See the module."""

    def pull(self, split: Site, out: Affine) -> Moved:
        return self.pull_all(split, Arriving({0: out}))

    def pull_all(self, split: Site, outs: Arriving) -> Moved:
        axis, shapes = split.attr("axis", 0), [split.out_shape(i) for i in range(len(split.node.outputs))]
        return Moved(inputs={0: _whole(outs, axis, split.shape(0), shapes)})

    def push(self, split: Site, into: Arriving) -> Moved:
        axis, shapes = split.attr("axis", 0), [split.out_shape(i) for i in range(len(split.node.outputs))]
        first, *others = _pieces(into.only(0), axis, split.shape(0), shapes)
        return Moved(output=first, outputs=dict(enumerate(others, 1)))


def _pieces(whole: Affine, axis: int, shape: Shape, parts: Sequence[Shape]) -> list[Affine]:
    """What of a map falls on each part."""
    axis %= len(shape)
    if axis not in whole.sizes():
        return [whole] * len(parts)
    ends = np.cumsum(_sizes(parts, axis))[:-1]
    arrays = (_cut(array, ends, axis, len(parts)) for array in (whole.scale, whole.shift))
    return [Affine(*piece) for piece in zip(*arrays, strict=True)]


def _whole(maps: Arriving, axis: int, shape: Shape, parts: Sequence[Shape]) -> Affine:
    """The map that falls on each part as ``maps`` say."""
    axis, each = axis % len(shape), [maps.at(index) for index in range(len(parts))]
    if all(one.same(each[0]) and axis not in one.sizes() for one in each):
        return each[0]
    pairs = list(zip(each, _sizes(parts, axis), strict=True))
    scales = [_spread(one.scale, axis, size, len(shape)) for one, size in pairs]
    shifts = [_spread(one.shift, axis, size, len(shape)) for one, size in pairs]
    return Affine(_join(scales, axis), _join(shifts, axis))


def _sizes(parts: Iterable[Shape], axis: int) -> list[int]:
    sizes = [shape[axis] for shape in parts]
    require(all(isinstance(size, int) for size in sizes), Reason.UNKNOWN_SHAPE)
    return [size for size in sizes if isinstance(size, int)]


def _cut(array: Array, ends: Array, axis: int, count: int) -> list[Array]:
    if array.ndim == 0 or array.shape[axis] == 1:
        return [array] * count
    return np.split(array, ends.astype(int), axis=axis)


def _spread(array: Array, axis: int, size: int, rank: int) -> Array:
    """One part's array in full along the joined axis."""
    whole = array.reshape((1,) * rank) if array.ndim == 0 else array
    shape = list(whole.shape)
    shape[axis] = size
    return np.broadcast_to(whole, shape)


def _join(arrays: list[Array], axis: int) -> Array:
    """Concatenate arrays that may differ in what they are broadcast along otherwise."""
    others = [tuple(1 if i == axis else size for i, size in enumerate(array.shape)) for array in arrays]
    common = np.broadcast_shapes(*others)
    full = []
    for array in arrays:
        shape = list(common)
        shape[axis] = array.shape[axis]
        full.append(np.broadcast_to(array, shape))
    return np.concatenate(full, axis=axis)


@folds
def channels(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Conv(x, op.weight(4, 3, 3, 3)), op.Conv(x, op.weight(2, 3, 3, 3), op.weight(2))
    return op.batch_norm(op.Concat(a, b, axis=1))


@folds
def another_axis(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Conv(x, op.weight(4, 3, 3, 3)), op.Conv(x, op.weight(4, 3, 2, 3))
    return op.batch_norm(op.Concat(a, b, axis=-2))


@folds
def in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 2, 6, 6)) -> Outputs:
    z = op.Concat(op.batch_norm(x), y, axis=1)
    return op.Conv(z, op.weight(4, 5, 3, 3), op.weight(4))


@folds
def split_in_front(op: Graph, x: Input = (1, 6, 6, 6)) -> Outputs:
    a, b = op.Split(op.batch_norm(x), op.ints(2, 4), axis=1, outputs=2)
    return op.Conv(a, op.weight(3, 2, 3, 3)), op.Conv(b, op.weight(3, 4, 3, 3))


@folds
def split_behind(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    a, b = op.Split(op.Conv(x, op.weight(4, 3, 3, 3)), axis=-3, outputs=2)
    return op.batch_norm(a, channels=2), op.Relu(b)


@folds(opset=18)
def along_another_axis(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    a, b = op.Split(op.batch_norm(x), axis=2, outputs=2, num_outputs=2)
    return op.Conv(a, op.weight(4, 3, 1, 1)), op.Conv(b, op.weight(2, 3, 2, 2))


@folds(opset=11)
def sizes_as_attribute(op: Graph, x: Input = ("N", 6)) -> Outputs:
    a, b = op.Split(op.batch_norm(x), axis=1, split=[1, 5], outputs=2)
    return op.Gemm(a, op.weight(1, 3), op.weight(3)), op.Gemm(b, op.weight(5, 2), op.weight(2))


@refuses(Reason.UNKNOWN_SHAPE)
def unknown_sizes(op: Graph, x: Input = (1, 2, "H", 6), y: Input = (1, 2, "I", 6)) -> Outputs:
    z = op.Concat(op.Mul(x, op.weight(2, 1, 1)), y, axis=2)
    return op.Conv(z, op.weight(4, 2, 3, 3))
