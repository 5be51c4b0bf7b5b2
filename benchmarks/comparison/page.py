"""The pages, written from the data alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from . import figures
from .claims import failures, losses, statements, to_floor
from .data import Data
from .variants import BNFOLD, ORIGINAL, PEERS, TWIN

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, DETAILS, FIGURES = DOCS / "benchmarks.md", DOCS / "benchmarks", DOCS / "figures"
MARK = "<!-- comparison: written by benchmarks/compare.py -->"
_COLUMNS = [ORIGINAL, *PEERS, BNFOLD]
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
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{summary(data)}\n{MARK}{after}", encoding="utf-8")
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
    kinds = {"networks.md": ("Networks", False), "patterns.md": ("Patterns", True)}
    return {
        name: "\n".join(
            _details(title, [each for each in data["models"] if (each["group"] == "pattern") is wanted])
        )
        for name, (title, wanted) in kinds.items()
    }


def _summary(data: Data) -> Iterator[str]:
    yield ""
    for statement in statements(data):
        yield f"- {statement}"
    figure = "Every network as it is, under its fastest other optimizer, and under bnfold"
    yield f"\n![{figure}](figures/networks.svg)\n"
    groups = {each["group"]: None for each in data["models"] if each["group"] != "pattern"}
    for group in groups:
        yield f"**{group[0].upper()}{group[1:]}**, time of a run over that of the floor, as deployed:\n"
        yield from _ratios([each for each in data["models"] if each["group"] == group])
        yield ""
    yield "### Patterns\n"
    yield "Small nets that repeat one pattern ([patterns.md](benchmarks/patterns.md) has every number).\n"
    yield "![Time over that of the floor, by pattern and optimizer](figures/patterns.svg)\n"
    patterns = [each for each in data["models"] if each["group"] == "pattern"]
    yield from _table(["pattern", "what it is"], ([each["name"], each["about"]] for each in patterns))
    yield "\n### Where bnfold loses\n"
    lost = [f"- {each}." for each in losses(data)]
    yield from lost or ["Nowhere beyond the noise floor."]
    yield "\n### What failed or is wrong\n"
    failed = list(failures(data))
    yield from (
        _table(["model", "optimizer", "what happened"], (map(_plain, each) for each in failed))
        if failed
        else ["Nothing."]
    )
    yield ""
    yield _place(data)


def _ratios(models: list[Data]) -> Iterator[str]:
    def row(model: Data) -> Iterator[str]:
        yield model["name"]
        floor = model["latency"].get("all", {}).get("variants", {}).get(TWIN)
        yield "" if floor is None else f"{floor['seconds'] * 1e3:.3g} ms"
        yield from (_ratio(model, name) for name in _COLUMNS)

    yield from _table(["model", "floor", *_COLUMNS], map(row, models))


def _ratio(model: Data, name: str, level: str = "all") -> str:
    variant = model["variants"].get(name)
    if variant is None or variant["failure"]:
        return "failed"
    found = to_floor(model, name, level)
    text = "" if found is None else f"{found:.2f}"
    return f"{text} wrong".strip() if variant["wrong"] else text


def _details(title: str, models: list[Data]) -> Iterator[str]:
    yield f"# {title}: every number\n"
    yield _LEGEND
    for model in models:
        yield f"## {model['name']}\n"
        yield f"{model['group']}{': ' if model['about'] else ''}{model['about']}\n"
        header = [
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
            "memory",
        ]
        yield from _table(header, (_row(model, name) for name in (TWIN, *_COLUMNS)))
        yield ""


def _row(model: Data, name: str) -> Iterator[str]:
    variant = model["variants"].get(name)
    yield name
    if variant is None or variant["failure"]:
        yield from ("failed", *[""] * 9)
        return
    load = model["latency"].get("all", {}).get("loads", {}).get(name)
    peak = model["peaks"].get(name)
    yield f"{variant['batch_norms']} + {variant['affine']} ({variant['remaining']})"
    yield str(variant["nodes"])
    yield from (_ratio(model, name, level) for level in ("all", "off"))
    yield "" if load is None else f"{load['seconds'] * 1e3:.3g} ms"
    yield f"{variant['bytes'] / _MEGABYTE:.3g} MB"
    yield "" if peak is None else f"{peak / _MEGABYTE:.0f} MB"
    yield "" if variant["error"] is None else f"{variant['error']:.0e}{' wrong' if variant['wrong'] else ''}"
    yield "" if variant["seconds"] is None else f"{variant['seconds']:.1f} s"
    yield "" if variant["peak"] is None else f"{variant['peak'] / _MEGABYTE:.0f} MB"


def _place(data: Data) -> str:
    where, versions = data["environment"], ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    loads = [
        level["load"] for model in data["models"] for level in model["latency"].values() if level.get("load")
    ]
    busiest = max((max(each) for each in loads), default=0)
    floors = sorted(
        max(1 / control["low"], control["high"]) - 1
        for model in data["models"]
        for level in model["latency"].values()
        if (control := level.get("control")) and control["low"] is not None
    )
    noise = (
        f"; the floor against itself differed by {floors[len(floors) // 2]:.1%} at the median"
        if floors
        else ""
    )
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['system']}, one thread; load average up to "
        f"{busiest:g} while measuring{noise}. Versions: {versions}."
    )


def _table(header: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
