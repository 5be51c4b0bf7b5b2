"""Dense layers: ``x·W₁ + x·W₂ = x·(W₁ + W₂)`` and ``(x·W₁)·W₂ = x·(W₁·W₂)``; a map is a diagonal one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.branches.layer import Layer, common
from bnfold.core.affine import Affine, Array
from bnfold.core.graph.shapes import Dim


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """``y = x·W + b`` along the last axis, ``W`` being inputs × outputs."""

    @property
    def work(self) -> int:
        """The size of the weight."""
        return self.inputs * self.outputs

    def mapped(self, affine: Affine) -> Dense:
        """Scale the columns."""
        scale, shift = affine.along(-1, self.outputs)

        def values() -> tuple[Array, Array]:
            weight, bias = self.made
            return weight * scale, bias * scale + shift

        return Dense(self.outputs, self.inputs, values)

    def plus(self, other: Dense, sizes: Sequence[Dim]) -> Dense:
        """Add the weights."""

        def values() -> tuple[Array, Array]:
            return self.made[0] + other.made[0], self.made[1] + other.made[1]

        return Dense(common(self.outputs, other.outputs), self.inputs, values)

    def after(self, inner: Dense) -> Dense:
        """Multiply the weights."""

        def values() -> tuple[Array, Array]:
            return inner.made[0] @ self.made[0], inner.made[1] @ self.made[0] + self.made[1]

        return Dense(self.outputs, inner.inputs, values)

    def of(self, affine: Affine) -> Dense:
        """The diagonal."""
        scale, shift = affine.along(-1, self.inputs)
        return Dense(self.inputs, self.inputs, lambda: (np.diag(scale), shift))
