"""Nodes that were exported in training mode, made to do what they do at inference."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.core.graph.view import name_of
from bnfold.errors import UnsupportedModelError


def to_inference(model: ir.Model) -> int:
    """Let every batch norm in training mode normalize by its running statistics, every Dropout pass all.

    What the nodes returned for training (running statistics that no longer move) becomes a copy of
    what they are given.

    Returns:
        How many nodes were in training mode.

    Raises:
        UnsupportedModelError: something reads the statistics of the batch, which inference has not; the
            model is unchanged then.
    """
    nodes = list(_nodes(model))
    for node, _ in nodes:
        for index, out in _read_outputs(node):
            _require_stored(node, out, index)
    return sum(_convert(node, opset) for node, opset in nodes)


def _nodes(model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
    """Every batch norm and Dropout with the version of its operator set, functions included."""
    graphs = [(graph, model.graph.opset_imports) for graph in model.graphs()]
    for body, imports in (*graphs, *((each, each.opset_imports) for each in model.functions.values())):
        for node in body:
            if node.domain == "" and node.op_type in ("BatchNormalization", "Dropout"):
                yield node, imports.get("", imports.get("ai.onnx", 1))


def _read_outputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The outputs for training that somebody reads, each with the input that inference has in its place."""
    if node.op_type == "BatchNormalization":
        for index, out in enumerate(node.outputs[1:], 3):
            if out.uses() or out.is_graph_output():
                yield index, out


def _require_stored(node: ir.Node, out: ir.Value, index: int) -> None:
    given = node.inputs[index] if index < len(node.inputs) else None
    if given is None or not isinstance(node.graph, ir.Graph):
        raise UnsupportedModelError(
            f"{name_of(node)} returns the statistics of its batch as {out.name!r}, which inference has "
            "not; remove their readers from the model."
        )


def _convert(node: ir.Node, opset: int) -> bool:
    if node.op_type == "Dropout":
        return _stop_dropping(node, opset)
    extra = [out for out in node.outputs[1:] if out.name]
    before_7 = opset < 7 and node.attributes.get_int("is_test", 0) == 0
    if not extra and not before_7 and not node.attributes.get_int("training_mode", 0):
        return False
    for index, out in list(_read_outputs(node)):
        _pass_through(node, out, index)
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)
    if opset < 7:
        node.attributes["is_test"] = ir.AttrInt64("is_test", 1)
    return True


def _pass_through(node: ir.Node, out: ir.Value, index: int) -> None:
    """Let readers of a running statistic read the stored one."""
    copy = ir.Node("", "Identity", [node.inputs[index]], name=f"{out.name}_stored")
    copy.outputs[0].type, copy.outputs[0].shape = out.type, out.shape
    out.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    copy.outputs[0].name, out.name = out.name, None
    assert node.graph is not None
    node.graph.insert_after(node, copy)


def _stop_dropping(node: ir.Node, opset: int) -> bool:
    if opset < 7:
        training = node.attributes.get_int("is_test", 0) == 0
        node.attributes["is_test"] = ir.AttrInt64("is_test", 1)
        return training
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if mode is None else ir.convenience.get_const_tensor(mode)
    if mode is None or (known is not None and not known.numpy().any()):
        return False
    node.resize_inputs(2)
    return True
