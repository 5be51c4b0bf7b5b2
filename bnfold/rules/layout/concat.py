"""Concat carries a map in slices.

    pull    every input takes its slice of the map
    push    the slices that arrive become one map; an input on which none arrives keeps its value

The sizes of the inputs along the joined axis have to be known where the map varies along it.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Concat", versions={4, 11, 13})
class Concat(Rule):
    """See the module."""

    def pull(self, concat: Site, out: Affine) -> Moved:
        count = len(concat.node.inputs)
        axis = _axis(concat)
        if axis not in out.sizes():
            return Moved(inputs=dict.fromkeys(range(count), out))
        ends = np.cumsum(_sizes(concat, axis))[:-1]
        pieces = zip(_split(out.scale, ends, axis, count), _split(out.shift, ends, axis, count), strict=True)
        return Moved(inputs={index: Affine(*piece) for index, piece in enumerate(pieces)})

    def push(self, concat: Site, into: Arriving) -> Moved:
        axis, count = _axis(concat), len(concat.node.inputs)
        maps = [into.at(index) for index in range(count)]
        if all(each.same(maps[0]) and axis not in each.sizes() for each in maps):
            return Moved(output=maps[0])
        sizes = _sizes(concat, axis)
        rank = len(concat.out_shape())
        scales = [_spread(each.scale, axis, size, rank) for each, size in zip(maps, sizes, strict=True)]
        shifts = [_spread(each.shift, axis, size, rank) for each, size in zip(maps, sizes, strict=True)]
        return Moved(output=Affine(_join(scales, axis), _join(shifts, axis)))


def _axis(concat: Site) -> int:
    return concat.attr("axis", 1) % len(concat.out_shape())


def _sizes(concat: Site, axis: int) -> list[int]:
    sizes = [concat.shape(index)[axis] for index in range(len(concat.node.inputs))]
    require(all(isinstance(size, int) for size in sizes), Reason.UNKNOWN_SHAPE)
    return [size for size in sizes if isinstance(size, int)]


def _split(array: Array, ends: Array, axis: int, count: int) -> list[Array]:
    if array.ndim == 0 or array.shape[axis] == 1:
        return [array] * count
    return np.split(array, ends.astype(int), axis=axis)


def _spread(array: Array, axis: int, size: int, rank: int) -> Array:
    """One input's array in full along the joined axis."""
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


@refuses(Reason.UNKNOWN_SHAPE)
def unknown_sizes(op: Graph, x: Input = (1, 2, "H", 6), y: Input = (1, 2, "I", 6)) -> Outputs:
    z = op.Concat(op.Mul(x, op.weight(2, 1, 1)), y, axis=2)
    return op.Conv(z, op.weight(4, 2, 3, 3))
