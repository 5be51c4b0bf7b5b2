"""Towards the producers: each is asked to make its tensor what the readers demand.

The walk keeps one map per tensor, "this tensor becomes f(tensor)". A tensor is visited once all its
readers in the walk have been, and all of them must demand the same. It is a loop over graph
positions, so no graph is too deep.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.plan import Blocked, Direction, Plan, at
from bnfold.core.planning.profit import is_cheap_to_copy
from bnfold.core.planning.walk import affine_of
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving, Moved

Use = tuple[ir.Node, int]

# How many combinations of alternatives a walk may try.
_MAX_ATTEMPTS = 64


def go_up(view: View, seed: ir.Node, turning: bool = False, meeting: bool = False) -> Plan:
    """Plan to move the map of ``seed`` into the operators in front of it.

    Raises:
        Blocked: with the reason and the node that refused.
    """
    with at(seed):
        _, affine = view.read(seed)
    plan = send_up(view, Plan(seed, Direction.UP, turning, meeting, bypassed=[seed]), seed, affine)
    with at(seed):
        _check_heir(view, plan)
    return plan


def edit(view: View, plan: Plan, node: ir.Node, params: Mapping[int, Affine]) -> Plan:
    """Note what becomes of a node's constants; raises like ``go_up``.

    For one that is dequantized this is a short walk up of its own.
    """
    walk = _Up(view, plan)
    with at(node):
        for index, affine in params.items():
            walk.edit(node, index, affine)
    return walk.run()


def send_up(view: View, plan: Plan, node: ir.Node, affine: Affine) -> Plan:
    """Extend a plan: the data of the affine ``node`` have to become ``affine`` of what they are."""
    walk = _Up(view, plan)
    with at(node):
        walk.demand(node, view.read(node)[0], affine.collapsed())
    return walk.run()


def _check_heir(view: View, plan: Plan) -> None:
    """If the seed's output is promised to the caller, some tensor must be free to take its place."""
    heir = plan.seed.inputs[view.read(plan.seed)[0]]
    while heir is not None and (node := heir.producer()) in plan.bypassed and node is not None:
        heir = node.inputs[view.read(node)[0]]
    assert heir is not None
    if plan.seed.outputs[0].is_graph_output():
        require(heir.producer() is not None, Reason.GRAPH_INPUT)
        require(heir.graph is plan.seed.graph, Reason.SUBGRAPH)
        require(not heir.is_graph_output() or heir.producer() in plan.copies, Reason.GRAPH_OUTPUT)


