"""Measure what ``bnfold/core/profit.py`` decides: each rewrite against the graph it would replace.

Both graphs run in ONNX Runtime, CPU, one thread, all optimizations, in turn in random order; the ratio
of each pair is one sample, and the interval of the median is the distribution-free one from order
statistics. A ratio above 1 means that the rewrite is faster.

    python benchmarks/worth.py [--pairs 41] [--write]

With --write the tables go into docs/worth.md. It takes about two minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pages
from fold_cost import _median_interval
from onnx import TensorProto

from bnfold.core.example import Graph

_SECONDS = 0.004

Shape = Sequence[int]
Write = Callable[[Graph, str], str]
Case = tuple[str, Shape, Write, Write]


def conv(channels: int, width: int, kernel: int, group: int = 1, pad: bool = True) -> Write:
    """A convolution whose output is as large as its input."""
    pads = [kernel // 2 if pad else 0] * 4
    return lambda op, x: op.Conv(
        x, op.weight(channels, width, kernel, kernel), op.weight(channels), pads=pads, group=group
    )


def gemm(size: int, channels: int) -> Write:
    """A dense layer."""
    return lambda op, x: op.Gemm(x, op.weight(size, channels), op.weight(channels))


def gather(rows: int, channels: int) -> Write:
    """A lookup in a table."""
    return lambda op, x: op.Gather(op.weight(rows, channels), op.Cast(x, to=TensorProto.INT64))


def shared(layer: Write, channels: int, copied: bool) -> Write:
    """A layer that two read, one of them behind a batch norm, or behind a copy of the layer."""

    def write(op: Graph, x: str) -> str:
        y = layer(op, x)
        other = layer(op, x) if copied else op.batch_norm(y, channels=channels)
        return str(op.Concat(op.Sigmoid(y), op.Relu(other), axis=1))

    return write


SHARED = [
    ("Conv 1×1, 1 channel", (1, 1, 112, 112), conv(32, 1, 1), 32),
    ("Conv 1×1, 3 channels", (1, 3, 112, 112), conv(32, 3, 1), 32),
    ("Conv 1×1, 8 channels", (1, 8, 112, 112), conv(32, 8, 1), 32),
    ("Conv 3×3, 3 channels", (1, 3, 112, 112), conv(32, 3, 3), 32),
    ("depthwise 1×1", (1, 64, 56, 56), conv(64, 1, 1, 64), 64),
    ("depthwise 3×3", (1, 64, 56, 56), conv(64, 1, 3, 64), 64),
    ("Gemm 64×64 on one row", (1, 64), gemm(64, 64), 64),
    ("Gemm 256×256 on one row", (1, 256), gemm(256, 256), 256),
    ("Gemm 16×64 on 256 rows", (256, 16), gemm(16, 64), 64),
    ("Gather of 512 values", (256,), gather(1000, 512), 512),
]


def sharing() -> list[Case]:
    """A batch norm on a tensor that another operator reads, against a copy of the layer for it."""
    return [(n, shape, shared(make, c, False), shared(make, c, True)) for n, shape, make, c in SHARED]


def padded(before: str, channels: int, size: int, kernel: int, form: str) -> Write:
    """An activation, a map with a shift, a padded convolution and a Relu.

    The map is a BatchNormalization, or its scale went into the weights and its shift stays as an Add in
    front, or its shift stays as an Add of a constant for every position behind.
    """

    def write(op: Graph, x: str) -> str:
        y = op.node(before, x) if before else x
        if form == "batch norm":
            y = op.batch_norm(y, channels=channels)
        elif form == "add in front":
            y = op.Add(y, op.weight(channels, 1, 1))
        y = conv(channels, channels, kernel)(op, y)
        if form == "add behind":
            y = op.Add(y, op.weight(1, channels, size, size))
        return str(op.Relu(y))

    return write


PADDED = [
    ("32×56×56", 32, 56, 3),
    ("64×28×28", 64, 28, 3),
    ("128×14×14", 128, 14, 3),
    ("256×7×7", 256, 7, 3),
    ("16×112×112", 16, 112, 5),
]


def padding(form: str) -> list[Case]:
    """A batch norm in front of a padded convolution against one of the exact forms without it."""
    return [
        (
            f"{before or 'input'} → {name}, {kernel}×{kernel}",
            (1, c, size, size),
            padded(before, c, size, kernel, "batch norm"),
            padded(before, c, size, kernel, form),
        )
        for before in ("", "Relu")
        for name, c, size, kernel in PADDED
    ]


def session(write: Write, shape: Shape) -> ort.InferenceSession:
    """One of the two graphs, ready to run."""
    op = Graph(17)
    made = write(op, op.input("x", shape))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = op.finish([made]).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ratio(case: Case, pairs: int) -> tuple[float, float, float]:
    """The median of before / after, and its 95 % interval."""
    _, shape, before, after = case
    runs: list[Any] = [session(write, shape) for write in (before, after)]
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    start = time.perf_counter()
    for run in runs:
        run.run(None, feeds)
    once = (time.perf_counter() - start) / 2
    repeats = max(3, min(400, int(_SECONDS / once)))
    samples = []
    for _ in range(pairs):
        times = [0.0, 0.0]
        for which in random.sample(range(2), 2):
            start = time.perf_counter()
            for _ in range(repeats):
                runs[which].run(None, feeds)
            times[which] = time.perf_counter() - start
        samples.append(times[0] / times[1])
    return statistics.median(samples), *_median_interval(sorted(samples))


SECTIONS: dict[str, Callable[[], list[Case]]] = {
    "A copy of the layer instead of a batch norm on a shared tensor": sharing,
    "In front of padding: an Add in front instead of the batch norm": lambda: padding("add in front"),
    "In front of padding: an Add of a constant for every position behind": lambda: padding("add behind"),
}


def main() -> None:
    """Print one table per judgement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=41)
    parser.add_argument("--write", action="store_true", help="put the result into docs/worth.md")
    asked = parser.parse_args()
    lines: list[str] = []
    for title, cases in SECTIONS.items():
        lines += ["", f"### {title}", "", "| case | before / after | 95 % interval |", "|---|---|---|"]
        for case in cases():
            median, low, high = ratio(case, asked.pairs)
            lines.append(f"| {case[0]} | {median:.2f} | {low:.2f} to {high:.2f} |")
            print(lines[-1], flush=True)
    lines += ["", f"{asked.pairs} interleaved pairs each, ONNX Runtime {ort.__version__}, one thread, load "]
    lines[-1] += f"average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    if asked.write:
        pages.write("worth.md", "worth", "\n".join(lines))


if __name__ == "__main__":
    main()
