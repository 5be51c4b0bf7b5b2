"""The parent's end: a child process that answers one request at a time, and whose crash is an answer too.

While it measures, the parent waits; while the parent computes, it waits. Nothing but the standard library is
needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypedDict

from bnfold import errors
from bnfold.errors import BnfoldError


class BenchError(BnfoldError):
    """A model cannot be measured: the runtime refuses it, fails on it or crashes."""


class Job(TypedDict):
    """What a child is told when it starts.

    ``labels`` and ``paths`` of the models; ``folder`` for what one child leaves to the next.
    """

    labels: list[str]
    paths: list[str]
    folder: str
    threads: int
    level: str
    providers: list[str]


class Child:
    """The line to a child process, opened by ``child``."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[str]) -> None:
        self._process, self._stderr = process, stderr
        self._doing = "starting"

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, task: str, **details: Any) -> dict[str, Any]:
        """Have the child do one thing.

        Raises:
            BnfoldError: what the child raised, or ``BenchError`` if it crashed.
        """
        self.tell({"task": task, **details})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise getattr(errors, message["error"], BenchError)(message["text"])
            if "answer" in message:
                answer: dict[str, Any] = message["answer"]
                return answer
            self._doing = message["doing"]
        raise BenchError(self._crash())

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(message)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(self._crash()) from None

    def _crash(self) -> str:
        code = self._process.wait()
        if code == 1:  # an exception of Python, not of the system
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or ["no message"])[-1]
            return f"The measuring process failed when {self._doing} ({last})."
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "; perhaps the memory was too small" if code == -9 else ""
        return f"ONNX Runtime crashed ({how}) when {self._doing}{hint}."


@contextmanager
def child(job: Job) -> Iterator[Child]:
    """A child process for one job, for as long as the block lasts."""
    paths = [os.path.abspath(path) for path in sys.path]
    with (
        TemporaryFile("w+", errors="replace") as stderr,
        subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", f"{__package__}.worker"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            line = Child(process, stderr)
            line.tell(job)
            yield line
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # closing a pipe flushes what a crashed child has not read
                process.communicate()


def file_in(job: Job, name: str) -> Path:
    """A file that one child of a job leaves to the next."""
    return Path(job["folder"]) / name
