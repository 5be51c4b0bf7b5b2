"""What no single direction takes whole, two take between them, or a part of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from test_planner import count, fold, image, written

from bnfold.core.example import Graph

Write = Callable[[Graph], str | Sequence[str]]


def left(write: Write, **options: bool) -> dict[str, int]:
    return dict(count(fold(written(write), **options).model))


def padded(op: Graph, x: str) -> str:
    return str(op.Relu(op.Conv(x, op.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])))


# ---------------------------------------------------------------- two directions


def scale_up_shift_down(op: Graph) -> str:
    """The layer in front takes a scale through Relu, the one behind a shift through a sum."""
    y = op.batch_norm(op.Relu(op.Conv(image(op), op.weight(3, 3, 1, 1))), positive=True)
    return str(op.Conv(op.Add(y, op.Tanh("x")), op.weight(4, 3, 3, 3)))


def shift_up_scale_down(op: Graph) -> str:
    """The layer in front takes a shift through a sum, the one behind a scale through Relu."""
    x = image(op)
    y = op.batch_norm(op.Add(op.Conv(x, op.weight(3, 3, 1, 1)), op.Tanh(x)), positive=True)
    return str(op.Conv(op.Relu(y), op.weight(4, 3, 3, 3), pads=[1, 1, 1, 1]))


@pytest.mark.parametrize("write", [scale_up_shift_down, shift_up_scale_down])
@pytest.mark.parametrize("portable", [True, False])
def test_both_ways(write: Write, portable: bool) -> None:
    """Neither the sum takes the scale nor Relu the shift: each part goes where it can."""
    assert left(write, portable=portable) == {"Conv": 2, "Relu": 1, "Tanh": 1, "Add": 1}


def test_parts_are_reported() -> None:
    """The report names both layers."""
    (row,) = fold(written(scale_up_shift_down)).report.rows
    assert (row.status, row.direction, len(row.into)) == ("folded", "in parts", 2)


# ---------------------------------------------------------------- in front of, and behind padding


def test_shift_stays_in_front_of_padding() -> None:
    """The weights take the scale; the shift stays as an Add, one node for one node."""
    result = fold(written(lambda op: padded(op, op.batch_norm(op.Tanh(image(op))))))
    assert count(result.model) == {"Tanh": 1, "Add": 1, "Conv": 1, "Relu": 1}
    (row,) = result.report.rows
    assert row.status == "folded"
    assert not row.refusals
    assert [name.rpartition(" ")[2] for name in row.leaves] == ["(Add)"]


def test_shift_stays_behind_counted_padding() -> None:
    """Behind a pool that counts its padding the shift stays, and the scale goes up."""

    def write(op: Graph) -> str:
        y = op.Conv(image(op), op.weight(3, 3, 1, 1))
        pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
        return str(op.Sigmoid(op.batch_norm(op.AveragePool(y, **pads))))

    assert left(write) == {"Conv": 1, "AveragePool": 1, "Add": 1, "Sigmoid": 1}


def test_nothing_stays_where_portable() -> None:
    """One node for one node helps no runtime in particular: portable leaves the batch norm alone."""
    write = lambda op: padded(op, op.batch_norm(op.Tanh(image(op))))  # noqa: E731
    assert left(write, portable=True)["BatchNormalization"] == 1


@pytest.mark.parametrize("portable", [True, False])
def test_of_two_nodes_the_shift_stays(portable: bool) -> None:
    """Where scale and shift are two nodes, the scale's goes, and the shift's is restated."""

    def write(op: Graph) -> str:
        return padded(op, op.Add(op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1)), op.weight(3, 1, 1)))

    assert left(write, portable=portable) == {"Tanh": 1, "Add": 1, "Conv": 1, "Relu": 1}


def test_of_two_nodes_the_shift_stays_in_front_of_an_activation() -> None:
    """The same where the activation lets a scale pass and no shift: a LeakyRelu."""

    def write(op: Graph) -> str:
        y = op.Add(op.Mul(op.Tanh(image(op)), op.positive(3, 1, 1)), op.weight(3, 1, 1))
        return str(op.Conv(op.LeakyRelu(y), op.weight(4, 3, 3, 3)))

    assert left(write) == {"Tanh": 1, "Add": 1, "LeakyRelu": 1, "Conv": 1}


def test_of_two_batch_norms_one_shift_stays() -> None:
    """A run of affine nodes in front of padding is one Add in the end."""
    nodes = left(lambda op: padded(op, op.batch_norm(op.batch_norm(op.Tanh(image(op))))))
    assert nodes == {"Tanh": 1, "Add": 1, "Conv": 1, "Relu": 1}


def test_scale_of_zero_cannot_leave_its_shift() -> None:
    """A channel that is multiplied by zero is its shift alone, which no shift in front can make."""

    def write(op: Graph) -> str:
        gamma = op.const(np.array([1.0, 0.0, 2.0]))
        y = op.BatchNormalization(op.Tanh(image(op)), gamma, *(op.positive(3) for _ in range(3)))
        return padded(op, y)

    assert left(write)["BatchNormalization"] == 1


def test_promised_tensor_keeps_its_map() -> None:
    """The batch norm's result is an output: no part of it goes anywhere."""

    def write(op: Graph) -> Sequence[str]:
        y = op.batch_norm(op.Tanh(image(op)))
        return y, padded(op, y)

    assert left(write)["BatchNormalization"] == 1


# ---------------------------------------------------------------- one part meets another map


def test_scale_down_while_shift_meets_a_map() -> None:
    """The padded layer takes the scale, and the Mul on one branch of the sum the shift: one node fewer."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1))
        return padded(op, op.batch_norm(op.Add(y, op.Sigmoid("x"))))

    others = {"Tanh": 1, "Sigmoid": 1, "Add": 1, "Conv": 1, "Relu": 1}
    assert left(write) == others | {"BatchNormalization": 1}
    assert left(write, portable=True) == others | {"Mul": 1, "BatchNormalization": 1}
