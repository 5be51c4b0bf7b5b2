"""The examples of docs/pipelines.md are run as they stand there.

Those for torch, Keras, TensorFlow and Olive are skipped where these are not installed;
``benchmarks/pipelines.py`` runs them where they are.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
CNN = ROOT / "models" / "digits_cnn.onnx"
EXPORTED = ROOT / "models" / "exporters" / "preactivation.keras-torch.onnx"


def blocks(section: str) -> list[str]:
    """The indented examples of one section of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = "\n".join(line if line.startswith("    ") or not line else "|" for line in text.splitlines())
    return [re.sub("^    ", "", block, flags=re.M).strip() for block in lines.split("|") if block.strip()]


def batch_norms(model: onnx.ModelProto) -> int:
    """Batch norms, and the arithmetic with stored vectors that stands for them."""
    vectors = {tensor.name for tensor in model.graph.initializer if max(tensor.dims, default=1) > 1}
    arithmetic = ("Add", "Sub", "Mul", "Div")
    return sum(
        node.op_type == "BatchNormalization"
        or (node.op_type in arithmetic and vectors & {*node.input} != set())
        for node in model.graph.node
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a ``model.onnx`` in it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.load(EXPORTED), "model.onnx")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_torch(folder: Path) -> None:
    """The pass works on a program before it is saved, and ``fold`` returns a program."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4))
    model = torch.nn.Sequential(model, torch.nn.Conv2d(4, 2, 3)).eval()
    example = torch.rand(1, 3, 8, 8)
    known: dict[str, Any] = {"torch": torch, "bnfold": bnfold, "model": model, "example": example}
    exec(blocks("torch")[0], known)
    saved = onnx.load("model.onnx")
    assert batch_norms(saved) == 0
    program = torch.onnx.export(model, (example,), dynamo=True)
    folded = bnfold.fold(program, verify=True)
    assert isinstance(folded.model, type(program))
    assert batch_norms(folded.model.model_proto) == 0
    assert batch_norms(program.model_proto) == 1


@pytest.mark.filterwarnings("ignore")
def test_keras(folder: Path) -> None:
    """The two lines fold what Keras writes, in place."""
    keras = pytest.importorskip("keras")
    image = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(image))
    model = keras.Model(image, keras.layers.Conv2D(2, 3)(y))
    model(np.zeros((1, 8, 8, 3), np.float32))  # Keras exports no model that was never called
    known = {"bnfold": bnfold, "model": model}
    exec(blocks("Keras")[0], known)
    assert batch_norms(onnx.load("model.onnx")) == 0


@pytest.mark.filterwarnings("ignore")
def test_tf2onnx() -> None:
    """What tf2onnx returns folds in memory."""
    tf2onnx = pytest.importorskip("tf2onnx")
    keras = pytest.importorskip("keras")
    image = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 3, activation="relu")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 3)(keras.layers.BatchNormalization()(y)))
    known: dict[str, Any] = {"tf2onnx": tf2onnx, "bnfold": bnfold, "model": model}
    exec(blocks("tf2onnx")[0], known)
    assert batch_norms(known["proto"]) == 0


def test_model_proto(folder: Path) -> None:
    """A ModelProto gives a ModelProto."""
    known: dict[str, Any] = {"onnx": onnx, "bnfold": bnfold}
    exec(blocks("Any tool that holds a `ModelProto`")[0], known)
    assert isinstance(known["proto"], onnx.ModelProto)
    assert batch_norms(onnx.load("model.onnx")) > batch_norms(known["proto"]) == 0


@pytest.mark.filterwarnings("ignore")
def test_olive(folder: Path) -> None:
    """Olive runs the pass by its package config."""
    pytest.importorskip("olive")
    package, workflow, _ = blocks("Olive")
    path = [str(ROOT / "benchmarks" / "exporters"), str(ROOT), *sys.path]
    run = "import json; from olive.workflows import run; run({workflow}, package_config={package})"
    script = run.format(workflow=_python(workflow), package=_python(package))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = (folder / "folded").rglob("*.onnx")
    assert batch_norms(onnx.load(written)) < batch_norms(onnx.load("model.onnx"))


def _python(text: str) -> str:
    return repr(json.loads(text))


@pytest.mark.filterwarnings("ignore")
def test_static_quantization(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold goes before the quantizer, and the table on the page says what that does."""
    example = blocks("Before static quantization")[0]
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "quantization.py"))
    with np.load(ROOT / "models" / "digits_test.npz") as data:
        calibration = script["Images"](data["images"][:20].astype(np.float32))
    onnx.save(onnx.load(CNN), "model.onnx")
    known = {name: script[name] for name in ("quant_pre_process", "quantize_static")}
    exec(example, {"bnfold": bnfold, "calibration": calibration, **known})
    assert batch_norms(onnx.load("quantized.onnx")) == 0
    shown = PAGE.split("<!-- quantization -->")[1].strip()
    # The error of rounding is one processor's own.
    assert [line.split("|")[:4] for line in script["table"]().splitlines()] == [
        line.split("|")[:4] for line in shown.splitlines()
    ]


def test_pre_commit(folder: Path) -> None:
    """The hook's command fails for a model that could be folded, and passes for its fold."""
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    (entry,) = re.findall(r"entry: bnfold (.*)", hook)
    assert "id: bnfold-check" in hook
    assert "id: bnfold-check" in PAGE
    bnfold.fold("model.onnx").save("folded.onnx")
    for name, code in (("model.onnx", 1), ("folded.onnx", 0)):
        command = [sys.executable, "-m", "bnfold", *entry.split(), name]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == code
