"""Measure what ``bnfold/core/planning/profit.py`` decides: each rewrite against the graph it would replace.

Both graphs run in ONNX Runtime, CPU, one thread, all optimizations, in turn in random order; the ratio
of the processor time of each pair is one sample, and the interval of the median is the distribution-free
one from order statistics. A ratio above 1 means that the rewrite is faster.

    python benchmarks/worth.py [--pairs 101] [--write]

With --write the tables go into docs/worth.md. It takes about a minute.
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


def conv(channels: int, width: int, kernel: int, group: int = 1, rank: int = 4) -> Write:
    """A convolution whose output is as large as its input."""
    sides, pads = [kernel] * (rank - 2), [kernel // 2] * 2 * (rank - 2)
    return lambda op, x: op.Conv(
        x, op.weight(channels, width, *sides), op.weight(channels), pads=pads, group=group
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


def bare(op: Graph, x: str) -> str:
    """The input itself."""
    return x


def activated(channels: int, rank: int) -> Write:
    """A pointwise convolution and a Relu."""
    layer = conv(channels, channels, 1, rank=rank)
    return lambda op, x: op.Relu(layer(op, x))


def residual(channels: int, rank: int) -> Write:
    """The sum of two pointwise convolutions."""
    layer = conv(channels, channels, 1, rank=rank)
    return lambda op, x: op.Add(layer(op, x), layer(op, x))


def pooled(channels: int, rank: int) -> Write:
    """The largest values of what a pointwise convolution and a Relu make."""
    layer, window = activated(channels, rank), {"kernel_shape": [3, 3], "pads": [1] * 4}
    return lambda op, x: op.MaxPool(layer(op, x), **window)


def padded(before: Write, shape: Shape, form: str) -> Write:
    """A producer, a map with a shift, a convolution 3×3 that pads, and a Relu.

    The map is a BatchNormalization or a Mul and an Add; or its scale went into the weights, and its shift
    stays as an Add in front, or as an Add of a constant for every position behind.
    """
    channels, sizes = shape[1], shape[2:]
    layout = (channels, *[1] * len(sizes))

    def write(op: Graph, x: str) -> str:
        y = before(op, x)
        if form == "batch norm":
            y = op.batch_norm(y, channels=channels)
        elif form == "mul and add":
            y = op.Add(op.Mul(y, op.positive(*layout)), op.weight(*layout))
        elif form == "add in front":
            y = op.Add(y, op.weight(*layout))
        y = conv(32, channels, 3, rank=len(shape))(op, y)
        if form == "add behind":
            y = op.Add(y, op.weight(1, 32, *sizes))
        return str(op.Relu(y))

    return write


PADDED: list[tuple[str, Shape, Write]] = [
    ("input", (1, 3, 112, 112), bare),
    ("input", (1, 64, 28, 28), bare),
    ("Conv, Relu", (1, 3, 112, 112), activated(3, 4)),
    ("Conv, Relu", (1, 8, 56, 56), activated(8, 4)),
    ("Conv, Relu", (1, 16, 56, 56), activated(16, 4)),
    ("Conv, Relu", (1, 64, 28, 28), activated(64, 4)),
    ("Conv, Relu", (1, 256, 7, 7), activated(256, 4)),
    ("Conv + Conv", (1, 16, 56, 56), residual(16, 4)),
    ("Conv + Conv", (1, 64, 28, 28), residual(64, 4)),
    ("Conv, Relu, MaxPool", (1, 64, 28, 28), pooled(64, 4)),
    ("Conv, Relu", (1, 64, 128), activated(64, 3)),
    ("Conv, Relu", (1, 32, 8, 8, 8), activated(32, 5)),
]


def padding(before: str, after: str) -> list[Case]:
    """One form of a map in front of a padded convolution against another."""
    return [
        (
            f"{name} → {'×'.join(map(str, shape[1:]))}",
            shape,
            padded(made, shape, before),
            padded(made, shape, after),
        )
        for name, shape, made in PADDED
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
    start = time.thread_time()
    for run in runs:
        run.run(None, feeds)
    once = (time.thread_time() - start) / 2
    repeats = max(3, min(400, int(_SECONDS / once)))
    samples = []
    for _ in range(pairs):
        times = [0.0, 0.0]
        for which in random.sample(range(2), 2):
            start = time.thread_time()
            for _ in range(repeats):
                runs[which].run(None, feeds)
            times[which] = time.thread_time() - start
        samples.append(times[0] / times[1])
    return statistics.median(samples), *_median_interval(sorted(samples))


SECTIONS: dict[str, Callable[[], list[Case]]] = {
    "A copy of the layer instead of a batch norm on a shared tensor": sharing,
    "In front of padding: an Add in front instead of a BatchNormalization": lambda: padding(
        "batch norm", "add in front"
    ),
    "In front of padding: a BatchNormalization instead of Mul and Add": lambda: padding(
        "mul and add", "batch norm"
    ),
    "In front of padding: an Add of a constant for every position behind": lambda: padding(
        "batch norm", "add behind"
    ),
}


def main() -> None:
    """Print one table per judgement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=101)
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
