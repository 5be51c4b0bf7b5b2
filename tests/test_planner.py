"""What a graph forbids, whatever the equations allow: each hazard in the smallest graph that has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.op_run import OpRun
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from truth import differences, feeds_for, graphs, largest, onnx_runtime, outputs_of, truth

import bnfold
from bnfold.core.affine import Affine
from bnfold.core.example import Graph
from bnfold.core.reasons import Reason, silenced

SIZES = {"N": 2, "T": 4}
Write = Callable[[Graph], str | Sequence[str]]


def written(
    write: Write, opset: int = 17, ir_version: int = 8, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """The model that ``write`` writes; it returns the outputs."""
    graph = Graph(opset, dtype)
    made = write(graph)
    return graph.finish([made] if isinstance(made, str) else list(made), ir_version)


def body(op: Graph, write: Callable[[Graph], str]) -> onnx.GraphProto:
    """A body for an If; its constants are its own, other values may be the outer graph's."""
    inner = Graph(op.opset, op.dtype, seed=1)
    inner._count = op._count = op._count + 100
    y = write(inner)
    op._count = inner._count
    outputs = [helper.make_tensor_value_info(y, op.dtype, None)]
    return helper.make_graph(inner.nodes, "body", [], outputs, inner._initializers)


def branch(op: Graph, then: Callable[[Graph], str], other: Callable[[Graph], str]) -> str:
    """An If on a graph input."""
    condition = op.input("condition", (), TensorProto.BOOL)
    return str(op.If(condition, then_branch=body(op, then), else_branch=body(op, other)))


def fold(model: onnx.ModelProto, **options: Any) -> bnfold.FoldResult:
    """Fold, and hold the promises that hold for every graph."""
    result = bnfold.fold(model, **options)
    folded = result.model
    for seed in range(2):
        assert not differences(model, folded, feeds_for(model, SIZES, seed), NEW_OPS)
    assert list(folded.graph.output) == list(model.graph.output)
    assert count(folded).total() <= count(model).total()
    assert not bnfold.fold(folded, portable=options.get("portable", False)).report.changed
    if all(not node.domain for node in model.graph.node):
        onnx.checker.check_model(folded, full_check=True)
        feeds = feeds_for(model, SIZES)
        by_runtime = onnx_runtime(folded, feeds) or []
        for a, b in zip(onnx_runtime(model, feeds) or [], by_runtime, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest([a]))
    return result


def count(model: onnx.ModelProto) -> Counter[str]:
    """Nodes by operator, those of bodies included."""
    return Counter(node.op_type for graph in graphs(model.graph) for node in graph.node)


def refusals(result: bnfold.FoldResult, op_type: str = "BatchNormalization") -> dict[str, Reason]:
    """The reason per direction of the first node of an operator that is kept."""
    row = next(row for row in result.report.rows if row.op_type == op_type and row.status == "kept")
    return {refusal.direction: refusal.reason for refusal in row.refusals}


def conv(op: Graph, x: str, channels: int = 3) -> str:
    return str(op.Conv(x, op.weight(channels, 3, 1, 1)))


def large_conv(op: Graph) -> str:
    """A layer that is too expensive to be copied for a map."""
    return str(op.Conv(op.input("x", (2, 3, 8, 8)), op.weight(3, 3, 3, 3), pads=[1, 1, 1, 1]))


def image(op: Graph, name: str = "x") -> str:
    return op.input(name, (2, 3, 4, 4))


class Twice(OpRun):
    """A custom operator, so that graphs with one can be run."""

    op_domain = "vendor"

    def _run(self, x, **_):  # type: ignore[no-untyped-def]
        """Double the input."""
        return (2 * x,)


class ForeignConv(OpRun):
    """An operator of that name that is none."""

    op_domain = "vendor"

    def _run(self, x, weight, **_):  # type: ignore[no-untyped-def]
        """Leave out the weight, but for its sign."""
        return (np.sin(x) * np.sign(weight.sum()),)


ForeignConv.__name__ = "Conv"
NEW_OPS = [Twice, ForeignConv]


# ---------------------------------------------------------------- hazards


@dataclass(frozen=True)
class Hazard:
    """A graph that stays as it is for one reason, in one direction.

    Attributes:
        write: writes the graph.
        reason: why the first affine node cannot go.
        direction: where it cannot go.
        node: the operator that refuses; empty if it is the graph's edge.
        options: for ``bnfold.fold``.
    """

    write: Write
    reason: Reason
    direction: str
    node: str = ""
    options: dict[str, Any] = field(default_factory=dict)


HAZARDS: list[Hazard] = []


def hazard(reason: Reason, direction: str, node: str = "", **options: Any) -> Callable[[Write], Write]:
    def mark(write: Write) -> Write:
        HAZARDS.append(Hazard(write, reason, direction, node, options))
        return write

    return mark


@hazard(Reason.GRAPH_OUTPUT, "up", "Conv")
def output_in_the_way(op: Graph) -> Sequence[str]:
    y = large_conv(op)
    return y, op.batch_norm(y)


@hazard(Reason.GRAPH_OUTPUT, "down", "BatchNormalization")
def output_behind(op: Graph) -> Sequence[str]:
    y = op.batch_norm(image(op))
    return y, conv(op, y)


@hazard(Reason.GRAPH_INPUT, "up")
def nothing_in_front(op: Graph) -> str:
    return op.Sigmoid(op.batch_norm(image(op)))


@hazard(Reason.OTHER_READER, "up", "Sigmoid")
def other_reader(op: Graph) -> Sequence[str]:
    y = large_conv(op)
    return op.batch_norm(y), op.Sigmoid(y)


@hazard(Reason.OTHER_READER, "up", "Sigmoid")
def reader_in_a_body(op: Graph) -> Sequence[str]:
    y = large_conv(op)
    return op.batch_norm(y), branch(op, lambda then: then.Sigmoid(y), lambda other: other.Sigmoid(y))


@hazard(Reason.INVERSE_FOR_SIBLINGS, "up", "Conv")
def reader_that_could_undo_it(op: Graph) -> Sequence[str]:
    y = large_conv(op)
    return op.Sigmoid(op.batch_norm(y)), conv(op, y)


@hazard(Reason.INVERSE_FOR_SIBLINGS, "up", "BatchNormalization")
def another_batch_norm(op: Graph) -> Sequence[str]:
    y = large_conv(op)
    return [op.Sigmoid(op.batch_norm(y)) for _ in range(2)]


@hazard(Reason.SUBGRAPH, "down", "Conv")
def layer_in_a_body(op: Graph) -> str:
    y = op.batch_norm(image(op))
    return branch(op, lambda then: conv(then, y), lambda other: conv(other, y))


@hazard(Reason.SUBGRAPH, "up", "Conv")
def map_in_a_body(op: Graph) -> str:
    x = image(op)
    y = conv(op, x)
    return branch(op, lambda then: then.batch_norm(y, channels=3), lambda other: other.Tanh(x))


@hazard(Reason.NO_RULE, "up", "Trilu")
def no_rule(op: Graph) -> str:
    return op.batch_norm(op.Trilu(image(op)))


