"""Constants are read however exporters write them, evaluated only where a fold asks, and never overridden."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from truth import differences, feeds_for, onnx_runtime, truth

import bnfold
from bnfold import files
from bnfold.core.example import Graph
from bnfold.core.graph.constants import Constants
from bnfold.core.graph.evaluate import evaluate
from bnfold.core.graph.shapes import infer
from bnfold.core.reasons import Reason
from bnfold.errors import InvalidModelError, UnreadableModelError, UnsupportedModelError
from bnfold.provenance import fingerprint, provenance, restore

Array = NDArray[Any]

RANDOM = np.random.default_rng(7)
WEIGHT = RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32)
BIAS = RANDOM.normal(size=4).astype(np.float32)
SCALE = RANDOM.uniform(0.5, 2.0, 4).astype(np.float32)
STATISTICS = {
    "gamma": SCALE,
    "beta": RANDOM.normal(size=4).astype(np.float32),
    "mean": RANDOM.normal(size=4).astype(np.float32),
    "var": RANDOM.uniform(0.5, 2.0, 4).astype(np.float32),
}
X = RANDOM.normal(size=(2, 3, 6, 6)).astype(np.float32)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """A node whose inputs are given as words."""
    return helper.make_node(op_type, inputs.split(), [output], name=f"make_{output}", **attributes)


def tensor(name: str, array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def conv(weight: str = "w", bias: str = "") -> NodeProto:
    return node("Conv", f"x {weight} {bias}", "c")


def norm(*parameters: str) -> NodeProto:
    return node("BatchNormalization", " ".join(["c", *(parameters or STATISTICS)]), "y", epsilon=0.125)


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any],
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: int = TensorProto.FLOAT,
    listed: Sequence[str] = (),
) -> ModelProto:
    """A model from image ``x`` to ``y``; the constants in ``listed`` are graph inputs, too."""
    tensors = [tensor(name, array) for name, array in constants.items()]
    infos = {t.name: helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors}
    inputs = [helper.make_tensor_value_info("x", dtype, (2, 3, 6, 6)), *(infos[name] for name in listed)]
    outputs = [helper.make_tensor_value_info("y", dtype, (2, 4, 4, 4))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    ids = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=ids, ir_version=ir_version)


def op_types(folded: ModelProto) -> list[str]:
    return [each.op_type for each in folded.graph.node]


def assert_folds(
    original: ModelProto, left: Sequence[str] = ("Conv",), tolerance: float = 1e-5, **options: Any
) -> Any:
    """The model folds to these nodes, stays valid, and computes the same in ONNX Runtime."""
    given = original.SerializeToString(deterministic=True)
    result = bnfold.fold(original, **options)
    assert original.SerializeToString(deterministic=True) == given
    assert op_types(result.model) == list(left)
    onnx.checker.check_model(result.model, full_check=True)
    kind = original.graph.input[0].type.tensor_type.elem_type
    feeds = {"x": X.astype(helper.tensor_dtype_to_np_dtype(kind))}
    before, after = (onnx_runtime(each, feeds) for each in (original, result.model))
    if before is None or after is None:
        before, after = ([truth(each, feeds)["y"]] for each in (original, result.model))
    scale = max(np.abs(before[0].astype(np.float64)).max(), 1.0)
    np.testing.assert_allclose(
        after[0].astype(np.float64), before[0].astype(np.float64), rtol=0, atol=tolerance * scale
    )
    return result


def assert_kept(original: ModelProto, reason: Reason, **options: Any) -> Any:
    """The model is left alone, for this reason."""
    result = bnfold.fold(original, **options)
    assert not result.report.changed
    assert op_types(result.model) == op_types(original)
    assert reason in {refusal.reason for row in result.report.rows for refusal in row.refusals}
    return result


def rest(*names: str) -> dict[str, Array]:
    """The stored constants but for those a test makes some other way."""
    stored = {"w": WEIGHT, **STATISTICS}
    return {name: array for name, array in stored.items() if name not in names}


# One constant, made of others: the name made, the nodes that make it, and what they start from.
CHAINS: dict[str, tuple[str, list[NodeProto], dict[str, Any]]] = {
    "constant": ("gamma", [node("Constant", "", "gamma", value=tensor("", SCALE))], {}),
    "value_floats": ("gamma", [node("Constant", "", "gamma", value_floats=[1.0, 2.0, 3.0, 4.0])], {}),
    "identities": ("gamma", [node("Identity", "g0", "g1"), node("Identity", "g1", "gamma")], {"g0": SCALE}),
    "cast": ("w", [node("Cast", "w0", "w", to=TensorProto.FLOAT)], {"w0": WEIGHT.astype(np.float16)}),
    "cast_integers": ("gamma", [node("Cast", "g0", "gamma", to=TensorProto.FLOAT)], {"g0": np.arange(1, 5)}),
    "cast_like": ("gamma", [node("CastLike", "g0 x", "gamma")], {"g0": SCALE.astype(np.float64)}),
    "squeeze": (
        "gamma",
        [node("Squeeze", "g0 axes", "gamma")],
        {"g0": SCALE.reshape(1, 4, 1), "axes": [0, 2]},
    ),
    "squeeze_all": ("gamma", [node("Squeeze", "g0", "gamma")], {"g0": SCALE.reshape(1, 4, 1)}),
    "unsqueeze": (
        "gamma",
        [node("Unsqueeze", "g0 axes", "g1"), node("Reshape", "g1 shape", "gamma")],
        {"g0": SCALE.reshape(2, 2), "axes": [0, -1], "shape": [-1]},
    ),
    "transpose": (
        "w",
        [node("Transpose", "w0", "w", perm=[3, 2, 0, 1])],
        {"w0": WEIGHT.transpose(2, 3, 1, 0)},
    ),
    "reshape": ("w", [node("Reshape", "w0 shape", "w")], {"w0": WEIGHT.reshape(-1), "shape": [4, 3, -1, 3]}),
    "expand": ("gamma", [node("Expand", "g0 shape", "gamma")], {"g0": np.float32([2.0]), "shape": [4]}),
    "filled": (
        "gamma",
        [node("ConstantOfShape", "shape", "gamma", value=tensor("", np.float32([3.0])))],
        {"shape": [4]},
    ),
    "filled_with_zero": ("beta", [node("ConstantOfShape", "shape", "beta")], {"shape": [4]}),
    "shape_of_weight": (
        "beta",
        [
            node("Shape", "w", "s", start=0, end=1),
            node("ConstantOfShape", "s", "beta"),
        ],
        {},
    ),
    "shape_of_static_input": (
        "beta",
        [
            node("Shape", "x", "s"),
            node("Gather", "s one", "three"),
            node("Add", "three one", "four"),
            node("ConstantOfShape", "four", "beta", value=tensor("", np.float32([0.5]))),
        ],
        {"one": [1]},
    ),
    "concat": ("gamma", [node("Concat", "g0 g1", "gamma", axis=0)], {"g0": SCALE[:1], "g1": SCALE[1:]}),
    "slice": (
        "gamma",
        [node("Slice", "g0 from to", "gamma")],
        {"g0": np.tile(SCALE, 2), "from": [2], "to": [6]},
    ),
    "computed": (
        "var",
        [node("Mul", "v0 v0", "v1"), node("Add", "v1 v2", "v3"), node("Sqrt", "v3", "var")],
        {"v0": SCALE, "v2": np.float32(0.25)},
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains(chain: str) -> None:
    """However a constant is made of constants, the batch norm that needs it folds, and its makers go."""
    name, nodes, start = CHAINS[chain]
    assert_folds(model([*nodes, conv(), norm()], {**rest(name), **start}))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value", tensor("", np.float32(2.5))),
        ("value", tensor("", SCALE.reshape(4, 1, 1))),
        ("value_float", 2.5),
        ("value_floats", [2.5]),
    ],
)
def test_constant_node_attributes(attribute: str, value: Any) -> None:
    """A Constant of every floating-point attribute is a factor like any other."""
    nodes = [conv(), node("Constant", "", "k", **{attribute: value}), node("Mul", "c k", "y")]
    assert_folds(model(nodes, rest(*STATISTICS)))


@pytest.mark.parametrize(("attribute", "value"), [("value_int", 3), ("value_ints", [3])])
def test_constant_node_of_integers(attribute: str, value: Any) -> None:
    """Integer attributes are integers until they are cast."""
    nodes = [
        conv(),
        node("Constant", "", "i", **{attribute: value}),
        node("Cast", "i", "k", to=TensorProto.FLOAT),
        node("Mul", "c k", "y"),
    ]
    assert_folds(model(nodes, rest(*STATISTICS)))


def test_constant_node_of_sparse_value() -> None:
    """A sparse Constant is densified or refused by a typed error, never dropped."""
    values, indices = tensor("v", np.float32([2.0, 3.0])), tensor("i", np.array([0, 2]))
    sparse = helper.make_sparse_tensor(values, indices, [4])
    nodes = [node("Constant", "", "gamma", sparse_value=sparse), conv(), norm()]
    original = model(nodes, rest("gamma"))
    try:
        result = bnfold.fold(original)
    except UnsupportedModelError:
        return
    assert "BatchNormalization" not in op_types(result.model)
    assert_folds(original)


def test_dynamo_bias() -> None:
    """Torch, its optimizer off, writes a bias as Shape → Expand → CastLike of an activation."""
    nodes = [
        node("Shape", "w", "s", start=0, end=1),
        node("Expand", "zero s", "b0"),
        node("CastLike", "b0 x", "b"),
        node("Conv", "x w b", "c"),
        norm(),
    ]
    assert_folds(model(nodes, {**rest(), "zero": np.float64(0.5)}))


def test_shape_and_type_of_the_normalized_tensor() -> None:
    """Who asks a tensor only for its shape or type is no reader that a map could disturb.

    So torch writes γ and β of a batch norm without them: by Shape and CastLike of what it normalizes.
    """
    nodes = [
        conv(),
        node("Shape", "c", "s", start=1, end=2),
        node("CastLike", "one c", "one0"),
        node("Expand", "one0 s", "gamma"),
        node("CastLike", "zero c", "zero0"),
        node("Expand", "zero0 s", "beta"),
        norm(),
    ]
    assert_folds(model(nodes, {**rest("gamma", "beta"), "one": np.float64([1]), "zero": np.float64([0])}))


def test_axes_made_by_a_reshape() -> None:
    """Torch, its optimizer off, reshapes constant axes to a vector: shapes are inferred through it."""
    nodes = [
        node("Constant", "", "axes0", value=tensor("", np.array([2, 3]))),
        node("Constant", "", "flat", value_ints=[-1]),
        node("Reshape", "axes0 flat", "axes"),
        node("ReduceMean", "x axes", "m", keepdims=1),
        node("Conv", "m w", "c"),
        norm(),
    ]
    original = model(nodes, {**rest("w"), "w": WEIGHT[..., :1, :1].copy()}, opset=18)
    for dim in original.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 1
    result = bnfold.fold(original)
    assert "BatchNormalization" not in op_types(result.model)


def test_scales_made_by_a_concat() -> None:
    """Torch, its constant folding off, makes the scales of a Resize of two constants: shapes are inferred."""
    op = Graph(17)
    x = op.Relu(op.input("x", (1, 3, 4, 4)))
    scales = op.Concat(op.const([1.0, 1.0]), op.const([2.0, 2.0]), axis=0)
    resized = op.Resize(x, "", scales, mode="linear")
    y = op.BatchNormalization(resized, op.weight(3), op.weight(3), op.weight(3), op.positive(3))
    wide = op.Concat(y, op.Relu(op.input("z", (1, 3, 8, 8))), axis=1)
    original = op.finish([op.Conv(wide, op.weight(4, 6, 1, 1))])
    folded = bnfold.fold(original).model
    assert "BatchNormalization" not in op_types(folded)
    assert not differences(original, folded, feeds_for(original))


def test_squeeze_of_no_axes_makes_no_constant() -> None:
    """It squeezes all axes to ONNX Runtime, and none to onnx."""
    op = Graph(17)
    scale = op.Squeeze(op.weight(4, 1, 1), op.ints())
    model = op.finish([op.Mul(op.Conv(op.input("x", (1, 3, 4, 4)), op.weight(4, 3, 1, 1)), scale)])
    assert not bnfold.fold(model).report.changed


def test_pads_made_of_constants() -> None:
    """Torch writes the pads of a dynamic Pad as a constant turned around: the shape behind it is known."""
    op = Graph(17)
    x = op.input("x", (1, 3, 6, 6))
    some = op.ints(1, 2, 1, 1)
    rest = op.Sub(op.Mul(op.ints(4), op.ints(2)), op.Gather(op.Shape(some), op.ints(0)))
    zeros = op.ConstantOfShape(rest, value=helper.make_tensor("", TensorProto.INT64, [1], [0]))
    given = op.Concat(some, zeros, axis=0)
    pairs = op.Slice(
        op.Reshape(given, op.ints(-1, 2)), op.ints(-1), op.ints(-(2**63) + 1), op.ints(0), op.ints(-1)
    )
    pads = op.Cast(op.Reshape(op.Transpose(pairs, perm=[1, 0]), op.ints(-1)), to=TensorProto.INT64)
    y = op.MaxPool(op.Pad(x, pads), kernel_shape=[2, 2])
    scaled = op.Add(op.Mul(y, op.weight(3, 1, 1)), op.weight(3, 1, 1))
    original = op.finish([op.Conv(scaled, op.weight(4, 3, 1, 1))])
    folded = bnfold.fold(original).model
    assert "Add" not in op_types(folded)
    assert not differences(original, folded, feeds_for(original))


@pytest.mark.parametrize("size", range(4))
def test_slices_run_backwards_as_in_the_runtime(size: int) -> None:
    """Whatever a Slice with a negative step begins and ends at."""
    data = np.arange(size)
    bounds = [-(2**63) + 1, *range(-size - 2, size + 3), 2**63 - 1]
    names = ["data", "start", "end", "axis", "step"]
    node = helper.make_node("Slice", names, ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in (*names, "y")]
    graph = helper.make_graph([node], "g", ports[:-1], ports[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runtime = ort.InferenceSession(model.SerializeToString())
    own = next(iter(ir.serde.deserialize_model(model).graph))
    for start, end, step in product(bounds, bounds, (-3, -2, -1)):
        feeds = [data, *(np.array([each]) for each in (start, end, 0, step))]
        (expected,) = runtime.run(None, dict(zip(names, feeds, strict=True)))
        found = evaluate(own, feeds, 17)
        if end == bounds[-1]:  # the one of which both have their own opinion
            assert found is None
        else:
            assert found is not None
            assert found.tolist() == expected.tolist(), (start, end, step)


def test_reshape_to_a_computed_shape() -> None:
    """Where inference leaves one size behind a Reshape open, the number of elements tells it."""
    op = Graph(17)
    x = op.input("x", ("N", 2, 2, 2))
    shape = op.Concat(op.Slice(op.Shape(x), op.ints(0), op.ints(1)), op.ints(-1), axis=0)
    flat = op.Reshape(op.batch_norm(x), shape)
    original = op.finish([op.Gemm(flat, op.weight(8, 4))])
    folded = bnfold.fold(original).model
    assert "BatchNormalization" not in op_types(folded)
    assert not differences(original, folded, feeds_for(original))
    graph = ir.serde.deserialize_model(original)
    reshape = next(each for each in graph.graph if each.op_type == "Reshape")
    facts = infer(graph)
    assert facts.shape(reshape.outputs[0]) == ("N", 8)
    assert facts.dtype(reshape.outputs[0]) == ir.DataType.FLOAT


def test_chunks_of_a_known_size() -> None:
    """Torch, its constant folding off, divides a size to cut a tensor: shapes are inferred through it."""
    op = Graph(17)
    y = op.Conv(op.input("x", (1, 3, 4, 4)), op.weight(6, 3, 1, 1))
    size = op.Gather(op.Shape(y), op.ints(1), axis=0)
    half = op.Div(op.Add(size, op.ints(1)), op.ints(2))
    chunk = op.Slice(y, op.ints(0), half, op.ints(1))
    original = op.finish([op.Mul(op.Relu(chunk), op.positive(3, 1, 1)), op.Relu(y)])
    graph = ir.serde.deserialize_model(original)
    relu = next(each for each in graph.graph if each.op_type == "Relu")
    assert infer(graph).shape(relu.outputs[0]) == (1, 3, 4, 4)
    refusals = [each.refusals for each in bnfold.fold(original).report.rows]
    assert Reason.UNKNOWN_SHAPE not in {each.reason for row in refusals for each in row}


def test_axes_counted_by_a_range() -> None:
    """Torch, its optimizer off, counts the axes that a GroupNorm's constants get: shapes are inferred."""
    op = Graph(18)
    y = op.Relu(op.input("x", (1, 4, 3, 3)))
    one = op.Constant(value_int=1)
    axes = op.Range(one, op.Sub(op.const(4, TensorProto.INT64), one), one)
    scaled = op.Mul(y, op.Unsqueeze(op.weight(4), axes))
    shifted = op.Add(scaled, op.Unsqueeze(op.weight(4), axes))
    original = op.finish([op.Conv(shifted, op.weight(2, 4, 1, 1))])
    folded = bnfold.fold(original).model
    assert op_types(folded) == ["Relu", "Conv"]
    assert not differences(original, folded, feeds_for(original))


