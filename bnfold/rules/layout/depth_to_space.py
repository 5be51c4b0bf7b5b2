"""DepthToSpace and SpaceToDepth carry a map per channel: a block of b×b positions is b² channels.

    DepthToSpace    pull: every channel's map goes to its b² sources      push: they have to agree
    SpaceToDepth    push: every channel's map goes to its b² targets      pull: they have to agree

The b² come in front of the channel in the order of the axes (DCR, and SpaceToDepth before version 28),
or behind it (CRD).
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("DepthToSpace", versions={1, 11, 13, 28})
class DepthToSpace(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _to_depth(node, out)})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=_to_space(node, into.only(0)))


@rule("SpaceToDepth", versions={1, 13, 28})
class SpaceToDepth(Rule):
    """See the module."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _to_space(node, out)})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=_to_depth(node, into.only(0)))


def _to_depth(node: Site, affine: Affine) -> Affine:
    """The map of the deep tensor that is ``affine`` on the wide one."""
    require(set(affine.sizes()) <= {0, 1}, Reason.MIXED_AXES)
    block = node.attr("blocksize", 1) ** 2

    def deepen(array: Array) -> Array:
        if array.shape[1] == 1:
            return array
        return np.repeat(array, block, axis=1) if _is_crd(node) else np.tile(array, (1, block, 1, 1))

    return affine.rearranged(deepen)


def _to_space(node: Site, affine: Affine) -> Affine:
    """The map of the wide tensor that is ``affine`` on the deep one, if the b² channels agree."""
    require(set(affine.sizes()) <= {0, 1}, Reason.MIXED_AXES)
    block = node.attr("blocksize", 1) ** 2

    def widen(array: Array) -> Array:
        if array.shape[1] == 1:
            return array
        before, behind = array.shape[0], array.shape[1] // block
        shape = (before, behind, block) if _is_crd(node) else (before, block, behind)
        axis = 2 if _is_crd(node) else 1
        parts = array.reshape(shape)
        first = parts.take([0], axis=axis)
        require(bool(np.all(parts == first)), Reason.MIXED_AXES)
        return first.reshape(before, behind, 1, 1)

    return affine.rearranged(widen)


def _is_crd(node: Site) -> bool:
    return node.attr("mode", "DCR") == "CRD"


@folds
def pixel_shuffle(op: Graph, x: Input = (1, 2, 5, 5)) -> Outputs:
    y = op.DepthToSpace(op.Conv(x, op.weight(12, 2, 3, 3)), blocksize=2, mode="CRD")
    return op.batch_norm(y)


@folds
def depth_first(op: Graph, x: Input = (1, 2, 5, 5)) -> Outputs:
    return op.batch_norm(op.DepthToSpace(op.Conv(x, op.weight(12, 2, 3, 3)), blocksize=2))


@folds
def space_to_depth(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.SpaceToDepth(op.batch_norm(x), blocksize=2), op.weight(4, 12, 2, 2))


@folds(opset=28)
def space_to_depth_channels_first(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.SpaceToDepth(op.batch_norm(x), blocksize=2, mode="CRD"), op.weight(4, 12, 2, 2))


@refuses(Reason.MIXED_AXES)
def sources_differ(op: Graph, x: Input = (1, 8, 4, 4)) -> Outputs:
    y = op.DepthToSpace(op.Mul(x, op.weight(8, 1, 1)), blocksize=2)
    return op.Conv(y, op.weight(3, 2, 2, 2))


@refuses(Reason.MIXED_AXES)
def along_the_blocks(op: Graph, x: Input = (1, 2, 8, 8)) -> Outputs:
    y = op.SpaceToDepth(op.Conv(x, op.weight(2, 2, 1, 1)), blocksize=2)
    return op.Mul(y, op.weight(4))


@refuses(Reason.MIXED_AXES)
def along_the_positions(op: Graph, x: Input = (1, 2, 4, 4)) -> Outputs:
    y = op.DepthToSpace(op.Conv(x, op.weight(8, 2, 1, 1)), blocksize=2)
    return op.Mul(y, op.weight(8))
