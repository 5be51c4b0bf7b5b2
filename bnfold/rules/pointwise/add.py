"""Add, Sub, Sum and Mean of tensors take a scale to all of them and a shift to one.

    pull    s·Σ kᵢ·aᵢ + t          =  Σ kᵢ·(s·aᵢ) + t            t to one tensor as t/Σ kᵢ
    push    Σ kᵢ·(s·aᵢ + tᵢ)       =  s·Σ kᵢ·aᵢ + Σ kᵢ·tᵢ         the same s on all of them
    read    a + c₁ + c₂ + …        Sum and Mean of one tensor and constants

with kᵢ = 1 for Add and Sum, ±1 for Sub, 1/n for Mean. An operand that broadcasts takes the map only where
the map does not vary along the broadcast axes; a constant may grow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.read import arithmetic


class Combination(Rule):
    """A sum of all operands, each times a fixed number."""

    def pull(self, node: Site, out: Affine) -> Iterator[Moved]:
        factors = self.factors(node)
        if not out.shifts:
            yield Moved(inputs={i: _taken(out, node, i) for i in range(len(factors))})
            return
        scaled = {i: _taken(out.linear, node, i) for i in range(len(factors))}
        shares = tensors(node, factors)
        whole = {same: onto(Affine(out.scale, out.shift / k), node, same[0]) for same, k in shares}
        require(any(whole.values()), Reason.MIXED_AXES)
        for same, affine in sorted(whole.items(), key=lambda item: not node.is_const(item[0][0])):
            if affine is not None:
                yield Moved(inputs={**scaled, **dict.fromkeys(same, affine)})

    def push(self, node: Site, into: Arriving) -> Moved:
        maps = [aligned(into.at(i), node, i) for i in range(len(node.node.inputs))]
        require(all(each.linear.same(maps[0].linear) for each in maps), Reason.BRANCHES_DIFFER)
        shift = sum(k * each.shift for k, each in zip(self.factors(node), maps, strict=True))
        return Moved(output=Affine(maps[0].scale, np.asarray(shift)))

    def factors(self, node: Site) -> list[float]:
        """What each operand is multiplied by."""
        return [1.0] * len(node.node.inputs)


@rule("Add", versions={7, 13, 14})
class Add(Combination, arithmetic.Add):
    """See the module; with a constant operand the node is a map itself."""


@rule("Sub", versions={7, 13, 14})
class Sub(Combination, arithmetic.Sub):
    """The second operand is subtracted; with a constant operand the node is a map itself."""

    def factors(self, node: Site) -> list[float]:
        return [1.0, -1.0]


@rule("Sum", versions={1, 6, 8, 13})
class Sum(Combination):
    """Any number of operands."""

    def read(self, node: Site) -> tuple[int, Affine]:
        factors = self.factors(node)
        tensors = [i for i in range(len(factors)) if not node.is_const(i)]
        require(len(tensors) == 1, Reason.NOT_AFFINE)
        constants = (k * node.const(i).exact for i, k in enumerate(factors) if i not in tensors)
        affine = Affine.of(factors[0], sum(constants, np.zeros(())))
        return tensors[0], arithmetic.broadcast(affine, node, tensors[0])


@rule("Mean", versions={1, 6, 8, 13})
class Mean(Sum):
    """The mean of any number of operands."""

    def factors(self, node: Site) -> list[float]:
        count = len(node.node.inputs)
        return [1.0 / count] * count


def tensors(node: Site, factors: list[float]) -> Iterator[tuple[tuple[int, ...], float]]:
    """The places of each tensor among the operands, and its factor in the sum; if that is 0, one by one."""
    values = [node.input(i) for i in range(len(factors))]
    for value in dict.fromkeys(values):
        same = tuple(i for i, each in enumerate(values) if each is value)
        total = sum(factors[i] for i in same)
        yield from [(same, total)] if total else (((i,), factors[i]) for i in same)


def _taken(affine: Affine, node: Site, index: int) -> Affine:
    """The map for one operand."""
    return affine if node.is_const(index) else affine.onto(node.shape(index))


def onto(affine: Affine, node: Site, index: int) -> Affine | None:
    """The map for one operand, None where it broadcasts along what the map varies along."""
    try:
        return _taken(affine, node, index)
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
def difference(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), op.Conv(x, op.weight(4, 3, 3, 3))
    return op.batch_norm(op.Sub(a, b), positive=True)


@folds
def difference_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Mul(x, op.positive(3, 1, 1))
    return op.Conv(op.Sub(op.Relu(y), op.Add(y, op.weight(3, 1, 1))), op.weight(4, 3, 3, 3))


@folds
def three_layers(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    layers = [op.Conv(x, op.weight(4, 3, 3, 3)) for _ in range(3)]
    return op.batch_norm(op.Mean(*layers))


@folds
def constants_among_them(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    a, b = op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), op.Relu(op.Conv(x, op.weight(4, 3, 3, 3)))
    return op.batch_norm(op.Sum(op.const(0.5), a, b), positive=True)


@folds
def sum_with_a_constant(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Sum(op.weight(4, 1, 1), op.Conv(x, op.weight(4, 3, 3, 3)), op.weight(1))
    return op.Mean(op.weight(4, 1, 1), y)


@folds
def one_tensor_twice(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.batch_norm(op.Sum(y, op.Relu(op.Conv(x, op.weight(4, 3, 3, 3))), y), positive=True)


@folds
def mean_in_front(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.Mean(op.Sum(x, op.weight(3, 1, 1)), y), op.weight(4, 3, 3, 3))


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


@refuses(Reason.NOT_AFFINE)
def two_tensors(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Sum(op.Conv(x, op.weight(3, 3, 1, 1)), op.Sigmoid(y), op.Sigmoid(x))


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
