"""Sources of batches: every form data come in, cut into shards that together are the whole.

A source is a value that can be pickled and sent to a worker; it reads nothing until batches are asked
for. The same cut gives the same samples on every machine, so that parts can be merged anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Array, Feeds, Port, matched
from bnfold.statistics.data.preprocess import Preprocess

# Input values in a batch, and samples at most: a runtime needs some hundred times as much memory
# for what it computes from them, on every processor. While that fits into a processor's cache, measuring
# it costs least.
_BATCH_VALUES = 1 << 19
_MOST_SAMPLES = 256


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 0) of ``count`` equal parts of a data set."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputsError(f"There is no shard {self.index + 1}/{self.count}; count from 1 to n.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``, counted from 1.

        Raises:
            InputsError: it is nothing of that form.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise InputsError(f"{text!r} is no shard; write i/n, such as 1/4.")
        return cls(int(index) - 1, int(count))

    def of(self, total: int) -> slice:
        """Which of ``total`` items belong to this shard."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


class Source(Protocol):
    """A data set."""

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """The batches of one shard, in order.

        Raises:
            InputsError: the data cannot be read, or do not fit the ports.
        """

    def identity(self) -> str:
        """A digest that is the same wherever the same data lie, "" for a stream, which has none."""


@dataclass(frozen=True)
class Arrays:
    """Samples along the first axis of arrays by name; ``batch`` of them run at once, 0 for as many as fit."""

    arrays: Mapping[str, Array]
    batch: int = 0
    preprocess: Preprocess | None = None

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """See ``Source``."""
        arrays: Mapping[str, Array] = self.arrays
        if self.preprocess is not None:
            arrays = {name: self.preprocess.batch(array) for name, array in arrays.items()}
        feeds = matched(ports, arrays)
        fixed = next((port.fixed for port in ports if port.fixed is not None), None)
        units = {port.name: port.fixed or fixed or 1 for port in ports}
        total = _units(feeds, units)
        mine = range(total)[shard.of(total)]
        step = (
            1 if fixed else self.batch or fitting(sum(each.size for each in feeds.values()) / max(total, 1))
        )
        for start in range(mine.start, mine.stop, step):
            part = slice(start, min(start + step, mine.stop))
            rows = {name: _rows(array, part, units[name]) for name, array in feeds.items()}
            if is_whole(ports, rows):
                yield rows

    def identity(self) -> str:
        """See ``Source``."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Stream:
    """Batches that a caller makes: an array for a model of one input, else arrays by name."""

    made: Iterable[Any] = field(repr=False)

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """See ``Source``; every shard runs through the whole iterable."""
        for item in islice(self.made, shard.index, None, shard.count):
            yield matched(ports, as_arrays(item))

    def identity(self) -> str:
        """See ``Source``."""
        return ""


def as_arrays(item: Any) -> dict[str, Array]:
    """One batch or data set as arrays by name."""
    if isinstance(item, Mapping):
        return {str(name): np.asarray(array) for name, array in item.items()}
    return {"": np.asarray(item)}


def fitting(values: float) -> int:
    """How many samples of so many values run at once: enough for speed, on every processor at a time."""
    return int(np.clip(_BATCH_VALUES // max(values, 1), 1, _MOST_SAMPLES))


def is_whole(ports: list[Port], feeds: Feeds) -> bool:
    """Whether a batch is whole where the model fixes its size; a rest cannot run."""
    return all(port.fixed is None or port.fixed == len(feeds[port.name]) for port in ports)


def _units(feeds: Feeds, units: Mapping[str, int]) -> int:
    """How many times the smallest number of rows that can run is there; a scalar is always there."""
    long = {name: array for name, array in feeds.items() if array.ndim}
    counts = {-(-len(array) // units[name]) for name, array in long.items()}
    if len(counts) > 1:
        samples = " and ".join(str(len(array)) for array in long.values())
        raise InputsError(f"The arrays hold {samples} samples; cut them to the same number.")
    return counts.pop() if counts else 1


def _rows(array: Array, part: slice, unit: int) -> Array:
    return array[part.start * unit : part.stop * unit] if array.ndim else array
