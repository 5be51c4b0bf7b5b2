"""What no single direction takes whole, two take between them, or a part of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import count, fold, image, refusals, written

from bnfold.core.example import Graph
from bnfold.core.reasons import Reason

Write = Callable[[Graph], str | Sequence[str]]


def left(write: Write, **options: bool) -> dict[str, int]:
    return dict(count(fold(written(write), **options).model))


def padded(op: Graph, x: str, channels: int = 3) -> str:
    return str(op.Relu(op.Conv(x, op.weight(4, channels, 3, 3), pads=[1, 1, 1, 1])))


def counted(op: Graph, x: str) -> str:
    return str(op.AveragePool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1))


def images(op: Graph, channels: int) -> str:
    return str(op.input("x", (2, channels, 4, 4)))


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


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("channels", [3, 8])
def test_batch_norm_stays_in_front_of_padding(channels: int, portable: bool) -> None:
    """One node is not worth another: the batch norm stays, and says why."""

    def write(op: Graph) -> str:
        return padded(op, op.batch_norm(op.Tanh(images(op, channels)), channels=channels), channels)

    result = fold(written(write), portable=portable)
    assert not result.report.changed
    assert refusals(result)["down"] is Reason.PADDED_SHIFT


def test_batch_norm_stays_behind_counted_padding() -> None:
    """The same behind a pool that counts its padding, although the layer in front could take the scale."""

    def write(op: Graph) -> str:
        y = op.Conv(image(op), op.weight(3, 3, 1, 1))
        return str(op.Sigmoid(op.batch_norm(counted(op, y))))

    result = fold(written(write))
    assert not result.report.changed
    assert refusals(result)["up"] is Reason.PADDED_SHIFT


def test_shift_stays_behind_counted_padding() -> None:
    """Of two nodes behind such a pool the shift stays, and the scale goes up."""

    def write(op: Graph) -> str:
        y = counted(op, op.Conv(image(op), op.weight(3, 3, 1, 1)))
        return str(op.Sigmoid(op.Add(op.Mul(y, op.weight(3, 1, 1)), op.weight(3, 1, 1))))

    assert left(write) == {"Conv": 1, "AveragePool": 1, "Add": 1, "Sigmoid": 1}


@pytest.mark.parametrize(
    ("channels", "portable", "kept"),
    [(7, False, "Add"), (8, False, "BatchNormalization"), (8, True, "Add")],
)
def test_of_two_nodes_one_stays(channels: int, portable: bool, kept: str) -> None:
    """A batch norm of both where a runtime has a layout for it; else the shift, and its scale goes."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Tanh(images(op, channels)), op.weight(channels, 1, 1))
        return padded(op, op.Add(y, op.weight(channels, 1, 1)), channels)

    assert left(write, portable=portable) == {"Tanh": 1, kept: 1, "Conv": 1, "Relu": 1}


def test_of_two_nodes_that_are_no_batch_norm_the_shift_stays() -> None:
    """One map for all channels, as images are scaled, is no batch norm."""

    def write(op: Graph) -> str:
        y = op.Sub(op.Div(images(op, 16), op.const(127.5)), op.const(1.0))
        return padded(op, y, 16)

    assert left(write) == {"Add": 1, "Conv": 1, "Relu": 1}


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
        y = op.Mul(op.Tanh(image(op)), op.const(np.array([[[1.0]], [[0.0]], [[2.0]]])))
        return padded(op, op.Add(y, op.weight(3, 1, 1)))

    assert left(write) == {"Tanh": 1, "BatchNormalization": 1, "Conv": 1, "Relu": 1}


def test_promised_tensor_keeps_its_map() -> None:
    """What lies between the two nodes is an output: no part of them goes anywhere."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1))
        return y, padded(op, op.Add(y, op.weight(3, 1, 1)))

    assert left(write) == {"Tanh": 1, "Mul": 1, "Add": 1, "Conv": 1, "Relu": 1}


def test_shift_that_stays_is_reported() -> None:
    """The report says where the scale went, and why the shift stays."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1))
        return padded(op, op.Add(y, op.weight(3, 1, 1)))

    result = fold(written(write))
    assert [row.status for row in result.report.rows] == ["folded", "kept"]
    assert refusals(result, "Add")["down"] is Reason.PADDED_SHIFT
    (name,) = result.report.rows[0].leaves
    assert name.endswith("(Add)")


# ---------------------------------------------------------------- one part meets another map


