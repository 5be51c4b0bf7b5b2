"""Gemm absorbs a map on either side, whichever of A and B is the weight.

    Y = α·A′B′ + β·C        A′, B′ as transA and transB say

    pull    s·Y + t           =  α·A′(B′·s) + (s·β·C + t)
    push    α·(s·A + t)′B′ …  =  α·A′(s·B′) + (β·C + α·Σ t·B′)

β is multiplied into C, which is left with β = 1: a C that β = 0 switched off comes to life that way.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Gemm", versions={7, 9, 11, 13})
class Gemm(Rule):
    """See the module."""

    def pull(self, gemm: Site, out: Affine) -> Moved:
        index = _weight(gemm)
        free = _free_axis(gemm, index)
        scale, shift = out.along(index, gemm.const(index).shape[free])
        edits = {index: Affine.of(_on_axis(scale, free)), 2: _bias(gemm, index, scale, shift)}
        return Moved(edits, becomes=_beta_one(gemm))

    def push(self, gemm: Site, into: Arriving) -> Moved:
        index = _weight(gemm)
        weight, free = gemm.const(index), _free_axis(gemm, index)
        contracted, data_axis = 1 - free, index ^ _transposed(gemm, 1 - index)
        scale, shift = into.only(1 - index).along(data_axis, weight.shape[contracted])
        edits = {index: Affine.of(_on_axis(scale, contracted))}
        if not np.any(shift):
            return Moved(edits)
        total = gemm.attr("alpha", 1.0) * np.tensordot(weight.exact, shift, (contracted, 0))
        edits[2] = _bias(gemm, index, np.ones_like(total), total)
        return Moved(edits, becomes=_beta_one(gemm))


def _weight(gemm: Site) -> int:
    """Which of A and B is the weight: the constant one."""
    index = 0 if gemm.is_const(0) else 1
    gemm.const(index)
    return index


def _transposed(gemm: Site, index: int) -> int:
    return gemm.attr("transB" if index else "transA", 0)


def _free_axis(gemm: Site, index: int) -> int:
    """The axis of the weight that runs along the output: rows of A′, columns of B′."""
    return index ^ _transposed(gemm, index)


def _bias(gemm: Site, index: int, scale: Array, shift: Array) -> Affine:
    """What becomes of C, be it absent, a scalar, a row, a column or full: s·β·C + t."""
    beta = gemm.attr("beta", 1.0) if gemm.has(2) and gemm.const(2) else 1.0
    require(beta == 1.0 or gemm.const(2).integers is None, Reason.QUANTIZED_BIAS)
    edit = Affine.of(beta * scale, shift)
    return edit if index == 1 else edit.rearranged(lambda vector: vector.reshape(-1, 1))


def _beta_one(gemm: Site) -> Becomes | None:
    if gemm.attr("beta", 1.0) == 1.0:
        return None
    kept = {name: _transposed(gemm, index) for index, name in enumerate(("transA", "transB"))}
    return Becomes("Gemm", {**kept, "alpha": gemm.attr("alpha", 1.0), "beta": 1.0})


def _on_axis(vector: Array, axis: int) -> Array:
    return vector.reshape((-1, 1) if axis == 0 else (1, -1))


@folds
def linear(op: Graph, x: Input = ("N", 3)) -> Outputs:
    return op.batch_norm(op.Gemm(x, op.weight(4, 3), op.weight(4), transB=1, alpha=0.5))


@folds
def beta_scales_the_bias(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.batch_norm(op.Gemm(x, op.weight(3, 4), op.weight(2, 4), beta=3.0))


@folds
def beta_zero(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.batch_norm(op.Gemm(x, op.weight(3, 4), op.weight(4), beta=0.0))


@folds
def scalar_and_column_bias(op: Graph, x: Input = (2, 3)) -> Outputs:
    y = op.batch_norm(op.Gemm(x, op.weight(3, 4), op.const(0.5)))
    return op.batch_norm(op.Gemm(y, op.weight(4, 5), op.weight(2, 1)))


@folds
def weight_first(op: Graph, x: Input = (3, 5)) -> Outputs:
    y = op.Gemm(op.weight(3, 4), x, op.weight(5), transA=1)
    return op.Add(op.Mul(y, op.weight(4, 1)), op.weight(4, 1))


@folds
def in_front(op: Graph, x: Input = (3, 2)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(3, 1)), op.weight(3, 1))
    return op.Gemm(y, op.weight(4, 3), op.weight(4), transA=1, transB=1, alpha=2.0, beta=0.5)


@folds
def in_front_weight_first(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.Gemm(op.weight(4, 3), op.batch_norm(x), transB=1)


@refuses(Reason.NOT_CONSTANT)
def computed_bias(op: Graph, x: Input = (2, 3), c: Input = (4,)) -> Outputs:
    return op.batch_norm(op.Gemm(x, op.weight(3, 4), c))


@refuses(Reason.QUANTIZED_BIAS)
def beta_of_integers(op: Graph, x: Input = (2, 3)) -> Outputs:
    bias = op.DequantizeLinear(op.integers(4, dtype=6, size=2**24), op.const(2.0**-18))
    return op.batch_norm(op.Gemm(x, op.weight(3, 4), bias, beta=0.5))


@refuses(Reason.MIXED_AXES)
def along_the_rows(op: Graph, x: Input = (4, 3)) -> Outputs:
    return op.Mul(op.Gemm(x, op.weight(3, 4)), op.weight(4, 1))


@refuses(Reason.OTHER_OPERAND)
def into_the_bias(op: Graph, x: Input = (2, 3), c: Input = (2, 4)) -> Outputs:
    return op.Gemm(x, op.weight(3, 4), op.batch_norm(c))
