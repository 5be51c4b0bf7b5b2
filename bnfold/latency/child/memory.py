"""Peak memory of one model, in a process that has done nothing else."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .process import Job
from .sessions import call, kept, open_session, runtime

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RUNS = 3


def answer(job: Job, say: Callable[[str], None], model: int) -> dict[str, Any]:
    """Bytes by which loading a model and running it raises the peak, None where nobody counts them."""
    runtime()
    given = kept(job)
    say(f"measuring the memory of {job['labels'][model]}")
    before = _baseline()
    run = call(open_session(job, model), given)
    for _ in range(_RUNS):
        run()
    after = _peak()
    return {"bytes": None if before is None or after is None else after - before}


def _baseline() -> int | None:
    """The peak so far, brought down to what is in use now where the system allows it."""
    with suppress(OSError):
        _RESET.write_text("5")
    return _peak()


def _peak() -> int | None:
    """Peak resident size in bytes.

    Not ``ru_maxrss`` where there is /proc: on Linux a process inherits that of the one that started it
    (measured: 417 MB in an empty process started by one of 417 MB).
    """
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
