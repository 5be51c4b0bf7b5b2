"""Many batches at once: none is lost, none changes places, and few are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import onnx_ir as ir
import pytest

from bnfold.core.example import Graph
from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Feeds
from bnfold.statistics.run import together as module
from bnfold.statistics.run.session import Session
from bnfold.statistics.run.together import processors, together


def doubling() -> Session:
    op = Graph(17)
    x = op.input("x", ("n", 2))
    return Session(ir.from_proto(op.finish([op.Add(x, x)])))


def numbered(count: int) -> Iterator[Feeds]:
    for number in range(count):
        yield {"x": np.full((1, 2), number, np.float32)}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 200])
def test_every_batch_comes_back_in_order(threads: int, count: int) -> None:
    """Each with its own outputs, however many there are for however many threads."""
    doubled = doubling()
    pairs = [pair for part in together(doubled.run, numbered(count), threads) for pair in part]
    assert [feeds["x"][0, 0] for feeds, _ in pairs] == list(range(count))
    assert [outputs[0][0, 0] for _, outputs in pairs] == [2 * k for k in range(count)]


def test_large_batches_are_not_read_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """One per thread while one per thread runs, so that data of any length fit into memory."""
    monkeypatch.setattr(module, "_BYTES", 1)
    read: list[Feeds] = []
    batches = (read.append(feeds) or feeds for feeds in numbered(100))
    with closing(together(doubling().run, batches, 2)) as parts:
        for done, part in enumerate(parts, 1):
            assert len(part) == 2
            assert len(read) <= 2 * (done + 1)


def test_a_batch_that_fails_is_reported() -> None:
    """A batch the model cannot take ends the run, even if those around it are fine."""
    batches = [*numbered(3), {"x": np.zeros((1, 3), np.float32)}, *numbered(3)]
    with pytest.raises(InputsError, match="1, 3"):
        list(together(doubling().run, batches, 2))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_a_pinned_process_counts_only_its_processors() -> None:
    """Threads beyond those a container or ``taskset`` grants would only get into each other's way."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, before)
