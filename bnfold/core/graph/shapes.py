"""Shapes and types as inference proves them: from graph inputs and constants, believing nothing else."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from bnfold.core.graph.evaluate import evaluate, literal

Dim = int | str | None
Shape = tuple[Dim, ...]

# Constants up to this size are shown to inference in full: shapes and axes live in them, weights do not.
_SMALL_BYTES = 4096

# A tensor that claims more values than this is taken as one of unknown shape.
_MAX_VALUES = 1 << 31

_FIRST_INFERRED = 6

# Before this opset axes are not to be counted from the end, though runtimes do.
_AXES_FROM_THE_END = 11

# From this opset on the sizes of a Split are an input.
_SIZES_AS_INPUT = 13

# How often inference starts anew behind operators that it does not know.
_MAX_PASSES = 16

# A domain of which inference knows nothing.
_UNKNOWN = "unknown"

_KNOWN = frozenset({ir.DataType.INT64, ir.DataType.FLOAT})
_AXES_MAKERS = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Identity", "Mul", "Range", "Reshape"}
    | {"Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass
class Facts:
    """What is known of each value of a model; nothing of it is written into the model.

    Attributes:
        shapes: inferred shapes.
        dtypes: inferred element types.
        vast: values that would have more elements than any that is worked with; they have no shape here.
    """

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    dtypes: dict[ir.Value, ir.DataType] = field(default_factory=dict)
    vast: set[ir.Value] = field(default_factory=set)

    def shape(self, value: ir.Value) -> Shape | None:
        """The inferred shape, or None where even the rank is unknown."""
        return self.shapes.get(value)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The inferred element type, or None."""
        return self.dtypes.get(value)

    def is_float(self, value: ir.Value) -> bool:
        """Whether the value is known to hold one of the types bnfold computes in."""
        return self.dtypes.get(value) in FLOATS

    def may_be_float(self, value: ir.Value) -> bool:
        """Whether the value is not known to hold anything else."""
        return self.dtypes.get(value) in (None, *FLOATS)

    def copy(self, source: ir.Value, target: ir.Value) -> None:
        """Let ``target`` have the shape and type of ``source``."""
        if source in self.shapes:
            self.shapes[target] = self.shapes[source]
        if source in self.dtypes:
            self.dtypes[target] = self.dtypes[source]

    def _learn(self, value: ir.Value, known: onnx.TypeProto.Tensor) -> None:
        if known.elem_type:
            self.dtypes[value] = ir.DataType(known.elem_type)
        if known.HasField("shape"):
            shape = tuple(_dim(dim) for dim in known.shape.dim)
            # A few bytes can claim any size; a map over it would have to be held in memory.
            if prod(dim for dim in shape if isinstance(dim, int)) <= _MAX_VALUES:
                self.shapes[value] = shape
            else:
                self.vast.add(value)


