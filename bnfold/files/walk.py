"""Everything in a model's proto, wherever it is: bodies, functions, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    yield from _bodies(graph.node)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def nodes_by_opset(proto: onnx.ModelProto) -> Iterator[tuple[int, Iterable[onnx.NodeProto]]]:
    """Every node of a model, in its graph, in bodies and in functions, with the standard opset it is of."""
    for graph in graphs_of(proto.graph):
        yield _opset(proto.opset_import), graph.node
    for function in proto.functions:
        opset = _opset(function.opset_import)
        yield opset, function.node
        for graph in _bodies(function.node):
            yield opset, graph.node


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return next((each.version for each in imports if each.domain in ("", "ai.onnx")), 1)


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
    for _, nodes in nodes_by_opset(proto):
        for node in nodes:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
            yield from unread(node)


def unread(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """The tensors of a node that no reader looks for in a file."""
    for attribute in node.attribute:
        yield from attribute.tensors
        sparse_ones = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*sparse_ones, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
