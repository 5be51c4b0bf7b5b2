"""What a Relu that becomes a Max costs ONNX Runtime: measured for ``bnfold/core/planning/profit.py``.

    python benchmarks/activation_bounds.py [--seconds 10] [--write]

Chains of the operators alone, channels first and last, and whole pre-activation blocks, in which ONNX
Runtime keeps its blocked layout for a batch norm and leaves it for a Max. Ratios below 1: the Max is faster.
With --write the table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import pages

import bnfold
from bnfold.core.example import Graph

# An affine run and its Relu, or what they become, on one tensor with `channels` along `axis`.
Step = Callable[[Graph, str, tuple[int, ...], int], str]


def batch_norm(op: Graph, x: str, layout: tuple[int, ...], channels: int) -> str:
    return str(op.Relu(op.batch_norm(x, channels=channels)))


def mul_add(op: Graph, x: str, layout: tuple[int, ...], channels: int) -> str:
    return str(op.Relu(op.Add(op.Mul(x, op.weight(*layout)), op.weight(*layout))))


def one_bound(op: Graph, x: str, layout: tuple[int, ...], channels: int) -> str:
    return str(op.Max(x, op.weight(*layout)))


def two_bounds(op: Graph, x: str, layout: tuple[int, ...], channels: int) -> str:
    return str(op.Min(op.Max(x, op.weight(*layout)), op.weight(*layout)))


CASES: list[tuple[str, Step, Step, tuple[int, ...], int]] = [
    ("Max / BatchNormalization, Relu", batch_norm, one_bound, (1, 64, 56, 56), 1),
    ("Max / BatchNormalization, Relu", batch_norm, one_bound, (32, 256), 1),
    ("Max / Mul, Add, Relu", mul_add, one_bound, (1, 64, 56, 56), 1),
    ("Max / Mul, Add, Relu", mul_add, one_bound, (1, 56, 56, 64), 3),
    ("Max, Min / BatchNormalization, Relu", batch_norm, two_bounds, (1, 64, 56, 56), 1),
    ("Max, Min / Mul, Add, Relu", mul_add, two_bounds, (1, 56, 56, 64), 3),
]

LIGHT = [(32, (32, 32)), (8, (32, 32)), (3, (32, 32)), (32, (1024,)), (32, (8, 16, 16))]


def chain(step: Step, shape: tuple[int, ...], axis: int, length: int = 6) -> onnx.ModelProto:
    """The step several times in a row."""
    op = Graph(17)
    y = op.input("x", shape)
    layout = tuple(size if i == axis else 1 for i, size in enumerate(shape))[1:]
    for _ in range(length):
        y = step(op, y, layout, shape[axis])
    return op.finish([y], 8)


def dense(bounds: bool, size: int = 28, width: int = 128, growth: int = 32) -> onnx.ModelProto:
    """A dense block of six layers (Huang et al. 2017)."""
    op = Graph(17)
    y = op.Conv(op.input("x", (1, 3, size, size)), op.weight(width, 3, 3, 3), pads=[1] * 4)
    for _ in range(6):
        inner = _inner(op, _in_front(op, y, width, bounds), width, 4 * growth, growth)
        y, width = op.Concat(y, inner, axis=1), width + growth
    return op.finish([op.Conv(_in_front(op, y, width, bounds), op.weight(width // 2, width, 1, 1))], 8)


def residual(bounds: bool, size: int = 28, width: int = 256) -> onnx.ModelProto:
    """Four pre-activation residual blocks (He et al. 2016)."""
    op = Graph(17)
    y = op.Conv(op.input("x", (1, 3, size, size)), op.weight(width, 3, 3, 3), pads=[1] * 4)
    for _ in range(4):
        inner = _inner(op, _in_front(op, y, width, bounds), width, width // 4, width // 4)
        y = op.Add(y, op.Conv(inner, op.weight(width, width // 4, 1, 1)))
    return op.finish([op.GlobalAveragePool(_in_front(op, y, width, bounds))], 8)


def light(bounds: bool, width: int, *sizes: int) -> onnx.ModelProto:
    """Four pre-activation residual blocks of one 1×1 convolution, on images, sequences or volumes."""
    op = Graph(17)
    ones = [1] * len(sizes)
    y = op.Conv(op.input("x", (1, 3, *sizes)), op.weight(width, 3, *(3 * one for one in ones)), pads=ones * 2)
    for _ in range(4):
        inner = op.Max(y, op.weight(width, *ones)) if bounds else op.Relu(op.batch_norm(y, channels=width))
        y = op.Add(y, op.Conv(inner, op.weight(width, width, *ones)))
    return op.finish([y], 8)


def _in_front(op: Graph, x: str, channels: int, bounds: bool) -> str:
    layout = (channels, 1, 1)
    return (one_bound if bounds else batch_norm)(op, x, layout, channels)


def _inner(op: Graph, x: str, width: int, middle: int, last: int) -> str:
    y = op.Relu(op.Conv(x, op.weight(middle, width, 1, 1), op.weight(middle)))
    return str(op.Conv(y, op.weight(last, middle, 3, 3), pads=[1] * 4))


def pairs() -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto]]:
    """Every comparison: its name, the affine form, the bounds."""
    for name, before, after, shape, axis in CASES:
        yield f"{name}, {'×'.join(map(str, shape))}", chain(before, shape, axis), chain(after, shape, axis)
    yield "Max / BatchNormalization, Relu, in dense blocks", dense(False), dense(True)
    yield "Max / BatchNormalization, Relu, in residual blocks", residual(False), residual(True)
    for width, sizes in LIGHT:
        name = "×".join(map(str, (1, width, *sizes)))
        made = (light(bounds, width, *sizes) for bounds in (False, True))
        yield f"Max / BatchNormalization, Relu, in light residual blocks, {name}", *made


def main() -> None:
    """Print one line for each comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each comparison")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    asked = parser.parse_args()
    lines = ["| | ratio of latencies |", "|---|---|"]
    with TemporaryDirectory() as folder:
        before, after = (Path(folder) / f"{name}.onnx" for name in ("before", "after"))
        for name, first, second in pairs():
            onnx.save(first, before)
            onnx.save(second, after)
            report = bnfold.bench(before, after, seconds=asked.seconds).to_dict()
            time = report["cases"][0]["comparisons"][0]["time"]
            lines.append(f"| {name} | {time['estimate']:.2f}× ({time['low']:.2f}–{time['high']:.2f}) |")
            print(lines[-1], flush=True)
    if asked.write:
        pages.write("benchmarks.md", "activation_bounds", "\n".join(lines))


if __name__ == "__main__":
    main()