@hazard(Reason.BRANCHES_DIFFER, "up", "Relu")
def readers_want_different_maps(op: Graph) -> str:
    y = conv(op, image(op))
    return op.batch_norm(op.Add(op.Relu(y), y), positive=True)


@hazard(Reason.NO_READER, "down", "BatchNormalization")
def nobody_reads(op: Graph) -> str:
    x = image(op)
    op.batch_norm(x)
    return op.Sigmoid(x)


@hazard(Reason.COSTS_A_NODE, "down", "MatMul")
def one_shift_becomes_three(op: Graph) -> Sequence[str]:
    y = op.Add(op.Sigmoid(op.input("x", ("N", 5, 4))), op.weight(4))
    return [op.Sigmoid(op.MatMul(y, op.weight(4, 6))) for _ in range(3)]


@hazard(Reason.NO_GAIN, "down", "MatMul")
def shift_only_changes_sides(op: Graph) -> str:
    y = op.Add(op.Sigmoid(op.input("x", ("N", 5, 4))), op.weight(4))
    return op.Sigmoid(op.MatMul(y, op.weight(4, 6)))


@hazard(Reason.DENSE_BIAS, "up", "MatMul")
def dense_bias(op: Graph) -> str:
    return op.Sigmoid(op.Add(op.MatMul(op.input("x", ("N", 4)), op.weight(4, 3)), op.weight(3)))


def normalized(op: Graph) -> str:
    """A decomposed LayerNormalization, up to γ."""
    x = op.input("x", ("N", 5, 4))
    centred = op.Sub(x, op.ReduceMean(x, axes=[-1]))
    spread = op.Sqrt(op.ReduceMean(op.Mul(centred, centred), axes=[-1]))
    return str(op.Mul(op.Div(centred, spread), op.weight(4)))


@hazard(Reason.FUSED_BY_RUNTIME, "down", "Mul")
def layer_norm_tail(op: Graph) -> str:
    return op.MatMul(normalized(op), op.weight(4, 6))


@hazard(Reason.FUSED_BY_RUNTIME, "down", "Mul")
def gelu_half(op: Graph) -> str:
    x = op.input("x", ("N", 5, 4))
    gate = op.Add(op.Erf(op.Div(x, op.const(np.sqrt(2.0)))), op.const(1.0))
    return op.MatMul(op.Mul(op.Mul(x, gate), op.const(0.5)), op.weight(4, 6))


@hazard(Reason.FUSED_BY_RUNTIME, "up", "MatMul")
def attention_scores(op: Graph) -> str:
    q, k = (op.MatMul(op.input(name, (2, 5, 4)), op.weight(4, 6)) for name in "qk")
    scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))
    return op.Softmax(op.Mul(scores, op.const(0.4)))


@hazard(Reason.OVERFLOWS, "up", "Conv")
def weight_overflows(op: Graph) -> str:
    y = op.Conv(image(op), op.const(np.full((1, 3, 1, 1), 1e30)))
    return op.Sigmoid(op.Mul(y, op.const([[[1e30]]])))


@hazard(Reason.PRECISION_LOST, "up", "Conv")
def weight_underflows(op: Graph) -> str:
    y = op.Conv(image(op), op.const(np.full((1, 3, 1, 1), 1.234e-25)))
    return op.Mul(y, op.const([[[1.234e-19]]]))


@hazard(Reason.OVERRIDABLE, "read", "BatchNormalization")
def overridable_statistics(op: Graph) -> str:
    y = conv(op, image(op))
    return op.BatchNormalization(y, *(op.positive(3, overridable=True) for _ in range(4)))


@hazard(Reason.OVERRIDABLE, "up", "Conv")
def overridable_weight(op: Graph) -> str:
    return op.batch_norm(op.Conv(image(op), op.weight(3, 3, 1, 1, overridable=True)))


@hazard(Reason.EXCLUDED, "read", "BatchNormalization", skip="batchnorm*")
def skipped(op: Graph) -> str:
    return op.batch_norm(conv(op, image(op)))


@hazard(Reason.NO_RULE, "down", "Conv")
def foreign_domain(op: Graph) -> str:
    y = op.batch_norm(image(op))
    return op.Conv(y, op.positive(3, 3, 1, 1), domain="vendor")


def by_name(hazards: Sequence[Hazard]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("hazard", hazards, ids=lambda hazard: hazard.write.__name__)


@by_name(HAZARDS)
def test_hazard_is_refused(hazard: Hazard) -> None:
    """The graph stays byte for byte, and the report says why, in which direction and at which node."""
    model = written(hazard.write)
    result = bnfold.fold(model, portable=True, **hazard.options)
    untouched = ir.serde.serialize_model(ir.serde.deserialize_model(model))
    assert result.model.SerializeToString() == untouched.SerializeToString()
    given = [
        (refusal.reason, refusal.direction, refusal.node.rpartition(" ")[2].strip("()"))
        for row in result.report.rows
        for refusal in row.refusals
    ]
    assert (hazard.reason, hazard.direction, hazard.node) in given


# Without these, nothing would be wrong: they say what is of no use, or what nobody asked for.
HARMLESS = {
    Reason.NO_READER,
    Reason.COSTS_A_NODE,
    Reason.NO_GAIN,
    Reason.DENSE_BIAS,
    Reason.FUSED_BY_RUNTIME,
    Reason.EXCLUDED,
}
# Exact, and not tried: positions in a body do not compare with those around it. Up, the body would
# return a value of the outer graph, which runtimes refuse.
NOT_TRIED = {layer_in_a_body}
# Without these, there is no operator to ask or no equation to apply.
NOTHING_TO_APPLY = {Reason.NO_RULE}


@by_name([h for h in HAZARDS if h.reason not in HARMLESS | NOTHING_TO_APPLY and h.write not in NOT_TRIED])
def test_hazard_bears_load(hazard: Hazard) -> None:
    """Without the planner's condition the model breaks, or an output is off by more than rounding."""
    model = written(hazard.write)
    try:
        # The planner asks once more, at the end, whether the seed's name can go to what stands in front.
        with silenced(hazard.reason, Reason.GRAPH_INPUT), np.errstate(all="ignore"):
            result = bnfold.fold(model)
        folded = result.model
        onnx.checker.check_model(folded, full_check=True)
        feeds = feeds_for(model, SIZES, overriding=True)
        known = {value.name for value in folded.graph.input}
        after = truth(folded, {name: feed for name, feed in feeds.items() if name in known})
        expected, got = outputs_of(model, truth(model, feeds)), outputs_of(model, after)
        onnx_runtime(folded, feeds_for(folded))
    except (AssertionError, ValueError, KeyError, AttributeError, onnx.checker.ValidationError, Fail):
        return
    assert result.report.changed
    scale = largest(expected) if hazard.reason is not Reason.PRECISION_LOST else 1.234e-44
    assert not all(np.abs(a - b).max() <= 1e-3 * scale for a, b in zip(expected, got, strict=True))


# ---------------------------------------------------------------- bodies


def test_folds_within_a_body() -> None:
    """A layer and its batch norm in the same body fold there, into constants that every body can read."""

    def write(op: Graph) -> str:
        x = image(op)

        def then(inner: Graph) -> str:
            return inner.Relu(inner.batch_norm(conv(inner, x), channels=3))

        return branch(op, then, lambda other: other.batch_norm(other.Conv(x, other.weight(3, 3, 1, 1)), 3))

    result = fold(written(write))
    assert count(result.model) == {"If": 1, "Conv": 2, "Relu": 1}
    outer, *inner = graphs(result.model.graph)
    assert not any(graph.initializer for graph in inner)
    assert len(outer.initializer) == 4


def test_folds_over_an_outer_weight() -> None:
    """A body's layer whose weight stands outside takes the map into a weight of its own."""

    def write(op: Graph) -> Sequence[str]:
        x, weight = image(op), op.weight(3, 3, 1, 1)
        y = branch(
            op,
            lambda then: then.batch_norm(then.Conv(x, weight), channels=3),
            lambda other: other.Conv(x, weight),
        )
        return y, op.Conv(x, weight)

    result = fold(written(write))
    assert count(result.model) == {"If": 1, "Conv": 3}


def test_folds_within_a_body_before_ir_version_4() -> None:
    """Where initializers have to be inputs, a body cannot have any: its new constants stand elsewhere."""

    def write(op: Graph) -> str:
        x, constants = image(op), [op.weight(3, 3, 1, 1), *(op.positive(3) for _ in range(4))]

        def then(inner: Graph) -> str:
            return str(inner.BatchNormalization(inner.Conv(x, constants[0]), *constants[1:]))

        return branch(op, then, lambda other: other.Tanh(x))

    result = fold(written(write, opset=8, ir_version=3))
    assert count(result.model) == {"If": 1, "Conv": 1, "Tanh": 1}


def loop(op: Graph, state: str, channels: int = 3) -> str:
    """Run a layer and a batch norm three times over the same state."""
    inner = Graph(op.opset, op.dtype, seed=1)
    inner._count = op._count = op._count + 100
    done = inner.Identity("again")
    normalized = inner.batch_norm("state_in", channels=channels)
    y = inner.batch_norm(conv(inner, inner.Relu(conv(inner, normalized))), channels=channels)
    op._count = inner._count
    boolean, whole = TensorProto.BOOL, TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("iteration", whole, ()),
        helper.make_tensor_value_info("again", boolean, ()),
        helper.make_tensor_value_info("state_in", op.dtype, (2, channels, 4, 4)),
    ]
    outputs = [
        helper.make_tensor_value_info(done, boolean, ()),
        helper.make_tensor_value_info(y, op.dtype, None),
    ]
    graph = helper.make_graph(inner.nodes, "body", inputs, outputs, inner._initializers)
    count, going = op.const(3, dtype=whole), op.const(True, dtype=boolean)
    return str(op.Loop(count, going, state, body=graph))


