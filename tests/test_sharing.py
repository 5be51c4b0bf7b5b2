"""A tensor that several read: who may change it, who gets a copy of its producer, who stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from test_planner import branch, count, fold, image, large_conv, refusals, written

from bnfold.core.example import Graph
from bnfold.core.reasons import Reason

Write = Callable[[Graph], str | Sequence[str]]


def small_conv(op: Graph) -> str:
    """A layer that costs no more than a batch norm."""
    return str(op.Conv(image(op), op.weight(3, 3, 1, 1), op.weight(3)))


def left(write: Write, **options: Any) -> dict[str, int]:
    return dict(count(fold(written(write), **options).model))


# ---------------------------------------------------------------- copies


def test_cheap_layer_is_copied() -> None:
    """Each of two batch norms gets the layer to itself; the promised tensor keeps its own."""

    def write(op: Graph) -> Sequence[str]:
        y = small_conv(op)
        return op.Sigmoid(op.batch_norm(y)), op.Tanh(op.batch_norm(y))

    assert left(write) == {"Conv": 2, "Sigmoid": 1, "Tanh": 1}


@pytest.mark.parametrize("last", [True, False], ids=["batch norm last", "batch norm first"])
def test_copy_keeps_every_name(last: bool) -> None:
    """Two outputs, of the layer and of its batch norm, keep their names and values; the report says how."""

    def write(op: Graph) -> Sequence[str]:
        y = small_conv(op)
        made = [y, op.batch_norm(y), op.Sigmoid(y)]
        return made if last else made[::-1]

    result = fold(written(write))
    assert count(result.model) == {"Conv": 2, "Sigmoid": 1}
    (row,) = result.report.rows
    assert row.copies == row.into
    assert {node.name for node in result.model.graph.node} >= {row.into[0].partition(" ")[0]}


def test_copy_for_a_body() -> None:
    """A body that reads the tensor goes on reading what it read."""

    def write(op: Graph) -> Sequence[str]:
        y = small_conv(op)
        return op.batch_norm(y), branch(op, lambda then: then.Sigmoid(y), lambda other: other.Tanh(y))

    assert left(write) == {"Conv": 2, "If": 1, "Sigmoid": 1, "Tanh": 1}


def test_two_nodes_pay_for_two_copies() -> None:
    """Mul and Add behind a Reshape are worth a copy of the Reshape and of its layer, and no node more."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Reshape(small_conv(op), op.ints(2, 3, 16))
        return op.Sigmoid(y), op.Tanh(op.Add(op.Mul(y, op.weight(3, 1)), op.weight(3, 1)))

    assert left(write) == {"Conv": 2, "Reshape": 2, "Sigmoid": 1, "Tanh": 1}


def test_one_node_does_not_pay_for_two_copies() -> None:
    """One batch norm behind a shared Reshape is not worth two copies."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Reshape(small_conv(op), op.ints(2, 3, 16))
        return op.Sigmoid(y), op.Tanh(op.batch_norm(y))

    result = fold(written(write))
    assert refusals(result)["up"] is Reason.OTHER_READER


def test_large_weight_is_not_copied() -> None:
    """A layer on one row multiplies little, but its file would grow."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Gemm(op.input("x", (1, 300)), op.weight(300, 300))
        return op.Sigmoid(op.batch_norm(y)), op.Tanh(y)

    assert refusals(fold(written(write)))["up"] is Reason.OTHER_READER


@pytest.mark.parametrize(("channels", "copied"), [(1, True), (2, False)])
def test_one_multiplication_per_element(channels: int, copied: bool) -> None:
    """However large the image: a layer that multiplies once per element costs what a batch norm costs."""

    def write(op: Graph) -> Sequence[str]:
        x = op.input("x", ("N", channels, 64, 64))
        y = op.Conv(x, op.weight(3, channels, 1, 1))
        return op.Sigmoid(op.batch_norm(y)), op.Tanh(y)

    assert left(write).get("BatchNormalization", 0) == (not copied)


@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize(("width", "copied"), [(32, True), (33, False)])
def test_few_multiplications_altogether(width: int, copied: bool, weight_first: bool) -> None:
    """A dense layer of at most 64·64 multiplications costs what a batch norm costs."""

    def write(op: Graph) -> Sequence[str]:
        if weight_first:
            y = op.MatMul(op.weight(width, 128), op.input("x", (128, 1)))
        else:
            y = op.MatMul(op.input("x", (1, 128)), op.weight(128, width))
        return op.Sigmoid(op.Mul(y, op.weight(width, 1) if weight_first else op.weight(width))), op.Tanh(y)

    assert left(write).get("Mul", 0) == (not copied)


# ---------------------------------------------------------------- equal maps


