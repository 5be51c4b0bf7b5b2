"""Plans and carries out until nothing moves any more, and keeps the record of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View, name_of
from bnfold.core.planning.plan import Blocked, Direction, Plan, gaining
from bnfold.core.planning.profit import worthwhile
from bnfold.core.planning.walk.below import below
from bnfold.core.planning.walk.down import go_down
from bnfold.core.planning.walk.merge import merge
from bnfold.core.planning.walk.split import leave_shift, split
from bnfold.core.planning.walk.up import go_up
from bnfold.core.reasons import Reason, Refused
from bnfold.core.writing.apply import Change, Writer
from bnfold.core.writing.tidy import tidy
from bnfold.report import Refusal, Report, Row

Walk = Callable[[View, ir.Node], Plan]
Progress = Callable[[int, int], None]

# A node that would be a map if only this were mended; other refused reads are no maps at all.
_BROKEN_READS = {
    Reason.OVERRIDABLE,
    Reason.NOT_FINITE,
    Reason.UNKNOWN_SHAPE,
    Reason.UNKNOWN_VERSION,
}

_HOMES: dict[Direction, Walk] = {Direction.UP: go_up, Direction.DOWN: go_down}
# Where no other home is left, an activation may turn into a Max or Min on the way.
_TURNING: dict[Direction, Walk] = {
    Direction.UP: partial(go_up, turning=True),
    Direction.DOWN: partial(go_down, turning=True),
}
# What finds no home in weights may still meet another affine node on the way, so that one of both is left.
_MEETING: dict[Direction, Walk] = {
    Direction.MERGE: merge,
    Direction.UP: partial(go_up, meeting=True),
    Direction.DOWN: partial(go_down, meeting=True),
    Direction.SPLIT: partial(split, meeting=True),
}


@dataclass
class Fold:
    """One plan that was carried out, for the provenance map.

    Attributes:
        seed: the name of the node the walk began at.
        direction: the way its map went; "across" or "serial" where layers were merged.
        affine: its map, shaped to broadcast against its tensor; None where there is no single one.
        changes: the constants that were replaced.
        nodes: the nodes that were replaced as a whole.
    """

    seed: str
    direction: str
    affine: Affine | None
    changes: list[Change]
    nodes: tuple[str, ...] = ()


@dataclass
class Engine:
    """Folds every affine node of one model in place."""

    view: View
    progress: Progress = lambda done, total: None
    rows: dict[ir.Node, Row] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    touched: set[ir.Node] = field(default_factory=set)

    def run(self) -> Report:
        """Fold, and say what became of every affine node."""
        report = self.report
        report.nodes_before = self.view.operators()
        writer = Writer(self.view)
        self._read_all()
        parts: dict[Direction, Walk] = {**_HOMES, Direction.SPLIT: split}
        rest: dict[Direction, Walk] = {**_HOMES, Direction.SPLIT: leave_shift}
        lower: dict[Direction, Walk] = {**_HOMES, Direction.MERGE: below}
        stages = [_HOMES, parts, rest]
        if not self.view.portable:
            stages = [_HOMES, parts, lower, _TURNING, rest, _MEETING]
        more = True
        while more:
            while any(self._until_nothing_moves(writer, walks) and walks is not _HOMES for walks in stages):
                pass  # what a later stage moved may let an earlier one move more
            more = tidy(self.view, writer)
            writer.sweep()
            # Neither a no-op nor a reader that led nowhere keeps anything any more.
            more, writer.freed = more or writer.freed, False
        report.rows = [row for row in self.rows.values() if row.name]
        report.nodes_after = self.view.operators()
        return report

    def _read_all(self) -> None:
        """Open a row for every node that is, or is named as, an affine map."""
        for node in self.view.nodes():
            if not self.view.reads(node):
                continue
            try:
                _, affine = self.view.read(node)
            except Refused as refused:
                if _is_batch_norm(node) or (refused.reason in _BROKEN_READS and self._has_constant(node)):
                    refusal = Refusal("read", refused.reason, describe(node))
                    self.rows[node] = Row(name_of(node), node.op_type, refusals=(refusal,))
            else:
                self.rows[node] = Row(name_of(node), node.op_type, per_channel=bool(affine.sizes()))
        for function in self.view.model.functions.values():
            for node in function:
                if _is_batch_norm(node):
                    refusal = Refusal("read", Reason.IN_FUNCTION, describe(node))
                    self.rows[node] = Row(name_of(node), node.op_type, refusals=(refusal,))

    def _until_nothing_moves(self, writer: Writer, walks: dict[Direction, Walk]) -> bool:
        """Place whatever can be placed in these ways; says whether that was anything."""
        moved, ever = True, False
        while moved:
            moved = False
            seeds = [node for node in self.view.nodes() if self.view.is_affine(node)]
            for done, seed in enumerate(seeds):
                self.progress(done, len(seeds))
                if seed.graph is not None:
                    moved = self._place(writer, seed, walks) or moved
            ever = ever or moved
        return ever

    def _has_constant(self, node: ir.Node) -> bool:
        constants = self.view.constants
        given = [value for value in node.inputs if value is not None]
        return any(value in constants.overridable or constants.holds(value) for value in given)

    def _place(self, writer: Writer, seed: ir.Node, walks: dict[Direction, Walk]) -> bool:
        """Try each direction in turn, up first: a producer takes a map at no other node's cost."""
        refusals = []
        for direction, walk in walks.items():
            try:
                plan = gaining(self.view, worthwhile(self.view, walk(self.view, seed)))
                self._carry_out(writer, plan)
                return True
            except Blocked as blocked:
                if direction in _HOMES and walks is not _MEETING:
                    refusals.append(reported(direction.value, blocked))
        if refusals and seed in self.rows and self.rows[seed].status == "kept":
            self.rows[seed].refusals = tuple(refusals)
        return False

    def _carry_out(self, writer: Writer, plan: Plan) -> None:
        absorbed = {node for node, _ in plan.params} | set(plan.becomes)
        into = tuple(describe(node) for node in plan.path if node in absorbed)
        passed = (node for node in plan.path if node not in absorbed and node not in plan.bypassed)
        through = tuple(describe(node) for node in passed)
        self.touched |= plan.touched() | set(plan.path)
        merged = plan.direction is Direction.MERGE or (bool(plan.restated) and not absorbed)
        told = (plan.seed, *plan.bypassed, *(plan.restated if merged else ()))
        rows = [self.rows[node] for node in told if node in self.rows]
        _, affine = self.view.read(plan.seed)
        name = name_of(plan.seed)
        copied = tuple(describe(node) for node in plan.copies)
        changes, left = writer.carry_out(plan)
        self.report.bias_rounding = max(self.report.bias_rounding, self._bias_rounding(plan))
        self.folds.append(Fold(name, plan.direction.value, affine, changes))
        for row in rows:
            row.status = "merged" if merged else "folded"
            row.direction = "" if merged else plan.direction.value
            row.into, row.through, row.refusals = into, through, row.refusals if merged else ()
            row.leaves, row.copies = tuple(describe(node) for node in left), copied

    def _bias_rounding(self, plan: Plan) -> float:
        """Half the largest step of the int32 constants that a plan changed."""
        sites = (self.view.site(node) for node, index in plan.params if index == 0)
        whole = [site for site in sites if site.is_const(0) and site.const(0).dtype is ir.DataType.INT32]
        return max((float(site.const(1).exact.max(initial=0.0)) / 2 for site in whole), default=0.0)


def _is_batch_norm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and node.domain == ""


def describe(node: ir.Node) -> str:
    """A node as the report names it."""
    return f"{name_of(node)} ({node.op_type})"


def reported(direction: str, blocked: Blocked) -> Refusal:
    """What kept a map, a branch or a channel from going that way, as the report tells it."""
    node = "" if blocked.node is None else describe(blocked.node)
    tensor = "" if blocked.value is None else blocked.value.name or ""
    return Refusal(direction, blocked.reason, node, tensor)