@pytest.mark.parametrize("place", [0, 1, -1])
def test_parts_of_a_sequence(place: int) -> None:
    """Torch, its optimizer off, splits into sequences: the shape of each part is inferred."""
    op = Graph(18)
    y = op.Relu(op.input("x", (1, 6, 3, 3)))
    parts = op.SplitToSequence(y, op.ints(4, 2), axis=1)
    part, size = op.SequenceAt(parts, op.const(place, TensorProto.INT64)), 2 if place else 4
    scaled = op.Add(op.Mul(part, op.weight(size, 1, 1)), op.weight(size, 1, 1))
    original = op.finish([op.Conv(scaled, op.weight(2, size, 1, 1))])
    folded = bnfold.fold(original).model
    assert op_types(folded) == ["Relu", "SplitToSequence", "SequenceAt", "Conv"]
    assert not differences(original, folded, feeds_for(original))


@pytest.mark.parametrize("op_type", ["ConstantOfShape", "Expand", "Range", "Tile"])
def test_what_no_memory_holds_is_not_evaluated(op_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes can ask for any number of values."""
    monkeypatch.setattr(Constants, "_evaluate", lambda self, node, feeds: pytest.fail(node.op_type))
    op, count = Graph(17), 1 << 33
    x = op.Mul(op.input("x", (1, 4)), op.weight(4))
    if op_type == "Range":
        bounds = (op.const(each, TensorProto.INT64) for each in (0, count, 1))
        y = op.Gather(x, op.Range(*bounds), axis=1)
    else:
        data = [op.ints(count, 4)] if op_type == "ConstantOfShape" else [op.weight(1, 4), op.ints(count, 1)]
        y = op.Mul(op.Relu(x), op.node(op_type, *data))
    assert not bnfold.fold(op.finish([y])).report.changed


def test_output_declaration_stays() -> None:
    """What a graph output says of itself (torch notes its kind there) survives the fold in front of it."""
    original = model([conv(), norm()], rest())
    output = original.graph.output[0]
    output.doc_string = "logits"
    note = output.metadata_props.add()
    note.key, note.value = "kind", "USER_OUTPUT"
    output.type.denotation = "TENSOR"
    folded = assert_folds(original).model
    assert [*folded.graph.output] == [output]


def test_graph_input_that_is_an_output() -> None:
    """A graph input that is returned as it is has the shape it declares."""
    nodes = [node("BatchNormalization", "x gamma beta mean var", "n"), node("Conv", "n w", "y")]
    stored = {name: array[:3] for name, array in STATISTICS.items()}
    original = model(nodes, {"w": WEIGHT, **stored})
    original.graph.output.append(original.graph.input[0])
    assert_folds(original)


@pytest.mark.parametrize("wrong", ["bias", "groups"])
def test_weights_that_do_not_fit(wrong: str) -> None:
    """A layer whose weights no runtime could use is an error of the model, not of bnfold's."""
    stored = {**rest(), "b": np.zeros(5 if wrong == "bias" else 4, np.float32)}
    layer = node("Conv", "x w b", "c", **({} if wrong == "bias" else {"group": 3}))
    stored["w"] = WEIGHT if wrong == "bias" else WEIGHT[:, :1].copy()
    try:
        result = bnfold.fold(model([layer, norm()], stored))
    except InvalidModelError:
        return
    assert wrong == "groups"
    assert "Conv" in op_types(result.model)


def test_keras_bias_add() -> None:
    """A bias of shape 1×C×1×1 behind an Unsqueeze, as tf2onnx writes it, joins the weights."""
    nodes = [
        conv(),
        node("Unsqueeze", "b0 axes", "b1"),
        node("Add", "c b1", "a"),
        node("Mul", "a k", "y"),
    ]
    stored = {"w": WEIGHT, "b0": BIAS, "axes": np.array([0, 2, 3]), "k": SCALE.reshape(1, 4, 1, 1)}
    assert_folds(model(nodes, stored))


@pytest.mark.parametrize("source", ["RandomNormal", "RandomUniform"])
def test_random_numbers_are_no_constants(source: str) -> None:
    """What differs from run to run is never evaluated here."""
    nodes = [node(source, "", "w", shape=[4, 3, 3, 3]), conv(), norm()]
    assert_kept(model(nodes, rest("w")), Reason.NOT_CONSTANT)


def test_shape_of_a_dynamic_input_is_no_constant() -> None:
    """A shape that is not declared is not guessed from the parameters."""
    nodes = [
        node("Shape", "x", "s", start=1, end=2),
        node("ConstantOfShape", "s", "gamma", value=tensor("", np.float32([2.0]))),
        node("BatchNormalization", "x gamma beta mean var", "c"),
        node("Conv", "c w", "y"),
    ]
    stored = {name: array[:3] for name, array in STATISTICS.items() if name != "gamma"}
    original = model(nodes, {"w": WEIGHT, **stored})
    original.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    assert_kept(original, Reason.NOT_CONSTANT)


@pytest.mark.parametrize("opset", [6, 7])
@pytest.mark.parametrize("op_type", ["Add", "Mul"])
def test_constants_of_old_opsets(op_type: str, opset: int) -> None:
    """Before opset 7 arithmetic broadcasts by attributes: its results are not known."""
    nodes = [
        node(op_type, "w0 k", "w", **({"broadcast": 1} if opset < 7 else {})),
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c gamma beta mean var", "y", **({"is_test": 1} if opset < 7 else {})),
    ]
    stored = {**rest("w"), "w0": WEIGHT, "k": np.float32([1.0, 2.0, 3.0])}
    original = model(nodes, stored, opset=opset, ir_version=3, listed=list(stored))
    if opset < 7:
        assert_kept(original, Reason.NOT_CONSTANT)
    else:
        assert_folds(original)


# Types and mixtures of them.


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float16, 5e-3), (np.float32, 1e-5), (np.float64, 1e-14), (ml_dtypes.bfloat16, 4e-2)],
)
def test_types(dtype: Any, tolerance: float) -> None:
    """Every floating-point type folds into constants of its own."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = {name: array.astype(dtype) for name, array in rest().items()}
    original = model([conv(), norm()], stored, opset=22, ir_version=10, dtype=kind)
    result = assert_folds(original, tolerance=tolerance)
    assert {each.data_type for each in result.model.graph.initializer} == {kind}


@pytest.mark.parametrize("where", ["behind", "in front"])
def test_mixed_precision_batch_norm(where: str) -> None:
    """From opset 15 a batch norm of half data may have float32 parameters: the Conv stays all half."""
    half, count = TensorProto.FLOAT16, 4 if where == "behind" else 3
    stored = {name: array[:count] for name, array in STATISTICS.items()}
    front = [
        node("BatchNormalization", "x gamma beta mean var", "n"),
        node("Conv", "n w b", "y"),
    ]
    nodes = [conv("w", "b"), norm()] if where == "behind" else front
    stored = {"w": WEIGHT.astype(np.float16), "b": BIAS.astype(np.float16), **stored}
    result = assert_folds(model(nodes, stored, dtype=half), tolerance=1e-2)
    assert {each.data_type for each in result.model.graph.initializer} == {half}


def test_mixed_precision_without_bias() -> None:
    """A bias that was absent is made in the type of the weight, not of the batch norm."""
    stored = {**STATISTICS, "w": WEIGHT.astype(np.float16)}
    result = assert_folds(model([conv(), norm()], stored, dtype=TensorProto.FLOAT16), tolerance=1e-2)
    assert {each.data_type for each in result.model.graph.initializer} == {TensorProto.FLOAT16}


def test_weights_stored_in_half_and_cast() -> None:
    """Weights stored in half and computed in float32 fold in float32; the report says what that costs."""
    nodes = [node("Cast", "w0", "w", to=TensorProto.FLOAT), conv(), norm()]
    original = model(nodes, {**rest("w"), "w0": WEIGHT.astype(np.float16)})
    result = assert_folds(original)
    # The weight doubles; four vectors give way to one bias.
    assert result.report.constant_bytes == WEIGHT.size * 2 - 3 * 4 * 4


# What the file weighs.


def test_shared_weights_are_split() -> None:
    """Where two layers share a weight each gets its own, and the report says by how much the file grows."""
    nodes = [
        conv(),
        node("BatchNormalization", "c gamma beta mean var", "a"),
        node("Conv", "x w", "d"),
        node("BatchNormalization", "d gamma beta mean var", "e"),
        node("Add", "a e", "y"),
    ]
    result = assert_folds(model(nodes, rest()), ["Conv", "Conv", "Add"], merge=False)
    assert result.report.constant_bytes == WEIGHT.nbytes - 2 * BIAS.nbytes


def test_shared_weight_with_another_reader() -> None:
    """A weight that something else still reads stays in the file."""
    nodes = [conv(), norm(), node("Mul", "w w", "z")]
    original = model(nodes, rest())
    original.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, WEIGHT.shape))
    result = assert_folds(original, ["Conv", "Mul"])
    stored = {each.name: numpy_helper.to_array(each) for each in result.model.graph.initializer}
    np.testing.assert_array_equal(stored["w"], WEIGHT)
    assert result.report.constant_bytes == WEIGHT.nbytes - 3 * BIAS.nbytes


def test_long_chain_is_no_constant() -> None:
    """What is made by more nodes in a row than any exporter writes is left to the run time."""
    chain = [node("Identity", f"g{i}", f"g{i + 1}") for i in range(300)]
    chain[-1].output[0] = "gamma"
    original = model([*chain, conv(), norm()], {**rest("gamma"), "g0": SCALE})
    assert_kept(original, Reason.NOT_CONSTANT)


def test_huge_generated_constant_is_none() -> None:
    """What would be generated larger than any weight is left to the run time."""
    op = Graph(17)
    y = op.Mul(op.input("x", (6000, 6000)), op.Expand(op.const(2.0), op.ints(6000, 6000)))
    assert op_types(bnfold.fold(op.finish([op.MatMul(y, op.weight(6000, 2))])).model) == [
        "Expand",
        "Mul",
        "MatMul",
    ]


@pytest.mark.parametrize(
    ("op_type", "given"),
    [
        ("ConstantOfShape", [2]),
        ("ConstantOfShape", [[[2, 3]]]),
        ("ConstantOfShape", [[2**62] * 20]),
        ("Range", [[0, 1], 4, 1]),
    ],
    ids=str,
)
def test_sizes_that_make_no_constant(op_type: str, given: Sequence[Any]) -> None:
    """What nobody can fill or count is left to the run time."""
    op = Graph(17)
    y = op.batch_norm(op.Conv(op.input("x", (1, 3, 4, 4)), op.weight(4, 3, 1, 1)))
    made = op.node(op_type, *(op.const(each, TensorProto.INT64) for each in given))
    assert op_types(bnfold.fold(op.finish([y, made])).model) == ["Conv", op_type]


@pytest.mark.parametrize("op_type", ["Unsqueeze", "DequantizeLinear"])
def test_operator_without_its_input_makes_no_constant(op_type: str) -> None:
    """An empty name where an operator needs an input is nothing that could be computed with."""
    op = Graph(17)
    inputs = ("", op.ints(0)) if op_type == "Unsqueeze" else (op.integers(3, 5), "")
    y = op.MatMul(op.input("x", ("N", 3)), op.node(op_type, *inputs))
    report = bnfold.fold(op.finish([op.batch_norm(y, channels=5)])).report
    assert not report.changed
    assert [row.status for row in report.rows] == ["kept"]


def test_cast_to_an_unknown_type_is_no_constant() -> None:
    """Where nobody knows the type of the tensor that a constant is cast like, it is none."""
    foreign = node("Mystery", "x", "like", domain="vendor")
    original = model(
        [foreign, node("CastLike", "g0 like", "gamma"), conv(), norm()], {**rest("gamma"), "g0": SCALE}
    )
    assert_kept(original, Reason.NOT_CONSTANT)


def test_constant_that_is_a_graph_output() -> None:
    """A constant that the graph returns is returned as it was."""
    original = model([conv(), norm()], rest())
    for name in ("w", "gamma"):
        shape = rest()[name].shape
        original.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    folded = assert_folds(original).model
    outputs = onnx_runtime(folded, {"x": X})
    assert outputs is not None
    np.testing.assert_array_equal(outputs[1], WEIGHT)
    np.testing.assert_array_equal(outputs[2], SCALE)


def test_generated_weights_grow_the_file() -> None:
    """A weight that was generated from a few bytes is stored in full, and counted."""
    nodes = [
        node("ConstantOfShape", "shape", "w", value=tensor("", np.float32([0.5]))),
        conv(),
        norm(),
    ]
    original = model(nodes, {**rest("w"), "shape": np.array([4, 3, 3, 3])})
    result = assert_folds(original)
    assert result.report.constant_bytes >= WEIGHT.nbytes - 4 * BIAS.nbytes - 4 * 8


def test_bytes_of_constant_nodes_are_counted() -> None:
    """Moving a weight from a Constant node into an initializer is no growth."""
    nodes = [
        node("Constant", "", "w", value=tensor("", WEIGHT)),
        node("Constant", "", "gamma", value_floats=[float(item) for item in SCALE]),
        conv(),
        norm(),
    ]
    result = assert_folds(model(nodes, rest("w", "gamma")))
    assert result.report.constant_bytes == -3 * BIAS.nbytes


def test_unused_constants_stay() -> None:
    """What no fold made obsolete is not tidied away."""
    original = model([conv(), norm()], {**rest(), "nobody": BIAS})
    folded = assert_folds(original).model
    assert "nobody" in {each.name for each in folded.graph.initializer}


def test_only_what_a_fold_needs_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integer and unrelated chains of constants, however large, are not computed."""
    seen: list[str] = []
    evaluate = Constants._evaluate

    def record(self: Constants, each: ir.Node, feeds: Any) -> Any:
        seen.append(each.name or "")
        return evaluate(self, each, feeds)

    monkeypatch.setattr(Constants, "_evaluate", record)
    nodes = [
        node("ConstantOfShape", "huge", "h", value=tensor("", np.float32([1.0]))),
        node("ReduceSum", "h", "r"),
        node("Range", "zero many one", "i"),
        node("Add", "i one", "j"),
        node("Gather", "table j", "picked"),
        node("ReduceSum", "picked", "p"),
        node("Identity", "gamma0", "gamma"),
        conv(),
        norm(),
        node("Add", "r p", "rp"),
    ]
    many = {"huge": [1 << 26], "zero": 0, "many": 3, "one": 1}
    stored = {**rest("gamma"), "gamma0": SCALE, "table": BIAS, **{k: np.array(v) for k, v in many.items()}}
    original = model(nodes, stored)
    original.graph.output.append(helper.make_tensor_value_info("rp", TensorProto.FLOAT, None))
    result = bnfold.fold(original)
    assert "BatchNormalization" not in op_types(result.model)
    assert set(seen) <= {"make_gamma"}


