"""Proof that two ONNX models are equal: ``verify(a, b)`` runs both and compares them.

Importing this package costs nothing; onnx and ONNX Runtime are loaded in a child process, by ``verify``.
"""

from __future__ import annotations

from .runner import verify
from .verdict import Deviation, Status, Verdict

__all__ = ["Deviation", "Status", "Verdict", "verify"]
