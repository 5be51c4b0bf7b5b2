"""``bench``: what the parent process does. It decides what is measured and when to stop; children measure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bnfold.errors import InputsError, MissingDependencyError
from bnfold.folding import Inputs, ModelLike

from .child.process import Child, Job
from .child.sessions import LEVELS
from .environment import environment, load
from .models import Model, gathered
from .plan import plan
from .report import BenchReport, Case, Samples
from .statistics import is_look

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
        if self.threads < 1 or self.seconds <= 0 or self.width < 0 or not self.provider:
            raise ValueError("threads, seconds and provider must be given, and width must not be negative")


def bench(
    *models: ModelLike,
    inputs: Inputs = None,
    batch: int | Sequence[int] | None = None,
    dim: Mapping[str, int] | None = None,
    threads: int = 1,
    provider: str | Sequence[str] = "CPUExecutionProvider",
    level: str = "all",
    seconds: float = 20.0,
    width: float = 0.02,
    profile: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, text: None,
) -> BenchReport:
    """Measure models against the first one, or a single one against its fold, in ONNX Runtime.

    Fresh sessions of all models, and a second one of the first as a control, run in alternating blocks in random
    order, until every 95 % interval is as narrow as asked for or the time is up.

    Args:
        models: paths, ``onnx.ModelProto`` or ``onnx_ir.Model``.
        inputs: what to run on: a ``.npz`` path or arrays by input name; random without.
        batch: sizes for the open first dimension of the inputs, each a case of its own; 1 without.
        dim: sizes for other open dimensions, by name.
        threads: threads of each session.
        provider: execution providers, in order of preference.
        level: ONNX Runtime's graph optimizations: "all" as deployed, "extended", "basic" or "off".
        seconds: time budget of each case; loading, memory and profile come on top.
        width: stop earlier once every interval is relatively this narrow; 0 uses all the time.
        profile: attribute the time to operators, in separate runs.
        seed: of the random inputs and of the random order.
        progress: called with the part that is done, from 0 to 1, and what is going on.

    Raises:
        BnfoldError: a subclass that says what is the matter with a model, the inputs or the installation.
    """
    _require("onnxruntime", "scipy")
    providers = (provider,) if isinstance(provider, str) else tuple(provider)
    settings = Settings(threads, providers, level, seconds, width, dict(dim or {}), seed)
    sizes: list[int | None] = [batch] if batch is None or isinstance(batch, int) else list(batch)
    before = load()
    with TemporaryDirectory(prefix="bnfold-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        progress(0.0, "reading")
        compared = gathered(models, folder)
        npz = _npz(inputs, folder / "inputs.npz")
        cases = []
        for index, size in enumerate(sizes):
            measured = _Measurement(compared, settings, size, npz, folder, _part(progress, index, len(sizes)))
            cases.append(measured.case(profile))
    chosen = asdict(settings) | {"inputs": None if npz is None else str(npz)}
    return BenchReport(compared, cases, environment(before, measured.onnxruntime), chosen)


class _Measurement:
    """One case: all models on one set of inputs."""

    def __init__(
        self,
        models: list[Model],
        settings: Settings,
        batch: int | None,
        npz: Path | None,
        folder: Path,
        progress: Progress,
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

    def case(self, profile: bool) -> Case:
        """Measure it."""
        with Child(self.job) as child:
            self.progress(0.0, "making inputs")
            ready = self._prepare(child)
            roles = len(self.labels) + 1
            planned = plan(max(ready["load"]), min(ready["run"]), roles, self.settings.seconds)
            samples, stopped = self._sample(child, asdict(planned))
            self.progress(1.0, "profiling" if profile else "measuring memory")
            operators = child.ask("profile")["operators"] if profile else None
        peaks = [self._peak(index) for index in range(len(self.labels))]
        return Case(self.batch, ready["shapes"], self.labels, planned, samples, stopped, peaks, operators)

    def _prepare(self, child: Child) -> dict[str, Any]:
        npz = None if self.npz is None else str(self.npz)
        settings = self.settings
        ready = child.ask("prepare", inputs=npz, batch=self.batch, dim=settings.dim, seed=settings.seed)
        self.onnxruntime = ready["onnxruntime"]
        return ready

    def _sample(self, child: Child, planned: dict[str, int]) -> tuple[Samples, str]:
        """Measure session pairs until the intervals are narrow or the time is up."""
        samples, start, budget = Samples(), time.monotonic(), self.settings.seconds
        while True:
            pairs = len(samples.blocks)
            samples.add(**child.ask("pair", seed=f"{self.settings.seed}/{pairs}", **planned))
            spent = (time.monotonic() - start) / budget
            self.progress(min(spent, 1.0), f"session pair {pairs + 1}")
            if is_look(pairs + 1) and self._widest(samples) <= self.settings.width:
                return samples, "width"
            # Another pair would overrun by more than half of itself.
            if spent * (pairs + 1.5) / (pairs + 1) >= 1:
                return samples, "budget"

    def _widest(self, samples: Samples) -> float:
        return max(samples.time(role).width for role in range(1, len(self.labels) + 1))

    def _peak(self, index: int) -> int | None:
        with Child(self.job) as child:
            peak: int | None = child.ask("memory", model=index)["bytes"]
            return peak


def _part(progress: Progress, index: int, count: int) -> Progress:
    return lambda done, text: progress((index + done) / count, text)


def _npz(inputs: Inputs, target: Path) -> Path | None:
    """The path of the inputs, written to ``target`` first if they are in memory."""
    if inputs is None:
        return None
    if not isinstance(inputs, (str, os.PathLike)):
        np.savez(target, allow_pickle=False, **{name: np.asarray(array) for name, array in inputs.items()})
        return target
    if not Path(inputs).is_file():
        raise InputsError(f"{os.fspath(inputs)} does not exist; give an .npz with one array per input.")
    return Path(inputs).resolve()


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"bench needs {package}, which is not installed; run: pip install 'bnfold[bench]'"
            )
