"""Shapes and types as inference proves them: from graph inputs and constants, believing nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import onnx
import onnx_ir as ir

Dim = int | str | None
Shape = tuple[Dim, ...]

# Constants up to this size are shown to inference in full: shapes and axes live in them, weights do not.
_SMALL_BYTES = 4096

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass
class Facts:
    """What is known of each value of a model; nothing of it is written into the model."""

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    dtypes: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def shape(self, value: ir.Value) -> Shape | None:
        """The inferred shape, or None where even the rank is unknown."""
        return self.shapes.get(value)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The inferred element type, or None."""
        return self.dtypes.get(value)

    def is_float(self, value: ir.Value) -> bool:
        """Whether the value is known to hold one of the types bnfold computes in."""
        return self.dtypes.get(value) in FLOATS

    def copy(self, source: ir.Value, target: ir.Value) -> None:
        """Let ``target`` have the shape and type of ``source``."""
        if source in self.shapes:
            self.shapes[target] = self.shapes[source]
        if source in self.dtypes:
            self.dtypes[target] = self.dtypes[source]

    def _learn(self, value: ir.Value, source: ir.Value) -> None:
        if source.shape is not None:
            self.shapes[value] = tuple(_dim(dim) for dim in source.shape)
        if source.dtype is not None:
            self.dtypes[value] = source.dtype


def infer(model: ir.Model) -> Facts:
    """Infer shapes and types of every value of the graph and its subgraphs, in memory.

    Intermediate and output declarations are dropped first: only graph inputs and constants speak.
    An initializer that a caller may override contributes its type and shape but not its data.
    """
    facts = Facts()
    skeleton = _skeleton(model)
    try:
        proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(skeleton), data_prop=True)
    except Exception:  # onnx raises whatever its C++ side throws; what is left is the skeleton
        inferred = skeleton
    else:
        inferred = ir.serde.deserialize_model(proto)
    for graph, twin in zip(model.graphs(), inferred.graphs(), strict=True):
        for value, source in _pairs(graph, twin):
            facts._learn(value, source)
    return facts


def _pairs(graph: ir.Graph, twin: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield value, ir.val(name, value.const_value.dtype, value.const_value.shape.numpy())
    yield from zip(graph.inputs, twin.inputs, strict=False)
    for node, other in zip(graph, twin, strict=True):
        yield from zip(node.outputs, other.outputs, strict=True)


def _skeleton(model: ir.Model) -> ir.Model:
    """Copy the model without its weights' data and without what it says of intermediate values."""
    skeleton = model.clone()
    names = (f"bnfold_dim_{number}" for number in count())
    for given in skeleton.graph.inputs:
        if given.shape is not None:
            given.shape = ir.Shape([next(names) if _dim(dim) is None else dim for dim in given.shape])
        if given.is_initializer() and model.ir_version >= 4:
            skeleton.graph.initializers.pop(given.name or "")
    for graph in skeleton.graphs():
        for stored in graph.initializers.values():
            stored.const_value = _without_data(stored.const_value)
        for node in graph:
            for output in node.outputs:
                output.shape = None
            value = node.attributes.get("value")
            if node.op_type == "Constant" and value and value.type == ir.AttributeType.TENSOR:
                node.attributes["value"] = ir.AttrTensor("value", _without_data(value.as_tensor()))
    return skeleton


def _without_data(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol:
    assert tensor is not None
    if tensor.nbytes <= _SMALL_BYTES:
        return tensor
    # A reference to data that are never read: dimensions and type are all that inference needs.
    return ir.ExternalTensor(
        "none", None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
    )


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value