# Initializers that are graph inputs.


@pytest.mark.parametrize("ir_version", [1, 2, 3])
def test_listed_before_ir_version_4(ir_version: int) -> None:
    """Every initializer has to be an input there: constants all the same, and so are fresh ones.

    Before IR version 3 a model names no opset at all: it is the first.
    """
    stored = rest()
    original = model([conv(), norm()], stored, opset=8, ir_version=ir_version, listed=list(stored))
    if ir_version < 3:
        del original.opset_import[:]
        original.graph.node[1].attribute.append(helper.make_attribute("is_test", 1))
        original.graph.node[1].attribute.append(helper.make_attribute("consumed_inputs", [0, 0, 0, 1, 1]))
    folded = bnfold.fold(original).model
    assert op_types(folded) == ["Conv"]
    assert folded.ir_version == ir_version
    assert folded.graph.input[0] == original.graph.input[0]
    initializers = {each.name for each in folded.graph.initializer}
    assert {each.name for each in folded.graph.input} == {"x", *initializers}
    assert len(folded.graph.input) == 3
    onnx.checker.check_model(folded, full_check=ir_version == 3)
    if ir_version == 3:
        before, after = (truth(each, {"x": X})["y"] for each in (original, folded))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("listed", [["w"], ["gamma"], ["var", "mean"], ["w", *STATISTICS]])
