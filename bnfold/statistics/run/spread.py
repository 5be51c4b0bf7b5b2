"""Shards over any ``concurrent.futures.Executor``: a process pool, Dask, MPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import replace
from itertools import count, islice
from typing import TypeVar

from bnfold.errors import BnfoldError
from bnfold.statistics.data.sources import Shard, Stream
from bnfold.statistics.run.measure import Task

T = TypeVar("T")
R = TypeVar("R")

# Into how many parts work is cut unless a caller says otherwise, and how many batches of a stream,
# which cannot be cut in advance, make one part.
SHARDS = 8
_CHUNK = 16


class UnfinishedError(BnfoldError):
    """Some shards could not be measured; all others were."""

    exit_code = 1


def cut(task: Task, shards: int) -> Iterator[dict[str, Task]]:
    """Cut a task for an executor into tasks by name; a stream a few at a time, to spare memory."""
    if not isinstance(task.source, Stream):
        parts = [Shard(index, shards or SHARDS) for index in range(shards or SHARDS)]
        yield {str(part): replace(task, shard=part, threads=1) for part in parts}
        return
    batches, numbers = iter(task.source.made), count(1)
    while True:
        chunks = [list(islice(batches, _CHUNK)) for _ in range(shards or SHARDS)]
        filled = [Stream(chunk) for chunk in chunks if chunk]
        if not filled:
            return
        yield {f"chunk {next(numbers)}": replace(task, source=each, threads=1) for each in filled}


def spread(executor: Executor, work: Callable[[T], R], tasks: Mapping[str, T]) -> Iterator[tuple[str, R]]:
    """Run every task on the executor and yield each result, with its name, as soon as it is there.

    Args:
        executor: where to run.
        work: a function of a module, which workers can import.
        tasks: by name; values that can be pickled.

    Raises:
        BnfoldError: of a task: the data or the model are at fault.
        UnfinishedError: a worker was lost, or failed otherwise; all other tasks have been tried.
    """
    futures: dict[Future[R], str] = {executor.submit(work, task): name for name, task in tasks.items()}
    lost: dict[str, BaseException] = {}
    try:
        for future in as_completed(futures):
            failure = future.exception()
            if isinstance(failure, BnfoldError):
                raise failure
            if failure is None:
                yield futures[future], future.result()
            else:
                lost[futures[future]] = failure
    finally:
        for future in futures:
            future.cancel()
    if lost:
        first = min(lost)
        raise UnfinishedError(
            f"{len(lost)} of {len(tasks)} shards were not measured, the first being {first} "
            f"({type(lost[first]).__name__}: {lost[first]}); run again to do what is missing."
        ) from lost[first]


def by_number(result: tuple[str, R]) -> int:
    """The place of a result among those of ``cut``, to merge them in one order whoever finished first."""
    name, _ = result
    return int(name.removeprefix("chunk ").partition("/")[0])
