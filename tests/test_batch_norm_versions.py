"""Batch norms of every operator version are read as their version defines them.

The truth is the formula, written here: ONNX Runtime has no BatchNormalization below opset 7, and
onnx's reference evaluator is wrong for it below opset 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from truth import truth

import bnfold
from bnfold.core.reasons import Reason
from bnfold.errors import InvalidModelError

Array = NDArray[Any]

NEWEST = min(onnx.defs.onnx_opset_version(), 26)
OPSETS = (1, 6, 7, 8, 9, 14, 15, NEWEST)
PARAMETERS = ("gamma", "beta", "mean", "var")
EPSILON = 0.01


def parameters(channels: int, seed: int = 0) -> dict[str, Array]:
    """One vector for each input behind the data, with a variance that lets epsilon be seen."""
    random = np.random.default_rng(seed)
    values = {name: random.normal(size=channels).astype(np.float32) for name in PARAMETERS}
    values["var"] = random.uniform(1e-3, 0.1, channels).astype(np.float32)
    return values


def inference(opset: int) -> dict[str, Any]:
    """The attributes that say "inference" in an opset: all versions before 7 want it said."""
    return {"is_test": 1} if opset < 7 else {}


def old_style(opset: int) -> dict[str, Any]:
    """Attributes that only old versions have, at their defaults' meaning."""
    given: dict[str, Any] = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    return {**given, "spatial": 1} if opset < 9 else given


def model(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str | None],
    constants: dict[str, Array],
    opset: int,
    dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A model from ``x`` to ``y``; below IR version 4 the constants are listed as inputs, too."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    inputs = [helper.make_tensor_value_info("x", dtype, x)]
    if opset < 9:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    infos = [helper.make_tensor_value_info(name, dtype, [None] * len(x)) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, infos, tensors)
    ids = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=ids, ir_version=3 if opset < 9 else 8)


def batch_norm(x: str, y: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [x, *PARAMETERS], [y, *more], name="bn", **attributes)


