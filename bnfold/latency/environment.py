"""Where and with what was measured, and whether that place was quiet enough."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnfold import __version__

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Environment:
    """What a reader needs to judge or repeat a measurement.

    Attributes:
        cpu: model name of the processor.
        cores: cores that this process may use.
        machine_cores: cores of the machine, which its load is spread over.
        load_before: processes that wanted to run, mean of the minute before; None where nobody counts them.
        load_after: the same at the end.
        system: operating system and release.
        versions: of Python and of every package that takes part.
    """

    cpu: str
    cores: int
    machine_cores: int
    load_before: float | None
    load_after: float | None
    system: str
    versions: dict[str, str]

    @property
    def overloaded(self) -> bool:
        """Whether more processes wanted to run than the machine has cores, before this one began."""
        return self.load_before is not None and self.load_before > self.machine_cores

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def environment(load_before: float | None, onnxruntime: str) -> Environment:
    """This machine, now; ``onnxruntime`` is the version that the child process loaded."""
    versions = {name: version(name) for name in ("numpy", "onnx", "scipy")}
    return Environment(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine_cores(),
        machine_cores=machine_cores(),
        load_before=load_before,
        load_after=load(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={
            "bnfold": __version__,
            "onnxruntime": onnxruntime,
            **versions,
            "python": platform.python_version(),
        },
    )


def machine_cores() -> int:
    """Cores of the machine, whether or not this process may use them."""
    return os.cpu_count() or 1


def load() -> float | None:
    """Processes that want to run, mean of the last minute; None where nobody counts them."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _cpu() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