def test_scale_down_while_shift_meets_a_map() -> None:
    """The padded layer takes the scale, and the Mul on one branch of the sum the shift: one node fewer."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Tanh(image(op)), op.weight(3, 1, 1))
        return padded(op, op.batch_norm(op.Add(y, op.Sigmoid("x"))))

    others = {"Tanh": 1, "Sigmoid": 1, "Add": 1, "Conv": 1, "Relu": 1}
    assert left(write) == others | {"BatchNormalization": 1}
    assert left(write, portable=True) == others | {"Mul": 1, "BatchNormalization": 1}


# ---------------------------------------------------------------- below a Transpose


def channels_last(
    op: Graph, channels: int = 8, *, relu: str = "Relu", twice: bool = False, constants: int = 3
) -> list[str]:
    """A map between Transposes that a sum keeps from moving up, and a Relu from moving down."""
    x = op.Transpose(op.Conv(images(op, 3), op.weight(channels, 3, 1, 1)), perm=[0, 2, 3, 1])
    total = op.Add(x, op.Tanh(x))
    y = op.Mul(total, op.weight(channels))
    y = op.Add(op.Sub(y, op.weight(channels)), op.weight(channels)) if constants == 3 else y
    y = op.Cast(getattr(op, relu)(y), to=1)
    outputs = [op.Conv(op.Transpose(y, perm=[0, 3, 1, 2]), op.weight(4, channels, 1, 1))]
    return [*outputs, op.Conv(op.Transpose(total, perm=[0, 3, 1, 2]), op.weight(4, channels, 1, 1))] + (
        [op.Sigmoid(y)] if twice else []
    )


def test_below_a_transpose_a_run_is_one_batch_norm() -> None:
    """Where it has the channels first; the Relu goes with it, and what stood between vanishes."""
    result = fold(written(channels_last))
    kinds = count(result.model)
    assert kinds == {"Conv": 3, "Transpose": 3, "Tanh": 1, "Add": 1, "BatchNormalization": 1, "Relu": 1}
    assert [row.status for row in result.report.rows] == ["merged"] * 3
    assert {refusal.reason for row in result.report.rows for refusal in row.refusals} >= {
        Reason.ACTIVATION_TURNS
    }
    order = [node.op_type for node in result.model.graph.node]
    assert order[order.index("BatchNormalization") - 1] == "Transpose"


@pytest.mark.parametrize(
    ("options", "portable"),
    [
        ({"twice": True}, False),  # the Relu has another reader
        ({"channels": 7}, False),  # fewer channels than fill a block of the runtime's layout
        ({"constants": 1}, False),  # a single node, which no batch norm takes the place of
        ({"relu": "Sigmoid"}, False),
        ({}, True),
    ],
)
def test_not_everything_goes_below(options: dict[str, int], portable: bool) -> None:
    """Only a run in front of one Relu in front of one Transpose, where the runtime gains."""
    kinds = left(lambda op: channels_last(op, **options), portable=portable)  # type: ignore[arg-type]
    assert "BatchNormalization" not in kinds


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_stands_around_a_transpose(data: st.DataObject) -> None:
    """Random runs in front of Relus and Transposes, no-ops between, results read elsewhere: promises hold."""

    def flag(often: int = 4) -> bool:
        return data.draw(st.integers(1, often)) == 1

    def write(op: Graph) -> list[str]:
        channels = data.draw(st.sampled_from([1, 7, 8, 9]))
        x = op.Transpose(op.Conv(images(op, 3), op.weight(channels, 3, 1, 1)), perm=[0, 2, 3, 1])
        y = outputs = op.Add(x, op.Tanh(x))
        made = []
        for _ in range(data.draw(st.integers(1, 4))):
            size = data.draw(st.sampled_from([(channels,), (1, 1, channels), (1,), (4, 1, 1)]))
            constant = op.positive(*size) if flag(2) else op.weight(*size)
            y = getattr(op, data.draw(st.sampled_from(["Mul", "Add", "Sub"])))(y, constant)
        for op_type in ("Relu", "Transpose"):
            if flag():
                y = op.Cast(y, to=1) if flag(2) else op.Identity(y)
            if flag(8):
                made.append(op.Sigmoid(y))
            orders = [[0, 3, 1, 2], [0, 3, 2, 1], [0, 2, 3, 1]]
            more = {"perm": data.draw(st.sampled_from(orders))} if op_type == "Transpose" else {}
            y = getattr(op, op_type)(y, **more)
        return [op.Sigmoid(y), op.Sigmoid(outputs), *made]

    fold(written(write))
