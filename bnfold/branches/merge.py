"""``MergeBranchesPass``: plans and carries out until no branches are left that are worth merging."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from bnfold import files
from bnfold.branches.plan import Plan, plan_for, steps
from bnfold.core.apply import Writer
from bnfold.core.engine import Fold, describe, reported
from bnfold.core.plan import Blocked
from bnfold.core.rebuild import rebuild
from bnfold.core.view import Look, View, name_of
from bnfold.report import Branches, Refusal, Report
from bnfold.selection import Patterns, Selection


class MergeBranchesPass(InPlacePass):
    """Make one layer of linear branches that are added, and of linear layers in a row, in place.

    Fold first: a batch norm between a layer and the sum is then part of the layer. Merged is only what
    takes fewer multiplications that way.

    Args:
        only: merge only at nodes whose name matches one of these globs.
        skip: leave sums and layers alone whose name matches one of these globs.

    Attributes:
        report: what the last call did, in ``report.branches``.
        folds: the constants that were made, for ``bnfold.provenance``.
    """

    def __init__(self, *, only: Patterns = None, skip: Patterns = None) -> None:
        super().__init__()
        self.selection = Selection(only, skip)
        self.look: Look = lambda model: View(model, self.selection.chosen)
        self.report = Report()
        self.folds: list[Fold] = []

    def call(self, model: ir.Model) -> PassResult:
        """Merge branches of ``model`` itself.

        Raises:
            SelectionError: a glob of ``only`` or ``skip`` matches no node.
            InvalidModelError: a layer's weights do not fit each other.
        """
        started, before = time.perf_counter(), files.constant_bytes(model)
        self.selection.check(model)
        view = self.look(model)
        self.report, self.folds = Report(nodes_before=view.operators()), []
        with np.errstate(all="ignore"):
            self._merge(view)
        self.report.nodes_after = view.operators()
        if self.report.changed:
            self.report.constant_bytes = files.constant_bytes(model) - before
        self.report.seconds = time.perf_counter() - started
        return PassResult(model, self.report.changed)

    def _merge(self, view: View) -> None:
        """Visit the nodes from the end, so that a sum is met before the sums in it; until nothing moves."""
        writer, moved = Writer(view), True
        while moved:
            moved = False
            left: list[Branches] = []
            for node in reversed(list(view.nodes())):
                if node.graph is not None and self.selection.chosen(name_of(node)):
                    moved = self._try(writer, node, left) or moved
            writer.sweep()
        self.report.branches += left

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
