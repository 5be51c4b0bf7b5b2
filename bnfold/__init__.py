"""bnfold folds every inference-mode batch normalization of an ONNX model, exactly, and proves it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bnfold.core.reasons import Reason
    from bnfold.errors import (
        BnfoldError,
        InputsError,
        InvalidModelError,
        MissingDependencyError,
        OutputError,
        SelectionError,
        UnreadableModelError,
        UnsupportedModelError,
        VerificationError,
    )
    from bnfold.folding import FoldResult, fold
    from bnfold.latency import BenchReport, bench
    from bnfold.passes.fold import FoldPass
    from bnfold.passes.inference import to_inference
    from bnfold.passes.merge import MergeBranchesPass
    from bnfold.passes.prune import PruneDeadChannelsPass
    from bnfold.report import Report
    from bnfold.statistics.check import stats
    from bnfold.statistics.recalibration import Recalibration, recalibrate, unfold
    from bnfold.statistics.result import Statistics
    from bnfold.statistics.run.spread import UnfinishedError
    from bnfold.verification import Verdict, verify

# Names are imported on first use: `import bnfold` and `bnfold --help` must not pay for numpy and onnx.
_HOME = {
    "BenchReport": "bnfold.latency",
    "FoldPass": "bnfold.passes.fold",
    "MergeBranchesPass": "bnfold.passes.merge",
    "FoldResult": "bnfold.folding",
    "bench": "bnfold.latency",
    "fold": "bnfold.folding",
    "PruneDeadChannelsPass": "bnfold.passes.prune",
    "Reason": "bnfold.core.reasons",
    "Recalibration": "bnfold.statistics.recalibration",
    "Report": "bnfold.report",
    "Statistics": "bnfold.statistics.result",
    "UnfinishedError": "bnfold.statistics.run.spread",
    "recalibrate": "bnfold.statistics.recalibration",
    "stats": "bnfold.statistics.check",
    "to_inference": "bnfold.passes.inference",
    "unfold": "bnfold.statistics.recalibration",
    "Verdict": "bnfold.verification",
    "verify": "bnfold.verification",
    "BnfoldError": "bnfold.errors",
    "InputsError": "bnfold.errors",
    "InvalidModelError": "bnfold.errors",
    "MissingDependencyError": "bnfold.errors",
    "OutputError": "bnfold.errors",
    "SelectionError": "bnfold.errors",
    "UnreadableModelError": "bnfold.errors",
    "UnsupportedModelError": "bnfold.errors",
    "VerificationError": "bnfold.errors",
}

__all__ = [
    "BenchReport",
    "BnfoldError",
    "FoldPass",
    "FoldResult",
    "InputsError",
    "InvalidModelError",
    "MergeBranchesPass",
    "MissingDependencyError",
    "OutputError",
    "PruneDeadChannelsPass",
    "Reason",
    "Recalibration",
    "Report",
    "SelectionError",
    "Statistics",
    "UnfinishedError",
    "UnreadableModelError",
    "UnsupportedModelError",
    "Verdict",
    "VerificationError",
    "__version__",
    "bench",
    "fold",
    "recalibrate",
    "stats",
    "to_inference",
    "unfold",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
