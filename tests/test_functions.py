"""Model-local functions: those that hold a map which folds are inlined, all others stay as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper
from test_planner import branch, count, image, refusals, written
from truth import differences, feeds_for, graphs, onnx_runtime

import bnfold
from bnfold.core.example import Graph
from bnfold.core.graph.shapes import infer
from bnfold.core.reasons import Reason

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
STATISTICS = ["a", "b", "c", "d"]


def function(
    name: str,
    inputs: Sequence[str],
    nodes: Sequence[NodeProto],
    outputs: Sequence[str] = ("z",),
    attributes: Sequence[str] = (),
    domain: str = "local",
    **more: Any,
) -> FunctionProto:
    return helper.make_function(domain, name, inputs, outputs, nodes, OPSETS, attributes, **more)


def block(**more: Any) -> FunctionProto:
    """A layer and its batch norm; all of their weights are parameters."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "layer"),
        helper.make_node("BatchNormalization", ["y", *STATISTICS], ["z"], "norm"),
    ]
    return function("Block", ["x", "w", *STATISTICS], nodes, **more)


def harmless() -> FunctionProto:
    """An activation that holds no map."""
    return function("Swish", ["x"], [node("Sigmoid", "x", "y"), node("Mul", "x y", "z")])


def node(op_type: str, inputs: str, output: str, **more: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], **more)


def weights(op: Graph) -> list[str]:
    return [op.weight(3, 3, 1, 1), *(op.positive(3) for _ in range(4))]


def call(op: Graph, name: str, *inputs: str, **more: Any) -> str:
    return str(op.node(name, *inputs, domain="local", **more))


def model_of(write: Any, *functions: FunctionProto, ir_version: int = 8) -> onnx.ModelProto:
    model = written(write, ir_version=ir_version)
    model.functions.extend(functions)
    if not any(opset.domain == "local" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("local", 1))
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, known in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(known)
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(4))
    onnx.checker.check_model(model)
    return model


def fold(model: onnx.ModelProto, runs: bool = True) -> bnfold.FoldResult:
    """Fold, and compare in float64 with every call written out and, if it ``runs`` there, in ONNX Runtime."""
    result = bnfold.fold(model)
    folded, feeds = result.model, feeds_for(model)
    assert list(folded.graph.output) == list(model.graph.output)
    assert not differences(expanded(model, "before"), expanded(folded, "after"), feeds)
    if runs:
        onnx.checker.check_model(folded, full_check=True)
        before, after = onnx_runtime(model, feeds), onnx_runtime(folded, feeds)
        assert before is not None
        assert after is not None
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)
    return result