def test_folds_within_a_loop() -> None:
    """In a loop's body, maps of its state go down and maps of its result go up."""

    def write(op: Graph) -> str:
        return op.Reshape(loop(op, op.batch_norm(image(op))), op.ints(2, 3, 4, 4))

    left = {"BatchNormalization": 1, "Loop": 1, "Reshape": 1, "Conv": 2, "Relu": 1, "Identity": 1}
    assert count(fold(written(write)).model) == left


def test_folds_within_a_scan() -> None:
    """In a scan's body, a layer over an outer weight and its batch norm are one layer."""

    def write(op: Graph) -> Sequence[str]:
        weight = op.weight(4, 4)
        inner = Graph(op.opset, op.dtype, seed=1)
        inner._count = op._count = op._count + 100
        y = inner.batch_norm(inner.Gemm(inner.Add("state_in", "row"), weight), channels=4)
        state = inner.Identity(y)
        op._count = inner._count
        inputs = [helper.make_tensor_value_info(name, op.dtype, (2, 4)) for name in ("state_in", "row")]
        outputs = [helper.make_tensor_value_info(name, op.dtype, (2, 4)) for name in (state, y)]
        graph = helper.make_graph(inner.nodes, "body", inputs, outputs, inner._initializers)
        start, rows = op.input("start", (2, 4)), op.input("rows", (3, 2, 4))
        return op.Scan(start, rows, body=graph, num_scan_inputs=1, outputs=2)

    left = {"Scan": 1, "Add": 1, "Gemm": 1, "Identity": 1}
    assert count(fold(written(write)).model) == left


# ---------------------------------------------------------------- constants


def test_freeze_initializers() -> None:
    """Frozen, overridable constants fold, and are no longer part of the signature."""
    model = written(overridable_statistics)
    result = fold(model, freeze_initializers=True)
    assert count(result.model) == {"Conv": 1}
    assert [value.name for value in result.model.graph.input] == ["x"]


def test_overridable_constants_are_reported_once() -> None:
    """The report counts how many nodes freezing would set free."""
    assert bnfold.fold(written(overridable_statistics)).report.overridable == 1
    assert bnfold.fold(written(overridable_statistics), freeze_initializers=True).report.overridable == 0


def test_maps_that_cannot_be_read_are_reported() -> None:
    """Arithmetic with a constant that a caller may override, or that is no number, has a row."""

    def write(op: Graph) -> str:
        y = op.Mul(conv(op, image(op)), op.const(2.0, overridable=True))
        y = op.Add(op.Sigmoid(y), op.const(np.inf))
        return op.Mul(y, op.Sigmoid(y))

    rows = bnfold.fold(written(write)).report.rows
    reasons = [(row.op_type, [refusal.reason for refusal in row.refusals]) for row in rows]
    assert reasons == [("Mul", [Reason.OVERRIDABLE]), ("Add", [Reason.NOT_FINITE])]


def test_arithmetic_of_tensors_is_not_reported() -> None:
    """A product of two tensors is no map that cannot be read, in an unknown version of Mul either."""

    def write(op: Graph) -> str:
        y = op.Sigmoid(image(op))
        return op.Mul(op.Mul(y, op.Tanh(y)), op.const(2.0))

    rows = bnfold.fold(written(write, opset=6)).report.rows
    assert [[refusal.reason for refusal in row.refusals] for row in rows] == [[Reason.UNKNOWN_VERSION]]


@pytest.mark.parametrize("opset", [7, 8])
def test_initializers_are_inputs_before_ir_version_4(opset: int) -> None:
    """There a listed initializer is a constant like any other, and a fresh one is listed, too."""

    def write(op: Graph) -> str:
        return op.batch_norm(conv(op, image(op)))

    result = fold(written(write, opset, ir_version=3))
    folded = result.model.graph
    assert count(result.model) == {"Conv": 1}
    assert {tensor.name for tensor in folded.initializer} == {v.name for v in folded.input} - {"x"}


def test_shared_weights() -> None:
    """Two layers share a weight: the one with the batch norm gets its own, the other keeps it."""

    def write(op: Graph) -> Sequence[str]:
        x, weight, bias = image(op), op.weight(4, 3, 1, 1), op.weight(4)
        return op.batch_norm(op.Conv(x, weight, bias)), op.Conv(op.Sigmoid(x), weight, bias)

    model = written(write)
    result = fold(model)
    kept = {tensor.name: tensor for tensor in result.model.graph.initializer}
    for name in ("const_1", "const_2"):
        assert kept[name] == next(t for t in model.graph.initializer if t.name == name)
    assert count(result.model) == {"Conv": 2, "Sigmoid": 1}
    assert result.report.constant_bytes == 0


