"""MatMul absorbs a scale on either side and hands the shift on: it has no bias.

    pull    s·(x·W) + t  =  x·(W·s) + t             s and t along the columns of W
    push    (s·x + t)·W  =  x·(s·W) + t·W           s and t along the rows of W

and alike with the weight on the left. Weights may be stacked; a map may vary along their stack.
A product of two matrices becomes a Gemm, whose bias takes the shift; otherwise an Add takes it.

Without a weight it carries a map from behind it to one of its operands:

    pull    s·(a·b) + t  =  a·(s·b + t)             s and t along the columns of b; if t = 0 or the
                                                    rows of a sum to one: a Softmax, in attention
            s·(a·b)      =  (s·a)·b                 s along the rows of a
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.graph.constants import Const
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import BROADCASTING, Site
from bnfold.rules.pointwise.add import onto


@rule("MatMul", versions={1, 9, 13})
class MatMul(Rule):
    """See the module."""

    def pull(self, matmul: Site, out: Affine) -> Moved | Iterator[Moved]:
        if not (matmul.is_const(0) or matmul.is_const(1)):
            return _carried(matmul, out)
        index, weight = _weight(matmul)
        _require_constant_along(out, axis=-2 if index else -1)
        return _moved(matmul, index, out.linear.onto(weight.shape), out.translation)

    def push(self, matmul: Site, into: Arriving) -> Moved:
        index, weight = _weight(matmul)
        affine = into.only(1 - index)
        _require_constant_along(affine, axis=-2 if index else -1)
        crossed = affine.linear.rearranged(lambda array: np.swapaxes(array, -1, -2))
        shift = Affine.of()
        if affine.shifts:
            rank, axis = len(matmul.shape(1 - index)), -1 if index else -2
            shape = np.ones(rank, int)
            shape[axis] = weight.shape[-2 if index else -1]
            vector = affine.translation.shift + np.zeros(shape)
            total = vector @ weight.exact if index else weight.exact @ vector
            shift = Affine.of(1.0, total)
        return _moved(matmul, index, crossed.onto(weight.shape), shift)


def _weight(matmul: Site) -> tuple[int, Const]:
    """Which side is the weight, and the weight; vectors lose an axis and are left to the run time."""
    index = 0 if matmul.is_const(0) else 1
    weight = matmul.const(index)
    require(weight.rank >= 2 and len(matmul.shape(1 - index)) >= 2, Reason.MIXED_AXES)
    return index, weight


def _carried(matmul: Site, out: Affine) -> Iterator[Moved]:
    """The map to either operand, where both are computed at run time."""
    require(all(len(matmul.shape(index)) >= 2 for index in range(2)), Reason.MIXED_AXES)
    taking = {
        index: affine
        for index, summed in ((1, -2), (0, -1))
        if out.rank + summed not in out.sizes() and (affine := onto(out, matmul, index)) is not None
    }
    require(bool(taking), Reason.MIXED_AXES)
    if out.shifts:
        require(1 in taking and matmul.sums_to_one(0), Reason.NEEDS_NO_SHIFT)
        taking = {1: taking[1]}
    for index, affine in taking.items():
        yield Moved(inputs={index: affine})


def _require_constant_along(affine: Affine, axis: int) -> None:
    """The axis that the product sums over, or that belongs to the data, has no weights to scale."""
    require(affine.rank + axis not in affine.sizes(), Reason.MIXED_AXES)


def _moved(matmul: Site, index: int, scale: Affine, shift: Affine) -> Moved:
    if not shift.shifts:
        return Moved({index: scale})
    if len(matmul.out_shape()) == 2 and matmul.opset >= BROADCASTING:
        bias = shift.shift[0] if shift.shift.ndim == 2 and len(shift.shift) == 1 else shift.shift
        return Moved({index: scale, 2: Affine.of(1.0, bias)}, becomes=Becomes("Gemm"))
    return Moved({index: scale}, output=shift, may_stay=True)


@folds
def becomes_gemm(op: Graph, x: Input = ("N", 3)) -> Outputs:
    return op.batch_norm(op.MatMul(x, op.weight(3, 4)))


@folds
def bias_behind(op: Graph, x: Input = ("N", 3)) -> Outputs:
    return op.batch_norm(op.Add(op.MatMul(x, op.weight(3, 4)), op.weight(4)))


@folds(leaves=["Add"])
def on_tokens(op: Graph, x: Input = ("N", 5, 3)) -> Outputs:
    y = op.Add(op.MatMul(x, op.weight(3, 4)), op.weight(4))
    return op.Transpose(op.batch_norm(op.Transpose(y, perm=[0, 2, 1])), perm=[0, 2, 1])


@folds
def weight_on_the_left(op: Graph, x: Input = ("N", 3, 5)) -> Outputs:
    return op.Mul(op.MatMul(op.weight(4, 3), x), op.weight(4, 1))


@folds
def stacked(op: Graph, x: Input = (2, 3, 5, 4)) -> Outputs:
    return op.Mul(op.MatMul(x, op.weight(3, 4, 6)), op.weight(3, 1, 6))


@folds(leaves=["Add", "Add", "Add"])
def queries_keys_values(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(4)), op.weight(4))
    return [op.Add(op.MatMul(y, op.weight(4, 6)), op.weight(6)) for _ in range(3)]


@folds
def in_front(op: Graph, x: Input = ("N", 4)) -> Outputs:
    return op.MatMul(op.batch_norm(x), op.weight(4, 6))


@folds(leaves=["Add"])
def in_front_on_the_right(op: Graph, x: Input = (2, 4, 5)) -> Outputs:
    return op.MatMul(op.weight(3, 4), op.batch_norm(x))


@refuses(Reason.MIXED_AXES)
def along_the_rows(op: Graph, x: Input = (2, 4, 3)) -> Outputs:
    return op.Mul(op.MatMul(x, op.weight(3, 4)), op.weight(4, 1))


@refuses(Reason.MIXED_AXES)
def vector_has_no_columns(op: Graph, x: Input = (2, 3, 3)) -> Outputs:
    return op.Mul(op.MatMul(x, op.weight(3)), op.weight(3))


@refuses(Reason.COSTS_A_NODE)
def shift_for_each_reader(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Add(op.Sigmoid(x), op.weight(4))
    return (
        op.MatMul(y, op.weight(4, 6)),
        op.MatMul(y, op.weight(4, 6)),
        op.MatMul(y, op.weight(4, 6)),
    )


@folds
def attention(op: Graph, x: Input = (2, 4, 3), q: Input = (2, 4, 4)) -> Outputs:
    v = op.Transpose(op.Conv(op.Transpose(x, perm=[0, 2, 1]), op.weight(5, 3, 1)), perm=[0, 2, 1])
    y = op.Transpose(op.MatMul(op.Softmax(q, axis=-1), v), perm=[0, 2, 1])
    return op.batch_norm(y)


@folds
def columns(op: Graph, x: Input = (2, 4, 3), y: Input = (2, 3, 6)) -> Outputs:
    return op.Mul(op.MatMul(x, op.MatMul(y, op.weight(6, 5))), op.weight(5))


@folds
def rows(op: Graph, x: Input = (2, 6, 3), y: Input = (2, 3, 5)) -> Outputs:
    return op.Mul(op.MatMul(op.MatMul(op.weight(4, 6), x), y), op.weight(4, 1))


@folds
def heads_that_share_keys(op: Graph, x: Input = (2, 3, 5, 4), y: Input = (2, 1, 4, 6)) -> Outputs:
    queries = op.Conv(x, op.weight(3, 3, 1, 1))
    return op.Mul(op.MatMul(queries, y), op.weight(3, 1, 1))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_of_a_product(op: Graph, x: Input = (2, 4, 3), y: Input = (2, 3, 6)) -> Outputs:
    y = op.MatMul(op.Sigmoid(x), op.MatMul(y, op.weight(6, 5)))
    return op.batch_norm(op.Transpose(y, perm=[0, 2, 1]))


@refuses(Reason.NEEDS_NO_SHIFT)
def softmax_along_the_columns(op: Graph, x: Input = (2, 4, 3), y: Input = (2, 3, 6)) -> Outputs:
    y = op.MatMul(op.Softmax(x, axis=1), op.MatMul(y, op.weight(6, 5)))
    return op.batch_norm(op.Transpose(y, perm=[0, 2, 1]))


@refuses(Reason.NEEDS_NO_SHIFT, opset=11)
def softmax_of_all_axes(op: Graph, x: Input = (2, 4, 3), y: Input = (2, 3, 6)) -> Outputs:
    y = op.MatMul(op.Softmax(x), op.MatMul(y, op.weight(6, 5)))
    return op.batch_norm(op.Transpose(y, perm=[0, 2, 1]))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_along_the_rows(op: Graph, x: Input = (2, 6, 3), y: Input = (2, 3, 5)) -> Outputs:
    return op.batch_norm(op.MatMul(op.Conv(x, op.weight(4, 6, 1)), y))


@refuses(Reason.MIXED_AXES)
def rows_and_columns(op: Graph, x: Input = (2, 6, 4), y: Input = (2, 4, 4)) -> Outputs:
    return op.Mul(op.MatMul(op.MatMul(op.weight(4, 6), x), y), op.weight(4, 4))


@refuses(Reason.MIXED_AXES)
def product_with_a_vector(op: Graph, x: Input = (2, 3, 3), y: Input = (6,)) -> Outputs:
    return op.Mul(op.MatMul(x, op.MatMul(y, op.weight(6, 3))), op.weight(3))


@refuses(Reason.NOT_CONSTANT)
def attention_scores(op: Graph, x: Input = (2, 4, 3), y: Input = (2, 3, 5)) -> Outputs:
    return op.MatMul(op.batch_norm(x), y)


@refuses(Reason.DENSE_BIAS)
def dense_bias(op: Graph, x: Input = (2, 4)) -> Outputs:
    return op.Add(op.MatMul(x, op.weight(4, 3)), op.weight(3))
