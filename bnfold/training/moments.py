"""Per-channel moments that merge: of a batch, a shard, or a whole data set too large to hold.

``(count, mean, m2)`` is all that is needed for a mean and a variance, and two of them merge into
the moments of both samples together, in any order. An average of per-batch variances cannot do
that: it forgets how far the batches lie from each other.

Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance:
Analysis and Recommendations", The American Statistician 37 (1983), 242-247: two passes over
shifted data within a sample, the combining formulas between samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import index
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnfold.errors import InputsError
from bnfold.files import staged

Floats = NDArray[np.float64]


def channels_last(x: ArrayLike, axis: int) -> Floats:
    """Convert ``x`` to float64 and move its channel axis last, where per-channel vectors broadcast.

    Raises:
        InputsError: ``x`` has fewer than two axes, no such axis, or no channel.
    """
    tensor = np.asarray(x, dtype=np.float64)
    if tensor.ndim < 2 or not -tensor.ndim <= axis < tensor.ndim or not tensor.shape[axis]:
        raise InputsError(
            f"A tensor of shape {tensor.shape} has no channels along axis {axis}: "
            "give one of at least two axes and name its channel axis."
        )
    return np.moveaxis(tensor, axis, -1)


def per_channel(name: str, values: ArrayLike, channels: int) -> Floats:
    """Copy ``values``, one finite number per channel, to a read-only float64 vector.

    Raises:
        InputsError: the shape is not ``(channels,)``, or a number is NaN or infinite.
    """
    vector = np.array(values, dtype=np.float64)
    if vector.shape != (channels,):
        raise InputsError(
            f"The {name} has shape {vector.shape}: give one number for each of {channels} channels."
        )
    if not np.isfinite(vector).all():
        first = int(np.argmin(np.isfinite(vector)))
        raise InputsError(f"The {name} of channel {first} is {vector[first]}, not a finite number.")
    vector.setflags(write=False)
    return vector


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """How many samples each channel has, their mean, and their squared distances from it.

    Attributes:
        count: m, the samples per channel (N·H·W of an NCHW tensor).
        mean: Σx/m, read-only float64 of shape (C,), in the unit of x.
        m2: Σ(x - mean)², read-only float64 of shape (C,), in the unit of x squared.

    Raises:
        InputsError: the vectors differ in shape or hold NaN or infinity, or count or m2 is negative.
    """

    count: int
    mean: Floats
    m2: Floats

    def __post_init__(self) -> None:
        channels = np.size(self.mean)
        object.__setattr__(self, "count", index(self.count))
        object.__setattr__(self, "mean", per_channel("mean", self.mean, channels))
        object.__setattr__(self, "m2", per_channel("squared deviation", self.m2, channels))
        if self.count < 0 or (self.m2 < 0).any():
            raise InputsError("A count and a squared deviation cannot be negative.")

    @classmethod
    def empty(cls, channels: int) -> ChannelMoments:
        """Return the moments of no sample, which change nothing when merged."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # the constructor refuses what comes of it
    def of(cls, x: ArrayLike, axis: int = 1) -> ChannelMoments:
        """Reduce every channel of ``x``, a tensor of at least two axes and any real dtype.

        Two passes, mean first, over data shifted by the channel's first sample: a large offset
        cancels before anything is squared, and a constant channel has a variance of exactly 0.

        Raises:
            InputsError: ``x`` has no such channel axis, or holds NaN or infinity.
        """
        samples = channels_last(x, axis)
        # Contiguous rows: NumPy sums pairwise, and several times faster, along the last axis only.
        rows = np.ascontiguousarray(samples.reshape(-1, samples.shape[-1]).T)
        channels, count = rows.shape
        if not count:
            return cls.empty(channels)
        shifted = rows - rows[:, :1]
        centre = shifted.mean(axis=1, keepdims=True)
        return cls(count, (rows[:, :1] + centre)[:, 0], np.square(shifted - centre).sum(axis=1))

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Combine into the moments of both samples together.

            m = m₁ + m₂,   δ = μ₂ - μ₁,   μ = μ₁ + δ·m₂/m,   M = M₁ + M₂ + δ²·m₁·m₂/m

        Associative and commutative up to rounding; ``empty`` is the identity. Rounding the means
        costs the variance mean/deviation times the float64 epsilon, not the square of that as in
        Σx² - m·μ².

        Raises:
            InputsError: the two have different numbers of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise InputsError(f"Moments of {self.mean.size} and {other.mean.size} channels cannot be merged.")
        if not self.count or not other.count:
            return self if self.count else other
        count, delta = self.count + other.count, other.mean - self.mean
        share = other.count / count
        m2 = self.m2 + other.m2 + delta * delta * (self.count * share)
        return ChannelMoments(count, self.mean + delta * share, m2)

    @property
    def variance(self) -> Floats:
        """Population variance m2/m of shape (C,); raises ``InputsError`` without a sample."""
        return self._per(self.count)

    @property
    def unbiased_variance(self) -> Floats:
        """Sample variance m2/(m - 1) of shape (C,); raises ``InputsError`` below two samples."""
        return self._per(self.count - 1)

    def _per(self, divisor: int) -> Floats:
        if divisor < 1:
            raise InputsError(f"{self.count} samples per channel are too few for this variance.")
        return self.m2 / divisor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``count``, ``mean`` and ``m2`` as an .npz file, whole or not at all.

        Raises:
            OutputError: the file cannot be written there.
        """
        with staged(path) as part, part.open("xb") as file:
            np.savez(file, count=np.int64(self.count), mean=self.mean, m2=self.m2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChannelMoments:
        """Read what ``save`` wrote.

        Raises:
            InputsError: the file is missing, damaged, or holds something else.
        """
        try:
            with Path(path).open("rb") as file, np.load(file) as parts:
                return cls(parts["count"], parts["mean"], parts["m2"])
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
            raise InputsError(f"{os.fspath(path)} holds no channel moments: {error}") from error
