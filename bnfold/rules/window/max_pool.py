"""MaxPool and GlobalMaxPool carry a map whose scale is nowhere negative.

    pull, push    max(s·x + t) = s·max(x) + t        if s ≥ 0, and s and t are the same all over a window

Padding never wins: it counts as −∞. Where the positions of the maxima are asked for as well, s has to
be positive, for s = 0 would make all values of a window equal.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("MaxPool", versions={1, 8, 10, 11, 12, 22})
@rule("GlobalMaxPool", versions={1, 22})
class MaxPool(Rule):
    """See the module."""

    def pull(self, pool: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _checked(pool, out)})

    def push(self, pool: Site, into: Arriving) -> Moved:
        return Moved(output=_checked(pool, into.only(0)))


def _checked(pool: Site, affine: Affine) -> Affine:
    require(set(affine.sizes()) <= {0, 1}, Reason.MIXED_AXES)
    require(bool(np.all(affine.scale >= 0)), Reason.NEGATIVE_SCALE)
    positions = len(pool.node.outputs) > 1 and bool(pool.node.outputs[1].name)
    require(not positions or bool(np.all(affine.scale > 0)), Reason.NEGATIVE_SCALE)
    return affine


@folds
def behind(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.MaxPool(op.Conv(x, op.weight(4, 3, 3, 3)), kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    return op.batch_norm(y, positive=True)


@folds
def in_front_of_a_layer(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.MaxPool(op.batch_norm(op.Relu(x), positive=True), kernel_shape=[2, 2], strides=[2, 2])
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def global_pool(op: Graph, x: Input = ("N", 3, "H", "W")) -> Outputs:
    y = op.GlobalMaxPool(op.batch_norm(x, positive=True))
    return op.Gemm(op.Flatten(y), op.weight(3, 4))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.MaxPool(op.Conv(x, op.weight(2, 3, 3, 3)), kernel_shape=[2, 2])
    return op.Mul(y, op.const([[[1.0]], [[-1.0]]]))


@refuses(Reason.NEGATIVE_SCALE)
def positions_of_a_zero_scale(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y, positions = op.MaxPool(op.Conv(x, op.weight(2, 3, 3, 3)), kernel_shape=[2, 2], outputs=2)
    return op.Mul(y, op.const([[[1.0]], [[0.0]]])), positions


@refuses(Reason.MIXED_AXES)
def along_the_window(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.MaxPool(op.Conv(x, op.weight(4, 3, 3, 3)), kernel_shape=[2, 2])
    return op.Mul(y, op.positive(5, 1))
