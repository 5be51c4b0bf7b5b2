"""Batch norms that an exporter wrote as arithmetic: found, and taken apart where that can be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.plan import Blocked, Direction, Plan
from bnfold.core.planning.profit import worthwhile
from bnfold.core.reasons import Refused
from bnfold.statistics.graph.roles import EPSILON, Role, map_of, role_of, sources, variance_of
from bnfold.statistics.graph.slots import Slot, Statistic
from bnfold.training.moments import Floats

MERGED = (
    "Its mean and variance are multiplied into one scale and one shift, so neither can be told; "
    "check the statistics before the exporter folds constants."
)
ONE_FACTOR = (
    "Its variance and gain are one constant, so the variance cannot be told; "
    "check the statistics before the exporter folds constants."
)
SHARED = "A constant of its statistics is shared with other nodes; export the model without sharing."


@dataclass(frozen=True)
class Parts:
    """The statistics of a run, and where they stand."""

    affine: Affine
    mean: Floats
    variance: Floats
    epsilon: float
    mean_slot: Slot
    variance_slot: Slot
    note: str


def runs(view: View) -> Iterator[list[ir.Node]]:
    """Every run of arithmetic in the main graph that scales and shifts per channel."""
    seen: set[ir.Node] = set()
    for node in view.model.graph:
        if node in seen or not _is_arithmetic(view, node):
            continue
        run = [node]
        while (behind := _sole_reader(run[-1])) is not None and _is_arithmetic(view, behind):
            run.append(behind)
        seen.update(run)
        affine = map_of(view, run)
        if affine.linear.sizes() and len(affine.sizes()) == 1 and affine.shifts and _stands_alone(view, run):
            yield run


def separate(view: View, run: list[ir.Node]) -> Parts | str:
    """Tell the statistics of a run apart, or say why that cannot be done.

    Nodes in front that concern neither statistic, such as a layer's bias, are taken off ``run``.
    """
    roles = {root: role_of(view, run, root) for root in sources(view, run)[0]}
    means = [root for root, role in roles.items() if role is Role.MEAN]
    if len(means) != 1:
        return MERGED
    spread = _spread(roles)
    if spread is None:
        return ONE_FACTOR
    while not {means[0], spread} & set(sources(view, run[:1])[0]):
        del run[0]
    holds = _HOLDS[roles[spread]]
    slots = (_slot(view, run, means[0], Statistic.MEAN), _slot(view, run, spread, holds))
    if slots[0] is None or slots[1] is None:
        return SHARED
    mean, stored = (_values(view, root) for root in (means[0], spread))
    variance, epsilon = variance_of(view, run, spread, roles[spread], stored)
    note = "" if roles[spread] is Role.VARIANCE else f"ε is not stored apart; taken as {EPSILON:g}."
    return Parts(map_of(view, run), mean, variance, epsilon, slots[0], slots[1], note)


_HOLDS = {
    Role.VARIANCE: Statistic.VARIANCE,
    Role.DEVIATION: Statistic.DEVIATION,
    Role.FACTOR: Statistic.RECIPROCAL,
}


def _is_arithmetic(view: View, node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return False
    try:
        view.read(node)
    except Refused:
        return False
    return True


def _sole_reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].node.graph is not node.graph:
        return None
    return uses[0].node


def _stands_alone(view: View, run: list[ir.Node]) -> bool:
    """Whether the run is no part of a LayerNormalization or Gelu."""
    try:
        worthwhile(view, Plan(run[0], Direction.DOWN, bypassed=list(run)))
    except Blocked:
        return False
    return True


def _spread(roles: Mapping[ir.Value, Role]) -> ir.Value | None:
    """The constant that holds the variance in one form or another."""
    for role in (Role.VARIANCE, Role.DEVIATION):
        roots = [root for root, each in roles.items() if each is role]
        if roots:
            return roots[0] if len(roots) == 1 else None
    order = [root for root, role in roles.items() if role in (Role.MEAN, Role.FACTOR)]
    return order[1] if len(order) == 3 and roles[order[0]] is Role.MEAN else None


def _values(view: View, root: ir.Value) -> Floats:
    return view.constants.get(root).exact.reshape(-1)


def _slot(view: View, run: list[ir.Node], root: ir.Value, holds: Statistic) -> Slot | None:
    """The inputs through which a constant enters the run, None if other nodes would notice."""
    _, between = sources(view, run)
    readers = [use for use in root.uses() if use.node in between or use.node in run]
    pending = [use.node for use in readers if use.node in between]
    while pending:
        for out in pending.pop().outputs:
            nodes = [use.node for use in out.uses()]
            if out.is_graph_output() or any(node not in between and node not in run for node in nodes):
                return None
            pending.extend(node for node in nodes if node in between)
    return Slot(root, tuple((use.node, use.idx) for use in readers), holds)