def expanded(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """The model with every call written out under new names; onnx's own inliner forgets defaults."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    functions = {(each.domain, each.name, each.overload): each for each in whole.functions}
    del whole.functions[:]
    names = (f"{prefix}{number}" for number in itertools.count())
    for graph in reversed(list(graphs(whole.graph))):
        nodes = [inner for each in graph.node for inner in _written_out(each, functions, names)]
        del graph.node[:]
        graph.node.extend(nodes)
    return whole


def _written_out(
    outer: NodeProto, functions: dict[tuple[str, str, str], FunctionProto], names: Iterator[str]
) -> list[NodeProto]:
    """The nodes that a call stands for, none of them a call; another node as it is."""
    body = functions.get((outer.domain, outer.op_type, outer.overload))
    if body is None:
        return [outer]
    prefix = next(names)
    given = dict(zip(body.input, [*outer.input, *[""] * len(body.input)], strict=False))
    given |= dict(zip(body.output, outer.output, strict=True)) | {"": ""}
    attributes = {each.name: each for each in (*body.attribute_proto, *outer.attribute)}
    inside = [_in_place(inner, prefix, given, attributes) for inner in body.node]
    return [node for inner in inside for node in _written_out(inner, functions, names)]


def _in_place(
    inner: NodeProto, prefix: str, given: dict[str, str], attributes: dict[str, AttributeProto]
) -> NodeProto:
    """A node of a function where it is called: its tensors and its attributes are the call's."""
    node = NodeProto()
    node.CopyFrom(inner)
    node.input[:] = [given.get(name, f"{prefix}/{name}") for name in inner.input]
    node.output[:] = [given.get(name, f"{prefix}/{name}") for name in inner.output]
    del node.attribute[:]
    for each in inner.attribute:
        if each.ref_attr_name and each.ref_attr_name not in attributes:
            continue
        added = node.attribute.add()
        added.CopyFrom(attributes[each.ref_attr_name] if each.ref_attr_name else each)
        added.name = each.name
        if added.HasField("g"):
            nodes = [_in_place(one, prefix, given, attributes) for one in added.g.node]
            del added.g.node[:]
            added.g.node.extend(nodes)
            for value in added.g.output:
                value.name = given.get(value.name, f"{prefix}/{value.name}")
    return node


def functions_of(model: onnx.ModelProto) -> list[bytes]:
    return [each.SerializeToString(deterministic=True) for each in model.functions]


def as_read(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnx_ir writes it when nothing is done to it."""
    return ir.serde.serialize_model(ir.serde.deserialize_model(model))


def test_called_twice_with_different_weights() -> None:
    """Each call folds into its own weights; the function that holds no map stays byte for byte."""

    def write(op: Graph) -> str:
        y = call(op, "Block", image(op), *weights(op))
        return call(op, "Swish", call(op, "Block", call(op, "Swish", y), *weights(op)))

    model = model_of(write, block(), harmless())
    result = fold(model)
    assert count(result.model) == {"Conv": 2, "Swish": 2}
    assert functions_of(result.model) == functions_of(as_read(model))[1:]
    assert result.report.inlined == ["local::Block"]
    assert result.report.folded == 2


def test_nested() -> None:
    """A function around the one that holds the map is inlined, too."""
    outer = function(
        "Outer",
        ["x", "w", *STATISTICS],
        [node("Block", "x w a b c d", "y", domain="local"), node("Swish", "y", "z", domain="local")],
    )
    model = model_of(lambda op: call(op, "Outer", image(op), *weights(op)), outer, block(), harmless())
    result = fold(model)
    assert count(result.model) == {"Conv": 1, "Swish": 1}
    assert result.report.inlined == ["local::Block", "local::Outer"]


def test_map_that_folds_nowhere() -> None:
    """Where nothing would fold, nothing is inlined, and the batch norm is reported."""
    nodes = [node("Sigmoid", "x", "y"), node("BatchNormalization", "y a b c d", "v"), node("Tanh", "v", "z")]
    model = model_of(
        lambda op: call(op, "Stuck", image(op), *weights(op)[1:]),
        function("Stuck", ["x", *STATISTICS], nodes),
    )
    result = fold(model)
    assert refusals(result) == {"read": Reason.IN_FUNCTION}
    assert result.model.SerializeToString() == as_read(model).SerializeToString()
    assert not result.report.changed


def test_only_the_function_that_folds() -> None:
    """Of two functions that hold maps, the one whose map stays is left byte for byte."""
    nodes = [node("Sigmoid", "x", "y"), node("BatchNormalization", "y a b c d", "v"), node("Tanh", "v", "z")]
    stuck = function("Stuck", ["x", *STATISTICS], nodes)

    def write(op: Graph) -> str:
        y = call(op, "Block", image(op), *weights(op))
        return call(op, "Stuck", y, *weights(op)[1:])

    model = model_of(write, stuck, block())
    result = fold(model)
    assert count(result.model) == {"Conv": 1, "Stuck": 1}
    assert functions_of(result.model) == functions_of(as_read(model))[:1]


def test_map_leaves_the_function() -> None:
    """A map at the end of one function folds into a layer of the graph."""
    nodes = [node("Sigmoid", "x", "y"), node("BatchNormalization", "y a b c d", "z")]

    def write(op: Graph) -> str:
        y = call(op, "Ends", image(op), *weights(op)[1:])
        return op.Conv(y, op.weight(3, 3, 1, 1))

    assert count(fold(model_of(write, function("Ends", ["x", *STATISTICS], nodes))).model) == {
        "Sigmoid": 1,
        "Conv": 1,
    }


def test_parameters_are_attributes() -> None:
    """Attributes that refer to the call's, given or by default, are what the call says."""
    references = [
        node("Conv", "x w", "y"),
        node("BatchNormalization", "y a b c d", "v"),
        node("LeakyRelu", "v", "z"),
    ]
    for each, name, kind in [
        (references[0], "pads", AttributeProto.INTS),
        (references[1], "epsilon", AttributeProto.FLOAT),
        (references[2], "alpha", AttributeProto.FLOAT),
    ]:
        each.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    default = helper.make_attribute("alpha", 0.3)
    body = function(
        "Referring",
        ["x", "w", *STATISTICS],
        references,
        attributes=["pads", "epsilon"],
        attribute_protos=[default],
    )

    def write(op: Graph) -> Sequence[str]:
        first = call(op, "Referring", image(op), *weights(op), pads=[1, 1, 1, 1], epsilon=0.5)
        return first, call(op, "Referring", first, *weights(op), pads=[0, 0, 0, 0], epsilon=0.1, alpha=0.9)

    assert count(fold(model_of(write, body)).model) == {"Conv": 2, "LeakyRelu": 2}


def test_missing_parameters() -> None:
    """A parameter that the call leaves out, or leaves empty, is absent in the body."""
    nodes = [node("Conv", "x w bias", "y"), node("BatchNormalization", "y a b c d", "z")]
    body = function("Biased", ["x", "w", *STATISTICS, "bias"], nodes)

    def write(op: Graph) -> str:
        y = call(op, "Biased", image(op), *weights(op))
        y = call(op, "Biased", y, *weights(op), "")
        return call(op, "Biased", y, *weights(op), op.weight(3))

    assert "BatchNormalization" not in count(fold(model_of(write, body)).model)


def test_function_named_like_an_operator() -> None:
    """A function called Conv, of the standard domain, is inlined for its map, and is no Conv itself."""
    nodes = [node("ConvTranspose", "x w", "y"), node("BatchNormalization", "y a b c d", "z")]
    body = function("Conv", ["x", "w", *STATISTICS], nodes, domain="")
    model = written(lambda op: op.Conv(image(op), *weights(op)))
    model.functions.append(body)
    assert count(fold(model, runs=False).model) == {"ConvTranspose": 1}


def on_a_weight(op: Graph) -> str:
    return op.batch_norm(op.Conv(image(op), op.Identity(op.weight(3, 3, 1, 1))), channels=3)


def on_statistics(op: Graph) -> str:
    y = op.Conv(image(op), op.weight(3, 3, 1, 1))
    return op.BatchNormalization(y, op.Identity(op.positive(3)), *(op.positive(3) for _ in range(3)))


def on_stored_integers(op: Graph) -> str:
    weight = op.DequantizeLinear(op.integers(3, 3, 1, 1), op.const(0.1))
    return op.batch_norm(op.Conv(image(op), weight), channels=3)


def behind_a_map(op: Graph) -> str:
    return op.Identity(op.batch_norm(op.Conv(image(op), op.weight(3, 3, 1, 1))))


def around_two_maps(op: Graph) -> str:
    y = op.Mul(op.Mul(op.Transpose(image(op)), op.const(2.0)), op.const(0.5))
    return op.Transpose(y)


def between_layers(op: Graph) -> str:
    x = image(op)
    return op.Add(op.Conv(x, op.weight(3, 3, 1, 1)), op.Conv(x, op.weight(3, 3, 1, 1)))


@pytest.mark.parametrize(
    ("op_type", "write", "inner"),
    [
        ("Identity", on_a_weight, node("Sin", "a", "z")),
        ("Identity", on_statistics, node("Sin", "a", "z")),
        ("DequantizeLinear", on_stored_integers, helper.make_node("Cast", ["a"], ["z"], to=1)),
        ("Identity", behind_a_map, node("Sin", "a", "z")),
        ("Transpose", around_two_maps, node("Sin", "a", "z")),
        ("Add", between_layers, node("Sub", "a b", "z")),
    ],
)
def test_function_named_like_a_neighbour(op_type: str, write: Any, inner: NodeProto) -> None:
    """No part of bnfold takes a function of the standard domain for the operator that is called so."""
    model = written(write)
    model.functions.append(function(op_type, ["a", "b"], [inner], domain=""))
    assert op_type in count(fold(model, runs=False).model)


@pytest.mark.parametrize(("columns", "transposed"), [(4, 0), (3, 1)])
def test_shapes_behind_others(columns: int, transposed: int) -> None:
    """Behind an operator that nobody knows, weights say how many channels and axes there are."""
    op = Graph(17)
    x = op.node("Mystery", op.input("x", None), domain="vendor")
    image, matrix = op.Conv(x, op.weight(5, 3, 1, 1)), op.Gemm(x, op.weight(3, 4), transB=transposed)
    model = ir.serde.deserialize_model(op.finish([image, matrix]))
    shapes = [infer(model).shape(output) for output in model.graph.outputs]
    assert shapes == [(None, 5, None, None), (None, columns)]


@pytest.mark.parametrize("domain", ["", "vendor"])
@pytest.mark.parametrize("op_type", ["Conv", "Reshape", "Concat"])
def test_shapes_of_others(op_type: str, domain: str) -> None:
    """What is known of an operator's output is not said of a function or a foreign operator called so."""
    op = Graph(17)
    x, known = op.input("x", None), op.Sigmoid(op.input("y", (2, 3)))
    made = {
        "Conv": lambda: op.node("Conv", x, op.weight(4, 3, 1, 1), domain=domain),
        "Reshape": lambda: op.node("Reshape", x, op.ints(2, 3), domain=domain),
        "Concat": lambda: op.Reshape(x, op.node("Concat", op.ints(2, 3), axis=0, domain=domain)),
    }
    model = ir.serde.deserialize_model(op.finish([made[op_type](), known]))
    if not domain:
        body = [node("Mystery", "a b", "z", domain="vendor")]
        model.functions[("", op_type, "")] = ir.serde.deserialize_function(
            function(op_type, ["a", "b"], body, attributes=["axis"], domain="")
        )
    assert [infer(model).shape(output) for output in model.graph.outputs] == [None, (2, 3)]


def test_overloads() -> None:
    """From IR version 10 on functions may share a name: each is what its overload says."""
    other = function(
        "Block", ["x", "w", *STATISTICS], [node("Conv", "x w", "y"), node("Tanh", "y", "z")], overload="plain"
    )

    def write(op: Graph) -> str:
        y = call(op, "Block", image(op), *weights(op))
        y = call(op, "Block", y, *weights(op))
        op.nodes[-1].overload = "plain"
        return y

    model = model_of(write, block(), other, ir_version=10)
    result = fold(model, runs=False)
    assert count(result.model) == {"Conv": 1, "Block": 1}
    assert [each.overload for each in result.model.functions] == ["plain"]


def test_called_in_a_body() -> None:
    """Calls in the branches of an If are inlined where they stand, under names that nobody has."""

    def write(op: Graph) -> str:
        x, given = image(op), weights(op)
        then = branch(
            op, lambda one: call(one, "Block", x, *given), lambda two: two.Tanh(call(two, "Block", x, *given))
        )
        return call(op, "Block", then, *weights(op))

    result = fold(model_of(write, block()))
    assert count(result.model) == {"Conv": 3, "If": 1, "Tanh": 1}


def test_body_in_a_function() -> None:
    """An If within a function goes with it; what its branches capture is the call's."""

    def write(op: Graph) -> str:
        return call(op, "Chooses", image(op), op.input("flag", (), TensorProto.BOOL), *weights(op))

    out = [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)]
    then = helper.make_graph(
        [node("Conv", "x w", "t"), node("BatchNormalization", "t a b c d", "u")], "g", [], out
    )
    other = helper.make_graph([node("Tanh", "x", "u")], "h", [], out)
    nodes = [helper.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=other)]
    result = fold(model_of(write, function("Chooses", ["x", "flag", "w", *STATISTICS], nodes)))
    assert count(result.model) == {"Conv": 1, "If": 1, "Tanh": 1}


