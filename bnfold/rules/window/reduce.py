"""ReduceMean, ReduceSum, ReduceMax and ReduceMin carry a map that does not vary along the reduced axes.

    mean(s·x + t)  =  s·mean(x) + t
    Σ(s·x + t)     =  s·Σx + n·t             n: how many elements are summed, known beforehand unless t = 0
    max(s·x + t)   =  s·max(x) + t           s ≥ 0; for s ≤ 0 it is s·min(x) + t, so it becomes min

CumSum carries a scale alike, for it sums another number of elements everywhere.
"""

from __future__ import annotations

from math import prod

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.choice import turned


class Reduce(Rule):
    """A summary of the elements along some axes, which may vanish."""

    def pull(self, node: Site, out: Affine) -> Moved:
        axes, rank = reduced_axes(node), len(node.shape(0))
        becomes = self.becomes(node, out)
        if out.shifts:
            out = Affine(out.scale, out.shift / self.count(node, axes))
        if node.attr("keepdims", 1) or out.rank == 0:
            return Moved(inputs={0: out}, becomes=becomes)
        kept = [axis for axis in range(rank) if axis not in axes]

        def spread(array: Array) -> Array:
            return np.expand_dims(array, tuple(axes)) if kept else array.reshape((1,) * rank)

        return Moved(inputs={0: out.rearranged(spread)}, becomes=becomes)

    def push(self, node: Site, into: Arriving) -> Moved:
        affine, axes = into.only(0), reduced_axes(node)
        require(not axes & set(affine.sizes()), Reason.MIXED_AXES)
        becomes = self.becomes(node, affine)
        if affine.shifts:
            affine = Affine(affine.scale, affine.shift * self.count(node, axes))
        if node.attr("keepdims", 1) or affine.rank == 0:
            return Moved(output=affine, becomes=becomes)
        return Moved(output=affine.rearranged(lambda a: a.squeeze(tuple(axes))), becomes=becomes)

    def count(self, node: Site, axes: set[int]) -> int:
        """How often a shift is in the result."""
        return 1

    def becomes(self, node: Site, affine: Affine) -> Becomes | None:
        """What the operator turns into."""
        return None


@rule("ReduceMean", versions={1, 11, 13, 18})
class ReduceMean(Reduce):
    """The mean."""


@rule("ReduceSum", versions={1, 11, 13})
class ReduceSum(Reduce):
    """The sum."""

    def count(self, node: Site, axes: set[int]) -> int:
        sizes = [node.shape(0)[axis] for axis in axes]
        require(all(isinstance(size, int) for size in sizes), Reason.UNKNOWN_SHAPE)
        return prod(size for size in sizes if isinstance(size, int))


@rule("ReduceMax", "ReduceMin", versions={1, 11, 12, 13, 18, 20})
class ReduceExtremum(Reduce):
    """The largest or the smallest element."""

    def becomes(self, node: Site, affine: Affine) -> Becomes | None:
        return turned(node, affine.scale)


