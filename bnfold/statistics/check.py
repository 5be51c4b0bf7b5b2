"""``stats``: run data through a model and hold its batch norms' statistics against them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.errors import InputsError, OutputError, UnsupportedModelError
from bnfold.folding import ModelLike, _to_ir
from bnfold.provenance import fingerprint
from bnfold.statistics.data.paths import source_of
from bnfold.statistics.data.preprocess import Preprocess
from bnfold.statistics.data.sources import Shard
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.layers import Found, Unmeasured, survey
from bnfold.statistics.ledger import Ledger, part_name
from bnfold.statistics.result import Statistics, merge_all
from bnfold.statistics.run.measure import Subject, Task, measure
from bnfold.statistics.run.spread import by_number, cut, spread


def stats(
    model: ModelLike,
    data: Any,
    *,
    shard: str | None = None,
    batch: int = 0,
    preprocess: str | None = None,
    executor: Executor | None = None,
    shards: int = 0,
    parts: str | os.PathLike[str] | None = None,
    to_inference: bool = False,
    base_dir: str | os.PathLike[str] | None = None,
) -> Statistics:
    """Compare every batch norm's stored statistics with those of data.

    Args:
        model: a path, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``torch.onnx.ONNXProgram``.
        data: a .npz file, a folder of .npz, .npy or image files, an array, arrays by input name, or
            an iterable of batches.
        shard: measure only this part, ``"i/n"`` counted from 1.
        batch: how many samples run at once, 0 for as many as fit; the model or the data may fix it.
        preprocess: what is done to files and arrays first, such as ``"divide 255"``.
        executor: where to measure: a process pool, ``client.get_executor()`` of Dask, and so on.
        shards: into how many parts the executor's work is cut; 0 for the default.
        parts: a folder in which finished shards are kept, so that a run that was killed can go on.
        to_inference: let nodes in training mode use their stored statistics.
        base_dir: the folder of the external data of a ``ModelProto`` that was loaded without them.

    Raises:
        InputsError: the data do not fit the model, or hold nothing.
        UnsupportedModelError: the model has no batch norm that could be measured.
        UnfinishedError: a worker was lost; call again with the same ``parts`` to go on.
    """
    subject = subject_of(model, base_dir, to_inference, remote=executor is not None)
    work = prepare(subject, data, shard=shard, batch=batch, preprocess=preprocess)
    folder = None if parts is None else _made(Path(parts))
    if executor is None:
        return work.here(None if folder is None else folder / part_name(str(work.task.shard)))
    if work.task.shard.count > 1:
        raise InputsError("Give a shard to measure here or an executor to measure all shards, not both.")
    return work.on(executor, shards, folder)


@dataclass(frozen=True)
class Work:
    """A model, data, and the ledger of what is counted."""

    task: Task
    ledger: Ledger

    def here(self, path: Path | None = None) -> Statistics:
        """Measure the task's shard, unless ``path`` holds it already; keep it there.

        Raises:
            OutputError: ``path`` holds something else, or cannot be written.
        """
        shard = str(self.task.shard)
        kept = None if path is None else self.ledger.kept(path, shard)
        if kept is not None:
            return kept
        made = self.ledger.entry(shard, measure(self.task))
        if self.task.shard.count == 1:  # of many shards some may well be empty
            _not_empty(made)
        if path is not None:
            made.save(path)
        return made

    def on(self, executor: Executor, shards: int, folder: Path | None) -> Statistics:
        """Measure all shards on an executor, but for those that ``folder`` holds already."""
        if folder is not None and not self.ledger.data:
            raise InputsError(
                "An iterable has no shards that could be found again; give files to keep parts."
            )
        made = sorted(self._parts(executor, shards, folder), key=by_number)
        return _not_empty(merge_all(part for _, part in made))

    def _parts(
        self, executor: Executor, shards: int, folder: Path | None
    ) -> Iterator[tuple[str, Statistics]]:
        """Every shard, each kept as soon as it is measured."""
        for tasks in cut(self.task, shards):
            todo = {}
            for name, task in tasks.items():
                kept = None if folder is None else self.ledger.kept(folder / part_name(name), name)
                if kept is None:
                    todo[name] = task
                else:
                    yield name, kept
            for name, sample in spread(executor, measure, todo):
                made = self.ledger.entry(name, sample)
                if folder is not None:
                    made.save(folder / part_name(name))
                yield name, made


def prepare(
    subject: Subject, data: Any, *, shard: str | None = None, batch: int = 0, preprocess: str | None = None
) -> Work:
    """Look at model and data before anything is measured; raises like ``stats``."""
    source = source_of(data, batch, Preprocess.of(preprocess))
    model = subject.open()
    found, left = survey(model)
    require_layers(found, left)
    layers, behind = _in_front_of_damage([each.layer for each in found])
    ledger = Ledger(fingerprint(model), tuple(layers), (*left, *behind), source.identity(), preprocess or "")
    part = Shard.parse(shard) if shard else Shard()
    return Work(Task(subject, source, part, only=frozenset(each.output for each in layers)), ledger)


def _in_front_of_damage(layers: list[Layer]) -> tuple[list[Layer], list[Unmeasured]]:
    """Leave out what stands behind statistics that are no numbers: it sees none either."""
    kept: list[Layer] = []
    left: list[Unmeasured] = []
    tainted: set[str] = set()
    for layer in layers:
        behind = not tainted.isdisjoint(layer.parents)
        if behind:
            left.append(Unmeasured(layer.name, _BEHIND_DAMAGE))
        else:
            kept.append(layer)
        if behind or layer.broken.any():
            tainted.add(layer.output)
    return kept, left


_BEHIND_DAMAGE = (
    "It stands behind stored statistics that are no numbers, so it sees none; recalibrate the model first."
)


def require_layers(found: list[Found], left: list[Unmeasured]) -> None:
    """Refuse a model without anything to measure.

    Raises:
        UnsupportedModelError: there is no batch norm, or none that can be measured; says why.
    """
    if found:
        return
    if left:
        raise UnsupportedModelError(
            f"None of the {len(left)} batch norms can be measured; the first, {left[0].name}: {left[0].why}"
        )
    raise UnsupportedModelError(
        "The model has no batch norm; if it was folded already, check the model it was folded from."
    )


def subject_of(
    model: ModelLike, base_dir: str | os.PathLike[str] | None, inference: bool, *, remote: bool
) -> Subject:
    """The model in a form that tasks can hold: a path where there is one, which costs nothing to send."""
    if isinstance(model, (str, os.PathLike)):
        return Subject(Path(model).absolute(), inference=inference)
    folder = None if base_dir is None else Path(base_dir).absolute()
    if not remote:
        return Subject(_to_ir(model, base_dir), folder, inference)
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(_to_ir(model, base_dir))
    return Subject(proto.SerializeToString(), folder, inference)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error
    return folder


def _not_empty(made: Statistics) -> Statistics:
    if not made.samples:
        raise InputsError("The data hold no sample (or less than one batch, where the model fixes its size).")
    return made
