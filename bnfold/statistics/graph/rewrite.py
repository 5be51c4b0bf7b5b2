"""New statistics into a model, and training-mode nodes into inference mode."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from bnfold.core.view import name_of
from bnfold.errors import UnsupportedModelError
from bnfold.statistics.graph.layers import Found
from bnfold.statistics.graph.slots import Slot
from bnfold.training import Running
from bnfold.training.moments import Floats


def put(model: ir.Model, found: list[Found], new: Mapping[str, Running]) -> None:
    """Write new statistics, by layer output, over the stored ones.

    A constant that other nodes read too is left to them, and the layer gets one of its own.

    Raises:
        InputsError: a statistic is not finite in the type it is stored in.
    """
    for each in found:
        running = new.get(each.layer.output)
        if running is not None:
            for slot, statistic in ((each.mean, running.mean), (each.variance, running.variance)):
                _replace(model, slot, statistic, each.layer.epsilon)


def _replace(model: ir.Model, slot: Slot, statistic: Floats, epsilon: float) -> None:
    old = ir.convenience.get_const_tensor(slot.value)
    assert old is not None, "a layer's statistics are constants"
    tensor = slot.encoded(statistic, epsilon, old)
    readers = {(use.node, use.idx) for use in slot.value.uses()}
    if slot.value.is_initializer() and readers == set(slot.readers):
        slot.value.const_value = tensor
        return
    name = fresh(names(model), f"{slot.value.name}_recalibrated")
    value = add_initializer(model, name, tensor)
    for node, index in slot.readers:
        node.replace_input_with(index, value)


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Store a constant in the main graph, the way the model's IR version wants it."""
    value = ir.val(name, const_value=tensor)
    model.graph.register_initializer(value)
    if model.ir_version < 4:
        model.graph.inputs.append(value)
    return value


def names(model: ir.Model) -> set[str | None]:
    """The names of all values of the main graph."""
    taken = {value.name for node in model.graph for value in node.outputs}
    return taken | {*model.graph.initializers, *(value.name for value in model.graph.inputs)}


def fresh(taken: set[str | None], name: str) -> str:
    """A name that is not taken yet, and now is."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def to_inference(model: ir.Model) -> int:
    """Let every batch norm in training mode normalize by its running statistics, every Dropout pass all.

    What the nodes returned for training (running statistics that no longer move) becomes a copy of
    what they are given.

    Returns:
        How many nodes were in training mode.

    Raises:
        UnsupportedModelError: something reads the statistics of the batch, which inference has not.
    """
    return sum(_convert(node, model) for graph in model.graphs() for node in list(graph))


def _convert(node: ir.Node, model: ir.Model) -> bool:
    if node.domain != "" or node.op_type not in ("BatchNormalization", "Dropout"):
        return False
    opset = model.graph.opset_imports.get("", 1)
    if node.op_type == "Dropout":
        return _stop_dropping(node, opset)
    extra = [out for out in node.outputs[1:] if out.name]
    before_7 = opset < 7 and node.attributes.get_int("is_test", 0) == 0
    if not extra and not before_7 and not node.attributes.get_int("training_mode", 0):
        return False
    for index, out in enumerate(node.outputs[1:]):
        _pass_through(node, out, 3 + index)
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)
    if opset < 7:
        node.attributes["is_test"] = ir.AttrInt64("is_test", 1)
    return True


def _pass_through(node: ir.Node, out: ir.Value, index: int) -> None:
    """Let readers of a running statistic read the stored one."""
    if not out.uses() and not out.is_graph_output():
        return
    given = node.inputs[index] if index < len(node.inputs) else None
    if given is None or not isinstance(node.graph, ir.Graph):
        raise UnsupportedModelError(
            f"{name_of(node)} returns the statistics of its batch as {out.name!r}, which inference has "
            "not; remove their readers from the model."
        )
    copy = ir.Node("", "Identity", [given], name=f"{out.name}_stored")
    copy.outputs[0].type, copy.outputs[0].shape = out.type, out.shape
    out.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    copy.outputs[0].name, out.name = out.name, None
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
