"""Expand and Tile repeat a tensor and carry its map.

    push    the map is repeated like the tensor
    pull    all copies of an entry have to agree on its map

How often an axis is repeated has to be known only where the map varies along it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.add import aligned


@rule("Expand", versions={8, 13})
class Expand(Rule):
    """Axes of size 1 grow, and new ones come in front; no map varies along either before."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: out.onto(node.shape(0))})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=aligned(into.only(0), node, 0))


@rule("Tile", versions={6, 13})
class Tile(Rule):
    """The whole tensor, as often as said along each axis."""

    def pull(self, node: Site, out: Affine) -> Moved:
        times = {axis: _repeats(node)[axis] for axis in out.sizes()}
        return Moved(inputs={0: out.rearranged(lambda array: _first_copies(array, times))})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        times = [_repeats(node)[axis] if axis in affine.sizes() else 1 for axis in range(affine.rank)]

        def repeat(array: Array) -> Array:
            return np.tile(array, [n if size > 1 else 1 for n, size in zip(times, array.shape, strict=True)])

        return Moved(output=affine.rearranged(repeat))


def _repeats(node: Site) -> list[int]:
    return node.ints(1, "repeats") or []


def _first_copies(array: Array, times: Mapping[int, int]) -> Array:
    for axis, count in times.items():
        copies = np.split(array, count, axis=axis) if array.shape[axis] > 1 else [array]
        require(all(np.array_equal(copy, copies[0]) for copy in copies), Reason.MIXED_AXES)
        array = copies[0]
    return array


@folds
def expand_behind(op: Graph, x: Input = ("N", 3, 1, 1)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    return op.batch_norm(op.Expand(y, op.ints(4, 6, 5)))


@folds
def expand_in_front(op: Graph, x: Input = (3, 1, 5)) -> Outputs:
    y = op.Expand(op.Mul(x, op.weight(3, 1, 1)), op.ints(2, 1, 6, 5))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def expand_to_the_shape_of_another(
    op: Graph, x: Input = ("N", 3, 1, 1), y: Input = ("N", 3, "H", "W")
) -> Outputs:
    z = op.Expand(op.Conv(x, op.weight(3, 3, 1, 1)), op.Shape(y))
    return op.batch_norm(z, channels=3)


@folds
def tile_behind(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Tile(op.Conv(x, op.weight(4, 3, 3, 3)), op.ints(2, 1, 1, 3))
    return op.batch_norm(y)


@folds
def tile_in_front(op: Graph, x: Input = ("N", 2, 6, 6)) -> Outputs:
    y = op.Tile(op.batch_norm(x), op.ints(1, 2, 1, 2))
    return op.Conv(y, op.weight(3, 4, 3, 3))


@folds
def times_at_run_time(op: Graph, x: Input = (1, 3, 6, 6), y: Input = (4,)) -> Outputs:
    times = op.Cast(op.Exp(op.Sigmoid(y)), to=7)
    return op.Mul(op.Tile(op.Conv(x, op.weight(4, 3, 3, 3)), times), op.const(0.5))


@refuses(Reason.MIXED_AXES)
def copies_differ(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Tile(op.Conv(x, op.weight(2, 3, 3, 3)), op.ints(1, 2, 1, 1))
    return op.batch_norm(y)


@refuses(Reason.MIXED_AXES)
def expanded_axis(op: Graph, x: Input = ("N", 3, 6, 6)) -> Outputs:
    y = op.Expand(op.Conv(x, op.weight(1, 3, 3, 3)), op.ints(1, 4, 1, 1))
    return op.batch_norm(y)
