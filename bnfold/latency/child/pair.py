"""One session pair: fresh sessions of all models, and of the first again, measured in alternating blocks."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

from ..plan import WARM_RUNS, WARM_SECONDS
from .process import Job
from .sessions import Given, call, kept, open_session

Call = Callable[[], object]


def answer(
    job: Job, say: Callable[[str], None], seed: str, runs: int, lead: int, blocks: int
) -> dict[str, Any]:
    """Measure once, in nanoseconds; the last role is the control, another session of the first model.

    Sessions are created, and take their turns in each block, in an order drawn anew.
    """
    say(f"measuring {' and '.join(job['labels'])}")
    order = random.Random(seed)
    roles = [*range(len(job["paths"])), 0]
    given, created, calls = kept(job), [0] * len(roles), {}
    for role in _shuffled(len(roles), order):
        created[role], calls[role] = _fresh(job, roles[role], given)
    for role in _shuffled(len(roles), order):
        _warm_up(calls[role])
    gc.collect()
    gc.disable()
    times = [_round(calls, order, runs, lead) for _ in range(blocks)]
    gc.enable()
    return {"created": created, "blocks": times}


def _round(calls: dict[int, Call], order: random.Random, runs: int, lead: int) -> list[list[int]]:
    """One block of every session, in random order."""
    times: list[list[int]] = [[] for _ in calls]
    for role in _shuffled(len(calls), order):
        times[role] = _block(calls[role], runs, lead)
    return times


def _block(run: Call, runs: int, lead: int) -> list[int]:
    for _ in range(lead):
        run()
    stamps = [0] * (runs + 1)
    stamps[0] = perf_counter_ns()
    for index in range(1, runs + 1):
        run()
        stamps[index] = perf_counter_ns()
    return [after - before for before, after in pairwise(stamps)]


def _fresh(job: Job, model: int, given: Given) -> tuple[int, Call]:
    start = perf_counter_ns()
    session = open_session(job, model)
    return perf_counter_ns() - start, call(session, given)


def _warm_up(run: Call) -> None:
    start, done = perf_counter_ns(), 0
    while done < WARM_RUNS or perf_counter_ns() - start < WARM_SECONDS * 1e9:
        run()
        done += 1


def _shuffled(count: int, order: random.Random) -> list[int]:
    return order.sample(range(count), count)
