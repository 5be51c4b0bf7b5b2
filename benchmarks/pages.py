"""The pages of docs/ that scripts write into, between two marks that name the script."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def mark(script: str) -> str:
    """The line that stands before and behind what a script wrote."""
    return f"<!-- {script} -->"


def write(page: str, script: str, text: str) -> None:
    """Put ``text`` between the script's marks on a page of docs/.

    Raises:
        ValueError: the page has not two such marks.
    """
    path = DOCS / page
    before, _, after = path.read_text(encoding="utf-8").split(mark(script))
    path.write_text(f"{before}{mark(script)}\n{text.rstrip()}\n{mark(script)}{after}", encoding="utf-8")


def shown(page: str, script: str) -> str:
    """What stands between the script's marks."""
    return (DOCS / page).read_text(encoding="utf-8").split(mark(script))[1].strip()
