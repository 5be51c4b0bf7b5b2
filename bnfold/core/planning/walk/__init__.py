"""Where an affine map could go: a walk up, down or along returns a plan or a refusal, and changes nothing."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.plan import at


def affine_of(view: View, node: ir.Node) -> tuple[int, Affine] | None:
    """What an affine node is, None for any other; raises ``Blocked`` where it must be left alone."""
    with at(node):
        return view.affine(node)
