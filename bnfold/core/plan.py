"""Where an affine map could go. The planner walks up or down and returns a plan or a refusal.

A walk keeps one map per tensor: "this tensor becomes f(tensor)". Up, the maps are demands that
readers make of a producer; a tensor is visited once all its readers in the walk have been, and all
of them must demand the same. Down, the maps arrive at readers; a node is visited once everything in
front of it has been. Both are loops over a heap of graph positions, so no graph is too deep.

Termination: every plan lowers the measure (3 for a BatchNormalization, 2 for another affine node)
and never raises the number of nodes, so planning until nothing moves ends.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.leftover import leftover, weight
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving, Becomes, Moved
from bnfold.core.view import View, readers_of

# How many combinations of alternatives a walk may try.
_MAX_ATTEMPTS = 64

# Through how many layers without bias a shift is handed on in search of a home.
_MAX_DEPTH = 20


class Direction(Enum):
    """Which way a map goes."""

    UP = "up"
    DOWN = "down"
    MERGE = "merge"


class Blocked(Exception):  # noqa: N818  like Refused, an answer
    """A refusal and the node that gave it."""

    def __init__(self, reason: Reason, node: ir.Node | None, value: ir.Value | None = None) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.node = node
        self.value = value


@dataclass
class Plan:
    """What is to be done to give one map a home; nothing is done yet.

    Attributes:
        seed: the affine node the walk began at.
        direction: the way it went.
        params: the map on each constant input that changes.
        becomes: nodes that turn into another operator.
        bypassed: affine nodes that vanish; their readers read their data input.
        restated: affine nodes that stay with another map.
        stays: maps left behind a value as a node of their own.
        changed: tensors whose content is none that the original model has under any name.
        path: the nodes the map went through or into, in the order of the walk.
    """

    seed: ir.Node
    direction: Direction
    params: dict[tuple[ir.Node, int], Affine] = field(default_factory=dict)
    becomes: dict[ir.Node, Becomes] = field(default_factory=dict)
    bypassed: list[ir.Node] = field(default_factory=list)
    restated: dict[ir.Node, Affine] = field(default_factory=dict)
    stays: dict[ir.Value, Affine] = field(default_factory=dict)
    changed: list[ir.Value] = field(default_factory=list)
    path: list[ir.Node] = field(default_factory=list)

    def copy(self) -> Plan:
        """A plan that can grow apart from this one."""
        twin = copy.copy(self)
        for name, item in vars(self).items():
            if isinstance(item, (dict, list)):
                setattr(twin, name, item.copy())
        return twin

    def touched(self) -> set[ir.Node]:
        """Every node the plan would change."""
        nodes = {node for node, _ in self.params} | set(self.becomes) | set(self.restated)
        return nodes | set(self.bypassed)

    def take(self, node: ir.Node, moved: Moved) -> None:
        """Note what a rule said of one node."""
        self.path.append(node)
        for index, edit in moved.params.items():
            self.params[node, index] = edit
        if moved.becomes is not None:
            self.becomes[node] = moved.becomes


@contextmanager
def _at(node: ir.Node | None, value: ir.Value | None = None) -> Iterator[None]:
    """Name the node at which a condition did not hold."""
    try:
        yield
    except Refused as refused:
        raise Blocked(refused.reason, node, value) from refused


def _affine(view: View, node: ir.Node) -> tuple[int, Affine] | None:
    """What an affine node is, None for any other; raises where it must be left alone."""
    with _at(node):
        return view.affine(node)


def go_up(view: View, seed: ir.Node) -> Plan:
    """Plan to move the map of ``seed`` into the operators in front of it.

    Raises:
        Blocked: with the reason and the node that refused.
    """
    walk = _Up(view, Plan(seed, Direction.UP))
    with _at(seed):
        walk.bypass(seed, Affine.of())
    plan = walk.run()
    with _at(seed):
        _check_heir(view, plan)
    return plan


def go_down(view: View, seed: ir.Node) -> Plan:
    """Plan to move the map of ``seed`` into the operators behind it; raises like ``go_up``."""
    walk = _Down(view, Plan(seed, Direction.DOWN))
    with _at(seed):
        _, affine = view.read(seed)
    walk.plan.bypassed.append(seed)
    walk.spread(seed.outputs[0], affine)
    return walk.run()


def merge(view: View, seed: ir.Node) -> Plan:
    """Plan to state the whole run of affine nodes that begins at ``seed`` as one; raises like ``go_up``."""
    plan = Plan(seed, Direction.MERGE)
    with _at(seed):
        _, affine = view.read(seed)
        require(not view.portable, Reason.NO_GAIN)
    node, run = seed, [seed]
    while (behind := _next_of_run(view, node)) is not None:
        joined = (behind[1] @ affine).collapsed()
        if joined.volume > affine.volume + behind[1].volume:
            break
        node, affine = behind[0], joined
        run.append(node)
    with _at(seed):
        require(len(run) > 1, Reason.NO_GAIN)
    plan.bypassed, plan.restated, plan.path = run[:-1], {node: affine}, run[1:]
    return plan


def _next_of_run(view: View, node: ir.Node) -> tuple[ir.Node, Affine] | None:
    value = node.outputs[0]
    uses = list(readers_of(value))
    if value.is_graph_output() or len(uses) != 1 or uses[0][0].graph is not node.graph:
        return None
    known = _affine(view, uses[0][0])
    return None if known is None else (uses[0][0], known[1])


def _check_heir(view: View, plan: Plan) -> None:
    """If the seed's output is promised to the caller, some tensor must be free to take its place."""
    heir = plan.seed.inputs[view.read(plan.seed)[0]]
    while heir is not None and (node := heir.producer()) in plan.bypassed and node is not None:
        heir = node.inputs[view.read(node)[0]]
    assert heir is not None
    if plan.seed.outputs[0].is_graph_output():
        require(heir.producer() is not None, Reason.GRAPH_INPUT)
        require(heir.graph is plan.seed.graph, Reason.SUBGRAPH)
        require(not heir.is_graph_output(), Reason.GRAPH_OUTPUT)


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
        with _at(value.producer()):
            left = leftover(affine, value, view.facts, view.opset)
            if left is None:
                raise Refused(Reason.COSTS_A_NODE)
            after.append(left.weight)
    with _at(plan.path[-1] if plan.path else plan.seed):
        require(len(after) <= len(before), Reason.COSTS_A_NODE)
        require(sum(after) < sum(before), Reason.NO_GAIN)
    return plan


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
            if _affine(self.view, node) is not None:
                with _at(node, node.outputs[0]):
                    self.bypass(node, outs.only(0))
                continue
            for index in outs:
                self._mark(node.outputs[index])
            self._pull(node, outs, left)
        return self.plan

    def bypass(self, node: ir.Node, affine: Affine) -> None:
        """An affine node on the way vanishes, and what it did is demanded with the rest."""
        index, own = self.view.read(node)
        if node is not self.plan.seed:
            self.plan.path.append(node)
        self.plan.bypassed.append(node)
        self._demand(node, index, (affine @ own).collapsed())

    def _place(self, value: ir.Value) -> float:
        producer = value.producer()
        return -1.0 if producer is None else self.view.position(producer)

    def _mark(self, value: ir.Value) -> None:
        data = self.plan.seed.inputs[self.view.read(self.plan.seed)[0]]
        if value is not data:
            self.plan.changed.append(value)

    def _producer(self, value: ir.Value) -> tuple[ir.Node, Arriving]:
        """The node that must produce a changed tensor, and what each of its outputs must become."""
        node = value.producer()
        outputs = [value] if node is None else [out for out in node.outputs if out in self.wanted]
        for output in outputs:
            self._check(output)
        assert node is not None
        return node, Arriving({output.index() or 0: self.wanted.pop(output)[0] for output in outputs})

    def _check(self, value: ir.Value) -> None:
        """Raise what the graph may object to a change of this tensor."""
        node, (_, readers) = value.producer(), self.wanted[value]
        others = [node for node, index in readers_of(value) if (node, index) not in readers]
        with _at(node, value):
            require(not value.is_graph_output(), Reason.GRAPH_OUTPUT)
            require(value.graph is self.plan.seed.graph, Reason.SUBGRAPH)
            require(node is not None, Reason.GRAPH_INPUT)
        with _at(others[0] if others else None, value):
            require(not others, Reason.OTHER_READER)

    def _pull(self, node: ir.Node, outs: Arriving, left: list[_Up]) -> None:
        """Ask the rule; of several alternatives take the first, and leave the others for later."""
        with _at(node, node.outputs[min(outs)]):
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
        with _at(node, value):
            require(moved.may_stay or moved.output.is_identity, Reason.NEEDS_NO_SHIFT)
            if not moved.output.is_identity:
                self.plan.stays[value] = moved.output
            for index, affine in moved.inputs.items():
                self._demand(node, index, affine)

    def _demand(self, node: ir.Node, index: int, affine: Affine) -> None:
        """``node`` needs its input to become ``affine`` of what it is."""
        value = node.inputs[index]
        assert value is not None
        if affine.is_identity:
            return
        if self.view.constants.holds(value):
            self.plan.params[node, index] = affine
            return
        known, readers = self.wanted.setdefault(value, (affine, []))
        require(known.same(affine), Reason.BRANCHES_DIFFER)
        readers.append((node, index))