class _Up:
    """A walk towards the producers; ``wanted`` holds what each tensor must become, and for whom."""

    def __init__(self, view: View, plan: Plan) -> None:
        self.view = view
        self.plan = plan
        self.wanted: dict[ir.Value, tuple[Affine, list[tuple[ir.Node, int]]]] = {}
        self.choice: tuple[ir.Node, Moved] | None = None

    def run(self) -> Plan:
        """Follow the demands; where one cannot be met, try the latest alternative that is left.

        The alternatives are on a stack of our own, so that no chain of sums is too deep.
        """
        walk: _Up = self
        left: list[_Up] = []
        for attempt in count(1):
            try:
                return walk._follow(left)
            except Blocked:
                if not left or attempt == _MAX_ATTEMPTS:
                    raise
                walk = left.pop()
        raise AssertionError("the loop only ends above")

    def _follow(self, left: list[_Up]) -> Plan:
        """Visit producers, last one first, until nothing is demanded any more."""
        if self.choice is not None:
            self._accept(*self.choice)
        while self.wanted:
            node, outs = self._producer(max(self.wanted, key=self._place))
            if affine_of(self.view, node) is not None:
                with at(node, node.outputs[0]):
                    self._pass(node, outs.only(0))
                continue
            for index in outs:
                self._mark(node.outputs[index])
            self._pull(node, outs, left)
        return self.plan

    def _pass(self, node: ir.Node, affine: Affine) -> None:
        """An affine node vanishes, and what it did is demanded with the rest, or it takes the map."""
        index, own = self.view.read(node)
        joined = (affine @ own).collapsed()
        if self.plan.meets(node, own, affine, joined):
            self._mark(node.outputs[0])
        else:
            self.demand(node, index, joined)

    def _place(self, value: ir.Value) -> float:
        producer = value.producer()
        return -1.0 if producer is None else self.view.position(producer)

    def _mark(self, value: ir.Value) -> None:
        data = self.plan.seed.inputs[self.view.read(self.plan.seed)[0]]
        if value is not data or self.plan.direction is not Direction.UP:
            self.plan.changed.append(value)

    def _producer(self, value: ir.Value) -> tuple[ir.Node, Arriving]:
        """The node that must produce a changed tensor, and what each of its outputs must become."""
        node = value.producer()
        outputs = [value] if node is None else [out for out in node.outputs if out in self.wanted]
        for output in outputs:
            self._check(output, *self.wanted[output])
        assert node is not None
        return node, Arriving({output.index() or 0: self.wanted.pop(output)[0] for output in outputs})

    def _check(self, value: ir.Value, affine: Affine, readers: list[Use]) -> None:
        """Raise what the graph may object to a change of this tensor, or have its producer copied."""
        node, others = value.producer(), self._others(value, affine, readers)
        if (others or value.is_graph_output()) and self._may_copy(node):
            assert node is not None
            self.plan.copies[node] = readers
            return
        with at(node, value):
            require(not value.is_graph_output(), Reason.GRAPH_OUTPUT)
            require(value.graph is self.plan.seed.graph, Reason.SUBGRAPH)
            require(node is not None, Reason.GRAPH_INPUT)
        if others:
            undone = self._take_the_inverse(others, affine)
            with at(others[0][0], value):
                require(False, Reason.INVERSE_FOR_SIBLINGS if undone else Reason.OTHER_READER)

    def _others(self, value: ir.Value, affine: Affine, readers: list[Use]) -> list[Use]:
        """Who still reads the tensor as it is; of a reader that is copied, the copy does."""
        rest = [use for use in self.view.readers(value) if use not in readers]
        readers.extend(joining := [use for use in rest if self._joins(use, affine)])
        copied = [use for use in readers if use[0] in self.plan.copies]
        return [use for use in rest if use not in joining] + copied

    def _joins(self, use: Use, affine: Affine) -> bool:
        """Let another reader that is the very map demanded vanish, too."""
        node, index = use
        if node.outputs[0].is_graph_output() or node.graph is not self.plan.seed.graph:
            return False
        try:
            known = self.view.affine(node)
        except Refused:
            return False
        joins = known is not None and known[0] == index and known[1].same(affine)
        if joins:
            self.plan.path.append(node)
            self.plan.bypassed.append(node)
        return joins

    def _may_copy(self, node: ir.Node | None) -> bool:
        if node is None or node.graph is not self.plan.seed.graph or affine_of(self.view, node):
            return False
        return len(node.outputs) == 1 and is_cheap_to_copy(self.view, node)

    def _take_the_inverse(self, uses: list[Use], affine: Affine) -> bool:
        """Whether the other readers' own constants could undo the map."""
        if not np.all(affine.scale):
            return False
        inverse, arriving = affine.inverse(), {node: Arriving() for node, _ in uses}
        for node, index in uses:
            arriving[node][index] = inverse
        return all(self._takes(node, maps) for node, maps in arriving.items())

    def _takes(self, node: ir.Node, maps: Arriving) -> bool:
        if node.graph is not self.plan.seed.graph:
            return False
        try:
            if affine_of(self.view, node) is not None:
                return True
            site = self.view.site(node)
            with at(node):
                return self.view.rule(site).push(site, maps).output.is_identity
        except (Blocked, Refused):
            return False

    def _pull(self, node: ir.Node, outs: Arriving, left: list[_Up]) -> None:
        """Ask the rule; of several alternatives take the first, and leave the others for later."""
        with at(node, node.outputs[min(outs)]):
            site = self.view.site(node)
            moved = self.view.rule(site).pull_all(site, outs)
            choices = [moved] if isinstance(moved, Moved) else list(moved)
        left.extend(self._fork((node, choice)) for choice in reversed(choices[1:]))
        self._accept(node, choices[0])

    def _fork(self, choice: tuple[ir.Node, Moved]) -> _Up:
        """This walk as it stands, about to take another alternative."""
        other = _Up(self.view, self.plan.copy())
        other.choice = choice
        other.wanted = {value: (f, list(readers)) for value, (f, readers) in self.wanted.items()}
        return other

    def _accept(self, node: ir.Node, moved: Moved) -> None:
        self.plan.take(node, moved)
        value = node.outputs[0]
        with at(node, value):
            require(moved.may_stay or moved.output.is_identity, Reason.NEEDS_NO_SHIFT)
            if not moved.output.is_identity:
                self.plan.stays[value] = moved.output
            for index, affine in moved.params.items():
                self.edit(node, index, affine)
            for index, affine in moved.inputs.items():
                self.demand(node, index, affine)

    def edit(self, node: ir.Node, index: int, affine: Affine) -> None:
        """``node`` needs a constant input to become ``affine`` of what it is.

        A constant that is dequantized keeps its integers: the map goes up to its scale.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and self.view.constants.integers(value) is not None:
            self.demand(node, index, affine)
        else:
            self.plan.params[node, index] = affine

    def demand(self, node: ir.Node, index: int, affine: Affine) -> None:
        """``node`` needs its input to become ``affine`` of what it is."""
        value = node.inputs[index]
        assert value is not None
        if affine.is_identity:
            return
        if self.view.constants.holds(value) and self.view.constants.integers(value) is None:
            self.plan.params[node, index] = affine
            return
        known, readers = self.wanted.setdefault(value, (affine, []))
        require(known.same(affine), Reason.BRANCHES_DIFFER)
        readers.append((node, index))
