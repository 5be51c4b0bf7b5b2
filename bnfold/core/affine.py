"""The one value bnfold is about: the affine map ``x ↦ scale·x + shift``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from bnfold.core.reasons import Reason, require

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x ↦ scale·x + shift``.

    ``scale`` and ``shift`` are finite float64 arrays that broadcast against the tensor they map
    without enlarging it. An array has either no axes (a scalar map, good for any tensor) or exactly
    the tensor's rank, with size 1 on every axis it does not vary along (NCHW: ``1×C×1×1``).
    There is no ``axis`` field to keep in step: moving the tensor's axes moves the arrays' axes.
    """

    scale: Array
    shift: Array

    @classmethod
    def of(cls, scale: npt.ArrayLike = 1.0, shift: npt.ArrayLike = 0.0) -> Affine:
        """Build a map from anything numpy understands."""
        return cls(np.asarray(scale, np.float64), np.asarray(shift, np.float64))

    def __matmul__(self, inner: Affine) -> Affine:
        """Compose: ``(f @ g)(x) = f(g(x))``."""
        return Affine(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Apply the map in float64."""
        return np.asarray(self.scale * np.asarray(x, np.float64) + self.shift)

    def same(self, other: Affine) -> bool:
        """Whether both are the same map, however their arrays are broadcast."""
        return _same(self.scale, other.scale) and _same(self.shift, other.shift)

    @cached_property
    def scales(self) -> bool:
        """Whether any channel is multiplied by something other than 1."""
        return bool((self.scale != 1.0).any())

    @cached_property
    def shifts(self) -> bool:
        """Whether anything other than 0 is added to any channel."""
        return bool((self.shift != 0.0).any())

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return not (self.scales or self.shifts)

    def inverse(self) -> Affine:
        """The map that undoes this one, whose scale is nowhere zero."""
        return Affine(1.0 / self.scale, -self.shift / self.scale)

    @property
    def linear(self) -> Affine:
        """The map without its shift."""
        return Affine(self.scale, np.zeros(()))

    @property
    def translation(self) -> Affine:
        """The map without its scale."""
        return Affine(np.ones(()), self.shift)

    @property
    def rank(self) -> int:
        """The rank of the tensors this map fits, or 0 if it fits any."""
        return max(self.scale.ndim, self.shift.ndim)

    def sizes(self) -> dict[int, int]:
        """The axes along which the map varies, and the size of each."""
        shape = np.broadcast(self._full(self.scale), self._full(self.shift)).shape
        return {axis: size for axis, size in enumerate(shape) if size > 1}

    @property
    def volume(self) -> int:
        """How many different values the map may have: the size of a constant that holds it."""
        return prod(self.sizes().values())

    def along(self, axis: int, size: int) -> tuple[Array, Array]:
        """The two vectors of ``size`` entries, if the map varies along ``axis`` alone.

        Raises:
            Refused: ``MIXED_AXES`` if it varies along any other axis or by another size.
        """
        wanted = axis % self.rank if self.rank else 0
        require(set(self.sizes()) <= {wanted}, Reason.MIXED_AXES)
        vectors = self.scale.ravel(), self.shift.ravel()
        require(all(len(vector) in (1, size) for vector in vectors), Reason.MIXED_AXES)
        return np.broadcast_to(vectors[0], size), np.broadcast_to(vectors[1], size)

    def rearranged(self, move: Callable[[Array], Array]) -> Affine:
        """Move the axes of both arrays alike; a scalar map stays as it is."""
        arrays = (self._full(array) for array in (self.scale, self.shift))
        return Affine(*(move(array) if array.ndim else array for array in arrays))

    def onto(self, shape: Sequence[object]) -> Affine:
        """The map for an operand of ``shape`` that broadcasts into the tensor this map belongs to.

        Raises:
            Refused: ``MIXED_AXES`` if the map varies where the operand is, or may be, of size 1.
        """
        missing = self.rank - len(shape)
        for axis, size in self.sizes().items():
            require(axis >= missing and shape[axis - missing] == size, Reason.MIXED_AXES)
        return self.rearranged(lambda array: array.reshape(_fit(array.shape, len(shape))))

    def collapsed(self) -> Affine:
        """The same map with size 1 on every axis along which its values are all equal."""
        return Affine(_collapse(self.scale), _collapse(self.shift))

    def _full(self, array: Array) -> Array:
        return array.reshape((1,) * self.rank) if array.ndim == 0 else array


IDENTITY = Affine.of()


def _fit(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Drop or add leading axes of size 1."""
    return shape[len(shape) - rank :] if len(shape) >= rank else (1,) * (rank - len(shape)) + shape


def _collapse(array: Array) -> Array:
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis=axis) if size > 1 else array
        if size > 1 and bool((array == first).all()):
            array = first
    return array


def _same(a: Array, b: Array) -> bool:
    try:
        return bool(np.all(a == b))
    except ValueError:
        return False
