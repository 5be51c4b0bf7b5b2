"""DequantizeLinear absorbs a scale in its own: the integers stay as they are.

    pull    s·((q − z)·c)      =  (q − z)·(s·c)              s > 0
            s·((q − z)·c)      =  (z − q)·(−s·c)             s < 0: q′ = 2z − q, if that is in q's type
            0·((q − z)·c)      =  (z − z)·c                  s = 0: q′ = z
            s·(q·c) + t        ≈  round(±q + t/|s·c|)·|s·c|    int32 alone: the one rounding of a bias

A layer's map on a constant that is dequantized arrives here, so that quantized weights stay quantized.
Scales stay positive: ONNX does not ask for it, but TensorRT and WebNN rule out any other, and integer
kernels are not tested with one. A map that varies along an axis makes one scale for the tensor into one
for each place on the axis (opset 13 and later); scales per axis or per block (opset 21) take a map that
varies as they do.

An int32 bias is quantized in steps of the input's scale times the weight's, which integer kernels take
for granted: it stays int32, in steps that follow the weight's, and is rounded by half a step at most.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.graph.constants import Const, integer_range, per_element
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Becomes, Moved, Rule, rule
from bnfold.core.site import Site

_PER_AXIS = 13

# An int32 bias may be rounded by that much of its largest entry: no more than half precision would.
_BIAS_ROUNDING = 2.0**-12


@rule("DequantizeLinear", versions={10, 13, 19, 21, 23, 24, 25, 28})
class DequantizeLinear(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        if not node.is_const(0):
            require(not out.shifts and not out.sizes(), Reason.QUANTIZED_BETWEEN)
            factor = float(out.scale.flat[0])
            require(factor > 0, Reason.QUANTIZED_SIGN)
            return Moved({1: Affine.of(factor)})
        require(not out.shifts or node.const(0).dtype == ir.DataType.INT32, Reason.QUANTIZED_SHIFT)
        magnitude = np.where(out.scale == 0.0, 1.0, np.abs(out.scale))
        edits, becomes = _scales(node, Affine.of(magnitude).collapsed().scale)
        edits[0] = _integers(node, out, magnitude)
        return Moved(edits, becomes=becomes)


def _scales(node: Site, magnitude: Array) -> tuple[dict[int, Affine], Becomes | None]:
    """The map on the scale; where one scale becomes several, also on the zero point, which is repeated."""
    shape, scale, axis = node.const(0).shape, node.const(1), node.attr("axis", 1)
    varying = [place for place, size in enumerate(magnitude.shape) if size > 1]
    if scale.rank == len(shape) and node.attr("block_size", 0):
        require(axis % len(shape) not in varying, Reason.QUANTIZED_AXIS)
        return {1: Affine.of(magnitude)}, None
    if not varying:
        return {1: Affine.of(magnitude.reshape(()))}, None
    vector = magnitude.reshape(-1)
    if prod(scale.shape) == 1:
        require(node.version >= _PER_AXIS and len(varying) == 1, Reason.QUANTIZED_AXIS)
        attributes = {name: item.value for name, item in node.node.attributes.items()}
        repeated = Affine(np.ones_like(vector), np.zeros_like(vector))
        edits = {1: Affine.of(vector), **({2: repeated} if node.has(2) else {})}
        return edits, Becomes("DequantizeLinear", {**attributes, "axis": varying[0]})
    require(varying == [axis % len(shape)], Reason.QUANTIZED_AXIS)
    return {1: Affine.of(vector)}, None


def _integers(node: Site, out: Affine, magnitude: Array) -> Affine:
    """The map on the integers themselves: 1, −1 or 0 about the zero point, and a bias's shift in steps."""
    sign, zero = np.sign(out.scale), _per_element(node, 2)
    if not out.shifts:
        edit = Affine(sign, (1.0 - sign) * zero)
        require(edit.is_identity or _fits(node.const(0), edit), Reason.QUANTIZED_SIGN)
        return edit
    step = _per_element(node, 1) * magnitude
    edit = Affine(sign, (1.0 - sign) * zero + out.shift / step)
    steps = edit(node.const(0).exact)
    rounding, largest = (np.abs(step * part).max(initial=0.0) for part in (steps - np.rint(steps), steps))
    require(rounding <= _BIAS_ROUNDING * largest, Reason.QUANTIZED_SHIFT)
    return edit


def _per_element(node: Site, index: int) -> Array:
    if not node.has(index):
        return np.zeros(())
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    return per_element(node.const(index), node.const(0).shape, axis, block)


def _fits(integers: Const, edit: Affine) -> bool:
    if not integers.dtype.is_integer():
        return False
    (low, high), turned = integer_range(integers.dtype), edit(integers.exact)
    return bool(np.all((turned >= low) & (turned <= high)))


def _convolved(op: Graph, x: str, bias: str = "") -> str:
    """A Conv of four filters whose weights are quantized per channel."""
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(4), axis=0)
    return str(op.Conv(x, weight, bias))


