"""What the tools themselves cost: time and peak memory of whole processes, with ``cp`` as the floor.

    python benchmarks/tool_cost.py measure [--rounds 5] [--seconds 600]
    python benchmarks/tool_cost.py page

Two models: ResNet-50 (102 MB, one file) and a synthetic one of 2.4 GiB with external data (huge.py). In each
round every tool runs once on each, in an order drawn anew; files are in the page cache. A round on the first
model comes before and does not count: the first run of a tool compiles and reads what later ones find. No
round of the second model starts after ``--seconds``, and what takes longer than that is stopped. The others
run as peers.py says; bnfold with its proof of equality, which no other one offers, and without.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import huge
import light
import onnxruntime
import pages
import peers
from processes import Ran, run

from bnfold.latency.environment import environment
from bnfold.latency.environment import load as load_average

ROOT = Path(__file__).parent.parent
FILE = ROOT / "benchmarks" / "results" / "tool_cost.json"
FIGURE = pages.DOCS / "figures" / "tool-cost.svg"
TOOLS = ["cp", *peers.OWN, *peers.PEERS]
MODELS = {"ResNet-50, 102 MB": "resnet50", "2.4 GiB, external data": "huge"}
Data = dict[str, Any]


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["measure", "page"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--only", choices=MODELS.values(), help="one model, beside what is known of the other"
    )
    parser.add_argument("--folder", type=Path, default=peers.CACHE / "cost", help="takes 10 GB")
    asked = parser.parse_args()
    if asked.step == "measure":
        found = measure(asked)
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write(load())


def load() -> Data:
    """What was measured last."""
    found: Data = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def measure(asked: argparse.Namespace) -> Data:
    """Every tool on every model."""
    before = load_average()
    known = json.loads(FILE.read_text())["models"] if asked.only and FILE.exists() else {}
    _rounds(_model("resnet50", asked.folder), 1, asked.seconds)
    for title, name in MODELS.items():
        if asked.only in (None, name):
            known[title] = _rounds(_model(name, asked.folder), asked.rounds, asked.seconds)
    where = environment(before, onnxruntime.__version__)
    return {
        "cpu": f"{where.cpu}, {where.cores} of {where.machine_cores} cores, {where.system}",
        "versions": peers.versions(),
        "load": [before, load_average()],
        "models": known,
    }


def _model(name: str, folder: Path) -> Path:
    """The model's file, with its weights beside it, in a folder of its own."""
    path = folder / name / "model.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        huge.make(path) if name == "huge" else light.make(name, path)
    return path


def _rounds(model: Path, rounds: int, seconds: float) -> Data:
    runs: dict[str, list[Ran]] = {tool: [] for tool in TOOLS}
    start = time.monotonic()
    for index in range(rounds):
        for tool in random.Random(index).sample(TOOLS, len(TOOLS)):
            if not (runs[tool] and runs[tool][-1].failure):
                runs[tool].append(_once(tool, model, seconds))
                print(f"{model.parent.name}, round {index + 1}: {tool} {runs[tool][-1]}", flush=True)
        if (time.monotonic() - start) * (index + 2) / (index + 1) > seconds:
            break
    return {tool: _summary(each) for tool, each in runs.items()}


def _once(tool: str, model: Path, timeout: float) -> Ran:
    with TemporaryDirectory(dir=model.parent.parent) as name:
        target = Path(name) / "model.onnx"
        for each in model.parent.iterdir():  # into the page cache
            with each.open("rb") as file:
                while file.read(1 << 24):
                    pass
        if tool == "cp":
            return run(["cp", *model.parent.iterdir(), name], Path(name), timeout)
        return peers.optimize(tool, model, target, timeout)


def _summary(runs: list[Ran]) -> Data:
    failure = next((each.failure for each in runs if each.failure), "")
    seconds = sorted(each.seconds for each in runs if each.seconds is not None and not each.failure)
    peaks = [each.peak for each in runs if each.peak is not None and not each.failure]
    return {
        "failure": failure,
        "seconds": None if failure or not seconds else round(median(seconds), 2),
        "range": None if failure or not seconds else [round(seconds[0], 2), round(seconds[-1], 2)],
        "peak": None if failure or not peaks else max(peaks),
        "runs": len(runs),
    }


def write(data: Data) -> None:
    """Write the table into the page, and the figure."""
    pages.write("benchmarks.md", "tool_cost", table(data))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    draw(data, FIGURE)


def table(data: Data) -> str:
    """What stands between the marks of the page."""
    return "\n".join(_lines(data))


def _lines(data: Data) -> Iterator[str]:
    yield "\n![Time and peak memory of each tool](figures/tool-cost.svg)\n"
    for title, found in data["models"].items():
        yield f"| {title} | time | over `cp` | peak memory |"
        yield "| --- | --- | --- | --- |"
        for tool, each in found.items():
            yield f"| {' | '.join(_cells(tool, each, found['cp']['seconds']))} |"
        yield ""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    before, after = data["load"]
    yield (
        f"Medians of up to {_most_runs(data)} runs, with the fastest and the slowest; {data['cpu']}, load "
        f"average {before} before and {after} after. Versions: {versions}."
    )


def _cells(tool: str, found: Data, floor: float | None) -> Iterator[str]:
    yield f"`{tool}`"
    if found["failure"]:
        yield from (f"failed: {found['failure'].replace('|', '/')}", "", "")
        return
    low, high = found["range"]
    yield f"{found['seconds']:.2f} s ({low:.2f} to {high:.2f})"
    yield f"{found['seconds'] / floor:.1f}×" if floor else ""
    yield f"{found['peak'] / 1e6:.0f} MB"


def _most_runs(data: Data) -> int:
    return max(each["runs"] for found in data["models"].values() for each in found.values())


def draw(data: Data, path: Path) -> None:
    """A row of two panels for each model: time with its range, and memory."""
    import matplotlib
    from comparison.figures import OPTIONS, save
    from matplotlib.figure import Figure

    with matplotlib.rc_context(OPTIONS):
        figure = Figure(figsize=(7.2, 2.3 * len(data["models"])), layout="constrained")
        panels = figure.subplots(len(data["models"]), 2, squeeze=False, sharey="row")
        for (left, right), (title, found) in zip(panels, data["models"].items(), strict=True):
            times = {tool: (each["seconds"], *each["range"]) for tool, each in _ran(found)}
            peaks = {tool: (each["peak"] / 1e6,) * 3 for tool, each in _ran(found)}
            _panel(left, f"{title}: seconds", times)
            _panel(right, "peak memory, MB", peaks)
        save(figure, data, path)


def _ran(found: Data) -> list[tuple[str, Data]]:
    return [(tool, each) for tool, each in found.items() if not each["failure"]]


def _panel(axes: Any, title: str, lanes: dict[str, tuple[float, float, float]]) -> None:
    """A lane for each tool, the first on top: its value, and the range of its runs."""
    places = {tool: len(lanes) - index for index, tool in enumerate(lanes)}
    for tool, (value, low, high) in lanes.items():
        color = "#1b7f79" if tool in peers.OWN else "#222222" if tool == "cp" else "#c8553d"
        axes.hlines(places[tool], low, high, color=color, lw=4, alpha=0.3)
        axes.scatter(value, places[tool], color=color, s=22, linewidths=0, zorder=3)
        shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
        axes.annotate(f"  {shown}", (high, places[tool]), color=color, va="center", fontsize=7.5)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_yticks(list(places.values()), list(places))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.15)
    axes.grid(color="#eeeeee", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")


if __name__ == "__main__":
    main()
