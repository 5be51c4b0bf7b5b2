"""What a comparison reads from two ONNX graphs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from bnfold.errors import UnreadableModelError

# Operators that sum many products or elements, so that a different order of rounding shows.
_SUMMING = """
    Conv ConvTranspose DeformConv Gemm MatMul Einsum Attention LSTM GRU RNN AveragePool GlobalAveragePool
    LpPool GlobalLpPool LRN CumSum DFT STFT ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceProd
    ReduceLogSum ReduceLogSumExp Softmax LogSoftmax InstanceNormalization LayerNormalization
    GroupNormalization RMSNormalization LpNormalization MeanVarianceNormalization GridSample Resize Upsample
"""
# Operators whose result jumps: rounding in front of them can flip a tie.
_JUMPING = """
    ArgMax ArgMin TopK NonMaxSuppression Hardmax NonZero Unique Multinomial Bernoulli Greater GreaterOrEqual
    Less LessOrEqual Equal Sign Mod Cast CastLike Ceil Floor Round QuantizeLinear DynamicQuantizeLinear
"""
_SUMS = frozenset(_SUMMING.split())
_JUMPS = frozenset(_JUMPING.split())


def read_model(path: Path) -> ModelProto:
    """The model at a path, its external data checked to exist but not loaded.

    Raises:
        UnreadableModelError: the file is no ONNX model, or a file of its external data is missing.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise UnreadableModelError(f"{path} is no ONNX model ({_first_line(error)}).") from error
    if not model.graph.output or not model.ir_version:
        raise UnreadableModelError(f"{path} is empty or no ONNX model; export it again.")
    for tensor in model.graph.initializer:
        place = _location(tensor)
        if place and not (path.parent / place).is_file():
            raise UnreadableModelError(
                f"{path} needs its external data file {place}; put it beside the model."
            )
    return model


def required_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs a caller has to give: those without an initializer of the same name."""
    given = {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [each for each in graph.input if each.name not in given]


def signature_difference(a: GraphProto, b: GraphProto) -> str:
    """One sentence on how the declared signatures differ, or "". Inputs that need not be given may differ."""
    outputs = [[each.name for each in graph.output] for graph in (a, b)]
    if outputs[0] != outputs[1]:
        return f"The outputs are {_names(outputs[1])} instead of {_names(outputs[0])}."
    types = [{each.name: _type(each) for each in (*graph.input, *graph.output)} for graph in (a, b)]
    missing = [each.name for each in required_inputs(a) if each.name not in types[1]]
    known = {each.name for each in required_inputs(a)}
    missing += [each.name for each in required_inputs(b) if each.name not in known]
    if missing:
        return f"Only one of the models takes the input {missing[0]!r}."
    for name, kind in types[0].items():
        other = types[1].get(name, kind)
        if other != kind:
            return f"{name!r} is declared as {other} instead of {kind}."
    return ""


def sums(graph: GraphProto, cuts: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """The lengths of the sums on the path with most sums to each tensor, from inputs and cuts."""
    shapes = {tensor.name: list(tensor.dims) for tensor in constants(graph)}
    behind: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        paths = [() if name in cuts else behind.get(name, ()) for name in reads(node)]
        own = (_sum_length(node, shapes),) if _sums(node) else ()
        for name in node.output:
            behind[name] = max(paths, key=len, default=()) + own
    return behind


def shared_cuts(a: ModelProto, b: ModelProto) -> list[str]:
    """Tensors computed in both graphs that stand beside a changed operator or in front of one that jumps.

    Between two such tensors one graph may differ from the other; everywhere else the same operators
    read the same constants. In the order of ``b``.
    """
    wanted: set[str] = set()
    for nodes in (changed(a, b), changed(b, a)):
        for node in nodes:
            wanted.update(reads(node), node.output)
    for node in (*a.graph.node, *b.graph.node):
        if node.op_type in _JUMPS:
            wanted.update(node.input)
    of_a = {name for node in a.graph.node for name in node.output}
    of_b = dict.fromkeys(name for node in b.graph.node for name in node.output)
    return [name for name in of_b if name and name in of_a and name in wanted]


def constants(graph: GraphProto) -> Iterator[TensorProto]:
    """The initializers, and the tensors of Constant and ConstantOfShape nodes named like their outputs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute if node.op_type in ("Constant", "ConstantOfShape") else ():
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.name = node.output[0]
                yield attribute.t


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from all_nodes(inner)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """What a node reads, also from inside its subgraphs."""
    inner = [name for graph in _subgraphs(node) for each in all_nodes(graph) for name in each.input]
    return [name for name in (*node.input, *inner) if name]


def _sums(node: NodeProto) -> bool:
    foreign = node.domain not in ("", "ai.onnx")
    return foreign or node.op_type in _SUMS or any(True for _ in _subgraphs(node))


def _sum_length(node: NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """How many products an element of the output sums up; a large number where that is unknown."""
    weight = next((shapes[name] for name in node.input if len(shapes.get(name, ())) > 1), None)
    if weight is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 1 << 30
    return math.prod(weight[1:]) if node.op_type == "Conv" else max(weight)


def changed(a: ModelProto, b: ModelProto) -> list[NodeProto]:
    """The nodes of ``a`` without a twin in ``b`` that reads the same names and the same constants."""
    twins = {_signature(node) for node in b.graph.node}
    theirs = {tensor.name: tensor for tensor in b.graph.initializer}
    altered = {
        tensor.name
        for tensor in a.graph.initializer
        if tensor.name not in theirs or not _same(tensor, theirs[tensor.name])
    }
    return [
        node
        for node in a.graph.node
        if _signature(node) not in twins or any(name in altered for name in reads(node))
    ]


def _signature(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
    return (node.domain, node.op_type, *node.input, "->", *node.output, *attributes)


def _same(a: TensorProto, b: TensorProto) -> bool:
    if TensorProto.EXTERNAL in (a.data_location, b.data_location):
        return False  # the same place beside two models may hold different data
    return a.data_type == b.data_type and a.SerializeToString() == b.SerializeToString()


def _type(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return kind.removesuffix("_type")
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _location(tensor: TensorProto) -> str:
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    return next((each.value for each in tensor.external_data if each.key == "location"), "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
