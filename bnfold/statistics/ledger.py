"""Which shards of which data are counted for which model, and the files in which they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.layers import Unmeasured
from bnfold.statistics.result import Counted, Statistics
from bnfold.statistics.run.measure import Sample
from bnfold.training import ChannelMoments


@dataclass(frozen=True)
class Ledger:
    """Everything that the parts of one measurement have in common.

    Attributes:
        model: fingerprint of the model.
        layers: what is measured.
        left: what is not, and why.
        data: identity of the data set, "" for a stream.
        prepared: what was done to them first.
    """

    model: str
    layers: tuple[Layer, ...]
    left: tuple[Unmeasured, ...]
    data: str
    prepared: str

    def entry(self, shard: str, sample: Sample) -> Statistics:
        """A shard that was just measured."""
        counted = Counted(self.data, self.prepared, shard, sample.samples, sample.digest)
        none = {layer.output: ChannelMoments.empty(layer.mean.size) for layer in self.layers}
        return Statistics(self.model, self.layers, self.left, none | sample.moments, (counted,))

    def kept(self, path: Path, shard: str) -> Statistics | None:
        """A shard that an earlier run finished, None if none did.

        Raises:
            OutputError: the file holds something else, which must not be written over.
        """
        if not path.exists():
            return None
        part = Statistics.load(path)
        mine = (self.model, [(self.data, self.prepared, shard)])
        if (
            part.model,
            [(each.data, each.prepared, each.shard) for each in part.counted],
        ) != mine or not self.data:
            raise OutputError(
                f"{path} holds statistics of another model, data set or shard; choose another place."
            )
        return part


def part_name(shard: str) -> str:
    """The file of a shard in a folder of parts."""
    return f"part-{shard.replace('/', '-of-').replace(' ', '-')}.npz"
