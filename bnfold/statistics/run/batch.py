"""Measured batches, merged."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Array, Feeds
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.run.tap import Reading
from bnfold.training import ChannelMoments

Moments = dict[str, ChannelMoments]

# How many bytes share a CRC-32. A single one over everything would let one pair of parts in 2**32 pass for
# the same, and a cryptographic digest takes four times as long: several percent of measuring a small net.
_PIECE = 1 << 14


@dataclass(frozen=True)
class Block:
    """Some batches in a row and what the model said of them: taken together, they cost less.

    Attributes:
        feeds: what went in, by batch.
        readings: of every layer, by layer output.
        layers: what was measured, by layer output.
    """

    feeds: Sequence[Feeds]
    readings: Mapping[str, Reading]
    layers: Mapping[str, Layer]

    @property
    def samples(self) -> int:
        """How many samples were fed, along the first axis of the inputs."""
        sizes = ([array.shape[0] for array in feeds.values() if array.ndim] for feeds in self.feeds)
        return sum(max(each, default=0) for each in sizes)

    @property
    def doubtful(self) -> dict[int, frozenset[str]]:
        """By batch, the layers whose moments rounding has spoilt, so that it has to run again."""
        found: dict[int, set[str]] = {}
        for name, reading in self.readings.items():
            for index in np.flatnonzero(~reading.sure).tolist():
                found.setdefault(index, set()).add(name)
        return {index: frozenset(names) for index, names in found.items()}

    def moments(self, name: str) -> ChannelMoments:
        """The moments of one layer over all batches.

        The same as ``ChannelMoments.merge`` of one after the other, at the cost of one.

        Raises:
            InputsError: they are NaN or infinite.
        """
        reading = self.readings[name]
        counts = reading.count[:, None].astype(np.float64)
        total = counts.sum()
        with np.errstate(over="ignore", invalid="ignore"):
            mean = (counts * reading.mean).sum(axis=0) / max(total, 1.0)
            m2 = (counts * (reading.variance + np.square(reading.mean - mean))).sum(axis=0)
        try:
            return ChannelMoments(int(total), mean, m2)
        except InputsError as error:
            raise InputsError(
                f"What {self.layers[name].name} normalizes reaches NaN or infinity ({error}) "
                "Look for such values in the data, or for statistics that are far off in front of it."
            ) from error


def content(feeds: Feeds) -> str:
    """What tells a batch from others: of every input its name, type, shape, and checksums of its values."""
    return repr([(name, each.dtype.str, each.shape, _sums(each)) for name, each in sorted(feeds.items())])


def _sums(array: Array) -> list[int]:
    values = np.array(repr(array.tolist()).encode()) if array.dtype.kind == "O" else array
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    return [zlib.crc32(data[start : start + _PIECE]) for start in range(0, len(data), _PIECE)]
