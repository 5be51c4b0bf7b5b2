"""Transpose carries any map: the map's arrays are transposed alike.

pull    out ∘ Transpose = Transpose ∘ in        in  = out transposed back
push    Transpose ∘ in  = out ∘ Transpose       out = in transposed
"""

from __future__ import annotations

from typing import cast

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Transpose", versions={1, 13, 21, 23, 24, 25})
class Transpose(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        back = np.argsort(_permutation(node, out.rank))
        return Moved(inputs={0: out.rearranged(lambda array: array.transpose(back))})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        there = _permutation(node, affine.rank)
        return Moved(output=affine.rearranged(lambda array: array.transpose(there)))


def _permutation(node: Site, rank: int) -> list[int]:
    permutation = node.attr("perm", cast("list[int]", [])) or list(range(rank))[::-1]
    require(rank in (0, len(permutation)), Reason.UNKNOWN_SHAPE)
    return permutation


@folds
def channels_last(op: Graph, x: Input = (1, 3, 6, 5)) -> Outputs:
    y = op.Transpose(op.Conv(x, op.weight(4, 3, 3, 3)), perm=[0, 2, 3, 1])
    return op.Add(op.Mul(y, op.weight(4)), op.weight(4))


@folds(leaves=["Add"])
def linear_on_tokens(op: Graph, x: Input = ("N", "T", 3)) -> Outputs:
    y = op.Transpose(op.MatMul(x, op.weight(3, 4)), perm=[0, 2, 1])
    return op.batch_norm(y, channels=4)


@folds
def reversed_by_default(op: Graph, x: Input = (3, 2)) -> Outputs:
    return op.batch_norm(op.Transpose(op.Gemm(op.weight(4, 3), x)))


@folds
def in_front(op: Graph, x: Input = (1, 6, 5, 3)) -> Outputs:
    y = op.Transpose(op.Mul(op.Sub(x, op.weight(3)), op.weight(3)), perm=[0, 3, 1, 2])
    return op.Conv(y, op.weight(4, 3, 3, 3))


@refuses(Reason.UNKNOWN_SHAPE)
def permutation_of_another_rank(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Transpose(op.batch_norm(op.Sigmoid(x)), perm=[0, 2, 1])


@refuses(Reason.MIXED_AXES)
def along_a_moved_axis(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Transpose(op.Conv(x, op.weight(4, 3, 3, 3)), perm=[0, 1, 3, 2])
    return op.Mul(y, op.weight(4))