def test_shared_statistics() -> None:
    """Two batch norms share their statistics: each is read, and the last reader takes them away."""

    def write(op: Graph) -> Sequence[str]:
        x, statistics = image(op), [op.positive(4) for _ in range(4)]
        return [op.BatchNormalization(conv(op, x, 4), *statistics) for _ in range(2)]

    result = fold(written(write))
    assert count(result.model) == {"Conv": 2}
    assert len(result.model.graph.initializer) == 4


def test_one_constant_at_two_inputs() -> None:
    """A constant that a node reads twice changes where it has to, and only there."""

    def write(op: Graph) -> str:
        weight = op.weight(3, 3)
        return op.Mul(op.Gemm(op.input("x", (3, 3)), weight, weight), op.weight(3))

    assert count(fold(written(write)).model) == {"Gemm": 1}


def test_constants_of_constants() -> None:
    """A map of a constant is a constant, and folding constants is somebody else's work."""

    def write(op: Graph) -> str:
        return op.Add(op.Sigmoid(image(op)), op.Neg(op.weight(3, 1, 1)))

    assert not fold(written(write)).report.changed


@pytest.mark.parametrize("axes", [[-2, -1], [-1, -2], [1, 2], [2, 1]], ids=str)
@pytest.mark.parametrize("opset", [11, 13])
def test_unsqueezed_constants(opset: int, axes: Sequence[int]) -> None:
    """A constant made by Unsqueeze has the shape ONNX gives it, in whatever order its axes are written.

    onnx 1.23's evaluator inserts them one after another before opset 13; as all sizes are alike here,
    only the output shows on which axis the constant varies.
    """

    def write(op: Graph) -> str:
        x = op.Sigmoid(op.input("x", (2, 3, 3, 3)))
        constant = op.weight(3)
        if opset < 13:
            unsqueezed = op.Unsqueeze(constant, axes=axes)
        else:
            unsqueezed = op.Unsqueeze(constant, op.ints(*axes))
        return op.MatMul(op.weight(5, 3), op.Mul(x, unsqueezed))

    fold(written(write, opset))


# ---------------------------------------------------------------- selection


def two_layers(op: Graph) -> str:
    y = op.batch_norm(conv(op, image(op)))
    return op.batch_norm(op.Conv(op.Sigmoid(y), op.weight(4, 3, 1, 1)))


def test_only() -> None:
    """Only the named node is folded; the other one says that it was excluded."""
    model = written(two_layers)
    first = next(node.name for node in model.graph.node if node.op_type == "BatchNormalization")
    result = fold_partly(model, only=first)
    assert count(result.model)["BatchNormalization"] == 1
    assert refusals(result) == {"read": Reason.EXCLUDED}


def test_skip() -> None:
    """The named nodes stay, by glob, by several, and over ``only``."""
    model = written(two_layers)
    last = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"][-1]
    assert count(fold_partly(model, skip=last).model)["BatchNormalization"] == 1
    assert count(fold_partly(model, skip=["sigmoid*", "batchnorm*"]).model)["BatchNormalization"] == 2
    assert count(fold_partly(model, only="batchnorm*", skip=last).model)["BatchNormalization"] == 1


def test_no_op_that_went_late_holds_nothing_up() -> None:
    """An identity that only goes at the end keeps no copy of a layer from being worth its node."""

    def write(op: Graph) -> tuple[str, str]:
        dense = op.Gemm(op.input("x", (2, 4)), op.weight(4, 2), op.weight(2))
        y = op.Identity(op.Add(dense, op.weight(2)))
        return op.Div(op.Add(y, y), op.weight(2)), op.Tanh(y)

    op = Graph(17)
    assert count(fold(op.finish(list(write(op)))).model) == {"Gemm": 2, "Tanh": 1, "Add": 1}


def test_skipped_node_in_the_way() -> None:
    """No map passes a node that is to be left alone."""

    def write(op: Graph) -> str:
        return op.batch_norm(op.Mul(conv(op, image(op)), op.weight(3, 1, 1)))

    model = written(write)
    assert not fold_partly(model, skip="mul*").report.changed
    result = bnfold.fold(model, skip="mul*")
    assert refusals(result)["up"] is Reason.EXCLUDED


def test_skipped_node_is_not_merged() -> None:
    """A node that is to be left alone becomes part of no other."""

    def write(op: Graph) -> str:
        return op.Add(op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1)), op.weight(3, 1, 1))

    assert not fold_partly(written(write), skip="add*").report.changed
    assert not fold_partly(written(write), only="mul*").report.changed


def test_skipped_node_beside() -> None:
    """A node that is to be left alone keeps nothing beside it from moving, or merging."""

    def write(op: Graph) -> str:
        y = op.Add(op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1)), op.weight(3, 1, 1))
        return op.Conv(y, op.weight(4, 3, 1, 1))

    result = fold_partly(written(write), skip="mul*")
    assert count(result.model) == {"Sigmoid": 1, "Mul": 1, "Conv": 1}

    def write_run(op: Graph) -> str:
        y = op.Add(op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1)), op.weight(3, 1, 1))
        return op.Sigmoid(op.Sub(y, op.weight(3, 1, 1)))

    result = fold_partly(written(write_run), skip="sub*")
    assert count(result.model) == {"Sigmoid": 2, "BatchNormalization": 1, "Sub": 1}


def fold_partly(model: onnx.ModelProto, **options: Any) -> bnfold.FoldResult:
    """Fold and compare; folding once more would need the same selection."""
    result = bnfold.fold(model, **options)
    assert not differences(model, result.model, feeds_for(model))
    return result


# ---------------------------------------------------------------- operators of the same name


def test_foreign_domain_is_not_asked() -> None:
    """A foreign ``Conv`` is left as it is, and so is the batch norm in front of it."""
    result = fold(written(foreign_domain))
    assert count(result.model) == {"BatchNormalization": 1, "Conv": 1}


def with_function(domain: str) -> onnx.ModelProto:
    """A model whose ``Conv`` is a function that throws its weight away."""

    def write(op: Graph) -> str:
        y = op.node("Conv", op.batch_norm(image(op)), op.weight(3, 3, 1, 1), domain=domain)
        return op.Sigmoid(op.Sigmoid(y))

    model = written(write)
    opsets = [helper.make_opsetid("", 17)]
    inner = [helper.make_node("Sin", ["a"], ["b"])]
    model.functions.append(helper.make_function(domain, "Conv", ["a", "w"], ["b"], inner, opsets))
    return model


@pytest.mark.parametrize("domain", ["local", ""])
def test_function_of_that_name(domain: str) -> None:
    """A model-local function called ``Conv``, of whatever domain, is no convolution."""
    model = with_function(domain)
    folded = bnfold.fold(model).model
    assert count(folded) == count(model)
    assert list(folded.functions[0].node) == list(model.functions[0].node)