def opset_of(model: ir.Model) -> int:
    """The version of the standard operator set, whichever of its two names the model uses."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def is_standard(node: ir.Node, functions: Container[ir.OperatorIdentifier]) -> bool:
    """Whether the node is an operator of the standard set; a function of the model called so is none."""
    return node.domain == "" and node.op_identifier() not in functions


def infer(model: ir.Model) -> Facts:
    """Infer shapes and types of every value of the graph and its subgraphs, in memory.

    Intermediate and output declarations are dropped first: only graph inputs and constants speak.
    An initializer that a caller may override contributes what the input says of it and nothing else.
    """
    facts = Facts()
    said: dict[str, onnx.ValueInfoProto] = {}
    for _ in range(_MAX_PASSES):
        sized, skeleton = _sized(model, facts), _skeleton(model, facts)
        _say(skeleton.graph, said)
        # onnx raises whatever its C++ side throws; what is known then are inputs and constants.
        with suppress(Exception):
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        _learn(facts, model.graph, skeleton.graph)
        implied = dict(_implied(model, facts))
        if not implied and (_is_complete(model, facts) or _sized(model, facts) == sized):
            break
        said |= implied
    return facts


def _say(graph: onnx.GraphProto, said: dict[str, onnx.ValueInfoProto]) -> None:
    """Declare values, those that the graph returns where it does."""
    outputs = {info.name: info for info in graph.output}
    for name, info in said.items():
        if name in outputs:
            outputs[name].CopyFrom(info)
        else:
            graph.value_info.append(info)


def _sized(model: ir.Model, facts: Facts) -> int:
    """How many nodes give a shape that is known: constants, from which inference may begin anew."""
    nodes = (node for node in model.graph if node.op_type == "Shape" and is_standard(node, model.functions))
    return sum(static_shape(node, facts) is not None for node in nodes)


def _is_complete(model: ir.Model, facts: Facts) -> bool:
    """Whether no size is open."""
    shapes = (facts.shape(value) for node in model.graph for value in node.outputs)
    return all(shape is not None and all(isinstance(dim, int) for dim in shape) for shape in shapes)


def static_shape(node: ir.Node, facts: Facts) -> ir.TensorProtocol | None:
    """What a Shape node gives, None where a size that it asks for is open."""
    shape = None if node.inputs[0] is None else facts.shape(node.inputs[0])
    if shape is None:
        return None
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    wanted = [dim for dim in shape[start:end] if isinstance(dim, int)]
    known = len(wanted) == len(shape[start:end])
    return ir.tensor(np.array(wanted, np.int64)) if known else None


def _implied(model: ir.Model, facts: Facts) -> Iterator[tuple[str, onnx.ValueInfoProto]]:
    """What follows from what is known, where inference itself does not see it."""
    for node in model.graph:
        if not is_standard(node, model.functions):
            continue
        output, reshapes = node.outputs[0], node.op_type == "Reshape"
        shape = _by_count(node, facts) if reshapes else _by_weight(node, facts)
        typed = None if shape is None else node.inputs[0 if reshapes else 1]
        dtype = None if typed is None else facts.dtype(typed)
        if shape is not None and dtype is not None:
            info = onnx.helper.make_tensor_value_info(output.name or "", int(dtype), shape)
            yield output.name or "", info


def _by_weight(node: ir.Node, facts: Facts) -> Shape | None:
    """What weights say of a layer's output behind an operator that inference does not know."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or node.outputs[0] in facts.shapes or node.op_type not in ("Conv", "Gemm"):
        return None
    shape = facts.shape(weight)
    if shape is None or len(shape) < 2:
        return None
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0
    return (None, shape[0] if by_rows else shape[1], *(None for _ in shape[2:]))


