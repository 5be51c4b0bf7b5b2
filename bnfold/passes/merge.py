"""``MergeBranchesPass``: linear branches that are added become one layer."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.branches.merge import Merger
from bnfold.core.graph.view import Look
from bnfold.passes.frame import RewritePass, Rewriting
from bnfold.passes.selection import Patterns


class MergeBranchesPass(RewritePass):
    """Make one layer of linear branches that are added, and of linear layers in a row, in place.

    Fold first: a batch norm between a layer and the sum is then part of the layer. Merged is only what
    takes fewer multiplications that way.

    Args:
        only: merge only sums and layers whose name matches one of these globs.
        skip: leave sums and layers alone whose name matches one of these globs.

    Attributes:
        report: what the last call did, in ``report.branches``.
        folds: the constants that were made, for ``bnfold.provenance``.
    """

    def __init__(self, *, only: Patterns = None, skip: Patterns = None) -> None:
        super().__init__(only=only, skip=skip)

    def _rewrite(self, model: ir.Model) -> Rewriting:
        return merge_branches(model, self._look)


def merge_branches(model: ir.Model, look: Look) -> Rewriting:
    """Merge what ``look`` shows."""
    merger = Merger(look(model))
    merger.run()
    return Rewriting(merger.report, merger.folds)
