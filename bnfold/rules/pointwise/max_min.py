"""Max and Min carry a map that all their operands take, constant bounds as well.

    pull    s·max(a, c) + t     =  max(s·a + t, s·c + t)           s ≥ 0; for s ≤ 0 it becomes min
    push    max(s·a + t, c)     =  s·max(a, (c − t)/s) + t         s > 0; for s < 0 it becomes min

and with Max and Min exchanged. Several tensors have to bring the same map; the sign has to be the same
everywhere. An operand that broadcasts takes the map only where the map does not vary along the
broadcast axes; a constant may grow.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.add import aligned

_OTHER = {"Max": "Min", "Min": "Max"}


@rule("Max", "Min", versions={1, 6, 8, 12, 13})
class Extremum(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        count = len(node.node.inputs)
        maps = {i: out if node.is_const(i) else out.onto(node.shape(i)) for i in range(count)}
        return Moved(inputs=maps, becomes=_turned(node, out.scale))

    def push(self, node: Site, into: Arriving) -> Moved:
        count = len(node.node.inputs)
        bounds = [i for i in range(count) if node.is_const(i)]
        maps = [aligned(into.at(i), node, i) for i in range(count) if i not in bounds]
        require(all(each.same(maps[0]) for each in maps), Reason.BRANCHES_DIFFER)
        back = inverse(maps[0]) if bounds else Affine.of()
        return Moved(dict.fromkeys(bounds, back), output=maps[0], becomes=_turned(node, maps[0].scale))


def inverse(affine: Affine) -> Affine:
    """The map that undoes ``affine``, so that a constant may stand in front of it instead of behind."""
    require(bool(np.all(affine.scale != 0)), Reason.ZERO_SCALE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Affine(1.0 / affine.scale, -affine.shift / affine.scale)


def _turned(node: Site, scale: Array) -> Becomes | None:
    """The other operator where the scale is negative."""
    turns = bool(np.any(scale < 0))
    require(bool(np.all(scale <= 0)) or not turns, Reason.NEGATIVE_SCALE)
    return Becomes(_OTHER[node.node.op_type]) if turns else None


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


@refuses(Reason.BRANCHES_DIFFER)
def one_of_two_tensors(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    z = op.Max(op.batch_norm(x, positive=True), y)
    return op.Conv(z, op.weight(4, 3, 3, 3))


@refuses(Reason.MIXED_AXES)
def operand_broadcasts(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 1, 6, 6)) -> Outputs:
    y = op.Conv(y, op.weight(1, 1, 1, 1))
    return op.batch_norm(op.Max(op.Conv(x, op.weight(4, 3, 1, 1)), y), positive=True)
