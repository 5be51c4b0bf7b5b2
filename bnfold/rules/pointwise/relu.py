"""Relu, LeakyRelu and PRelu carry a scale that is nowhere negative.

    pull    s·f(x) = f(s·x)        if s ≥ 0 and t = 0
    push    f(s·x) = s·f(x)        if s ≥ 0 and t = 0

for they are linear on either side of zero, and a scale of that sign changes no side.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


class Homogeneous(Rule):
    """A function with f(s·x) = s·f(x) for s ≥ 0."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _checked(out)})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=_checked(into.only(0)))


@rule("Relu", versions={1, 6, 13, 14})
class Relu(Homogeneous):
    """max(x, 0)."""


@rule("LeakyRelu", versions={1, 6, 16})
class LeakyRelu(Homogeneous):
    """x above zero, α·x below."""


@rule("PRelu", versions={1, 6, 7, 9, 16})
class PRelu(Homogeneous):
    """x above zero, slope·x below, with the slope per channel or per element."""


def _checked(affine: Affine) -> Affine:
    require(bool(np.all(affine.scale >= 0)), Reason.NEGATIVE_SCALE)
    require(not affine.shifts, Reason.NEEDS_NO_SHIFT)
    return affine.linear


@folds
def positive_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), op.positive(4, 1, 1))


@folds
def zero_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.LeakyRelu(op.Conv(x, op.weight(2, 3, 3, 3)), alpha=0.2)
    return op.Mul(y, op.const([[[0.0]], [[2.0]]]))


@folds
def in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.PRelu(op.Mul(x, op.positive(3, 1, 1)), op.weight(3, 1, 1))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Relu(op.Conv(x, op.weight(2, 3, 3, 3))), op.const([[[1.0]], [[-1.0]]]))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale_leaky(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.LeakyRelu(op.Conv(x, op.weight(2, 3, 3, 3)))
    return op.Mul(y, op.const([[[1.0]], [[-1.0]]]))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale_in_front(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.PRelu(op.Mul(x, op.const([[[1.0]], [[-1.0]]])), op.positive(2, 1, 1))
    return op.Conv(y, op.weight(4, 2, 3, 3))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_behind(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), positive=True)
