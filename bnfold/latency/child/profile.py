"""Where the time goes: ONNX Runtime's own profile of every model, in runs of their own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from .process import Job, file_in
from .sessions import call, kept, open_session

_SECONDS, _FEWEST, _MOST = 2.0, 10, 500
_KERNEL = "_kernel_time"


def answer(job: Job, say: Callable[[str], None]) -> dict[str, Any]:
    """Nodes and seconds by operator for each model, from runs that take turns."""
    say(f"profiling {' and '.join(job['labels'])}")
    given, indices = kept(job), range(len(job["paths"]))
    sessions = [open_session(job, index, file_in(job, f"profile{index}")) for index in indices]
    calls = [call(session, given) for session in sessions]
    start, runs = perf_counter(), 0
    while runs < _FEWEST or (runs < _MOST and perf_counter() - start < _SECONDS):
        for run in calls:
            run()
        runs += 1
    traces = [Path(session.end_profiling()) for session in sessions]
    return {"operators": [operator_times(json.loads(each.read_text()), runs) for each in traces]}


def operator_times(events: Iterable[Mapping[str, Any]], runs: int) -> dict[str, dict[str, float]]:
    """Nodes and seconds per run by operator, from the events of a profile of so many runs.

    A node's time is the median over its calls, so that warming up does not count; a node inside a Loop is
    called several times a run. Durations of the events are in microseconds.
    """
    calls: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            calls[event["args"]["op_name"], event["name"].removesuffix(_KERNEL)].append(event["dur"] * 1e-6)
    found: dict[str, dict[str, float]] = {}
    for (operator, _), times in calls.items():
        entry = found.setdefault(operator, {"nodes": 0, "seconds": 0.0})
        entry["nodes"] += 1
        entry["seconds"] += median(times) * len(times) / runs
    return found
