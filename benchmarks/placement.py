"""Compare what folding leaves with the best placement there is, found without bnfold.

A placement gives every tensor a map g, "this tensor becomes g(tensor)". Whether it can be is a system of
linear equations in the scales and shifts of all these maps: an operator in between ties the map of
its output to those of its inputs, an input or output of the graph is tied to the identity, weights are
tied to nothing. An affine node f vanishes where g_in = g_out ∘ f. So the least number of affine nodes that
must stay is found by trying every set of them, the largest first, and asking a linear program whether
the equations have a solution with all scales where they must be positive.

    python benchmarks/placement.py --graphs 400 --seed 0 [--write]

The layers are too large to be copied, and branches are not merged: neither is part of the search, and
without them bnfold cannot leave fewer, unless the search or a fold is wrong. Maps that other readers undo are
part of it: bnfold refuses those, and says so (INVERSE_FOR_SIBLINGS). With --write the result goes into
docs/placement.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import onnx
import pages
from scipy.optimize import linprog

import bnfold
from bnfold.core.example import Graph
from bnfold.core.reasons import Reason

CHANNELS = 2
AFFINE = ("BatchNormalization", "Mul", "Add")
# No scale may come near zero, and where it must not turn a tensor around it is positive.
SMALLEST = 1e-6

Row = dict[int, float]


@dataclass
class Op:
    """One operator of a small graph.

    Attributes:
        kind: what it is, as the equations know it.
        inputs: the tensors it reads.
        output: the tensor it makes.
        scale: of an affine node, per channel.
        shift: of an affine node, per channel.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    scale: np.ndarray = field(default_factory=lambda: np.ones(CHANNELS))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(CHANNELS))


@dataclass
class Small:
    """A small graph: its operators, the tensor it begins with and those it returns."""

    ops: list[Op]
    outputs: list[int]

    @property
    def affine(self) -> list[Op]:
        """The affine nodes."""
        return [op for op in self.ops if op.kind in AFFINE]


# What may be drawn, and how often.
KINDS = [
    "conv",
    "conv",
    "padded",
    "relu",
    "relu",
    "sigmoid",
    "add",
    "add",
    "max pool",
    "mean",
    *AFFINE,
    *AFFINE,
]


def random_graph(seed: int) -> Small:
    """A graph of 4 to 9 operators with at most 4 affine nodes among them."""
    draw, values = random.Random(seed), np.random.default_rng(seed)
    ops: list[Op] = []
    for number in range(1, draw.randint(5, 10)):
        kind = draw.choice(KINDS)
        if kind in AFFINE and sum(op.kind in AFFINE for op in ops) == 4:
            kind = "conv"
        read = {value for op in ops for value in op.inputs}
        ends = [value for value in range(number) if value not in read]
        inputs = [draw.choice(ends) if ends and draw.random() < 0.8 else draw.randrange(number)]
        if kind == "add":
            inputs.append(draw.randrange(number))
        op = Op(kind, tuple(inputs), number)
        if kind in ("BatchNormalization", "Mul"):
            # Few different scales, so that branches may agree; mostly positive, so that Relu lets them pass.
            op.scale = values.choice([0.5, 2.0], CHANNELS) * (1 if draw.random() < 0.7 else -1)
        if kind in ("BatchNormalization", "Add"):
            op.shift = values.normal(size=CHANNELS)
        ops.append(op)
    read = {value for op in ops for value in op.inputs}
    return Small(ops, [op.output for op in ops if op.output not in read])


# ---------------------------------------------------------------- the search


def scale_of(value: int, channel: int) -> int:
    """The unknown that is the scale of a tensor's map."""
    return 2 * (CHANNELS * value + channel)


def shift_of(value: int, channel: int) -> int:
    """The unknown that is the shift of a tensor's map."""
    return scale_of(value, channel) + 1