def formula(x: Array, given: dict[str, Array], epsilon: float = EPSILON) -> Array:
    """Normalize along axis 1, in float64."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    gamma, beta, mean, var = (given[name].astype(np.float64).reshape(shape) for name in PARAMETERS)
    return np.asarray(gamma * (x - mean) / np.sqrt(var + np.float32(epsilon)) + beta)


# For each rank, a layer that takes the batch norm: its operator, the data's shape, the weight's shape.
LAYERS = {
    2: ("MatMul", (5, 3), (3, 4)),
    3: ("Conv", (2, 3, 7), (4, 3, 3)),
    4: ("Conv", (2, 3, 5, 6), (4, 3, 3, 2)),
    5: ("Conv", (2, 3, 4, 4, 4), (4, 3, 2, 2, 2)),
}


def layer(rank: int, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(LAYERS[rank][0], [x, "w"], [y], name="layer", **attributes)


def compute(rank: int, x: Array, weight: Array) -> Array:
    """The layer alone, in float64."""
    node = helper.make_node(LAYERS[rank][0], ["x", "w"], ["y"])
    alone = model([node], x.shape, {"w": weight}, 17)
    return np.asarray(truth(alone, {"x": x.astype(np.float32)})["y"])


def assert_equal(folded: onnx.ModelProto, x: Array, expected: Array) -> None:
    """The folded model, evaluated in float64, gives the formula's values but for its weights' rounding."""
    got = truth(folded, {"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("epsilon", [EPSILON, None], ids=["epsilon", "default"])
@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("opset", OPSETS)
def test_behind_a_layer(opset: int, rank: int, epsilon: float | None) -> None:
    """At every opset and rank, a batch norm behind a layer folds, and missing epsilon is 1e-5.

    A matrix product without bias cannot take a shift below opset 7: there its Gemm broadcasts otherwise.
    """
    random = np.random.default_rng(rank)
    shape, weight = LAYERS[rank][1], random.normal(size=LAYERS[rank][2]).astype(np.float32)
    given = parameters(4)
    if rank == 2 and opset < 7:
        given["beta"] = given["mean"] = np.zeros(4, np.float32)
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    norm = batch_norm("c", "y", **attributes, **inference(opset), **old_style(opset))
    original = model([layer(rank, "x", "c"), norm], shape, {"w": weight, **given}, opset)
    result = bnfold.fold(original)
    assert [node.op_type for node in result.model.graph.node] in ([LAYERS[rank][0]], ["Gemm"])
    x = random.normal(size=shape).astype(np.float32)
    expected = formula(compute(rank, x, weight), given, 1e-5 if epsilon is None else epsilon)
    assert_equal(result.model, x, expected)


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("opset", OPSETS)
def test_in_front_of_a_layer(opset: int, rank: int) -> None:
    """At every opset and rank, a batch norm in front of a layer folds; see above for matrix products."""
    random = np.random.default_rng(rank)
    shape, weight = LAYERS[rank][1], random.normal(size=LAYERS[rank][2]).astype(np.float32)
    given = parameters(3)
    if rank == 2 and opset < 7:
        given["beta"] = given["mean"] = np.zeros(3, np.float32)
    norm = batch_norm("x", "n", epsilon=EPSILON, **inference(opset), **old_style(opset))
    original = model([norm, layer(rank, "n", "y")], shape, {"w": weight, **given}, opset)
    result = bnfold.fold(original)
    assert [node.op_type for node in result.model.graph.node] in ([LAYERS[rank][0]], ["Gemm"])
    x = random.normal(size=shape).astype(np.float32)
    assert_equal(result.model, x, compute(rank, formula(x, given), weight))


@pytest.mark.parametrize("opset", [1, 6])
def test_matrix_product_before_opset_7(opset: int) -> None:
    """A Gemm of those versions broadcasts its bias by an attribute: a MatMul does not become one."""
    given = {"w": np.ones((3, 4), np.float32), **parameters(4)}
    original = model([layer(2, "x", "c"), batch_norm("c", "y", is_test=1)], (5, 3), given, opset)
    result = bnfold.fold(original)
    assert [node.op_type for node in result.model.graph.node] == ["MatMul", "BatchNormalization"]


def refused(original: onnx.ModelProto) -> set[Reason]:
    """Why the one batch norm stays; the graph must be what it was."""
    result = bnfold.fold(original)
    before, after = ([node.op_type for node in m.graph.node] for m in (original, result.model))
    assert after == before
    assert not result.report.changed
    return {refusal.reason for row in result.report.rows for refusal in row.refusals}


def conv_norm(
    opset: int, outputs: Sequence[str] = (), listed: Sequence[str] = ("y",), **attributes: Any
) -> onnx.ModelProto:
    """Convolution and batch norm with these attributes and further outputs."""
    constants = {"w": np.ones((4, 3, 1, 1), np.float32), **parameters(4)}
    nodes = [layer(4, "x", "c"), batch_norm("c", "y", *outputs, **attributes)]
    return model(nodes, (2, 3, 5, 5), constants, opset, outputs=listed)


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("attributes", [{}, {"is_test": 0}], ids=["absent", "zero"])
def test_training_is_the_default_before_opset_7(opset: int, attributes: dict[str, Any]) -> None:
    """Without ``is_test=1`` those versions normalize by the batch."""
    assert refused(conv_norm(opset, **attributes)) == {Reason.TRAINING_MODE}


@pytest.mark.parametrize("opset", [14, 15, NEWEST])
@pytest.mark.parametrize("outputs", [(), ("m", "v")])
def test_training_mode(opset: int, outputs: Sequence[str]) -> None:
    """``training_mode=1`` is refused, with its running statistics and without."""
    assert refused(conv_norm(opset, outputs, training_mode=1)) == {Reason.TRAINING_MODE}


@pytest.mark.parametrize("opset", [7, 8, 9, 13])
def test_training_outputs(opset: int) -> None:
    """From opset 7 to 13, four further outputs are what makes a node train."""
    more = ("m", "v", "sm", "sv")
    assert refused(conv_norm(opset, more)) == {Reason.TRAINING_OUTPUTS}
    assert refused(conv_norm(opset, more, ("y", "m"))) == {Reason.TRAINING_OUTPUTS}


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_unnamed_training_outputs(opset: int) -> None:
    """Outputs left empty are no outputs: the node folds."""
    result = bnfold.fold(conv_norm(opset, ("", "", "", "")))
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_spatial_zero(opset: int) -> None:
    """``spatial=0`` has statistics for every position: no per-channel map."""
    assert refused(conv_norm(opset, spatial=0, **inference(opset))) == {Reason.SPATIAL_STATISTICS}


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_zero_with_its_own_statistics(opset: int) -> None:
    """The same with parameters of the shape such a node really has: refused, not called invalid."""
    given = {name: np.full((3, 5, 5), 0.5, np.float32) for name in PARAMETERS}
    original = model([batch_norm("x", "y", spatial=0)], (2, 3, 5, 5), given, opset)
    assert refused(original) == {Reason.SPATIAL_STATISTICS}


@pytest.mark.parametrize("opset", [7, 9, 14, NEWEST])
def test_momentum_is_of_training_only(opset: int) -> None:
    """Momentum has no say at inference; ``training_mode=0`` may be spelled out."""
    spelled = {"training_mode": 0} if opset >= 14 else {}
    result = bnfold.fold(conv_norm(opset, momentum=0.1, **spelled))
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]


@pytest.mark.parametrize("lengths", [(3, 4, 4, 4), (4, 4, 4, 5), (1, 1, 1, 1), (5, 5, 5, 5)])
@pytest.mark.parametrize("opset", OPSETS)
def test_wrong_parameter_lengths(opset: int, lengths: Sequence[int]) -> None:
    """Parameters that do not fit the channels, or each other, are invalid; the text names the node."""
    constants = {name: np.ones(size, np.float32) for name, size in zip(PARAMETERS, lengths, strict=True)}
    constants["w"] = np.ones((4, 3, 1, 1), np.float32)
    nodes = [layer(4, "x", "c"), batch_norm("c", "y", **inference(opset))]
    with pytest.raises(InvalidModelError, match="'bn'"):
        bnfold.fold(model(nodes, (2, 3, 5, 5), constants, opset))


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (2, 2), ()])
def test_parameters_that_are_no_vectors(shape: Sequence[int]) -> None:
    """Parameters of another rank are invalid, even if their entries are as many."""
    constants = {name: np.ones(shape, np.float32) for name in PARAMETERS}
    constants["w"] = np.ones((4, 3, 1, 1), np.float32)
    nodes = [layer(4, "x", "c"), batch_norm("c", "y")]
    with pytest.raises(InvalidModelError, match="'bn'"):
        bnfold.fold(model(nodes, (2, 3, 5, 5), constants, 15))


@pytest.mark.parametrize("opset", [15, NEWEST])
def test_wider_parameters(opset: int) -> None:
    """From opset 15 on parameters may be wider than the data; the layer keeps one type throughout."""
    constants = {"w": np.ones((4, 3, 1, 1), np.float16), **parameters(4)}
    nodes = [layer(4, "x", "c"), batch_norm("c", "y", epsilon=EPSILON)]
    half = TensorProto.FLOAT16
    folded = bnfold.fold(model(nodes, (2, 3, 5, 5), constants, opset, half)).model
    assert {tensor.data_type for tensor in folded.graph.initializer} == {half}
    onnx.checker.check_model(folded, full_check=True)
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 5)).astype(np.float16)
    expected = formula(np.repeat(x.astype(np.float64).sum(axis=1, keepdims=True), 4, axis=1), constants)
    got = truth(folded, {"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("behind", ["Unsqueeze", "Transpose", "Mul"])
def test_rank_one(behind: str) -> None:
    """A vector is a batch of one channel for the operator: a scalar map, wherever it goes."""
    given = {"axes": np.array([0]), "w": np.ones((4, 3), np.float32), **parameters(1)}
    nodes = [
        helper.make_node("Mul", ["x", "gamma"], ["m"]),
        batch_norm("m", "n", epsilon=EPSILON),
        helper.make_node(behind, ["n", "gamma"] if behind == "Mul" else ["n"], ["k"])
        if behind != "Unsqueeze"
        else helper.make_node("Identity", ["n"], ["k"]),
        helper.make_node("Unsqueeze", ["k", "axes"], ["u"]),
        helper.make_node("Gemm", ["u", "w"], ["y"]),
    ]
    original = model(nodes, (4,), given, 15)
    folded = bnfold.fold(original).model
    x = np.random.default_rng(1).normal(size=4).astype(np.float32)
    y = formula((x * given["gamma"])[:, None], given) * (given["gamma"] if behind == "Mul" else 1.0)
    assert_equal(folded, x, y.T @ given["w"])


def test_zero_channels_and_empty_batches() -> None:
    """Sizes of zero are sizes."""
    random = np.random.default_rng(0)
    for shape, filters in (((0, 3, 5, 5), 4), ((2, 3, 5, 5), 0)):
        weight = random.normal(size=(filters, 3, 1, 1)).astype(np.float32)
        nodes = [layer(4, "x", "c"), batch_norm("c", "y")]
        original = model(nodes, shape, {"w": weight, **parameters(filters)}, 15)
        result = bnfold.fold(original)
        assert [node.op_type for node in result.model.graph.node] == ["Conv"]


def test_channels_known_from_parameters_only() -> None:
    """A channel count that is declared as a symbol, or not at all, is no obstacle; an unknown rank is."""
    given = {"w": np.ones((4, 3, 1, 1), np.float32), **parameters(3)}
    for shape in (("N", "C", "H", "W"), (None, None, None, None)):
        result = bnfold.fold(model([batch_norm("x", "n"), layer(4, "n", "y")], shape, given, 15))
        assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    unknown = model([batch_norm("x", "n"), layer(4, "n", "y")], (2, 3, 5, 5), given, 15)
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    assert refused(unknown) == {Reason.UNKNOWN_SHAPE}
