"""The few ways in which a comparison rewrites a model, in memory and in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from .graph import all_nodes


def expose(model: ModelProto, names: Sequence[str]) -> None:
    """Make the named tensors graph outputs, their types left for the runtime to infer."""
    already = {each.name for each in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in already)


def pin(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Declare the inputs with the shapes of ``feeds``, so that a runtime knows all other shapes."""
    for each in model.graph.input:
        if each.name in feeds:
            kind = each.type.tensor_type
            kind.CopyFrom(onnx.TypeProto.Tensor(elem_type=kind.elem_type))
            kind.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in feeds[each.name].shape
            )


def cut(model: ModelProto, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, str]:
    """Let the readers of each named tensor read a new graph input instead, and expose the tensor.

    Returns:
        for each name the new input that must be fed in its stead, with the dtype of the given value.
    """
    taken = {name for node in all_nodes(model.graph) for name in (*node.input, *node.output)}
    given = {name: _fresh(name, taken) for name in dtypes}
    for node in all_nodes(model.graph):
        for position, name in enumerate(node.input):
            node.input[position] = given.get(name, name)
    for name, dtype in dtypes.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(given[name], kind, None))
    expose(model, list(dtypes))
    return given


def _fresh(name: str, taken: set[str]) -> str:
    fresh = f"{name}/given"
    while fresh in taken:
        fresh += "_"
    taken.add(fresh)
    return fresh
