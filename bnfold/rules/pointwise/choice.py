"""Max, Min and Where take each element from one operand, and carry a map that all operands take.

    pull    s·max(a, c) + t          =  max(s·a + t, s·c + t)               s ≥ 0; for s ≤ 0 it becomes min
    push    max(s·a + t, c)          =  s·max(a, (c − t)/s) + t             s > 0; for s < 0 it becomes min
    pull    s·where(m, a, c) + t     =  where(m, s·a + t, s·c + t)
    push    where(m, s·a + t, c)     =  s·where(m, a, (c − t)/s) + t        s ≠ 0
            where(m, s·a + t, r·b + u)  =  where(m, s, r)·where(m, a, b) + where(m, t, u)    if m is constant

and the same for Min as for Max. Several tensors have to bring the same map, but for a Where with a
constant mask. An operand that broadcasts takes the map only where the map does not vary along the
broadcast axes; a constant may grow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.add import aligned

_OTHER = {"Max": "Min", "Min": "Max", "ReduceMax": "ReduceMin", "ReduceMin": "ReduceMax"}


@rule("Max", "Min", versions={1, 6, 8, 12, 13})
class Extremum(Rule):
    """The largest or the smallest operand; a negative scale turns one into the other."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs=_taken(node, out, 0), becomes=turned(node, out.scale))

    def push(self, node: Site, into: Arriving) -> Moved:
        tensors, constants = _arrived(node, into, 0)
        affine = next(iter(tensors.values()))
        require(all(each.same(affine) for each in tensors.values()), Reason.BRANCHES_DIFFER)
        return Moved(_given_back(constants, affine), output=affine, becomes=turned(node, affine.scale))


@rule("Where", versions={9, 16})
class Where(Rule):
    """One of two operands, as the mask says, which no map touches."""

    def pull(self, where: Site, out: Affine) -> Moved:
        return Moved(inputs=_taken(where, out, 1))

    def push(self, where: Site, into: Arriving) -> Moved:
        tensors, constants = _arrived(where, into, 1)
        affine = next(iter(tensors.values()))
        alike = all(each.same(affine) for each in tensors.values())
        if where.is_const(0) and not (alike and (not constants or np.all(affine.scale != 0))):
            return Moved(output=_masked(where, {**constants, **tensors}))
        require(alike, Reason.BRANCHES_DIFFER)
        return Moved(_given_back(constants, affine), output=affine)


def _taken(node: Site, out: Affine, first: int) -> dict[int, Affine]:
    """What every operand from the input ``first`` on has to become."""
    operands = range(first, len(node.node.inputs))
    return {i: out if node.is_const(i) else out.onto(node.shape(i)) for i in operands}


def _arrived(node: Site, into: Arriving, first: int) -> tuple[dict[int, Affine], dict[int, Affine]]:
    """The maps of the operands that are tensors, and those of the constants, to which none comes."""
    maps = {i: aligned(into.at(i), node, i) for i in range(first, len(node.node.inputs))}
    constants = {i: affine for i, affine in maps.items() if node.is_const(i)}
    return {i: affine for i, affine in maps.items() if i not in constants}, constants


def _given_back(constants: Mapping[int, Affine], affine: Affine) -> dict[int, Affine]:
    """Undo in every constant the map that is now applied behind it."""
    return dict.fromkeys(constants, inverse(affine)) if constants else {}


