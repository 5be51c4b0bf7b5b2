"""A tensor computed by other nodes: what a pass describes and the writer carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from bnfold.core.graph.constants import Const
from bnfold.core.planning.plan import Blocked
from bnfold.core.reasons import Refused
from bnfold.core.writing.apply import Change, Writer, declare_like
from bnfold.core.writing.rounding import stored


@dataclass(frozen=True)
class Step:
    """One new node.

    Attributes:
        op_type: its operator.
        inputs: values of the graph, new constants, or the number of an earlier step.
        name: of the node, if no other has it.
        attributes: all attributes.
    """

    op_type: str
    inputs: Sequence[ir.Value | Const | int]
    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def rebuild(writer: Writer, output: ir.Value, steps: Sequence[Step]) -> tuple[list[Change], list[ir.Node]]:
    """Let the last of ``steps`` compute ``output``, under its name, where its producer stands.

    Each step computes the type of ``output``. What computed it before is removed by ``writer.sweep``,
    unless something else reads it.

    Returns:
        The constants that were made, and the new nodes.

    Raises:
        Blocked: a new constant cannot be stored; the model is then untouched.
    """
    old = output.producer()
    assert old is not None
    assert isinstance(old.graph, ir.Graph)
    graph = old.graph
    try:
        made = {id(c): (c, stored(c)) for step in steps for c in step.inputs if isinstance(c, Const)}
    except Refused as refused:
        raise Blocked(refused.reason, old, output) from refused
    nodes: list[ir.Node] = []
    changes: list[Change] = []
    for step in steps:
        name, inputs = writer.fresh(step.name), []
        for index, item in enumerate(step.inputs):
            if isinstance(item, Const):
                value = writer.constant(f"{name}_input_{index}", *made[id(item)])
                changes.append(Change(name, index, None, (value.name, item)))
                inputs.append(value)
            else:
                inputs.append(nodes[item].outputs[0] if isinstance(item, int) else item)
        attributes = ir.convenience.convert_attributes(step.attributes)
        nodes.append(ir.Node("", step.op_type, inputs, attributes, name=name))
        nodes[-1].outputs[0].name = writer.fresh(f"{name}_output")
        graph.insert_before(old, nodes[-1])
        if (dtype := writer.view.facts.dtype(output)) is not None:
            writer.view.facts.dtypes[nodes[-1].outputs[0]] = dtype
    _take_over(writer, output, nodes[-1].outputs[0])
    return changes, nodes


def _take_over(writer: Writer, old: ir.Value, new: ir.Value) -> None:
    """Let everybody who read ``old`` read ``new``, which gets its name."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    declare_like(new, old)
    name, old.name = old.name, writer.fresh("replaced")
    new.name = name
    writer.view.facts.copy(old, new)
    writer.loose.append(old)
