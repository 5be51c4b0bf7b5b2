"""Real models keep their outputs: onnx's light zoo, the trained digit nets, and others' models where present.

The models of others are no part of the project: the environment variable ``BNFOLD_MODELS`` names
the folder in which they are, and without it those tests are skipped.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from truth import onnx_runtime

import bnfold

Array = NDArray[Any]

DIGITS = Path(__file__).parent.parent / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
OTHERS = Path(os.environ.get("BNFOLD_MODELS", ""))

BATCH_NORM = "BatchNormalization"


def count(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    outputs = onnx_runtime(model, feeds)
    assert outputs is not None
    return outputs


def inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to give."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def fold(path: Path, **options: Any) -> tuple[ModelProto, ModelProto]:
    """The original and the folded model, with all that must stay checked."""
    original = onnx.load(path)
    given = original.SerializeToString(deterministic=True)
    folded = bnfold.fold(original, **options).model
    assert original.SerializeToString(deterministic=True) == given
    assert inputs(folded) == inputs(original)
    assert [*folded.graph.output] == [*original.graph.output]
    assert folded.ir_version == original.ir_version
    assert {(o.domain, o.version) for o in folded.opset_import} == {
        (o.domain, o.version) for o in original.opset_import
    }
    assert [*folded.metadata_props] == [*original.metadata_props]
    assert len(folded.graph.node) <= len(original.graph.node)
    return original, folded


def assert_close(after: list[Array], before: list[Array], tolerance: float) -> None:
    """Equal but for rounding, relative to the largest value of each output."""
    assert len(after) == len(before)
    for mine, theirs in zip(after, before, strict=True):
        assert mine.dtype == theirs.dtype
        scale = float(np.abs(theirs).max(initial=0.0)) or 1.0
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale)


# onnx's light zoo: real architectures whose weights are generated constants.

ZOO = {
    # One is left in front of a Relu; most of the others hold one number for all channels.
    "light_densenet121": (121, 1),
    "light_inception_v2": (69, 0),
    "light_resnet50": (53, 0),
    "light_shufflenet": (49, 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_light_zoo(name: str) -> None:
    """Each net loses its batch norms and keeps its outputs."""
    original, folded = fold(LIGHT / f"{name}.onnx")
    before, after = ZOO[name]
    assert count(original)[BATCH_NORM] == before
    assert count(folded)[BATCH_NORM] == after
    (given,) = inputs(original)
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    random = {given.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    assert_close(run(folded, random), run(original, random), 1e-4)
    # The input to which onnx ships the output: see onnx.backend.test.runner.
    size = math.prod(shape)
    ramp = {given.name: (np.arange(size).reshape(shape) / size).astype(np.float32)}
    shipped = numpy_helper.to_array(onnx.load_tensor(LIGHT / f"{name}_output_0.pb"))
    assert_close(run(folded, ramp), [shipped], 1e-4)


# The nets in models/, trained on the UCI digits.

NETS: list[dict[str, Any]] = json.loads((DIGITS / "digits.json").read_text())["models"]


@pytest.mark.parametrize("net", NETS, ids=lambda net: str(net["file"]))
def test_digits(net: dict[str, Any]) -> None:
    """Every batch norm goes, and not one test image is classified differently."""
    original, folded = fold(DIGITS / net["file"])
    assert count(original)[BATCH_NORM] == net["batch_normalizations"]
    assert count(folded)[BATCH_NORM] == 0
    with np.load(DIGITS / "digits_test.npz") as data:
        images, labels = data["images"], data["labels"]
    (before,), (after,) = (run(each, {"image": images}) for each in (original, folded))
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert int((after.argmax(axis=1) == labels).sum()) == net["correct"]
    assert len(labels) == net["total"]
    assert_close([after], [before], 1e-5)


# Models of others.


@dataclass(frozen=True)
class Other:
    """One model and what folding must make of it: operators that are counted before and after."""

    inputs: dict[str, tuple[int, ...]]
    before: int
    after: int
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4


MODELS = {
    "burn-mnist": Other({"input.1": (1, 1, 28, 28)}, 2, 0),
    "gtcrn-simple": Other(
        {
            "mix": (1, 257, 1, 2),
            "conv_cache": (2, 1, 16, 16, 33),
            "tra_cache": (2, 3, 1, 1, 16),
            "inter_cache": (2, 1, 33, 16),
        },
        11,
        0,
    ),
    # Behind a Relu and in front of padding: what would be left is an Add.
    "mesonet": Other({"input": (1, 256, 256, 3)}, 4, 3),
    "minifasnet-v2": Other({"input": (1, 3, 80, 80)}, 1, 0),
    "ppocr-mobile-v1.1-det": Other({"image": (1, 3, 64, 96)}, 49, 0),
    "starrem2k13": Other({"args_0": (1, 512, 512)}, 0, 0),
    "ultraface-slim-320": Other({"input": (1, 3, 240, 320)}, 25, 0, options={"freeze_initializers": True}),
}


@pytest.mark.skipif(not OTHERS.name, reason="set BNFOLD_MODELS to the folder of the models")
@pytest.mark.parametrize("name", MODELS)
def test_models_of_others(name: str) -> None:
    """Each folds as far as today's rules reach, stays valid, and computes the same."""
    other, path = MODELS[name], OTHERS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    original, folded = fold(path, **other.options)
    assert count(original)[BATCH_NORM] == other.before
    assert count(folded)[BATCH_NORM] == other.after
    random = np.random.default_rng(1)
    feeds = {key: random.normal(size=shape).astype(np.float32) for key, shape in other.inputs.items()}
    assert_close(run(folded, feeds), run(original, feeds), other.tolerance)


@pytest.mark.skipif(not OTHERS.name, reason="set BNFOLD_MODELS to the folder of the models")
def test_overridable_model_is_left_alone() -> None:
    """Ultraface lists its weights as inputs from IR version 4 on: without freezing, nothing moves."""
    path = OTHERS / "ultraface-slim-320.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    result = bnfold.fold(path)
    assert not result.report.changed
    assert result.report.overridable == 25
    given = onnx.load(path)
    assert [value.name for value in ir.to_proto(result.model).graph.input] == [
        v.name for v in given.graph.input
    ]


@pytest.mark.skipif(not OTHERS.name, reason="set BNFOLD_MODELS to the folder of the models")
def test_invalid_model() -> None:
    """A model that no runtime loads is folded soundly or refused by a typed error; it never crashes."""
    path = OTHERS / "hls4ml-three-layer-bn-keras.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    try:
        result = bnfold.fold(path)
    except bnfold.BnfoldError:
        return
    assert isinstance(result.model, ir.Model)
