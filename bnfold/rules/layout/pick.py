"""Slice, Gather and their kin pick entries along some axes and carry the map of what they pick.

    push    the map's entries along the axis are picked like the tensor's
    pull    every picked entry takes its map; entries picked twice have to agree; others keep their value

Where the map does not vary along the axis it passes as it is, whatever is picked at run time: so do the
rows of an embedding, and the reversed steps of a ReverseSequence. GatherElements and GatherND carry a map
that varies along axes they leave alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site

Indices = npt.NDArray[np.int64]


@rule("Slice", versions={1, 10, 11, 13})
class Slice(Rule):
    """From a start to an end, also backwards."""

    def pull(self, node: Site, out: Affine) -> Moved:
        for axis in _sliced(node) & set(out.sizes()) if out.sizes() else ():
            out = scattered(out, axis, _range(node, axis), _size(node, axis))
        return Moved(inputs={0: out})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        for axis in _sliced(node) & set(affine.sizes()) if affine.sizes() else ():
            affine = picked(affine, axis, _range(node, axis))
        return Moved(output=affine)


@rule("Gather", versions={1, 11, 13})
class Gather(Rule):
    """At indices of any rank, whose axes take the place of the one axis."""

    def pull(self, node: Site, out: Affine) -> Moved:
        axis, rank = node.attr("axis", 0) % len(node.shape(0)), len(node.shape(1))
        new = set(range(axis, axis + rank))
        if new & set(out.sizes()):
            indices = _indices(node)
            flat = out.rearranged(lambda array: _merged(array, axis, indices.shape))
            return Moved(inputs={0: scattered(flat, axis, indices.ravel(), _size(node, axis))})
        return Moved(
            inputs={0: out.rearranged(lambda a: a.reshape(*a.shape[:axis], 1, *a.shape[axis + rank :]))}
        )

    def push(self, node: Site, into: Arriving) -> Moved:
        affine, axis = into.only(0), node.attr("axis", 0) % len(node.shape(0))
        if axis in affine.sizes():
            return Moved(output=picked(affine, axis, _indices(node)))
        ones = (1,) * len(node.shape(1))
        return Moved(
            output=affine.rearranged(lambda a: a.reshape(*a.shape[:axis], *ones, *a.shape[axis + 1 :]))
        )


class AlongOthers(Rule):
    """An operator that moves entries within some axes and leaves the order along the others alone."""

    def pull(self, node: Site, out: Affine) -> Moved:
        require(set(out.sizes()) <= self.untouched(node), Reason.MIXED_AXES)
        return Moved(inputs={0: out})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        require(set(affine.sizes()) <= self.untouched(node), Reason.MIXED_AXES)
        return Moved(output=affine)

    def untouched(self, node: Site) -> set[int]:
        """The axes along which every entry stays where it is."""
        raise NotImplementedError


@rule("GatherElements", versions={11, 13})
class GatherElements(AlongOthers):
    """At an index of its own for every element."""

    def untouched(self, node: Site) -> set[int]:
        shape, indices = node.shape(0), node.shape(1)
        axis = node.attr("axis", 0) % len(shape)
        return {i for i, size in enumerate(shape) if i != axis and size == indices[i] and size is not None}


@rule("ReverseSequence", versions={10, 28})
class ReverseSequence(AlongOthers):
    """The first steps of each sequence, backwards."""

    def untouched(self, node: Site) -> set[int]:
        return set(range(len(node.shape(0)))) - {node.attr("time_axis", 0)}


@rule("GatherND", versions={11, 12, 13})
class GatherND(Rule):
    """Whole slices, whose axes come last in either tensor."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _behind(out, _kept(node), len(node.shape(0)))})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=_behind(into.only(0), _kept(node), len(node.out_shape())))


def picked(affine: Affine, axis: int, indices: Indices) -> Affine:
    """The map of the entries that stand at ``indices``, whose axes take the place of ``axis``."""

    def take(array: Array) -> Array:
        chosen = indices if array.shape[axis] > 1 else np.zeros((1,) * indices.ndim, np.int64)
        # Not mode="wrap", which numpy does by subtracting the size until it fits: forever, from a huge index.
        return np.asarray(array.take(chosen % array.shape[axis], axis=axis))

    return affine.rearranged(take)


def scattered(affine: Affine, axis: int, indices: Indices, size: int) -> Affine:
    """The map along an axis of ``size`` that ``picked`` at ``indices`` makes ``affine``."""
    whole = affine.rearranged(lambda array: array)
    return Affine(
        _scatter(whole.scale, axis, indices, size, 1.0), _scatter(whole.shift, axis, indices, size, 0.0)
    )


