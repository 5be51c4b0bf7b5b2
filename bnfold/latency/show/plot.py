"""A benchmark as a figure: where the ratios of the blocks lie, and how the run times are distributed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from bnfold import files
from bnfold.errors import MissingDependencyError, OutputError
from bnfold.wording import printable

from ..report import BenchReport, Case
from ..statistics import Array, Interval
from ..verdict import numbers

SUFFIXES = (".png", ".svg")
_COLOURS = ("#4c5866", "#d1495b", "#2e86ab", "#edae49", "#66a182", "#8d6a9f")
_GREY = "#b8bec6"
_LONGEST = 34


def check(path: Path) -> None:
    """Fail before anything is measured if the figure cannot be drawn.

    Raises:
        OutputError: the file has another suffix, or its folder does not exist.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} is neither .png nor .svg; give the figure one of these suffixes.")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it, or write the figure elsewhere.")
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file.")
    try:
        TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise OutputError(
            f"{path.parent} cannot be written to ({error.strerror}); write the figure elsewhere."
        ) from error
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "a figure needs matplotlib, which is not installed; run: pip install 'bnfold[plot]'"
        )


def draw(report: BenchReport, path: Path) -> None:
    """Write the figure, one row of two panels for each case; the suffix says in which format.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(report.cases)
    height = 1.3 + 0.5 * (len(report.models) + 1)
    figure = Figure(figsize=(12.5, max(2.6, height) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, squeeze=False)
    for (left, right), case in zip(panels, report.cases, strict=True):
        where = report.where(case)
        title = where and f" · {where}"
        _ratios(left, case, title)
        _times(right, case, title)
    with files.staged(path) as temporary, catch_warnings():
        simplefilter("ignore", UserWarning)  # that a font has no glyph for a letter in a name
        figure.savefig(temporary, dpi=150)


def _ratios(panel: Any, case: Case, title: str) -> None:
    """One lane for each comparison: every block a dot, every session pair a ring, the interval a bar."""
    lanes = [(f"{_name(case.labels[0])}\nagainst itself", len(case.labels), case.control)]
    lanes += [(_name(each.model), role, each.time.ratio) for role, each in enumerate(case.comparisons, 1)]
    limits = _limits(case, [role for _, role, _ in lanes])
    for height, (_, role, ratio) in enumerate(lanes):
        colour = _GREY if role == len(case.labels) else _colour(role)
        pairs = [each[:, role] / each[:, 0] for each in case.samples.blocks]
        _lane(panel, height, pairs, colour, limits)
        _bar(panel, height, ratio)
    panel.axvspan(1 / _finite(case.control.floor), _finite(case.control.floor), color=_GREY, alpha=0.25, lw=0)
    panel.axvline(1, color="black", lw=0.8)
    panel.set_xscale("log")
    panel.set_xlim(*limits)
    panel.set_yticks(range(len(lanes)), [name for name, _, _ in lanes])
    panel.set_ylim(len(lanes) - 0.4, -0.6)
    _plain_ticks(panel)
    panel.set_xlabel(f"time of a run ÷ {_name(case.labels[0])} (grey: noise floor)")
    panel.set_title(f"Blocks (dots), pairs (rings), 95 % interval{title}", fontsize=9, loc="left")
    _clean(panel)


def _lane(panel: Any, height: int, pairs: list[Array], colour: str, limits: tuple[float, float]) -> None:
    """Blocks that lie outside the panel are drawn on its edge: nothing is left out."""
    random = np.random.default_rng(height)
    blocks = np.clip(np.concatenate(pairs), *limits)
    spread = height + random.uniform(-0.28, 0.28, len(blocks))
    panel.scatter(blocks, spread, s=5, color=colour, alpha=0.4, lw=0, clip_on=False)
    medians = np.clip([np.median(each) for each in pairs], *limits)
    spread = height + random.uniform(-0.12, 0.12, len(medians))
    panel.scatter(medians, spread, s=16, facecolors="none", edgecolors=colour, lw=0.9, clip_on=False)


def _bar(panel: Any, height: int, ratio: Interval) -> None:
    if ratio.known:
        ends = [ratio.low, ratio.high]
        panel.plot(ends, [height, height], color="white", lw=5, solid_capstyle="butt", zorder=3)
        panel.plot(ends, [height, height], color="black", lw=2.5, solid_capstyle="butt", zorder=4)
    panel.plot(ratio.estimate, height, marker="|", color="black", ms=12, mew=2.5, zorder=4)
    panel.annotate(
        numbers(ratio).partition(" the time")[0],
        (ratio.estimate, height),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        fontweight="bold",
        zorder=5,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
    )


def _times(panel: Any, case: Case, title: str) -> None:
    """The part of the runs that took at most so long, for each model."""
    for role in range(len(case.labels)):
        runs = np.sort(case.samples.runs[role]) * 1000
        part = np.arange(1, len(runs) + 1) / len(runs)
        keep = np.unique(np.linspace(0, len(runs) - 1, min(len(runs), 2000)).astype(int))
        panel.plot(
            runs[keep], part[keep] * 100, drawstyle="steps-post", color=_colour(role), label=str(role), lw=1.5
        )
    every = np.concatenate([np.asarray(runs) for runs in case.samples.runs[: len(case.labels)]]) * 1000
    low, high = np.quantile(every, (0.0, 0.95))
    panel.set_xlim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)
    panel.set_ylim(0, 100)
    panel.set_xlabel("time of one run (ms)")
    panel.set_ylabel("runs done (%)")
    panel.set_title(f"Every single run{title}", fontsize=9, loc="left")
    legend = panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for text, label in zip(legend.get_texts(), case.labels, strict=True):
        text.set_text(_name(label))  # given as a label, a name that starts with "_" would be left out
    _clean(panel)


def _limits(case: Case, roles: list[int]) -> tuple[float, float]:
    """Room for the middle of the blocks, and for all of the intervals."""
    logs = np.concatenate([np.log(each[:, roles] / each[:, :1]).reshape(-1) for each in case.samples.blocks])
    low, high = np.quantile(logs, (0.15, 0.85))
    ends = [each.time.ratio for each in case.comparisons] + [case.control]
    known = [np.log(end) for each in ends if each.known for end in (each.low, each.high)]
    low, high = min(low, *known, -0.02), max(high, *known, 0.02)
    margin = 0.06 * (high - low)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def _plain_ticks(panel: Any) -> None:
    """Ratios as they are read, 0.9 and not 9 × 10⁻¹."""
    from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

    panel.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))  # 1 is among the ticks
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _clean(panel: Any) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_size(9)
    panel.yaxis.label.set_size(9)


def _name(label: str) -> str:
    """A label that fits beside a panel, and is no formula: matplotlib sets what stands between dollars."""
    short = label if len(label) <= _LONGEST else f"{label[: _LONGEST // 3]}…{label[-(_LONGEST * 2 // 3) :]}"
    return printable(short).replace("$", r"\$")


def _colour(role: int) -> str:
    return _COLOURS[role % len(_COLOURS)]


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 1.0