def inverse(affine: Affine) -> Affine:
    """The map that undoes another one."""
    require(bool(np.all(affine.scale != 0)), Reason.ZERO_SCALE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Affine(1.0 / affine.scale, -affine.shift / affine.scale)


def _masked(where: Site, maps: Mapping[int, Affine]) -> Affine:
    mask = where.const(0).base
    rank = len(where.out_shape())
    mask = mask.reshape((1,) * (rank - mask.ndim) + mask.shape)
    return Affine(
        np.where(mask, maps[1].scale, maps[2].scale), np.where(mask, maps[1].shift, maps[2].shift)
    ).collapsed()


def turned(node: Site, scale: Array) -> Becomes | None:
    """The other operator where the scale is negative, with the same attributes."""
    require(bool(np.all(scale <= 0) or np.all(scale >= 0)), Reason.NEGATIVE_SCALE)
    attributes = {name: attribute.value for name, attribute in node.node.attributes.items()}
    return Becomes(_OTHER[node.node.op_type], attributes) if np.any(scale < 0) else None


_BOOL = int(ir.DataType.BOOL)


@folds
def bound_behind(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Max(op.Conv(x, op.weight(4, 3, 3, 3)), op.const(0.0)), positive=True)


@folds
def bound_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Min(op.weight(3, 1, 1), op.batch_norm(x, positive=True))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def negative_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Max(op.Conv(x, op.weight(4, 3, 3, 3)), op.weight(4, 1, 1))
    return op.Sub(op.weight(4, 1, 1), y)


@folds
def negative_scale_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Min(op.Sub(op.weight(3, 1, 1), x), op.weight(3, 1, 1))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def two_layers(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Max(op.Conv(x, op.weight(4, 3, 3, 3)), op.Conv(x, op.weight(4, 3, 3, 3)), op.const(0.5))
    return op.batch_norm(y, positive=True)


@folds
def same_map_in_front(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.batch_norm(x, positive=True)
    return op.Conv(op.Min(y, op.MaxPool(y, kernel_shape=[1, 1])), op.weight(4, 3, 3, 3))


@folds(opset=7)
def without_broadcasting(op: Graph, x: Input = (2, 3)) -> Outputs:
    return op.Mul(op.Min(op.Gemm(x, op.weight(3, 4), op.weight(4)), op.weight(2, 4)), op.positive(4))


@refuses(Reason.NEGATIVE_SCALE)
def both_signs(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Max(op.Conv(x, op.weight(2, 3, 3, 3)), op.const(0.0))
    return op.Mul(y, op.const([[[1.0]], [[-1.0]]]))


@refuses(Reason.ZERO_SCALE)
def zero_in_front(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Max(op.Mul(x, op.const([[[1.0]], [[0.0]]])), op.const(-1.0))
    return op.Conv(y, op.weight(4, 2, 3, 3))


@folds
def where_behind(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    mask = op.Greater(op.GlobalAveragePool(op.Conv(x, op.weight(4, 3, 3, 3))), op.const(0.0))
    y = op.Where(mask, op.Conv(x, op.weight(4, 3, 3, 3)), op.const(0.5))
    return op.batch_norm(y)


@folds
def where_in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 1, 1, 6)) -> Outputs:
    z = op.Where(op.Less(y, op.const(0.0)), op.batch_norm(x), op.weight(3, 1, 1))
    return op.Conv(z, op.weight(4, 3, 3, 3))


@folds
def constant_mask(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    z = op.Where(op.const([[[True]], [[False]], [[True]]], _BOOL), op.batch_norm(x), op.batch_norm(y))
    return op.Conv(z, op.weight(4, 3, 3, 3))


@refuses(Reason.BRANCHES_DIFFER)
def one_of_two_tensors(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    z = op.Max(op.batch_norm(x, positive=True), y)
    return op.Conv(z, op.weight(4, 3, 3, 3))


@refuses(Reason.MIXED_AXES)
def operand_broadcasts(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 1, 6, 6)) -> Outputs:
    y = op.Conv(y, op.weight(1, 1, 1, 1))
    return op.batch_norm(op.Max(op.Conv(x, op.weight(4, 3, 1, 1)), y), positive=True)


@refuses(Reason.BRANCHES_DIFFER)
def mask_at_run_time(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    z = op.Where(op.Less(y, op.const(0.0)), op.batch_norm(x), y)
    return op.Conv(z, op.weight(4, 3, 3, 3))
