"""Relu, LeakyRelu, PRelu and Abs carry a scale that is nowhere negative; a Relu carries any map.

    pull    s·f(x) = f(s·x)        if s ≥ 0 and t = 0
    push    f(s·x) = s·f(x)        if s ≥ 0 and t = 0; Abs: |s·x| = |s|·|x|

for they are linear on either side of zero, and a scale of that sign changes no side. Any other map
turns a Relu into a bound on each channel: from below where s > 0, from above where s < 0.

    pull    s·relu(x) + t   =  max(s·x + t, t)         s ≥ 0; for s ≤ 0 min
    push    relu(s·x + t)   =  s·max(x, −t/s) + t      s > 0; for s < 0 min; for s = 0 constantly relu(t)

Where channels differ in sign a Min follows the Max, and each leaves the other's channels alone.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
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

    def pull(self, node: Site, out: Affine) -> Moved:
        if _keeps_sides(out):
            return super().pull(node, out)
        return Moved(inputs={0: out}, becomes=bounded(node, out.scale, out.shift))

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        if _keeps_sides(affine):
            return super().push(node, into)
        flat = affine.scale == 0
        bound = -affine.shift / np.where(flat, 1.0, affine.scale)
        rest = Affine(affine.scale, np.where(flat, np.maximum(affine.shift, 0.0), affine.shift))
        return Moved(output=rest, becomes=bounded(node, affine.scale, bound))


def bounded(node: Site, scale: Array, bound: Array) -> Becomes:
    """A bound from below where the scale is positive, from above where it is negative."""
    require(node.opset >= (8 if node.facts.dtype(node.input(0)) in _FIRST else 12), Reason.NEEDS_NO_SHIFT)
    if np.all(scale >= 0):
        return Becomes("Max", constants={1: bound})
    if np.all(scale <= 0):
        return Becomes("Min", constants={1: bound})
    dtype = node.facts.dtype(node.input(0))
    assert dtype is not None
    none = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    above = Becomes("Min", constants={1: np.where(scale < 0, bound, none)})
    return Becomes("Max", constants={1: np.where(scale < 0, -none, bound)}, then=above)


# The types for which ONNX Runtime's Max and Min broadcast from version 8 on; for the others from 12.
_FIRST = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def _keeps_sides(affine: Affine) -> bool:
    return not affine.shifts and bool(np.all(affine.scale >= 0))


@rule("LeakyRelu", versions={1, 6, 16})
class LeakyRelu(Homogeneous):
    """x above zero, α·x below."""


@rule("PRelu", versions={1, 6, 7, 9, 16})
class PRelu(Homogeneous):
    """x above zero, slope·x below, with the slope per channel or per element."""


@rule("Abs", versions={1, 6, 13})
class Abs(Homogeneous):
    """x above zero, −x below."""

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        require(not affine.shifts, Reason.NEEDS_NO_SHIFT)
        return Moved(output=Affine.of(np.abs(affine.scale)))


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


@folds
def absolute(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Abs(op.Conv(x, op.weight(4, 3, 3, 3))), op.positive(4, 1, 1))


@folds
def absolute_of_either_sign(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.Abs(op.Mul(x, op.weight(3, 1, 1))), op.weight(4, 3, 3, 3))


@refuses(Reason.NEEDS_NO_SHIFT)
def absolute_of_a_shift(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.Abs(op.batch_norm(x)), op.weight(4, 3, 3, 3))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.LeakyRelu(op.Conv(x, op.weight(2, 3, 3, 3)))
    return op.Mul(y, op.const([[[1.0]], [[-1.0]]]))


@refuses(Reason.NEGATIVE_SCALE)
def negative_scale_in_front(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.PRelu(op.Mul(x, op.const([[[1.0]], [[-1.0]]])), op.positive(2, 1, 1))
    return op.Conv(y, op.weight(4, 2, 3, 3))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_behind(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.LeakyRelu(op.Conv(x, op.weight(4, 3, 3, 3)))
    return op.batch_norm(y, positive=True)


@refuses(Reason.NEEDS_NO_SHIFT, opset=7)
def no_broadcasting_max(op: Graph, x: Input = ("N", 3), y: Input = ("N", 3)) -> Outputs:
    y = op.Relu(op.batch_norm(op.Add(x, y), positive=True))
    return op.Gemm(y, op.weight(3, 4), op.weight(4))


@folds
def becomes_max(op: Graph, x: Input = (1, 6, 6, 3)) -> Outputs:
    y = op.Relu(op.Add(op.Mul(op.Sub(x, op.weight(3)), op.positive(3)), op.weight(3)))
    return op.Conv(op.Transpose(y, perm=[0, 3, 1, 2]), op.weight(4, 3, 3, 3))


@folds
def becomes_min(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Relu(op.Sub(op.weight(3, 1, 1), op.Mul(x, op.positive(3, 1, 1))))
    return op.Conv(y, op.weight(4, 3, 1, 1))


@folds(leaves=["Add"])
def both_signs(op: Graph, x: Input = ("N", 5, 3)) -> Outputs:
    y = op.Relu(op.Add(op.Mul(x, op.const([2.0, -1.0, 0.0])), op.weight(3)))
    return op.Add(op.MatMul(y, op.weight(3, 4)), op.weight(4))


@folds(leaves=["Add"])
def both_signs_behind(op: Graph, x: Input = ("N", 5, 3)) -> Outputs:
    y = op.Relu(op.Add(op.MatMul(x, op.weight(3, 4)), op.weight(4)))
    return op.Add(op.Mul(y, op.const([2.0, -1.0, 0.0, 1.0])), op.weight(4))


@folds
def behind_a_sum(op: Graph, x: Input = ("N", 3), y: Input = ("N", 3)) -> Outputs:
    return op.Gemm(op.Relu(op.batch_norm(op.Add(x, y), positive=True)), op.weight(3, 4), op.weight(4))


@folds
def zero_in_front(op: Graph, x: Input = ("N", 3), y: Input = ("N", 3)) -> Outputs:
    y = op.Relu(op.Add(op.Mul(op.Add(x, y), op.const([1.0, 0.0, 0.0])), op.const([-0.5, 0.5, -0.5])))
    return op.Gemm(y, op.weight(3, 4), op.weight(4))


@refuses(Reason.ACTIVATION_TURNS)
def fused_with_its_layer(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), positive=True)


@refuses(Reason.ACTIVATION_TURNS, options={"portable": True})
def not_everywhere_a_gain(op: Graph, x: Input = ("N", 3), y: Input = ("N", 3)) -> Outputs:
    return op.Gemm(op.Relu(op.batch_norm(op.Add(x, y), positive=True)), op.weight(3, 4))
