"""Conv, ConvTranspose, Gemm and MatMul: their own channels can go, and known ones of their input.

    W∗x + b  =  W′∗x′ + (b + Σ W·c)        x′ without the channels that hold c everywhere

A convolution that pads inserts zeros beside them, so there c has to be 0; a transposed one covers
positions by different taps, so there too. An output channel is known if every weight it gives to a
channel that varies is zero. In a depthwise convolution channels are linked, one input to each filter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.core.affine import Array
from bnfold.core.graph.constants import Const
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import BROADCASTING, Site
from bnfold.core.writing.rounding import blocks, stored_blocks
from bnfold.pruning.operator import (
    Channels,
    Cut,
    Mask,
    Operator,
    Origin,
    Removal,
    operator,
    selected,
    shifted,
    size_along,
)
from bnfold.rules.weights.conv import is_padded


class Layer(Operator):
    """A layer ``W·x + b`` with a constant weight, of whatever kind.

    The methods below say for each kind where things stand; W is seen as outputs × inputs × taps.
    """

    def matrix(self, site: Site) -> Array:
        """W as outputs × inputs × taps, with every factor the node multiplies it by."""
        raise NotImplementedError

    def axes(self, site: Site) -> tuple[int, int, int]:
        """Along which axis the channels run in the tensors; and in the weight, outputs and inputs."""
        raise NotImplementedError

    def carries(self, site: Site, known: Array) -> tuple[Mask, Reason]:
        """Which known values can move into the bias."""
        return ~np.isnan(known), Reason.NOT_CONSTANT

    def bias(self, site: Site) -> Array:
        """The bias, a value for each output."""
        outputs = site.const(1).shape[self.axes(site)[1]]
        return site.const(2).vector(outputs) if site.has(2) else np.zeros(outputs)

    def used(self, site: Site) -> Mask:
        """Which input each output gives any weight to; outputs × inputs."""
        const, (_, outputs, inputs) = site.const(1), self.axes(site)
        taps = tuple(axis for axis in range(const.rank) if axis not in (outputs, inputs))
        mask = np.zeros([size for axis, size in enumerate(const.shape) if axis not in taps], bool)
        for rows, weight in blocks(const):
            mask[rows] = np.any(weight != 0, axis=taps)
        return mask if outputs < inputs else mask.T

    def has_unused(self, site: Site) -> bool:
        """Whether any input gets no weight at all, or any output has none."""
        weight = site.const(1)
        scaled = not weight.edit.shifts and bool(weight.edit.scale.all())
        if scaled and all(stored.all() for _, stored in stored_blocks(weight)):
            return False
        used = self.used(site)
        return not (used.any(axis=0).all() and used.any(axis=1).all())

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        used, axis = self.used(site), self.axes(site)[0] % len(site.shape(0))
        fixed, sums = np.zeros(used.shape[1], bool), np.zeros(len(used))
        if 0 in given and given[0].axis == axis and len(given[0].known) == used.shape[1]:
            fixed, _ = self.carries(site, given[0].known)
        if fixed.any():
            sums = self.matrix(site).sum(axis=2)[:, fixed] @ given[0].known[fixed]
        varies = np.any(used[:, ~fixed], axis=1)
        return Channels(axis, np.where(varies, np.nan, self.bias(site) + sums))

    def origin(self, site: Site, index: int, given: Channels, output: Channels) -> Origin | None:
        require(given.axis == self.axes(site)[0] % len(site.shape(0)), Reason.MIXED_AXES)
        return None

    def absorbs(self, site: Site, index: int, given: Channels) -> tuple[Mask, Reason]:
        carried, reason = self.carries(site, given.known)
        return carried | ~np.any(self.used(site), axis=0), reason

    def cut(self, site: Site, removal: Removal) -> Cut:
        _, outputs, inputs = self.axes(site)
        weight, edits = selected(site.const(1), outputs, removal.output), {}
        bias, total = self.cut_bias(site, removal.output), None
        if 0 in removal.inputs:
            keep = removal.inputs[0]
            gone = np.nan_to_num(removal.known[0][~keep])
            total = (self.matrix(site).sum(axis=2)[:, ~keep] @ gone)[removal.output]
            weight = selected(weight, inputs, keep)
        edits[1] = weight
        if bias is not None and site.has(2):
            edits[2] = bias
        if total is None or not np.any(total):
            return Cut(edits)
        return self.with_shift(site, edits, total)

    def cut_bias(self, site: Site, keep: Mask) -> Const | None:
        """The bias without the outputs that go; None if there is none."""
        return selected(site.const(2), site.const(2).rank - 1, keep) if site.has(2) else None

    def with_shift(self, site: Site, edits: dict[int, Const], total: Array) -> Cut:
        """The cut with what the removed inputs contributed."""
        edits[2] = shifted(edits.get(2, Const.absent(edits[1].dtype)), total)
        return Cut(edits)


@operator("Conv")
class Conv(Layer):
    """Groups other than depthwise are left alone: each would have to lose as many channels."""

    why = Reason.PADDED_SHIFT

    def axes(self, site: Site) -> tuple[int, int, int]:
        return 1, 0, 1

    def used(self, site: Site) -> Mask:
        require(site.attr("group", 1) == 1 or _is_depthwise(site), Reason.GROUPED)
        return super().used(site)

    def matrix(self, site: Site) -> Array:
        weight = site.const(1)
        return weight.exact.reshape(*weight.shape[:2], -1)

    def carries(self, site: Site, known: Array) -> tuple[Mask, Reason]:
        if is_padded(site, site.const(1).shape[2:]):
            return known == 0.0, Reason.PADDED_SHIFT
        return super().carries(site, known)

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        if not _is_depthwise(site):
            return super().channels(site, given)
        bias = self.bias(site)
        known = np.where(self.used(site)[:, 0], np.nan, bias)
        if 0 in given:
            require(given[0].axis == 1, Reason.MIXED_AXES)
            carried, _ = self.carries(site, given[0].known)
            taken = _filters(site, len(bias))
            sums = self.matrix(site)[:, 0].sum(axis=1) if carried.any() else np.zeros(len(bias))
            fixed = carried[taken]
            known[fixed] = (bias + sums * given[0].known[taken])[fixed]
        return Channels(1, known)

    def origin(self, site: Site, index: int, given: Channels, output: Channels) -> Origin | None:
        if not _is_depthwise(site):
            return super().origin(site, index, given, output)
        require(given.axis == 1, Reason.MIXED_AXES)
        return _filters(site, len(output.known))

    def cut(self, site: Site, removal: Removal) -> Cut:
        if not _is_depthwise(site):
            return super().cut(site, removal)
        edits = {1: selected(site.const(1), 0, removal.output)}
        bias, group = self.cut_bias(site, removal.output), int(removal.inputs[0].sum())
        return Cut(edits if bias is None else {**edits, 2: bias}, group=group)


@operator("ConvTranspose")
class ConvTranspose(Layer):
    """W is inputs × outputs × taps."""

    def axes(self, site: Site) -> tuple[int, int, int]:
        require(site.attr("group", 1) == 1, Reason.GROUPED)
        return 1, 1, 0

    def matrix(self, site: Site) -> Array:
        weight = site.const(1)
        return np.swapaxes(weight.exact.reshape(*weight.shape[:2], -1), 0, 1)

    def carries(self, site: Site, known: Array) -> tuple[Mask, Reason]:
        return known == 0.0, Reason.SHIFT_VARIES


@operator("Gemm")
class Gemm(Layer):
    """The weight is B; channels are columns."""

    def axes(self, site: Site) -> tuple[int, int, int]:
        require(not site.attr("transA", 0), Reason.OTHER_OPERAND)
        turned = site.attr("transB", 0)
        return -1, 1 - turned, turned

    def matrix(self, site: Site) -> Array:
        outputs = self.axes(site)[1]
        return site.attr("alpha", 1.0) * np.moveaxis(site.const(1).exact, outputs, 0)[:, :, None]

    def bias(self, site: Site) -> Array:
        if site.has(2):
            require(all(size == 1 for size in site.const(2).shape[:-1]), Reason.MIXED_AXES)
        return site.attr("beta", 1.0) * super().bias(site)

    def with_shift(self, site: Site, edits: dict[int, Const], total: Array) -> Cut:
        beta = site.attr("beta", 1.0)
        require(beta != 0, Reason.COSTS_A_NODE)
        return super().with_shift(site, edits, total / beta)


@operator("MatMul")
class MatMul(Layer):
    """The weight is on the right; there is no bias, so a shift becomes an Add."""

    def axes(self, site: Site) -> tuple[int, int, int]:
        require(site.const(1).rank == 2 and len(site.shape(0)) >= 2, Reason.MIXED_AXES)
        return -1, 1, 0

    def matrix(self, site: Site) -> Array:
        return site.const(1).exact.T[:, :, None]

    def with_shift(self, site: Site, edits: dict[int, Const], total: Array) -> Cut:
        require(site.opset >= BROADCASTING, Reason.COSTS_A_NODE)
        return Cut(edits, total)


def _is_depthwise(site: Site) -> bool:
    groups, weight = site.attr("group", 1), site.const(1)
    return groups > 1 and weight.shape[1] == 1 and size_along(site, site.input(0), 1) == groups


def _filters(site: Site, filters: int) -> Origin:
    """The input channel that each filter of a depthwise convolution reads."""
    groups = site.attr("group", 1)
    if filters % groups:
        raise Refused(Reason.GROUPED)
    return np.repeat(np.arange(groups), filters // groups)
