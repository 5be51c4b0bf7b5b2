"""Whole processes, measured: seconds from start to end, and the peak memory of the largest one.

A process inherits the peak memory of the one that starts it, so a launcher of 10 MB stands between the script
and what is measured; a smaller peak than the launcher's own cannot be seen. Python may keep compiled modules,
as it does for users: where the environment forbids that, each start would compile sympy again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
ran = {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "peak": usage.ru_maxrss * unit}
open(sys.argv[1], "w").write(json.dumps(ran))
"""


@dataclass(frozen=True)
class Ran:
    """What became of a process.

    Attributes:
        failure: one line on why it did not end well; empty if it did.
        seconds: from start to end, None if it was stopped.
        peak: bytes resident at most, in it or in one of its children; None if it was stopped.
    """

    failure: str
    seconds: float | None = None
    peak: int | None = None


def run(
    command: Sequence[str | Path], folder: Path, timeout: float, env: Mapping[str, str] | None = None
) -> Ran:
    """Run a command in ``folder``, where it also leaves ``stderr.txt``; stop it after ``timeout`` seconds."""
    report = folder / "launcher.json"
    report.unlink(missing_ok=True)
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report.resolve()), *map(str, command)]
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            launch,
            cwd=folder,
            env={**_environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Ran(f"stopped after {timeout:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(report.read_text())
    return Ran(_failure(found["code"], folder), found["seconds"], found["peak"])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _failure(code: int, folder: Path) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    lines = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1][:160] if lines else 'no message'}"
