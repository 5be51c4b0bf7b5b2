"""Mul and Div by a tensor (a gate) take a scale to one operand.

    pull    s·(a·b) = (s·a)·b          or the scale to b; if t = 0
            s·(a/b) = (s·a)/b          if t = 0
    push    (s·a)·(r·b) = s·r·(a·b)    if neither shifts
            (s·a)/b = s·(a/b)          if t = 0

An operand that broadcasts takes the scale only where it does not vary along the broadcast axes.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.add import aligned, onto
from bnfold.rules.read import arithmetic


@rule("Mul", versions={7, 13, 14})
class Mul(arithmetic.Mul):
    """See the module; with a constant operand the node is a map itself."""

    def pull(self, node: Site, out: Affine) -> Iterator[Moved]:
        require(not out.shifts, Reason.NEEDS_NO_SHIFT)
        operands = {index: onto(out.linear, node, index) for index in range(2)}
        taking = {index: affine for index, affine in operands.items() if affine is not None}
        require(bool(taking), Reason.MIXED_AXES)
        for index, affine in taking.items():
            yield Moved(inputs={index: affine})

    def push(self, node: Site, into: Arriving) -> Moved:
        a, b = (aligned(into.at(index), node, index) for index in range(2))
        require(not (a.shifts or b.shifts), Reason.NEEDS_NO_SHIFT)
        return Moved(output=Affine.of(a.scale * b.scale))


@rule("Div", versions={7, 13, 14})
class Div(arithmetic.Div):
    """See the module; below a constant the node is a map itself."""

    def pull(self, node: Site, out: Affine) -> Moved:
        require(not out.shifts, Reason.NEEDS_NO_SHIFT)
        return Moved(inputs={0: out.linear if node.is_const(0) else out.linear.onto(node.shape(0))})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = aligned(into.only(0), node, 0)
        require(not affine.shifts, Reason.NEEDS_NO_SHIFT)
        return Moved(output=affine.linear)


@folds
def gate(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    gate = op.Sigmoid(op.Conv(x, op.weight(4, 3, 1, 1)))
    return op.Mul(op.Mul(op.Conv(x, op.weight(4, 3, 1, 1)), gate), op.weight(4, 1, 1))


@folds
def in_front(op: Graph, x: Input = (1, 3, 6, 6), gate: Input = (1, 3, 1, 1)) -> Outputs:
    y = op.Mul(op.Mul(x, op.weight(3, 1, 1)), gate)
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def quotient(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    gate = op.Sigmoid(op.Conv(x, op.weight(4, 3, 1, 1)))
    return op.Mul(op.Div(op.Conv(x, op.weight(4, 3, 1, 1)), gate), op.weight(4, 1, 1))


@folds(leaves=["Div"])
def reciprocal(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Div(op.const(1.0), op.Sigmoid(x)), op.weight(3, 1, 1))


@folds
def quotient_in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 1, 1)) -> Outputs:
    z = op.Div(op.Mul(x, op.weight(3, 1, 1)), op.Exp(y))
    return op.Conv(z, op.weight(4, 3, 3, 3))


@refuses(Reason.NEEDS_NO_SHIFT)
def quotient_of_a_shift(op: Graph, x: Input = (1, 3, 6, 6), gate: Input = (1, 3, 1, 1)) -> Outputs:
    return op.Conv(op.Div(op.batch_norm(x), op.Exp(gate)), op.weight(4, 3, 3, 3))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_of_a_quotient(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    gate = op.Exp(op.Sigmoid(op.Conv(x, op.weight(4, 3, 1, 1))))
    return op.batch_norm(op.Div(op.Conv(x, op.weight(4, 3, 1, 1)), gate))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_behind(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    gate = op.Sigmoid(op.Conv(x, op.weight(4, 3, 1, 1)))
    return op.batch_norm(op.Mul(op.Conv(x, op.weight(4, 3, 1, 1)), gate))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_in_front(op: Graph, x: Input = (1, 3, 6, 6), gate: Input = (1, 3, 1, 1)) -> Outputs:
    return op.Conv(op.Mul(op.batch_norm(x), gate), op.weight(4, 3, 3, 3))


@refuses(Reason.MIXED_AXES)
def both_broadcast(op: Graph, x: Input = (1, 3, 6, 1), gate: Input = (1, 3, 1, 6)) -> Outputs:
    y = op.Mul(op.Conv(x, op.weight(1, 3, 1, 1)), op.Conv(gate, op.weight(1, 3, 1, 1)))
    return op.Mul(y, op.weight(6, 6))
