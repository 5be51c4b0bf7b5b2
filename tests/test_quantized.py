"""Quantized models: integers stay integers, scales take the maps, and the runtime computes the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from truth import differences, feeds_for, onnx_runtime

import bnfold
from bnfold.core.example import Graph
from bnfold.core.graph.constants import Constants
from bnfold.core.graph.shapes import infer
from bnfold.core.graph.view import View
from bnfold.core.planning.walk.up import go_up
from bnfold.core.reasons import Reason
from bnfold.core.writing.apply import Writer
from bnfold.provenance import fingerprint, provenance, restore

MODELS = Path(__file__).parent.parent / "models"


# ---------------------------------------------------------------- a real net, by a real quantizer


class Digits:
    """A few images for the quantizer to calibrate on."""

    def __init__(self) -> None:
        self._left = iter([{"image": images()[:20]}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, None after the last."""
        return next(self._left, None)


def images() -> NDArray[np.float32]:
    with np.load(MODELS / "digits_test.npz") as held:
        return np.asarray(held["images"][:100], np.float32)


def quantized(folder: Path, opset: int, per_channel: bool, signed: bool, between: bool) -> ModelProto:
    """``digits_cnn`` with quantize-dequantize pairs around its layers, its batch norms in floating point."""
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load(MODELS / "digits_cnn.onnx")
    model.opset_import[0].version = opset
    for node in model.graph.node:
        for attribute in [each for each in node.attribute if each.name == "training_mode"]:
            node.attribute.remove(attribute)  # not yet in opset 13
    onnx.save(model, folder / "float.onnx")
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(folder / "float.onnx"),
            str(folder / "quantized.onnx"),
            Digits(),
            per_channel=per_channel,
            reduce_range=True,  # eight bits saturate in the integer kernels of older processors
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Gemm"],
            extra_options={} if between else {"OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"]},
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "quantized.onnx")


@pytest.mark.parametrize(
    ("opset", "per_channel", "signed"), [(13, False, False), (17, True, True), (21, True, False)]
)
def test_a_quantized_net_folds(tmp_path: Path, opset: int, per_channel: bool, signed: bool) -> None:
    """All batch norms go; the verifier agrees; every integer weight is what it was; ONNX Runtime fuses it."""
    model = quantized(tmp_path, opset, per_channel, signed, between=False)
    result = bnfold.fold(model, verify=True)
    folded = result.model
    assert count(model, "BatchNormalization") == 5
    assert count(folded, "BatchNormalization") == 0
    assert count(folded, "DequantizeLinear") == count(model, "DequantizeLinear")
    kept = {tensor.SerializeToString() for tensor in integers(folded)}
    assert {tensor.SerializeToString() for tensor in integers(model)} <= kept
    a, b = (optimized(each, {"image": images()}) for each in (model, folded))
    assert np.mean(a.argmax(axis=1) == b.argmax(axis=1)) >= 0.98
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


def test_pairs_between_layer_and_batch_norm_stay(tmp_path: Path) -> None:
    """What was rounded and clipped between a layer and its batch norm is not folded, and it is said why."""
    model = quantized(tmp_path, 17, per_channel=True, signed=True, between=True)
    report = bnfold.fold(model).report
    assert not report.changed
    reasons = [row.refusals[0].reason for row in report.rows if row.op_type == "BatchNormalization"]
    assert reasons == [Reason.QUANTIZED_BETWEEN] * 5


def count(model: ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)


def integers(model: ModelProto) -> Iterator[TensorProto]:
    """The quantized weights, without their names: all γ of the net are positive, so none turns around."""
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(tensor.dims) > 1:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
            yield tensor


