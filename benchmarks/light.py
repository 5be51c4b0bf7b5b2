"""Networks as others ship them, with random weights: the onnx package's light models, written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def make(name: str, path: Path, seed: int = 0) -> None:
    """Write one of them to ``path``: "resnet50" has 102 MB and 53 batch norms.

    Weights are scaled to keep the size of values from layer to layer, so that none overflows or becomes
    denormal, with batch norms and without.
    """
    light = onnx.load(_LIGHT / f"light_{name}.onnx")
    random = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in light.graph.initializer}
    generated = [node for node in light.graph.node if node.op_type == "ConstantOfShape"]
    weights = [_weight(random, shapes[node.input[0]], node.output[0]) for node in generated]
    nodes = [node for node in light.graph.node if node.op_type != "ConstantOfShape"]
    used = {name for node in nodes for name in node.input}
    kept = [t for t in light.graph.initializer if t.name in used]
    stored = {t.name for t in (*kept, *weights)}
    inputs = [i for i in light.graph.input if i.name in used and i.name not in stored]
    graph = onnx.helper.make_graph(nodes, name, inputs, light.graph.output, [*kept, *weights])
    onnx.save(onnx.helper.make_model(graph, opset_imports=light.opset_import, ir_version=8), path)


def _weight(random: np.random.Generator, shape: np.ndarray, name: str) -> onnx.TensorProto:
    if len(shape) == 1:
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return numpy_helper.from_array(values.astype(np.float32), name)
