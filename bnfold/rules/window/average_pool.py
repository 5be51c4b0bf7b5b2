"""AveragePool and GlobalAveragePool carry a map that is the same all over a window.

    pull, push    mean(s·x + t) = s·mean(x) + t        if the map does not vary along averaged axes

A pool that counts its zero padding averages zeros in after the shift: there t has to be 0.
"""

from __future__ import annotations

from typing import cast

from bnfold.core.affine import Affine
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
def last_window_is_cut(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.AveragePool(op.Conv(x, op.weight(4, 3, 3, 3)), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return op.batch_norm(y)


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
