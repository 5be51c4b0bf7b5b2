"""What verification reads from two ONNX graphs, and the few ways in which it rewrites copies of them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from bnfold.errors import UnreadableModelError

# Operators that sum many products or elements, so that a different order of rounding shows.
_SUMS = frozenset(
    "Conv ConvTranspose Gemm MatMul Einsum DeformConv Attention LSTM GRU RNN AveragePool GlobalAveragePool LpPool LRN "
    "GlobalLpPool ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd CumSum "
    "Softmax LogSoftmax InstanceNormalization LayerNormalization GroupNormalization RMSNormalization "
    "LpNormalization MeanVarianceNormalization DFT STFT GridSample Resize Upsample".split()
)
# Operators whose result jumps: rounding in front of them can flip a tie.
_JUMPS = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression Greater GreaterOrEqual Less LessOrEqual Equal Cast CastLike Ceil Floor "
    "Round Sign Hardmax Mod NonZero Unique QuantizeLinear DynamicQuantizeLinear Multinomial Bernoulli".split()
)
_WEIGHTED = frozenset("Conv ConvTranspose Gemm MatMul BatchNormalization Mul Add Sub Div".split())
_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


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
    """One sentence on how the declared signatures differ, or "". Inputs that ``b`` need not be given may differ."""
    outputs = [[each.name for each in graph.output] for graph in (a, b)]
    if outputs[0] != outputs[1]:
        return f"The outputs are {_names(outputs[1])} instead of {_names(outputs[0])}."
    types = [{each.name: _type(each) for each in (*graph.input, *graph.output)} for graph in (a, b)]
    missing = [each.name for each in required_inputs(a) if each.name not in types[1]]
    missing += [each.name for each in required_inputs(b) if each.name not in types[0]]
    if missing:
        return f"Only one of the models has the input {missing[0]!r}."
    for name, kind in types[0].items():
        other = types[1].get(name, kind)
        if other != kind:
            return f"{name!r} is declared as {other} instead of {kind}."
    return ""


def depths(graph: GraphProto, cuts: Sequence[str] = ()) -> dict[str, int]:
    """For every tensor, the most summing operators on a path to it from an input, a constant or a cut."""
    depth: dict[str, int] = {}
    known = set(cuts)
    for node in graph.node:
        behind = max((0 if name in known else depth.get(name, 0) for name in _reads(node)), default=0)
        for name in node.output:
            depth[name] = behind + _sums(node)
    return depth


def shared_cuts(a: ModelProto, b: ModelProto) -> list[str]:
    """Tensors computed in both graphs that stand beside a changed operator or in front of one that jumps.

    Between two such tensors one graph may differ from the other; everywhere else the same operators
    read the same constants. In the order of ``b``.
    """
    wanted: set[str] = set()
    for changed in (_changed(a, b), _changed(b, a)):
        for node in changed:
            wanted.update(_reads(node), node.output)
    for node in (*a.graph.node, *b.graph.node):
        if node.op_type in _JUMPS:
            wanted.update(node.input)
    of_a = {name for node in a.graph.node for name in node.output}
    of_b = dict.fromkeys(name for node in b.graph.node for name in node.output)
    return [name for name in of_b if name and name in of_a and name in wanted]


def expose(model: ModelProto, names: Sequence[str]) -> None:
    """Make the named tensors graph outputs, in place; a runtime infers their types."""
    already = {each.name for each in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in already)


def pin(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Declare the inputs with the shapes of ``feeds``, in place, so that a runtime knows the size of every tensor."""
    for each in model.graph.input:
        if each.name in feeds:
            kind = each.type.tensor_type
            kind.CopyFrom(onnx.TypeProto.Tensor(elem_type=kind.elem_type))
            kind.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in feeds[each.name].shape
            )


def cut(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Let the readers of each named tensor read a new graph input instead, in place, and expose the tensor.

    Returns:
        for each name the new input that must be fed in its stead, with the dtype of the given value.
    """
    taken = {name for node in all_nodes(model.graph) for name in (*node.input, *node.output)}
    given = {name: _fresh(name, taken) for name in values}
    for node in all_nodes(model.graph):
        for position, name in enumerate(node.input):
            node.input[position] = given.get(name, name)
    for name, value in values.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(given[name], kind, None))
    expose(model, list(values))
    return given


def jitter(model: ModelProto, folder: Path, seed: int) -> None:
    """Move each float of every weight and bias to a neighbouring float at random (or leave it), in place.

    Scalars, zeros and what is no finite number stay. External data are loaded into the model.
    """
    onnx.load_external_data_for_model(model, str(folder))
    random = np.random.default_rng(seed)
    weights = {name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input}
    for tensor in constants(model.graph):
        if tensor.name in weights and tensor.dims:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.itemsize in _INTEGERS and "float" in array.dtype.name:
                tensor.CopyFrom(onnx.numpy_helper.from_array(_neighbours(array, random), tensor.name))


def constants(graph: GraphProto) -> Iterator[TensorProto]:
    """The initializers, and the tensors of Constant nodes under the names of their outputs."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
            node.attribute[0].t.name = node.output[0]
            yield node.attribute[0].t


def _neighbours(array: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    # IEEE floats of one sign are ordered like their bits, so one step of the integer is one ulp.
    bits = np.ascontiguousarray(array).view(_INTEGERS[array.dtype.itemsize]).copy()
    movable = np.isfinite(array) & (array != 0)
    bits += (random.integers(-1, 2, bits.shape, dtype=np.int8) * movable).astype(bits.dtype)
    moved = bits.view(array.dtype)
    return np.where(np.isfinite(moved), moved, array)


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


def _reads(node: NodeProto) -> list[str]:
    """What a node reads, also from inside its subgraphs."""
    inner = [name for graph in _subgraphs(node) for each in all_nodes(graph) for name in each.input]
    return [name for name in (*node.input, *inner) if name]


def _sums(node: NodeProto) -> bool:
    foreign = node.domain not in ("", "ai.onnx")
    return foreign or node.op_type in _SUMS or any(True for _ in _subgraphs(node))


def _changed(a: ModelProto, b: ModelProto) -> list[NodeProto]:
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
        if _signature(node) not in twins or any(name in altered for name in _reads(node))
    ]


def _signature(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
    return (node.domain, node.op_type, *node.input, "->", *node.output, *attributes)


def _same(a: TensorProto, b: TensorProto) -> bool:
    return a.data_type == b.data_type and a.SerializeToString() == b.SerializeToString()


def _type(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return kind.removesuffix("_type")
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _fresh(name: str, taken: set[str]) -> str:
    fresh = f"{name}/given"
    while fresh in taken:
        fresh += "_"
    taken.add(fresh)
    return fresh


def _location(tensor: TensorProto) -> str:
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    return next((each.value for each in tensor.external_data if each.key == "location"), "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