@pytest.mark.parametrize("op_type", ["Shape", "Size", "CastLike"])
@pytest.mark.parametrize("domain", ["local", ""])
def test_function_that_reads_values(op_type: str, domain: str) -> None:
    """A function named like an operator that asks for no value is a reader like any other."""

    def write(op: Graph) -> Sequence[str]:
        y = large_conv(op)
        return op.batch_norm(y, channels=3), op.node(op_type, "x", y, domain=domain)

    model = written(write)
    opsets = [helper.make_opsetid("", 17)]
    inner = [helper.make_node("Sin", ["b"], ["c"])]
    model.functions.append(helper.make_function(domain, op_type, ["a", "b"], ["c"], inner, opsets))
    assert count(bnfold.fold(model).model) == count(model)


def test_standard_domain_has_two_names() -> None:
    """``ai.onnx`` is the standard domain, spelled out."""

    def write(op: Graph) -> str:
        return op.batch_norm(conv(op, image(op)))

    model = written(write)
    for named in (*model.graph.node, *model.opset_import):
        named.domain = "ai.onnx"
    assert count(bnfold.fold(model).model) == {"Conv": 1}


def test_other_domains_stand_beside() -> None:
    """Operators of ai.onnx.ml and com.microsoft stay as they are, and what is between them folds.

    No shape is known behind them, so that the weights have to say which axis is which.
    """

    def write(op: Graph) -> str:
        x = op.input("x", (2, 4))
        x = op.node("Scaler", x, domain="ai.onnx.ml", offset=[0.5] * 4, scale=[2.0] * 4)
        y = op.batch_norm(op.Gemm(x, op.weight(4, 3)), channels=3)
        return op.node("Gelu", op.Relu(y), domain="com.microsoft")

    model = written(write)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    folded = bnfold.fold(model).model
    assert count(folded) == {"Scaler": 1, "Gemm": 1, "Relu": 1, "Gelu": 1}
    assert folded.opset_import == model.opset_import
    feeds = feeds_for(model)
    for before, after in zip(
        onnx_runtime(model, feeds) or [], onnx_runtime(folded, feeds) or [], strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_custom_operators_are_preserved() -> None:
    """An unknown operator keeps its attributes, and its inputs and outputs their values."""

    def write(op: Graph) -> Sequence[str]:
        x = image(op)
        y = op.node("Twice", x, domain="vendor", text="words", level=3, weights=[1.0, 2.0])
        return op.batch_norm(conv(op, x)), y

    model = written(write)
    result = fold(model)
    custom = next(node for node in result.model.graph.node if node.domain == "vendor")
    assert custom == next(node for node in model.graph.node if node.domain == "vendor")
    assert result.report.folded == 1


# ---------------------------------------------------------------- several readers


@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])
def test_queries_keys_values(bias: bool) -> None:
    """A map that three layers read goes into all of them; their biases take its shift."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Mul(op.Sigmoid(op.input("x", ("N", 5, 4))), op.weight(4))
        y = op.Add(y, op.weight(4)) if bias else y
        products = [op.MatMul(y, op.weight(4, 6)) for _ in range(3)]
        return [op.Add(product, op.weight(6)) for product in products] if bias else products

    left = count(fold(written(write)).model)
    assert left == {"Sigmoid": 1, "MatMul": 3} | ({"Add": 3} if bias else {})


def test_two_shifts_that_meet() -> None:
    """One shift goes two ways and comes together again: both parts arrive."""

    def write(op: Graph) -> str:
        y = op.Add(op.Sigmoid(op.input("x", (2, 4, 5))), op.weight(4, 1))
        return op.Conv(op.Add(op.MatMul(op.weight(4, 4), y), op.Identity(y)), op.weight(3, 4, 1))

    fold(written(write))


def test_residual_takes_one_map() -> None:
    """A scale in front of two branches that are added again goes through both."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Sigmoid(image(op)), op.positive(3, 1, 1))
        return conv(op, op.Add(op.Relu(y), y))

    assert count(fold(written(write)).model) == {"Sigmoid": 1, "Relu": 1, "Add": 1, "Conv": 1}


def test_shift_finds_the_other_operand() -> None:
    """Of two operands, the shift goes to the one that can take it at no cost."""

    def write(op: Graph) -> str:
        x = op.input("x", (2, 4, 5))
        return op.Add(op.Add(op.MatMul(x, op.weight(5, 5)), op.Conv(x, op.weight(4, 4, 1))), op.weight(4, 1))

    assert count(fold(written(write)).model)["Add"] == 1


def test_a_reader_that_leads_nowhere_keeps_nothing() -> None:
    """What is removed as unread after a fold no longer keeps a map from moving: one fold does all."""
    op = Graph(17)
    y = op.Add(op.input("x", ("N", 4)), op.weight(4))
    op.Mul(op.MatMul(op.Sigmoid(y), op.weight(4, 3)), op.weight(3))
    model = op.finish([op.MatMul(y, op.weight(4, 2))])
    folded = bnfold.fold(model).model
    assert Counter(node.op_type for node in folded.graph.node) == {"Gemm": 1}
    assert not bnfold.fold(folded).report.changed
    assert not differences(model, folded, feeds_for(model, SIZES))


def test_what_stands_behind_a_layer_norm_folds() -> None:
    """γ and β are part of what a runtime recognizes; a scale behind them goes into the next layer."""

    def write(op: Graph) -> str:
        y = op.Mul(op.Add(normalized(op), op.weight(4)), op.weight(4))
        return op.MatMul(y, op.weight(4, 6))

    found = count(fold(written(write)).model)
    assert (found["Mul"], found["Add"], found["MatMul"]) == (2, 1, 1)


@pytest.mark.parametrize("op_type", ["Squeeze", "Unsqueeze"])
def test_axes_from_the_end_before_opset_11(op_type: str) -> None:
    """Runtimes take them where onnx's inference does not: it is not believed then."""

    def write(op: Graph) -> str:
        if op_type == "Unsqueeze":
            y = op.Gemm(op.input("x", (4, 3)), op.weight(3, 4), op.weight(4))
            return op.Mul(op.Unsqueeze(y, axes=[-1]), op.weight(4))
        y = op.GlobalAveragePool(op.Conv(op.input("x", (4, 3, 5)), op.weight(4, 3, 1)))
        return op.Mul(op.Squeeze(y, axes=[-1]), op.weight(4, 1))

    model = written(write, opset=10)
    result = bnfold.fold(model)
    assert not differences(model, result.model, feeds_for(model))
    assert not result.report.changed


# ---------------------------------------------------------------- leftovers


def leftovers(op: Graph) -> str:
    return op.Sigmoid(op.Add(op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1)), op.weight(3, 1, 1)))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_leftovers_merge(dtype: int) -> None:
    """Mul and Add that cannot move become one BatchNormalization, and both are reported as merged."""
    result = fold(written(leftovers, dtype=dtype))
    assert count(result.model) == {"Sigmoid": 2, "BatchNormalization": 1}
    assert len(result.model.graph.initializer) == 4, "the old constants are gone"
    assert [row.status for row in result.report.rows] == ["merged", "merged"]
    assert (result.report.folded, result.report.merged) == (0, 2)


def test_leftovers_of_one_channel() -> None:
    """A map that varies along another axis is no batch norm, though there is one channel only."""

    def write(op: Graph) -> str:
        y = op.Add(op.Mul(op.Sigmoid(op.input("x", (2, 1, 9))), op.weight(9)), op.weight(9))
        return str(op.Sigmoid(y))

    assert count(fold(written(write)).model) == {"Sigmoid": 2, "Mul": 1, "Add": 1}


