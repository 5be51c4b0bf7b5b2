"""How long models take: ``bench(a, b)`` measures them so that "no measurable difference" is an answer too."""

from __future__ import annotations

from .child.process import BenchError
from .report import BenchReport
from .run import bench

__all__ = ["BenchError", "BenchReport", "bench"]
