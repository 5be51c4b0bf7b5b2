"""What a model computes once some γ count as 0: the yardstick for a removal that only they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.writing.apply import Writer
from bnfold.core.writing.rounding import stored


def flatten(model: ir.Model, channels: Mapping[str, Sequence[int]]) -> None:
    """Set γ of batch norms to 0, in place.

    Args:
        model: as it was before ``PruneDeadChannelsPass``.
        channels: for the output name of each batch norm, which channels (``flattened`` of the pass).
    """
    view = View(model)
    writer = Writer(view)
    for node in list(model.graph):
        which = channels.get(node.outputs[0].name or "")
        if which:
            gamma = view.constants.get(view.site(node).input(1))
            kept = [0.0 if index in set(which) else 1.0 for index in range(gamma.shape[0])]
            flat = gamma.mapped(Affine.of(kept))
            writer.replace(node, 1, (flat, stored(flat)))
    writer.sweep()