def test_overridable_from_ir_version_4(listed: Sequence[str]) -> None:
    """A caller may replace such a constant, so it is none, and the report counts what freezing would lift."""
    original = model([conv(), norm()], rest(), listed=listed)
    result = assert_kept(original, Reason.OVERRIDABLE)
    assert result.report.overridable == 1
    assert [each.name for each in result.model.graph.input] == ["x", *listed]


@pytest.mark.parametrize("listed", [["w"], ["gamma"], ["w", *STATISTICS]])
def test_freeze_initializers(listed: Sequence[str]) -> None:
    """Frozen, they are constants and no part of the signature any more."""
    original = model([conv(), norm()], rest(), listed=listed)
    result = assert_folds(original, freeze_initializers=True)
    assert [each.name for each in result.model.graph.input] == ["x"]
    assert result.report.overridable == 0


def test_freezing_without_a_batch_norm() -> None:
    """Freezing is what was asked for, also where nothing folds: the signature shrinks, the rest stays."""
    original = model([node("Conv", "x w", "y")], {"w": WEIGHT}, listed=["w"])
    result = assert_folds(original, freeze_initializers=True)
    assert [each.name for each in result.model.graph.input] == ["x"]


@pytest.mark.parametrize("ir_version", [4, 8])
def test_overridable_shape_is_believed_nowhere(ir_version: int) -> None:
    """A shape that a caller may replace proves nothing."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c shape", "r"),
        node("Mul", "r k", "y"),
    ]
    stored = {"w": WEIGHT, "shape": np.array([2, 4, 16]), "k": SCALE.reshape(4, 1)}
    original = model(nodes, stored, listed=["shape"], ir_version=ir_version)
    del original.graph.output[0].type.tensor_type.shape.dim[3:]
    original.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 16
    result = bnfold.fold(original)
    assert "Mul" in op_types(result.model)


def test_a_constant_made_of_an_overridable_one_is_none() -> None:
    """Overridable carries over through every chain."""
    nodes = [node("Identity", "g0", "gamma"), conv(), norm()]
    original = model(nodes, {**rest("gamma"), "g0": SCALE}, listed=["g0"])
    assert_kept(original, Reason.OVERRIDABLE)


# Sparse initializers, training information, bodies, external data.


def _sparse(name: str, array: Array, coordinates: bool) -> onnx.SparseTensorProto:
    places = np.argwhere(array) if coordinates else np.flatnonzero(array)
    values = array[tuple(np.argwhere(array).T)]
    return helper.make_sparse_tensor(tensor(name, values), tensor(f"{name}_i", places), array.shape)


@pytest.mark.parametrize("coordinates", [True, False])
def test_sparse_initializers_are_densified(coordinates: bool) -> None:
    """A sparse weight, in either form of indices, folds like the dense one it stands for."""
    sparse = WEIGHT * (RANDOM.uniform(size=WEIGHT.shape) < 0.3)
    dense = model([conv(), norm()], {**rest("w"), "w": sparse})
    original = model([conv(), norm()], rest("w"))
    original.graph.sparse_initializer.append(_sparse("w", sparse, coordinates))
    given = original.SerializeToString(deterministic=True)
    folded, expected = bnfold.fold(original).model, bnfold.fold(dense).model
    assert original.SerializeToString(deterministic=True) == given
    weights = [
        {each.name: numpy_helper.to_array(each) for each in m.graph.initializer} for m in (folded, expected)
    ]
    assert op_types(folded) == ["Conv"]
    for mine, theirs in zip(*(values.values() for values in weights), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_unrelated_sparse_initializers_survive() -> None:
    """One that no fold touches is kept or densified, never dropped."""
    original = model([conv(), norm(), node("Identity", "k", "z")], rest())
    sparse = np.float32([0, 5, 0])
    original.graph.sparse_initializer.append(_sparse("k", sparse, False))
    original.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3]))
    folded = bnfold.fold(original).model
    np.testing.assert_array_equal(truth(folded, {"x": X})["z"], sparse)


def test_sparse_indices_out_of_range() -> None:
    """A sparse tensor that points outside itself makes the model invalid."""
    original = model([conv(), norm()], rest("w"))
    broken = helper.make_sparse_tensor(
        tensor("w", np.float32([1])), tensor("i", np.array([999])), [4, 3, 3, 3]
    )
    original.graph.sparse_initializer.append(broken)
    with pytest.raises(InvalidModelError, match="'w'"):
        bnfold.fold(original)


def test_training_info_is_refused() -> None:
    """A model that carries its training graph is refused by name: folding would make that graph wrong."""
    original = model([conv(), norm()], rest())
    original.training_info.add()
    with pytest.raises(UnsupportedModelError, match="training_info"):
        bnfold.fold(original)


def _branch(kind: str, prefix: str) -> GraphProto:
    """A body that convolves the outer ``x``; its constants are its own, or the outer graph's."""
    names = {name: f"{prefix}{name}" if kind != "captured" else name for name in rest()}
    parameters = " ".join(names[name] for name in STATISTICS)
    made = {f"{prefix}{name}": array for name, array in rest().items()}
    nodes = [
        node("Conv", f"x {names['w']}", f"{prefix}c"),
        node("BatchNormalization", f"{prefix}c {parameters}", f"{prefix}y"),
    ]
    if kind == "nodes":
        nodes = [*(node("Constant", "", key, value=tensor("", a)) for key, a in made.items()), *nodes]
    tensors = [tensor(key, array) for key, array in made.items()] if kind == "initializers" else []
    output = helper.make_tensor_value_info(f"{prefix}y", TensorProto.FLOAT, (2, 4, 4, 4))
    return helper.make_graph(nodes, prefix, [], [output], tensors)


