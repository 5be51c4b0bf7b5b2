"""All passes in the order in which they help each other: what ``fold`` and the command run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from bnfold.core.engine import Progress
from bnfold.core.graph.constants import Constants
from bnfold.core.graph.view import Look, View
from bnfold.passes.fold import fold_maps
from bnfold.passes.frame import RewritePass, Rewriting
from bnfold.passes.merge import merge_branches
from bnfold.passes.prune import prune
from bnfold.passes.selection import Patterns

Step = Callable[[ir.Model, Look], Rewriting]


class OptimizePass(RewritePass):
    """Remove dead channels, fold, merge branches, and fold what stands behind them, in place.

    Channels come first, because folding leaves no γ to tell them by. Branches come after folding, when a
    batch norm between a layer and a sum is part of the layer. Every constant is rounded once at the end.

    Args:
        only: touch only nodes whose name matches one of these globs.
        skip: leave nodes alone whose name matches one of these globs.
        freeze_initializers: as ``FoldPass`` has it.
        portable: as ``FoldPass`` has it.
        to_inference: as ``FoldPass`` has it.
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
        super().__init__(
            only=only,
            skip=skip,
            freeze_initializers=freeze_initializers,
            portable=portable,
            to_inference=to_inference,
        )
        self.merge = merge
        self.prune_below = prune_below
        self._fold = partial(fold_maps, chosen=self.selection.chosen, progress=progress)

    def _rewrite(self, model: ir.Model) -> Rewriting:
        work = _Work(model, self._look)
        if self.prune_below is not None:
            work.do(partial(prune, below=self.prune_below))
        self._fold_and_merge(work)
        # What folds and merges may leave filters of zeros, which no γ told of.
        while self.prune_below is not None and work.do(prune):
            self._fold_and_merge(work)
        Constants.forget_all(model)
        return work.done

    def _fold_and_merge(self, work: _Work) -> None:
        work.do(self._fold, keeps_shapes=True)
        while self.merge and work.do(merge_branches):
            work.do(self._fold, keeps_shapes=True)


class _Work:
    """Steps on one model, with one view for as long as it holds: to infer shapes takes as long as a step."""

    def __init__(self, model: ir.Model, look: Look) -> None:
        self.model = model
        self.done = Rewriting()
        self._look = look
        self._view: View | None = None

    def do(self, step: Step, *, keeps_shapes: bool = False) -> bool:
        """Take one step, which says of every tensor it leaves what its shape is if it ``keeps_shapes``.

        Returns:
            Whether it changed anything.
        """
        rewriting = step(self.model, self._seen)
        inlines = bool(self.model.functions)  # which a step may do before it looks
        if inlines or (rewriting.report.changed and not keeps_shapes):
            self._view = None
        self.done = self.done.then(rewriting)
        return rewriting.report.changed

    def _seen(self, model: ir.Model) -> View:
        if self._view is None:
            self._view = self._look(model)
        return self._view
