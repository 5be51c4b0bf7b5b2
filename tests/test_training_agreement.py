"""Training mode means what it means elsewhere: four independent implementations agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from bnfold.training import MovingAverage, Running, batch_norm_training

KERAS = json.loads((Path(__file__).parent / "data" / "keras_batch_norm.json").read_text())
SHAPES = [(8, 3), (1, 3, 5), (4, 3, 5, 6), (16, 8, 14, 14), (2, 3, 4, 5, 2), (2, 4, 3, 3, 2, 2)]
# ε and momentum are float32 attributes in ONNX: these two are the same number in every type.
EPSILON, MOMENTUM = 2.0**-10, 0.875
Result = tuple[np.ndarray, np.ndarray, np.ndarray]


def assert_close(got: Any, expected: np.ndarray) -> None:
    """Differ by 1e-12 of the largest value in float64, by 4 ulp of it in float32.

    An element's own size is no measure: y passes through 0.
    """
    bound = 1e-12 if expected.dtype == np.float64 else 4 * np.finfo(expected.dtype).eps
    error = np.abs(got - expected.astype(np.float64)).max()
    assert error <= bound * np.abs(expected).max()


def by_onnxruntime(x: np.ndarray, *parameters: np.ndarray) -> Result:
    ort = pytest.importorskip("onnxruntime")
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    inputs = [helper.make_tensor_value_info(name, kind, None) for name in "xsbmv"]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in "yrq"]
    attributes = {"epsilon": EPSILON, "momentum": MOMENTUM, "training_mode": 1}
    node = helper.make_node("BatchNormalization", list("xsbmv"), list("yrq"), **attributes)
    model = helper.make_model(
        helper.make_graph([node], "training", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, dict(zip("xsbmv", (x, *parameters), strict=True))))


def by_torch(x: np.ndarray, *parameters: np.ndarray) -> Result:
    torch = pytest.importorskip("torch")
    tensor, scale, bias, mean, variance = (torch.tensor(value) for value in (x, *parameters))
    y = torch.nn.functional.batch_norm(
        tensor, mean, variance, scale, bias, training=True, momentum=1 - MOMENTUM, eps=EPSILON
    )
    return y.numpy(), mean.numpy(), variance.numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("peer", "rule"),
    [
        (by_onnxruntime, MovingAverage(MOMENTUM)),
        (by_torch, MovingAverage.from_torch(1 - MOMENTUM)),
    ],
)
def test_another_implementation_agrees(
    peer: Callable[..., Result], rule: MovingAverage, dtype: type, shape: tuple[int, ...]
) -> None:
    """The output and both running statistics, in two types and from two to six axes."""
    rng = np.random.default_rng(5)
    x = rng.normal(1.0, 2.0, shape).astype(dtype)
    scale, bias, mean, variance = rng.uniform(0.5, 2.0, (4, shape[1])).astype(dtype)
    expected = peer(x, scale, bias, mean, variance)
    y, batch = batch_norm_training(x, scale, bias, epsilon=EPSILON)
    for got, wanted in zip((y, *rule.update(Running(mean, variance), batch)), expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("case", KERAS["cases"], ids=lambda case: f"{case['shape']}-{case['dtype']}")
def test_keras_agrees(case: dict[str, Any]) -> None:
    """Committed numbers: two batches in a row, channels first, last and in the middle."""
    scale, bias, *moving = (np.array(weight, case["dtype"]) for weight in case["start"])
    running = Running(*moving)
    for batch, output in zip(case["batches"], case["outputs"], strict=True):
        x = np.array(batch, case["dtype"])
        y, moments = batch_norm_training(x, scale, bias, epsilon=case["epsilon"], axis=case["axis"])
        assert_close(y, np.array(output, case["dtype"]))
        running = MovingAverage(case["momentum"]).update(running, moments)
    for got, expected in zip(running, case["moving"], strict=True):
        assert_close(got, np.array(expected, case["dtype"]))


@pytest.mark.parametrize("name", ["example", "epsilon"])
def test_onnx_node_tests_agree(name: str) -> None:
    """The two training-mode cases of the standard's own backend tests."""
    node = pytest.importorskip("onnx.backend.test.case.node")
    pytest.importorskip("onnx.backend.test.case.node.batch_normalization")
    cases = {case.name: case for case in node._NodeTestCases}
    case = cases[f"test_batchnorm_{name}_training_mode"]
    ((x, scale, bias, mean, variance), expected) = case.data_sets[0]
    attributes = {a.name: a.f for a in case.model.graph.node[0].attribute}
    y, batch = batch_norm_training(x, scale, bias, epsilon=attributes.get("epsilon", 1e-5))
    got = (y, *MovingAverage(0.9).update(Running(mean, variance), batch))
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs)
