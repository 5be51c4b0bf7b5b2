"""Promises of ``bnfold.verify``: what it proves, what it catches, and how it fails.

Nets are folded by hand here, in float64 with one rounding, so that nothing of bnfold's own folding is
trusted. Most tests run the child's code in this process; those with the fixture ``child`` start it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import errors
from bnfold.verification import Status, Verdict, runner, verify, worker
from bnfold.verification.compare import pieces
from bnfold.verification.compare.gap import gap, ulp_at
from bnfold.verification.engines.reference import EXACT_FROM, Reference, require_exact

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def child() -> None:
    """Start the real child process in this test."""


@pytest.fixture(autouse=True)
def _same_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the child's code here, quickly and with warnings as errors, unless the test uses ``child``."""

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        worker.main(folder)
        return subprocess.CompletedProcess([], 0, "", "")

    if "child" not in request.fixturenames:
        monkeypatch.setattr(runner, "_run", run)


# ------------------------------------------------------------------------------------------- models


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any] | None]],
    outputs: dict[str, int],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from nodes; inputs as (element type, shape), outputs by element type, constants as arrays."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(op: str, reads: str, writes: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs and outputs are given as words; "-" is an input left out."""
    names = [["" if name == "-" else name for name in words.split()] for words in (reads, writes)]
    return helper.make_node(op, *names, **attributes)