def test_leftovers_stay_when_portable() -> None:
    """``portable`` merges nothing."""
    assert not fold(written(leftovers), portable=True).report.changed


@pytest.mark.parametrize(
    ("opset", "shape", "vary", "dtype"),
    [
        (8, (2, 3, 4, 4), (3, 1, 1), TensorProto.FLOAT),
        (17, (2, 3), (3,), TensorProto.FLOAT),
        (17, (2, 3, 4, 3), (3,), TensorProto.FLOAT),
        (17, (2, 3, 4, 4), (3, 1, 1), TensorProto.FLOAT16),
    ],
    ids=["opset 8", "rank 2", "another axis", "half"],
)
def test_leftovers_that_no_batch_norm_states(
    opset: int, shape: Sequence[int], vary: Sequence[int], dtype: int
) -> None:
    """Where one BatchNormalization would not do, a longer run becomes a Mul and an Add, which stay."""

    def write(op: Graph, times: int) -> str:
        x = op.Sigmoid(op.input("x", shape))
        for _ in range(times):
            x = op.Add(op.Mul(x, op.weight(*vary)), op.weight(*vary))
        return str(op.Sigmoid(x))

    assert not fold(written(partial(write, times=1), opset, dtype=dtype)).report.changed
    model = written(partial(write, times=3), opset, dtype=dtype)
    result = bnfold.fold(model)
    assert not differences(model, result.model, feeds_for(model))
    assert count(result.model) == {"Sigmoid": 2, "Mul": 1, "Add": 1}
    assert [row.status for row in result.report.rows] == ["merged"] * 6


def test_run_of_shifts_merges() -> None:
    """Two shifts that padding keeps become one, and are reported as merged: no part of them goes anywhere."""

    def write(op: Graph) -> Sequence[str]:
        pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        behind = op.AveragePool(conv(op, image(op)), **pads, count_include_pad=1)
        in_front = op.Sigmoid(behind)
        behind, in_front = (
            op.Add(op.Add(y, op.weight(3, 1, 1)), op.weight(3, 1, 1)) for y in (behind, in_front)
        )
        return op.Sigmoid(behind), op.Conv(in_front, op.weight(3, 3, 3, 3), **pads)

    result = fold(written(write))
    assert count(result.model) == {"Sigmoid": 2, "Add": 2, "AveragePool": 1, "Conv": 2}
    assert [row.status for row in result.report.rows] == ["merged"] * 4


def test_folds_name_what_they_wrote() -> None:
    """Each fold's record names constants of the original and of the result, with their values."""

    def write(op: Graph) -> Sequence[str]:
        x = image(op)
        stays = op.Add(op.Add(op.Sigmoid(x), op.weight(3, 1, 1)), op.weight(3, 1, 1))
        return op.batch_norm(conv(op, x)), op.Sigmoid(stays)

    model = ir.serde.deserialize_model(written(write))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    folding = bnfold.FoldPass()
    folding(model)
    changes = [change for each in folding.folds for change in each.changes]
    assert len(changes) == 3
    for change in changes:
        (name, const), node = change.new, next(each for each in model.graph if each.name == change.node)
        assert node.inputs[change.index] is model.graph.initializers[name]
        written_to = model.graph.initializers[name].const_value
        np.testing.assert_array_equal(written_to, const.exact.astype(np.float32))
        if change.old is not None:
            np.testing.assert_array_equal(before[change.old[0]], change.old[1].base)


def test_run_of_scales_merges() -> None:
    """Several Mul, Div and Neg become one Mul, several Add and Sub one Add."""

    def write(op: Graph) -> Sequence[str]:
        x = op.Sigmoid(image(op))
        scaled = op.Neg(op.Div(op.Mul(x, op.weight(4)), op.positive(1, 4)))
        shifted = op.Sub(op.weight(1, 3, 1, 1), op.Neg(op.Add(x, op.weight(3, 1, 1))))
        return op.Sigmoid(scaled), op.Sigmoid(shifted)

    assert count(fold(written(write)).model) == {"Sigmoid": 3, "Mul": 1, "Add": 1}


def test_merged_constants_do_not_multiply() -> None:
    """Maps along different axes stay apart: one constant for both would be as large as the tensor."""

    def write(op: Graph) -> str:
        x = op.Sigmoid(op.input("x", ("N", 300, 200)))
        return op.Sigmoid(op.Mul(op.Mul(x, op.weight(300, 1)), op.weight(200)))

    assert fold(written(write)).report.constant_bytes <= 0


def test_batch_norms_merge() -> None:
    """Two batch norms in a row become one."""

    def write(op: Graph) -> str:
        return op.Sigmoid(op.batch_norm(op.batch_norm(op.Sigmoid(image(op)))))

    assert count(fold(written(write)).model) == {"Sigmoid": 2, "BatchNormalization": 1}


def test_output_within_a_run_is_kept() -> None:
    """A run ends at a tensor that somebody else reads."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1))
        return y, op.Sigmoid(op.Add(y, op.weight(3, 1, 1)))

    assert not fold(written(write)).report.changed


def test_maps_that_meet_are_merged() -> None:
    """Two scales with a Transpose between them become one of them; neither went into weights."""

    def write(op: Graph) -> str:
        y = op.Transpose(op.Mul(op.Sigmoid(image(op)), op.weight(3, 1, 1)), perm=[0, 2, 3, 1])
        return str(op.Sigmoid(op.Mul(y, op.weight(3))))

    result = fold(written(write))
    assert count(result.model) == {"Sigmoid": 2, "Transpose": 1, "Mul": 1}
    assert [row.status for row in result.report.rows] == ["merged", "merged"]


def test_a_single_shift_turns_a_relu() -> None:
    """Behind no layer and in front of one; a dense bias stays where it is, and so does its Relu."""

    def shift(op: Graph) -> str:
        y = op.Relu(op.Add(op.Sigmoid(op.input("x", ("N", 4))), op.weight(4)))
        return str(op.Gemm(y, op.weight(4, 3), op.weight(3)))

    def bias(op: Graph) -> str:
        y = op.Relu(op.Add(op.MatMul(op.input("x", ("N", 4)), op.weight(4, 5)), op.weight(5)))
        return str(op.Gemm(y, op.weight(5, 3), op.weight(3)))

    assert count(fold(written(shift)).model) == {"Sigmoid": 1, "Max": 1, "Gemm": 1}
    assert not fold(written(bias)).report.changed


def test_output_says_of_itself_what_it_said() -> None:
    """What takes the place of an output takes over its metadata, and keeps none of its own."""
    model = ir.serde.deserialize_model(written(lambda op: op.batch_norm(conv(op, image(op)))))
    inner, outer = (node.outputs[0] for node in model.graph)
    inner.metadata_props["inner"], outer.metadata_props["outer"] = "1", "2"
    bnfold.FoldPass()(model)
    assert dict(model.graph.outputs[0].metadata_props) == {"outer": "2"}


@pytest.mark.parametrize("ir_version", [4, 8])
def test_initializers_that_are_inputs(ir_version: int) -> None:
    """From IR version 4 on they may be overridden."""
    model = written(lambda op: op.batch_norm(conv(op, image(op))), ir_version=ir_version)
    for tensor in model.graph.initializer:
        given = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(given)
    assert not bnfold.fold(model).report.changed


def test_a_softmax_without_an_axis() -> None:
    """From opset 13 on it is along the last axis, so that attention takes a whole map."""

    def write(op: Graph) -> str:
        values = op.MatMul(op.input("x", (2, 4, 3)), op.weight(3, 5))
        y = op.MatMul(op.Softmax(op.input("q", (2, 4, 4))), values)
        return str(op.Add(op.Mul(y, op.weight(5)), op.weight(5)))

    assert count(fold(written(write, opset=13)).model)["Mul"] == 0


# ---------------------------------------------------------------- maps that cancel


def cancelling(op: Graph, x: str) -> str:
    return str(op.Neg(op.Neg(x)))


def test_maps_cancel() -> None:
    """Two maps that are the identity together vanish."""

    def write(op: Graph) -> str:
        return op.Sigmoid(cancelling(op, op.Sigmoid(image(op))))

    assert count(fold(written(write)).model) == {"Sigmoid": 2}


def test_maps_cancel_between_input_and_output() -> None:
    """Something has to stand between an input and an output, or the output's name would be lost."""
    fold(written(lambda op: cancelling(op, image(op))))


