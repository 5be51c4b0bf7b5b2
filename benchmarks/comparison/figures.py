"""The figures: every network against the floor, and every pattern under every optimizer."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .data import Data
from .results import Ratio, results
from .variants import BNFOLD, ORIGINAL, PEERS

_INK, _GREY, _OTHER, _OURS = "#222222", "#9a9a9a", "#c8553d", "#1b7f79"
OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "bnfold", "font.size": 8.5, "font.family": "sans-serif"}


def draw(data: Data, folder: Path) -> None:
    """Write all figures."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(OPTIONS):
        for name, (figure, seen) in FIGURES.items():
            if rows := seen(data):
                save(figure(rows), rows, folder / name)


def is_current(data: Data, path: Path) -> bool:
    """Whether a figure was drawn of these data."""
    _, seen = FIGURES[path.name]
    return f"data {digest(seen(data))}" in path.read_text(encoding="utf-8")


def _rows_of_networks(data: Data) -> list[dict[str, Any]]:
    """Interval of the original, of the fastest other optimizer and of bnfold, the most to gain last."""
    rows = []
    for model in results(data):
        peer = model.best_peer()
        if model.is_network and peer is not None:
            kinds = {"original": ORIGINAL, "best": peer, "ours": BNFOLD}
            rows.append({"name": model.name, **{key: model.to_floor(name) for key, name in kinds.items()}})
    return sorted(rows, key=lambda row: (row["best"][1], row["original"][1]))


def _networks(rows: list[dict[str, Any]]) -> Any:
    """One line for each network, one dot for each of three models of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.1 + 0.21 * len(rows)), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("original", _GREY, "as it is"),
        ("best", _OTHER, "fastest other optimizer"),
        ("ours", _OURS, "bnfold"),
    )
    for offset, (key, color, label) in zip((0.18, 0.0, -0.18), kinds, strict=True):
        places = [place + offset for place in range(len(rows))]
        values = [row[key][1] for row in rows]
        axes.hlines(
            places, *zip(*(_ends(row[key]) for row in rows), strict=True), color=color, lw=1.1, alpha=0.7
        )
        axes.scatter(values, places, s=15, color=color, label=label, zorder=3, linewidths=0)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    _ratio_axis(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _ratio_axis(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    low, high = axes.get_xlim()
    ticks = [
        each for each in (0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11, 16) if low <= each <= high
    ]
    axes.set_xticks(ticks)
    axes.minorticks_off()
    axes.axvline(1.0, color=_INK, lw=0.8, zorder=1)
    axes.set_xlabel("time of a run over that of the floor, 95 % interval")
    axes.grid(axis="y", color="#eeeeee", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def _cells_of_patterns(data: Data) -> dict[str, Any]:
    """Ratio to the floor for each pattern and optimizer; None where it failed or is wrong."""
    names = [ORIGINAL, *PEERS, BNFOLD]
    models = [each for each in results(data) if not each.is_network and each.estimate(ORIGINAL)]
    cells = [[each.estimate(name) if each.is_sound(name) else None for name in names] for each in models]
    return {"patterns": [each.name for each in models], "optimizers": names, "cells": cells} if models else {}


def _patterns(seen: dict[str, Any]) -> Any:
    """A table in colors: the darker, the farther from the floor."""
    from matplotlib.figure import Figure

    rows, columns = seen["patterns"], seen["optimizers"]
    figure = Figure(figsize=(7.2, 0.9 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shades = [
        [math.nan if cell is None else math.log2(max(cell, 1.0)) for cell in row] for row in seen["cells"]
    ]
    darkest = np.nanmax([*np.ravel(shades), 0.1])
    axes.imshow(shades, cmap="OrRd", vmin=0, vmax=darkest, aspect="auto")
    for y, row in enumerate(seen["cells"]):
        for x, cell in enumerate(row):
            text = "failed" if cell is None else f"{cell:.2f}"
            dark = cell is not None and shades[y][x] > 0.7 * darkest
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else _INK)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.set_xlabel("time of a run over that of the floor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


Drawing = tuple[Callable[[Any], Any], Callable[[Data], Any]]
FIGURES: dict[str, Drawing] = {
    "networks.svg": (_networks, _rows_of_networks),
    "patterns.svg": (_patterns, _cells_of_patterns),
}


def save(figure: Any, seen: Any, path: Path) -> None:
    """Write a figure as SVG that is the same for the same data, and says which these were."""
    figure.savefig(path, metadata={"Date": None, "Description": f"data {digest(seen)}"})
    # matplotlib leaves blanks at the ends of lines.
    path.write_text(re.sub(r" +$", "", path.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")


def digest(seen: Any) -> str:
    """What tells these data from others."""
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _ends(ratio: Ratio) -> tuple[float | None, float | None]:
    low, estimate, high = ratio
    return (estimate, estimate) if low is None else (low, high)
