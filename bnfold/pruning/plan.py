"""Which channels can go. Pure: it reads a view and returns a description.

Forward, every tensor's known channels are found. Then all channels are taken to be removable, and each
node takes back what it cannot lose: an output its channels, a layer the inputs that vary or that it
cannot carry, an operator that links channels those whose partner has to stay. What is left when
nothing more is taken back is the largest set of channels that can go together. Channels of a tensor never
all go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnfold.core.graph.view import View, fitting
from bnfold.core.planning.plan import Blocked
from bnfold.core.reasons import Reason, Refused, is_silenced
from bnfold.core.site import Site
from bnfold.pruning.affine import Map
from bnfold.pruning.operator import Channels, Mask, Operator, Origin, Removal, registered, size_along
from bnfold.pruning.operators.layers import Layer


@dataclass
class Node:
    """A node whose operator is known, with what it does to channels."""

    site: Site
    operator: Operator
    output: ir.Value
    inputs: dict[int, ir.Value]
    origins: dict[int, Origin | None] = field(default_factory=dict)


@dataclass
class Plan:
    """Which channels go.

    Attributes:
        nodes: every node whose operator is known, in topological order.
        channels: what is known of each tensor's channels.
        gone: for each of these tensors, which channels go.
        unknown: why it is not known what any other node does.
        refusals: why channels that hold one value stay, by tensor and channel.
    """

    nodes: list[Node]
    channels: dict[ir.Value, Channels]
    gone: dict[ir.Value, Mask]
    unknown: dict[ir.Node, Reason]
    refusals: dict[ir.Value, dict[int, Blocked]] = field(default_factory=dict)

    def removal(self, node: Node) -> Removal | None:
        """What goes at a node, None if nothing does."""
        inputs = {i: ~self.gone[v] for i, v in node.inputs.items() if v in self.gone and self.gone[v].any()}
        output = ~self.gone[node.output]
        if not inputs and output.all():
            return None
        known = {i: self.channels[node.inputs[i]].known for i in inputs}
        return Removal(inputs, known, output, self.channels[node.output].axis)


Flat = Callable[[ir.Node, np.typing.NDArray[np.float64]], Mask | None]


def may_remove(view: View, below: float) -> bool:
    """Whether any channel can go: only zeros, in a map's scale or in a layer's weights, begin one's end."""
    return any(_may_begin(view, node, below) for node in view.model.graph)


def _may_begin(view: View, node: ir.Node, below: float) -> bool:
    operator = registered().get(node.op_type) if node.domain == "" else None
    try:
        known = view.affine(node) if view.reads(node) else None
        if known is not None:
            return bool(np.any(np.abs(known[1].scale) <= below))
        with fitting(node):
            return isinstance(operator, Layer) and operator.has_unused(view.site(node))
    except Refused:
        return False


def plan(view: View, flat: Flat, barred: Mapping[ir.Value, Blocked]) -> Plan:
    """Plan which channels of the main graph go.

    Args:
        view: the model.
        flat: for a batch norm and its scale, which channels count as having a scale of 0.
        barred: tensors of which nothing may go, and why.
    """
    channels: dict[ir.Value, Channels] = {}
    nodes: list[Node] = []
    unknown: dict[ir.Node, Reason] = {}
    for each in view.model.graph:
        try:
            nodes.append(_node(view, each, flat, channels))
        except Refused as refused:
            unknown[each] = refused.reason
    made = Plan(nodes, channels, {v: np.ones(len(c.known), bool) for v, c in channels.items()}, unknown)
    _take_back(made, barred)
    return made


def _node(view: View, node: ir.Node, flat: Flat, channels: dict[ir.Value, Channels]) -> Node:
    """A node with what it does to channels, which are noted.

    Raises:
        Refused: if it is not known what that is.
    """
    site, found = view.site(node), _operator(view, node, flat)
    if found is None or site.version == 0 or not view.facts.is_float(node.outputs[0]):
        raise Refused(Reason.NO_RULE)
    with fitting(node):
        made, channels[node.outputs[0]] = _described(site, found, channels)
    return made


def _described(
    site: Site, operator: Operator, channels: Mapping[ir.Value, Channels]
) -> tuple[Node, Channels]:
    inputs = {i: site.input(i) for i in operator.data(site)}
    given = {i: channels[value] for i, value in inputs.items() if value in channels}
    output = operator.channels(site, given)
    made = Node(site, operator, site.node.outputs[0], inputs)
    for index, value in inputs.items():
        known = channels.get(value) or _unknown(site, value, output)
        origin = operator.origin(site, index, known, output)
        if origin is not None or value in channels:
            made.origins[index] = origin
    return made, output