@rule("CumSum", versions={11, 14})
class CumSum(Rule):
    """The sum of all elements so far, in either direction."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _scaled(node, out)})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=_scaled(node, into.only(0)))


def reduced_axes(node: Site) -> set[int]:
    """The axes that are reduced: all where none is named, unless the node then does nothing."""
    axes, rank = node.ints(1, "axes"), len(node.shape(0))
    if not axes:
        return set() if node.attr("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in axes}


def _scaled(node: Site, affine: Affine) -> Affine:
    require(not affine.shifts, Reason.NEEDS_NO_SHIFT)
    if affine.sizes():
        axis = int(node.const(1).base.item()) % len(node.shape(0))
        require(axis not in affine.sizes(), Reason.MIXED_AXES)
    return affine.linear


@folds
def mean_in_front(op: Graph, x: Input = ("N", 3, 5, 5)) -> Outputs:
    y = op.ReduceMean(op.batch_norm(op.Sigmoid(x)), axes=[2, -1], keepdims=0)
    return op.Gemm(y, op.weight(3, 4), op.weight(4))


@folds
def mean_behind(op: Graph, x: Input = ("N", 3, 5, 5)) -> Outputs:
    y = op.ReduceMean(op.Conv(x, op.weight(4, 3, 3, 3)), axes=[2, 3], keepdims=0)
    return op.batch_norm(y, channels=4)


@folds
def sum_behind(op: Graph, x: Input = ("N", 3, 5, 4)) -> Outputs:
    y = op.ReduceSum(op.Conv(x, op.weight(4, 3, 3, 3)), op.ints(2, 3), keepdims=0)
    return op.batch_norm(y, channels=4)


@folds
def sum_in_front(op: Graph, x: Input = ("N", 3, 5, 4)) -> Outputs:
    return op.Conv(op.ReduceSum(op.batch_norm(x), op.ints(-1)), op.weight(4, 3, 2, 1))


@folds
def scale_of_a_sum(op: Graph, x: Input = ("N", 3, "H", 4)) -> Outputs:
    return op.Conv(op.ReduceSum(op.Mul(x, op.weight(3, 1, 1)), op.ints(2)), op.weight(4, 3, 1, 2))


@folds
def largest(op: Graph, x: Input = ("N", 3, "H", 6)) -> Outputs:
    y = op.ReduceMax(op.Conv(x, op.weight(4, 3, 1, 1)), axes=[2, 3], keepdims=0)
    return op.batch_norm(y, channels=4, positive=True)


@folds(opset=20)
def smallest(op: Graph, x: Input = ("N", 3, "H", 6)) -> Outputs:
    y = op.ReduceMin(op.batch_norm(x, positive=True), op.ints(2))
    return op.Conv(y, op.weight(4, 3, 1, 2))


@folds
def largest_of_the_negative(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.ReduceMax(op.Sub(op.weight(3, 1, 1), x), axes=[3])
    return op.Neg(op.ReduceMin(op.Conv(y, op.weight(4, 3, 1, 1)), axes=[2]))


@folds
def running_total(op: Graph, x: Input = ("N", 3, 6)) -> Outputs:
    y = op.CumSum(op.Mul(x, op.weight(3, 1)), op.const(-1, dtype=7), reverse=1)
    return op.Mul(op.CumSum(op.Conv(y, op.weight(4, 3, 1)), op.const(2, dtype=7)), op.weight(4, 1))


@refuses(Reason.MIXED_AXES)
def along_a_reduced_axis(op: Graph, x: Input = (1, 3, 4, 4)) -> Outputs:
    y = op.ReduceMean(op.Mul(x, op.weight(4)), axes=[3])
    return op.Conv(y, op.weight(4, 3, 1, 1))


@refuses(Reason.UNKNOWN_SHAPE)
def shift_of_an_unknown_sum(op: Graph, x: Input = ("N", 3, "H", 4)) -> Outputs:
    return op.Conv(op.ReduceSum(op.batch_norm(x), op.ints(2)), op.weight(4, 3, 1, 2))


@refuses(Reason.NEGATIVE_SCALE)
def both_signs(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.ReduceMax(op.Mul(x, op.const([[[1.0]], [[-1.0]]])), axes=[3])
    return op.Conv(y, op.weight(4, 2, 3, 1))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_of_a_running_total(op: Graph, x: Input = ("N", 3, 6)) -> Outputs:
    return op.Conv(op.CumSum(op.batch_norm(x), op.const(2, dtype=7)), op.weight(4, 3, 1))


@refuses(Reason.MIXED_AXES)
def along_a_running_total(op: Graph, x: Input = ("N", 3, 6)) -> Outputs:
    return op.Conv(op.CumSum(op.Mul(x, op.weight(3, 1)), op.const(1, dtype=7)), op.weight(4, 3, 1))
