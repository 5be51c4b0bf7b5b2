"""Transposed convolutions: ``Wᵀ∗x + b`` is added where the convolutions W that they transpose could be.

W₁ᵀ∗x + b₁ + W₂ᵀ∗x + b₂ = (W₁ + W₂)ᵀ∗x + (b₁ + b₂)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from bnfold.branches.axis import Axis
from bnfold.branches.convolution import Convolution
from bnfold.branches.layer import Layer, common
from bnfold.core.affine import Affine, Array
from bnfold.core.graph.shapes import Dim
from bnfold.core.reasons import Reason, Refused


@dataclass(frozen=True, eq=False)
class Transposed(Layer):
    """``x[c, p]`` adds ``W[c, m, i]·x[c, p]`` to ``y[m, stride·p + first + step·i]``.

    Attributes:
        axes: the window of the convolution that is transposed, along each spatial axis; ``end`` is minus
            by how much the output is longer than ``stride·(n − 1) + 1``.
        groups: ``W`` is inputs × outputs/groups × the taps of each axis.
    """

    axes: tuple[Axis, ...]
    groups: int

    @property
    def work(self) -> float:
        """Each element of the input meets every weight."""
        return self._convolution.work / prod(axis.stride for axis in self.axes)

    @property
    def _convolution(self) -> Convolution:
        def values() -> tuple[Array, Array]:
            return self.made[0], np.zeros(self.inputs)

        return Convolution(self.inputs, self.outputs, values, self.axes, self.groups)

    def mapped(self, affine: Affine) -> Transposed:
        """Scale what goes into each output channel."""
        scale, shift = affine.along(1, self.outputs)

        def values() -> tuple[Array, Array]:
            weight, bias = self.made
            each = np.repeat(scale.reshape(self.groups, -1), self.inputs // self.groups, axis=0)
            return weight * each.reshape(*each.shape, *[1] * len(self.axes)), bias * scale + shift

        return Transposed(self.outputs, self.inputs, values, self.axes, self.groups)

    def plus(self, other: Transposed, sizes: Sequence[Dim]) -> Transposed:
        """Lay the taps over each other."""
        outputs = common(self.outputs, other.outputs)
        one, all_ = sorted((self, other), key=lambda layer: layer.outputs)
        total = all_._convolution.plus(one._convolution, ())

        def values() -> tuple[Array, Array]:
            return total.made[0], self.made[1] + other.made[1]

        return Transposed(outputs, self.inputs, values, total.axes, total.groups)

    def after(self, inner: Transposed) -> Transposed:
        """Two in a row are not tried."""
        raise Refused(Reason.WINDOWS_DIFFER)

    def of(self, affine: Affine) -> Transposed:
        """A map is written as a convolution, not as a transposed one."""
        raise Refused(Reason.WINDOWS_DIFFER)
