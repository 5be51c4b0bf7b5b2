"""One measured batch, and many of them merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Array, Feeds
from bnfold.statistics.run.probe import Tap
from bnfold.training import ChannelMoments
from bnfold.training.moments import Floats

Moments = dict[str, ChannelMoments]


@dataclass(frozen=True)
class Batch:
    """One batch and what the model said of it.

    Attributes:
        feeds: what went in.
        outputs: what came out, by name.
        taps: the names in ``outputs``, by layer output.
    """

    feeds: Feeds
    outputs: Mapping[str, Array]
    taps: Mapping[str, Tap]

    @property
    def samples(self) -> int:
        """How many samples were fed, along the first axis of the inputs."""
        return max((array.shape[0] for array in self.feeds.values() if array.ndim), default=0)

    def of(self, name: str) -> tuple[int, Floats, Floats]:
        """How often a layer's channels were seen, their mean and variance."""
        tap = self.taps[name]
        mean, variance, shape = (self.outputs[each] for each in tap.outputs)
        channels = tap.layer.mean.size
        count = int(np.prod(shape)) // max(1, channels)
        return count, _vector(mean, channels, count), _vector(variance, channels, count)

    def moments(self, name: str) -> ChannelMoments:
        """The moments of one layer; raises ``InputsError`` for NaN or infinity."""
        return merge(name, [self], None)


def merge(name: str, block: list[Batch], before: ChannelMoments | None) -> ChannelMoments:
    """The moments of one layer over many batches and what came before.

    The same as ``ChannelMoments.merge`` of one after the other, at the cost of one.

    Raises:
        InputsError: they are NaN or infinite.
    """
    parts = [batch.of(name) for batch in block]
    counts = np.array([count for count, _, _ in parts], np.float64)[:, None]
    means, variances = (np.stack([part[index] for part in parts]) for index in (1, 2))
    total = counts.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        mean = (counts * means).sum(axis=0) / max(total, 1.0)
        m2 = (counts * (variances + np.square(means - mean))).sum(axis=0)
    try:
        moments = ChannelMoments(int(total), mean, m2)
        return moments if before is None else before.merge(moments)
    except InputsError as error:
        raise InputsError(
            f"What {block[0].taps[name].layer.name} normalizes reaches NaN or infinity ({error}) "
            "Look for such values in the data, or for statistics that are far off in front of it."
        ) from error


def add_content(digest: Any, feeds: Feeds) -> None:
    """Add a batch to a digest of everything that was fed, which tells parts that hold the same."""
    for name, array in sorted(feeds.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(repr(array).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).data)


def _vector(reduced: Array, channels: int, count: int) -> Floats:
    """A reduced tensor as float64 of shape (C,); zero where the batch was empty."""
    return reduced.reshape(-1).astype(np.float64) if count else np.zeros(channels)