@pytest.mark.parametrize("case", ["another opset", "an input is an output"])
def test_function_that_cannot_be_inlined(case: str) -> None:
    """Where inlining would not be the same, or nobody can say, the function stays."""
    body = block()
    if case == "another opset":
        body.opset_import[0].version = 16
    else:
        body.output.append("x")

    def write(op: Graph) -> Any:
        outputs = 1 if case == "another opset" else 2
        return op.node("Block", image(op), *weights(op), domain="local", outputs=outputs)

    model = model_of(write, body)
    result = bnfold.fold(model)
    assert refusals(result) == {"read": Reason.IN_FUNCTION}
    assert result.model.SerializeToString() == as_read(model).SerializeToString()


def test_selection_counts_within_functions() -> None:
    """``skip`` names nodes of functions, too: nothing folds, so nothing is inlined."""
    model = model_of(lambda op: call(op, "Block", image(op), *weights(op)), block())
    assert not bnfold.fold(model, skip="norm").report.changed
    assert bnfold.fold(model, only="norm").report.folded == 1


def test_what_outputs_say_of_themselves() -> None:
    """A graph output made by a call keeps its name, its type and its description."""
    model = model_of(lambda op: call(op, "Block", image(op), *weights(op)), block())
    model.graph.output[0].doc_string = "what it means"
    assert list(bnfold.fold(model).model.graph.output) == list(model.graph.output)
