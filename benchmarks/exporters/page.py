"""Write docs/exporters.md from results.json.

python benchmarks/exporters/page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "exporters.md"

_EXPORTERS = {
    "keras-torch": 'Keras 3, torch backend: `model.export(format="onnx")`',
    "keras-torch-static": "the same with a given batch",
    "keras-tf": "Keras 3, TensorFlow backend: the same call",
    "tf2onnx": "`tf2onnx.convert.from_keras`",
    "tf2onnx-raw": "the same, none of its optimizers",
    "dynamo": "`torch.onnx.export`",
    "dynamo-raw": "the same, `optimize=False`",
    "torchscript": "`torch.onnx.export(dynamo=False)`, training preserved",
}

_INTRO = """# Exporters

The same networks from every exporter, folded by `bnfold`: what is left, and how fast the result is. The page
is written by `benchmarks/exporters/page.py` from what `measure.py` beside it measured; `export.py` makes the
models (weights of initialization, parameters drawn, statistics from training-mode passes).

* **maps**: batch norms and the affine nodes that exporters write instead of them, before → after; the bias of
  a dense layer is none.
* **stays**: reasons that [rules.md](rules.md) explains. `ACTIVATION_TURNS`: in front of a Relu that reads
  a sum or a Concat, one batch norm is left of several nodes, which ONNX Runtime executes together with the
  Relu; without it the Relu would have to become a Max, which is slower ([benchmarks.md](benchmarks.md)).
* **/ original**, **/ twin**: latency of the fold over that of the original, and over that of the twin, the
  same graph without its affine nodes, which no fold can beat. Below 1 is faster. Median ratio of interleaved
  runs on one thread, ONNX Runtime at full optimization, and its 95 % interval; **bold** where a promise is
  missed by the whole interval: slower than the original, or more than 1.03 times the twin.

Behind other optimizers the exports are measured in [benchmarks.md](benchmarks.md).
"""

_BATCHES = """
## Several images at a time

Affine nodes read and write whole tensors and compute little, so they cost the more the less of a tensor the
processor's caches hold.

| network | exporter | images | / original | / twin |
|---|---|---|---|---|"""


def page(results: dict[str, Any]) -> str:
    """The page for these results."""
    sections = (_exporters(), _table(results), _failures(results), _batches(results))
    return "\n".join([_INTRO, *chain.from_iterable(sections)]) + "\n"


def _exporters() -> Iterator[str]:
    yield "| exporter | |"
    yield "|---|---|"
    for name, what in _EXPORTERS.items():
        yield f"| {name} | {what} |"


def _table(results: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "| network | exporter | maps | stays | equal | / original | / twin |"
    yield "|---|---|---|---|---|---|---|"
    for name, entry in results.items():
        if "failure" in entry:
            continue
        network, exporter = name.split(".", 1)
        before, after = (
            norms + maps for norms, maps in zip(entry["batch_norms"], entry["maps"], strict=True)
        )
        stays = "; ".join(f"{count} × {names}" for names, count in entry["stays"].items())
        equal = "yes" if entry["equal"] else "**no**"
        speed = f"{_ratio(entry['original'], 1.0)} | {_ratio(entry['twin'], 1.03)}"
        yield f"| {network} | {exporter} | {before} → {after} | {stays} | {equal} | {speed} |"


def _failures(results: dict[str, Any]) -> Iterator[str]:
    failed = {name: entry["failure"] for name, entry in results.items() if "failure" in entry}
    if failed:
        yield "\nNot exported:\n"
        yield from (f"* {name}: {reason}" for name, reason in failed.items())


def _batches(results: dict[str, Any]) -> Iterator[str]:
    rows = [(name, *row) for name, entry in results.items() for row in entry.get("batches", {}).items()]
    if rows:
        yield _BATCHES
    for name, batch, found in rows:
        network, exporter = name.split(".", 1)
        speed = f"{_ratio(found['original'], 1.0)} | {_ratio(found['twin'], 1.03)}"
        yield f"| {network} | {exporter} | {batch} | {speed} |"


def _ratio(found: list[float], promised: float) -> str:
    low, estimate, high = found
    shown = f"{estimate:.2f}× ({low:.2f}–{high:.2f})"
    return f"**{shown}**" if low > promised else shown


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads((HERE / "results.json").read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
