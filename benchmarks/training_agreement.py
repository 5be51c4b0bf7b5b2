"""How far the training-mode kernel is from other implementations, in two types and from two to six axes.

Errors are of the output and of both moving statistics, relative to the largest value of each: an
element's own size is no measure where y passes through 0. float32 errors are given in its epsilon
(2⁻²³), and are those of the peers, as the kernel computes in float64.

    python benchmarks/training_agreement.py [--write]       needs torch, onnxruntime and pytest

The cases are those of tests/test_training_agreement.py, Keras' numbers those of benchmarks/keras_numbers.py.
With --write the table goes into docs/statistics.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pages
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_training_agreement as agreement  # noqa: E402

from bnfold.training import MovingAverage, Running, batch_norm_training  # noqa: E402

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


def main() -> None:
    """Print the table, and put it into the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/statistics.md")
    asked = parser.parse_args()
    onnx_rule, torch_rule = (
        MovingAverage(agreement.MOMENTUM),
        MovingAverage.from_torch(1 - agreement.MOMENTUM),
    )
    lines = ["| implementation | float64, relative | float32, ε |", "|---|---|---|"]
    for name, peer, rule in (
        (f"ONNX Runtime {onnxruntime.__version__}, training_mode=1", agreement.by_onnxruntime, onnx_rule),
        (f"torch {torch.__version__.partition('+')[0]}, F.batch_norm", agreement.by_torch, torch_rule),
    ):
        wide, narrow = (worst(against(peer, rule, dtype)) for dtype in (np.float64, np.float32))
        lines.append(row(name, wide, narrow))
    keras = [worst(against_keras(dtype)) for dtype in ("float64", "float32")]
    lines.append(row(f"Keras {agreement.KERAS['keras']} on {agreement.KERAS['backend']}", *keras))
    print("\n".join(lines))
    if asked.write:
        pages.write("statistics.md", "training_agreement", "\n".join(lines))


def row(name: str, wide: float, narrow: float) -> str:
    """One line of the table."""
    return f"| {name} | {wide:.1e} | {narrow / np.finfo(np.float32).eps:.1f} |"


def worst(pairs: Pairs) -> float:
    """The largest error of all."""
    return max(float(np.abs(got - wanted).max() / np.abs(wanted).max()) for got, wanted in pairs)


def against(peer: object, rule: MovingAverage, dtype: type) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ours and another's output and moving statistics, for ten seeds of every shape."""
    for shape in agreement.SHAPES:
        for seed in range(10):
            rng = np.random.default_rng(seed)
            x = rng.normal(1.0, 2.0, shape).astype(dtype)
            scale, bias, mean, variance = rng.uniform(0.5, 2.0, (4, shape[1])).astype(dtype)
            y, batch = batch_norm_training(x, scale, bias, epsilon=agreement.EPSILON)
            ours = (y, *rule.update(Running(mean, variance), batch))
            theirs = peer(x, scale, bias, mean, variance)  # type: ignore[operator]
            yield from zip(ours, (each.astype(np.float64) for each in theirs), strict=True)


def against_keras(dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ours and Keras' committed numbers, two batches in a row."""
    for case in (each for each in agreement.KERAS["cases"] if each["dtype"] == dtype):
        scale, bias, *moving = (np.array(weight, dtype) for weight in case["start"])
        running = Running(*moving)
        for batch, output in zip(case["batches"], case["outputs"], strict=True):
            x = np.array(batch, dtype)
            y, moments = batch_norm_training(x, scale, bias, epsilon=case["epsilon"], axis=case["axis"])
            yield y, np.array(output, np.float64)
            running = MovingAverage(case["momentum"]).update(running, moments)
        yield from zip(running, (np.array(each, np.float64) for each in case["moving"]), strict=True)


if __name__ == "__main__":
    main()
