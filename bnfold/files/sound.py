"""What a file must keep to before anything in it is believed: each defect by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import TensorProto

from bnfold.errors import InvalidModelError, UnreadableModelError, UnsupportedModelError

# The largest tensor that any runtime can hold; what is larger overflows somewhere.
_MAX_BYTES = 1 << 47

# The field in which a tensor's values are where they are not raw bytes.
_FIELDS = {
    "float_data": {TensorProto.FLOAT, TensorProto.COMPLEX64},
    "double_data": {TensorProto.DOUBLE, TensorProto.COMPLEX128},
    "int64_data": {TensorProto.INT64},
    "uint64_data": {TensorProto.UINT32, TensorProto.UINT64},
    "string_data": {TensorProto.STRING},
}
_FIELD_OF: dict[int, str] = {dtype: field for field, dtypes in _FIELDS.items() for dtype in dtypes}
# The fields of each message that hold text; protobuf gives bytes where they are not UTF-8.
_TEXTS = {
    kind: [field for field in message.fields if field.type == FieldDescriptor.TYPE_STRING]
    for kind, message in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.items()
}
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}


def check(proto: onnx.ModelProto, name: str) -> None:
    """See that a model is one, and that nothing in it would be lost or lies about its size.

    Raises:
        UnreadableModelError: it is no model.
        InvalidModelError: it breaks the ONNX specification.
        UnsupportedModelError: it holds what would be lost on the way.
    """
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise UnreadableModelError(f"{name} is not an ONNX model; export it again.")
    if proto.training_info:
        raise UnsupportedModelError(
            f"{name} carries training_info, which folding would make wrong; export it for inference."
        )
    _check_opsets(proto, name)
    _check_known([proto, *proto.opset_import, *proto.functions], name)
    for graph in graphs_of(proto.graph):
        _check_names(graph, name)
        _check_known([graph, *graph.input, *graph.output, *graph.value_info], name)
    for node in nodes_of(proto):
        _check_known([node, *node.attribute], name)
        _check_attributes(node, name)
    for tensor in tensors_of(proto):
        _check_tensor(tensor, name)


def _check_opsets(proto: onnx.ModelProto, name: str) -> None:
    known = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= known:
            raise InvalidModelError(
                f"{name} uses opset {opset.version}, and the installed onnx knows 1 to {known}; "
                "update onnx or convert the model."
            )


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    yield from _bodies(graph.node)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def nodes_of(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: in its graph, in bodies, in functions."""
    for graph in _all_graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from graphs_of(proto.graph)
    for function in proto.functions:
        yield from _bodies(function.node)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever it is written."""
    for graph in _all_graphs(proto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes_of(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        yield from _unread(node)


def _check_attributes(node: onnx.NodeProto, name: str) -> None:
    names = {attribute.name for attribute in node.attribute}
    if len(names) < len(node.attribute):
        problem = "two attributes of one name"
    elif any(not attribute.type for attribute in node.attribute):
        problem = "an attribute without a type"
    elif any(tensor.data_location == TensorProto.EXTERNAL for tensor in _unread(node)):
        problem = "a list of tensors, or a sparse one, in a file"
    else:
        return
    raise InvalidModelError(
        f"{name} has a node {node.name!r} ({node.op_type}) with {problem}; export it again."
    )


def _unread(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """The tensors of a node that no reader looks for in a file."""
    for attribute in node.attribute:
        yield from attribute.tensors
        sparse_ones = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*sparse_ones, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def _check_names(graph: onnx.GraphProto, name: str) -> None:
    """One name, one value: an initializer may share the name of a graph input, and nothing else may."""
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    made = [output for node in graph.node for output in node.output if output]
    for names in (inputs, stored, [*made, *{*inputs, *stored}]):
        if len(set(names)) < len(names):
            seen: set[str] = set()
            twice = next(each for each in names if each in seen or seen.add(each))  # type: ignore[func-returns-value]
            raise InvalidModelError(f"{name} gives the name {twice!r} to two values; export it again.")


def _check_known(messages: Iterable[Message], name: str) -> None:
    """Fields that a newer onnx has would be lost, and text that is none cannot be written again."""
    for message in messages:
        kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
        if len(UnknownFieldSet(message)):
            raise UnsupportedModelError(
                f"{name} has a {kind} with fields that the installed onnx does not know; update onnx."
            )
        for field in _TEXTS[message.DESCRIPTOR.name]:
            value = getattr(message, field.name)
            if any(not isinstance(each, str) for each in (value if field.is_repeated else [value])):
                raise InvalidModelError(
                    f"{name} has a {kind} whose {field.name} is not UTF-8; export it again."
                )


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    """The values that are declared are there, as many of them as the dimensions say."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    count = prod(tensor.dims)
    if dtype == ir.DataType.UNDEFINED:
        problem = f"is of type {tensor.data_type}, which the installed onnx does not know"
    elif min(tensor.dims, default=0) < 0:
        problem = f"has a negative dimension in {list(tensor.dims)}"
    elif dtype != ir.DataType.STRING and count * dtype.bitwidth > 8 * _MAX_BYTES:
        problem = f"claims the impossible size {list(tensor.dims)}"
    elif tensor.HasField("segment"):
        problem = "is stored in segments, which nothing reads"
    else:
        problem = _misfit(tensor, dtype, count)
    if problem:
        raise InvalidModelError(f"{name} has a tensor {tensor.name!r} that {problem}; export it again.")
    _check_known([tensor], name)


def _misfit(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> str:
    """What is wrong with the amount of data, or ""."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return _misplaced(tensor, dtype)
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            return "holds strings as raw bytes"
        held, wanted = len(tensor.raw_data), -(-count * dtype.bitwidth // 8)
        return "" if held == wanted else f"holds {held} bytes where its shape needs {wanted}"
    field = _FIELD_OF.get(tensor.data_type, "int32_data")
    held, wanted = len(getattr(tensor, field)), count
    if dtype != ir.DataType.STRING and dtype.bitwidth < 8:
        wanted = -(-count * dtype.bitwidth // 8)
    elif tensor.data_type in _COMPLEX:
        wanted = 2 * count
    return "" if held == wanted else f"holds {held} values where its shape needs {wanted}"


def _misplaced(tensor: onnx.TensorProto, dtype: ir.DataType) -> str:
    """What is wrong with where external data are said to be, or "" (the file itself is looked at later)."""
    entries: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    if dtype == ir.DataType.STRING:
        return "keeps strings in a file"
    if not entries.get("location"):
        return "does not say in which file its data are"
    for key in ("offset", "length"):
        if not entries.get(key, "0").isdecimal() or len(entries.get(key, "0")) > 18:
            return f"has {key} {entries[key]!r} in its data file"
    return ""
