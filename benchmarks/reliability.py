"""Try what can go wrong, count it, and write docs/reliability.md from the counts.

    python benchmarks/reliability.py --fuzz /tmp/fuzz.json --huge docs/data/huge.json

takes a minute: every step of writing is made to fail in turn, and the public models in onnx are
folded. Longer runs are read from what they wrote: ``fuzz_bytes.py --state``, ``huge.py --json``,
``large_graphs.py --json``; and what ``wheel.sh`` and ``floors.sh`` print, from files it was put in. A
fuzzing run with another seed is added to those before.
Without options the page is written from docs/data/reliability.json alone.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import onnx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DATA, PAGE = ROOT / "docs" / "data" / "reliability.json", ROOT / "docs" / "reliability.md"

_HEAD = "<!-- What follows is written by benchmarks/reliability.py. -->\n"


def faults() -> dict[str, int]:
    """How many steps of writing were made to fail, by how; raises if anything is lost."""
    from test_faults import SCENARIOS, full, interrupted, killed, tried

    with tempfile.TemporaryDirectory() as name:
        return {
            act.__name__: sum(
                tried(each, act, Path(name) / act.__name__ / each.__name__) for each in SCENARIOS
            )
            for act in (full, interrupted, killed)
            if not (Path(name) / act.__name__).mkdir()
        }


def public_models() -> dict[str, int]:
    """What becomes of every model in onnx's own test data."""
    from bnfold.errors import BnfoldError
    from bnfold.folding import fold

    made: Counter[str] = Counter()
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx")):
        try:
            made["folded" if fold(path).report.changed else "unchanged"] += 1
        except BnfoldError as error:
            made[type(error).__name__] += 1
    return dict(made)


def fuzzed(path: Path) -> dict[str, Any]:
    """The counts of a fuzzing run, without the files it kept; which of these pass now is tried."""
    from fuzz_bytes import reproduce

    state = json.loads(path.read_text())
    failures = {what: [base64.b64decode(each) for each in held] for what, held in state["failures"].items()}
    kept = {what: len(contents) for what, contents in failures.items()}
    ours = {what: contents for what, contents in failures.items() if not what.startswith("onnx")}
    passing = [what for what, contents in ours.items() if not any(map(reproduce, contents))]
    return {
        "files": state["next"],
        "hours": state["seconds"] / 3600,
        "counts": state["counts"],
        "failures": kept,
        "passing": passing,
    }


