"""Concat, Add, Sub, Mul and Sum: where tensors meet, their channels go together.

A sum is known where all its operands are, a product also where one of them is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np

from bnfold.core.affine import Array
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import BROADCASTING, Site
from bnfold.pruning.operator import Channels, Operator, Origin, operator, size_along


class Meeting(Operator):
    """Tensors of as many channels, element by element."""

    def data(self, site: Site) -> list[int]:
        return list(range(len(site.node.inputs)))

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        require(site.opset >= BROADCASTING, Reason.UNKNOWN_VERSION)
        axis, size = self._axis(site, given)
        for index in self.data(site):
            own = axis - (len(site.out_shape()) - len(site.shape(index)))
            require(own >= 0 and site.shape(index)[own] == size, Reason.MIXED_AXES)
            require(index not in given or given[index].axis == own, Reason.MIXED_AXES)
        parts = [given[i].known if i in given else np.full(size, np.nan) for i in self.data(site)]
        return Channels(axis, reduce(self.join, parts))

    def join(self, a: Array, b: Array) -> Array:
        """What is known of the result."""
        return a + b

    def _axis(self, site: Site, given: Mapping[int, Channels]) -> tuple[int, int]:
        if not given:
            raise Refused(Reason.UNKNOWN_SHAPE)
        index, one = next(iter(given.items()))
        return one.axis + len(site.out_shape()) - len(site.shape(index)), len(one.known)


@operator("Add", "Sum")
class Add(Meeting):
    """a + b."""


@operator("Sub")
class Sub(Meeting):
    """a − b."""

    def join(self, a: Array, b: Array) -> Array:
        return a - b


@operator("Mul")
class Mul(Meeting):
    """a · b."""

    def join(self, a: Array, b: Array) -> Array:
        return np.where((a == 0) | (b == 0), 0.0, a * b)


@operator("Concat")
class Concat(Meeting):
    """Along the channels they stand side by side; along another axis they are the same ones."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        axis, _ = self._axis(site, given)
        require(all(each.axis == axis for each in given.values()), Reason.MIXED_AXES)
        parts = [self._part(site, given, i, axis) for i in self.data(site)]
        if axis == site.attr("axis", 1) % len(site.out_shape()):
            return Channels(axis, np.concatenate(parts))
        require(len({len(part) for part in parts}) == 1, Reason.MIXED_AXES)
        return Channels(axis, reduce(_agreed, parts))

    def _part(self, site: Site, given: Mapping[int, Channels], index: int, axis: int) -> Array:
        """What is known of one operand."""
        size = size_along(site, site.input(index), axis)
        return given[index].known if index in given else np.full(size, np.nan)

    def origin(self, site: Site, index: int, given: Channels, output: Channels) -> Origin | None:
        if given.axis != site.attr("axis", 1) % len(site.out_shape()):
            return np.arange(len(output.known))
        sizes = [site.shape(i)[given.axis] for i in self.data(site)]
        start = sum(int(str(size)) for size in sizes[:index])
        origin = np.full(len(output.known), -1)
        origin[start : start + len(given.known)] = np.arange(len(given.known))
        return origin


def _agreed(a: Array, b: Array) -> Array:
    return np.where(a == b, a, np.nan)