class _Down:
    """A walk towards the readers; ``arriving`` holds the maps at each node not yet visited."""

    def __init__(self, view: View, plan: Plan, depth: int = 0) -> None:
        self.view = view
        self.plan = plan
        self.depth = depth
        self.arriving: dict[ir.Node, Arriving] = {}
        self._heap: list[tuple[float, int, ir.Node]] = []
        self._tick = count()

    def run(self) -> Plan:
        """Visit readers, first one first, until no map is on its way any more."""
        while self._heap:
            node = heapq.heappop(self._heap)[-1]
            maps = self.arriving.pop(node)
            with _at(node):
                # A walk of its own for some shift came by here: two maps may meet, apart from each other.
                require(node not in self.plan.path, Reason.BRANCHES_DIFFER)
            known = _affine(self.view, node)
            if known is None:
                self._push(node, maps)
            else:
                self._pass(node, maps, *known)
        return self.plan

    def spread(self, value: ir.Value, affine: Affine) -> None:
        """All readers of ``value`` now have to apply ``affine`` themselves."""
        uses = list(readers_of(value))
        with _at(value.producer(), value):
            require(not value.is_graph_output(), Reason.GRAPH_OUTPUT)
            require(bool(uses), Reason.NO_READER)
        for node, index in uses:
            with _at(node, value):
                require(node.graph is self.plan.seed.graph, Reason.SUBGRAPH)
            if node not in self.arriving:
                self.arriving[node] = Arriving()
                heapq.heappush(self._heap, (self.view.position(node), next(self._tick), node))
            self.arriving[node][index] = affine

    def _pass(self, node: ir.Node, maps: Arriving, index: int, own: Affine) -> None:
        with _at(node):
            affine = (own @ maps.only(index)).collapsed()
        self.plan.path.append(node)
        if self.depth and not own.scales:
            self.plan.restated[node] = affine
        else:
            self.plan.bypassed.append(node)
            self.spread(node.outputs[0], affine)

    def _push(self, node: ir.Node, maps: Arriving) -> None:
        with _at(node):
            site = self.view.site(node)
            moved = self.view.rule(site).push(site, maps)
        self.plan.take(node, moved)
        if moved.may_stay and not moved.output.is_identity:
            self._absorb_behind(node.outputs[0], moved.output)
            return
        for index, affine in {0: moved.output, **moved.outputs}.items():
            if affine.is_identity:
                continue
            value = node.outputs[index]
            self.plan.changed.append(value)
            if len(node.outputs) == 1 or value.uses() or value.is_graph_output():
                self.spread(value, affine)

    def _absorb_behind(self, value: ir.Value, shift: Affine) -> None:
        """Find a home for a shift right behind a layer without bias, or let it stay there.

        The search is a walk of its own: where it fails, only the shift stays.
        """
        walk = _Down(self.view, Plan(self.plan.seed, Direction.DOWN), self.depth + 1)
        try:
            require(walk.depth <= _MAX_DEPTH, Reason.COSTS_A_NODE)
            walk.spread(value, shift)
            found = walk.run()
        except (Blocked, Refused):
            self.plan.stays[value] = shift
            return
        if found.touched() & (self.plan.touched() | set(self.arriving)):
            self.plan.stays[value] = shift
            return
        self.plan.changed.append(value)
        for name, items in vars(found).items():
            if isinstance(items, dict):
                getattr(self.plan, name).update(items)
            elif isinstance(items, list):
                getattr(self.plan, name).extend(items)
