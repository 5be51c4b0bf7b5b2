"""One shard measured: the unit of work that is done here, in a pool, or on another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import onnx
import onnx_ir as ir

from bnfold import files
from bnfold.passes.inference import to_inference
from bnfold.statistics.data.ports import Array, Feeds, ports_of
from bnfold.statistics.data.sources import Shard, Source
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.layers import survey
from bnfold.statistics.graph.rewrite import put
from bnfold.statistics.run.batch import Block, Moments, content
from bnfold.statistics.run.instrument import instrument
from bnfold.statistics.run.session import Session
from bnfold.statistics.run.tap import Tap
from bnfold.statistics.run.together import processors, together
from bnfold.training import Running


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


@dataclass(frozen=True)
class _Opened:
    """A model that measures itself, in the runtime."""

    session: Session
    taps: list[Tap]
    layers: Mapping[str, Layer]

    def block(self, runs: Sequence[tuple[Feeds, list[Array]]]) -> Block:
        feeds, outputs = zip(*runs, strict=True)
        columns = dict(zip(self.session.names, zip(*outputs, strict=True), strict=True))
        readings = {name: reading for tap in self.taps for name, reading in tap.read(columns).items()}
        return Block(feeds, readings, self.layers)

    def alone(self, feeds: Feeds) -> Block:
        return self.block([(feeds, self.session.run(feeds))])


class Meter:
    """A model that is open and measures itself; raises like ``measure``."""

    def __init__(self, task: Task) -> None:
        model = task.subject.open()
        found, _ = survey(model)
        if task.new:
            put(model, found, task.new)
            found, _ = survey(model)  # as stored: rounded
        layers = [each.layer for each in found if task.only is None or each.layer.output in task.only]
        self._task, self._model, self._ports = task, model, ports_of(model)
        self._layers = {layer.output: layer for layer in layers}
        self._opened = self._open(frozenset())

    def blocks(self, size: int = 0) -> Generator[Block, None, None]:
        """All batches, measured, in order; ``size`` of them at most at a time, 0 for what runs together."""
        threads = self._task.threads or processors()
        batches = self._task.source.batches(self._ports, self._task.shard)
        for first in islice(batches, 1):
            block = self._opened.alone(first)
            if doubtful := block.doubtful.get(0):  # these layers are measured another way from now on
                self._opened = self._open(doubtful)
                block = self._opened.alone(first)
            yield self._sure(block)
        with closing(together(self._opened.session.run, batches, threads)) as parts:
            for part in parts:
                for start in range(0, len(part), size or len(part)):
                    yield self._sure(self._opened.block(part[start : start + (size or len(part))]))

    def sample(self) -> Sample:
        """All batches together."""
        digest, samples = hashlib.sha256(), 0
        merged: Moments = {}
        with closing(self.blocks()) as blocks:
            for block in blocks:
                digest.update("".join(map(content, block.feeds)).encode())
                samples += block.samples
                made = {name: block.moments(name) for name in self._layers}
                merged = {name: merged[name].merge(made[name]) for name in merged} or made
        return Sample(merged, samples, digest.hexdigest())

    def _sure(self, block: Block) -> Block:
        """A block, with every batch measured once more that rounding spoilt."""
        for index, doubtful in block.doubtful.items():
            again = self._exact.alone(block.feeds[index])
            for name in doubtful:
                block.readings[name].replace(index, again.readings[name])
        return block

    @cached_property
    def _exact(self) -> _Opened:
        return self._open(frozenset(self._layers))

    def _open(self, exact: frozenset[str]) -> _Opened:
        """The model, with these layers measured the exact way."""
        model = self._model.clone()
        layers = list(self._layers.values())
        taps = instrument(model, layers, training=self._task.training, exact=exact)
        return _Opened(Session(model), taps, self._layers)