def test_maps_cancel_between_outputs() -> None:
    """Two outputs of the same value keep their names."""

    def write(op: Graph) -> Sequence[str]:
        y = op.Sigmoid(image(op))
        return y, cancelling(op, y)

    fold(written(write))


def test_maps_cancel_at_the_border_of_a_body() -> None:
    """A body's output is made in the body."""

    def write(op: Graph) -> str:
        y = op.Sigmoid(image(op))
        return branch(op, lambda then: cancelling(then, y), lambda other: other.Tanh(y))

    fold(written(write))


@pytest.mark.parametrize("by", ["Constant", "Identity"])
def test_map_of_a_constant_is_an_output(by: str) -> None:
    """An output that a constant makes keeps its name, and a node that makes it."""

    def write(op: Graph) -> Sequence[str]:
        weight = op.weight(3, 1, 1)
        if by == "Constant":
            weight = op.Constant(value=numpy_helper.from_array(np.ones((3, 1, 1), np.float32)))
        y = op.Identity(weight) if by == "Identity" else weight
        return op.Neg(y), op.Add(op.Sigmoid(image(op)), op.Neg(y))

    fold(written(write))


def test_identity_at_the_edges() -> None:
    """A map that changes nothing vanishes unless it is all that stands between two promised names."""

    def write(op: Graph) -> Sequence[str]:
        x = image(op)
        y = op.Sigmoid(op.Mul(x, op.const(1.0)))
        return op.Add(x, op.const(0.0)), y, op.Add(y, op.const(0.0))

    assert count(fold(written(write)).model) == {"Sigmoid": 1, "Add": 2}


def test_equal_maps_collapse() -> None:
    """A product of maps that is the same for every channel counts as such."""

    def write(op: Graph) -> str:
        x = op.Sigmoid(op.input("x", ("N", 3, 4)))
        scaled = op.Mul(op.Mul(x, op.const([2.0, 4.0, 8.0, 1.0])), op.const([4.0, 2.0, 1.0, 8.0]))
        return op.MatMul(op.weight(5, 3), scaled)

    assert count(fold(written(write)).model) == {"Sigmoid": 1, "MatMul": 1}


# ---------------------------------------------------------------- names and metadata


def test_names_do_not_clash() -> None:
    """Fresh names avoid every name of the model, those in bodies included."""

    def write(op: Graph) -> Sequence[str]:
        x = image(op)
        y = op.MatMul(op.Transpose(conv(op, x), perm=[0, 2, 3, 1]), op.weight(3, 4))
        y = op.batch_norm(op.Transpose(y, perm=[0, 3, 1, 2]))
        return y, branch(op, lambda then: then.Sigmoid(x), lambda other: other.Tanh(x))

    model = written(write)
    plain = fold(model).model
    fresh = {t.name for t in plain.graph.initializer} | {n for node in plain.graph.node for n in node.output}
    fresh |= {node.name for node in plain.graph.node}
    old = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    taken = sorted(fresh - old)
    assert taken
    for name in taken:
        crowded = onnx.ModelProto()
        crowded.CopyFrom(model)
        inner = list(graphs(crowded.graph))[1]
        inner.node.append(helper.make_node("Sigmoid", ["x"], [f"{name}"], name=f"{name}"))
        fold(crowded)


def test_metadata_stays_as_it_is() -> None:
    """Everything a model says of itself survives, and bnfold adds nothing."""

    def write(op: Graph) -> str:
        return op.Sigmoid(op.batch_norm(conv(op, image(op))))

    model = written(write)
    model.producer_name, model.producer_version, model.domain = "exporter", "1.2", "org.example"
    model.doc_string, model.model_version = "a model", 7
    model.graph.doc_string = "a graph"
    helper.set_model_props(model, {"author": "somebody", "license": "mine"})
    model.graph.metadata_props.add(key="graph", value="kept")
    for node in model.graph.node:
        node.doc_string = "a node"
        node.metadata_props.add(key="of", value=node.name)
    model.graph.input[0].doc_string = "an input"
    model.graph.output[0].doc_string = "an output"
    folded = fold(model).model
    for name in ("producer_name", "producer_version", "domain", "doc_string", "model_version"):
        assert getattr(folded, name) == getattr(model, name)
    assert folded.metadata_props == model.metadata_props
    assert folded.graph.metadata_props == model.graph.metadata_props
    assert folded.graph.doc_string == "a graph"
    assert folded.graph.input == model.graph.input
    before = {node.name: node for node in model.graph.node}
    for node in folded.graph.node:
        assert node.metadata_props == before[node.name].metadata_props
        assert node.doc_string == "a node"
    assert b"bnfold" not in folded.SerializeToString().lower()


def test_new_nodes_say_nothing_of_bnfold() -> None:
    """Neither do leftovers and the shifts that stay behind a layer."""

    def write(op: Graph) -> str:
        y = op.Transpose(op.MatMul(op.input("x", ("N", 5, 3)), op.weight(3, 4)), perm=[0, 2, 1])
        return op.batch_norm(y, channels=4)

    for writer in (write, leftovers):
        assert b"bnfold" not in bnfold.fold(written(writer)).model.SerializeToString().lower()


# ---------------------------------------------------------------- shapes


def test_lying_value_info_is_not_believed() -> None:
    """A declared shape that would let a constant pass for a per-channel one is not taken for true."""

    def write(op: Graph) -> str:
        y = op.Conv(image(op), op.weight(1, 3, 1, 1))
        return op.Add(y, op.weight(4, 1, 1))

    model = written(write)
    lie = helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, (2, 4, 4, 4))
    model.graph.value_info.append(lie)
    assert not bnfold.fold(model).report.changed


def test_lying_output_is_not_believed() -> None:
    """The same where the lie is told of a graph output."""

    def write(op: Graph) -> str:
        return op.Add(op.Conv(image(op), op.weight(1, 3, 1, 1)), op.weight(4, 1, 1))

    model = written(write)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    assert not bnfold.fold(model).report.changed


