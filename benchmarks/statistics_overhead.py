"""What measuring statistics inside the graph costs: `bnfold stats` against plain inference of the same data.

Both run in this process, in turn, in random order; the ratio of each pair is one sample, and the
interval of the median is the distribution-free one from order statistics. Plain inference is a loop
over the batches with a default session of ONNX Runtime. bnfold runs as many batches at once as there are
processors, one thread each; the second line gives plain inference the same arrangement, which leaves
the price of the reductions, and of the fusions they prevent, alone.

    python benchmarks/statistics_overhead.py [--pairs 31] [--write]

Takes about two minutes on an idle machine. Not to be pinned to some of its processors: a default
session starts a thread for each of all, which then wait for each other and flatter bnfold. With --write
the seconds of every run go into docs/data/statistics_overhead.json, and the lines that are computed
from them into docs/statistics.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import light
import numpy as np
import onnxruntime as ort
import pages
from fold_cost import _median_interval

from bnfold import files
from bnfold.statistics.data.ports import Feeds, ports_of
from bnfold.statistics.data.sources import Arrays, Shard
from bnfold.statistics.run.measure import Meter, Subject, Task
from bnfold.statistics.run.session import Session
from bnfold.statistics.run.together import processors, together

ROOT = Path(__file__).parent.parent
DATA = ROOT / "docs" / "data" / "statistics_overhead.json"
# How often the 450 test images are in the data: a short run starts and ends, a long one measures.
TIMES = (40, 1000)


def main() -> None:
    """Print two lines for each data set: against default sessions, and in the same arrangement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--write", action="store_true", help="put the result into docs/")
    asked = parser.parse_args()
    with np.load(ROOT / "models" / "digits_test.npz") as file:
        images = file["images"]
    path = ROOT / "models" / "digits_cnn.onnx"
    nets = [compare("digits CNN", path, np.concatenate([images] * times), asked.pairs) for times in TIMES]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        light.make("resnet50", path)
        images = np.random.default_rng(0).normal(size=(8, 3, 224, 224)).astype(np.float32)
        nets.append(compare("light ResNet-50", path, images, asked.pairs))
    cores = f"{processors()} of {os.cpu_count()} cores"
    where = f"ONNX Runtime {ort.__version__}, load average {os.getloadavg()[0]:.1f} on {cores}"
    measured = {"where": where, "nets": nets}
    print(page(measured))
    if asked.write:
        DATA.parent.mkdir(exist_ok=True)
        DATA.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        pages.write("statistics.md", "statistics_overhead", page(measured))


def compare(name: str, path: Path, data: np.ndarray, pairs: int) -> dict[str, Any]:
    """Measure one net on one data set, with the batches that bnfold makes of the data."""
    opened = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model, port = files.load(path), opened.get_inputs()[0].name
    source = Arrays({port: data})
    arranged, meter = Session(model), Meter(Task(Subject(path), source))

    def batches() -> Iterator[Feeds]:
        return source.batches(ports_of(model), Shard())

    jobs: dict[str, Callable[[], object]] = {
        "measured": meter.sample,
        "default sessions": lambda: [opened.run(None, feeds) for feeds in batches()],
        "the same arrangement": lambda: list(together(arranged.run, batches(), processors())),
    }
    sizes = {"samples": len(data), "batch": len(next(batches())[port])}
    return {"name": name, **sizes, "seconds": interleaved(jobs, pairs)}


def page(measured: dict[str, Any]) -> str:
    """The lines of the documentation, from what was measured."""
    lines = [line for net in measured["nets"] for line in _lines(net)]
    pairs = len(measured["nets"][0]["seconds"]["measured"])
    return "\n".join([*lines, f"\n({pairs} interleaved pairs, {measured['where']})"])


def _lines(net: dict[str, Any]) -> Iterator[str]:
    times = net["seconds"]
    for label in ("default sessions", "the same arrangement"):
        ratios = sorted(ours / plain for ours, plain in zip(times["measured"], times[label], strict=True))
        low, high = _median_interval(ratios)
        plain, ours = (statistics.median(times[each]) for each in (label, "measured"))
        yield (
            f"- {net['name']}, {net['samples']} samples in batches of {net['batch']}: {ours:.2f} s, and "
            f"{plain:.2f} s without measuring in {label}; **{statistics.median(ratios):.2f}×** "
            f"(95 % interval {low:.2f} to {high:.2f})"
        )


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every job in every round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name in random.sample(list(jobs), len(jobs)):
            start = time.perf_counter()
            jobs[name]()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