def whole(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All fuzzing runs together."""
    made: dict[str, Any] = {"files": 0, "hours": 0.0, "passing": []}
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for run in runs:
        made = {name: made[name] + run.get(name, type(made[name])()) for name in made}
        counts += Counter(run["counts"])
        failures += Counter(run["failures"])
    return {**made, "counts": counts, "failures": failures}


def page(data: dict[str, Any]) -> str:
    """The part of the page that is made of figures."""
    rows = [("what was tried", "how often", "what was lost")]
    words = {"full": "a full disk", "interrupted": "an interruption", "killed": "a killed process"}
    for act, number in data["faults"].items():
        rows.append((f"{words[act]} at every step of writing", f"{number} steps", "nothing"))
    run = whole(data["fuzz"].values())
    theirs = sum(number for what, number in run["failures"].items() if what.startswith("onnx"))
    typed = sum(number for what, number in run["counts"].items() if what.endswith("Error"))
    fine = run["counts"].get("folded", 0) + run["counts"].get("unchanged", 0)
    rows.append(("damaged files", f"{run['files']:,} in {run['hours']:.1f} h", _failed(run, theirs)))
    rows.append(("of these refused with a typed error", f"{typed:,}", ""))
    rows.append(("of these read and written", f"{fine:,}", ""))
    public = data["public"]
    total, changed = sum(public.values()), public.get("folded", 0)
    rows.append(("the models in onnx's test data", f"{total}, {changed} folded", "nothing"))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "| --- | --- | --- |")
    return (
        _HEAD
        + "\n"
        + "\n".join(lines)
        + "\n"
        + "".join(part(data[name]) for name, part in _PARTS.items() if name in data)
    )


def _failed(run: dict[str, Any], theirs: int) -> str:
    failed, passing = run["counts"].get("failed", 0), run.get("passing", [])
    if not failed:
        return "no failure"
    mended = sum(run["failures"][what] for what in passing)
    said = f"{failed} failed, at least {theirs} of them in onnx itself"
    return f"{said}; {mended} that were kept pass since bnfold was mended" if mended else said


def _huge(figures: dict[str, Any]) -> str:
    low, middle, high = figures["ratio"]
    rows = [
        f"| {name} | {figures[name]['seconds']} s | {figures[name]['megabytes']} MB |"
        for name in ("onnx_ir", "bnfold")
    ]
    return (
        f"\nA model of {figures['gibibytes']} GiB, loaded and saved by onnx_ir and folded by bnfold, median "
        f"of {figures['rounds']} rounds in turns; bnfold takes {middle} times as long ({low} to {high}).\n\n"
        "| | time | peak memory |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n" + _map(figures)
    )


def _map(figures: dict[str, Any]) -> str:
    if "map" not in figures:
        return ""
    once = figures["map"]
    return f"\nWith `--map`, once: {once['seconds']} s and {once['megabytes']} MB.\n"


def _large(figures: dict[str, Any]) -> str:
    rows = ["| | folded | loaded and inferred | ratio |", "| --- | --- | --- | --- |"]
    for title, each in figures["graphs"].items():
        low, middle, high = each["ratio"]
        rows.append(f"| {title} | {each['fold']} s | {each['runtime']} s | {middle} ({low} to {high}) |")
    rounds = {each["rounds"] for each in figures["graphs"].values()}
    return (
        "\nLarge graphs, folded without verification, against one load by ONNX Runtime and one shape "
        f"inference, CPU seconds, rounds: {', '.join(map(str, sorted(rounds)))}.\n\n"
        + "\n".join(rows)
        + "\n"
        + "".join(
            f"\n{count} small files in one call, two at a time: {size} MB in the largest process.\n"
            for count, size in figures["memory"].items()
        )
    )


def _builds(versions: dict[str, str]) -> str:
    rows = [f"| {name} | {held} |" for name, held in versions.items()]
    return (
        "\nThe tests of files and hostile input, and a verified fold, pass with these versions; the wheel, "
        "built twice, is the same bytes and holds only `bnfold/`.\n\n| | versions |\n| --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


_PARTS = {"huge": _huge, "large": _large, "builds": _builds}


def builds(folder: Path) -> dict[str, str]:
    """The versions that ``floors.sh`` passed with, by the logs in a folder; the wheel's has to be there.

    Raises:
        click.ClickException: one of them did not end well.
    """
    if "the same bytes twice" not in (folder / "wheel.log").read_text():
        raise click.ClickException("wheel.sh did not end well.")
    made = {}
    for which in ("oldest", "newest"):
        path = folder / f"{which}.log"
        if not path.exists():
            continue
        text = path.read_text()
        if (" passed" not in text and "[100%]" not in text) or "FAILED" in text:
            raise click.ClickException(f"floors.sh {which} did not end well.")
        made[which] = ", ".join(
            " ".join(line.split()[:2]) for line in text.splitlines() if _VERSION.match(line)
        )
    return made


_VERSION = re.compile(r"(numpy|onnx|onnx-ir|onnxruntime|protobuf|ml_dtypes|scipy) +[\d.]+$")


@click.command()
@click.option("--fuzz", type=click.Path(path_type=Path), help="The state of fuzz_bytes.py.")
@click.option("--huge", type=click.Path(path_type=Path), help="What huge.py wrote.")
@click.option("--large", type=click.Path(path_type=Path), help="What large_graphs.py wrote.")
@click.option(
    "--logs", type=click.Path(path_type=Path), help="Where wheel.log, oldest.log and newest.log are."
)
def main(fuzz: Path | None, huge: Path | None, large: Path | None, logs: Path | None) -> None:
    """Measure what was asked for, and write the page."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    if fuzz is not None:
        seed = str(json.loads(fuzz.read_text())["seed"])
        data |= {"faults": faults(), "public": public_models()}
        data["fuzz"] = data.get("fuzz", {}) | {seed: fuzzed(fuzz)}
    if huge is not None:
        data["huge"] = json.loads(huge.read_text())
    if large is not None:
        data["large"] = json.loads(large.read_text())
    if logs is not None:
        data["builds"] = builds(logs)
    DATA.write_text(json.dumps(data, indent=1) + "\n")
    text = PAGE.read_text().partition(_HEAD)[0] + page(data)
    PAGE.write_text(text)
    click.echo(page(data))


if __name__ == "__main__":
    main()