def _by_count(node: ir.Node, facts: Facts) -> Shape | None:
    """The one open size behind a Reshape, as the number of elements tells it: (N, 4, 4) as (N, ?)."""
    before = None if node.inputs[0] is None else facts.shape(node.inputs[0])
    after = facts.shape(node.outputs[0])
    if before is None or after is None:
        return None
    rest = list(before)
    for size in after:
        if isinstance(size, str) and size in rest:
            rest.remove(size)
    unknown = [axis for axis, size in enumerate(after) if not isinstance(size, int) and size not in before]
    counted = [size for size in rest if isinstance(size, int)]
    known = prod(size for size in after if isinstance(size, int))
    if len(unknown) != 1 or len(counted) < len(rest) or known == 0 or prod(counted) % known:
        return None
    return tuple(prod(counted) // known if axis in unknown else size for axis, size in enumerate(after))


def _learn(facts: Facts, graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Take over what was inferred for a graph, and for the bodies of its nodes."""
    types = {info.name: info.type for info in (*proto.output, *proto.value_info, *proto.input)}
    stored = {tensor.name: tensor for tensor in proto.initializer}
    values = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *values):
        name = value.name or ""
        if name in types:
            facts._learn(value, types[name].tensor_type)
        elif name in stored:
            facts.shapes[value] = tuple(stored[name].dims)
            facts.dtypes[value] = ir.DataType(stored[name].data_type)
    twins = {tuple(node.output): node for node in proto.node if any(a.HasField("g") for a in node.attribute)}
    for node in graph:
        for name, body in _bodies(node):
            twin = twins.get(tuple(value.name or "" for value in node.outputs))
            inner = {} if twin is None else {attribute.name: attribute.g for attribute in twin.attribute}
            if name in inner:
                _learn(facts, body, inner[name])


def _bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()


def _skeleton(model: ir.Model, facts: Facts) -> onnx.ModelProto:
    """The model without its weights' data and without what it says of intermediate values.

    A large constant becomes an input of its type and shape, which is all that inference needs of it; a
    shape that is known already becomes a constant.
    """
    graph = onnx.GraphProto(name="skeleton")
    names = (f"unnamed dimension {number}" for number in count())
    for value in model.graph.inputs:
        if model.ir_version >= 4 or not value.is_initializer():
            graph.input.append(_named(ir.serde.serialize_value(value), names))
    declared = {info.name for info in graph.input}
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.name not in declared:
            _add_constant(graph, value.name or "", value.const_value)
    known = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in _KNOWN}
    for node in model.graph:
        standard = is_standard(node, model.functions)
        tensor = _axes(node, known, facts, opset_of(model)) if standard else None
        if tensor is not None:
            _add_constant(graph, node.outputs[0].name or "", tensor)
            if tensor.dtype in _KNOWN and tensor.nbytes <= _SMALL_BYTES:
                known[graph.initializer[-1].name] = graph.initializer[-1]
        elif (split := _as_split(node, known, model)) is not None:
            graph.node.append(split)
        elif not _is_ambiguous(node, known, opset_of(model)):
            graph.node.append(_undeclared(ir.serde.serialize_node(node), model.functions))
    graph.output.extend(onnx.ValueInfoProto(name=value.name or "") for value in model.graph.outputs)
    # onnx has no inference for most first versions; what changed up to the sixth are not shapes.
    opsets = {**model.graph.opset_imports, "": max(opset_of(model), _FIRST_INFERRED), _UNKNOWN: 1}
    opsets.pop("ai.onnx", None)
    functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
    for node in chain.from_iterable(function.node for function in functions):
        _undeclared(node, model.functions)
    return onnx.ModelProto(
        ir_version=10,
        graph=graph,
        opset_import=[onnx.helper.make_opsetid(*opset) for opset in opsets.items()],
        functions=functions,
    )


def _is_ambiguous(node: ir.Node, known: dict[str, onnx.TensorProto], opset: int) -> bool:
    """Whether runtimes and onnx's inference disagree on the axes that vanish or appear.

    To squeeze an empty list of axes is all or nothing; before opset 11 inference takes none from the end.
    """
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return False
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        return axes.name in known and 0 in known[axes.name].dims
    return opset < _AXES_FROM_THE_END and any(axis < 0 for axis in node.attributes.get_ints("axes", ()))


def _as_split(node: ir.Node, known: dict[str, onnx.TensorProto], model: ir.Model) -> onnx.NodeProto | None:
    """A part of a sequence as the output of a Split: onnx keeps one shape for all parts, which may differ."""
    sequence = node.inputs[0] if node.op_type == "SequenceAt" and is_standard(node, model.functions) else None
    made = None if sequence is None else sequence.producer()
    if made is None or made.op_type != "SplitToSequence" or not is_standard(made, model.functions):
        return None
    names = [value.name or "" for value in (*made.inputs, node.inputs[1]) if value is not None]
    if len(names) < 3 or not known.keys() >= set(names[1:]) or opset_of(model) < _SIZES_AS_INPUT:
        return None
    sizes, place = (numpy_helper.to_array(known[name]) for name in names[1:])
    if sizes.ndim != 1 or not -len(sizes) <= place.item() < len(sizes):
        return None
    outputs = [f"{node.outputs[0].name} beside {index}" for index in range(len(sizes))]
    outputs[place.item()] = node.outputs[0].name or ""
    return onnx.helper.make_node("Split", names[:2], outputs, axis=made.attributes.get_int("axis", 0))


def _add_constant(graph: onnx.GraphProto, name: str, tensor: ir.TensorProtocol) -> None:
    if tensor.nbytes > _SMALL_BYTES:
        shape = list(tensor.shape.numpy())
        graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))
    else:
        graph.initializer.append(ir.serde.serialize_tensor(tensor))
        graph.initializer[-1].name = name


def _axes(
    node: ir.Node, known: dict[str, onnx.TensorProto], facts: Facts, opset: int
) -> ir.TensorProtocol | None:
    """The constant that a node makes, if it is a literal, or one made from small constants.

    Inference itself follows axes, shapes and pads through few operators, and the scales of a Resize through
    none; exporters write more.
    """
    if node.op_type == "Constant":
        return literal(node)
    if node.op_type == "Shape" and (shape := static_shape(node, facts)) is not None:
        return shape
    names = [value.name or "" for value in node.inputs if value is not None]
    if node.op_type not in _AXES_MAKERS or not names or not known.keys() >= set(names):
        return None
    feeds = [None if v is None else numpy_helper.to_array(known[v.name or ""]) for v in node.inputs]
    if _claims(node, feeds) > _SMALL_BYTES:
        return None
    result = evaluate(node, feeds, opset)
    return None if result is None else ir.tensor(result)


def _claims(node: ir.Node, feeds: list[npt.NDArray[Any] | None]) -> float:
    """How many elements a node makes whose inputs do not hold as many; without end where nobody can tell."""
    if node.op_type not in ("ConstantOfShape", "Range"):
        return 0
    given = [feed.ravel().tolist() for feed in feeds if feed is not None]
    if node.op_type == "ConstantOfShape":
        return int(prod(given[0]))
    if [len(each) for each in given] != [1, 1, 1]:
        return inf
    (start,), (limit,), (delta,) = given
    return float((limit - start) / delta) if delta else 0


def _named(info: onnx.ValueInfoProto, names: Iterator[str]) -> onnx.ValueInfoProto:
    """Give nameless dimensions names, so that inference can tell that two are the same."""
    for dim in info.type.tensor_type.shape.dim:
        if _dim(dim) is None:
            dim.dim_param = next(names)
    return info


def _undeclared(node: onnx.NodeProto, functions: Container[ir.OperatorIdentifier]) -> onnx.NodeProto:
    """Take out what the bodies of a node say of their own values, and what onnx would take the node for."""
    if node.domain == "" and (node.domain, node.op_type, node.overload) in functions:
        node.domain = _UNKNOWN  # onnx infers the operator that is called so
    if _may_overshoot(node):
        node.domain = _UNKNOWN  # up to opset 21 onnx counts a window that no runtime does
    if (node.domain, node.op_type) == ("", "GroupNormalization"):
        # onnx 1.23 has no inference for it; its output is like its first input.
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    for attribute in node.attribute:
        if node.op_type == "Squeeze" and attribute.name == "axes":
            # The order of axes means nothing, though onnx 1.23's inference takes them one after another.
            attribute.ints[:] = sorted(attribute.ints)
        if attribute.HasField("g"):
            del attribute.g.value_info[:]
            for output in attribute.g.output:
                output.type.tensor_type.ClearField("shape")
            for inner in attribute.g.node:
                _undeclared(inner, functions)
    return node


def _may_overshoot(node: onnx.NodeProto) -> bool:
    """Whether a pooling that rounds up may have room for a window that begins behind the input."""
    given = {attribute.name: attribute.ints for attribute in node.attribute}
    rounds_up = any(each.name == "ceil_mode" and (each.i or each.ref_attr_name) for each in node.attribute)
    kernel = given.get("kernel_shape") or []
    ones, zeros = [1] * len(kernel), [0] * (2 * len(kernel))
    strides, dilations = given.get("strides") or ones, given.get("dilations") or ones
    spans = zip(kernel, strides, dilations, (given.get("pads") or zeros)[len(kernel) :], strict=False)
    return rounds_up and any((k - 1) * d + 1 < s + pad for k, s, d, pad in spans)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None