def test_lying_type_is_not_believed() -> None:
    """A cast is none only if the tensor provably has that type."""

    def write(op: Graph) -> str:
        y = op.Cast(op.Conv(image(op), op.weight(3, 3, 1, 1)), to=TensorProto.FLOAT16)
        return op.Mul(y, op.weight(3, 1, 1, dtype=TensorProto.FLOAT16))

    model = written(write)
    lie = helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT16, (2, 3, 4, 4))
    model.graph.value_info.append(lie)
    assert not bnfold.fold(model).report.changed


@pytest.mark.parametrize(
    "shape", [("N", 3, "H", "W"), (None, 3, None, None), ("N", 3, "N", "N"), (2, 3, 3, 3)], ids=str
)
def test_dynamic_dimensions(shape: Sequence[int | str | None]) -> None:
    """Dimensions may be symbols, nameless, or all alike: what counts is where the channels are."""

    def write(op: Graph) -> str:
        y = op.Transpose(op.Conv(op.input("x", shape), op.weight(3, 3, 1, 1)), perm=[0, 2, 3, 1])
        return op.Mul(y, op.weight(3))

    assert count(fold(written(write)).model) == {"Conv": 1, "Transpose": 1}


def test_unknown_rank() -> None:
    """Nothing is known of the input: nothing is folded, and nothing fails."""

    def write(op: Graph) -> str:
        return op.batch_norm(op.Sigmoid(op.input("x", None)), channels=3)

    result = bnfold.fold(written(write))
    assert refusals(result) == {"read": Reason.UNKNOWN_SHAPE}


@pytest.mark.parametrize("axes", [[2, 3], [3, 2]], ids=str)
def test_squeezed_axes_in_any_order(axes: Sequence[int]) -> None:
    """The order in which Squeeze names its axes means nothing, though onnx 1.23's inference thinks so."""

    def write(op: Graph) -> str:
        y = op.Conv(op.input("x", (3, 3, 1, 1)), op.weight(3, 3, 1, 1))
        return op.Mul(op.Squeeze(y, axes=axes), op.weight(3, 1))

    def write_moved(op: Graph) -> str:
        y = op.Conv(op.input("x", (3, 3, 1, 1)), op.weight(3, 3, 1, 1))
        return op.Mul(op.Squeeze(y, axes=axes), op.weight(3))

    for write_one, moves in ((write, False), (write_moved, True)):
        model = written(write_one, opset=10)
        model.graph.output[0].CopyFrom(
            helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, (3, 3))
        )
        result = bnfold.fold(model)
        assert not differences(model, result.model, feeds_for(model))
        assert result.report.changed is moves


@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_shape": [1, 1], "strides": [2, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    ],
)
def test_window_behind_the_input(op_type: str, window: dict[str, Any]) -> None:
    """A window that begins behind the input is none, though onnx's inference counts it before opset 22."""

    def write(op: Graph) -> str:
        y = op.node(op_type, image(op), ceil_mode=1, **window)
        y = op.batch_norm(op.Transpose(y, perm=[0, 2, 1, 3]), channels=2)
        return op.Conv(y, op.weight(3, 2, 1, 1))

    model = written(write)
    folded = bnfold.fold(model).model
    assert not differences(model, folded, feeds_for(model))


def test_equal_sizes_prove_nothing() -> None:
    """With all sizes alike a map along the wrong axis is still refused."""

    def write(op: Graph) -> str:
        y = op.Transpose(op.Conv(op.input("x", (3, 3, 3, 3)), op.weight(3, 3, 1, 1)), perm=[0, 2, 1, 3])
        return op.batch_norm(y)

    assert refusals(fold(written(write)))["up"] is Reason.MIXED_AXES


# ---------------------------------------------------------------- order and size


def test_order_of_nodes_does_not_matter() -> None:
    """Nodes that stand before what they read are put in order, in bodies, too."""

    def write(op: Graph) -> str:
        x = image(op)

        def then(inner: Graph) -> str:
            return str(inner.Relu(inner.batch_norm(conv(inner, x), channels=3)))

        return branch(op, then, lambda other: other.batch_norm(conv(other, x), channels=3))

    model = written(write)
    for graph in graphs(model.graph):
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)
    assert count(bnfold.fold(model).model) == {"If": 1, "Conv": 2, "Relu": 1}


@pytest.mark.parametrize("above", [True, False], ids=["up", "down"])
def test_long_way(above: bool) -> None:
    """A map finds its way through thousands of nodes without deep recursion."""

    def write(op: Graph) -> str:
        y = image(op)
        y = conv(op, y) if above else op.Mul(op.Sigmoid(y), op.positive(3, 1, 1))
        for _ in range(3000):
            y = op.Relu(y)
        return op.Mul(y, op.positive(3, 1, 1)) if above else conv(op, y)

    assert count(bnfold.fold(written(write)).model)["Mul"] == 0


@pytest.mark.parametrize(("layers", "adds"), [(20, 1), (21, 2)])
def test_shift_in_front_of_many_layers(layers: int, adds: int) -> None:
    """A shift is handed on through twenty layers without bias to a home behind them, and no further."""

    def write(op: Graph) -> str:
        y = op.Add(op.Sigmoid(op.input("x", (1, 2, 2))), op.weight(2))
        for _ in range(layers):
            y = op.MatMul(y, op.const(np.eye(2)[::-1]))
        return op.Sigmoid(op.Add(y, op.weight(2)))

    assert count(bnfold.fold(written(write), merge=False).model)["Add"] == adds


def test_maps_of_different_sizes_differ() -> None:
    """Two maps of which one varies along an axis by more places than the other are not the same."""
    assert Affine.of(np.ones((1, 3))).same(Affine.of(1.0))
    assert not Affine.of(np.ones((1, 3))).same(Affine.of(np.ones((1, 4))))


def test_nothing_to_do() -> None:
    """A model without any map comes back as it was, also an empty one."""
    for write in (lambda op: op.Sigmoid(image(op)), lambda op: op.Identity(image(op))):
        model = written(write)
        result = fold(model)
        assert not result.report.rows
        assert result.model.graph == ir.serde.serialize_model(ir.serde.deserialize_model(model)).graph


def test_split_with_a_returned_part_keeps_the_map() -> None:
    """A map in front of a Split stays if one of the parts is promised to the caller."""

    def write(op: Graph) -> list[str]:
        a, b = op.Split(op.batch_norm(op.input("x", (1, 4, 6, 6))), axis=1, outputs=2)
        return [op.Conv(a, op.weight(3, 2, 3, 3)), b]

    result = fold(written(write))
    assert not result.report.changed
    assert Reason.GRAPH_OUTPUT in {refusal.reason for refusal in result.report.rows[0].refusals}


def test_split_with_an_unread_part_passes_the_map() -> None:
    """A part that nothing reads needs no home for its slice of the map, be it the first or the last."""
    for kept in (0, 1):

        def write(op: Graph, kept: int = kept) -> str:
            parts = op.Split(op.batch_norm(op.input("x", (1, 4, 6, 6))), axis=1, outputs=2)
            return str(op.Conv(parts[kept], op.weight(3, 2, 3, 3)))

        assert not fold(written(write)).report.rows[0].refusals
