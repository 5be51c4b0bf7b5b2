"""How long models take: ``bench(a, b)`` measures them so that "no measurable difference" is an answer too."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .child.process import BenchError
    from .report import BenchReport
    from .run import bench

# The children that measure import this package too, and must not pay for what only their parent needs.
_HOME = {"BenchError": ".child.process", "BenchReport": ".report", "bench": ".run"}

__all__ = ["BenchError", "BenchReport", "bench"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