@folds
def per_channel_with_int32_bias(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    bias = op.integers(4, dtype=TensorProto.INT32, size=2**24)
    return op.batch_norm(_convolved(op, x, op.DequantizeLinear(bias, op.const([2.0**-18] * 4), axis=0)))


@folds
def per_tensor_becomes_per_channel(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    weight, zero = op.integers(4, 3, 3, 3, dtype=TensorProto.UINT8), op.const(128, TensorProto.UINT8)
    bias = op.DequantizeLinear(op.integers(4, dtype=TensorProto.INT32, size=2**24), op.const(2.0**-18))
    return op.batch_norm(op.Conv(x, op.DequantizeLinear(weight, op.const(0.5), zero), bias))


@folds(leaves=["Mul"])
def along_one_axis_only(op: Graph, x: Input = ("N", 3)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(3, 4), op.const(0.5))
    return op.Mul(op.MatMul(op.Mul(x, op.positive(3)), weight), op.positive(4))


@folds
def bias_in_floating_point(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(_convolved(op, x, op.weight(4)))


@folds
def transposed_convolution(op: Graph, x: Input = (1, 4, 5, 5)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(4, 3, 2, 2), op.positive(3))
    return op.batch_norm(op.ConvTranspose(x, weight))


@folds
def dense(op: Graph, x: Input = ("N", 3)) -> Outputs:
    y = op.batch_norm(op.MatMul(x, op.DequantizeLinear(op.integers(3, 4), op.positive(4), axis=-1)))
    turned = op.Transpose(op.DequantizeLinear(op.integers(5, 4), op.positive(5), axis=0), perm=[1, 0])
    return op.batch_norm(op.Gemm(y, turned, op.weight(5)))


@folds(opset=21, ir_version=10)
def in_blocks(op: Graph, x: Input = ("N", 6)) -> Outputs:
    weight, zero = op.integers(6, 4, size=120), op.integers(2, 4, size=3)
    weight = op.DequantizeLinear(weight, op.positive(2, 4), zero, axis=0, block_size=3)
    return op.batch_norm(op.MatMul(x, weight))


@folds(opset=10)
def one_scale_in_old_opsets(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(1)))
    return op.Mul(y, op.const([[[0.25]], [[-0.25]], [[0.25]], [[-0.25]]]))


@folds
def quantized_by_a_node(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    scale = op.const(0.05)
    weight = op.DequantizeLinear(op.QuantizeLinear(op.weight(4, 3, 3, 3), scale), scale)
    return op.batch_norm(op.Conv(x, weight), positive=True)


@folds
def zero_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(_convolved(op, x), op.const([[[0.0]], [[1.0]], [[-1.0]], [[2.0]]]))


@folds
def in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(3))
    return op.Conv(op.batch_norm(x), weight)


@folds
def behind_an_activation(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    scale, zero = op.const(0.05), op.const(0, TensorProto.INT8)
    return op.Mul(op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero), op.const(0.3))


@refuses(Reason.QUANTIZED_BETWEEN)
def shift_behind_an_activation(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.Add(op.DequantizeLinear(op.QuantizeLinear(y, op.const(0.05)), op.const(0.05)), op.const(1.0))


@refuses(Reason.QUANTIZED_BETWEEN)
def channels_behind_an_activation(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.QuantizeLinear(x, op.const(0.05))
    return op.Mul(op.DequantizeLinear(y, op.const(0.05)), op.const([[[1.0]], [[2.0]], [[4.0]]]))


@refuses(Reason.QUANTIZED_SIGN)
def activation_turned_around(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.QuantizeLinear(x, op.const(0.05))
    return op.Mul(op.DequantizeLinear(y, op.const(0.05)), op.const(-1.0))


@refuses(Reason.QUANTIZED_SIGN)
def integers_cannot_turn_around(op: Graph, x: Input = (1, 1, 6, 6)) -> Outputs:
    lowest = op.const([[[[-128]]]], TensorProto.INT8)
    return op.Mul(op.Conv(x, op.DequantizeLinear(lowest, op.const(0.5))), op.const(-1.0))


@refuses(Reason.QUANTIZED_SHIFT)
def bias_of_eight_bits(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    bias = op.DequantizeLinear(op.const([0] * 4, TensorProto.INT8), op.const(64.0))
    y = op.Conv(x, op.const(np.full((4, 3, 3, 3), 0.1)), bias)
    return op.Add(y, op.const(20.0))


@refuses(Reason.QUANTIZED_SHIFT)
def bias_of_large_steps(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    bias = op.DequantizeLinear(op.const([0] * 4, TensorProto.INT32), op.const(64.0))
    y = op.Conv(x, op.const(np.full((4, 3, 3, 3), 0.1)), bias)
    return op.Add(y, op.const(20.0))


@refuses(Reason.QUANTIZED_AXIS, opset=10)
def channels_in_old_opsets(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(1))
    return op.batch_norm(op.Conv(x, weight), positive=True)


@refuses(Reason.QUANTIZED_AXIS)
def scales_on_another_axis(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(3))
    return op.Mul(op.Conv(x, weight), op.positive(4, 1, 1))


@refuses(Reason.QUANTIZED_AXIS, opset=21, ir_version=10)
def across_the_blocks(op: Graph, x: Input = ("N", 6)) -> Outputs:
    weight = op.DequantizeLinear(op.integers(6, 4), op.positive(2, 4), axis=0, block_size=3)
    return op.MatMul(op.Mul(x, op.positive(6)), weight)


@refuses(Reason.QUANTIZED_BIAS)
def bias_in_steps_of_the_input(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    bias = op.integers(4, dtype=TensorProto.INT32, size=2**24)
    y = op.Mul(x, op.const(0.5))
    return _convolved(op, y, op.DequantizeLinear(bias, op.const([2.0**-18] * 4), axis=0))
