"""The code's own promises: typed throughout, and clean to the linter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types() -> None:
    """``mypy --strict`` finds nothing."""
    _run("mypy")


def test_lint() -> None:
    """Ruff finds nothing, and would format nothing."""
    _run("ruff", "check", "--no-cache", ".")
    _run("ruff", "format", "--no-cache", "--check", ".")
