"""The frame of every pass: what is done before a model is rewritten, and what is noted afterwards."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from bnfold import files
from bnfold.core.engine import Fold
from bnfold.core.graph.garbage import uncollected
from bnfold.core.graph.view import View
from bnfold.passes.inference import to_inference as convert
from bnfold.passes.selection import Patterns, Selection
from bnfold.report import Report


@dataclass
class Rewriting:
    """What one pass did to a model.

    Attributes:
        report: what became of its nodes.
        folds: each step, for ``bnfold.provenance``.
        flattened: for each batch norm that lost channels whose γ is small but not 0, by the name that its
            output had, these channels.
    """

    report: Report = field(default_factory=Report)
    folds: list[Fold] = field(default_factory=list)
    flattened: dict[str, list[int]] = field(default_factory=dict)

    def then(self, later: Rewriting) -> Rewriting:
        """This and what a later pass did to the same model."""
        flattened = self.flattened | later.flattened
        return Rewriting(self.report.then(later.report), self.folds + later.folds, flattened)


class RewritePass(InPlacePass):
    """A pass of bnfold, which says of its last call what it did."""

    def __init__(
        self,
        *,
        only: Patterns,
        skip: Patterns,
        freeze_initializers: bool = False,
        portable: bool = False,
        to_inference: bool = False,
    ) -> None:
        super().__init__()
        self.selection = Selection(only, skip)
        self.freeze_initializers = freeze_initializers
        self.portable = portable
        self.to_inference = to_inference
        self._done = Rewriting()

    @property
    def report(self) -> Report:
        """What became of the nodes."""
        return self._done.report

    @property
    def folds(self) -> list[Fold]:
        """Each step, for ``bnfold.provenance``."""
        return self._done.folds

    @property
    def flattened(self) -> dict[str, list[int]]:
        """Channels that were removed although they do not hold one value, by batch norm."""
        return self._done.flattened

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite ``model`` itself.

        Raises:
            SelectionError: a glob of ``only`` or ``skip`` matches no node.
            InvalidModelError: constants do not fit the tensors they belong to.
            UnsupportedModelError: with ``to_inference``, something reads the statistics of a batch.
        """
        started, before = time.perf_counter(), files.constant_bytes(model)
        self.selection.check(model)
        converted = convert(model) if self.to_inference else 0
        frozen = self.freeze_initializers and freeze(model)
        # What overflows float64, or is divided by zero, is refused where it would be stored.
        with np.errstate(all="ignore"), uncollected():
            self._done = self._rewrite(model)
        self.report.converted = converted
        self.report.constant_bytes = files.constant_bytes(model) - before
        self.report.seconds = time.perf_counter() - started
        return PassResult(model, self.report.changed or frozen)

    @abstractmethod
    def _rewrite(self, model: ir.Model) -> Rewriting:
        """What the pass is for."""

    def _look(self, model: ir.Model) -> View:
        return View(model, self.selection.chosen, self.portable)


def freeze(model: ir.Model) -> bool:
    """Take initializers out of the graph's inputs; before IR version 4 they have to be listed there."""
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    frozen = model.ir_version >= 4 and len(kept) < len(model.graph.inputs)
    if frozen:
        model.graph.inputs[:] = kept
    return frozen
