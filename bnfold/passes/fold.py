"""``FoldPass``: every affine map finds a home."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.engine import Engine, Progress
from bnfold.core.graph.functions import inline_where_it_helps
from bnfold.core.graph.view import Chosen, Look, View
from bnfold.passes.frame import RewritePass, Rewriting
from bnfold.passes.selection import Patterns


class FoldPass(RewritePass):
    """Fold every affine map of a model in place, as a pass for ``onnx_ir.passes.Sequential``.

    Args:
        only: fold only nodes whose name matches one of these globs.
        skip: leave nodes alone whose name matches one of these globs.
        freeze_initializers: take initializers that are also graph inputs as constants, and out of
            the model's signature.
        portable: keep to rewrites that help on every runtime: merge no leftovers.
        to_inference: first let nodes in training mode use their stored statistics, which changes what the
            model computes.
        progress: called with the number of nodes done and of nodes in all.

    Attributes:
        report: what the last call did.
        folds: each fold's map and the constants it replaced, for ``bnfold.provenance``.
    """

    def __init__(
        self,
        *,
        only: Patterns = None,
        skip: Patterns = None,
        freeze_initializers: bool = False,
        portable: bool = False,
        to_inference: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> None:
        super().__init__(
            only=only,
            skip=skip,
            freeze_initializers=freeze_initializers,
            portable=portable,
            to_inference=to_inference,
        )
        self._progress = progress

    def _rewrite(self, model: ir.Model) -> Rewriting:
        return fold_maps(model, self._look, self.selection.chosen, self._progress)


def fold_maps(model: ir.Model, look: Look, chosen: Chosen, progress: Progress) -> Rewriting:
    """Place every map of the nodes that are chosen, in functions too where that inlines them."""

    def tried(trial: ir.Model) -> set[ir.Node]:
        engine = Engine(View(trial, chosen, portable=True))
        engine.run()
        return engine.touched

    inlined = inline_where_it_helps(model, tried)
    engine = Engine(look(model), progress)
    engine.run()
    engine.report.inlined = inlined
    return Rewriting(engine.report, engine.folds)
