"""A normalization takes a map from behind into its own γ and β, and a shift in front of it has no effect.

    pull    s·(γ·x̂ + β) + t   =  (s·γ)·x̂ + (s·β + t)
    push    (x + t)^           =  x̂                        t the same for all that is normalized together;
                                                           the mean that a LayerNormalization returns takes t

γ and β belong to the axes that are normalized (LayerNormalization, RMSNormalization), to channels
(InstanceNormalization, GroupNormalization from version 21 on) or to groups of channels (version 18). x̂
of RMSNormalization keeps the mean, which a shift moves, and has no β: a shift stays behind it as an Add.
A scale in front does not cancel exactly, as epsilon is not scaled with it.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


class Normalization(Rule):
    """γ at input 1, β at input 2."""

    def pull(self, node: Site, out: Affine) -> Moved:
        inner = self.parameters(node, out)
        return Moved({1: Affine.of(inner.scale), 2: inner})

    def push(self, node: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        require(not affine.scales, Reason.EPSILON)
        require(not set(affine.sizes()) & self.normalized(node, affine), Reason.MIXED_AXES)
        # The mean, which LayerNormalization returns on demand, is the mean of what is normalized.
        return Moved(outputs={1: affine} if len(node.node.outputs) > 1 else {})

    def parameters(self, node: Site, out: Affine) -> Affine:
        """The map as it acts on γ and β."""
        raise NotImplementedError

    def normalized(self, node: Site, affine: Affine) -> set[int]:
        """The axes along which a shift in front must not vary."""
        raise NotImplementedError


@rule("InstanceNormalization", versions={1, 6, 22})
class InstanceNorm(Normalization):
    """Every channel of an instance by itself."""

    def parameters(self, node: Site, out: Affine) -> Affine:
        return Affine(*out.along(1, node.const(1).shape[0]))

    def normalized(self, node: Site, affine: Affine) -> set[int]:
        return set(range(2, affine.rank))


@rule("GroupNormalization", versions={18, 21})
class GroupNorm(Normalization):
    """Groups of channels of an instance; up to version 18 γ and β are one per group."""

    def parameters(self, node: Site, out: Affine) -> Affine:
        count, groups = node.const(1).shape[0], node.attr("num_groups", 1)
        if node.version >= 21:
            return Affine(*out.along(1, count))
        channels = out.sizes().get(1, groups)
        grouped = [vector.reshape(groups, -1) for vector in out.along(1, channels)]
        require(all(np.all(each == each[:, :1]) for each in grouped), Reason.MIXED_AXES)
        return Affine(grouped[0][:, 0], grouped[1][:, 0])

    def normalized(self, node: Site, affine: Affine) -> set[int]:
        return set(range(1, affine.rank))


@rule("LayerNormalization", versions={17})
class LayerNorm(Normalization):
    """Everything from one axis on."""

    def parameters(self, node: Site, out: Affine) -> Affine:
        return _over_last_axes(node, out)

    def normalized(self, node: Site, affine: Affine) -> set[int]:
        return _last_axes(node)


@rule("RMSNormalization", versions={23})
class RMSNorm(Rule):
    """Everything from one axis on, without subtracting its mean."""

    def pull(self, node: Site, out: Affine) -> Moved:
        scale = _over_last_axes(node, out.linear)
        return Moved({1: scale}, output=out.translation, may_stay=True)


def _last_axes(node: Site) -> set[int]:
    rank = len(node.out_shape())
    return set(range(node.attr("axis", -1) % rank, rank))


def _over_last_axes(node: Site, out: Affine) -> Affine:
    inner = _last_axes(node)
    require(set(out.sizes()) <= inner, Reason.MIXED_AXES)
    return out.rearranged(lambda array: array.reshape(array.shape[array.ndim - len(inner) :]))


@folds
def instance_norm(op: Graph, x: Input = (2, 3, 5, 6)) -> Outputs:
    return op.batch_norm(op.InstanceNormalization(x, op.weight(3), op.weight(3)))


@folds
def shift_in_front_of_instance_norm(op: Graph, x: Input = (2, 3, 5, 6)) -> Outputs:
    return op.InstanceNormalization(op.Add(x, op.weight(3, 1, 1)), op.weight(3), op.weight(3))


@folds
def mean_of_a_shift(op: Graph, x: Input = (2, 5, 4)) -> Outputs:
    y, mean = op.LayerNormalization(op.Add(x, op.const(0.5)), op.weight(4), op.weight(4), outputs=2)
    return y, op.Conv(mean, op.weight(3, 5, 1))


@folds(opset=21, ir_version=10)
def group_norm(op: Graph, x: Input = (2, 4, 5, 6)) -> Outputs:
    y = op.GroupNormalization(op.Add(x, op.const(0.5)), op.weight(4), op.weight(4), num_groups=2)
    return op.Reshape(op.batch_norm(y, channels=4), op.ints(2, 4, 5, 6))


@folds(opset=18)
def parameters_per_group(op: Graph, x: Input = (2, 4, 5, 6)) -> Outputs:
    y = op.GroupNormalization(x, op.weight(2), op.weight(2), num_groups=2)
    y = op.Mul(y, op.const([[[2.0]], [[2.0]], [[3.0]], [[3.0]]]))
    return op.Reshape(y, op.ints(2, 4, 5, 6))


@folds
def layer_norm(op: Graph, x: Input = ("N", "T", 4)) -> Outputs:
    y = op.LayerNormalization(op.Add(x, op.weight(1, 1)), op.weight(4), op.weight(4))
    return op.Add(op.Mul(y, op.weight(4)), op.weight(4))


@folds
def layer_norm_without_bias(op: Graph, x: Input = ("N", 3, 4)) -> Outputs:
    y = op.LayerNormalization(x, op.weight(3, 4), axis=1)
    return op.Add(op.Mul(y, op.weight(3, 1)), op.weight(4))


@folds(opset=23, ir_version=10, leaves=["Add"])
def rms_norm(op: Graph, x: Input = ("N", 5, 4)) -> Outputs:
    return op.Add(op.Mul(op.RMSNormalization(x, op.weight(4)), op.weight(4)), op.weight(4))


@refuses(Reason.EPSILON)
def scale_in_front(op: Graph, x: Input = (2, 3, 5, 6)) -> Outputs:
    y = op.Mul(x, op.const(0.01))
    return op.InstanceNormalization(y, op.weight(3), op.weight(3), epsilon=0.1)


@refuses(Reason.MIXED_AXES)
def shift_within_what_is_normalized(op: Graph, x: Input = (2, 3, 4)) -> Outputs:
    return op.LayerNormalization(op.Add(x, op.weight(4)), op.weight(4))


@refuses(Reason.MIXED_AXES, opset=18)
def channels_within_a_group(op: Graph, x: Input = (2, 4, 5, 6)) -> Outputs:
    return op.batch_norm(op.GroupNormalization(x, op.weight(2), op.weight(2), num_groups=2), channels=4)


@refuses(Reason.MIXED_AXES)
def along_another_axis(op: Graph, x: Input = (2, 3, 4)) -> Outputs:
    return op.batch_norm(op.LayerNormalization(x, op.weight(4)))


@refuses(Reason.NOT_CONSTANT)
def computed_scale(op: Graph, x: Input = (2, 3, 4), gamma: Input = (4,)) -> Outputs:
    return op.Mul(op.LayerNormalization(x, gamma), op.weight(4))
