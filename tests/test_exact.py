"""``bnfold verify --exact``: which of two models is closer to the truth."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from test_planner import image, written

import bnfold
from bnfold.cli import main
from bnfold.core.example import Graph
from bnfold.verification import verify


def model() -> onnx.ModelProto:
    def write(op: Graph) -> str:
        return op.Relu(op.batch_norm(op.Conv(image(op), op.weight(4, 3, 3, 3)), channels=4))

    return written(write)


def test_distances_from_the_truth() -> None:
    """Both models are within their bound of the original in float64, and neither is exactly it."""
    a = model()
    verdict = verify(a, bnfold.fold(a).model, exact=True)
    ((original, candidate),) = verdict.from_truth.values()
    assert verdict.ok
    assert 0 < original <= verdict.outputs[0].bound
    assert 0 < candidate <= verdict.outputs[0].bound


def test_a_wrong_model_is_farther() -> None:
    """A model that computes something else is far from the truth, and the original is not."""
    a, b = model(), model()
    b.graph.initializer[0].raw_data = bytes(len(b.graph.initializer[0].raw_data))
    ((original, candidate),) = verify(a, b, exact=True).from_truth.values()
    assert candidate > 1000 * original


@pytest.mark.parametrize("exact", [True, False])
def test_command(
    tmp_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints one line per output that says which is closer, if asked to."""
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(model(), a)
    bnfold.fold(a).save(b)
    monkeypatch.setattr(sys, "argv", ["bnfold", "verify", str(a), str(b), *(["--exact"] if exact else [])])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert ("from A in float64" in capsys.readouterr().out) == exact
