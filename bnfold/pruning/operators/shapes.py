"""Transpose, Flatten, Reshape, Squeeze and Unsqueeze: where channels go when axes move.

Behind a Flatten or a Reshape to rows, every channel is as many columns as it had positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.core.graph.constants import Const
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import Site
from bnfold.pruning.operator import Channels, Cut, Operator, Origin, Removal, only, operator


@operator("Transpose")
class Transpose(Operator):
    """The channels' axis moves."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner = only(given)
        order = site.attr("perm", list(range(len(site.shape(0))))[::-1])
        return Channels(order.index(inner.axis), inner.known)


@operator("Flatten", "Reshape")
class Rows(Operator):
    """Axis 1 with all that follows becomes axis 1 alone, or axis 1 stays what it is."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner = only(given)
        require(inner.axis == 1, Reason.MIXED_AXES)
        return Channels(1, np.repeat(inner.known, self._columns(site)))

    def origin(self, site: Site, index: int, given: Channels, output: Channels) -> Origin | None:
        return np.repeat(np.arange(len(given.known)), self._columns(site))

    def cut(self, site: Site, removal: Removal) -> Cut:
        if site.node.op_type == "Flatten":
            return Cut()
        target = site.ints(1, "shape") or []
        if target[1] in (-1, 0):
            return Cut()
        target[1] = int(removal.output.sum())
        return Cut({1: Const((len(target),), ir.DataType.INT64, np.array(target, np.int64))})

    def _columns(self, site: Site) -> int:
        """How many columns of the output each channel becomes."""
        before, after = site.shape(0), site.out_shape()
        sizes = [*before[1:], *after[1:]]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or len(after) < 2:
            raise Refused(Reason.UNKNOWN_SHAPE)
        whole, rest = (prod(int(str(size)) for size in shape[1:]) for shape in (before, after))
        require(whole == rest and (len(after) == 2 or after[1] == before[1]), Reason.MIXED_AXES)
        return whole // int(str(before[1])) if len(after) == 2 else 1


@operator("Squeeze", "Unsqueeze")
class Ones(Operator):
    """Axes of size 1 vanish or appear."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner = only(given)
        before, after = site.shape(0), site.out_shape()
        axes = site.ints(1, "axes")
        if axes is None:
            raise Refused(Reason.UNKNOWN_SHAPE)
        if site.node.op_type == "Squeeze":
            gone = sorted(axis % len(before) for axis in axes)
            require(inner.axis not in gone, Reason.MIXED_AXES)
            return Channels(inner.axis - sum(axis < inner.axis for axis in gone), inner.known)
        new = {axis % len(after) for axis in axes}
        kept = [axis for axis in range(len(after)) if axis not in new]
        return Channels(kept[inner.axis], inner.known)
