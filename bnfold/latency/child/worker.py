"""The child process, ``python -m <this module>``: one JSON request a line on stdin, one answer on stdout.

It answers ``{"answer": ...}``, or ``{"error": type, "text": ...}`` for an error of bnfold, and says
``{"doing": ...}`` before whatever could crash.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bnfold.errors import BnfoldError

# Each task is the function ``answer`` of a module, imported when asked for: what measures memory loads no
# more than it must.
_TASKS = ("prepare", "pair", "memory", "profile")


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a runtime prints must not look like an answer

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    job = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        say(_answer(job, json.loads(line), lambda text: say({"doing": text})))


def _answer(job: Any, request: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    task = request.pop("task")
    if task not in _TASKS:
        raise ValueError(f"no task {task!r}")
    try:
        return {"answer": import_module(f"{__package__}.{task}").answer(job, say, **request)}
    except BnfoldError as error:
        return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    main()
