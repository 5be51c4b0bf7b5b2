"""One tensor in float64: what is left of a difference when the rounding of sums is taken away.

A piece of a float32 model (or narrower) evaluated in float64 keeps the model's rounded weights but rounds
nothing else that shows. Original and candidate then differ by the rounding of the folded weights alone, which
is measured too: every weight of the original is moved to a neighbouring float of its own dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from ..engines.reference import Reference, require_exact
from .graph import constants, reads

Array = NDArray[Any]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
_WEIGHTED |= {"Mul", "Add", "Sub", "Div", "LSTM", "GRU", "RNN"}
_CARRIERS = frozenset({"Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape", "Transpose"})
_CARRIERS |= {"Expand", "DequantizeLinear"}
_INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def evaluate(
    model: ModelProto, folder: Path, name: str, feeds: Mapping[str, Array], *, jitter: bool = False
) -> Array:
    """The value of one tensor in float64.

    Args:
        model: where the tensor is computed.
        folder: where the model's external data lie.
        name: the tensor.
        feeds: values of graph inputs and of inner tensors; what only leads up to them is not evaluated.
        jitter: first move every weight to one of its two neighbouring floats, at random but always alike.

    Raises:
        NotImplementedError: the evaluator is not known to be exact for an operator in front of the tensor.
    """
    piece = _piece(model, name, set(feeds) - {name})
    require_exact(piece)
    onnx.load_external_data_for_model(piece, str(folder))
    if jitter:
        _jitter(piece.graph)
    _widen(piece.graph)
    wide = {each.name: _wide(np.asarray(feeds[each.name])) for each in piece.graph.input}
    return np.asarray(next(iter(Reference(piece).run([name], wide))))


def _piece(model: ModelProto, name: str, given: Collection[str]) -> ModelProto:
    """A model of its own that computes one tensor from those of the ``given`` ones that it needs."""
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if any(output in needed and output not in given for output in node.output):
            nodes.append(node)
            needed.update(reads(node))
    piece = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    piece.graph.name = "piece"
    piece.graph.node.extend(reversed(nodes))
    initializers = (each for each in model.graph.initializer if each.name in needed)
    piece.graph.initializer.extend(initializers)
    piece.graph.input.extend(ValueInfoProto(name=each) for each in given if each in needed)
    piece.graph.output.append(ValueInfoProto(name=name))
    return piece


def _widen(graph: GraphProto) -> None:
    """Turn every float constant and every cast to a float into float64, in place."""
    for tensor in constants(graph):
        array = onnx.numpy_helper.to_array(tensor)
        if _wide(array) is not array:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_wide(array), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and _is_float_type(attribute.i):
                attribute.i = TensorProto.DOUBLE


def _jitter(graph: GraphProto) -> None:
    """Move each float of every weight and bias to one of its neighbours, in place; zeros and scalars stay.

    A bias in int32 moves by one step. Integers of fewer bits stay: no fold rounds them.
    """
    random = np.random.default_rng(0)
    weights = _weights(graph)
    scales = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input[1:2]}
    biases = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for tensor in constants(graph):
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name in biases and array.dtype == np.int32:
            moved = array + random.choice(np.array([-1, 1], np.int32), array.shape)
        elif tensor.name in weights and (tensor.dims or tensor.name in scales) and _is_float(array):
            moved = _neighbours(array, random)
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))


def _weights(graph: GraphProto) -> set[str]:
    """Names of the constants that reach an operator with weights, also through operators that only carry."""
    names: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in _WEIGHTED or (node.op_type in _CARRIERS and node.output[0] in names):
            names.update(node.input)
    return names


def _neighbours(array: Array, random: np.random.Generator) -> Array:
    # Floats of one sign are ordered like their bits, so that one step of the integer is one ulp.
    bits = np.ascontiguousarray(array).view(_INTEGERS[array.dtype.itemsize])
    movable = np.isfinite(array) & (array != 0)
    steps = (2 * random.integers(0, 2, bits.shape) - 1) * movable
    moved = (bits + steps).astype(bits.dtype).view(array.dtype)
    return np.where(np.isfinite(moved), moved, array)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype != np.float64 and _is_float(array) else array


def _is_float(array: Array) -> bool:
    return "float" in array.dtype.name


def _is_float_type(elem_type: int) -> bool:
    return "float" in onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
