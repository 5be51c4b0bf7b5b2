"""QuantizeLinear takes a scale from in front of it that is a power of two.

    push    Q(s·x; c, z)  =  Q(x; c/s, z)        s = 2ᵏ

Over the reals every positive scale would do. But c/s is stored rounded, which may move a value across a
border between two integers: a whole step, where any other constant costs an ulp. Powers of two do not round.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("QuantizeLinear", versions={10, 13, 19, 21, 23, 24, 25, 28})
class QuantizeLinear(Rule):
    """See the module."""

    def push(self, node: Site, into: Arriving) -> Moved:
        affine, scale = into.only(0), node.const(1)
        require(not affine.shifts, Reason.QUANTIZED_BETWEEN)
        require(bool(np.all(affine.scale > 0)), Reason.QUANTIZED_SIGN)
        require(bool(np.all(np.frexp(affine.scale)[0] == 0.5)), Reason.QUANTIZED_STEP)
        axis = node.attr("axis", 1) % affine.rank if affine.rank else 0
        along_scales = scale.base.size > 1 and scale.rank == 1 and set(affine.sizes()) == {axis}
        require(not affine.sizes() or along_scales, Reason.QUANTIZED_AXIS)
        return Moved({1: Affine.of(1.0 / affine.scale.reshape(-1 if along_scales else ()))})


@folds
def power_of_two(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.QuantizeLinear(op.Mul(x, op.const(0.25)), op.const(0.05), op.const(0, TensorProto.INT8))


@folds
def powers_of_two_per_channel(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Mul(x, op.const([[[0.25]], [[2.0]], [[1.0]]]))
    return op.QuantizeLinear(y, op.const([0.05, 0.03, 0.07]), op.const([3, 0, 9], TensorProto.UINT8))


@refuses(Reason.QUANTIZED_BETWEEN)
def shift_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.QuantizeLinear(op.Add(x, op.const(4.0)), op.const(0.05))


@refuses(Reason.QUANTIZED_SIGN)
def turned_around(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.QuantizeLinear(op.Mul(x, op.const(-2.0)), op.const(0.05))


@refuses(Reason.QUANTIZED_STEP)
def rounded_step(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    halves = op.Mul(op.Ceil(x), op.const(3.0))
    return op.QuantizeLinear(halves, op.const(2.0), op.const(0, TensorProto.INT8))


@refuses(Reason.QUANTIZED_AXIS)
def one_step_for_all_channels(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Mul(x, op.const([[[0.25]], [[2.0]], [[1.0]]]))
    return op.QuantizeLinear(y, op.const(0.05), op.const(0, TensorProto.INT8))