@dataclass(frozen=True)
class Layer:
    """The constants of one Conv and of the batch norm behind it, in float64."""

    weight: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        """What the batch norm multiplies by."""
        return self.gamma / np.sqrt(self.var + float(np.float32(1e-5)))

    def folded(self, sabotage: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the Conv that replaces both, correct or in one way wrong."""
        scale = self.gamma / np.sqrt(self.var) if sabotage == "epsilon" else self.scale.copy()
        if sabotage == "channel":
            scale[0] *= 1.01
        axis = (1, -1, 1, 1) if sabotage == "axis" else (-1, 1, 1, 1)
        bias = self.bias if sabotage == "bias" else scale * self.bias
        return self.weight * scale.reshape(axis), bias + self.beta - scale * self.mean


def make_layers(depth: int, channels: int = 8, seed: int = 0) -> list[Layer]:
    """Normalized layers: the values stay near 1 at any depth, as in a trained net; weights are square."""
    random = np.random.default_rng(seed)
    layers = []
    for _ in range(depth):
        weight = random.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (channels * 9))
        vectors = (random.standard_normal(channels) * size for size in (0.1, 0.3, 0.3))
        bias, beta, mean = vectors
        gamma, var = random.uniform(0.5, 1.5, (2, channels))
        layers.append(Layer(weight, bias, gamma, beta, mean, var))
    return layers


def net(layers: list[Layer], dtype: Any = np.float32, opset: int = 17) -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu (not behind the last) for each layer."""
    nodes, constants, read = [], {}, "x"
    for index, layer in enumerate(layers):
        names = {field: f"{field}{index}" for field in layer.__dataclass_fields__}
        constants |= {names[field]: getattr(layer, field).astype(dtype) for field in names}
        norm = " ".join(names[field] for field in ("gamma", "beta", "mean", "var"))
        nodes += [
            node("Conv", f"{read} {names['weight']} {names['bias']}", f"conv{index}", pads=[1] * 4),
            node("BatchNormalization", f"conv{index} {norm}", f"norm{index}"),
            node("Relu", f"norm{index}", f"relu{index}"),
        ]
        read = f"relu{index}"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = ["batch", layers[0].weight.shape[1], 8, 8]
    return make_model(nodes[:-1], {"x": (kind, shape)}, {f"norm{len(layers) - 1}": kind}, constants, opset)


def fold(model: onnx.ModelProto, layers: list[Layer], sabotage: str = "", only: int | None = None) -> Any:
    """Replace every Conv and BatchNormalization by one Conv under fresh constants; the norm's name stays."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    dtype = numpy_helper.to_array(graph.initializer[0]).dtype
    for index, layer in enumerate(layers):
        conv = next(each for each in graph.node if each.output[0] == f"conv{index}")
        norm = next(each for each in graph.node if each.output[0] == f"norm{index}")
        wrong = sabotage if only in (None, index) else ""
        for name, value in zip(("w", "b"), layer.folded(wrong), strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype(dtype), f"folded{index}_{name}"))
        conv.input[1:] = [f"folded{index}_w", f"folded{index}_b"]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    return prune(folded)


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop initializers that nothing reads."""
    read = {name for each in model.graph.node for name in each.input}
    kept = [each for each in model.graph.initializer if each.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def then(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: dict[str, int], **constants: Any
) -> Any:
    """The model with more nodes behind it and other outputs."""
    longer = onnx.ModelProto()
    longer.CopyFrom(model)
    longer.graph.node.extend(nodes)
    longer.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    del longer.graph.output[:]
    longer.graph.output.extend(helper.make_tensor_value_info(*each, None) for each in outputs.items())
    return longer


def renamed(model: onnx.ModelProto, suffix: str) -> onnx.ModelProto:
    """The model with every inner tensor under another name, as a foreign tool might write it."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    outside = {
        each.name for part in ("input", "output", "initializer") for each in getattr(other.graph, part)
    }
    for each in other.graph.node:
        for names in (each.input, each.output):
            for position, name in enumerate(names):
                names[position] = name if not name or name in outside else name + suffix
    return other


# ------------------------------------------------------------------------------ equal and different

DEPTHS = (1, 10)
SABOTAGES = ("epsilon", "axis", "bias", "channel")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_correct_fold_is_equal(depth: int, shared: bool) -> None:
    """A fold computed in float64 and rounded once is proven equal, with inner tensors and without."""
    layers = make_layers(depth)
    verdict = verify(net(layers), fold(net(layers), layers), shared=shared)
    assert verdict.status is Status.EQUAL, verdict.reason
    assert verdict.ok
    assert bool(verdict)
    assert all(each.ok and each.ulp <= each.bound for each in verdict.outputs)
    assert verdict.samples >= 2


@pytest.mark.parametrize("seed", range(5))
def test_correct_folds_stay_well_below_the_bound(seed: int) -> None:
    """No luck is needed: other weights and other inputs give the same answer."""
    layers = make_layers(10, channels=16, seed=seed)
    verdict = verify(net(layers), fold(net(layers), layers), seed=seed, shared=True)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_wrong_fold_is_different(sabotage: str, depth: int, shared: bool) -> None:
    """Forgotten epsilon, wrong axis, unscaled bias and 1 % in one channel are found, shallow and deep."""
    layers = make_layers(depth)
    verdict = verify(net(layers), fold(net(layers), layers, sabotage), shared=shared)
    assert verdict.status is Status.DIFFERENT, verdict.reason


@pytest.mark.parametrize("layer", range(10))
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_one_wrong_layer_of_ten_is_found_and_named(sabotage: str, layer: int) -> None:
    """Where names are promised to keep their meaning, the first wrong tensor is named, however deep it is."""
    layers = make_layers(10)
    verdict = verify(net(layers), fold(net(layers), layers, sabotage, only=layer), shared=True)
    assert verdict.status is Status.DIFFERENT, verdict.reason
    assert f"'norm{layer}'" in verdict.reason
    assert verdict.worst is not None
    assert verdict.worst.name == f"norm{layer}"


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_wide_sums_hide_nothing(sabotage: str) -> None:
    """With 576 terms in every sum rounding is largest, and all four errors are still found."""
    layers = make_layers(2, channels=64)
    assert verify(net(layers), fold(net(layers), layers), shared=True).ok
    verdict = verify(net(layers), fold(net(layers), layers, sabotage, only=1), shared=True)
    assert verdict.status is Status.DIFFERENT, verdict.reason


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("depth", [1, 5])
def test_other_float_types(dtype: Any, depth: int) -> None:
    """Correct folds pass in float16, bfloat16 and float64; an unscaled bias does not, nor a wrong axis."""
    layers = [replace(each, bias=each.bias * 10) for each in make_layers(depth, channels=4)]
    model = net(layers, dtype, opset=22)
    good = verify(model, fold(model, layers), shared=True)
    assert good.ok, good.reason
    assert good.outputs[0].dtype == np.dtype(dtype).name
    for sabotage in ("bias", "axis"):
        verdict = verify(model, fold(model, layers, sabotage), shared=True)
        assert verdict.status is Status.DIFFERENT, verdict.reason


def test_float64_sees_an_epsilon_that_was_not_rounded_to_float32() -> None:
    """ONNX keeps epsilon as float32; 1e-5 in float64 makes a fold 1000 ulp wrong."""
    layers = make_layers(1)
    model = net(layers, np.float64)
    wrong = fold(model, layers)
    exact = layers[0].gamma / np.sqrt(layers[0].var + 1e-5)
    weight = next(each for each in wrong.graph.initializer if each.name == "folded0_w")
    array = layers[0].weight * exact.reshape(-1, 1, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(array, "folded0_w"))
    assert verify(model, wrong).status is Status.DIFFERENT


def test_training_mode_batch_norm_runs() -> None:
    """A batch norm in training mode is deterministic and can be compared, its running statistics included."""
    layer = make_layers(1)[0]
    model = net([layer])
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["running_mean", "running_var"])
    for name in ("running_mean", "running_var"):
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    verdict = verify(model, renamed(model, "_b"))
    assert verdict.ok, verdict.reason
    assert [each.name for each in verdict.outputs] == ["norm0", "running_mean", "running_var"]


# -------------------------------------------------------------------- rounding that no depth bounds


def test_a_mean_of_1000_is_judged_in_float64() -> None:
    """Cancellation exceeds the bound; the fold is still proven, and the forgotten epsilon found."""
    layer = replace(make_layers(1)[0], var=np.full(8, 1e-2))
    layer = replace(layer, bias=layer.bias + 1000, mean=layer.mean + 1000)
    model = net([layer])
    verdict = verify(model, fold(model, [layer]), shared=True)
    assert verdict.ok, verdict.reason
    assert verdict.outputs[0].ulp > verdict.outputs[0].bound
    assert "in float64" in verdict.reason
    assert verify(model, fold(model, [layer], "epsilon")).status is Status.DIFFERENT


@pytest.mark.parametrize("wrong", [False, True])
def test_a_recurrence_is_judged_in_float64(wrong: bool) -> None:
    """Forty steps amplify rounding beyond the bound; the fold is still proven, and one wrong weight found."""
    random = np.random.default_rng(0)
    w, r, b = (random.uniform(-0.5, 0.5, shape) for shape in ((1, 96, 32), (1, 96, 24), (1, 192)))
    scale, shift = random.uniform(0.5, 1.5, 32), random.normal(size=32)
    bias = b + np.concatenate([w @ shift, np.zeros((1, 96))], axis=1)
    folded = w * scale
    folded[0, 0, 0] *= 1.01 if wrong else 1.0
    inputs, lstm = {"x": (FLOAT, [40, 1, 32])}, node("LSTM", "n w r b", "y", hidden_size=24)

    def model(nodes: list[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
        narrow = {name: each.astype(np.float32) for name, each in constants.items()}
        return make_model(nodes, inputs, {"y": FLOAT}, narrow)

    scaled = [node("Mul", "x s", "m"), node("Add", "m t", "n")]
    a = model([*scaled, lstm], w=w, r=r, b=b, s=scale, t=shift)
    verdict = verify(a, model([node("LSTM", "x w r b", "y", hidden_size=24)], w=folded, r=r, b=bias))
    assert verdict.ok is not wrong, verdict.reason
    assert verdict.outputs[0].ulp > verdict.outputs[0].bound


def test_equal_weights_round_alike() -> None:
    """256 equal terms are rounded in one direction; that is rounding, and no reason to fail."""
    shape = (256, 256, 1, 1)
    vectors = {name: np.full(256, 0.02) for name in ("bias", "gamma", "beta", "mean", "var")}
    layer = Layer(np.full(shape, 0.02), **vectors)
    verdict = verify(net([layer]), fold(net([layer]), [layer]), shared=True)
    assert verdict.ok, verdict.reason


def test_a_candidate_that_is_right_but_loses_precision_is_different() -> None:
    """Adding and taking away a million is exact over the reals, but float64 excuses no such loss."""
    a = make_model([node("Identity", "x", "y")], {"x": (FLOAT, [2, 50])}, {"y": FLOAT})
    million = np.full(50, 1e6, np.float32)
    steps = [node("Add", "x k", "t"), node("Sub", "t k", "y")]
    b = make_model(steps, {"x": (FLOAT, [2, 50])}, {"y": FLOAT}, {"k": million})
    verdict = verify(a, b)
    assert verdict.status is Status.DIFFERENT
    assert "loses precision" in verdict.reason


def test_amplified_rounding_is_not_a_difference() -> None:
    """The difference of two equal branches is nothing but rounding; every piece agrees, so the models do."""
    layers = make_layers(2)
    model = net(layers)
    nodes = [
        node("Mul", "relu0 three", "t0"),
        node("Mul", "t0 third", "t1"),
        node("Sub", "t1 relu0", "noise"),
        node("Mul", "noise big", "loud"),
        node("Add", "loud norm1", "y"),
    ]
    constants = {"three": np.float32(3.3), "third": np.float32(1 / 3.3), "big": np.float32(1e6)}
    a = then(model, nodes, {"y": FLOAT}, **constants)
    b = then(fold(model, layers), nodes, {"y": FLOAT}, **constants)
    for shared in (False, True):
        verdict = verify(a, b, shared=shared)
        assert verdict.ok, verdict.reason
        assert verdict.outputs[0].ulp > verdict.outputs[0].bound
        assert verdict.outputs[0].note == "accumulated rounding", verdict.reason
        assert verdict.outputs[0].ok
        assert verdict.outputs[0].noise is not None
    wrong = then(fold(model, layers, "channel"), nodes, {"y": FLOAT}, **constants)
    assert verify(a, wrong).status is Status.DIFFERENT


def test_models_without_a_name_in_common_are_judged_by_their_outputs() -> None:
    """A foreign tool may rename every inner tensor: correct is still equal, and wrong is still different."""
    layers = make_layers(10)
    model = net(layers)
    assert verify(model, renamed(fold(model, layers), "_b")).ok
    for sabotage in SABOTAGES:
        wrong = renamed(fold(model, layers, sabotage), "_b")
        assert verify(model, wrong).status is Status.DIFFERENT


def test_names_that_changed_their_meaning_prove_nothing() -> None:
    """Peers keep the convolution's name for the folded tensor: equal models stay equal without ``shared``."""
    layers = make_layers(3)
    a = net(layers)
    b = fold(a, layers)
    for index in range(2):
        for each in b.graph.node:
            for names in (each.input, each.output):
                for position, name in enumerate(names):
                    names[position] = f"conv{index}" if name == f"norm{index}" else name
    assert verify(a, b).ok
    assert verify(a, b, shared=True).status is Status.DIFFERENT


def test_large_inner_tensors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner tensors are compared within a limit of memory; the rest of the proof is not weakened."""
    layers = make_layers(4)
    model = net(layers)
    folded, wrong = fold(model, layers), fold(model, layers, "bias", only=1)
    everything = verify(model, folded, shared=True).shared
    monkeypatch.setattr(pieces, "_CUT_BYTES", 3 * 2 * 8 * 64 * 4)
    few = verify(model, folded, shared=True)
    assert few.ok
    assert 0 < few.shared < everything
    assert verify(model, wrong, shared=True).status is Status.DIFFERENT


# --------------------------------------------------------------------------------- discrete outputs


def tied(layers: list[Layer]) -> list[Layer]:
    """Channels 0 and 1 of the last layer become one function in two scales, so that they always tie."""
    last = layers[-1]
    arrays = {field: getattr(last, field).copy() for field in last.__dataclass_fields__}
    for array in arrays.values():
        array[1] = array[0]
    arrays["beta"][:2] += 100.0
    arrays["weight"][1], arrays["bias"][1] = last.weight[0] / 3, last.bias[0] / 3
    arrays["mean"][1], arrays["gamma"][1] = last.mean[0] / 3, arrays["gamma"][0] * 3
    arrays["var"][1] = arrays["var"][0]
    return [*layers[:-1], Layer(**arrays)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_flipped_tie_is_reported_and_not_failed(shared: bool) -> None:
    """Where the tensor in front of an ArgMax agrees, other indices are ties that flipped."""
    layers = tied(make_layers(2))
    a = then(net(layers), [node("ArgMax", "norm1", "y", axis=1)], {"y": INT64})
    b = then(fold(net(layers), layers), [node("ArgMax", "norm1", "y", axis=1)], {"y": INT64})
    verdict = verify(a, b, shared=shared)
    assert verdict.ok, verdict.reason
    assert verdict.outputs[0].note.startswith("ties flipped: ")
    assert verdict.outputs[0].note.endswith("of 128 values differ")


@pytest.mark.parametrize("sabotage", ["axis", "bias"])
def test_other_indices_without_ties_are_different(sabotage: str) -> None:
    """A discrete output differs where the tensor in front of it does."""
    layers = make_layers(2)
    layers = [replace(each, bias=each.bias * 10) for each in layers]
    tail = [node("TopK", "norm1 k", "values y", axis=1)]
    a = then(net(layers), tail, {"y": INT64}, k=np.array([3]))
    b = then(fold(net(layers), layers, sabotage), tail, {"y": INT64}, k=np.array([3]))
    assert verify(a, b).status is Status.DIFFERENT
    assert verify(a, b, shared=True).status is Status.DIFFERENT


def test_indices_differ_if_the_tensor_in_front_is_not_in_both() -> None:
    """Without the float tensor in both models there is nothing to excuse a different index with."""
    layers = tied(make_layers(2))
    a = then(net(layers), [node("ArgMax", "norm1", "y", axis=1)], {"y": INT64})
    b = then(fold(net(layers), layers), [node("ArgMax", "norm1", "y", axis=1)], {"y": INT64})
    verdict = verify(a, renamed(b, "_b"))
    assert verdict.status is Status.DIFFERENT
    assert "of 128 values differ" in verdict.reason


def test_boolean_and_integer_outputs_are_compared() -> None:
    """Comparisons and casts are compared value by value."""
    layers = make_layers(1)
    tail = [node("Greater", "norm0 zero", "y"), node("Cast", "norm0", "z", to=TensorProto.INT32)]
    outputs = {"y": TensorProto.BOOL, "z": TensorProto.INT32}
    a = then(net(layers), tail, outputs, zero=np.float32(0))
    b = then(fold(net(layers), layers), tail, outputs, zero=np.float32(0))
    wrong = then(fold(net(layers), layers, "axis"), tail, outputs, zero=np.float32(0))
    assert verify(a, b, shared=True).ok
    assert verify(a, wrong, shared=True).status is Status.DIFFERENT
    assert verify(a, wrong).status is Status.DIFFERENT


# ------------------------------------------------------------------------------- inputs cannot tell


def saturated(model: onnx.ModelProto, **outputs: int) -> onnx.ModelProto:
    nodes = [node("Mul", "norm0 big", "loud"), node("Sigmoid", "loud", "y")]
    return then(model, nodes, {"y": FLOAT, **outputs}, big=np.float32(1e9))


def test_a_saturated_output_cannot_tell_but_inner_tensors_can() -> None:
    """A sigmoid of 0 and 1 hides everything; the tensors in front of it make the proof."""
    layers = make_layers(1)
    verdict = verify(saturated(net(layers)), saturated(fold(net(layers), layers)), shared=True)
    assert verdict.ok, verdict.reason
    assert verdict.shared
    assert verdict.outputs[0].note == "inputs cannot tell: saturated"
    wrong = saturated(fold(net(layers), layers, "epsilon"))
    assert verify(saturated(net(layers)), wrong, shared=True).status is Status.DIFFERENT


def test_if_nothing_can_tell_the_model_is_not_verified() -> None:
    """Saturated outputs of models without a name in common prove nothing, and that is said."""
    layers = make_layers(1)
    wrong = renamed(saturated(fold(net(layers), layers, "epsilon")), "_b")
    verdict = verify(saturated(net(layers)), wrong)
    assert verdict.status is Status.NOT_VERIFIED
    assert "can tell" in verdict.reason
    assert ".npz" in verdict.reason


def test_a_constant_output_is_noted_beside_one_that_tells() -> None:
    """An output that no input moves is named as constant; the other outputs make the proof."""
    layers = make_layers(1)
    tail = [node("Shape", "x", "y"), node("Mul", "norm0 zero", "nil"), node("Add", "nil some", "c")]
    constants = {"zero": np.float32(0), "some": np.arange(8, dtype=np.float32)}
    outputs = {"norm0": FLOAT, "y": INT64, "c": FLOAT}
    a = then(net(layers), tail, outputs, **constants)
    b = renamed(then(fold(net(layers), layers), tail, outputs, **constants), "_b")
    verdict = verify(a, b)
    assert verdict.ok, verdict.reason
    constant = "inputs cannot tell: constant"
    assert [each.note for each in verdict.outputs] == ["", constant, constant]


def test_one_input_of_the_user_is_contrasted_with_its_reverse() -> None:
    """A constant output is recognized even if the user gives only one input."""
    layers = make_layers(1)
    some = {"some": np.arange(8, dtype=np.float32), "zero": np.float32(0)}
    tail = [node("Mul", "norm0 zero", "nil"), node("Add", "nil some", "c")]
    a = then(net(layers), tail, {"c": FLOAT}, **some)
    b = renamed(then(fold(net(layers), layers), tail, {"c": FLOAT}, **some), "_b")
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 8, 8, 8), np.float32)}
    verdict = verify(a, b, inputs=inputs)
    assert verdict.status is Status.NOT_VERIFIED
    assert verdict.outputs[0].note == "inputs cannot tell: constant"


def test_a_model_without_inputs_is_compared_completely() -> None:
    """Without inputs there is no other value to try, so equal outputs are proof enough."""
    values = {"k": np.ones((2, 3), np.float32)}
    a = make_model([node("Relu", "k", "y")], {}, {"y": FLOAT}, values)
    b = make_model([node("Identity", "k", "y")], {}, {"y": FLOAT}, values)
    assert verify(a, b).ok


def test_a_model_is_equal_to_itself_even_if_saturated() -> None:
    """Where no operator and no constant differs, nothing needs to tell."""
    model = saturated(net(make_layers(1)))
    assert verify(model, model).ok


# ---------------------------------------------------------------------------------- infinities, NaN


def special(*values: float) -> onnx.ModelProto:
    """Y = x, but its first values are replaced."""
    last = np.zeros(8, np.float32)
    last[: len(values)] = values
    mask = np.arange(8) < len(values)
    nodes = [node("Where", "mask k x", "y")]
    return make_model(nodes, {"x": (FLOAT, [4, 8])}, {"y": FLOAT}, {"k": last, "mask": mask})


def test_infinities_and_nan_in_the_same_places_are_equal() -> None:
    """What both models compute as infinite or NaN is no difference."""
    a = special(np.inf, -np.inf, np.nan)
    b = renamed(a, "_b")
    b.graph.node.append(node("Identity", "x", "unused"))
    assert verify(a, b).ok


@pytest.mark.parametrize("other", [(np.inf, 0.0), (np.inf, np.inf), (np.nan, -np.inf), (1.0, -np.inf)])
def test_infinities_and_nan_in_one_model_only_are_different(other: tuple[float, ...]) -> None:
    """No bound and no excuse covers an infinity or NaN that only one model computes."""
    verdict = verify(special(np.inf, -np.inf), special(*other))
    assert verdict.status is Status.DIFFERENT
    assert "infinite or NaN in one model only" in verdict.reason


# --------------------------------------------------------------------------------------- signatures


def test_other_signatures_are_different() -> None:
    """Other output names, order, types or inputs are a difference, said in one sentence."""
    pair = [node("Relu", "x", "y"), node("Neg", "x", "z")]
    a = make_model(pair, {"x": (FLOAT, [2, 3])}, {"y": FLOAT, "z": FLOAT})
    order = make_model(pair, {"x": (FLOAT, [2, 3])}, {"z": FLOAT, "y": FLOAT})
    fewer = make_model(pair, {"x": (FLOAT, [2, 3])}, {"y": FLOAT})
    wide = make_model(pair, {"x": (TensorProto.DOUBLE, [2, 3])}, dict.fromkeys("yz", TensorProto.DOUBLE))
    more = make_model(pair, {"x": (FLOAT, [2, 3]), "w": (FLOAT, [1])}, {"y": FLOAT, "z": FLOAT})
    reasons = [verify(a, each).reason for each in (order, fewer, wide, more)]
    assert [verify(a, each).status for each in (order, fewer, wide, more)] == [Status.DIFFERENT] * 4
    assert reasons == [
        "The outputs are 'z', 'y' instead of 'y', 'z'.",
        "The outputs are 'y' instead of 'y', 'z'.",
        "'x' is declared as double instead of float.",
        "Only one of the models takes the input 'w'.",
    ]


def test_other_shapes_are_different() -> None:
    """An output of another shape is a difference, whatever was declared."""
    a = make_model([node("Relu", "x", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT})
    b = make_model(
        [node("Relu", "x", "z"), node("Transpose", "z", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT}
    )
    verdict = verify(a, b)
    assert verdict.status is Status.DIFFERENT
    assert "float32[3, 2] instead of float32[2, 3]" in verdict.reason


def test_sequence_outputs_are_compared_tensor_by_tensor() -> None:
    """A sequence of tensors is compared element by element, and its length counts."""

    def split(count: int, factor: float) -> onnx.ModelProto:
        nodes = [node("Mul", "x k", "z"), node("SplitToSequence", "z n", "y", axis=0)]
        constants = {"k": np.float32(factor), "n": np.int64(count)}
        model = make_model(nodes, {"x": (FLOAT, [4, 3])}, {}, constants)
        model.graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, None))
        return model

    verdict = verify(split(2, 1.5), renamed(split(2, 1.5), "_b"))
    assert verdict.ok, verdict.reason
    assert [each.name for each in verdict.outputs] == ["y[0]", "y[1]"]
    assert verify(split(2, 1.5), split(2, 1.6)).status is Status.DIFFERENT
    assert verify(split(2, 1.5), split(1, 1.5)).status is Status.DIFFERENT


# ------------------------------------------------------------------------------------ random inputs

DTYPES = ("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16")


@pytest.mark.parametrize("name", [*DTYPES, "UINT32", "UINT64", "BOOL", "FLOAT8E4M3FN"])
def test_random_inputs_of_every_dtype(name: str) -> None:
    """Every numeric element type that a model can declare gets inputs."""
    kind = TensorProto.DataType.Value(name)
    nodes = [node("Cast", "x", "c", to=FLOAT), node("Mul", "c k", "y")]
    model = make_model(nodes, {"x": (kind, [3, "n"])}, {"y": FLOAT}, {"k": np.float32(1.5)}, opset=21)
    verdict = verify(model, renamed(model, "_b"))
    assert verdict.ok, verdict.reason
    assert verdict.outputs[0].note == ""


def test_string_inputs() -> None:
    """String inputs get strings, and string outputs are compared."""
    string = TensorProto.STRING
    a = make_model([node("Identity", "x", "y")], {"x": (string, [4])}, {"y": string})
    order = {"order": np.array([3, 2, 1, 0])}
    backwards = make_model([node("Gather", "x order", "y")], {"x": (string, [4])}, {"y": string}, order)
    assert verify(a, renamed(a, "_b")).ok
    assert verify(a, backwards).status is Status.DIFFERENT
    given = {"x": np.array(["one", "two", "three", "four"], dtype=object)}
    assert verify(a, renamed(a, "_b"), inputs=given).ok


def test_integers_fit_small_tables() -> None:
    """Integer inputs may be indices: they are small, and smaller if the model refuses them."""
    table = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    nodes = [node("Gather", "table x", "g"), node("Mul", "g k", "y")]
    constants = {"table": table, "k": np.float32(2)}
    a = make_model(nodes, {"x": (INT64, ["batch", "sequence"])}, {"y": FLOAT}, constants)
    assert verify(a, renamed(a, "_b")).ok


def test_one_symbol_has_one_size() -> None:
    """A named dimension gets the same size wherever it stands."""
    nodes = [node("Add", "x w", "s"), node("MatMul", "s v", "y")]
    inputs = {"x": (FLOAT, ["n", "m"]), "w": (FLOAT, ["n", "m"]), "v": (FLOAT, ["m", "k"])}
    a = make_model(nodes, inputs, {"y": FLOAT})
    assert verify(a, renamed(a, "_b")).ok


@pytest.mark.parametrize("size", [1, 2, 8, 32, 224])
def test_sizes_are_tried_until_the_model_runs(size: int) -> None:
    """Where a model runs only at one size that its signature does not tell, common sizes are tried."""
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r k", "y")]
    constants = {"shape": np.array([-1, 3 * size]), "k": np.ones((3 * size, 2), np.float32)}
    a = make_model(nodes, {"x": (FLOAT, [1, 3, "width"])}, {"y": FLOAT}, constants)
    verdict = verify(a, renamed(a, "_b"))
    assert verdict.ok, verdict.reason


def test_a_batch_of_two_is_tried_first_then_of_one() -> None:
    """A net that was exported for one image runs with a batch of one."""
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r k", "y")]
    constants = {"shape": np.array([1, 48]), "k": np.ones((48, 2), np.float32)}
    a = make_model(nodes, {"x": (FLOAT, ["batch", 48])}, {"y": FLOAT}, constants)
    assert verify(a, renamed(a, "_b")).ok


def test_inputs_that_never_run_are_said_so() -> None:
    """Where no random input runs, the verdict says so and asks for inputs."""
    constants = {"shape": np.array([7, 11, 13])}
    model = make_model([node("Reshape", "x shape", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT}, constants)
    verdict = verify(model, model)
    assert verdict.status is Status.NOT_VERIFIED
    assert "fails on random inputs" in verdict.reason
    assert ".npz" in verdict.reason


def test_an_input_without_a_shape_needs_the_users_inputs() -> None:
    """Nothing is guessed about an input of unknown rank, but the user's own inputs are taken."""
    a = make_model([node("Neg", "x", "y")], {"x": (FLOAT, None)}, {"y": FLOAT})
    b = renamed(a, "_b")
    assert "declares no shape" in verify(a, b).reason
    assert verify(a, b, inputs={"x": np.arange(6, dtype=np.float32)}).ok


def test_the_seed_decides_the_inputs() -> None:
    """One seed gives one verdict to the last digit, another seed other inputs; the verdict names it."""
    layers = make_layers(2)
    model, folded = net(layers), fold(net(layers), layers)
    first, again, other = (verify(model, folded, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.seed == 3
    assert first.outputs[0].max_abs != other.outputs[0].max_abs


def test_overridable_initializers_are_not_fed() -> None:
    """An initializer that is also an input keeps its value in both models."""
    layers = make_layers(1)
    model = net(layers)
    for each in list(model.graph.initializer):
        value = helper.make_tensor_value_info(each.name, FLOAT, list(each.dims))
        model.graph.input.append(value)
    folded = fold(model, layers)
    lacking = verify(model, folded)
    assert lacking.reason == "Only one of the models takes the input 'weight0'."
    del folded.graph.input[1:]
    assert verify(model, folded).ok


# ------------------------------------------------------------------------------------ user's inputs


def scaled(kind: int = FLOAT, shape: tuple[Any, ...] = ("n", 3)) -> onnx.ModelProto:
    nodes = [node("Cast", "x", "c", to=FLOAT), node("Mul", "c k", "y")]
    return make_model(nodes, {"x": (kind, list(shape))}, {"y": FLOAT}, {"k": np.float32(1.5)}, opset=21)


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_the_users_inputs_are_used(kind: int, tmp_path: Path) -> None:
    """Arrays by name and .npz files are taken, bfloat16 and float8 too; the verdict has no seed then."""
    array = np.arange(6).reshape(2, 3).astype(helper.tensor_dtype_to_np_dtype(kind))
    np.savez(tmp_path / "inputs.npz", x=array)
    for inputs in ({"x": array}, tmp_path / "inputs.npz", str(tmp_path / "inputs.npz")):
        verdict = verify(scaled(kind), renamed(scaled(kind), "_b"), inputs=inputs)
        assert verdict.ok, verdict.reason
        assert verdict.seed is None
        assert verdict.samples == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "The array 'x' is missing; give exactly these: 'x'."),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "The array 'z' is no input of the model"),
        ({"x": np.zeros((1, 3))}, "Input 'x' is float64, but the model needs float32; use astype."),
        ({"x": np.zeros((1, 4), np.float32)}, "Input 'x' has shape [1, 4], but the model needs n × 3"),
        ({"x": np.zeros(3, np.float32)}, "Input 'x' has shape [3], but the model needs n × 3"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(arrays: dict[str, Any], message: str) -> None:
    """A wrong name, dtype or shape raises InputsError, whose text says what would fit."""
    with pytest.raises(errors.InputsError) as caught:
        verify(scaled(), scaled(), inputs=arrays)
    assert str(caught.value).startswith(message)


def test_unreadable_inputs_are_an_error(tmp_path: Path) -> None:
    """A missing, broken or pickled .npz raises InputsError and executes nothing."""
    (tmp_path / "text.npz").write_text("no zip")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    for name in ("missing.npz", "text.npz", "pickled.npz"):
        with pytest.raises(errors.InputsError, match=name):
            verify(scaled(), scaled(), inputs=tmp_path / name)


def test_inputs_on_which_the_original_fails() -> None:
    """If the original cannot run on the given inputs, the verdict says which model failed."""
    nodes = [node("Gather", "k x", "y")]
    model = make_model(nodes, {"x": (INT64, [1])}, {"y": FLOAT}, {"k": np.ones(3, np.float32)})
    verdict = verify(model, model, inputs={"x": np.array([7])})
    assert verdict.status is Status.NOT_VERIFIED
    assert "fails on the original" in verdict.reason


# -------------------------------------------------------------------------- what cannot be verified


def test_random_dropout_is_not_verified() -> None:
    """A model that disagrees with itself proves nothing about another one."""
    nodes = [node("Dropout", "x ratio on", "y")]
    constants = {"ratio": np.float32(0.5), "on": np.array(True)}
    model = make_model(nodes, {"x": (FLOAT, [8, 8])}, {"y": FLOAT}, constants)
    verdict = verify(model, renamed(model, "_b"))
    assert verdict.status is Status.NOT_VERIFIED
    assert verdict.reason == "The original model is not deterministic: 'y' differs between two runs."


def test_random_normal_is_not_verified() -> None:
    """The same for a generator of noise with a fixed seed, which goes on from run to run."""
    nodes = [node("RandomNormalLike", "x", "noise", seed=1.0), node("Add", "x noise", "y")]
    model = make_model(nodes, {"x": (FLOAT, [8, 8])}, {"y": FLOAT})
    assert "not deterministic" in verify(model, renamed(model, "_b")).reason


def test_custom_operators_are_not_verified() -> None:
    """An operator that nothing here can run is named in the reason."""
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="my.domain")]
    model = make_model(nodes, {"x": (FLOAT, [2, 3])}, {"y": FLOAT})
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    verdict = verify(model, model)
    assert verdict.status is Status.NOT_VERIFIED
    assert "cannot load the original" in verdict.reason
    assert "Mystery" in verdict.reason
    assert "\n" not in verdict.reason


def test_unknown_opsets_are_not_verified() -> None:
    """An opset from the future is refused by the runtime and not verified."""
    model = make_model([node("Relu", "x", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT}, opset=99)
    verdict = verify(model, model)
    assert verdict.status is Status.NOT_VERIFIED
    assert "opset 99" in verdict.reason


def test_a_candidate_that_cannot_be_loaded_is_named() -> None:
    """The verdict says that it was the candidate that failed."""
    a = make_model([node("Relu", "x", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT})
    b = make_model([node("MatMul", "x x", "y")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT})
    verdict = verify(a, b)
    assert verdict.status is Status.NOT_VERIFIED
    assert "the candidate" in verdict.reason


def test_a_sequence_input_is_not_verified() -> None:
    """No inputs are made for sequences, and the verdict names the input."""
    model = make_model([node("SequenceLength", "x", "y")], {}, {"y": INT64})
    model.graph.input.append(helper.make_tensor_sequence_value_info("x", FLOAT, None))
    assert verify(model, model).reason == "Input 'x' is no tensor."


def crashing() -> onnx.ModelProto:
    """ONNX Runtime 1.32 dereferences a null pointer where a training-mode batch norm lacks an output."""
    model = net(make_layers(1))
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["", "running_var"])
    return model


@pytest.mark.usefixtures("child")
def test_a_crash_of_the_runtime_is_a_verdict() -> None:
    """A segmentation fault in ONNX Runtime ends the child only; the verdict names the model."""
    good = net(make_layers(1))
    on_original, on_candidate = verify(crashing(), good), verify(good, crashing())
    assert on_original.status is on_candidate.status is Status.NOT_VERIFIED
    assert on_original.reason == "ONNX Runtime crashed (signal 11) on the original."
    assert on_candidate.reason == "ONNX Runtime crashed (signal 11) on the candidate."


@pytest.mark.usefixtures("child")
def test_without_onnx_runtime_the_verdict_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime is an extra; without it the reason is the command that installs it."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('simulated')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    verdict = verify(scaled(), scaled())
    assert verdict.status is Status.NOT_VERIFIED
    assert verdict.reason == "ONNX Runtime is not installed; run: pip install 'bnfold[ort]'."


@pytest.mark.usefixtures("child")
def test_a_child_that_cannot_start_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a broken interpreter is no exception of ours."""
    monkeypatch.setattr(runner, "command", lambda _: [sys.executable, "-c", "raise SystemExit('broken')"])
    verdict = verify(scaled(), scaled())
    assert verdict.status is Status.NOT_VERIFIED
    assert verdict.reason == "The verifying process could not start (broken)."


# -------------------------------------------------------------------------- the reference evaluator

BATCH_NORM_OPSETS = (7, 8, 9, 11, 13, 14, 15)


@pytest.mark.parametrize("opset", BATCH_NORM_OPSETS)
def test_float64_convolutions_run_in_the_reference_evaluator(opset: int) -> None:
    """ONNX Runtime has no float64 Conv; the evaluator takes over, with batch norm as its opset defines it."""
    layers = make_layers(2, channels=4)
    model = net(layers, np.float64, opset=opset)
    verdict = verify(model, fold(model, layers))
    assert verdict.ok, verdict.reason
    assert "reference evaluator" in verdict.runtime
    assert verify(model, fold(model, layers, "epsilon")).status is Status.DIFFERENT


def test_the_reference_evaluator_is_not_believed_where_it_is_wrong() -> None:
    """Softmax before opset 13 means something else; the evaluator gets it wrong and is not asked."""
    layers = make_layers(1, channels=4)
    old, new = (
        then(
            net(layers, np.float64, opset), [node("Softmax", "norm0", "y", axis=1)], {"y": TensorProto.DOUBLE}
        )
        for opset in (12, 13)
    )
    assert verify(new, renamed(new, "_b")).ok
    verdict = verify(old, renamed(old, "_b"))
    assert verdict.status is Status.NOT_VERIFIED
    assert "not known to be exact for Softmax at opset 12" in verdict.reason


def test_max_pool_with_lower_padding_is_not_believed() -> None:
    """The evaluator pads SAME_LOWER at the wrong end in MaxPool."""
    layers = make_layers(1, channels=4)
    pool = node("MaxPool", "norm0", "y", kernel_shape=[2, 2], auto_pad="SAME_LOWER")
    model = then(net(layers, np.float64), [pool], {"y": TensorProto.DOUBLE})
    assert verify(model, renamed(model, "_b")).status is Status.NOT_VERIFIED


def test_training_batch_norm_before_opset_14_is_not_believed() -> None:
    """Five outputs meant training then; the evaluator's replacement knows only inference."""
    layers = make_layers(1, channels=4)
    model = net(layers, np.float64, opset=9)
    model.graph.node[1].output.extend(["m", "v", "sm", "sv"])
    assert "not known to be exact for BatchNormalization" in verify(model, renamed(model, "_b")).reason


@pytest.mark.parametrize(
    ("attributes", "known"),
    [
        ({"activations": ["Sigmoid", "Tanh"] * 2}, True),
        ({"activations": ["Sigmoid", "Relu"] * 2}, False),
        ({"activation_alpha": [0.5]}, False),
        ({"layout": 0}, True),
        ({"layout": 1}, False),
    ],
)
def test_the_evaluator_knows_the_usual_recurrence_alone(attributes: dict[str, Any], known: bool) -> None:
    """A recurrence by Relu, or with the batch in front, is not what the replacement computes."""
    gru = node("GRU", "x w r", "y", hidden_size=3, direction="bidirectional", **attributes)
    model = make_model([gru], dict.fromkeys("xwr", (FLOAT, None)), {"y": FLOAT})
    with nullcontext() if known else pytest.raises(NotImplementedError, match="GRU"):
        require_exact(model)


def reference_cases() -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Operator, further constant inputs and attributes, for everything that the evaluator is believed on."""
    random = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    plain = "Abs Elu Exp Neg Relu LeakyRelu Selu Sigmoid HardSigmoid Softplus Softsign Tanh ThresholdedRelu "
    plain += "Identity Dropout Flatten Shape Squeeze Transpose GlobalAveragePool GlobalMaxPool Erf HardSwish "
    plain += "Gelu Clip"
    yield from ((op, [], {}) for op in plain.split())
    yield from ((op, [some(4, 1, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"))
    yield from ((op, [], {"axis": 1}) for op in ("ArgMax", "Softmax", "LogSoftmax", "Split"))
    yield "Sum", [some(2, 4, 6, 6)], {}
    yield "Sqrt", [], {}
    yield "Pow", [np.float32(2)], {}
    yield "PRelu", [abs(some(4, 1, 1))], {}
    yield "Clip", [np.float32(-1), np.float32(1)], {}
    yield "Clip", [], {"min": -1.0, "max": 1.0}
    yield "Where", [some(4, 1, 1)], {}
    integers = random.integers(-128, 128, (4, 6)).astype(np.int8)
    yield "DequantizeLinear", [integers, np.float32(0.1), np.int8(3)], {}
    yield "DequantizeLinear", [integers, abs(some(4)), np.int8([1, 2, 3, 4])], {"axis": 0}
    yield "DequantizeLinear", [integers, abs(some(4, 2))], {"axis": 1, "block_size": 3}
    yield "DequantizeLinear", [integers.astype(np.int32) * (1 << 22), np.float32(0.1)], {}
    yield "Cast", [], {"to": TensorProto.DOUBLE}
    yield "Concat", [some(2, 4, 6, 6)], {"axis": 1}
    yield "Constant", [], {"value": numpy_helper.from_array(some(2, 3))}
    yield "ConstantOfShape", [], {"value": numpy_helper.from_array(some(1))}
    yield "Reshape", [ints(0, -1)], {}
    yield "Expand", [ints(2, 4, 6, 6)], {}
    yield "Tile", [ints(1, 2, 1, 1)], {}
    yield "Unsqueeze", [ints(0)], {}
    yield "Unsqueeze", [], {"axes": [0]}
    yield "Slice", [ints(1), ints(5), ints(2)], {}
    yield "Slice", [], {"starts": [1], "ends": [5], "axes": [2]}
    yield "Gather", [ints(1, 0)], {"axis": 1}
    yield "Transpose", [], {"perm": [0, 2, 3, 1]}
    yield "Pad", [ints(0, 0, 1, 1, 0, 0, 1, 1)], {}
    yield "Pad", [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}
    yield "DepthToSpace", [], {"blocksize": 2}
    yield "SpaceToDepth", [], {"blocksize": 2}
    yield "CastLike", [np.float64([1])], {}
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"):
        yield op, [], {"axes": [2, 3]}
        yield op, [ints(2, 3)], {}
    window = {"kernel_shape": [3, 3], "strides": [2, 2]}
    for op in ("MaxPool", "AveragePool"):
        yield from ((op, [], window | more) for more in ({}, {"pads": [1] * 4}, {"auto_pad": "SAME_UPPER"}))
    yield "AveragePool", [], window | {"pads": [1] * 4, "count_include_pad": 1}
    yield "Conv", [some(4, 2, 3, 3), some(4)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 2]}
    yield "Conv", [some(4, 4, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}
    yield "Conv", [some(8, 1, 3, 3)], {"group": 4}
    yield "ConvTranspose", [some(4, 3, 3, 3), some(3)], {"strides": [2, 2], "output_padding": [1, 1]}
    yield "ConvTranspose", [some(4, 3, 3, 3)], {"dilations": [2, 2], "pads": [1] * 4}
    yield "MatMul", [some(6, 5)], {}
    yield "Gemm", [some(7, 6), some(7)], {"transB": 1, "alpha": 0.5}
    yield "BatchNormalization", [abs(some(4)), some(4), some(4), abs(some(4))], {"epsilon": 1e-3}
    yield "InstanceNormalization", [some(4), some(4)], {}
    yield "LayerNormalization", [some(6), some(6)], {}
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        for ways, direction in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
            rows, named = 3 * gates, {"hidden_size": 3, "direction": direction}
            weights = [some(ways, rows, 6), some(ways, rows, 3)]
            yield op, weights, named
            weights += [some(ways, 2 * rows), np.array([5, 3], np.int32), some(ways, 2, 3)]
            weights += [some(ways, 2, 3), some(ways, 9)] if op == "LSTM" else []
            yield op, weights, named | ({"linear_before_reset": 1} if op == "GRU" else {"clip": 0.5})


CASES = list(reference_cases())


def test_every_believed_operator_has_a_case() -> None:
    """No operator is believed on trust."""
    assert {op for op, _, _ in CASES} == set(EXACT_FROM)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_reference_evaluator_agrees_with_onnx_runtime(
    case: tuple[str, list[Any], dict[str, Any]],
) -> None:
    """Where the evaluator is believed it agrees with ONNX Runtime in float32, from the named opset on."""
    op, constants, attributes = case
    random = np.random.default_rng(1)
    shape = {"Gemm": (5, 6), "RNN": (5, 2, 6), "GRU": (5, 2, 6), "LSTM": (5, 2, 6)}.get(op, (2, 4, 6, 6))
    x = random.standard_normal(shape).astype(np.float32)
    x = abs(x) if op == "Sqrt" else x
    tried = 0
    for opset in sorted({EXACT_FROM[op], 7, 9, 11, 13, 14, 18, 21, 22}):
        named = {f"k{index}": value for index, value in enumerate(constants)}
        reads = " ".join(["x", *named])
        if op == "Where":
            named["c"], reads = np.array([True, False] * 3), "c x k0"
        if op == "DequantizeLinear":
            reads = " ".join(named)
        if op.startswith("Constant"):
            named["shape"], reads = np.array([2, 3]), "shape" if op == "ConstantOfShape" else ""
        writes = "y z" if op == "Split" else "y"
        model = make_model([node(op, reads, writes, **attributes)], {"x": (FLOAT, x.shape)}, {}, named, opset)
        model.graph.output.append(onnx.ValueInfoProto(name="y"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        except Exception:
            continue  # this form of the operator belongs to other opsets
        if opset >= EXACT_FROM[op]:
            try:
                (theirs,) = session.run(["y"], {"x": x})
            except Exception:
                continue  # and so does this shape
            (ours,) = Reference(model).run(["y"], {"x": x})
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)
            tried += 1
    assert tried


# --------------------------------------------------------------------------- where models come from


def test_models_are_taken_in_every_form(tmp_path: Path) -> None:
    """Paths with external data beside them, protos and onnx_ir models are the same to the verifier."""
    layers = make_layers(2)
    model, folded = net(layers), fold(net(layers), layers)
    onnx.save(model, tmp_path / "plain.onnx")
    loose = onnx.ModelProto()
    loose.CopyFrom(model)
    onnx.save(loose, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    forms = [tmp_path / "plain.onnx", str(tmp_path / "m.onnx"), model, ir.from_proto(model)]
    external = ir.load(tmp_path / "m.onnx")
    assert any(
        isinstance(each.const_value, ir.ExternalTensor) for each in external.graph.initializers.values()
    )
    for form in (*forms, external):
        for shared in (False, True):
            verdict = verify(form, folded, shared=shared)
            assert verdict.ok, verdict.reason
    wrong = fold(net(layers), layers, "epsilon")
    assert verify(external, wrong, shared=True).status is Status.DIFFERENT
    assert verify(tmp_path / "m.onnx", wrong).status is Status.DIFFERENT


def test_models_in_memory_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying changes neither proto nor onnx_ir model, also where their data go beside them."""
    layers = make_layers(1)
    model, folded = net(layers), fold(net(layers), layers)
    inner = ir.from_proto(model)
    before, written = (each.SerializeToString(deterministic=True) for each in (model, ir.to_proto(inner)))
    for limit in (runner._INLINE_LIMIT, 0):
        monkeypatch.setattr(runner, "_INLINE_LIMIT", limit)
        assert verify(model, folded).ok
        assert verify(inner, folded).ok
        assert model.SerializeToString(deterministic=True) == before
        assert ir.to_proto(inner).SerializeToString(deterministic=True) == written


def test_unreadable_models_are_an_error(tmp_path: Path) -> None:
    """Missing, empty, cut and foreign files, folders, lost external data: UnreadableModelError."""
    layers = make_layers(1)
    good = net(layers)
    whole = good.SerializeToString()
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("This is no model.\n")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.onnx").mkdir()
    copy = onnx.ModelProto()
    copy.CopyFrom(good)
    onnx.save(copy, tmp_path / "lost.onnx", save_as_external_data=True, location="gone.bin", size_threshold=0)
    (tmp_path / "gone.bin").unlink()
    for name in ("missing", "empty", "text", "cut", "folder", "lost"):
        path = tmp_path / f"{name}.onnx"
        for pair in ((path, good), (good, path)):
            with pytest.raises(errors.UnreadableModelError, match=f"{name}.onnx") as caught:
                verify(*pair)
            assert "\n" not in str(caught.value)


def test_a_proto_without_its_external_data_is_an_error(tmp_path: Path) -> None:
    """Nobody can know where the data of a bare proto lie, so the error says what to do."""
    onnx.save(
        net(make_layers(1)),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(errors.UnreadableModelError, match="external data are not loaded"):
        verify(bare, bare)
    with pytest.raises(TypeError, match="not int"):
        verify(3, bare)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- the verdict, the child


def test_noise_is_measured_when_asked_or_needed() -> None:
    """What ONNX Runtime's own optimizations change is measured on request, and where a bound is exceeded."""
    layers = make_layers(2)
    model, folded, wrong = net(layers), fold(net(layers), layers), fold(net(layers), layers, "bias")
    assert verify(model, folded).outputs[0].noise is None
    asked = verify(model, folded, noise=True).outputs[0].noise
    needed = verify(model, wrong).outputs[0].noise
    assert asked is not None
    assert asked == needed
    assert 0 < asked < 20


def test_a_verdict_is_plain_data() -> None:
    """A verdict says what was compared, and all of it survives strict JSON."""
    layers = make_layers(1)
    good = verify(net(layers), fold(net(layers), layers), shared=True, noise=True)
    lost = verify(special(np.inf), special(1.0))
    for verdict in (good, lost):
        text = json.dumps(verdict.to_dict(), allow_nan=False)
        assert Verdict.from_dict(json.loads(text)) == verdict
        assert verdict.summary == f"{verdict.status.value}: {verdict.reason}"
    assert good.runtime == f"ONNX Runtime {onnxruntime.__version__}, optimizations off"
    (output,) = good.outputs
    assert output.dtype == "float32"
    assert output.ulp == pytest.approx(
        output.max_abs / ulp_at(np.dtype(np.float32), output.max_abs / output.max_rel)
    )
    assert not lost.ok
    assert lost.outputs[0].ulp == np.inf


def test_units_of_error() -> None:
    """An ulp is the step of the dtype at the largest magnitude of the original's tensor."""
    for dtype in (np.float16, np.float32, np.float64):
        for magnitude in (0.0, 1e-3, 1.0, 1.5, 2.0, 1000.0):
            expected = float(np.spacing(dtype(magnitude)))
            assert ulp_at(np.dtype(dtype), float(dtype(magnitude))) == expected
    assert ulp_at(np.dtype(ml_dtypes.bfloat16), 3.0) == 2.0**-6
    a = np.array([1.0, -3.0, 0.5], np.float32)
    between = gap(a, a + np.array([0, 0, 2**-20], np.float32))
    assert between.max_abs == 2.0**-20
    assert between.ulp == 4.0
    assert between.max_rel == pytest.approx(2.0**-20 / 3)


@pytest.mark.usefixtures("child")
def test_the_child_gives_the_answer_of_this_process(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The child answers, prints nothing, and is not confused by files of the working directory."""
    for name in ("onnx.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported from the working directory')\n")
    layers = make_layers(2)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        verdict = verify(net(layers), fold(net(layers), layers), shared=True)
    finally:
        os.chdir(here)
    assert verdict.ok, verdict.reason
    assert capfd.readouterr() == ("", "")
    with pytest.raises(errors.InputsError):
        verify(scaled(), scaled(), inputs={})


@pytest.mark.usefixtures("child")
def test_importing_the_package_imports_no_runtime() -> None:
    """Importing the package costs nothing: numpy, onnx and ONNX Runtime wait for the child."""
    heavy = {"numpy", "onnx", "onnxruntime", "onnx_ir"}
    code = f"import sys, bnfold.verification; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
