"""``PruneDeadChannelsPass``: channels that hold one value disappear."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.graph.view import Look
from bnfold.passes.frame import RewritePass, Rewriting
from bnfold.passes.selection import Patterns
from bnfold.pruning.prune import Pruner


class PruneDeadChannelsPass(RewritePass):
    """Remove channels that hold one value whatever the input, in place.

    Such a channel comes from a batch norm with γ = 0 or from a filter without weights. Its value moves
    into the bias of the layers that read it. Run this before ``FoldPass`` where ``below`` is not 0: folding
    leaves no γ to compare.

    Args:
        below: take batch norm channels with |γ/σ| ≤ ``below`` for constant, too; the model then computes
            something slightly different.
        only: remove only channels that nodes make whose name matches one of these globs.
        skip: leave the channels of nodes alone whose name matches one of these globs.

    Attributes:
        report: what the last call did, in ``report.channels``.
        folds: the constants that were replaced, for ``bnfold.provenance``.
        flattened: for each batch norm that lost channels by ``below`` alone, by the name that its output
            had, the channels whose γ counts as 0.

    Raises:
        ValueError: ``below`` is negative or not a number.
    """

    def __init__(self, *, below: float = 0.0, only: Patterns = None, skip: Patterns = None) -> None:
        super().__init__(only=only, skip=skip)
        if not below >= 0:
            raise ValueError(f"below is a threshold of 0 or more, not {below}")
        self.below = below

    def _rewrite(self, model: ir.Model) -> Rewriting:
        return prune(model, self._look, self.below)


def prune(model: ir.Model, look: Look, below: float = 0.0) -> Rewriting:
    """Remove the dead channels that ``look`` shows."""
    pruner = Pruner(look(model), below)
    pruner.run()
    return Rewriting(pruner.report, pruner.folds, pruner.flattened)
