"""Mul, Add, Sub, Div and Neg with a constant are affine maps.

    read    x·c    x + c    x − c    c − x    x / c    −x

The constant may stand on either side (but not above a division), and has to broadcast into the
tensor without enlarging it. Before version 7 the operators broadcast by attributes, which only ever
meant something else where it mattered: those versions are not read.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Rule, rule
from bnfold.core.site import Site


class Arithmetic(Rule):
    """A binary operator, one of whose inputs is a constant."""

    def read(self, node: Site) -> tuple[int, Affine]:
        overridable = any(node.input(i) in node.constants.overridable for i in range(2))
        require(not overridable, Reason.OVERRIDABLE)
        require(node.is_const(0) != node.is_const(1), Reason.NOT_AFFINE)
        data = int(node.is_const(0))
        affine = self.map(node.const(1 - data).exact, data)
        return data, broadcast(affine, node, data)

    def map(self, constant: Array, data: int) -> Affine:
        """The map of the input ``data`` that the constant at the other input makes."""
        raise NotImplementedError


class Mul(Arithmetic):
    """x·c; registered with what a Mul of two tensors does."""

    def map(self, constant: Array, data: int) -> Affine:
        return Affine.of(constant)


class Add(Arithmetic):
    """x + c; registered with what an Add of two tensors does."""

    def map(self, constant: Array, data: int) -> Affine:
        return Affine.of(1.0, constant)


class Sub(Arithmetic):
    """x − c or c − x; registered with what a Sub of two tensors does."""

    def map(self, constant: Array, data: int) -> Affine:
        return Affine.of(1.0, -constant) if data == 0 else Affine.of(-1.0, constant)


class Div(Arithmetic):
    """x / c; registered with what a Div by a tensor does."""

    def map(self, constant: Array, data: int) -> Affine:
        require(data == 0, Reason.NOT_AFFINE)
        with np.errstate(divide="ignore"):
            return Affine.of(1.0 / constant)


@rule("Neg", versions={1, 6, 13})
class Neg(Rule):
    """−x."""

    def read(self, node: Site) -> tuple[int, Affine]:
        return 0, Affine.of(-1.0)


def broadcast(affine: Affine, node: Site, data: int) -> Affine:
    """Give the map the tensor's rank, if it provably does not enlarge the tensor."""
    if affine.rank == 0:
        return affine
    shape = node.shape(data)
    require(affine.rank <= len(shape), Reason.BROADCASTS)
    padded = affine.rearranged(lambda a: a.reshape((1,) * (len(shape) - a.ndim) + a.shape))
    for axis, size in padded.sizes().items():
        require(isinstance(shape[axis], int), Reason.UNKNOWN_SHAPE)
        require(shape[axis] == size, Reason.BROADCASTS)
    return padded


@folds
def mul_add(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.Add(op.Mul(y, op.weight(4, 1, 1)), op.weight(1, 4, 1, 1))


@folds
def constant_first(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.Sub(op.weight(4, 1, 1), op.Mul(op.weight(1), y))


@folds
def sub_div_neg(op: Graph, x: Input = ("N", 3)) -> Outputs:
    y = op.Gemm(x, op.weight(3, 4))
    return op.Neg(op.Div(op.Sub(y, op.weight(4)), op.positive(1, 4)))


@refuses(Reason.NOT_AFFINE)
def constant_above(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Div(op.weight(4, 1, 1), op.Conv(x, op.positive(4, 3, 3, 3)))


@refuses(Reason.NOT_AFFINE)
def two_tensors(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 4, 4, 4)) -> Outputs:
    return op.Div(op.Conv(x, op.weight(4, 3, 3, 3)), y)


@refuses(Reason.OVERRIDABLE)
def overridable_constant(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Conv(x, op.weight(4, 3, 3, 3)), op.weight(4, 1, 1, overridable=True))


@refuses(Reason.NOT_FINITE)
def division_by_zero(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Div(op.Conv(x, op.weight(2, 3, 3, 3)), op.const([[[1.0]], [[0.0]]]))


@refuses(Reason.BROADCASTS)
def constant_enlarges(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Add(op.Conv(x, op.weight(1, 3, 3, 3)), op.weight(4, 1, 1))


@refuses(Reason.BROADCASTS)
def constant_adds_an_axis(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.Mul(op.Gemm(x, op.weight(3, 4)), op.weight(1, 1, 4))


@refuses(Reason.UNKNOWN_SHAPE)
def constant_may_enlarge(op: Graph, x: Input = (1, 3, "H", 6)) -> Outputs:
    return op.Add(op.Conv(x, op.weight(1, 3, 1, 1)), op.weight(4, 1))


@refuses(Reason.UNKNOWN_VERSION, opset=6)
def broadcast_by_attribute(op: Graph, x: Input = (4, 3)) -> Outputs:
    y = op.MatMul(x, op.weight(3, 4))
    return op.Mul(y, op.weight(4), broadcast=1, axis=0)


@refuses(Reason.NOT_FLOAT, dtype=6)
def integers(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.Div(op.MatMul(x, op.const([[1], [3], [5]])), op.const([2]))
