"""What a benchmark found, as data: for tables, for JSON, for figures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .environment import Environment
from .models import Model
from .plan import Plan
from .samples import Samples
from .statistics import Interval, percentiles
from .verdict import Comparison, Finding, counted, numbers

SCHEMA_VERSION = 1
# Beyond this a difference of a few percent, which is what a fold is often about, cannot be seen.
_NOISY = 1.03
Operators = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Case:
    """All models on one set of inputs.

    Attributes:
        batch: the batch size asked for, None if none was.
        level: ONNX Runtime's graph optimizations.
        shapes: of the inputs, by name.
        bound: whether inputs and outputs were bound, else every run makes new outputs.
        labels: of the models.
        plan: blocks and runs of each session pair.
        samples: all times.
        stopped: "width" if every interval reached the target width, "budget" if the time was up.
        peaks: bytes by which each model raises the peak memory of a process, None where unknown.
        operators: nodes and seconds by operator for each model, None without a profile.
    """

    batch: int | None
    level: str
    shapes: dict[str, list[int]]
    bound: bool
    labels: list[str]
    plan: Plan
    samples: Samples
    stopped: str
    peaks: list[int | None]
    operators: list[Operators] | None

    @cached_property
    def control(self) -> Interval:
        """The first model against itself: the noise floor."""
        return self.samples.time(len(self.labels))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every other model against the first."""
        load_control = self.samples.load(len(self.labels))
        return [
            Comparison(
                label,
                self.labels[0],
                Finding(self.samples.time(role), self.control),
                Finding(self.samples.load(role), load_control),
            )
            for role, label in enumerate(self.labels)
            if role > 0
        ]

    @cached_property
    def percentiles(self) -> list[dict[float, float]]:
        """Seconds of a run for each model, at the percentiles that its runs support."""
        return [percentiles(np.array(runs)) for runs in self.samples.runs[: len(self.labels)]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data, in seconds and bytes."""
        models = [self._model(role) for role in range(len(self.labels))]
        return {
            "batch": self.batch,
            "level": self.level,
            "inputs": self.shapes,
            "io_binding": self.bound,
            "session_pairs": len(self.samples.blocks),
            "blocks_per_pair": self.plan.blocks,
            "runs_per_block": self.plan.runs,
            "stopped": self.stopped,
            "models": models,
            "control": self.control.to_dict(),
            "comparisons": [each.to_dict() for each in self.comparisons],
        }

    def _model(self, role: int) -> dict[str, Any]:
        return {
            "label": self.labels[role],
            "run_seconds": {f"p{each:g}": value for each, value in self.percentiles[role].items()},
            "runs": len(self.samples.runs[role]),
            "load_seconds": float(np.median([pair[role] for pair in self.samples.loads])),
            "peak_bytes": self.peaks[role],
            "operators": None if self.operators is None else self.operators[role],
        }


@dataclass(frozen=True)
class BenchReport:
    """What ``bnfold.bench`` returns.

    Attributes:
        models: what was compared; the first is what the others are compared with.
        cases: one for each optimization level and batch size.
        environment: the machine and the versions.
        settings: what was asked for.
    """

    models: list[Model]
    cases: list[Case]
    environment: Environment
    settings: dict[str, Any]

    def where(self, case: Case) -> str:
        """What sets a case apart from the others: "batch 8", "level off"; empty if there is but one."""
        batches, levels = ({getattr(each, key) for each in self.cases} for key in ("batch", "level"))
        parts = [f"batch {case.batch}"] if len(batches) > 1 else []
        return ", ".join(parts + ([f"level {case.level}"] if len(levels) > 1 else []))

    @property
    def warnings(self) -> list[str]:
        """Sentences on what limits the result."""
        noisy = (case for case in self.cases if case.control.known and case.control.floor > _NOISY)
        said = [_noisy(case, self.where(case)) for case in noisy]
        if self.environment.overloaded:
            said.append(
                f"The load was {self.environment.load_before} before this began, on a machine of "
                f"{counted(self.environment.machine_cores, 'core')}; stop other programs and measure again."
            )
        if self.settings["threads"] > self.environment.cores:
            said.append(
                f"{counted(self.settings['threads'], 'thread')} share "
                f"{counted(self.environment.cores, 'core')}, so they wait for each other; use fewer."
            )
        if len(self.models) == 1:
            said.append(f"{self.models[0].label} has nothing to fold, so it was measured alone.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data, in seconds and bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "models": [each.to_dict() for each in self.models],
            "settings": self.settings,
            "cases": [case.to_dict() for case in self.cases],
            "environment": self.environment.to_dict(),
            "warnings": self.warnings,
        }

    def markdown(self) -> str:
        """As Markdown: verdicts first, then the tables, then how and where it was measured."""
        from .show.tables import as_markdown

        return as_markdown(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the distributions of block ratios and of run times into a .png or .svg file.

        Raises:
            OutputError: the file has another suffix, or cannot be written.
            MissingDependencyError: matplotlib is not installed.
        """
        from .show.plot import check, draw

        check(Path(path))
        draw(self, Path(path))


def _noisy(case: Case, where: str) -> str:
    at = where and f" at {where}"
    return (
        f"This machine is too noisy to see a difference of a few percent{at}: {case.labels[0]} against "
        f"itself is {numbers(case.control)}; stop other programs or give it more time."
    )
