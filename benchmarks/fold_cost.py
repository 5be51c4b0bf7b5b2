"""What the fold itself costs: FoldPass on ResNet-50 against onnx.load + onnx.save of the same file.

Both run in this process, in turn, in random order; the ratio of each pair is one sample, and the
interval of the median is the distribution-free one from order statistics.

    python benchmarks/fold_cost.py [--pairs 31] [--write]

With --write the line goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import light
import numpy as np
import onnx
import onnx_ir as ir
import pages

from bnfold import FoldPass


def main() -> None:
    """Print one line with the medians, the ratio and its interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    asked = parser.parse_args()
    pairs = asked.pairs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        light.make("resnet50", path)
        for _ in range(2):
            _fold(path), _load_and_save(path)
        samples = [_pair(path) for _ in range(pairs)]
    ratios = sorted(fold / copy for fold, copy in samples)
    low, high = _median_interval(ratios)
    fold, copy = (statistics.median(column) * 1000 for column in zip(*samples, strict=True))
    line = (
        f"fold {fold:.0f} ms, onnx.load + onnx.save {copy:.0f} ms, ratio {statistics.median(ratios):.2f} "
        f"(95 % interval {low:.2f} to {high:.2f}, {pairs} interleaved pairs), numpy {np.__version__}, "
        f"onnx {onnx.__version__}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(line)
    if asked.write:
        pages.write("benchmarks.md", "fold_cost", line)


def _pair(path: Path) -> tuple[float, float]:
    jobs: list[Callable[[Path], float]] = [_fold, _load_and_save]
    random.shuffle(jobs)
    times = {job: job(path) for job in jobs}
    return times[_fold], times[_load_and_save]


def _fold(path: Path) -> float:
    model = ir.load(path)
    folding = FoldPass()
    start = time.perf_counter()
    folding(model)
    seconds = time.perf_counter() - start
    assert folding.report.nodes_after.get("BatchNormalization", 0) == 0
    return seconds


def _load_and_save(path: Path) -> float:
    start = time.perf_counter()
    onnx.save(onnx.load(path), path.with_suffix(".copy"))
    return time.perf_counter() - start


def _median_interval(ordered: list[float]) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that covers the median with 95 %."""
    from scipy.stats import binom

    count = len(ordered)
    rank = max(0, int(binom.ppf(0.025, count, 0.5)) - 1)
    return ordered[rank], ordered[count - 1 - rank]


if __name__ == "__main__":
    main()
