"""One shard measured: the unit of work that is done here, in a pool, or on another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import onnx
import onnx_ir as ir

from bnfold import files
from bnfold.statistics.data.ports import ports_of
from bnfold.statistics.data.sources import Shard, Source
from bnfold.statistics.graph.layers import survey
from bnfold.statistics.graph.rewrite import put, to_inference
from bnfold.statistics.run.batch import Batch, Moments, add_content, merge
from bnfold.statistics.run.probe import instrument
from bnfold.statistics.run.session import Session
from bnfold.training import Running

# How many batches are merged at once.
_BLOCK = 64


@dataclass(frozen=True)
class Subject:
    """The model to measure, in a form that can be sent to a worker.

    Attributes:
        model: a path, or the bytes of a ModelProto (an ``onnx_ir.Model`` stays in this process).
        base_dir: the folder of the external data of such bytes.
        inference: let nodes in training mode use their stored statistics.
    """

    model: Path | bytes | ir.Model
    base_dir: Path | None = None
    inference: bool = False

    def open(self) -> ir.Model:
        """A model of our own.

        Raises:
            BnfoldError: it cannot be read.
        """
        if isinstance(self.model, ir.Model):
            model = self.model.clone()
        elif isinstance(self.model, bytes):
            model = files.from_proto(onnx.load_model_from_string(self.model), self.base_dir)
        else:
            model = files.load(self.model)
        if self.inference:
            to_inference(model)
        return model


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        subject: the model.
        source: the data.
        shard: which part of them.
        new: statistics to put into the model first, by layer output.
        only: the layers to measure, by output; None for all.
        training: normalize by the moments of each batch, as in training.
        threads: how many batches run at once; 0 for as many as there are processors.
    """

    subject: Subject
    source: Source
    shard: Shard = field(default_factory=Shard)
    new: Mapping[str, Running] = field(default_factory=dict)
    only: frozenset[str] | None = None
    training: bool = False
    threads: int = 0


@dataclass(frozen=True)
class Sample:
    """What one shard gave.

    Attributes:
        moments: by layer output; none if there was no batch.
        samples: how many samples were fed, along the first axis of the inputs.
        digest: of everything that was fed.
    """

    moments: Moments
    samples: int
    digest: str


def measure(task: Task) -> Sample:
    """Measure one shard and merge its batches; a function of a module, for executors.

    Raises:
        InputsError: the data do not fit, or drive the model to NaN or infinity.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """
    return Meter(task).sample()


class Meter:
    """A model that is open and measures itself; raises like ``measure``."""

    def __init__(self, task: Task) -> None:
        model = task.subject.open()
        found, _ = survey(model)
        put(model, found, task.new)
        layers = [each.layer for each in found if task.only is None or each.layer.output in task.only]
        self._source, self._shard, self._ports = task.source, task.shard, ports_of(model)
        taps = instrument(model, layers, training=task.training)
        self._taps = {tap.layer.output: tap for tap in taps}
        self._session = Session(model, task.threads)

    def each(self) -> Generator[Batch, None, None]:
        """Every batch, measured, in order."""
        for feeds, outputs in self._session.over(self._source.batches(self._ports, self._shard)):
            yield Batch(feeds, outputs, self._taps)

    def sample(self) -> Sample:
        """All batches together."""
        digest, samples = hashlib.sha256(), 0
        merged: Moments = {}
        with closing(self.each()) as batches:
            # A few at a time: merging one by one would take longer than a small net does.
            while block := list(islice(batches, _BLOCK)):
                for batch in block:
                    add_content(digest, batch.feeds)
                    samples += batch.samples
                merged = {name: merge(name, block, merged.get(name)) for name in self._taps}
        return Sample(merged, samples, digest.hexdigest())
