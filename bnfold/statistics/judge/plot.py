"""A picture per layer: every channel of the data in the unit of what the model stores for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bnfold.errors import MissingDependencyError, OutputError
from bnfold.files import staged
from bnfold.statistics.judge.verdict import Comparison
from bnfold.statistics.result import Statistics

_STORED, _FITS, _NAMED = "#b8bec6", "#2e86ab", "#d1495b"


def check(folder: Path) -> None:
    """Fail before anything is measured if no picture can be drawn.

    Raises:
        OutputError: the folder cannot be made.
        MissingDependencyError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "a figure needs matplotlib, which is not installed; run: pip install 'bnfold[plot]'"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error


def draw(measured: Statistics, folder: Path) -> list[Path]:
    """Write one picture per layer, numbered in graph order.

    Raises:
        OutputError: a file cannot be written.
    """
    paths = []
    for number, each in enumerate(measured.comparisons, 1):
        name = "".join(char if char.isalnum() else "_" for char in each.layer.name).strip("_")[:60]
        path = folder / f"{number:03d}-{name}.png"
        _draw(each, path)
        paths.append(path)
    return paths


def _draw(it: Comparison, path: Path) -> None:
    """Stored mean ± σ is the band from -1 to 1; the data's mean ± σ is a point with a bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channels = np.arange(it.shift.size)
    figure = Figure(figsize=(float(np.clip(0.12 * it.shift.size, 6, 20)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.axhspan(-1, 1, color=_STORED, alpha=0.5, lw=0, label="stored mean ± σ")
    colour = _NAMED if it.named else _FITS
    spread, label = np.sqrt(it.ratio), "mean ± σ of the data"
    panel.errorbar(channels, it.shift, yerr=spread, fmt="o", ms=3, lw=1, color=colour, label=label)
    panel.axhline(0, color="black", lw=0.6)
    panel.set_xlim(-1, it.shift.size)
    panel.set_xlabel("channel")
    panel.set_ylabel("stored σ")
    panel.set_title("\n".join((it.layer.name, *(it.problems or ("fits",)))), fontsize=8, loc="left")
    panel.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    with staged(path) as temporary:
        figure.savefig(temporary, dpi=120)
