"""The value of one node: a literal, or computed by onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

# Before opset 7 these broadcast by attributes, which no evaluator of today does.
_BROADCAST_BY_ATTRIBUTE = frozenset({"Add", "Div", "Equal", "Mul", "Pow", "Sub"})

# From here on ends mean the end to onnx, and to ONNX Runtime the beginning where a Slice runs backwards.
_END = np.iinfo(np.int32).max

# The attributes in which a Constant node may hold its value; a tensor has a type of its own.
_LITERALS = {
    "value": None,
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}


def evaluate(node: ir.Node, feeds: Sequence[npt.NDArray[Any] | None], opset: int) -> npt.NDArray[Any] | None:
    """The first output of a node for these inputs (None for an absent one).

    Returns:
        The value, or None where the evaluator cannot tell.
    """
    if node.op_type in _BROADCAST_BY_ATTRIBUTE and opset < 7:
        return None
    try:
        if node.op_type == "Unsqueeze":
            return _unsqueezed(node, feeds)
        if node.op_type == "Slice" and _runs_backwards(*feeds):
            return _sliced_backwards(feeds)
        if node.op_type == "Squeeze" and any(axes is not None and not axes.size for axes in feeds[1:]):
            return None  # all axes to ONNX Runtime, none to onnx
        return _run(node, feeds, opset)
    except Exception:  # whatever it raises, the value is left to the run time
        return None


def _run(node: ir.Node, feeds: Sequence[npt.NDArray[Any] | None], opset: int) -> npt.NDArray[Any]:
    proto = ir.serde.serialize_node(node)
    fed = {name: array for name, array in zip(proto.input, feeds, strict=True) if array is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in fed],
        [onnx.helper.make_value_info(proto.output[0], onnx.TypeProto())],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    (result,) = ReferenceEvaluator(model).run(None, fed)
    return np.asarray(result)


def _unsqueezed(node: ir.Node, feeds: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """Insert all axes at once; onnx 1.23's evaluator inserts them one after another before opset 13."""
    given = node.attributes.get("axes")
    axes = feeds[1] if len(feeds) > 1 else None if given is None else np.array(given.value)
    if feeds[0] is None or axes is None:
        return None
    return np.expand_dims(feeds[0], tuple(int(axis) for axis in axes.reshape(-1)))


def _runs_backwards(*feeds: npt.NDArray[Any] | None) -> bool:
    steps = feeds[4] if len(feeds) > 4 else None
    return steps is not None and bool((steps < 0).any())


def _sliced_backwards(feeds: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """A Slice with negative steps; onnx 1.23's evaluator loses the first entry where one begins before it."""
    data, starts, ends, axes, steps = feeds
    if data is None or starts is None or ends is None or steps is None or (ends >= _END).any():
        return None
    where = range(len(starts)) if axes is None else axes.tolist()
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(where, starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        size, last = data.shape[axis], data.shape[axis] - (step < 0)
        start, end = (bound + size if bound < 0 else bound for bound in (start, end))
        first, stop = min(max(start, 0), last), min(max(end, -(step < 0)), last)
        index[axis] = slice(max(first, 0), None if stop < 0 else stop, step)
    return data[tuple(index)]


def literal(node: ir.Node) -> ir.TensorProtocol | None:
    """The value of a Constant node; onnx_ir's own helper would name the tensor, which is the caller's."""
    for name, dtype in _LITERALS.items() if node.domain == "" else ():
        if (attribute := node.attributes.get(name)) is not None and not attribute.is_ref():
            value = attribute.value
            return value if dtype is None else ir.tensor(np.array(value, dtype.numpy()), dtype)
    return None
