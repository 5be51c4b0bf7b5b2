"""Linear layers as values that can be added and chained; all weights float64, computed when asked for.

    convolutions   W₁∗x + b₁ + W₂∗x + b₂ = (W₁ + W₂)∗x + (b₁ + b₂)         taps laid over each other
                   W₂∗(W₁∗x + b₁) + b₂   = (W₂∗W₁)∗x + (b₂ + Σ W₂·b₁)      if nothing is padded between
    dense layers   x·W₁ + x·W₂ = x·(W₁ + W₂),   (x·W₁)·W₂ = x·(W₁·W₂)

A map ``s·x + t`` of the same tensor is a convolution with one tap and a group per channel, or a dense
layer with a diagonal weight; the identity is the map with ``s = 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

import numpy as np

from bnfold.branches.axis import Axis, union
from bnfold.core.affine import Affine, Array
from bnfold.core.reasons import Reason, require
from bnfold.core.shapes import Dim

Values = Callable[[], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Convolution:
    """``y[m, p] = b[m] + Σ W[m, c, i]·x[c, stride·p + first + step·i]``, ``x`` being 0 beyond its border.

    Attributes:
        axes: the window along each spatial axis.
        filters: channels of the output.
        channels: channels of the input.
        groups: ``W`` is filters × channels/groups × the taps of each axis.
        values: computes ``W`` and ``b``.
    """

    axes: tuple[Axis, ...]
    filters: int
    channels: int
    groups: int
    values: Values

    @property
    def taps(self) -> tuple[int, ...]:
        """The kernel's shape."""
        return tuple(axis.count for axis in self.axes)

    @property
    def work(self) -> int:
        """Multiplications for each position of the output; also the size of the weight."""
        return self.filters * self.channels // self.groups * prod(self.taps)

    @cached_property
    def made(self) -> tuple[Array, Array]:
        """The weight and the bias."""
        return self.values()

    def mapped(self, affine: Affine) -> Convolution:
        """The layer with a map behind it."""
        scale, shift = affine.along(1, self.filters)

        def values() -> tuple[Array, Array]:
            weight, bias = self.made
            return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), scale * bias + shift

        return Convolution(self.axes, self.filters, self.channels, self.groups, values)

    def plus(self, other: Convolution, sizes: Sequence[Dim]) -> Convolution:
        """The sum of both layers on one input whose spatial sizes are ``sizes``, empty where not known.

        Raises:
            Refused: ``WINDOWS_DIFFER``.
        """
        filters = _broadcast(self.filters, other.filters)
        pairs = zip(self.axes, other.axes, sizes or [None] * len(self.axes), strict=True)
        axes = tuple(union(pair[:2], pair[2]) for pair in pairs)
        groups = gcd(self.groups, other.groups)

        def values() -> tuple[Array, Array]:
            weight = np.zeros((filters, self.channels // groups, *(axis.count for axis in axes)))
            for part in (self, other):
                weight[part._within(axes)] += part._in_groups(groups)
            return weight, self.made[1] + other.made[1]

        return Convolution(axes, filters, self.channels, groups, values)

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
            weight = np.zeros((self.filters, inner.channels // groups, *(axis.count for axis in axes)))
            first = _by_group(inner._in_groups(groups), groups)
            for tap in np.ndindex(*self.taps):
                product = np.einsum("gmk,gkc...->gmc...", _by_group(outer[(..., *tap)], groups), first)
                weight[inner._within(axes, self._shift(inner, tap))] += product.reshape(
                    self.filters, *product.shape[2:]
                )
            sums = _by_group(outer.sum(axis=tuple(range(2, outer.ndim))), groups)
            total = np.einsum("gmk,gk->gm", sums, inner.made[1].reshape(groups, -1)).reshape(-1)
            return weight, bias + total

        return Convolution(axes, self.filters, inner.channels, groups, values)

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
        width, taps = self.channels // self.groups, weight.shape[2:]
        filters = self.filters // self.groups
        wide = np.zeros((groups, ratio, filters, ratio, width, *taps))
        own = np.arange(ratio)
        parts = weight.reshape(groups, ratio, filters, width, *taps)
        wide[:, own, :, own] = np.moveaxis(parts, 1, 0)
        return wide.reshape(self.filters, self.channels // groups, *taps)


@dataclass(frozen=True, eq=False)
class Dense:
    """``y = x·W + b`` along the last axis, ``W`` being inputs × outputs.

    Attributes:
        inputs: size of the last axis of x.
        outputs: size of the last axis of y.
        values: computes ``W`` and ``b``.
    """

    inputs: int
    outputs: int
    values: Values

    @property
    def work(self) -> int:
        """Multiplications for each row."""
        return self.inputs * self.outputs

    @cached_property
    def made(self) -> tuple[Array, Array]:
        """The weight and the bias."""
        return self.values()

    def mapped(self, affine: Affine) -> Dense:
        """The layer with a map behind it."""
        scale, shift = affine.along(-1, self.outputs)

        def values() -> tuple[Array, Array]:
            weight, bias = self.made
            return weight * scale, bias * scale + shift

        return Dense(self.inputs, self.outputs, values)

    def plus(self, other: Dense) -> Dense:
        """The sum of both layers on one input."""

        def values() -> tuple[Array, Array]:
            return self.made[0] + other.made[0], self.made[1] + other.made[1]

        return Dense(self.inputs, _broadcast(self.outputs, other.outputs), values)

    def after(self, inner: Dense) -> Dense:
        """Both layers as one."""

        def values() -> tuple[Array, Array]:
            return inner.made[0] @ self.made[0], inner.made[1] @ self.made[0] + self.made[1]

        return Dense(inner.inputs, self.outputs, values)


Layer = Convolution | Dense


def as_convolution(affine: Affine, channels: int, rank: int) -> Convolution:
    """A map of an input with this many channels and spatial axes."""
    scale, shift = affine.along(1, channels)
    axes = (Axis(),) * rank
    return Convolution(
        axes, channels, channels, channels, lambda: (scale.reshape(-1, *[1] * (rank + 1)), shift)
    )


def as_dense(affine: Affine, size: int) -> Dense:
    """A map along the last axis of an input."""
    scale, shift = affine.along(-1, size)
    return Dense(size, size, lambda: (np.diag(scale), shift))


def _broadcast(a: int, b: int) -> int:
    """The channels of a sum; a single one is added to all."""
    require(a == b or 1 in (a, b), Reason.WINDOWS_DIFFER)
    return max(a, b)


def _by_group(array: Array, groups: int) -> Array:
    return array.reshape(groups, -1, *array.shape[1:])