def alike(op: Graph, y: str, *also: Callable[[str], str]) -> list[str]:
    statistics = [op.positive(3) for _ in range(4)]
    return [
        op.Sigmoid(op.BatchNormalization(y, *statistics)),
        op.Tanh(op.BatchNormalization(y, *statistics)),
        *(other(y) for other in also),
    ]


def test_equal_maps_vanish_together() -> None:
    """Where all readers apply the same map, the layer takes it once."""
    assert left(lambda op: alike(op, large_conv(op))) == {"Conv": 1, "Sigmoid": 1, "Tanh": 1}


def test_equal_maps_share_a_copy() -> None:
    """Readers of the same map share a copy of the layer, and the other reader keeps its own."""
    assert left(lambda op: alike(op, small_conv(op), op.Softplus))["Conv"] == 2


def test_equal_maps_and_a_promised_one() -> None:
    """A map whose result is promised to the caller keeps its name."""

    def write(op: Graph) -> Sequence[str]:
        y, statistics = large_conv(op), [op.positive(3) for _ in range(4)]
        return [op.BatchNormalization(y, *statistics) for _ in range(2)]

    assert left(write) == {"Conv": 1, "BatchNormalization": 2}


# ---------------------------------------------------------------- branches that part and meet again


def test_up_through_a_sum_of_one_producer() -> None:
    """Both ways through a residual lead to one layer: it takes the scale once."""

    def write(op: Graph) -> str:
        y = large_conv(op)
        return op.Sigmoid(op.Mul(op.Add(op.Relu(y), y), op.positive(3, 1, 1)))

    assert left(write) == {"Conv": 1, "Relu": 1, "Add": 1, "Sigmoid": 1}


def test_up_through_a_sum_whole_or_not_at_all() -> None:
    """A shift would reach the layer on one of both ways only: nothing moves."""

    def write(op: Graph) -> str:
        y = large_conv(op)
        return op.Sigmoid(op.batch_norm(op.Add(op.Relu(y), y), positive=True))

    result = fold(written(write))
    assert refusals(result)["up"] is Reason.BRANCHES_DIFFER
    assert not result.report.changed


def test_up_through_a_sum_of_two_producers() -> None:
    """Of a residual around a layer, the layer takes scale and shift, and its input's producer the scale."""

    def write(op: Graph) -> str:
        a, b = large_conv(op), op.Conv("x", op.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
        return op.Sigmoid(op.batch_norm(op.Add(op.Relu(a), b), positive=True))

    assert left(write)["Add"] == 1
    assert "BatchNormalization" not in left(write)


def gated(op: Graph, y: str) -> str:
    """Squeeze and excitation: a tensor times what a small network makes of its means."""
    gate = op.Conv(op.GlobalAveragePool(y), op.weight(3, 3, 1, 1), op.weight(3))
    return op.Mul(y, op.Sigmoid(gate))


def test_scale_in_front_of_a_gate() -> None:
    """A scale goes both ways around a gate: into the gate's layer, and on to the layer behind."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1))
        return op.Conv(gated(op, y), op.weight(3, 3, 3, 3))

    assert left(write)["Mul"] == 1


@pytest.mark.parametrize("above", [True, False], ids=["in front", "behind"])
def test_shift_at_a_gate(above: bool) -> None:
    """A shift does not pass a gate, so neither branch takes anything."""

    def write(op: Graph) -> str:
        y = op.batch_norm(op.Tanh(image(op))) if above else large_conv(op)
        y = gated(op, y)
        return op.Conv(y, op.weight(3, 3, 3, 3)) if above else op.Sigmoid(op.batch_norm(y))

    result = fold(written(write))
    assert refusals(result)["down" if above else "up"] is Reason.NEEDS_NO_SHIFT
    assert not result.report.changed


def test_batch_norm_between_layer_and_gate() -> None:
    """The usual place, between the layer and the branches: it folds into the layer."""
    assert left(lambda op: gated(op, op.batch_norm(large_conv(op))))["Conv"] == 2


def test_inverse_is_refused_only_where_it_would_do() -> None:
    """A scale of zero has no inverse: the reader is then in the way, like any other."""

    def write(op: Graph) -> Sequence[str]:
        y = large_conv(op)
        return op.Sigmoid(op.Mul(y, op.const(np.zeros((3, 1, 1))))), op.Conv(y, op.weight(3, 3, 1, 1))

    assert refusals(fold(written(write)), "Mul")["up"] is Reason.OTHER_READER


def test_model_of_copies_is_valid() -> None:
    """Copies keep the graph in topological order, with fresh and unique names."""

    def write(op: Graph) -> Sequence[str]:
        y = small_conv(op)
        return [op.Sigmoid(op.batch_norm(y)) for _ in range(4)]

    folded = fold(written(write)).model
    onnx.checker.check_model(folded, full_check=True)
    names = [node.name for node in folded.graph.node]
    assert len(set(names)) == len(names) == 8
