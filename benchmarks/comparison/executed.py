"""What ONNX Runtime executes of a model: two models that come to the same graph take the same time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime
import twin
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

_LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "off": "ORT_DISABLE_ALL"}
# Shapes, axes, pads: what decides how much there is to compute. Weights decide only what comes of it.
_SMALL = 64


def session(path: Path, level: str, write: Path | None = None) -> Any:
    """A session with one thread; with ``write`` it leaves there the graph that it executes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    if write is not None:
        options.optimized_model_filepath = str(write)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def executed(path: Path, level: str) -> str:
    """A digest of the graph that is executed at a level: operators, wiring, attributes, shapes of weights."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "executed.onnx"
        session(path, level, target)
        return written(target)


def written(path: Path) -> str:
    """The same digest of the graph as it is in a file."""
    digest = hashlib.sha256()
    for part in _parts(onnx.load(path).graph, {}):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:16]


def remaining(path: Path) -> int:
    """How many affine nodes are still there once ONNX Runtime has folded what it can, when it loads a model.

    It folds at the basic level, which writes standard operators; what further levels do is fuse.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "loaded.onnx"
        session(path, "basic", target)
        return sum(twin.affine_nodes(target))


def _parts(graph: GraphProto, outer: dict[str, str]) -> Iterator[str]:
    """The graph in words that do not depend on names."""
    names: dict[str, str] = defaultdict(lambda: "?", outer)
    for tensor in graph.initializer:
        names[tensor.name] = _constant(tensor)
    fed = [value.name for value in graph.input if value.name not in names]
    names.update({name: f"input {index}" for index, name in enumerate(fed)})
    for index, node in enumerate(graph.node):
        yield f"{node.domain}.{node.op_type}({', '.join(names[name] for name in node.input)})"
        yield from _attributes(node, names)
        names.update({name: f"{index}.{place}" for place, name in enumerate(node.output)})
    yield f"return {', '.join(names[value.name] for value in graph.output)}"


def _attributes(node: NodeProto, names: dict[str, str]) -> Iterator[str]:
    for attribute in sorted(node.attribute, key=lambda each: each.name):
        if attribute.type == AttributeProto.GRAPH:
            yield from _parts(attribute.g, names)
        elif attribute.type == AttributeProto.TENSOR:
            yield f"{attribute.name}={_constant(attribute.t)}"
        else:
            yield f"{attribute.name}={attribute.SerializeToString(deterministic=True).hex()}"


def _constant(tensor: TensorProto) -> str:
    array = onnx.numpy_helper.to_array(tensor)
    values = array.tolist() if array.size <= _SMALL and array.dtype.kind in "iub" else ""
    return f"{tensor.data_type}{list(tensor.dims)}{values}"
