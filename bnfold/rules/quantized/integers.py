"""Operators that compute in integers: no map passes them, and each says so by name.

    refused    the rounding of (x·y)·c to an integer, and its clipping, pass no map

What comes out of them is a map's no more than it is a layer's: the Cast or the DequantizeLinear behind
them refuses it.
"""

from __future__ import annotations

from onnx import TensorProto

from bnfold.core.example import Graph, Input, Outputs, refuses
from bnfold.core.reasons import Reason
from bnfold.core.rule import nonlinear

nonlinear(
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    reason=Reason.INTEGER_ARITHMETIC,
)


@refuses(Reason.INTEGER_ARITHMETIC)
def matrix_of_integers(op: Graph, x: Input = (2, 3)) -> Outputs:
    y, _, zero = op.DynamicQuantizeLinear(x, outputs=3)
    return op.batch_norm(op.Cast(op.MatMulInteger(y, op.integers(3, 4), zero), to=TensorProto.FLOAT))


@refuses(Reason.INTEGER_ARITHMETIC)
def convolution_of_integers(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y, _, zero = op.DynamicQuantizeLinear(x, outputs=3)
    total = op.ConvInteger(y, op.integers(4, 3, 3, 3), zero)
    return op.batch_norm(op.Cast(total, to=TensorProto.FLOAT))


@refuses(Reason.QUANTIZED_BETWEEN)
def quantized_convolution(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    c, z = op.const(0.05), op.const(128, TensorProto.UINT8)
    weight = op.integers(4, 3, 3, 3, dtype=TensorProto.UINT8)
    y = op.QLinearConv(op.QuantizeLinear(x, c, z), c, z, weight, op.const(0.01), z, c, z)
    return op.batch_norm(op.DequantizeLinear(y, c, z), positive=True)


@refuses(Reason.QUANTIZED_BETWEEN)
def quantized_matrix(op: Graph, x: Input = (2, 3)) -> Outputs:
    c, z = op.const(0.05), op.const(128, TensorProto.UINT8)
    weight = op.integers(3, 4, dtype=TensorProto.UINT8)
    y = op.QLinearMatMul(op.QuantizeLinear(x, c, z), c, z, weight, op.const(0.01), z, c, z)
    return op.batch_norm(op.DequantizeLinear(y, c, z), positive=True)


@refuses(Reason.INTEGER_ARITHMETIC)
def quantized_by_what_arrives(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.DynamicQuantizeLinear(op.Mul(x, op.const(2.0)), outputs=3)[0]
