"""Operators that change nothing at inference carry any map.

    pull, push    out = in

Identity; Dropout at inference; Cast and CastLike to the type the tensor already has.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


class Carrier(Rule):
    """An operator through which every map passes unchanged, if ``check`` agrees."""

    def pull(self, node: Site, out: Affine) -> Moved:
        self.check(node)
        return Moved(inputs={0: out})

    def push(self, node: Site, into: Arriving) -> Moved:
        self.check(node)
        return Moved(output=into.only(0))

    def check(self, node: Site) -> None:
        """Raise ``Refused`` where the operator does change values."""


@rule("Identity", versions={1, 13, 14, 16, 19, 21, 23, 24, 25})
class Identity(Carrier):
    """The identity."""


@rule("Cast", versions={1, 6, 9, 13, 19, 21, 23, 24, 25, 28})
class Cast(Carrier):
    """Cast, where it is none."""

    def pull(self, node: Site, out: Affine) -> Moved:
        source = node.facts.dtype(node.input(0))
        require(source is None or not source.is_integer(), Reason.INTEGER_ARITHMETIC)
        return super().pull(node, out)

    def check(self, node: Site) -> None:
        source = node.facts.dtype(node.input(0))
        require(source is not None and node.target_type() == source, Reason.ROUNDS)


@rule("CastLike", versions={15, 19, 21, 23, 24, 25})
class CastLike(Carrier):
    """Cast to the type of the second input, where it is none."""

    def check(self, node: Site) -> None:
        source = node.facts.dtype(node.input(0))
        require(source is not None and node.facts.dtype(node.input(1)) == source, Reason.ROUNDS)


@rule("Dropout", versions={1, 6, 7, 10, 12, 13, 22})
class Dropout(Carrier):
    """Dropout at inference: by ``is_test`` before version 7, by its third input from 12 on."""

    def check(self, node: Site) -> None:
        if node.version < 7:
            require(node.attr("is_test", 0) != 0, Reason.DROPS)
        elif node.version >= 12 and node.has(2):
            require(node.is_const(2) and not node.const(2).base.any(), Reason.DROPS)


@folds
def behind_identity(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Identity(op.Conv(x, op.weight(4, 3, 3, 3))))


@folds
def in_front_of_identity(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.Identity(op.batch_norm(x)), op.weight(4, 3, 3, 3))


@folds
def cast_to_the_same_type(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Cast(op.Conv(x, op.weight(4, 3, 3, 3)), to=int(ir.DataType.FLOAT))
    return op.batch_norm(y)


@folds
def cast_like_itself(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (2,)) -> Outputs:
    return op.batch_norm(op.CastLike(op.Conv(x, op.weight(4, 3, 3, 3)), y))


@folds
def dropout_at_inference(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Dropout(op.Conv(x, op.weight(4, 3, 3, 3))))


@folds(opset=10)
def dropout_in_old_opsets(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Dropout(op.Conv(x, op.weight(4, 3, 3, 3)), ratio=0.3))


@folds(opset=7)
def dropout_without_a_mode(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Dropout(op.Conv(x, op.weight(4, 3, 3, 3))))


@refuses(Reason.DROPS)
def dropout_in_training(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.batch_norm(op.Dropout(y, op.const(0.5), op.const(True, dtype=int(ir.DataType.BOOL))))


@refuses(Reason.DROPS, opset=6)
def dropout_without_is_test(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Dropout(op.Conv(x, op.weight(4, 3, 3, 3))), is_test=1)


@refuses(Reason.INTEGER_ARITHMETIC)
def cast_of_integers(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Cast(op.Conv(x, op.weight(4, 3, 3, 3)), to=int(ir.DataType.INT32))
    return op.batch_norm(op.Cast(y, to=int(ir.DataType.FLOAT)))


@refuses(Reason.ROUNDS)
def cast_rounds(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Cast(op.batch_norm(x), to=int(ir.DataType.INT32))
    return op.Conv(op.Cast(y, to=int(ir.DataType.FLOAT)), op.weight(4, 3, 3, 3))


@refuses(Reason.ROUNDS)
def cast_like_rounds(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.CastLike(op.batch_norm(x), op.ints(1))
    return op.Conv(op.CastLike(y, x), op.weight(4, 3, 3, 3))
