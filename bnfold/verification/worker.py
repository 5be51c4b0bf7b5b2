"""The child process of a verification: ``python -m <this module> FOLDER``.

It reads ``job.json`` in the folder, writes into ``stage`` which model is about to run (what a crash leaves
behind), and writes ``result.json``: ``{"verdict": ...}``, or ``{"error": type, "text": ...}`` for an error
of ``bnfold.errors``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError

from .equivalence import Job, examine


def main(folder: Path) -> None:
    """Answer the job in ``folder``."""
    job = _read_job(folder / "job.json")
    stage = folder / "stage"
    try:
        verdict = examine(job, lambda role: _note(stage, role))
        result: dict[str, Any] = {"verdict": verdict.to_dict()}
    except BnfoldError as error:
        result = {"error": type(error).__name__, "text": str(error)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _note(stage: Path, role: str) -> None:
    stage.write_text(role, encoding="utf-8")


def _read_job(path: Path) -> Job:
    plain = json.loads(path.read_text(encoding="utf-8"))
    files = {key: Path(plain[key]) if plain[key] else None for key in ("a", "b", "inputs")}
    return Job(**{**plain, **files})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
