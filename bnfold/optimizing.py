"""All passes in the order in which they help each other: what ``fold`` and the command run."""

from __future__ import annotations

import time

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from bnfold import files
from bnfold.branches.merge import MergeBranchesPass
from bnfold.core.constants import Constants
from bnfold.core.engine import Fold, Progress
from bnfold.core.view import View
from bnfold.folding import FoldPass, freeze
from bnfold.inference import to_inference as convert
from bnfold.pruning.prune import PruneDeadChannelsPass
from bnfold.report import Report
from bnfold.selection import Patterns


class OptimizePass(InPlacePass):
    """Remove dead channels, fold, merge branches, and fold what stands behind them, in place.

    Channels come first, because folding leaves no γ to tell them by. Branches come after folding, when a
    batch norm between a layer and a sum is part of the layer. Every constant is rounded once at the end.

    Args:
        only: touch only nodes whose name matches one of these globs.
        skip: leave nodes alone whose name matches one of these globs.
        freeze_initializers: take initializers that are also graph inputs as constants.
        portable: keep to rewrites that help on every runtime.
        to_inference: first let nodes in training mode use their stored statistics.
        merge: merge branches.
        prune_below: remove channels with |γ/σ| up to this, 0 for dead ones alone, None for none at all.
        progress: called by each fold with the number of nodes done and of nodes in all.

    Attributes:
        report: what the last call did, all passes together.
        folds: each step, for ``bnfold.provenance``.
        flattened: channels that were removed by a ``prune_below`` above 0, as ``PruneDeadChannelsPass`` says.
    """

    def __init__(
        self,
        *,
        only: Patterns = None,
        skip: Patterns = None,
        freeze_initializers: bool = False,
        portable: bool = False,
        to_inference: bool = False,
        merge: bool = True,
        prune_below: float | None = 0.0,
        progress: Progress = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.freeze_initializers = freeze_initializers
        self.to_inference = to_inference
        self._fold = FoldPass(only=only, skip=skip, portable=portable, progress=progress)
        self._merge = MergeBranchesPass() if merge else None
        self._prune = None if prune_below is None else PruneDeadChannelsPass(below=prune_below)
        self._dead = None if prune_below is None else PruneDeadChannelsPass()
        for each in (self._merge, self._prune, self._dead):
            if each is not None:
                each.selection = self._fold.selection
        for one in (self._fold, self._merge, self._prune, self._dead):
            if one is not None:
                one.look = self._look
        self._view: View | None = None
        self.report = Report()
        self.folds: list[Fold] = []
        self.flattened: dict[str, list[int]] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Optimize ``model`` itself; raises what the passes raise."""
        started, before = time.perf_counter(), files.constant_bytes(model)
        self.report, self.folds, self.flattened, self._view = Report(), [], {}, None
        converted = convert(model) if self.to_inference else 0
        frozen = self.freeze_initializers and freeze(model)
        if self._prune is not None:
            self._run(self._prune, model)
            self.flattened = self._prune.flattened
        self._fold_and_merge(model)
        # What folds and merges may leave filters of zeros, which no γ told of.
        while self._dead is not None and self._run(self._dead, model):
            self._fold_and_merge(model)
        self._view = None
        Constants.forget_all(model)
        self.report.converted = converted
        self.report.constant_bytes = files.constant_bytes(model) - before
        self.report.seconds = time.perf_counter() - started
        return PassResult(model, self.report.changed or frozen)

    def _fold_and_merge(self, model: ir.Model) -> None:
        self._run(self._fold, model)
        while self._merge is not None and self._run(self._merge, model) and self._run(self._fold, model):
            pass

    def _run(self, each: FoldPass | MergeBranchesPass | PruneDeadChannelsPass, model: ir.Model) -> bool:
        modified = each(model).modified
        if modified or model.functions:  # of which the pass may have inlined some before it looked
            self._view = None
        self.report = self.report.then(each.report)
        self.folds += each.folds
        return modified

    def _look(self, model: ir.Model) -> View:
        """One view for as long as nothing changes the model: to infer shapes takes as long as a pass."""
        if self._view is None:
            self._view = View(model, self._fold.selection.chosen, self._fold.portable)
        return self._view
