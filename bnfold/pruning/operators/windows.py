"""Pools, pads, means over positions and interpolation: a channel that holds one value everywhere still does.

A pool that counts its zero padding averages zeros in, so there the value has to be 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.core.reasons import Reason, require
from bnfold.core.site import Site
from bnfold.pruning.operator import Channels, Operator, alone, only, operator
from bnfold.rules.window.average_pool import _counts_padding
from bnfold.rules.window.pad import filling, padded_axes
from bnfold.rules.window.reduce import reduced_axes


@operator("GlobalAveragePool", "GlobalMaxPool", "MaxPool")
class Pool(Operator):
    """The channels are those of the input, on axis 1."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        require(only(given).axis == 1, Reason.MIXED_AXES)
        alone(site)
        return given[0]


@operator("AveragePool")
class AveragePool(Pool):
    """Padding may count as zeros."""

    why = Reason.PADDED_SHIFT

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner = super().channels(site, given)
        if not _counts_padding(site):
            return inner
        return Channels(1, np.where(inner.known == 0, 0.0, np.nan))


@operator("Pad")
class Pad(Operator):
    """More positions, along other axes; what fills them has to be the channel's own value."""

    why = Reason.PADDED_SHIFT

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner, padded = only(given), padded_axes(site)
        require(inner.axis not in padded, Reason.MIXED_AXES)
        if not padded or site.attr("mode", "constant") != "constant":
            return inner
        return Channels(inner.axis, np.where(inner.known == filling(site), inner.known, np.nan))


@operator("ReduceMean")
class ReduceMean(Operator):
    """The mean over axes other than that of the channels."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner, axes = only(given), reduced_axes(site)
        require(inner.axis not in axes, Reason.MIXED_AXES)
        gone = 0 if site.attr("keepdims", 1) else sum(axis < inner.axis for axis in axes)
        return Channels(inner.axis - gone, inner.known)


@operator("Resize", "Upsample")
class Resize(Operator):
    """Interpolation by constant factors, of positions alone; its weights sum to 1."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner, scales = only(given), 1 if site.opset < 11 else 2
        require(not site.has(3) and site.is_const(scales), Reason.UNKNOWN_SHAPE)
        rank = len(site.shape(0))
        axes = [axis % rank for axis in site.attr("axes", list(range(rank)))]
        factors = dict(zip(axes, site.const(scales).exact, strict=True))
        require(factors.get(inner.axis, 1.0) == 1, Reason.MIXED_AXES)
        mode = site.attr("coordinate_transformation_mode", "half_pixel")
        require(mode != "tf_crop_and_resize", Reason.PADDED_SHIFT)
        return inner
