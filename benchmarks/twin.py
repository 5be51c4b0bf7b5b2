"""The twin of a model without its batch norms: the floor under what any folder can reach.

    python benchmarks/twin.py MODEL.onnx TWIN.onnx

The same graph with every affine node bypassed that some weights could absorb. It computes something else, but
no more than what would be left after the best imaginable fold. What stays is not there to be folded: the bias
of a MatMul, and what an activation or a layer normalization is made of (the ½ of a Gelu, the 3 of a
HardSwish, γ and β behind a division by a standard deviation).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from bnfold import files
from bnfold.core.graph.view import View, name_of

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_PRODUCTS = {"Mul", "Div"}
_ROOTS = {"Sqrt", "Reciprocal", "Pow"}


def twin(path: Path) -> tuple[ir.Model, list[str]]:
    """The twin of a model file, and the names of the nodes that it lacks."""
    model = files.load(path)
    view = View(model)
    gone = [node for node in view.nodes() if _is_foldable(view, node)]
    names = [name_of(node) for node in gone]
    for node in gone:
        _bypass(view, node)
    _sweep(model)
    return model, names


def affine_nodes(path: Path) -> tuple[int, int]:
    """How many batch norms a model has, and how many other affine nodes that its twin would lack."""
    view = View(files.load(path))
    norms = [node for node in view.nodes() if _is_batch_norm(node)]
    foldable = [node for node in view.nodes() if _is_foldable(view, node)]
    return len(norms), len([node for node in foldable if not _is_batch_norm(node)])


def _is_batch_norm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and node.domain == ""


def _is_foldable(view: View, node: ir.Node) -> bool:
    if view.affine(node) is None or not _keeps_shape(view, node):
        return False
    if _is_batch_norm(node):
        return True
    if _is_dense_bias(view, node) or _is_normalized(view, node):
        return False
    run = list(_run(view, node))
    per_channel = any(_is_batch_norm(each) or view.read(each)[1].sizes() for each in run)
    return per_channel or _is_scalar_of_a_layer(view, run)


def _keeps_shape(view: View, node: ir.Node) -> bool:
    """Whether readers can do with the input instead: a constant may not enlarge it."""
    before, after = (view.facts.shape(value) for value in (_data(view, node), node.outputs[0]))
    return before is not None and before == after


def _is_dense_bias(view: View, node: ir.Node) -> bool:
    producer = _data(view, node).producer()
    return node.op_type in ("Add", "Sub") and producer is not None and producer.op_type == "MatMul"


def _is_normalized(view: View, node: ir.Node) -> bool:
    """Whether the node is, or stands behind, γ or β of a division by a standard deviation."""
    while view.affine(node) is not None:
        producer = _data(view, node).producer()
        if producer is None:
            return False
        node = producer
    roots = (value.producer() for value in node.inputs if value is not None)
    return node.op_type in _PRODUCTS and any(each is not None and each.op_type in _ROOTS for each in roots)


def _run(view: View, node: ir.Node) -> Iterator[ir.Node]:
    """The run of affine nodes that a node is part of, from its first to its last."""
    producer = _data(view, node).producer()
    while producer is not None and view.affine(producer) is not None and _only_reader(producer) is node:
        node = producer
        producer = _data(view, node).producer()
    following: ir.Node | None = node
    while following is not None and view.affine(following) is not None:
        yield following
        following = _only_reader(following)


def _is_scalar_of_a_layer(view: View, run: list[ir.Node]) -> bool:
    """Whether scalars stand directly behind a layer or in front of layers alone, and scale no activation."""
    producer = _data(view, run[0]).producer()
    if producer is not None and producer.op_type in _LAYERS:
        return _only_reader(producer) is run[0]
    is_activation = producer is not None and producer.op_type in _PRODUCTS
    readers = [node for node, _ in run[-1].outputs[0].uses()]
    return not is_activation and bool(readers) and all(node.op_type in _LAYERS for node in readers)


def _data(view: View, node: ir.Node) -> ir.Value:
    value = node.inputs[view.read(node)[0]]
    assert value is not None
    return value


def _only_reader(node: ir.Node) -> ir.Node | None:
    readers = [each for each, _ in node.outputs[0].uses()]
    alone = len(readers) == 1 and not node.outputs[0].is_graph_output()
    return readers[0] if alone else None


def _bypass(view: View, node: ir.Node) -> None:
    data, output = _data(view, node), node.outputs[0]
    assert node.graph is not None
    if output.is_graph_output():
        kept = ir.Node("", "Identity", [data], name=f"{name_of(node)}_bypass", num_outputs=1)
        node.graph.insert_before(node, kept)
        value, value.name = kept.outputs[0], output.name
        value.type, value.shape = output.type, output.shape
        output.replace_all_uses_with(value, replace_graph_outputs=True)
    else:
        output.replace_all_uses_with(data)
    node.graph.remove(node, safe=True)


def _sweep(model: ir.Model) -> None:
    """Remove what nobody reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def main() -> None:
    """Write the twin of a model and say what it lacks."""
    source, target = map(Path, sys.argv[1:3])
    model, gone = twin(source)
    files.save(model, target)
    print(f"{target}: {len(gone)} nodes bypassed: {', '.join(gone)}")


if __name__ == "__main__":
    main()