def optimized(model: ModelProto, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The logits with everything that ONNX Runtime fuses, integer kernels included."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, feeds)[0])


# ---------------------------------------------------------------- by hand


def test_integers_turn_around() -> None:
    """Where γ is negative the integers change sign, and every scale stays positive."""
    op = Graph(17)
    x = op.input("x", (1, 3, 6, 6))
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(4), axis=0)
    scale = op.const(np.float32([-1.5, 2.0, 0.0, -0.25]).reshape(1, 4, 1, 1))
    model = op.finish([op.Mul(op.Conv(x, weight), scale)])
    folded = bnfold.fold(model).model
    before, after = (stored(each, folded_names(each)) for each in (model, folded))
    signs = np.array([-1, 1, 0, -1]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(after[0], before[0] * signs)
    np.testing.assert_array_equal(after[1], before[1] * np.float32([1.5, 2.0, 1.0, 0.25]))
    assert not differences(model, folded, feeds_for(model))


def folded_names(model: ModelProto) -> list[str]:
    """The inputs of the model's only DequantizeLinear."""
    (node,) = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
    return list(node.input)


def stored(model: ModelProto, names: list[str]) -> list[NDArray[np.float32]]:
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [held[name] for name in names]


def test_int32_bias_is_rounded_by_half_a_step() -> None:
    """A bias stays int32, in steps that follow the weight's, and is the nearest such number."""
    op = Graph(17)
    x = op.input("x", (1, 3, 6, 6))
    weight = op.DequantizeLinear(op.integers(4, 3, 1, 1), op.const(np.full(4, 0.01)), axis=0)
    bias = op.DequantizeLinear(
        op.const([5000, -7, 0, 90000], TensorProto.INT32), op.const([1e-4] * 4), axis=0
    )
    y = op.Conv(x, weight, bias)
    model = op.finish([op.BatchNormalization(y, *(op.positive(4) for _ in range(4)))])
    view = View(ir.serde.deserialize_model(model))
    (seed,) = (node for node in view.nodes() if node.op_type == "BatchNormalization")
    _, affine = view.read(seed)
    scale, shift = affine.along(1, 4)
    result = bnfold.fold(model)
    folded = result.model
    (node,) = (node for node in folded.graph.node if node.output[0].startswith(bias))
    steps, step = stored(folded, list(node.input))
    assert steps.dtype == np.int32
    np.testing.assert_allclose(step, scale * np.float32(1e-4), rtol=1e-6)
    exact = (scale * np.array([5000, -7, 0, 90000]) * np.float64(np.float32(1e-4)) + shift) / step
    assert np.abs(steps - exact).max() <= 0.5 + 1e-2
    assert result.report.bias_rounding == pytest.approx(step.max() / 2, rel=1e-6)


def test_shared_weights_are_copied() -> None:
    """Of two layers that read one dequantized weight, each keeps what is its own; the integers are shared."""
    op = Graph(17)
    x, y = op.input("x", (1, 3, 6, 6)), op.input("y", (1, 3, 6, 6))
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.positive(4), axis=0)
    a = op.batch_norm(op.Conv(x, weight), positive=True)
    model = op.finish([a, op.Conv(y, weight)])
    result = bnfold.fold(model)
    assert count(result.model, "BatchNormalization") == 0
    assert count(result.model, "DequantizeLinear") == 2
    assert len(list(integers(result.model))) == 1
    assert not differences(model, result.model, feeds_for(model))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT16])
def test_other_widths(kind: int) -> None:
    """Integers of 4 and 16 bits are as good as those of 8."""
    op = Graph(21)
    x = op.input("x", ("N", 8))
    values = np.random.default_rng(0).integers(1, 7, (8, 4))
    zero = op.const(np.full(4, 4), kind)
    weight = op.DequantizeLinear(op.const(values, kind), op.positive(4), zero, axis=1)
    model = op.finish([op.batch_norm(op.MatMul(x, weight), channels=4)], ir_version=10)
    folded = bnfold.fold(model).model
    assert count(folded, "BatchNormalization") == 0
    assert not differences(model, folded, feeds_for(model, {"N": 2}))
    feeds = feeds_for(model, {"N": 2})
    for expected, got in zip(
        onnx_runtime(model, feeds) or (), onnx_runtime(folded, feeds) or (), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_narrow_scales(kind: int) -> None:
    """A scale in 16 bits is rounded in them, and the layer's type is that of its scale."""
    op = Graph(19, kind)
    x = op.input("x", (1, 3, 6, 6))
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.const(np.full(4, 0.01)), axis=0)
    model = op.finish([op.batch_norm(op.Conv(x, weight))], ir_version=9)
    folded = bnfold.fold(model).model
    assert count(folded, "BatchNormalization") == 0
    assert not differences(model, folded, feeds_for(model))


