"""The benchmark pages say what the data say, and their helpers do what they promise."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from truth import feeds_for

from bnfold import files

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import architectures
import branches
import pages
import slimmed
import tool_cost
import twin
from comparison import claims, data, executed, figures, page, patterns, results
from comparison.variants import BNFOLD
from processes import run


def test_comparison_pages_are_those_of_the_data() -> None:
    """``python benchmarks/compare.py page`` would change nothing."""
    found = data.load()
    assert pages.shown("benchmarks.md", "compare") == page.summary(found).strip()
    for name, text in page.details(found).items():
        assert (page.DETAILS / name).read_text(encoding="utf-8") == text
    for name in figures.FIGURES:
        assert figures.is_current(found, page.FIGURES / name)


def test_failures_name_no_folder_of_one_machine() -> None:
    """What is told of a failure, in data that are committed, holds no absolute path of a model."""
    told = [variant["failure"] for model in data.load()["models"] for variant in model["variants"].values()]
    assert any(told)
    assert not [each for each in told if re.search(r"(?<!\S)/\S*\.onnx", each)]


def test_tool_cost_page_is_that_of_the_data() -> None:
    """``python benchmarks/tool_cost.py page`` would change nothing."""
    found = tool_cost.load()
    assert pages.shown("benchmarks.md", "tool_cost") == tool_cost.table(found).strip()
    assert figures.digest(found) in tool_cost.FIGURE.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [branches, slimmed])
def test_branches_page_is_that_of_the_data(script: ModuleType) -> None:
    """``--page`` of either script would change nothing."""
    found = json.loads(script.DATA.read_text(encoding="utf-8"))
    assert pages.shown("branches.md", script.__name__) == script.table(found).strip()


def test_architectures_page_is_that_of_the_data() -> None:
    """``python benchmarks/architectures.py --page`` would change nothing, and every fold was proven."""
    found = architectures.data()
    assert pages.shown("architectures.md", "architectures") == architectures.table(found).strip()
    entries = [
        each for family in found["families"].values() for each in family.values() if "failure" not in each
    ]
    assert entries
    assert all(each["equal"] for each in entries)
    unexplained = [e for e in entries if sum(e["stays"].values()) != e["batch_norms"][1] + e["maps"][1]]
    assert not unexplained


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_pattern(name: str, tmp_path: Path) -> None:
    """A twin has no batch norm, runs, and keeps everything finite; bnfold's fold of the net is right."""
    path, floor = tmp_path / "model.onnx", tmp_path / "twin.onnx"
    patterns.write(name, path)
    model, gone = twin.twin(path)
    files.save(model, floor)
    assert gone
    assert sum(twin.affine_nodes(path)) == len(gone)
    assert twin.affine_nodes(floor) == (0, 0)
    feeds = feeds_for(onnx.load(path))
    assert np.isfinite(ort.InferenceSession(floor).run(None, feeds)[0]).all()


def test_twin_leaves_what_is_no_fold(tmp_path: Path) -> None:
    """A dense bias, a layer normalization's γ and β and an activation's own constants stay in the floor."""
    from bnfold.core.example import Graph

    op = Graph(17)
    x = op.Add(op.MatMul(op.input("x", (4, 8)), op.weight(8, 8)), op.weight(8))
    x = op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, op.const(1.414))), op.const(1.0))), op.const(0.5))
    centered = op.Sub(x, op.ReduceMean(x, axes=[1]))
    deviation = op.Sqrt(op.Add(op.ReduceMean(op.Mul(centered, centered), axes=[1]), op.const(1e-5)))
    x = op.Add(op.Mul(op.Div(centered, deviation), op.weight(8)), op.weight(8))
    onnx.save(op.finish([op.MatMul(x, op.weight(8, 8))]), tmp_path / "model.onnx")
    assert twin.twin(tmp_path / "model.onnx")[1] == []


