"""What was measured, as a value: it merges, it can be saved, and it refuses to count anything twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import InputsError
from bnfold.files import staged
from bnfold.statistics.data.paths import read_npz
from bnfold.statistics.data.sources import Shard
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.layers import Unmeasured
from bnfold.statistics.judge.diagnosis import conclusions
from bnfold.statistics.judge.verdict import Comparison, compare
from bnfold.training import ChannelMoments

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Counted:
    """One shard that has been counted.

    Attributes:
        data: identity of the data set, "" for a stream.
        prepared: what was done to them first.
        shard: ``i/n``, counted from 1.
        samples: how many samples it held.
        digest: of what was fed.
    """

    data: str
    prepared: str
    shard: str
    samples: int
    digest: str


@dataclass(frozen=True)
class Statistics:
    """The stored statistics of a model's batch norms beside those of data.

    Attributes:
        model: fingerprint of the model.
        layers: what was measured, in graph order.
        left: what could not be, and why.
        moments: the data's, by layer output.
        counted: the shards they come from.
    """

    model: str
    layers: tuple[Layer, ...]
    left: tuple[Unmeasured, ...]
    moments: Mapping[str, ChannelMoments]
    counted: tuple[Counted, ...]

    @property
    def samples(self) -> int:
        """How many samples were fed."""
        return sum(each.samples for each in self.counted)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every layer judged; raises ``InputsError`` where there are too few samples to."""
        return compare(self.layers, self.moments, self.samples)

    @property
    def fits(self) -> bool:
        """Whether no layer is named."""
        return not any(each.named for each in self.comparisons)

    @property
    def conclusions(self) -> list[str]:
        """What follows, in sentences."""
        return conclusions(self.comparisons)

    def missing(self) -> list[str]:
        """The shards of a data set that are not counted, as ``i/n``."""
        present = {each.shard for each in self.counted if each.data}
        counts = {int(each.partition("/")[2]) for each in present}
        return [str(Shard(i, n)) for n in sorted(counts) for i in range(n) if str(Shard(i, n)) not in present]

    def merge(self, other: Statistics) -> Statistics:
        """Count two parts together.

        Raises:
            InputsError: they are of different models, or share data.
        """
        if self.model != other.model or len(self.layers) != len(other.layers):
            raise InputsError("The parts were measured on different models; measure all of them on one.")
        for mine in self.counted:
            for theirs in other.counted:
                _refuse_twice(mine, theirs)
        moments = {name: part.merge(other.moments[name]) for name, part in self.moments.items()}
        return replace(self, moments=moments, counted=(*self.counted, *other.counted))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "samples": self.samples,
            "fits": self.fits,
            "conclusions": self.conclusions,
            "layers": [each.to_dict() for each in self.comparisons],
            "not_measured": [asdict(each) for each in self.left],
            "counted": [asdict(each) for each in self.counted],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one .npz file, whole or not at all.

        Raises:
            OutputError: the file cannot be written there.
        """
        arrays: dict[str, Any] = {}
        for number, layer in enumerate(self.layers):
            moments = self.moments[layer.output]
            held = {name: getattr(layer, name) for name in _VECTORS}
            held |= {"count": np.int64(moments.count), "data_mean": moments.mean, "data_m2": moments.m2}
            arrays |= {f"{number}/{name}": array for name, array in held.items()}
        with staged(path) as part, part.open("xb") as file:
            np.savez(file, allow_pickle=False, meta=np.array(json.dumps(self._meta())), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what ``save`` wrote.

        Raises:
            InputsError: the file is missing, damaged, or holds something else.
        """
        arrays = read_npz(Path(path))
        try:
            meta = json.loads(str(arrays["meta"]))
            if meta["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"its layout is {meta['schema_version']}, not {SCHEMA_VERSION}")
            layers = tuple(_layer(plain, arrays, number) for number, plain in enumerate(meta["layers"]))
            moments = {each.output: _moments(arrays, number) for number, each in enumerate(layers)}
            left = tuple(Unmeasured(**each) for each in meta["left"])
            counted = tuple(Counted(**each) for each in meta["counted"])
            return cls(meta["model"], layers, left, moments, counted)
        except (KeyError, TypeError, ValueError) as error:
            raise InputsError(f"{os.fspath(path)} holds no statistics of bnfold ({error}).") from error

    def _meta(self) -> dict[str, Any]:
        plain = [{name: getattr(layer, name) for name in _PLAIN} for layer in self.layers]
        left, counted = ([asdict(each) for each in items] for items in (self.left, self.counted))
        header = {"schema_version": SCHEMA_VERSION, "model": self.model}
        return {**header, "layers": plain, "left": left, "counted": counted}


_VECTORS = ("mean", "variance", "gain", "bias")
_PLAIN = [each.name for each in fields(Layer) if each.name not in _VECTORS]


def merge_all(parts: Iterable[Statistics]) -> Statistics:
    """Count any number of parts together; raises ``InputsError`` like ``Statistics.merge``."""
    each = iter(parts)
    try:
        merged = next(each)
    except StopIteration:
        raise InputsError("There is no part to merge; name at least one.") from None
    for part in each:
        merged = merged.merge(part)
    return merged


def _refuse_twice(one: Counted, other: Counted) -> None:
    if one.samples and one.digest == other.digest:
        raise InputsError(f"Shard {other.shard} is counted twice: {one.shard} held the same samples.")
    if not one.data or one.data != other.data:
        return
    if one.shard == other.shard:
        raise InputsError(f"Shard {one.shard} is counted twice; leave one of its parts out.")
    cuts = {(each.prepared, each.shard.partition("/")[2]) for each in (one, other)}
    if len(cuts) > 1:
        raise InputsError(
            f"Shards {one.shard} and {other.shard} cut or prepare the same data differently; "
            "cut all parts by the same number, with the same preprocessing."
        )


def _layer(plain: dict[str, Any], arrays: Mapping[str, Any], number: int) -> Layer:
    vectors: dict[str, Any] = {name: arrays[f"{number}/{name}"] for name in _VECTORS}
    return Layer(**{**plain, **vectors, "parents": tuple(plain["parents"])})


def _moments(arrays: Mapping[str, Any], number: int) -> ChannelMoments:
    return ChannelMoments(*(arrays[f"{number}/{name}"] for name in ("count", "data_mean", "data_m2")))
