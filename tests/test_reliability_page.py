"""The page of what was tried is what the scripts found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import reliability  # noqa: E402


def test_page_and_figures_agree() -> None:
    """docs/reliability.md ends with exactly what docs/data/reliability.json makes of it."""
    made = reliability.page(json.loads(reliability.DATA.read_text()))
    assert reliability.PAGE.read_text().endswith(made)


def test_nothing_was_lost() -> None:
    """The counts are of runs in which every failure was counted, and enough was tried to say so."""
    data = json.loads(reliability.DATA.read_text())
    for run in data["fuzz"].values():
        assert sum(run["counts"].values()) == run["files"]
    assert sum(data["faults"].values()) > 50


def test_a_damaged_file_is_the_same_each_time() -> None:
    """A fuzzing run can be resumed, and a handful of its files are read or refused with typed errors."""
    import tempfile

    import fuzz_bytes
    import mutation

    pool = mutation.seeds()
    assert mutation.mutants(1, 5, pool) == mutation.mutants(1, 5, pool)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / mutation.DATA).write_bytes(mutation.data())
        for number in range(200):
            fuzz_bytes.try_one(mutation.mutants(77, number, pool), Path(name))