@pytest.mark.parametrize("kind", ["initializers", "nodes", "captured"])
def test_constants_inside_bodies(kind: str) -> None:
    """Constants of an If body, and outer ones that it captures, fold within the body."""
    bodies = {"then_branch": _branch(kind, "t_"), "else_branch": _branch(kind, "e_")}
    stored = rest() if kind == "captured" else {}
    original = model([node("If", "which", "y", **bodies)], stored)
    original.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    folded = bnfold.fold(original).model
    onnx.checker.check_model(folded, full_check=True)
    for attribute in folded.graph.node[0].attribute:
        assert [each.op_type for each in attribute.g.node] == ["Conv"]
    for which in (True, False):
        feeds = {"x": X, "which": np.array(which)}
        before, after = (onnx_runtime(each, feeds) for each in (original, folded))
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-5)


def test_overridable_constants_captured_by_a_body() -> None:
    """What a caller may replace is no constant inside a body either."""
    bodies = {"then_branch": _branch("captured", "t_"), "else_branch": _branch("captured", "e_")}
    original = model([node("If", "which", "y", **bodies)], rest(), listed=["w"])
    original.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    result = bnfold.fold(original)
    assert result.report.folded == 0
    assert result.report.overridable == 2


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model file whose weights are in a file beside it."""
    path = tmp_path / "external.onnx"
    original = model([conv(), norm()], rest())
    onnx.save(original, path, save_as_external_data=True, location="external.data", size_threshold=0)
    return path


def test_external_data(external: Path) -> None:
    """A path brings its external data along."""
    result = bnfold.fold(external)
    assert op_types(ir.to_proto(result.model)) == ["Conv"]
    expected = bnfold.fold(model([conv(), norm()], rest())).model
    stored = {value.name: value.const_value.numpy() for value in result.model.graph.initializers.values()}
    for each in expected.graph.initializer:
        np.testing.assert_array_equal(stored[each.name], numpy_helper.to_array(each))


def test_large_external_data(tmp_path: Path) -> None:
    """Weights too large to be read at once fold as those in memory do, wherever in their file they begin."""
    op = Graph(17)
    y = op.batch_norm(op.Gemm(op.input("x", (1, 600)), op.weight(600, 900)))
    original = op.finish([op.Gemm(op.Sigmoid(y), op.weight(900, 500))])
    expected = bnfold.fold(original).model
    path = tmp_path / "large.onnx"
    onnx.save(original, path, save_as_external_data=True, location="large.data", size_threshold=1 << 20)
    unloaded = onnx.load(path, load_external_data=False)
    first = next(each for each in unloaded.graph.initializer if each.external_data)
    assert first.external_data[1].key == "offset"
    del first.external_data[1]  # where none is given, the data begin with the file
    path.write_bytes(unloaded.SerializeToString())
    loaded, folded, folding = files.load(path), files.load(path), bnfold.FoldPass()
    folding(folded)
    stored = {value.name: value.const_value for value in folded.graph.initializers.values()}
    for each in expected.graph.initializer:
        np.testing.assert_array_equal(stored[each.name], numpy_helper.to_array(each))
    undone = restore(folded, provenance(folding.folds, loaded, folded))
    assert fingerprint(undone) == fingerprint(loaded)


def test_external_data_of_a_proto(external: Path) -> None:
    """A ModelProto whose data are not loaded needs ``base_dir``, and says so."""
    unloaded = onnx.load(external, load_external_data=False)
    with pytest.raises(UnreadableModelError, match="base_dir"):
        bnfold.fold(unloaded)
    assert op_types(bnfold.fold(unloaded, base_dir=external.parent).model) == ["Conv"]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_external_data_damaged(external: Path, damage: str) -> None:
    """External data that are not there, or not all there, are named before anything is folded."""
    data = external.with_name("external.data")
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UnreadableModelError, match=r"external\.data"):
        bnfold.fold(external)


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("above", "outside the model's folder"),
        ("absolute", "outside the model's folder"),
        ("a link", "outside the model's folder"),
        ("a second name", "hard link"),
        ("no file", "no regular file"),
        ("no name", "in which file"),
        ("no file name", "in which file"),
    ],
)
def test_external_data_elsewhere(external: Path, where: str, problem: str) -> None:
    """Only a regular file in the model's folder is read: a model cannot make anybody read another."""
    data, folder = external.with_name("external.data"), external.with_name("inner")
    folder.mkdir()
    named = {"above": "../external.data", "absolute": str(data), "no name": "", "no file name": "a\0b"}
    location = named.get(where, "its.data")
    if where == "a link":
        (folder / location).symlink_to(data)
    elif where == "a second name":
        (folder / location).hardlink_to(data)
    elif where == "no file":
        (folder / location).mkdir()
    original = onnx.load(external, load_external_data=False)
    for tensor in original.graph.initializer:
        tensor.external_data[0].value = location
    path = folder / "model.onnx"
    path.write_bytes(original.SerializeToString())
    with pytest.raises((UnreadableModelError, InvalidModelError), match=problem):
        bnfold.fold(path)


