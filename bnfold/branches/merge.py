"""Plans and carries out until no branches are left that are worth merging."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.branches.plan import Plan, plan_for, steps
from bnfold.core.engine import Fold, describe, reported
from bnfold.core.graph.view import View, name_of
from bnfold.core.planning.plan import Blocked
from bnfold.core.writing.apply import Writer
from bnfold.core.writing.rebuild import rebuild
from bnfold.report import Branches, Refusal, Report


@dataclass
class Merger:
    """Makes one layer of linear branches that are added, and of layers in a row, all over one model."""

    view: View
    report: Report = field(default_factory=Report)
    folds: list[Fold] = field(default_factory=list)

    def run(self) -> None:
        """Visit the nodes from the end, so that a sum is met before the sums in it; until nothing moves."""
        self.report.nodes_before = self.view.operators()
        writer, moved = Writer(self.view), True
        while moved:
            moved = False
            left: list[Branches] = []
            for node in reversed(list(self.view.nodes())):
                if node.graph is not None and self.view.chosen(name_of(node)):
                    moved = self._try(writer, node, left) or moved
            writer.sweep()
        self.report.branches += left
        self.report.nodes_after = self.view.operators()

    def _try(self, writer: Writer, root: ir.Node, left: list[Branches]) -> bool:
        plan, refusals = plan_for(writer.view, root)
        rows = tuple(_refusal(value, blocked) for value, blocked in refusals)
        row = Branches(name_of(root), root.op_type, refusals=rows)
        merged = False
        if plan is not None:
            row.kind, row.work_before, row.work_after = plan.kind, *plan.work
            row.nodes = tuple(describe(node) for node in plan.gone)
            try:
                self._carry_out(writer, plan, row)
                merged = True
            except Blocked as blocked:
                row.refusals += (_refusal(root.outputs[0], blocked),)
        if merged:
            self.report.branches.append(row)
        elif row.refusals:
            left.append(row)
        return merged

    def _carry_out(self, writer: Writer, plan: Plan, row: Branches) -> None:
        names = tuple(name_of(node) for node in plan.gone)
        changes, made = rebuild(writer, plan.root.outputs[0], steps(writer.view, plan))
        row.into = tuple(describe(node) for node in made)
        writer.sweep()
        self.folds.append(Fold(row.name, plan.kind, None, changes, names))


def _refusal(value: ir.Value, blocked: Blocked) -> Refusal:
    return reported("across", Blocked(blocked.reason, blocked.node, value))
