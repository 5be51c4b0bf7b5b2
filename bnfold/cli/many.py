"""Each file in a process of its own, so that none can take the others, or the command, down.

What a child held is given back when it ends, so memory does not grow with the number of files.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnfold.errors import UnexpectedError
from bnfold.signals import deferred, heed, orderly, undeferred

Work = Callable[[Path, Any], Any]

# For how long a child that was told to stop may clean up, in seconds.
_PATIENCE = 10.0


def each(models: Sequence[Path], work: Work, order: Any, jobs: int) -> Iterator[tuple[Path, Any]]:
    """Do ``work(model, order)`` for every model, ``jobs`` at a time; results come in the order of the models.

    A result is what ``work`` returns, or an ``UnexpectedError`` if its process died. When the caller stops
    early, or is interrupted, children are told to stop and waited for.

    Args:
        models: the files.
        work: a function of a module, so that it can be named to another process.
        order: its second argument, which can be pickled.
        jobs: how many processes at a time.
    """
    context = _context()
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    results: dict[int, Any] = {}
    started = shown = 0
    try:
        while shown < len(models):
            heed()
            while len(running) < jobs and started < len(models):
                connection, process = _start(context, work, models[started], order)
                running[connection] = (started, process)
                started += 1
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                place, process = running[ready]
                results[place] = _result(ready, process, models[place])
                del running[ready]
            while shown in results:
                yield models[shown], results.pop(shown)
                shown += 1
    finally:
        _stop([process for _, process in running.values()])


def _context() -> Any:
    """Fork where that is safe: this process runs no threads, and has imported what the work needs."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    import bnfold.job
    import bnfold.rules

    bnfold.rules.load()
    return multiprocessing.get_context("fork")


def _start(context: Any, work: Work, model: Path, order: Any) -> tuple[Connection, BaseProcess]:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sending, work, model, order), daemon=False)
    # What a signal raises within a fork, Python ignores.
    with deferred(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: only tests have any
        process.start()
    sending.close()
    return receiving, process


def _child(sending: Connection, work: Work, model: Path, order: Any) -> None:
    try:
        with orderly():
            undeferred()
            sending.send(work(model, order))
    except KeyboardInterrupt:
        pass  # the parent was interrupted as well, and says so


def _result(connection: Connection, process: BaseProcess, model: Path) -> Any:
    try:
        made = connection.recv()
    except EOFError:
        made = None
    connection.close()
    process.join()
    if made is not None:
        return made
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return UnexpectedError(
        f"{model} took down the process that folded it ({how}; 9 is mostly a lack of memory, others are "
        "defects of onnx); nothing was written, check the model with onnx.checker."
    )


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
