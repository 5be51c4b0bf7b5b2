"""Sparse constants, which onnx_ir would drop, become dense ones."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.errors import InvalidModelError, UnsupportedModelError
from bnfold.files.walk import graphs_of

# A few bytes can claim any size; what would be densified to more than this in all is refused.
_DENSE_LIMIT = 1 << 28


def densified(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The proto itself if it holds nothing sparse, else a copy without.

    Raises:
        InvalidModelError: indices do not fit the values or the shape.
        UnsupportedModelError: it would become too large.
    """
    sparse = (graph.sparse_initializer or any(_literals(graph)) for graph in graphs_of(proto.graph))
    if not any(sparse):
        return proto
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    room = _DENSE_LIMIT
    for graph in graphs_of(copied.graph):
        for each in graph.sparse_initializer:
            graph.initializer.append(_dense(each, room, name))
            room -= len(graph.initializer[-1].raw_data)
        del graph.sparse_initializer[:]
        for attribute in _literals(graph):
            dense = _dense(attribute.sparse_tensor, room, name)
            room -= len(dense.raw_data)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    return copied


def _literals(graph: onnx.GraphProto) -> Iterator[onnx.AttributeProto]:
    """The values of Constant nodes that are written as sparse tensors."""
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                yield attribute


def _dense(sparse: onnx.SparseTensorProto, room: int, name: str) -> onnx.TensorProto:
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise UnsupportedModelError(f"{name} keeps a sparse tensor in a file; store it densely.")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if min(sparse.dims, default=0) < 0 or values.ndim != 1 or indices.dtype != np.int64:
        raise _invalid(sparse, name)
    if prod(sparse.dims) * values.itemsize > room:
        raise UnsupportedModelError(
            f"{name} has sparse tensors, {sparse.values.name!r} among them, of more than "
            f"{_DENSE_LIMIT >> 20} MiB; store them densely."
        )
    dense = np.zeros(list(sparse.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise _invalid(sparse, name) from error
    return numpy_helper.from_array(dense, sparse.values.name)


def _invalid(sparse: onnx.SparseTensorProto, name: str) -> InvalidModelError:
    return InvalidModelError(
        f"{name} has a sparse tensor {sparse.values.name!r} with bad indices; export it again."
    )
