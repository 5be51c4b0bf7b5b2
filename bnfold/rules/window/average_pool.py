"""AveragePool, GlobalAveragePool and ReduceMean carry a map that is the same all over a window.

    pull, push    mean(s·x + t) = s·mean(x) + t        if the map does not vary along averaged axes

A pool that counts its zero padding averages zeros in after the shift: there t has to be 0.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


class Average(Rule):
    """A mean over positions that all carry the same map."""

    def pull(self, pool: Site, out: Affine) -> Moved:
        return Moved(inputs={0: self.checked(pool, out)})

    def push(self, pool: Site, into: Arriving) -> Moved:
        return Moved(output=self.checked(pool, into.only(0)))

    def checked(self, pool: Site, affine: Affine) -> Affine:
        """The map, if it may pass."""
        require(set(affine.sizes()) <= {0, 1}, Reason.MIXED_AXES)
        return affine


@rule("GlobalAveragePool", versions={1, 22})
class GlobalAveragePool(Average):
    """The mean over all positions."""


@rule("AveragePool", versions={1, 7, 10, 11, 19, 22})
class AveragePool(Average):
    """The mean over a window, in which padding may count as zeros."""

    def checked(self, pool: Site, affine: Affine) -> Affine:
        whole = super().checked(pool, affine)
        require(not (whole.shifts and _counts_padding(pool)), Reason.PADDED_SHIFT)
        return whole


@rule("ReduceMean", versions={1, 11, 13, 18})
class ReduceMean(Rule):
    """The mean over axes, which may vanish."""

    def pull(self, node: Site, out: Affine) -> Moved:
        axes, rank = _axes(node), len(node.shape(0))
        if node.attr("keepdims", 1) or out.rank == 0:
            return Moved(inputs={0: out})
        kept = [axis for axis in range(rank) if axis not in axes]

        def spread(array: Array) -> Array:
            return np.expand_dims(array, tuple(axes)) if kept else array.reshape((1,) * rank)

        return Moved(inputs={0: out.rearranged(spread)})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine, axes = into.only(0), _axes(node)
        require(not axes & set(affine.sizes()), Reason.MIXED_AXES)
        if node.attr("keepdims", 1) or affine.rank == 0:
            return Moved(output=affine)
        return Moved(output=affine.rearranged(lambda array: array.squeeze(tuple(axes))))


def _axes(node: Site) -> set[int]:
    """The axes that are averaged over: all where none is named, unless the node then does nothing."""
    axes, rank = node.ints(1, "axes"), len(node.shape(0))
    if not axes:
        return set() if node.attr("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in axes}


def _counts_padding(pool: Site) -> bool:
    if not pool.attr("count_include_pad", 0):
        return False
    pads = pool.attr("pads", cast("list[int]", []))
    mode = pool.attr("auto_pad", "NOTSET")
    return any(pads) or mode.startswith("SAME") or bool(pool.attr("ceil_mode", 0))


@folds
def behind(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.batch_norm(op.AveragePool(y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


@folds
def global_pool(op: Graph, x: Input = ("N", 3, "H", "W")) -> Outputs:
    return op.Gemm(op.Flatten(op.GlobalAveragePool(op.batch_norm(x))), op.weight(3, 4))


@folds
def reduce_mean(op: Graph, x: Input = ("N", 3, 5, 5)) -> Outputs:
    y = op.ReduceMean(op.batch_norm(op.Sigmoid(x)), axes=[2, -1], keepdims=0)
    return op.Gemm(y, op.weight(3, 4), op.weight(4))


@folds
def behind_reduce_mean(op: Graph, x: Input = ("N", 3, 5, 5)) -> Outputs:
    y = op.ReduceMean(op.Conv(x, op.weight(4, 3, 3, 3)), axes=[2, 3], keepdims=0)
    return op.batch_norm(y, channels=4)


@folds
def counted_padding_of_a_scale(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    y = op.AveragePool(y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    return op.Mul(y, op.weight(4, 1, 1))


@refuses(Reason.PADDED_SHIFT)
def counted_padding(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    y = op.AveragePool(y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    return op.batch_norm(y)


@refuses(Reason.MIXED_AXES)
def along_the_window(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.AveragePool(op.Conv(x, op.weight(4, 3, 3, 3)), kernel_shape=[2, 2])
    return op.Mul(y, op.weight(5, 1))


@refuses(Reason.MIXED_AXES)
def along_a_reduced_axis(op: Graph, x: Input = (1, 3, 4, 4)) -> Outputs:
    y = op.ReduceMean(op.Mul(x, op.weight(4)), axes=[3])
    return op.Conv(y, op.weight(4, 3, 1, 1))