def test_dequantized_constants_are_read_as_onnx_runtime_does() -> None:
    """Per tensor, per axis, in blocks, through a QuantizeLinear and through a Transpose."""
    op = Graph(21)
    scale, zero = op.const(np.float32(0.05)), op.const(3, TensorProto.INT8)
    values = [
        op.DequantizeLinear(op.integers(4, 6), scale, zero),
        op.DequantizeLinear(op.integers(4, 6), op.positive(6), op.integers(6), axis=-1),
        op.DequantizeLinear(op.integers(4, 7), op.positive(4, 3), axis=1, block_size=3),
        op.DequantizeLinear(op.QuantizeLinear(op.weight(4, 6), scale, zero), scale, zero),
        op.Transpose(op.DequantizeLinear(op.integers(4, 6), op.positive(4), axis=0)),
    ]
    op.input("x", (1,))
    model = op.finish(values, ir_version=10)
    held = ir.serde.deserialize_model(model)
    constants = Constants.of_model(held, infer(held))
    expected = onnx_runtime(model, feeds_for(model))
    assert expected is not None
    for output, array in zip(held.graph.outputs, expected, strict=True):
        const = constants.get(output)
        assert const.integers is not None
        np.testing.assert_allclose(const.exact, array, rtol=1e-6)


def test_integers_without_a_scale() -> None:
    """Integers that are dequantized as they are, and turned around behind that, are no less a weight."""
    op = Graph(17)
    held = op.DequantizeLinear(op.integers(3, 5, 1, 1), op.const(1.0))
    y = op.Conv(op.input("x", ("N", 3, 4, 4)), op.Transpose(held, perm=[1, 0, 2, 3]))
    model = op.finish([op.batch_norm(y, channels=5, positive=True)])
    folded = bnfold.fold(model).model
    assert [node.op_type for node in folded.graph.node] == ["DequantizeLinear", "Transpose", "Conv"]
    assert not differences(model, folded, feeds_for(model))


def test_integers_are_restored() -> None:
    """``unfold`` gives back the quantized model, bit for bit."""
    op = Graph(17)
    x = op.input("x", (1, 3, 6, 6))
    weight = op.DequantizeLinear(op.integers(4, 3, 3, 3), op.const(0.5), op.const(1, TensorProto.INT8))
    bias = op.DequantizeLinear(op.integers(4, dtype=TensorProto.INT32, size=2**20), op.const(2.0**-16))
    model = op.finish([op.batch_norm(op.Conv(x, weight, bias), positive=True)])
    original, folded = ir.serde.deserialize_model(model), ir.serde.deserialize_model(model)
    folding = bnfold.FoldPass()
    folding(folded)
    made = provenance(folding.folds, original, folded)
    assert fingerprint(restore(folded, made)) == fingerprint(original)


def test_folded_constants_are_read_anew() -> None:
    """What is known of a dequantized weight after a fold is what that fold made of it."""
    op = Graph(17)
    x = op.input("x", ("N", 5))
    weight = op.DequantizeLinear(op.integers(5, 3), op.positive(3), axis=1)
    model = ir.serde.deserialize_model(op.finish([op.batch_norm(op.MatMul(x, weight))]))
    view = View(model)
    held, _, norm = view.nodes()
    before = view.constants.get(held.outputs[0]).exact
    _, affine = view.read(norm)
    Writer(view).carry_out(go_up(view, norm))
    after = view.constants.get(held.outputs[0]).exact
    np.testing.assert_allclose(after, affine.linear(before), rtol=1e-12)
