"""Statistics of batch norms estimated anew from data.

What a layer sees depends on the statistics of every layer in front of it, so one run over the data
cannot be right for all of them. Three ways deal with that, and the result says which was taken:

* **waves** (the default): as many runs as the graph is deep, each measures the layers behind those
  whose statistics are final. Exact; a run ends at its wave, so all of them cost about depth/2 runs.
* **passes**: K runs, each measures all layers behind the statistics of the run before. After K runs
  the first K waves are final, and what the last run still moved is told.
* **moving average**: one run in training mode, each layer normalized by its batch, and the moving
  statistics updated batch by batch: what training would do if it learned nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.sources import Stream
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.run.measure import Meter, Sample, Task, measure
from bnfold.statistics.run.spread import by_number, cut, spread
from bnfold.training import ChannelMoments, MovingAverage, Running

Estimates = dict[str, Running]


@dataclass(frozen=True)
class Estimated:
    """New statistics and how they came about.

    Attributes:
        new: by layer output.
        method: how they were estimated, in sentences.
        samples: how many samples one run fed.
        moved: by how much the last run still moved a layer's means, in σ; the largest of its channels.
    """

    new: Estimates
    method: str
    samples: int
    moved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimator:
    """Measures one model as often as a way of estimating wants.

    Attributes:
        task: the model and the data.
        layers: what to estimate.
        executor: where shards are measured, None for here.
        shards: how many, 0 for the default.
    """

    task: Task
    layers: tuple[Layer, ...]
    executor: Executor | None = None
    shards: int = 0

    @property
    def depth(self) -> int:
        """How many waves of layers there are."""
        return max(layer.wave for layer in self.layers)

    def waves(self) -> Estimated:
        """One wave after the other; raises ``InputsError`` and ``UnfinishedError`` like ``stats``."""
        self._require_repeatable(self.depth)
        new: Estimates = {}
        samples = 0
        for wave in range(1, self.depth + 1):
            chosen = [layer for layer in self.layers if layer.wave == wave]
            sample = self._run(new, chosen)
            samples = sample.samples
            new |= {layer.output: _population(layer, sample.moments[layer.output]) for layer in chosen}
        method = (
            f"Population moments of {samples} samples, one wave of layers at a time ({self.depth} waves): "
            "every layer was measured behind statistics that are final."
        )
        return Estimated(new, method, samples)

    def passes(self, count: int) -> Estimated:
        """All layers in each of ``count`` runs; raises like ``waves``."""
        self._require_repeatable(count)
        new: Estimates = {layer.output: Running(layer.mean, layer.variance) for layer in self.layers}
        for _ in range(count):
            before = new
            sample = self._run(before, list(self.layers))
            new = {each.output: _population(each, sample.moments[each.output]) for each in self.layers}
        moved = {each.output: _shift(each, before[each.output], new[each.output]) for each in self.layers}
        method = f"Population moments of {sample.samples} samples, {count} runs over all layers. "
        return Estimated(new, method + self._settled(count, moved), sample.samples, moved)

    def moving(self, average: MovingAverage) -> Estimated:
        """Batch by batch, starting from the stored statistics.

        Raises:
            InputsError: a batch is too small for the variance that ``average`` takes, or there is an
                executor: batches on different workers have no order.
        """
        if self.executor is not None:
            raise InputsError("A moving average takes one batch after the other; leave the executor out.")
        new: Estimates = {layer.output: Running(layer.mean, layer.variance) for layer in self.layers}
        samples = count = 0
        with closing(Meter(replace(self.task, training=True)).blocks(1)) as batches:
            for batch in batches:
                new = {name: average.update(new[name], batch.moments(name)) for name in new}
                samples, count = samples + batch.samples, count + 1
        _require_samples(samples)
        method = (
            f"Moving average of {count} batches, {samples} samples, in training mode (each layer normalized "
            f"by its batch): {average.momentum:g} of the old value kept each time, "
            f"{'unbiased' if average.unbiased else 'population'} variances."
        )
        return Estimated(new, method, samples)

    def _run(self, new: Estimates, layers: list[Layer]) -> Sample:
        """Measure these layers on all data, with these statistics in the model."""
        task = replace(self.task, new=new, only=frozenset(layer.output for layer in layers))
        if self.executor is None:
            sample = measure(task)
        else:
            groups = cut(task, self.shards)
            parts = [part for tasks in groups for part in spread(self.executor, measure, tasks)]
            # Workers finish in any order; rounding shall not depend on it.
            sample = _together([part for _, part in sorted(parts, key=by_number)])
        _require_samples(sample.samples)
        return sample

    def _require_repeatable(self, runs: int) -> None:
        source = self.task.source
        if runs > 1 and isinstance(source, Stream) and iter(source.made) is source.made:
            raise InputsError(
                f"The data have to be run through {runs} times, and an iterator ends after one; give a "
                "list or another iterable that starts anew, or allow one pass."
            )

    def _settled(self, count: int, moved: Mapping[str, float]) -> str:
        if count >= self.depth:
            return f"The graph is {self.depth} waves deep, so every layer's statistics are final."
        open_layers = [layer for layer in self.layers if layer.wave > count]
        worst = max(open_layers, key=lambda layer: moved[layer.output])
        return (
            f"{len(open_layers)} layers of wave {count + 1} and later ({self.depth} waves) were measured "
            f"behind statistics that changed afterwards; the last run moved their means by up to "
            f"{moved[worst.output]:.2g} σ ({worst.name})."
        )


def _population(layer: Layer, moments: ChannelMoments) -> Running:
    """The moments as statistics; without ε a constant channel keeps its variance, to have a root."""
    variance = moments.variance
    usable = variance + layer.epsilon > 0
    kept = np.where(layer.broken, 1.0, layer.variance)
    return Running(moments.mean, np.where(usable, variance, kept))


def _shift(layer: Layer, before: Running, after: Running) -> float:
    deviation = np.sqrt(np.maximum(after.variance, 0.0) + layer.epsilon)
    return float(np.max(np.abs(after.mean - before.mean) / np.maximum(deviation, 1e-300)))


def _together(parts: list[Sample]) -> Sample:
    """Samples of several shards as one; some may be empty."""
    filled = [part for part in parts if part.samples]
    _require_samples(sum(part.samples for part in filled))
    moments = dict(filled[0].moments)
    for part in filled[1:]:
        moments = {name: each.merge(part.moments[name]) for name, each in moments.items()}
    return Sample(moments, sum(part.samples for part in filled), "")


def _require_samples(samples: int) -> None:
    if samples < 2:
        raise InputsError(f"{samples} samples say nothing about a variance; give more data.")
