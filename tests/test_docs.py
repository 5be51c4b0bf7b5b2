"""The documentation says what the code does."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from bnfold.cli import main

ROOT = Path(__file__).parent.parent


def test_rules_page_is_current() -> None:
    """``docs/rules.md`` is what ``benchmarks/rules_page.py`` writes now; run it after changing a rule."""
    page = runpy.run_path(str(ROOT / "benchmarks" / "rules_page.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == page


def test_what_measuring_costs_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines in ``docs/statistics.md`` are those of the seconds beside it, or say there are none."""
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "statistics_overhead.py"))
    shown = script["pages"].shown("statistics.md", "statistics_overhead")
    data = script["DATA"]
    measured = data.exists() and script["page"](json.loads(data.read_text(encoding="utf-8")))
    assert shown == (measured or "not measured yet")


def test_branches_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of ``docs/branches.md`` are those of ``benchmarks/results/branches.json``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "branches.py"))
    data = script["DATA"]
    known = json.loads(data.read_text()) if data.exists() else {}
    assert script["pages"].shown("branches.md", "branches") == script["table"](known).strip()


def test_every_surviving_mutant_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``docs/mutation.md`` lists the mutants that no test noticed, and where that is no gap says why."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "mutation_check.py"))
    known, explained = script["stored"](script["DATA"]), script["stored"](script["EXPLAINED"])
    page = (ROOT / "docs" / "mutation.md").read_text(encoding="utf-8")
    for name in (name for name, what in known.items() if what == "survived"):
        assert f"* `{name}`: {explained.get(name, 'not explained')}\n" in page


def _words(text: str) -> list[str]:
    """The text without figures and rules, which differ from run to run and from machine to machine."""
    return re.sub(r"\d+(\.\d+)*(e-\d+)?|─+", "#", text).split()


def test_readme_shows_real_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What the README's first command is said to print is what it prints, but for the figures."""
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    monkeypatch.chdir(ROOT)
    target = tmp_path / "digits_cnn.folded.onnx"
    monkeypatch.setattr(sys, "argv", ["bnfold", "-f", "models/digits_cnn.onnx", "-o", str(target)])
    with pytest.raises(SystemExit) as done:
        main()
    printed = capsys.readouterr().out.replace(str(target), "models/digits_cnn.folded.onnx")
    assert done.value.code == 0
    assert _words(printed) == _words(shown)


def test_ci_runs_the_command_of_the_readme() -> None:
    """``.ci/run`` and the README name the same test command."""
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
