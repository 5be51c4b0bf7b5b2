"""What measuring statistics inside the graph costs: `bnfold stats` against plain inference of the same data.

Both run in this process, in turn, in random order; the ratio of each pair is one sample, and the
interval of the median is the distribution-free one from order statistics. Plain inference is a loop
over the batches with a default session of ONNX Runtime. bnfold runs as many batches at once as there are
processors, one thread each; the second line gives plain inference the same arrangement, which leaves
the price of the reductions, and of the fusions they prevent, alone.

    python benchmarks/statistics_overhead.py [--pairs 21] [--batch 128]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import resnet50
from fold_cost import _median_interval

from bnfold import files
from bnfold.statistics.data.sources import Arrays
from bnfold.statistics.run.measure import Meter, Subject, Task
from bnfold.statistics.run.session import Session

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print two lines per net: against default sessions, and in the same arrangement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--batch", type=int, default=128, help="of the digits; ResNet-50 takes one image")
    asked = parser.parse_args()
    with np.load(ROOT / "models" / "digits_test.npz") as file:
        digits = np.concatenate([file["images"]] * 40)
    print(f"ONNX Runtime {ort.__version__}, {asked.pairs} interleaved pairs")
    compare("digits CNN", ROOT / "models" / "digits_cnn.onnx", digits, asked.batch, asked.pairs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        resnet50.make(path)
        images = np.random.default_rng(0).normal(size=(8, 3, 224, 224)).astype(np.float32)
        compare("light ResNet-50", path, images, 1, asked.pairs)


def compare(name: str, path: Path, data: np.ndarray, batch: int, pairs: int) -> None:
    """Measure one net."""
    opened = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (port, *_) = opened.get_inputs()
    batches = [{port.name: data[start : start + batch]} for start in range(0, len(data), batch)]
    arranged = Session(files.load(path))
    meter = Meter(Task(Subject(path), Arrays({port.name: data}, batch)))
    rivals: dict[str, Callable[[], object]] = {
        "default sessions": lambda: [opened.run(None, feeds) for feeds in batches],
        "the same arrangement": lambda: list(arranged.over(batches)),
    }
    times = interleaved({"measured": meter.sample, **rivals}, pairs)
    for label in rivals:
        ratios = sorted(ours / plain for ours, plain in zip(times["measured"], times[label], strict=True))
        low, high = _median_interval(ratios)
        plain, ours = (statistics.median(times[each]) for each in (label, "measured"))
        print(
            f"{name}, {len(data)} samples, batch {batch}: {ours:.3f} s against {plain:.3f} s in {label}, "
            f"{statistics.median(ratios):.2f}× (95 % interval {low:.2f} to {high:.2f})"
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
