"""Removes channels that hold one value from the layers around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Array
from bnfold.core.engine import Fold, reported
from bnfold.core.graph.constants import Const
from bnfold.core.graph.shapes import FLOATS
from bnfold.core.graph.view import View, fitting, name_of
from bnfold.core.planning.plan import Blocked
from bnfold.core.reasons import Reason, Refused
from bnfold.core.writing.apply import Change, Writer
from bnfold.core.writing.rounding import stored
from bnfold.pruning.operator import Cut, Mask
from bnfold.pruning.operators.layers import Layer
from bnfold.pruning.plan import Node, Plan, may_remove, plan
from bnfold.report import Channels, Report


@dataclass
class Pruner:
    """Removes dead channels all over one model.

    Attributes:
        view: the model.
        below: channels of a batch norm count as dead where |γ/σ| is not above this.
        report: what became of them.
        folds: the constants that were replaced.
        flattened: for each batch norm that lost channels by ``below`` alone, by the name that its output
            had, the channels whose γ counts as 0.
    """

    view: View
    below: float = 0.0
    report: Report = field(default_factory=Report)
    folds: list[Fold] = field(default_factory=list)
    flattened: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> None:
        """Plan for the whole model at once, then carry it out."""
        self.report.nodes_before = self.view.operators()
        if may_remove(self.view, self.below):
            self._prune()
        self.report.nodes_after = self.view.operators()

    def _prune(self) -> None:
        writer = Writer(self.view)
        found, cuts = self._planned()
        self._tell(found)
        self.report.work_before = sum(_work(node, None) for node in found.nodes)
        self.report.work_after = sum(_work(node, found) for node in found.nodes)
        for node, (cut, data) in cuts.items():
            changes = _carry_out(writer, found.nodes[node], cut, data)
            self.folds.append(Fold(name_of(found.nodes[node].site.node), "prune", None, changes))
        for value, gone in found.gone.items():
            if gone.any():
                _narrow(writer, value, found.channels[value].axis, int((~gone).sum()))
        writer.sweep()

    def _planned(self) -> tuple[Plan, dict[int, tuple[Cut, dict[int, ir.TensorProtocol]]]]:
        """A plan all of whose constants can be stored, and these; what cannot be is kept out of it."""
        barred = {
            node.outputs[0]: Blocked(Reason.EXCLUDED, node)
            for node in self.view.model.graph
            if not self.view.chosen(name_of(node))
        }
        spared: dict[ir.Node, set[int]] = {}
        while True:
            found = plan(self.view, lambda node, scale: self._flat(node, scale, spared), barred)
            if self._spare(found, spared):
                continue
            try:
                return found, _cuts(found)
            except Blocked as blocked:
                node = blocked.node
                assert node is not None
                for value in (*node.inputs, *node.outputs):
                    if value is not None:
                        barred[value] = blocked

    def _flat(self, node: ir.Node, scale: Array, spared: dict[ir.Node, set[int]]) -> Mask | None:
        if not self.below:
            return None
        flat = np.abs(scale.reshape(-1)) <= self.below
        flat[list(spared.get(node, ()))] = False
        return flat

    def _spare(self, found: Plan, spared: dict[ir.Node, set[int]]) -> bool:
        """Take no channel for constant that stays anyway; whether there is any such channel."""
        self.flattened, more = {}, False
        for node in found.nodes:
            flat = getattr(node.operator, "flat", None)
            if flat is None:
                continue
            exact = node.operator.affine.scale.reshape(-1) == 0  # type: ignore[attr-defined]
            gone = found.gone[node.output]
            stay = set(np.flatnonzero(flat & ~exact & ~gone).tolist())
            if stay:
                spared.setdefault(node.site.node, set()).update(stay)
                more = True
            if (approximate := np.flatnonzero(flat & ~exact & gone)).size:
                self.flattened[node.output.name or ""] = approximate.tolist()
        return more

    def _tell(self, found: Plan) -> None:
        for node in found.nodes:
            if not (isinstance(node.operator, Layer) or node.site.node.op_type == "BatchNormalization"):
                continue
            gone, dead = found.gone[node.output], found.channels[node.output].dead
            kept = np.flatnonzero(dead & ~gone).tolist()
            if not gone.any() and not kept:
                continue
            why = found.refusals.get(node.output, {})
            refusals = dict.fromkeys(reported("prune", why[channel]) for channel in kept if channel in why)
            name = name_of(node.site.node)
            self.report.channels.append(
                Channels(
                    name,
                    node.site.node.op_type,
                    len(gone),
                    tuple(np.flatnonzero(gone).tolist()),
                    tuple(kept),
                    tuple(self.flattened.get(node.output.name or "", ())),
                    tuple(refusals),
                )
            )


def _cuts(found: Plan) -> dict[int, tuple[Cut, dict[int, ir.TensorProtocol]]]:
    """What becomes of each node's constants, rounded, before anything is changed."""
    made: dict[int, tuple[Cut, dict[int, ir.TensorProtocol]]] = {}
    for number, node in enumerate(found.nodes):
        removal = found.removal(node)
        if removal is None:
            continue
        try:
            with fitting(node.site.node):
                cut = node.operator.cut(node.site, removal)
            shift = {} if cut.shift is None else {-1: _shift(node, cut.shift)}
            consts = {**cut.constants, **shift}
            made[number] = cut, {index: _stored(const) for index, const in consts.items()}
        except Refused as refused:
            raise Blocked(refused.reason, node.site.node) from refused
    return made


def _stored(const: Const) -> ir.TensorProtocol:
    return stored(const) if const.dtype in FLOATS else ir.tensor(const.base)


def _shift(node: Node, shift: Array) -> Const:
    return Const(shift.shape, node.site.const(1).dtype, shift)


def _carry_out(writer: Writer, node: Node, cut: Cut, data: dict[int, ir.TensorProtocol]) -> list[Change]:
    here = node.site.node
    changes = [writer.replace(here, index, (const, data[index])) for index, const in cut.constants.items()]
    if cut.group is not None:
        here.attributes["group"] = ir.AttrInt64("group", cut.group)
    if cut.shift is not None:
        value = writer.constant(f"{node.output.name}_shift", _shift(node, cut.shift), data[-1])
        writer.insert_behind(node.output, "Add", [value], {})
    return changes


def _is_needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _narrow(writer: Writer, value: ir.Value, axis: int, size: int) -> None:
    """A tensor with fewer channels has another content, so another name."""
    producer = value.producer()
    unread = [] if producer is None else [each for each in producer.outputs if not _is_needed(each)]
    for each in dict.fromkeys([value, *unread]):  # the mask of a Dropout is as narrow as its output
        each.name = writer.fresh(f"{each.name}_pruned")
    if value.shape is not None and axis < len(value.shape):
        dims = list(value.shape)
        dims[axis] = size
        value.shape = ir.Shape(dims)


def _work(node: Node, found: Plan | None) -> int:
    """Multiplications of a layer on one input, open dimensions counting as 1."""
    if not isinstance(node.operator, Layer):
        return 0
    weight, (axis, outputs, inputs) = node.site.const(1), node.operator.axes(node.site)
    sizes = list(weight.shape)
    shape = [size if isinstance(size, int) else 1 for size in node.site.facts.shape(node.output) or ()]
    if found is not None:
        sizes[outputs] -= int(found.gone[node.output].sum())
        if 0 in node.origins and node.origins[0] is None and node.inputs[0] in found.gone:
            sizes[inputs] -= int(found.gone[node.inputs[0]].sum())
    return prod(sizes) * prod(size for i, size in enumerate(shape) if i != axis % len(shape))
