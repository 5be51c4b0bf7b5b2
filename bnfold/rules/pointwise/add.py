"""Add of two tensors takes a scale to both and a shift to one of them.

    pull    s·(a + b) + t           =  (s·a + t) + s·b          or the shift to b
    push    (s·a + t) + (s·b + u)   =  s·(a + b) + (t + u)      the same s on both sides

An operand that broadcasts takes the map only where the map does not vary along the broadcast axes.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving, Moved, rule
from bnfold.core.site import Site
from bnfold.rules.read import arithmetic


@rule("Add", versions={7, 13, 14})
class Add(arithmetic.Add):
    """See the module; with a constant operand the node is a map itself."""

    def pull(self, node: Site, out: Affine) -> Iterator[Moved]:
        if not out.shifts:
            yield Moved(inputs={i: out.onto(node.shape(i)) for i in range(2)})
            return
        scaled = [out.linear.onto(node.shape(i)) for i in range(2)]
        whole = [onto(out, node, i) for i in range(2)]
        require(whole != [None, None], Reason.MIXED_AXES)
        for i, affine in enumerate(whole):
            if affine is not None:
                yield Moved(inputs={i: affine, 1 - i: scaled[1 - i]})

    def push(self, node: Site, into: Arriving) -> Moved:
        a, b = (aligned(into.at(i), node, i) for i in range(2))
        require(a.linear.same(b.linear), Reason.BRANCHES_DIFFER)
        return Moved(output=Affine(a.scale, a.shift + b.shift))


def onto(affine: Affine, node: Site, index: int) -> Affine | None:
    """The map for one operand, None where it broadcasts along what the map varies along."""
    try:
        return affine.onto(node.shape(index))
    except Refused:
        return None


def aligned(affine: Affine, node: Site, index: int) -> Affine:
    """An operand's map with the rank of the sum; its sizes are the sum's, as no size 1 varies."""
    missing = len(node.out_shape()) - len(node.shape(index))
    return affine.rearranged(lambda array: array.reshape((1,) * missing + array.shape))


@folds
def two_layers(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Conv(x, op.weight(4, 3, 3, 3)), op.Conv(x, op.weight(4, 3, 3, 3), op.weight(4))
    return op.batch_norm(op.Add(a, b))


@folds
def shift_to_the_other(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), op.Conv(x, op.weight(4, 3, 3, 3))
    return op.batch_norm(op.Add(a, b), positive=True)


@folds
def per_channel_gate(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    pooled = op.Conv(op.GlobalAveragePool(x), op.weight(4, 3, 1, 1))
    return op.batch_norm(op.Add(pooled, op.Conv(x, op.weight(4, 3, 3, 3))))


@folds
def same_scale_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Mul(x, op.positive(3, 1, 1))
    return op.Conv(op.Add(op.Relu(y), y), op.weight(4, 3, 3, 3))


@folds
def shift_in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (3, 6, 6)) -> Outputs:
    return op.Conv(op.Add(op.Add(y, op.weight(3, 1, 1)), x), op.weight(4, 3, 3, 3))


@refuses(Reason.MIXED_AXES)
def operand_broadcasts(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 1, 6, 6)) -> Outputs:
    y = op.Conv(y, op.weight(1, 1, 1, 1))
    return op.batch_norm(op.Add(op.Conv(x, op.weight(4, 3, 1, 1)), y))


@refuses(Reason.MIXED_AXES)
def both_broadcast(op: Graph, x: Input = (3, 2), y: Input = (1, 2)) -> Outputs:
    rows, columns = op.Gemm(x, op.weight(2, 1)), op.Gemm(y, op.weight(2, 4))
    return op.Add(op.Add(rows, columns), op.weight(3, 4))


@refuses(Reason.BRANCHES_DIFFER)
def other_scale_in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.Add(op.batch_norm(x), y), op.weight(4, 3, 3, 3))