def _scatter(array: Array, axis: int, indices: Indices, size: int, neutral: float) -> Array:
    rows = np.broadcast_to(np.moveaxis(array, axis, 0), (len(indices), *np.delete(array.shape, axis)))
    result = np.full((size, *rows.shape[1:]), neutral)
    result[indices % size] = rows
    require(bool(np.all(result[indices % size] == rows)), Reason.MIXED_AXES)
    return np.moveaxis(result, 0, axis)


def _merged(array: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """The axes of the indices as one."""
    before, behind = array.shape[:axis], array.shape[axis + len(shape) :]
    return np.broadcast_to(array, (*before, *shape, *behind)).reshape(*before, -1, *behind)


def _size(node: Site, axis: int) -> int:
    size = node.shape(0)[axis]
    require(isinstance(size, int), Reason.UNKNOWN_SHAPE)
    return int(size or 0)


def _indices(node: Site) -> Indices:
    return node.const(1).base.astype(np.int64)


def _sliced(node: Site) -> set[int]:
    """The axes that are sliced: the first ones, where none are named."""
    axes = node.ints(3, "axes")
    rank = len(node.shape(0))
    count = len(node.ints(1, "starts") or []) if axes is None else 0
    return {axis % rank for axis in axes or range(count)}


def _range(node: Site, axis: int) -> Indices:
    """The entries that are picked, as the operator clamps its ends."""
    rank, size = len(node.shape(0)), _size(node, axis)
    starts, ends = node.ints(1, "starts") or [], node.ints(2, "ends") or []
    axes = [each % rank for each in node.ints(3, "axes") or range(len(starts))]
    place = axes.index(axis)
    step = (node.ints(4, "steps") or [1] * len(starts))[place]
    start, end = (each[place] + size if each[place] < 0 else each[place] for each in (starts, ends))
    if step > 0:
        return np.arange(min(max(start, 0), size), min(max(end, 0), size), step)
    return np.arange(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _kept(node: Site) -> int:
    """How many axes at the end are not indexed."""
    depth = node.shape(1)[-1]
    require(isinstance(depth, int), Reason.UNKNOWN_SHAPE)
    return len(node.shape(0)) - node.attr("batch_dims", 0) - int(depth or 0)


def _behind(affine: Affine, kept: int, rank: int) -> Affine:
    """The same map in a tensor of another rank, if it varies along the last ``kept`` axes alone."""
    require(all(axis >= affine.rank - kept for axis in affine.sizes()), Reason.MIXED_AXES)
    ones = (1,) * (rank - kept)
    return affine.rearranged(lambda array: array.reshape(ones + array.shape[array.ndim - kept :]))


_INT64 = int(ir.DataType.INT64)


@folds
def slice_behind(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(6, 3, 3, 3))
    return op.batch_norm(op.Slice(y, op.ints(-1), op.ints(0), op.ints(1), op.ints(-2)))


@folds
def slice_in_front(op: Graph, x: Input = ("N", 5, 6, 6)) -> Outputs:
    y = op.Slice(op.batch_norm(x), op.ints(0, -4), op.ints(9, 4), op.ints(2, -3))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds(opset=9)
def slice_by_attributes(op: Graph, x: Input = ("N", 5, 6, 6)) -> Outputs:
    return op.Conv(op.Slice(op.batch_norm(x), starts=[0, 1], ends=[9, -1]), op.weight(4, 3, 3, 3))


@folds
def end_at_run_time(op: Graph, x: Input = ("N", 3, "H", 6), y: Input = (1,)) -> Outputs:
    z = op.Slice(
        op.Conv(x, op.weight(4, 3, 1, 1)), op.ints(0), op.Cast(op.Exp(op.Exp(y)), to=_INT64), op.ints(2)
    )
    return op.batch_norm(z, channels=4)


@folds
def backwards_from_before_the_first(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Slice(op.batch_norm(x), op.ints(-9), op.ints(-9), op.ints(1), op.ints(-1))
    return op.Conv(y, op.weight(4, 1, 3, 3))


@folds
def gather_behind(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Gather(op.Conv(x, op.weight(6, 3, 3, 3)), op.ints(4, -5, 0), axis=-3)
    return op.batch_norm(y)


@folds
def gather_in_front(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Gather(op.batch_norm(x), op.const(2, dtype=_INT64), axis=1)
    return op.Gemm(op.Add(y, op.const(0.5)), op.weight(4, 2), op.weight(2))


@folds
def indices_of_two_axes(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Gather(op.batch_norm(x), op.const([[0, 1], [3, -1]], _INT64), axis=1)
    return op.Conv(op.Reshape(y, op.ints(0, 4, 4)), op.weight(2, 4, 1))


@folds
def embedding(op: Graph, tokens: Input = ("N", "T")) -> Outputs:
    rows = op.Gather(op.weight(7, 4), op.Cast(tokens, to=_INT64))
    return op.Add(op.Mul(rows, op.weight(4)), op.weight(4))


@folds
def indices_at_run_time(op: Graph, x: Input = ("N", 3, 6, 6), y: Input = (2,)) -> Outputs:
    z = op.Gather(op.batch_norm(x), op.Cast(y, to=_INT64), axis=2)
    return op.Conv(z, op.weight(4, 3, 1, 1))


@folds
def elements(op: Graph, x: Input = (2, 3, 5), y: Input = (2, 3, 2)) -> Outputs:
    z = op.GatherElements(op.batch_norm(x), op.Cast(op.Sigmoid(y), to=_INT64), axis=2)
    return op.Conv(z, op.weight(4, 3, 1))


@folds
def whole_slices(op: Graph, x: Input = ("N", 4, 3)) -> Outputs:
    y = op.GatherND(op.Mul(x, op.weight(3)), op.const([[0, 1], [0, 3]], _INT64))
    return op.Gemm(op.Add(y, op.const([1.0])), op.weight(3, 4), op.weight(4))


@folds
def behind_whole_slices(op: Graph, x: Input = (2, 3)) -> Outputs:
    y = op.Gemm(x, op.weight(3, 4), op.weight(4))
    return op.batch_norm(op.GatherND(y, op.const([[1], [0], [1]], _INT64)))


@folds
def reversed_steps(op: Graph, x: Input = (5, 2, 3)) -> Outputs:
    y = op.ReverseSequence(op.Mul(x, op.weight(3)), op.const([2, 5], _INT64))
    return op.MatMul(y, op.weight(3, 4))


@refuses(Reason.NOT_CONSTANT)
def channels_at_run_time(op: Graph, x: Input = ("N", 3, 6, 6), y: Input = (2,)) -> Outputs:
    z = op.Gather(op.batch_norm(x), op.Cast(y, to=_INT64), axis=1)
    return op.Conv(z, op.weight(4, 2, 1, 1))


@refuses(Reason.MIXED_AXES)
def picked_twice(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Gather(op.Conv(x, op.weight(4, 3, 3, 3)), op.ints(1, 2, 1), axis=1)
    return op.batch_norm(y)


@refuses(Reason.MIXED_AXES)
def along_the_sequence(op: Graph, x: Input = (4, 2, 3)) -> Outputs:
    y = op.ReverseSequence(op.MatMul(x, op.weight(3, 3)), op.const([2, 4], _INT64))
    return op.Mul(y, op.weight(4, 1, 1))


@refuses(Reason.MIXED_AXES)
def elements_of_other_rows(op: Graph, x: Input = (4, 3, 5), y: Input = (4, 2, 5)) -> Outputs:
    z = op.GatherElements(op.batch_norm(x), op.Cast(op.Sigmoid(y), to=_INT64), axis=2)
    return op.Conv(z, op.weight(4, 2, 1))


@refuses(Reason.MIXED_AXES)
def indexed_axes(op: Graph, x: Input = (3, 3, 4)) -> Outputs:
    y = op.GatherND(op.batch_norm(x), op.const([[0, 1], [0, 2], [1, 2]], _INT64))
    return op.Gemm(y, op.weight(4, 4))


@refuses(Reason.UNKNOWN_SHAPE)
def slices_of_unknown_depth(op: Graph, x: Input = (3, 3, 4), y: Input = (2, None)) -> Outputs:
    z = op.GatherND(op.batch_norm(op.Sigmoid(x)), op.Cast(op.Sigmoid(y), to=_INT64))
    return op.Reshape(z, op.ints(2, -1))


@refuses(Reason.UNKNOWN_SHAPE)
def slice_of_unknown_size(op: Graph, x: Input = ("N", "C"), y: Input = ("N", "C")) -> Outputs:
    z = op.Slice(op.Concat(op.MatMul(x, op.weight(3, 4)), y, axis=1), op.ints(0), op.ints(4), op.ints(1))
    return op.batch_norm(z, channels=4)
