"""The pages, written from the data alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from statistics import median

import pages

from bnfold.latency.verdict import counted

from . import figures
from .claims import Gain, failures, gains, geometric_mean, losses, statements
from .data import Data
from .results import Result, results
from .variants import BNFOLD, ORIGINAL, PEERS, TWIN, then_bnfold

DETAILS, FIGURES = pages.DOCS / "benchmarks", pages.DOCS / "figures"
_COLUMNS = [ORIGINAL, *PEERS, BNFOLD]
_HEADER = [
    "",
    "left",
    "nodes",
    "all",
    "off",
    "load",
    "size",
    "memory",
    "error",
    "optimizer: time",
    "its memory",
]
_MEGABYTE = 1e6
_LEGEND = """\
Written by `python benchmarks/compare.py page`; [benchmarks.md](../benchmarks.md) says how it was measured.
*left*: batch norms + other affine nodes in the file, in brackets how many of them ONNX Runtime still runs.
*all*, *off*: time of a run over that of the floor, at two optimization levels. *error*: largest difference
from float64, as part of the output's largest value.
"""
Cells = Iterable[str]


def write(data: Data) -> None:
    """Write every page and figure."""
    pages.write("benchmarks.md", "compare", summary(data))
    DETAILS.mkdir(exist_ok=True)
    for name, text in details(data).items():
        (DETAILS / name).write_text(text, encoding="utf-8")
    figures.draw(data, FIGURES)
    print(*map(str, statements(data)), sep="\n")


def summary(data: Data) -> str:
    """What stands between the marks of the main page."""
    return "\n".join(_summary(data))


def details(data: Data) -> dict[str, str]:
    """The pages with every number: one for the networks, one for the patterns."""
    models = results(data)
    return {
        "networks.md": "\n".join(_details("Networks", [each for each in models if each.is_network])),
        "patterns.md": "\n".join(_details("Patterns", [each for each in models if not each.is_network])),
    }


def _summary(data: Data) -> Iterator[str]:
    yield ""
    for statement in statements(data):
        yield f"- {statement}"
    figure = "Every network as it is, under its fastest other optimizer, and under bnfold"
    yield f"\n![{figure}](figures/networks.svg)\n"
    networks = [each for each in results(data) if each.is_network]
    yield from _gains(list(gains(networks)))
    for group in dict.fromkeys(each.data["group"] for each in networks):
        yield f"**{group[0].upper()}{group[1:]}**, time of a run over that of the floor, as deployed:\n"
        yield from _ratios([each for each in networks if each.data["group"] == group])
        yield ""
    yield "### Patterns\n"
    yield "Small nets that repeat one pattern ([patterns.md](benchmarks/patterns.md) has every number).\n"
    yield "![Time over that of the floor, by pattern and optimizer](figures/patterns.svg)\n"
    patterns = [each.data for each in results(data) if not each.is_network]
    yield from _table(["pattern", "what it is"], ([each["name"], each["about"]] for each in patterns))
    yield "\n### Where bnfold loses\n"
    lost = [f"- {each}." for each in losses(data)]
    yield from lost or ["Nowhere beyond the noise floor."]
    yield "\n### What failed or is wrong\n"
    failed = [map(_plain, each) for each in failures(data)]
    yield from _table(["model", "optimizer", "what happened"], failed) if failed else ["Nothing."]
    yield ""
    yield _place(data)


def _gains(found: list[Gain]) -> Iterator[str]:
    """What there is to gain depends on who wrote a model more than on who folds it."""
    groups = dict.fromkeys(each.model.data["group"] for each in found)
    yield "Where something is left to fold, times as fast as under the fastest other optimizer (means):\n"

    def row(name: str, members: list[Gain]) -> Iterator[str]:
        yield name
        yield str(len(members))
        for ratios in zip(*((each.alone, each.behind, each.floor) for each in members), strict=True):
            yield f"{geometric_mean(list(ratios)):.2f}×"

    rows = [row(group, [each for each in found if each.model.data["group"] == group]) for group in groups]
    yield from _table(["networks", "how many", BNFOLD, "other → bnfold", "the floor"], rows)
    yield ""


def _ratios(models: list[Result]) -> Iterator[str]:
    def row(model: Result) -> Iterator[str]:
        yield model.name
        floor = model.floor_seconds()
        yield "" if floor is None else f"{floor * 1e3:.3g} ms"
        yield from (_ratio(model, name) for name in _COLUMNS)
        best = model.best_peer()
        yield "" if best is None else _ratio(model, then_bnfold(best))

    yield from _table(["model", "floor", *_COLUMNS, "fastest other → bnfold"], map(row, models))


def _ratio(model: Result, name: str, level: str = "all") -> str:
    if model.variant(name) is None:
        return "failed"
    found = model.estimate(name, level)
    text = "" if found is None else f"{found:.2f}"
    return text if name == TWIN or model.is_sound(name) else f"{text} wrong".strip()


def _details(title: str, models: list[Result]) -> Iterator[str]:
    yield f"# {title}: every number\n"
    yield _LEGEND
    for model in models:
        yield f"## {model.name}\n"
        yield f"{': '.join(filter(None, (model.data['group'], model.data['about'])))}\n"
        yield from _table(_HEADER, (_row(model, name) for name in (TWIN, *_COLUMNS)))
        yield ""


def _row(model: Result, name: str) -> Iterator[str]:
    variant = model.variant(name)
    yield name
    if variant is None:
        yield from ("failed", *[""] * 9)
        return
    load = model.data["latency"].get("all", {}).get("loads", {}).get(name)
    peak = model.data["peaks"].get(name)
    yield f"{variant['batch_norms']} + {variant['affine']} ({variant['remaining']})"
    yield str(variant["nodes"])
    yield from (_ratio(model, name, level) for level in ("all", "off"))
    yield "" if load is None else f"{load * 1e3:.3g} ms"
    yield f"{variant['bytes'] / _MEGABYTE:.3g} MB"
    yield "" if peak is None else f"{peak / _MEGABYTE:.0f} MB"
    yield "" if variant["error"] is None else f"{variant['error']:.0e}{' wrong' if variant['wrong'] else ''}"
    yield "" if variant["seconds"] is None else f"{variant['seconds']:.1f} s"
    yield "" if variant["peak"] is None else f"{variant['peak'] / _MEGABYTE:.0f} MB"


def _place(data: Data) -> str:
    where, versions = data["environment"], ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    runs = [level for model in data["models"] for level in model["latency"].values() if level]
    busiest = max((load for each in runs for load in each["load"] if load is not None), default=0.0)
    floors = [max(1 / low, high) - 1 for low, _, high in (each["control"] for each in runs) if low]
    noise = median(floors) if floors else inf
    return (
        f"{where['cpu']}, {counted(where['cores'], 'core')}, {where['system']}, one thread; load average "
        f"up to {busiest:g} while measuring; the interval of the floor against itself reached {noise:.1%} "
        f"from 1 in the median of {len(runs)} runs. Versions: {versions}."
    )


def _table(header: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
