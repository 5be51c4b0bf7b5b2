"""New statistics into a model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

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