def _operator(view: View, node: ir.Node, flat: Flat) -> Operator | None:
    if node.domain != "":
        return None
    known = view.affine(node)
    if known is None:
        return registered().get(node.op_type)
    index, affine = known
    return Map(index, affine, flat(node, affine.scale) if node.op_type == "BatchNormalization" else None)


def _unknown(site: Site, value: ir.Value, output: Channels) -> Channels:
    """Channels of which nothing is known, along the same axis as the output's."""
    axis = output.axis - len(site.out_shape())
    return Channels(axis % len(site.out_shape()), np.full(size_along(site, value, axis), np.nan))


class _Marks:
    """Which channels have to stay, with the reason for those that hold one value."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.moved = False

    def keep(self, value: ir.Value, which: Mask, why: Blocked | Callable[[int], Blocked]) -> None:
        """Let channels stay."""
        gone = self.plan.gone[value]
        new = gone & which
        if not new.any() or (isinstance(why, Blocked) and is_silenced(why.reason)):
            return
        self.moved = True
        gone &= ~which
        reasons = self.plan.refusals.setdefault(value, {})
        for channel in np.flatnonzero(new & self.plan.channels[value].dead):
            reasons[int(channel)] = why if isinstance(why, Blocked) else why(int(channel))

    def reason(self, value: ir.Value, channel: int, node: Node) -> Blocked:
        """Why a channel stays; where it varies, why it does."""
        known = self.plan.refusals.get(value, {}).get(channel)
        return known or Blocked(node.operator.why, node.site.node, value)


def _take_back(plan: Plan, barred: Mapping[ir.Value, Blocked]) -> None:
    marks, by_node = _Marks(plan), {node.site.node: node for node in plan.nodes}
    for value in plan.gone:
        for why in _demands(value, plan, by_node, barred):
            marks.keep(value, np.ones(len(plan.gone[value]), bool), why)
    for node in plan.nodes:
        _absorb(plan, node, marks)
    marks.moved = True
    while marks.moved:
        marks.moved = False
        for node in (*plan.nodes, *reversed(plan.nodes)):
            _link(plan, node, marks)
        for value, gone in plan.gone.items():
            if len(gone) and gone.all():
                first = np.arange(len(gone)) == 0
                marks.keep(value, first, Blocked(Reason.LAST_CHANNEL, value.producer(), value))


def _demands(
    value: ir.Value, plan: Plan, known: Mapping[ir.Node, Node], barred: Mapping[ir.Value, Blocked]
) -> Iterator[Blocked]:
    """Why a tensor has to stay as it is."""
    if value in barred:
        yield barred[value]
    if value.is_graph_output():
        yield Blocked(Reason.GRAPH_OUTPUT, value.producer(), value)
    if not list(value.uses()):
        yield Blocked(Reason.NO_READER, value.producer(), value)
    for reader, index in value.uses():
        node = known.get(reader)
        if reader.graph is not value.graph:
            yield Blocked(Reason.SUBGRAPH, reader, value)
        elif node is None or index not in node.inputs:
            yield Blocked(plan.unknown.get(reader, Reason.OTHER_OPERAND), reader, value)


def _absorb(plan: Plan, node: Node, marks: _Marks) -> None:
    """A layer keeps the inputs that it cannot do without."""
    for index, origin in node.origins.items():
        value = node.inputs[index]
        if origin is None:
            with fitting(node.site.node):
                may, reason = node.operator.absorbs(node.site, index, plan.channels[value])
            marks.keep(value, ~may, Blocked(reason, node.site.node, value))


def _link(plan: Plan, node: Node, marks: _Marks) -> None:
    """Linked channels stay if their partner does."""
    for index, origin in node.origins.items():
        if origin is None:
            continue
        value, output, here = node.inputs[index], node.output, node.site.node
        linked = origin >= 0
        if value not in plan.gone:
            why = Blocked(Reason.GRAPH_INPUT if value.producer() is None else Reason.NO_RULE, here, value)
            marks.keep(output, linked, why)
            continue
        stay = np.zeros(len(origin), bool)
        stay[linked] = ~plan.gone[value][origin[linked]]
        marks.keep(output, stay, _from(marks, value, origin, node))
        back = np.zeros(len(plan.gone[value]), bool)
        back[origin[linked & ~plan.gone[output]]] = True
        marks.keep(value, back, _back(marks, output, origin, node))


def _from(marks: _Marks, value: ir.Value, origin: Origin, node: Node) -> Callable[[int], Blocked]:
    return lambda channel: marks.reason(value, int(origin[channel]), node)


def _back(marks: _Marks, output: ir.Value, origin: Origin, node: Node) -> Callable[[int], Blocked]:
    def why(channel: int) -> Blocked:
        staying = np.flatnonzero((origin == channel) & ~marks.plan.gone[output])
        return marks.reason(output, int(staying[0]), node)

    return why
