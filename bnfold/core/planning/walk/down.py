"""Towards the readers: each is asked to apply the maps that arrive at it.

A node is visited once everything in front of it has been, so that maps wait where branches meet. The
walk is a loop over a heap of graph positions, so no graph is too deep.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.plan import Blocked, Direction, Plan, at
from bnfold.core.planning.walk import affine_of
from bnfold.core.planning.walk.up import edit
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Arriving

# Through how many layers without bias a shift is handed on in search of a home.
_MAX_DEPTH = 20


def go_down(view: View, seed: ir.Node, turning: bool = False, meeting: bool = False) -> Plan:
    """Plan to move the map of ``seed`` into the operators behind it; raises like ``go_up``."""
    with at(seed):
        _, affine = view.read(seed)
    return send_down(
        view, Plan(seed, Direction.DOWN, turning, meeting, bypassed=[seed]), seed.outputs[0], affine
    )


def send_down(view: View, plan: Plan, value: ir.Value, affine: Affine) -> Plan:
    """Extend a plan: the readers of ``value`` have to apply ``affine``; raises like ``go_up``."""
    walk = _Down(view, plan)
    walk.spread(value, affine)
    return walk.run()


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
            with at(node):
                # A walk of its own for some shift came by here: two maps may meet, apart from each other.
                require(node not in self.plan.path, Reason.BRANCHES_DIFFER)
            known = affine_of(self.view, node)
            if known is None:
                self._push(node, maps)
            else:
                self._pass(node, maps, *known)
        return self.plan

    def spread(self, value: ir.Value, affine: Affine) -> None:
        """All readers of ``value`` now have to apply ``affine`` themselves."""
        uses = list(self.view.readers(value))
        with at(value.producer(), value):
            require(not value.is_graph_output(), Reason.GRAPH_OUTPUT)
            require(bool(uses), Reason.NO_READER)
        for node, index in uses:
            with at(node, value):
                require(node.graph is self.plan.seed.graph, Reason.SUBGRAPH)
            if node not in self.arriving:
                self.arriving[node] = Arriving()
                heapq.heappush(self._heap, (self.view.position(node), next(self._tick), node))
            self.arriving[node][index] = affine

    def _pass(self, node: ir.Node, maps: Arriving, index: int, own: Affine) -> None:
        with at(node):
            coming = maps.only(index)
            joined = (own @ coming).collapsed()
            if self.depth and not own.scales:
                self.plan.path.append(node)
                self.plan.restated[node] = joined
            elif not self.plan.meets(node, own, coming, joined):
                self.spread(node.outputs[0], joined)

    def _push(self, node: ir.Node, maps: Arriving) -> None:
        with at(node):
            site = self.view.site(node)
            moved = self.view.rule(site).push(site, maps)
        self.plan.take(node, moved)
        if moved.params:
            self._edit(node, moved.params)
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

    def _edit(self, node: ir.Node, params: Mapping[int, Affine]) -> None:
        kinds = [self.view.constants.integers(value) for value in node.inputs if value is not None]
        with at(node):
            require(ir.DataType.INT32 not in kinds, Reason.QUANTIZED_BIAS)
        self.plan = edit(self.view, self.plan, node, params)

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
        self.plan = self.plan.joined(found)
