"""The documentation says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_rules_page_is_current() -> None:
    """``docs/rules.md`` is what ``benchmarks/rules_page.py`` writes now; run it after changing a rule."""
    page = runpy.run_path(str(ROOT / "benchmarks" / "rules_page.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == page
