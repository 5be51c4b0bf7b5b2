"""Convolutions: also AveragePool, and a map, which is a convolution of one tap with a group per channel.

W₁∗x + b₁ + W₂∗x + b₂ = (W₁ + W₂)∗x + (b₁ + b₂)         taps laid over each other
W₂∗(W₁∗x + b₁) + b₂   = (W₂∗W₁)∗x + (b₂ + Σ W₂·b₁)      if nothing is padded between
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from bnfold.branches.axis import Axis, union
from bnfold.branches.layer import Layer, common
from bnfold.core.affine import Affine, Array
from bnfold.core.graph.shapes import Dim
from bnfold.core.reasons import Reason, require


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """``y[m, p] = b[m] + Σ W[m, c, i]·x[c, stride·p + first + step·i]``, ``x`` being 0 beyond its border.

    Attributes:
        axes: the window along each spatial axis.
        groups: ``W`` is outputs × inputs/groups × the taps of each axis.
    """

    axes: tuple[Axis, ...]
    groups: int

    @property
    def taps(self) -> tuple[int, ...]:
        """The kernel's shape."""
        return tuple(axis.count for axis in self.axes)

    @property
    def work(self) -> int:
        """Also the size of the weight."""
        return self.outputs * self.inputs // self.groups * prod(self.taps)

    def mapped(self, affine: Affine) -> Convolution:
        """Scale the filters."""
        scale, shift = affine.along(1, self.outputs)

        def values() -> tuple[Array, Array]:
            weight, bias = self.made
            return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), scale * bias + shift

        return Convolution(self.outputs, self.inputs, values, self.axes, self.groups)

    def plus(self, other: Convolution, sizes: Sequence[Dim]) -> Convolution:
        """Lay the taps over each other."""
        outputs = common(self.outputs, other.outputs)
        pairs = zip(self.axes, other.axes, sizes or [None] * len(self.axes), strict=True)
        axes = tuple(union(pair[:2], pair[2]) for pair in pairs)
        groups = gcd(self.groups, other.groups)

        def values() -> tuple[Array, Array]:
            weight = np.zeros((outputs, self.inputs // groups, *(axis.count for axis in axes)))
            for part in (self, other):
                weight[part._within(axes)] += part._in_groups(groups)
            return weight, self.made[1] + other.made[1]

        return Convolution(outputs, self.inputs, values, axes, groups)

    def after(self, inner: Convolution) -> Convolution:
        """Both layers as one.

        Raises:
            Refused: ``PADDED_SHIFT`` or ``PADDED_BETWEEN`` if zeros are inserted where the inner layer,
                continued beyond the border, is not zero.
        """
        if any(pad for axis in self.axes for pad in axis.pads):
            require(all(axis.is_point for axis in inner.axes), Reason.PADDED_BETWEEN)
            require(not inner.made[1].any(), Reason.PADDED_SHIFT)
        axes = tuple(b.after(a) for a, b in zip(inner.axes, self.axes, strict=True))
        groups = gcd(self.groups, inner.groups)

        def values() -> tuple[Array, Array]:
            outer, bias = self._in_groups(groups), self.made[1]
            weight = np.zeros((self.outputs, inner.inputs // groups, *(axis.count for axis in axes)))
            first = _by_group(inner._in_groups(groups), groups)
            for tap in np.ndindex(*self.taps):
                product = np.einsum("gmk,gkc...->gmc...", _by_group(outer[(..., *tap)], groups), first)
                weight[inner._within(axes, self._shift(inner, tap))] += product.reshape(
                    self.outputs, *product.shape[2:]
                )
            sums = _by_group(outer.sum(axis=tuple(range(2, outer.ndim))), groups)
            total = np.einsum("gmk,gk->gm", sums, inner.made[1].reshape(groups, -1)).reshape(-1)
            return weight, bias + total

        return Convolution(self.outputs, inner.inputs, values, axes, groups)

    def of(self, affine: Affine) -> Convolution:
        """One tap, a group for each channel."""
        scale, shift = affine.along(1, self.inputs)
        rank = len(self.axes)
        weight = scale.reshape(-1, *[1] * (rank + 1))
        axes = (Axis(),) * rank
        return Convolution(self.inputs, self.inputs, lambda: (weight, shift), axes, self.inputs)

    def _shift(self, inner: Convolution, tap: tuple[int, ...]) -> list[int]:
        """How far from its own place a tap of this layer reads ``inner``, in the input's elements."""
        pairs = zip(self.axes, inner.axes, tap, strict=True)
        return [a.stride * (b.first + b.step * i) for b, a, i in pairs]

    def _within(self, axes: Sequence[Axis], shift: Sequence[int] = ()) -> tuple[slice, ...]:
        """Where this layer's taps are in a kernel that covers them."""
        moves = shift or [0] * len(axes)
        slices = [slice(None), slice(None)]
        for own, whole, move in zip(self.axes, axes, moves, strict=True):
            start, stop = whole.place(own.first + move), whole.place(own.last + move)
            slices.append(slice(start, stop + 1, max(1, own.step // whole.step)))
        return tuple(slices)

    def _in_groups(self, groups: int) -> Array:
        """The weight with fewer groups, zeros where the layer does not look."""
        weight, ratio = self.made[0], self.groups // groups
        if ratio == 1:
            return weight
        width, taps = self.inputs // self.groups, weight.shape[2:]
        filters = self.outputs // self.groups
        wide = np.zeros((groups, ratio, filters, ratio, width, *taps))
        own = np.arange(ratio)
        parts = weight.reshape(groups, ratio, filters, width, *taps)
        wide[:, own, :, own] = np.moveaxis(parts, 1, 0)
        return wide.reshape(self.outputs, self.inputs // groups, *taps)


def _by_group(array: Array, groups: int) -> Array:
    return array.reshape(groups, -1, *array.shape[1:])
