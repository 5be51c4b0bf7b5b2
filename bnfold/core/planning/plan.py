"""What a walk finds: everything that is to be done to give one map a home, or who refused and why.

Termination: every plan lowers the measure (3 for a BatchNormalization, 2 for another affine node)
and never raises the number of nodes, so planning until nothing moves ends.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from enum import Enum

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import MISFITS, View, misfit
from bnfold.core.planning.leftover import leftover, weight
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Becomes, Moved


class Direction(Enum):
    """Which way a map goes."""

    UP = "up"
    DOWN = "down"
    SPLIT = "in parts"
    MERGE = "merge"


class Blocked(Exception):  # noqa: N818  like Refused, an answer
    """A refusal and the node that gave it."""

    def __init__(self, reason: Reason, node: ir.Node | None, value: ir.Value | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node
        self.value = value

    def __str__(self) -> str:
        return self.reason.text


@dataclass
class Plan:
    """What is to be done to give one map a home; nothing is done yet.

    Attributes:
        seed: the affine node the walk began at.
        direction: the way it went.
        turning: whether an activation on the way may become an operator with constants of its own.
        meeting: whether an affine node on the way takes the map, rather than going on with it.
        params: the map on each constant input that changes.
        becomes: nodes that turn into another operator.
        bypassed: affine nodes that vanish; their readers read their data input.
        restated: affine nodes that stay with another map.
        stays: maps left behind a value as a node of their own.
        copies: nodes of which an untouched copy goes on to serve other readers, and the readers
            (node and input) that the changed one serves.
        changed: tensors whose content is none that the original model has under any name.
        path: the nodes the map went through or into, in the order of the walk.
    """

    seed: ir.Node
    direction: Direction
    turning: bool = False
    meeting: bool = False
    params: dict[tuple[ir.Node, int], Affine] = field(default_factory=dict)
    becomes: dict[ir.Node, Becomes] = field(default_factory=dict)
    bypassed: list[ir.Node] = field(default_factory=list)
    restated: dict[ir.Node, Affine] = field(default_factory=dict)
    stays: dict[ir.Value, Affine] = field(default_factory=dict)
    copies: dict[ir.Node, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    changed: list[ir.Value] = field(default_factory=list)
    path: list[ir.Node] = field(default_factory=list)

    def copy(self) -> Plan:
        """A plan that can grow apart from this one."""
        twin = copy.copy(self)
        for name, item in vars(self).items():
            if isinstance(item, (dict, list)):
                setattr(twin, name, item.copy())
        return twin

    def joined(self, other: Plan) -> Plan:
        """This plan with what another one does elsewhere."""
        twin = self.copy()
        for name, items in vars(other).items():
            if isinstance(items, dict):
                getattr(twin, name).update(items)
            elif isinstance(items, list):
                getattr(twin, name).extend(items)
        return twin

    def meets(self, node: ir.Node, own: Affine, coming: Affine, joined: Affine) -> bool:
        """Let an affine node take the map that comes its way; False if the walk goes on with both.

        Raises:
            Refused: ``MIXED_AXES`` if one constant for both would be larger than two.
        """
        self.path.append(node)
        if not self.meeting or joined.is_identity:
            self.bypassed.append(node)
            return False
        require(joined.volume <= own.volume + coming.volume, Reason.MIXED_AXES)
        self.restated[node] = joined
        return True

    def touched(self) -> set[ir.Node]:
        """Every node the plan would change."""
        nodes = {node for node, _ in self.params} | set(self.becomes) | set(self.restated)
        return nodes | set(self.bypassed)

    def take(self, node: ir.Node, moved: Moved) -> None:
        """Note what a rule said of one node, but for its parameters."""
        turns = moved.becomes is not None and bool(moved.becomes.constants)
        with at(node):
            require(self.turning or not turns, Reason.ACTIVATION_TURNS)
        self.path.append(node)
        if moved.becomes is not None:
            self.becomes[node] = moved.becomes


class at:  # noqa: N801  reads as a word; a class, as walks enter thousands of these
    """Name the node at which a condition did not hold, or whose own data do not fit each other."""

    __slots__ = ("node", "value")

    def __init__(self, node: ir.Node | None, value: ir.Value | None = None) -> None:
        self.node = node
        self.value = value

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            raise Blocked(error.reason, self.node, self.value) from error
        if isinstance(error, MISFITS) and self.node is not None:
            raise misfit(self.node, error) from error


def gaining(view: View, plan: Plan) -> Plan:
    """Hold a plan to the termination argument: fewer or equal nodes, and a lower measure.

    Raises:
        Blocked: ``COSTS_A_NODE`` or ``NO_GAIN``.
    """
    before = [weight(node.op_type) for node in (*plan.bypassed, *plan.restated)]
    after = []
    nodes = {node: node.outputs[0] for node in plan.restated}
    values = [*plan.stays.items(), *((nodes[node], f) for node, f in plan.restated.items())]
    for value, affine in values:
        with at(value.producer()):
            left = leftover(affine, value, view.facts, view.opset)
            if left is None:
                raise Refused(Reason.COSTS_A_NODE)
            after.append(left.weight)
    with at(plan.path[-1] if plan.path else plan.seed):
        more = sum(becomes.then is not None for becomes in plan.becomes.values())
        require(len(after) + more <= len(before), Reason.COSTS_A_NODE)
        require(len(after) + len(plan.copies) <= len(before), Reason.OTHER_READER)
        require(sum(after) < sum(before), Reason.NO_GAIN)
    return plan