def equations(small: Small, gone: set[int]) -> Iterator[tuple[Row, float]]:
    """What the maps must satisfy if the affine nodes that make ``gone`` vanish."""
    for value in (0, *small.outputs):
        yield from pinned(value)
    for op in small.ops:
        x, y = op.inputs[0], op.output
        if op.kind == "sigmoid":
            yield from (*pinned(x), *pinned(y))
        for c in range(CHANNELS):
            if op.kind == "padded":
                yield {shift_of(x, c): 1.0}, 0.0
            elif op.kind in ("relu", "max pool", "mean"):
                yield {scale_of(x, c): 1.0, scale_of(y, c): -1.0}, 0.0
                yield {shift_of(x, c): 1.0, shift_of(y, c): -1.0}, 0.0
                if op.kind == "relu":
                    yield {shift_of(x, c): 1.0}, 0.0
            elif op.kind == "add":
                total: Counter[int] = Counter({shift_of(y, c): -1})
                for operand in op.inputs:
                    yield {scale_of(operand, c): 1.0, scale_of(y, c): -1.0}, 0.0
                    total[shift_of(operand, c)] += 1
                yield {unknown: float(times) for unknown, times in total.items()}, 0.0
            elif op.kind in AFFINE and y in gone:
                yield {scale_of(x, c): 1.0, scale_of(y, c): -float(op.scale[c])}, 0.0
                yield {shift_of(x, c): 1.0, shift_of(y, c): -1.0, scale_of(y, c): -float(op.shift[c])}, 0.0


def pinned(value: int) -> Iterator[tuple[Row, float]]:
    """The tensor keeps its value."""
    for c in range(CHANNELS):
        yield {scale_of(value, c): 1.0}, 1.0
        yield {shift_of(value, c): 1.0}, 0.0


def is_possible(small: Small, gone: set[int]) -> bool:
    """Whether some maps satisfy all equations, with every scale positive or, where that is free, negative."""
    count = 2 * CHANNELS * (1 + len(small.ops))
    rows = list(equations(small, gone))
    matrix = np.zeros((len(rows), count))
    for at, (row, _) in enumerate(rows):
        for unknown, factor in row.items():
            matrix[at, unknown] += factor
    right = np.array([value for _, value in rows])
    turning = [op for op in small.ops if op.kind in ("relu", "max pool")]
    strict = {scale_of(v, c) for op in turning for v in (*op.inputs, op.output) for c in range(CHANNELS)}
    scales = [scale_of(v, c) for v in range(1 + len(small.ops)) for c in range(CHANNELS)]
    # A scale that may have either sign must not be zero: find one that no equation ties to zero.
    fixed = solved(matrix, right, count, dict.fromkeys(strict, (SMALLEST, None)))
    if fixed is None:
        return False
    for unknown in scales:
        if abs(fixed[unknown]) < SMALLEST / 2 and not any(
            solved(matrix, right, count, dict.fromkeys(strict, (SMALLEST, None)) | {unknown: bounds})
            is not None
            for bounds in ((SMALLEST, None), (None, -SMALLEST))
        ):
            return False
    return True


def solved(
    matrix: np.ndarray, right: np.ndarray, count: int, bounds: dict[int, tuple[float | None, float | None]]
) -> np.ndarray | None:
    """A solution within bounds, None if there is none."""
    given = [bounds.get(unknown, (None, None)) for unknown in range(count)]
    found = linprog(np.zeros(count), A_eq=matrix, b_eq=right, bounds=given, method="highs")
    return np.asarray(found.x) if found.status == 0 else None


def fewest(small: Small) -> int:
    """How many affine nodes have to stay at least."""
    nodes = [op.output for op in small.affine]
    for size in range(len(nodes), 0, -1):
        if any(is_possible(small, set(gone)) for gone in combinations(nodes, size)):
            return len(nodes) - size
    return len(nodes)


# ---------------------------------------------------------------- bnfold on the same graph


def model_of(small: Small) -> onnx.ModelProto:
    """The graph in ONNX; its layers are too large to be copied."""
    op = Graph(17)
    names = [op.input("x", (1, CHANNELS, 40, 40))]
    for each in small.ops:
        names.append(written(op, each, [names[value] for value in each.inputs]))
    return op.finish([names[value] for value in small.outputs])


