"""Reshape, Flatten, Squeeze and Unsqueeze carry a map whose axes can be followed through them.

All four keep the order of the elements. Where a block of neighbouring axes has the same size before
and after, and so has what stands to its left and to its right, elements stay within the block: a map
on the block is spread over its axes and reshaped like the tensor.

    pull    the arrays go back from the output's shape to the input's
    push    the arrays go on from the input's shape to the output's

Sizes may be symbols (a dynamic batch) wherever the map does not vary. A block across which the map
varies must be known in full: equal sizes alone never prove that two axes are the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.graph.shapes import Shape
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@dataclass(frozen=True)
class Block:
    """Neighbouring axes ``before`` that become the neighbouring axes ``after``, ends excluded."""

    before: range
    after: range

    def turned(self) -> Block:
        """The block as the inverse operator sees it."""
        return Block(self.after, self.before)


class Regroup(Rule):
    """An operator that regroups axes as its ``blocks`` say."""

    def pull(self, node: Site, out: Affine) -> Moved:
        if out.rank == 0:
            return Moved(inputs={0: out})
        before, after = node.shape(0), node.out_shape()
        turned = [block.turned() for block in self.blocks(node, before, after)]
        return Moved(inputs={0: regroup(out, turned, after, before)})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        if affine.rank == 0:
            return Moved(output=affine)
        before, after = node.shape(0), node.out_shape()
        return Moved(output=regroup(affine, self.blocks(node, before, after), before, after))

    def blocks(self, node: Site, before: Shape, after: Shape) -> list[Block]:
        """How the axes before and after belong together."""
        raise NotImplementedError


@rule("Reshape", versions={5, 13, 14, 19, 21, 23, 24, 25})
class Reshape(Regroup):
    """Blocks are found from both ends, as far as sizes are known or provably equal."""

    def blocks(self, node: Site, before: Shape, after: Shape) -> list[Block]:
        return common_blocks(before, after)


@rule("Flatten", versions={1, 9, 11, 13, 21, 23, 24, 25})
class Flatten(Regroup):
    """Two blocks, split at ``axis``."""

    def blocks(self, node: Site, before: Shape, after: Shape) -> list[Block]:
        rank = len(before)
        axis = node.attr("axis", 1)
        axis += rank if axis < 0 else 0
        return [Block(range(axis), range(1)), Block(range(axis, rank), range(1, 2))]


@rule("Squeeze", versions={1, 11, 13, 21, 23, 24, 25})
class Squeeze(Regroup):
    """Axes of size 1 vanish."""

    def blocks(self, node: Site, before: Shape, after: Shape) -> list[Block]:
        axes = node.ints(1, "axes")
        if axes is None:
            axes = [axis for axis, size in enumerate(before) if size == 1]
        return [block.turned() for block in _inserted(axes, len(before))]


@rule("Unsqueeze", versions={1, 11, 13, 21, 23, 24, 25})
class Unsqueeze(Regroup):
    """Axes of size 1 appear."""

    def blocks(self, node: Site, before: Shape, after: Shape) -> list[Block]:
        return _inserted(node.ints(1, "axes") or [], len(after))


def _inserted(axes: Sequence[int], rank: int) -> list[Block]:
    """The blocks of an operator that inserts ``axes`` into a tensor which then has ``rank`` axes."""
    new = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in new]
    return [Block(range(i, i + 1), range(axis, axis + 1)) for i, axis in enumerate(kept)]


def common_blocks(before: Shape, after: Shape) -> list[Block]:
    """The smallest blocks that two shapes of the same elements provably have in common.

    Blocks are closed from the left and from the right; what remains between them is one block.
    """
    left = _blocks_from_left(before, after)
    start = (left[-1].before.stop, left[-1].after.stop) if left else (0, 0)
    rest, rest_after = before[start[0] :], after[start[1] :]
    mirrored = _blocks_from_left(rest[::-1], rest_after[::-1])
    ends = [
        Block(_mirror(block.before, len(before)), _mirror(block.after, len(after)))
        for block in reversed(mirrored)
    ]
    stop = (ends[0].before.start, ends[0].after.start) if ends else (len(before), len(after))
    middle = Block(range(start[0], stop[0]), range(start[1], stop[1]))
    return [*left, *([middle] if middle.before or middle.after else []), *ends]


def _blocks_from_left(before: Shape, after: Shape) -> list[Block]:
    blocks, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        end_i, end_j = _close(before, after, i, j)
        if (end_i, end_j) == (i, j):
            break
        blocks.append(Block(range(i, end_i), range(j, end_j)))
        i, j = end_i, end_j
    return blocks


def _close(before: Shape, after: Shape, i: int, j: int) -> tuple[int, int]:
    """Where the smallest block from here ends on either side; nowhere if that cannot be proven."""
    if before[i] is not None and before[i] == after[j]:
        return i + 1, j + 1
    end_i, end_j, size, other = i, j, 1, 1
    while end_i == i or end_j == j or size != other:
        shorter = end_i == i or (end_j > j and size < other)
        shape, at = (before, end_i) if shorter else (after, end_j)
        if at == len(shape) or not isinstance(dim := shape[at], int) or dim == 0:
            return i, j
        if shorter:
            size, end_i = size * dim, end_i + 1
        else:
            other, end_j = other * dim, end_j + 1
    return end_i, end_j


def _mirror(axes: range, rank: int) -> range:
    return range(rank - axes.stop, rank - axes.start)


def regroup(affine: Affine, blocks: list[Block], before: Shape, after: Shape) -> Affine:
    """Move a map's arrays from the axes ``before`` to the axes ``after``.

    Raises:
        Refused: ``UNKNOWN_SHAPE`` if the map varies within a block whose sizes are not all known.
    """
    varying = set(affine.sizes())
    full, result = [1] * len(before), [1] * len(after)
    for block in blocks:
        if not varying & set(block.before):
            continue
        if len(block.before) == len(block.after) == 1:
            size = affine.sizes()[block.before[0]]
            full[block.before[0]] = result[block.after[0]] = size
            continue
        sizes, new = _known(before, block.before), _known(after, block.after)
        for axis, size in zip(block.before, sizes, strict=True):
            full[axis] = size
        for axis, size in zip(block.after, new, strict=True):
            result[axis] = size

    def move(array: Array) -> Array:
        return np.broadcast_to(array, full).reshape(result)

    return affine.rearranged(move).collapsed()


def _known(shape: Shape, axes: range) -> list[int]:
    sizes = [shape[axis] for axis in axes]
    require(all(isinstance(size, int) for size in sizes), Reason.UNKNOWN_SHAPE)
    return [size for size in sizes if isinstance(size, int)]


@folds(leaves=["Add"])
def levit(op: Graph, x: Input = ("N", 16, 3)) -> Outputs:
    y = op.Reshape(op.MatMul(x, op.weight(3, 4)), op.ints(-1, 4))
    return op.Reshape(op.batch_norm(y, channels=4), op.ints(-1, 16, 4))


@folds
def dcgan(op: Graph, x: Input = ("N", 3)) -> Outputs:
    y = op.Reshape(op.Gemm(x, op.weight(3, 2 * 4 * 4)), op.ints(-1, 2, 4, 4))
    return op.batch_norm(y)


@folds
def through_flatten(op: Graph, x: Input = ("N", 2, 3, 3)) -> Outputs:
    return op.Gemm(op.Flatten(op.batch_norm(x)), op.weight(18, 4), op.weight(4))


@folds
def through_flatten_of_unknown_batch(op: Graph, x: Input = (None, 3, 2, 2)) -> Outputs:
    y = op.Flatten(op.Conv(x, op.weight(4, 3, 2, 2)))
    return op.batch_norm(y, channels=4)


@folds
def pooled(op: Graph, x: Input = ("N", 3, "H", "W")) -> Outputs:
    y = op.Squeeze(op.Conv(op.GlobalAveragePool(x), op.weight(4, 3, 1, 1)), op.ints(2, 3))
    return op.batch_norm(y, channels=4)


@folds(opset=11)
def axes_as_attribute(op: Graph, x: Input = ("N", 3)) -> Outputs:
    y = op.Unsqueeze(op.Gemm(x, op.weight(3, 4), op.weight(4)), axes=[-1])
    return op.batch_norm(y)


@folds
def squeeze_everything(op: Graph, x: Input = (2, 3, 1, 1)) -> Outputs:
    return op.batch_norm(op.Squeeze(op.Conv(x, op.weight(4, 3, 1, 1))))


@folds
def kept_axes(op: Graph, x: Input = ("N", 3, "H", "W")) -> Outputs:
    y = op.Reshape(op.Conv(x, op.weight(4, 3, 1, 1)), op.ints(0, 4, -1))
    return op.batch_norm(y, channels=4)


@folds
def channel_shuffle(op: Graph, x: Input = ("N", 3, 4, 5)) -> Outputs:
    y = op.Reshape(op.Conv(x, op.weight(6, 3, 1, 1)), op.ints(-1, 2, 3, 4, 5))
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3, 4]), op.ints(-1, 6, 4, 5))
    return op.batch_norm(y)


@folds
def channel_shuffle_in_front(op: Graph, x: Input = ("N", 6, "H", "W")) -> Outputs:
    sizes = op.Slice(op.Shape(x), op.ints(2), op.ints(4))
    y = op.Reshape(op.batch_norm(x), op.Concat(op.ints(-1, 3, 2), sizes, axis=0))
    y = op.Transpose(y, perm=[0, 2, 1, 3, 4])
    return op.Conv(op.Reshape(y, op.Concat(op.ints(-1, 6), sizes, axis=0)), op.weight(4, 6, 1, 1))


@refuses(Reason.MIXED_AXES)
def flattened_channels_first(op: Graph, x: Input = (2, 2, 2, 3)) -> Outputs:
    y = op.Reshape(op.Conv(x, op.weight(2, 2, 1, 1)), op.ints(2, 3, 4))
    return op.batch_norm(y)


@refuses(Reason.UNKNOWN_SHAPE)
def channel_meets_unknown(op: Graph, x: Input = (1, 3, "H", 2)) -> Outputs:
    y = op.Reshape(op.Conv(x, op.weight(4, 3, 1, 1)), op.ints(-1, 4, 2))
    return op.batch_norm(y)
