"""One case of a benchmark: the parent decides what is measured and when to stop, a child measures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .child.process import BenchError, Child, Job, child
from .child.sessions import LEVELS
from .environment import machine_cores
from .models import Model
from .plan import Plan, plan
from .report import Case
from .samples import Samples
from .statistics import is_look
from .verdict import counted

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Settings:
    """How to measure; the parameters of ``bench`` say what each means."""

    threads: int
    provider: tuple[str, ...]
    level: str
    seconds: float
    width: float
    dim: dict[str, int]
    seed: int

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}, not {self.level!r}")
        if self.threads < 1 or not 0 < self.seconds < math.inf or not self.width >= 0 or not self.provider:
            raise ValueError(
                "threads, seconds and provider must be given, seconds finite, and width must not be negative"
            )
        if self.threads > machine_cores():
            cores = counted(machine_cores(), "core")
            raise BenchError(f"This machine has {cores}, too few for {self.threads} threads; use fewer.")


class Measurement:
    """One case: all models on one set of inputs, its first runs and its session pairs in one child process.

    Attributes:
        onnxruntime: the version that measured, known after ``case``.
    """

    def __init__(
        self,
        models: list[Model],
        settings: Settings,
        batch: int | None,
        npz: Path | None,
        folder: Path,
        progress: Progress = lambda done, text: None,
    ) -> None:
        self.settings, self.batch, self.npz, self.progress = settings, batch, npz, progress
        self.labels = [each.label for each in models]
        self.job: Job = {
            "labels": self.labels,
            "paths": [str(each.path) for each in models],
            "folder": str(folder),
            "threads": settings.threads,
            "level": settings.level,
            "providers": list(settings.provider),
        }
        self.onnxruntime = ""

    def case(self, *, profile: bool = False, memory: bool = True) -> Case:
        """Measure it, attributing time to operators and taking the peak memory if asked to."""
        with child(self.job) as line:
            self.progress(0.0, "making inputs")
            ready = self._prepare(line)
            loads, times = ([*ready[each], ready[each][0]] for each in ("load", "run"))
            samples, planned, stopped = self._sample(line, plan(loads, times, self.settings.seconds))
            self.progress(1.0, "profiling" if profile else "measuring memory")
            operators = line.ask("profile")["operators"] if profile else None
        peaks = [self._peak(index) if memory else None for index in range(len(self.labels))]
        return Case(
            self.batch,
            self.settings.level,
            ready["shapes"],
            ready["bound"],
            self.labels,
            planned,
            samples,
            stopped,
            peaks,
            operators,
        )

    def _prepare(self, line: Child) -> dict[str, Any]:
        npz = None if self.npz is None else str(self.npz)
        settings = self.settings
        ready = line.ask("prepare", inputs=npz, batch=self.batch, dim=settings.dim, seed=settings.seed)
        self.onnxruntime = ready["onnxruntime"]
        return ready

    def _sample(self, line: Child, planned: Plan) -> tuple[Samples, Plan, str]:
        """Measure session pairs until the intervals are narrow or the time is up; also how it went."""
        samples, start, budget = Samples(), time.monotonic(), self.settings.seconds
        while True:
            pairs = len(samples.blocks)
            timed = line.ask("pair", seed=f"{self.settings.seed}/{pairs}", **asdict(planned))
            spent = (time.monotonic() - start) / budget
            planned = planned if pairs else planned.after(spent)
            samples.add(timed["created"], timed["blocks"][: planned.blocks])
            self.progress(min(spent, 1.0), f"session pair {pairs + 1}")
            if is_look(pairs + 1) and self._widest(samples) <= self.settings.width:
                return samples, planned, "width"
            # Another pair would overrun by more than half of itself.
            if spent * (pairs + 1.5) / (pairs + 1) >= 1:
                return samples, planned, "budget"

    def _widest(self, samples: Samples) -> float:
        return max(samples.time(role).width for role in range(1, len(self.labels) + 1))

    def _peak(self, index: int) -> int | None:
        with child(self.job) as line:
            peak: int | None = line.ask("memory", model=index)["bytes"]
            return peak