def written(op: Graph, each: Op, given: list[str]) -> str:
    """Write one operator."""
    columns = [vector.reshape(-1, 1, 1) for vector in (each.scale, each.shift)]
    match each.kind:
        case "conv" | "padded":
            return str(layer(op, given[0], each.kind == "padded"))
        case "relu":  # leaky, so that it cannot turn into a Max that takes a shift
            return str(op.LeakyRelu(*given))
        case "sigmoid" | "add":
            return str(op.node(each.kind.title(), *given))
        case "max pool":
            return str(op.MaxPool(*given, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        case "mean":
            return str(op.AveragePool(*given, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        case "Mul":
            return str(op.Mul(*given, op.const(columns[0])))
        case "Add":
            return str(op.Add(*given, op.const(columns[1])))
    ones, zeros = op.const(np.ones(CHANNELS)), op.const(np.zeros(CHANNELS))
    given += [op.const(each.scale), op.const(each.shift), zeros, ones]
    return str(op.BatchNormalization(*given, epsilon=0.0))


def layer(op: Graph, x: str, padded: bool) -> str:
    """A convolution that keeps the size: 5×5 with padding, or 1×1 on either side of an unknown operator."""
    if padded:
        return str(op.Conv(x, op.weight(CHANNELS, CHANNELS, 5, 5), op.weight(CHANNELS), pads=[2] * 4))
    return str(op.Conv(x, op.weight(CHANNELS, CHANNELS, 1, 1), op.weight(CHANNELS)))


@dataclass(frozen=True)
class Result:
    """One graph, folded and searched.

    Attributes:
        there: how many affine nodes it has.
        left: how many bnfold leaves.
        least: how many have to stay.
        inverse: whether one stays because other readers would have to undo it, as the report says.
    """

    there: int
    left: int
    least: int
    inverse: bool

    @property
    def counts(self) -> tuple[int, int, int]:
        """All three counts."""
        return self.there, self.left, self.least


def compared(seed: int) -> Result:
    """Fold a random graph, and search for the best placement."""
    small = random_graph(seed)
    result = bnfold.fold(model_of(small), merge=False)
    graph = result.model.graph
    stored = {tensor.name for tensor in graph.initializer}
    left = sum(
        node.op_type == "BatchNormalization"
        or (node.op_type in ("Mul", "Add") and any(name in stored for name in node.input))
        for node in graph.node
    )
    reasons = {refusal.reason for row in result.report.rows for refusal in row.refusals}
    return Result(len(small.affine), left, fewest(small), Reason.INVERSE_FOR_SIBLINGS in reasons)


def main() -> None:
    """Print how many affine nodes bnfold leaves, how many have to stay, and every graph with a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into docs/placement.md")
    asked = parser.parse_args()
    results = {seed: compared(seed) for seed in range(asked.seed, asked.seed + asked.graphs)}
    worse = {seed: r for seed, r in results.items() if r.left > r.least}
    there, left, least = (sum(column) for column in zip(*(r.counts for r in results.values()), strict=True))
    inverse = sum(r.inverse for r in worse.values())
    fewer = [seed for seed, r in results.items() if r.left < r.least]
    lines = [
        f"{asked.graphs} graphs from seed {asked.seed} with {there} affine nodes: bnfold leaves {left}, the",
        f"search {least}. bnfold leaves more in {len(worse)} graphs, in {inverse} of which it says",
        f"INVERSE_FOR_SIBLINGS, and fewer in {len(fewer)}.",
        "",
        *(
            f"* seed {seed}, {r.left} against {r.least}{', inverse' * r.inverse}: `{described(seed)}`"
            for seed, r in worse.items()
        ),
    ]
    print("\n".join(lines))
    if fewer:
        sys.exit(f"the search is not complete, or a fold is wrong: seeds {fewer}")
    if asked.write:
        pages.write("placement.md", "placement", "\n".join(lines))


def described(seed: int) -> str:
    """The graph in one line."""
    small = random_graph(seed)
    made = [f"t{op.output} = {op.kind}({', '.join(f't{value}' for value in op.inputs)})" for op in small.ops]
    return "; ".join(made)


if __name__ == "__main__":
    main()
