"""Fold every export of a folder, verify it, and compare its latency with the original's and its twin's.

    python benchmarks/exporters/measure.py CACHE [--only NAME] [--seconds 4] [--batch 8]

Every export is one entry of results.json, written at once; what is there is not measured again (delete the
entry, or the file, for that). One thread, ONNX Runtime at full optimization, interleaved by ``bnfold.bench``;
the floor is the twin of ``benchmarks/twin.py``, the same graph without its affine nodes. ``--batch`` adds
the same latencies on more images at a time to entries that lack them. An export takes about four times
``--seconds``; ``benchmarks/compare.py`` compares with other optimizers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import twin  # noqa: E402

import bnfold  # noqa: E402
from bnfold import files  # noqa: E402

RESULTS = HERE / "results.json"


def main() -> None:
    """Measure what is not in results.json yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", default="", help="only exports whose name contains this")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each comparison")
    parser.add_argument("--batch", type=int, help="images at a time, beside the one of the table")
    asked = parser.parse_args()
    for path in sorted([*asked.cache.glob("*.onnx"), *asked.cache.glob("*.failed")]):
        if asked.only not in path.name:
            continue
        entry = results().get(path.stem, {})
        if not entry:
            print(path.name, flush=True)
            entry = failed(path) if path.suffix == ".failed" else measured(path, asked.seconds)
            write(path.stem, entry)
        if "failure" in entry:
            continue
        batches = entry.get("batches", {})
        if asked.batch and str(asked.batch) not in batches:
            print(path.name, "with batches of", asked.batch, flush=True)
            batches[str(asked.batch)] = in_batches(path, asked.batch, asked.seconds)
            entry = {**entry, "batches": batches}
            write(path.stem, entry)


def results() -> dict[str, Any]:
    """Every export's entry by its name, ``NETWORK.EXPORTER``."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def write(name: str, entry: dict[str, Any]) -> None:
    """Keep an entry."""
    whole = results() | {name: entry}
    lines = [f" {json.dumps(key)}: {json.dumps(whole[key])}" for key in sorted(whole)]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def failed(path: Path) -> dict[str, Any]:
    """An exporter that could not write the network."""
    return {"failure": path.read_text().strip()}


def measured(path: Path, seconds: float) -> dict[str, Any]:
    """Fold, verify, and compare with the original and the twin."""
    with TemporaryDirectory() as folder:
        folded, floor = Path(folder) / "folded.onnx", Path(folder) / "twin.onnx"
        result = bnfold.fold(path)
        result.save(folded)
        files.save(twin.twin(path)[0], floor)
        verdict = bnfold.verify(path, folded)
        before, after = twin.affine_nodes(path), twin.affine_nodes(folded)
        return {
            "batch_norms": [before[0], after[0]],
            "maps": [before[1], after[1]],
            "nodes": [len(onnx.load(each).graph.node) for each in (path, folded)],
            "stays": stays(result.report),
            "equal": verdict.ok,
            "original": ratio(path, folded, seconds),
            "twin": ratio(floor, folded, seconds),
        }


def in_batches(path: Path, batch: int, seconds: float) -> dict[str, list[float]]:
    """The fold's latency over that of the original and of the twin, on ``batch`` images at a time."""
    with TemporaryDirectory() as folder:
        folded, floor = Path(folder) / "folded.onnx", Path(folder) / "twin.onnx"
        bnfold.fold(path).save(folded)
        files.save(twin.twin(path)[0], floor)
        return {
            "original": ratio(path, folded, seconds, batch),
            "twin": ratio(floor, folded, seconds, batch),
        }


def stays(report: bnfold.Report) -> dict[str, int]:
    """How many maps stay, by the reasons for it; not those that are in their place."""
    left = {row.leaves or row.name: row for row in report.rows if row.status != "folded" and row.per_channel}
    reasons = [sorted({refusal.reason.name for refusal in row.refusals}) for row in left.values()]
    return dict(Counter(", ".join(names) for names in reasons if "DENSE_BIAS" not in names))


def ratio(first: Path, second: Path, seconds: float, batch: int = 1) -> list[float]:
    """The second model's latency over the first's: low, estimate and high of the 95 % interval.

    A busy machine may not fit enough runs into the time for an interval; then it gets more, up to eightfold.
    """
    for factor in (1, 2, 4, 8):
        report = bnfold.bench(first, second, batch=batch, seconds=factor * seconds, width=0.01)
        time = report.to_dict()["cases"][0]["comparisons"][0]["time"]
        if time["low"] is not None:
            return [round(time[name], 4) for name in ("low", "estimate", "high")]
    raise SystemExit(f"{second.name} is too slow for --seconds {seconds:g}; give it more time.")


if __name__ == "__main__":
    main()