def test_executed_graph_does_not_depend_on_names_or_weights(tmp_path: Path) -> None:
    """Two models have one digest exactly if the same kernels run on the same shapes."""
    from bnfold.core.example import Graph

    def model(seed: int, width: int = 8, norm: bool = True) -> Path:
        op = Graph(17, seed=seed)
        x = op.Conv(op.input(f"x{seed}", (1, 3, 8, 8)), op.weight(width, 3, 3, 3))
        path = tmp_path / f"{seed}{width}{norm}.onnx"
        onnx.save(op.finish([op.Relu(op.batch_norm(x) if norm else x)]), path)
        return path

    for level in ("all", "off"):
        assert executed.executed(model(0), level) == executed.executed(model(1), level)
        assert executed.executed(model(0), level) != executed.executed(model(0, width=16), level)
    assert executed.executed(model(0), "off") != executed.executed(model(0, norm=False), "off")
    assert executed.remaining(model(0)) == 0


def test_process_is_measured_and_its_failure_told(tmp_path: Path) -> None:
    """Memory is that of the process itself, not of the one that starts it; a slow one is stopped."""
    python, ballast = [sys.executable, "-S", "-c"], np.ones(40_000_000)
    small = run([*python, "pass"], tmp_path, 60)
    large = run([*python, "bytearray(b'x' * (1 << 26))"], tmp_path, 60)
    assert small.peak is not None
    assert large.peak is not None
    assert small.peak < ballast.nbytes / 3
    assert large.peak - small.peak > 1 << 26
    assert "exit code 3" in run([*python, "raise SystemExit(3)"], tmp_path, 60).failure
    assert "SIGABRT" in run([*python, "import os; os.abort()"], tmp_path, 60).failure
    assert "stopped" in run([*python, "import time; time.sleep(60)"], tmp_path, 0.5).failure


def _model(name: str, times: dict[str, float], wrong: str = "") -> data.Data:
    """A network's results, made up: its variants' times in units of the floor's."""

    def interval(ratio: float) -> list[float]:
        return [ratio * 0.99, ratio, ratio * 1.01]

    def against(mine: float, other: float) -> tuple[list[float], str]:
        return interval(mine / other), "slower" if mine > 1.05 * other else "faster"

    known = {"failure": "", "remaining": 1, "operators": {"Conv": 1}}
    seconds = [1.0, *times.values()]
    pairs = [(i, j) for i in range(len(seconds)) for j in range(len(seconds)) if i != j]
    found = {
        "roles": {each: role for role, each in enumerate(["twin", *times])},
        "ratios": [interval(each) for each in seconds],
        "compared": {f"{i}/{j}": against(seconds[i], seconds[j]) for i, j in pairs},
    }
    variants = {each: known | {"wrong": each == wrong} for each in times}
    return {"name": name, "group": "digits", "variants": variants, "latency": {"all": found}}


def test_statements_hold_or_not() -> None:
    """Each statement is computed from the data, and says so when it does not hold."""
    good = [_model("a", {"onnxsim": 1.5, "onnxsim → bnfold": 1.0, BNFOLD: 1.0})]
    assert [each.holds for each in claims.statements({"models": good})] == [True, True, True]
    bad = [_model("a", {"onnxsim": 1.2, "onnxsim → bnfold": 1.4, BNFOLD: 1.1})]
    assert [each.holds for each in claims.statements({"models": bad})] == [False, False, False]
    assert "onnxsim → bnfold on a" in str(next(iter(claims.statements({"models": bad}))))


def test_losses_are_shown_and_wrong_results_are_no_competition() -> None:
    """A slower fold is listed with its cause; an optimizer whose result is wrong is no rival."""
    lost = [_model("a", {"onnxsim": 1.0, BNFOLD: 1.3})]
    assert len(list(claims.losses({"models": lost}))) == 1
    wrong = [_model("a", {"onnxsim": 1.0, "onnxslim": 1.5, BNFOLD: 1.3}, wrong="onnxsim")]
    assert list(claims.losses({"models": wrong})) == []
    assert results.Result(wrong[0]).best_peer() == "onnxslim"