def test_external_data_in_a_constant_node(external: Path) -> None:
    """Constant nodes may keep their value outside as well: found with a path, missed with a typed error."""
    original = onnx.load(external, load_external_data=False)
    held = next(each for each in original.graph.initializer if each.name == "w")
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(helper.make_attribute("value", held))
    original.graph.initializer.remove(held)
    original.graph.node.insert(0, constant)
    path = external.with_name("node.onnx")
    path.write_bytes(original.SerializeToString())
    assert op_types(ir.to_proto(bnfold.fold(path).model)) == ["Conv"]
    with pytest.raises(UnreadableModelError, match="base_dir"):
        bnfold.fold(original)
    external.with_name("external.data").unlink()
    with pytest.raises(UnreadableModelError, match=r"external\.data"):
        bnfold.fold(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.initializer[0].dims.append(2),
        lambda m: m.graph.initializer[0].__setattr__("raw_data", b"\0" * 7),
        lambda m: m.graph.initializer[0].__setattr__("data_type", 99),
        lambda m: m.graph.initializer[1].__setattr__("data_type", TensorProto.INT32),
    ],
    ids=["dims", "raw data", "unknown type", "other type"],
)
def test_damaged_tensors(change: Callable[[ModelProto], None]) -> None:
    """A constant whose data do not fit its header is a typed error, or left alone; never a wrong fold."""
    original = model([conv(), norm()], rest())
    change(original)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = bnfold.fold(original)
        except (InvalidModelError, UnreadableModelError):
            return
    assert op_types(result.model) == op_types(original)


def test_tied_embedding_is_written_twice() -> None:
    """A table that embeds tokens and projects onto them takes a map in one place; the file grows by it."""
    op = Graph(17)
    tokens, table = op.input("tokens", ("N", 5), TensorProto.INT64), op.weight(8, 4)
    y = op.Add(op.Mul(op.Gather(table, tokens), op.positive(4)), op.weight(4))
    result = bnfold.fold(op.finish([op.MatMul(op.Softmax(y), op.Transpose(table))]))
    assert [node.op_type for node in result.model.graph.node] == ["Gather", "Softmax", "Transpose", "MatMul"]
    assert result.report.constant_bytes == 4 * (8 * 4 - 2 * 4)


@pytest.mark.parametrize("dtype", [TensorProto.COMPLEX64, TensorProto.COMPLEX128])
def test_complex_constant_is_none(dtype: int) -> None:
    """A complex constant has no place in float64: nothing is read from it, and nothing of it is lost."""
    op = Graph(17)
    y = op.Identity(op.Identity(op.input("x", (1, 4, 5, 5))))
    model = op.finish([op.node("Mul", op.node("FromAfar", y, domain="far"), op.const([1 + 2j], dtype))])
    assert not bnfold.fold(model).report.changed
