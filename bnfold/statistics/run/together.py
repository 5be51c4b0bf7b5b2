"""Many batches at once, in order, on threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from bnfold.statistics.data.ports import Feeds

T = TypeVar("T")

# How many batches are waited for together, unless they take more bytes than this.
_TOGETHER = 256
_BYTES = 1 << 26

# Into how many pieces a thread's share of them is cut, so that one that is held up is not waited for.
_PIECES = 4


def together(
    run: Callable[[Feeds], T], batches: Iterable[Feeds], threads: int
) -> Generator[list[tuple[Feeds, T]], None, None]:
    """What ``run`` makes of every batch, in the order of the batches, several of them at a time.

    While some batches run the next are read, and nobody has to wake for every single one. Each runs on
    one thread: with one batch after the other on all of them, layers of small nets would wait for each
    other's threads most of the time.
    """
    pool, pending, stopped = ThreadPoolExecutor(threads), iter(batches), Event()

    def piece(feeds: list[Feeds]) -> list[T]:
        return [run(each) for each in feeds if not stopped.is_set()]

    def start() -> tuple[list[Feeds], list[Future[list[T]]]]:
        feeds = _next(pending, threads)
        size = -(-len(feeds) // (threads * _PIECES)) or 1
        return feeds, [pool.submit(piece, feeds[k : k + size]) for k in range(0, len(feeds), size)]

    try:
        ahead = start()
        while ahead[0]:
            (feeds, parts), ahead = ahead, start()
            wait(parts)
            yield list(zip(feeds, [each for part in parts for each in part.result()], strict=True))
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _next(pending: Iterator[Feeds], threads: int) -> list[Feeds]:
    """As many batches as are cheap to wait for together, and to keep in memory."""
    feeds, size = [], 0
    for each in pending:
        feeds.append(each)
        size += sum(array.nbytes for array in each.values())
        if len(feeds) >= _TOGETHER or (size >= _BYTES and len(feeds) >= threads):
            break
    return feeds


def processors() -> int:
    """On how many processors this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
