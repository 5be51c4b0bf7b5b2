"""Einsum absorbs a scale where its constant operand has the indices, and hands the shift on like MatMul.

    pull    s·Σ x·W + t       =  Σ x·(s·W) + t             s varies along indices of W
    push    Σ (s·x + t)·W     =  Σ x·(s·W) + Σ t·W         s and t vary along indices of W

An index is summed or kept, shared or not, alike; an ellipsis stands for unnamed ones. A shift passes no
third operand. An equation that names an index twice in one operand takes a diagonal and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Einsum", versions={12, 28})
class Einsum(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        equation, index = _equation(node), _weight(node)
        scale = _moved(node, index, out.linear, equation.output, equation.terms[index])
        return Moved({index: scale}, output=out.translation, may_stay=True)

    def push(self, node: Site, into: Arriving) -> Moved:
        equation, index = _equation(node), _weight(node)
        others = [place for place in range(len(equation.terms)) if place != index]
        data = next((place for place in others if place in into), others[0])
        affine = into.only(data)
        inner = _moved(node, index, affine, equation.terms[data], equation.terms[index])
        if not affine.shifts:
            return Moved({index: inner})
        require(len(equation.terms) == 2, Reason.NEEDS_NO_SHIFT)
        total = _total(node, index, affine, equation)
        return Moved({index: inner.linear}, output=Affine.of(1.0, total), may_stay=True)


@dataclass(frozen=True)
class _Equation:
    """The indices of each operand and of the result, one letter for each axis."""

    terms: list[str]
    output: str


def _equation(node: Site) -> _Equation:
    text = node.attr("equation", "").replace(" ", "")
    left, arrow, output = text.partition("->")
    terms, count = left.split(","), 0
    for place, term in enumerate(terms):
        if "..." in term:
            count = max(count, len(node.shape(place)) - len(term.replace("...", "")))
    unnamed = [letter for letter in ascii_letters if letter not in text][:count]
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    terms = [term.replace("...", "".join(unnamed)) for term in terms]
    output = output.replace("...", "".join(unnamed))
    fits = all(len(term) == len(node.shape(place)) for place, term in enumerate(terms))
    named_once = all(len(set(term)) == len(term) for term in (*terms, output))
    require(fits and named_once and set(output) <= set("".join(terms)), Reason.EQUATION)
    return _Equation(terms, output)


def _weight(node: Site) -> int:
    """Which operand is the weight: the constant one."""
    constant = [index for index in range(len(node.node.inputs)) if node.is_const(index)]
    if not constant:
        raise Refused(Reason.NOT_CONSTANT)
    return constant[0]


def _moved(node: Site, index: int, affine: Affine, indices: str, target: str) -> Affine:
    """A map of a tensor with these ``indices`` as one of the weight, whose indices are ``target``."""
    shape = dict(zip(target, node.const(index).shape, strict=True))
    fits = all(shape.get(indices[axis]) == size for axis, size in affine.sizes().items())
    require(fits, Reason.MIXED_AXES)
    kept = [axis for axis, letter in enumerate(indices) if letter in target]
    order = np.argsort([target.index(indices[axis]) for axis in kept])
    missing = tuple(place for place, letter in enumerate(target) if letter not in indices)

    def move(array: Array) -> Array:
        turned = array.reshape([array.shape[axis] for axis in kept]).transpose(order)
        return np.expand_dims(turned, missing)

    return affine.rearranged(move)


def _total(node: Site, index: int, affine: Affine, equation: _Equation) -> Array:
    """What the shift of the data sums to: constant along the indices that the data alone has and keeps."""
    data = 1 - index
    weight, term = node.const(index), equation.terms[data]
    sizes = dict(zip(equation.terms[index], weight.shape, strict=True))
    shape = []
    for letter, size in zip(term, node.shape(data), strict=True):
        alone = letter not in sizes
        if alone and letter in equation.output:
            shape.append(1)
            continue
        known = sizes[letter] if not alone and sizes[letter] > 1 else size
        require(isinstance(known, int), Reason.UNKNOWN_SHAPE)
        shape.append(int(known or 0))
    shift = np.broadcast_to(affine.rearranged(lambda array: array).shift, shape)
    return np.asarray(np.einsum(f"{term},{equation.terms[index]}->{equation.output}", shift, weight.exact))


@folds(leaves=["Add"])
def projection(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Einsum(x, op.weight(4, 6), equation="b t i, i j -> b t j")
    return op.Add(op.Mul(y, op.weight(6)), op.weight(6))


@folds(leaves=["Add"])
def in_front(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(4)), op.weight(4))
    return op.Add(op.Einsum(op.weight(6, 4), y, equation="ji,bti->btj"), op.weight(6))


@folds
def heads(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    y = op.Einsum(op.Mul(x, op.weight(4)), op.weight(2, 3, 4), equation="bti,hdi->bhtd")
    return op.Mul(y, op.weight(2, 1, 3))


@folds(leaves=["Add"])
def over_positions(op: Graph, x: Input = (2, 3, 5)) -> Outputs:
    y = op.Add(x, op.weight(3, 1))
    return op.Add(op.Einsum(y, op.weight(3, 4), equation="bct,cd->bd"), op.weight(4))


@folds
def batched(op: Graph, x: Input = (3, 2, 4)) -> Outputs:
    y = op.Einsum(op.Mul(x, op.weight(3, 1, 4)), op.weight(3, 4, 5), equation="gni,gij->ngj")
    return op.Mul(y, op.weight(3, 5))


@folds
def implicit_output(op: Graph, x: Input = (2, 4)) -> Outputs:
    return op.Mul(op.Einsum(x, op.weight(4, 5), equation="zi,ij"), op.weight(5, 1))


@folds
def unnamed_axes(op: Graph, x: Input = ("N", 2, 5, 4)) -> Outputs:
    return op.Mul(op.Einsum(x, op.weight(4, 6), equation="...i,ij->...j"), op.weight(6))


@folds
def three_operands(op: Graph, x: Input = (2, 3), y: Input = (2, 5)) -> Outputs:
    return op.Mul(op.Einsum(x, op.weight(3, 5, 4), y, equation="bi,ijk,bj->bk"), op.weight(4))


@refuses(Reason.MIXED_AXES)
def along_the_rows(op: Graph, x: Input = (2, 5, 4)) -> Outputs:
    return op.Mul(op.Einsum(x, op.weight(4, 5), equation="bti,ij->btj"), op.weight(5, 1))


@refuses(Reason.NEEDS_NO_SHIFT)
def shift_of_one_of_three(op: Graph, x: Input = (2, 3), y: Input = (2, 5)) -> Outputs:
    return op.Einsum(op.batch_norm(x), op.weight(3, 5, 4), y, equation="bi,ijk,bj->bk")


@refuses(Reason.UNKNOWN_SHAPE)
def unknown_count(op: Graph, x: Input = (2, 3, "T")) -> Outputs:
    y = op.Add(x, op.weight(3, 1))
    return op.Add(op.Einsum(y, op.weight(3, 4), equation="bct,cd->bd"), op.weight(4))


@refuses(Reason.EQUATION)
def diagonal(op: Graph, x: Input = (3, 3)) -> Outputs:
    return op.Einsum(op.Mul(x, op.weight(3)), op.weight(3, 3), equation="ii,ij->j")


@refuses(Reason.NOT_CONSTANT)
def two_tensors(op: Graph, x: Input = (2, 5, 4), y: Input = (2, 6, 4)) -> Outputs:
    return op.Einsum(op.Mul(x, op.weight(4)), y, equation="bti,bsi->bts")
