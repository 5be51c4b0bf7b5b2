"""Stored statistics held against data: measured exactly, judged fairly, said in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli import cli, main
from bnfold.core.example import Graph
from bnfold.errors import InputsError, MissingDependencyError, UnsupportedModelError
from bnfold.statistics.data.preprocess import Preprocess
from bnfold.statistics.judge.verdict import Comparison
from bnfold.training import ChannelMoments, MovingAverage

MODELS = Path(__file__).parent.parent / "models"
NETS = ("digits_cnn", "digits_mlp_bn_before", "digits_mlp_bn_after")
DIGITS = MODELS / "digits_test.npz"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS) as file:
        return file["images"]


def net(opset: int = 17, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Conv, batch norm, Relu, Conv, batch norm; dense layers in float64, of which there is no Conv kernel."""
    op = Graph(opset, dtype)
    x = op.input("x", ("N", 3, 8, 8))
    if dtype == TensorProto.DOUBLE:
        y = op.Relu(op.batch_norm(op.MatMul(x, op.weight(8, 8))))
        return op.finish([op.batch_norm(op.MatMul(y, op.weight(8, 4)))])
    y = op.Relu(op.batch_norm(op.Conv(x, op.weight(4, 3, 3, 3))))
    return op.finish([op.batch_norm(op.Conv(y, op.weight(5, 4, 1, 1)))])


def seen_by_batch_norms(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """Every tensor that a BatchNormalization reads, copied out."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    names = [node.input[0] for node in wide.graph.node if node.op_type == "BatchNormalization"]
    wide.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(wide.SerializeToString(), options).run(names, {"x": x})


def assert_moments(measured: ChannelMoments, tensor: np.ndarray, rel: float, axis: int = 1) -> None:
    true = ChannelMoments.of(tensor, axis)
    assert measured.count == true.count
    scale = np.sqrt(true.variance + np.square(true.mean)).max()
    np.testing.assert_allclose(measured.mean, true.mean, rtol=rel, atol=rel * scale)
    np.testing.assert_allclose(measured.variance, true.variance, rtol=10 * rel, atol=rel * scale**2)


CASES = [(opset, TensorProto.FLOAT, 1e-6) for opset in (9, 13, 14, 15, 18, 21)]
CASES += [(opset, TensorProto.DOUBLE, 1e-13) for opset in (9, 14, 18)]
CASES += [(opset, TensorProto.FLOAT16, 2e-3) for opset in (13, 15, 18)]


@pytest.mark.parametrize(("opset", "dtype", "rel"), CASES)
def test_moments_are_those_of_the_activations(opset: int, dtype: int, rel: float) -> None:
    """Reduced inside the graph, over all batches, in every opset and type, nothing copied out."""
    model = net(opset, dtype)
    x = (
        np.random.default_rng(1)
        .normal(0.3, 2.0, (11, 3, 8, 8))
        .astype(helper.tensor_dtype_to_np_dtype(dtype))
    )
    measured = bnfold.stats(model, x, batch=4)
    assert measured.samples == 11
    for moments, tensor in zip(measured.moments.values(), seen_by_batch_norms(model, x), strict=True):
        assert_moments(moments, tensor, rel)


@pytest.mark.parametrize("opset", [9, 17])
def test_a_large_offset_does_not_swallow_the_variance(opset: int) -> None:
    """Offset 1000, deviation 0.01, in float32: Σx²/m - μ² would be off by 100 % and negative."""
    op = Graph(opset)
    x = op.input("x", ("N", 2, 8))
    model = op.finish([op.batch_norm(x)])
    data = (1000 + 0.01 * np.random.default_rng(2).normal(size=(64, 2, 8))).astype(np.float32)
    naive = (data**2).mean(axis=(0, 2)) - data.mean(axis=(0, 2)) ** 2
    (moments,) = bnfold.stats(model, data).moments.values()
    true = data.astype(np.float64).var(axis=(0, 2))
    np.testing.assert_allclose(moments.variance, true, rtol=1e-2)
    assert (np.abs(naive - true) > true).any()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [450, 100, 30, 10])
def test_good_statistics_fit(name: str, count: int, images: np.ndarray) -> None:
    """Images the net was not trained on fit, and few images are not held against it."""
    measured = bnfold.stats(MODELS / f"{name}.onnx", images[:count])
    assert measured.fits, measured.conclusions
    assert measured.conclusions[0].startswith("The statistics of all")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("wrong", [lambda x: x * 16, lambda x: x - 0.5, lambda x: 1 - x, lambda x: 0 * x])
def test_wrong_inputs_name_the_first_layer(
    name: str, wrong: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> None:
    """Wrong scale, offset, sign or blank: the first layer is the cause, those behind it follow."""
    measured = bnfold.stats(MODELS / f"{name}.onnx", wrong(images))
    first, *others = measured.comparisons
    assert not measured.fits
    assert first.named
    assert not first.follows
    assert all(each.follows for each in others)
    assert measured.conclusions[0].startswith(first.layer.name)


def test_the_words_say_what_happened(images: np.ndarray) -> None:
    """What is off by how much and where, and what probably went wrong."""
    said = bnfold.stats(MODELS / "digits_cnn.onnx", 16 * images).conclusions
    assert "mean off by 10 σ, worst -18.5 σ at channel 11; variance 255 times the stored one" in said[0]
    assert "about 16 times as much as when the statistics were taken" in said[0]
    assert said[1].startswith("4 more named layers stand behind it")


def with_statistics(mean: Any, variance: Any, gain: Any = 1.0, epsilon: float = 1e-5) -> onnx.ModelProto:
    """A batch norm on a graph input of two channels."""
    op = Graph(17)
    x = op.input("x", ("N", 2))
    vectors = [op.const(np.full(2, value) * np.ones(2)) for value in (gain, 0.0, mean, variance)]
    return op.finish([op.BatchNormalization(x, *vectors, epsilon=epsilon)])


def judged(model: onnx.ModelProto, data: np.ndarray) -> Comparison:
    (only,) = bnfold.stats(model, data.astype(np.float32)).comparisons
    return only


def test_too_few_updates_are_recognized() -> None:
    """Statistics on the way from (0, 1) to the data's say how far they got."""
    data = np.random.default_rng(3).normal([5.0, -3.0], [0.1, 2.0], (500, 2)).astype(np.float32)
    model = with_statistics(0.1 * np.array([5.0, -3.0]), 0.9 + 0.1 * np.array([0.01, 4.0]))
    assert "They went 10% of the way" in bnfold.stats(model, data).conclusions[0]


def test_what_is_remarkable_is_noted_without_being_named() -> None:
    """Dead channels, denormal and huge variances and huge gains occur in good models."""
    rows = np.random.default_rng(4).normal(0, 1, (500, 2))
    dead = judged(with_statistics([0.0, 3.0], [1.0, 5.6e-45], gain=[1.0, 0.3]), rows * [1, 0] + [0, 3])
    assert not dead.named
    assert dead.notes[0] == "1 of 2 channels are constant on the data"
    assert dead.notes[1] == "1 stored variances are denormal or zero, the least 5.6e-45"
    huge = judged(with_statistics(0.0, [1.0, 1e12], gain=[889.0, 1.0]), rows * [1, 1e6])
    assert not huge.named
    assert huge.notes == (
        "stored variance up to 1e+12 at channel 1",
        "gain up to 889 at channel 0 multiplies rounding errors",
    )


def test_statistics_that_are_no_numbers_are_named() -> None:
    """The layer is named, those behind it are left out with the reason, and recalibration mends both."""
    op = Graph(17)
    x = op.input("x", ("N", 2))
    vectors = [op.const([1.0, 1.0]), op.const([0.0, 0.0]), op.const([0.0, np.nan]), op.const([-1.0, 1.0])]
    model = op.finish([op.batch_norm(op.BatchNormalization(x, *vectors))])
    data = np.random.default_rng(14).normal(3, 2, (200, 2)).astype(np.float32)
    measured = bnfold.stats(model, data)
    assert not measured.fits
    assert "2 of 2 stored statistics are infinite, not a number, or below zero" in measured.conclusions[0]
    assert "behind stored statistics that are no numbers" in measured.left[0].why
    json.dumps(measured.to_dict(), allow_nan=False)
    mended = bnfold.recalibrate(model, data)
    assert bnfold.stats(mended.model, data).fits
    json.dumps(mended.to_dict(), allow_nan=False)


def test_one_channel_is_enough() -> None:
    """A single channel far off names its layer, among many that fit."""
    rows = np.random.default_rng(5).normal(0, 1, (500, 2))
    assert judged(with_statistics([0.0, 2.0], 1.0), rows).problems[0].endswith("at channel 1")
    assert judged(with_statistics(0.0, [1.0, 50.0]), rows).problems[0].startswith("variance")
    assert judged(with_statistics(0.0, [1.0, 50.0]), rows * [1, 0]).problems[0].startswith("1 of 2 channels")
    assert not judged(with_statistics([0.1, -0.2], [1.3, 0.8]), rows).named


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("shape", [(40, 3), (10, 3, 4), (5, 3, 2, 4)])
def test_a_rank_that_nobody_declared_is_no_hindrance(opset: int, shape: tuple[int, ...]) -> None:
    """Folding has to know it, measuring does not; in training mode neither."""
    op = Graph(opset)
    model = op.finish([op.batch_norm(op.Relu(op.batch_norm(op.input("x", None), 3)), 3)])
    x = np.random.default_rng(15).normal(1, 2, shape).astype(np.float32)
    for moments, tensor in zip(
        bnfold.stats(model, x).moments.values(), seen_by_batch_norms(model, x), strict=True
    ):
        assert_moments(moments, tensor, 1e-6)
    twin = Graph(opset)
    declared = twin.finish([twin.batch_norm(twin.Relu(twin.batch_norm(twin.input("x", shape))))])
    moving = [
        bnfold.recalibrate(each, x, moving=MovingAverage(), batch=shape[0]).estimated.new
        for each in (model, declared)
    ]
    for one, other in zip(moving[0].values(), moving[1].values(), strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)


# Batch norms that an exporter wrote as arithmetic.

FOUR = {
    "mean": np.array([0.5, -1.0, 2.0]),
    "variance": np.array([0.3, 1.5, 4.0]),
    "gain": np.array([1.0, -0.7, 0.4]),
    "bias": np.array([0.2, 0.0, -1.0]),
}
EPSILON = 1e-3


def as_torch_decomposes(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    inverse = op.Reciprocal(op.Sqrt(op.Add(four["variance"], op.const(EPSILON))))
    unit = op.Mul(op.Sub(x, shape(four["mean"])), shape(inverse))
    return op.Add(op.Mul(unit, shape(four["gain"])), shape(four["bias"]))


def as_tensorflow_decomposes(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    scale = op.Mul(op.Reciprocal(op.Sqrt(op.Add(four["variance"], op.const(EPSILON)))), four["gain"])
    shift = op.Sub(four["bias"], op.Mul(four["mean"], scale))
    return op.Add(op.Mul(x, shape(scale)), shape(shift))


def with_a_division(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    deviation = op.const(np.sqrt(FOUR["variance"] + EPSILON))
    unit = op.Div(op.Sub(x, shape(four["mean"])), shape(deviation))
    return op.Add(op.Mul(unit, shape(four["gain"])), shape(four["bias"]))


def with_a_reciprocal(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    inverse = op.const(1 / np.sqrt(FOUR["variance"] + EPSILON))
    unit = op.Mul(op.Sub(x, shape(four["mean"])), shape(inverse))
    return op.Add(op.Mul(unit, shape(four["gain"])), shape(four["bias"]))


def merged(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    scale = FOUR["gain"] / np.sqrt(FOUR["variance"] + EPSILON)
    shift = FOUR["bias"] - scale * FOUR["mean"]
    return op.Add(op.Mul(x, shape(op.const(scale))), shape(op.const(shift)))


def half_merged(op: Graph, x: str, four: dict[str, str], shape: Callable[[str], str]) -> str:
    scale = op.const(FOUR["gain"] / np.sqrt(FOUR["variance"] + EPSILON))
    return op.Add(op.Mul(op.Sub(x, shape(four["mean"])), shape(scale)), shape(four["bias"]))


Form = Callable[[Graph, str, dict[str, str], Callable[[str], str]], str]
SEPARABLE: list[Form] = [as_torch_decomposes, as_tensorflow_decomposes, with_a_division, with_a_reciprocal]


def decomposed(form: Form, *, last: bool, dense: bool = False) -> onnx.ModelProto:
    """The form behind a graph input (or a dense layer with bias), channels last or on axis 1."""
    op = Graph(17)
    x = op.input("x", ("N", 5, 3) if last or dense else ("N", 3, 5))
    if dense:
        x = op.Add(op.MatMul(x, op.weight(3, 3)), op.weight(3))
    four = {name: op.const(values) for name, values in FOUR.items()}
    axes = op.ints(1)

    def shaped(name: str) -> str:
        return name if last or dense else op.Unsqueeze(name, axes)

    return op.finish([form(op, x, four, shaped)])


@pytest.mark.parametrize("form", SEPARABLE)
@pytest.mark.parametrize("last", [True, False])
def test_arithmetic_is_read_where_its_statistics_are_separate(form: Form, last: bool) -> None:
    """Mean, variance, gain and bias are told apart by how the map responds to each constant."""
    x = np.random.default_rng(6).normal(0, 1, (200, 5, 3) if last else (200, 3, 5)).astype(np.float32)
    measured = bnfold.stats(decomposed(form, last=last), x)
    (layer,) = measured.layers
    for name in ("mean", "gain", "bias"):
        np.testing.assert_allclose(getattr(layer, name), FOUR[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.deviation, np.sqrt(FOUR["variance"] + EPSILON), rtol=1e-5)
    (moments,) = measured.moments.values()
    assert_moments(moments, x, 1e-6, axis=2 if last else 1)
    assert bool(layer.note) == (form in (with_a_division, with_a_reciprocal))


@pytest.mark.parametrize("form", SEPARABLE)
def test_the_bias_in_front_is_no_part_of_it(form: Form) -> None:
    """What is normalized is the dense layer's output, its bias included."""
    model = decomposed(form, last=True, dense=True)
    x = np.random.default_rng(7).normal(0, 1, (200, 5, 3)).astype(np.float32)
    layer = bnfold.stats(model, x).layers[0]
    add = next(node for node in model.graph.node if node.op_type == "Add")
    assert layer.tensor == add.output[0]


@pytest.mark.parametrize(
    ("form", "why"), [(merged, "one scale and one shift"), (half_merged, "one constant")]
)
def test_arithmetic_that_was_multiplied_out_is_refused(form: Form, why: str) -> None:
    """It says that the statistics are lost, and where they were last to be had."""
    with pytest.raises(UnsupportedModelError, match=why):
        bnfold.stats(decomposed(form, last=True), np.zeros((4, 5, 3), np.float32))


def test_constants_that_others_read_are_not_touched() -> None:
    """A constant of its own is found beside other readers; one computed for several is refused."""
    op = Graph(17)
    x = op.input("x", ("N", 3))
    four = {name: op.const(values) for name, values in FOUR.items()}
    inverse = op.Reciprocal(op.Sqrt(op.Add(four["variance"], op.const(EPSILON))))
    unit = op.Mul(op.Sub(x, four["mean"]), inverse)
    y = op.Add(op.Mul(unit, four["gain"]), four["bias"])
    data = np.random.default_rng(12).normal(size=(50, 3)).astype(np.float32)
    alone = op.finish([y, op.Exp(op.Mul(x, op.Exp(four["mean"])))])
    assert bnfold.stats(alone, data).layers[0].epsilon == pytest.approx(EPSILON, rel=1e-3)
    with pytest.raises(UnsupportedModelError, match="shared with other nodes"):
        bnfold.stats(op.finish([y, op.Exp(op.Add(op.Exp(x), op.Exp(inverse)))]), data)


def test_a_layer_norm_is_no_batch_norm() -> None:
    """γ and β of a decomposed LayerNormalization are not reported as lost statistics."""
    op = Graph(17)
    x = op.input("x", ("N", 4, 6))
    centred = op.Sub(x, op.ReduceMean(x, axes=[-1]))
    variance = op.ReduceMean(op.Mul(centred, centred), axes=[-1])
    unit = op.Div(centred, op.Sqrt(op.Add(variance, op.const(1e-5))))
    model = op.finish([op.Add(op.Mul(unit, op.weight(6)), op.weight(6))])
    with pytest.raises(UnsupportedModelError, match="has no batch norm"):
        bnfold.stats(model, np.zeros((4, 4, 6), np.float32))


# What cannot be measured.


def test_training_mode_is_explained_and_left_alone_until_asked() -> None:
    """Never silently: the reason names the option that lets the node use its stored statistics."""
    op = Graph(17)
    x = op.input("x", ("N", 3))
    y, *_ = op.BatchNormalization(x, *(op.positive(3) for _ in range(4)), training_mode=1, outputs=3)
    model, data = op.finish([y]), np.random.default_rng(8).normal(size=(50, 3)).astype(np.float32)
    with pytest.raises(UnsupportedModelError, match="--to-inference"):
        bnfold.stats(model, data)
    assert len(bnfold.stats(model, data, to_inference=True).layers) == 1


def test_bodies_and_functions_are_named() -> None:
    """A batch norm that cannot be reached is listed with the reason, and the rest is measured."""
    body = Graph(17)
    inside = body.finish([body.batch_norm(body.input("b", ("N", 3)), 3)]).graph
    inside.ClearField("input")
    inside.node[0].input[0] = "x"
    op = Graph(17)
    x = op.input("x", ("N", 3))
    y = op.If(op.const(True, TensorProto.BOOL), then_branch=inside, else_branch=inside)
    model = op.finish([op.Add(op.batch_norm(x), y)])
    measured = bnfold.stats(model, np.random.default_rng(9).normal(size=(9, 3)).astype(np.float32))
    assert len(measured.layers) == 1
    assert {"If, Loop or Scan" in each.why for each in measured.left} == {True}


# Data in every form.


def numbers(measured: bnfold.Statistics) -> np.ndarray:
    return np.concatenate([[each.count, *each.mean, *each.variance] for each in measured.moments.values()])


def test_every_form_of_data_gives_the_same(tmp_path: Path, images: np.ndarray) -> None:
    """A .npz with labels beside, folders of .npz and .npy, an array, a mapping, batches of one's own."""
    model, few = MODELS / "digits_cnn.onnx", images[:12]
    for folder in ("npz", "npy", "single"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "data.npz", images=few, labels=np.arange(12))
    for start in (0, 4, 8):
        np.savez(tmp_path / "npz" / f"{start}.npz", image=few[start : start + 4])
        np.save(tmp_path / "npy" / f"{start}.npy", few[start : start + 4])
    for number, image in enumerate(few):
        np.save(tmp_path / "single" / f"{number:02d}.npy", image)

    class Batches:
        def __iter__(self) -> Iterator[np.ndarray]:
            return iter(np.split(few, 3))

    forms: list[Any] = [tmp_path / name for name in ("data.npz", "npz", "npy", "single")]
    forms += [few, {"image": few}, few.astype(np.float64), Batches(), iter([{"image": few[:4]}, few[4:]])]
    expected = numbers(bnfold.stats(model, few, batch=4))
    for form in forms:
        measured = numbers(bnfold.stats(model, form, batch=4))
        np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


def test_images_are_prepared_as_stated(tmp_path: Path) -> None:
    """Colour order, size and arithmetic come from the sentence, step by step."""
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(10).integers(0, 256, (6, 8, 3), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    steps = "bgr; divide 255; subtract .5 .25 0; divide .5"
    prepared = Preprocess.of(steps).image(tmp_path / "a.png")
    wanted = (pixels[..., ::-1] / 255 - [0.5, 0.25, 0]) / 0.5
    np.testing.assert_allclose(prepared, np.moveaxis(wanted, -1, 0), atol=1e-6)
    assert prepared.dtype == np.float32
    for text, shape in [
        ("resize 12; crop 10 8", (3, 10, 8)),
        ("gray; crop 4", (1, 4, 4)),
        ("hwc", (6, 8, 3)),
    ]:
        assert Preprocess.of(text).image(tmp_path / "a.png").shape == shape
    for number in range(4):
        pillow.fromarray(pixels[:3, :4] + np.uint8(number)).save(tmp_path / f"{number}.png")
    op = Graph(17)
    model = op.finish([op.batch_norm(op.input("x", ("N", 3, 3, 4)))])
    (tmp_path / "a.png").unlink()
    measured = bnfold.stats(model, tmp_path, preprocess="divide 255")
    assert measured.samples == 4
    assert next(iter(measured.moments.values())).mean.max() < 1
    with pytest.raises(InputsError, match="--preprocess"):
        bnfold.stats(model, tmp_path)


@pytest.mark.parametrize("steps", ["blur 3", "divide", "divide x", "crop 0", "resize 1 2 3", "divide 0"])
def test_a_wrong_step_is_one_sentence(steps: str) -> None:
    with pytest.raises(InputsError, match="reprocessing"):
        Preprocess.of(steps)


def test_a_fixed_batch_is_kept_to(images: np.ndarray) -> None:
    """A model that fixes its batch gets batches of that size; a rest cannot run and is left out."""
    op = Graph(17)
    model = op.finish([op.batch_norm(op.input("x", (4, 1, 8, 8)))])
    assert bnfold.stats(model, images[:10]).samples == 8
    with pytest.raises(InputsError, match="less than one batch"):
        bnfold.stats(model, images[:3])


def test_several_inputs_are_cut_together() -> None:
    """Rows of one input go with those of the other; a scalar goes with every batch."""
    op = Graph(17)
    a, b, scalar = op.input("a", ("N", 3)), op.input("b", ("N", 3)), op.input("c", ())
    model = op.finish([op.batch_norm(op.Add(op.Mul(a, scalar), b))])
    random = np.random.default_rng(13)
    data = {"a": random.normal(size=(20, 3)), "b": random.normal(size=(20, 3)), "c": np.array(2.0)}
    (moments,) = bnfold.stats(model, data, batch=6).moments.values()
    assert_moments(moments, 2 * data["a"] + data["b"], 1e-6)
    with pytest.raises(InputsError, match="20 and 9 samples"):
        bnfold.stats(model, {**data, "b": data["b"][:9]})
    with pytest.raises(InputsError, match="the model needs 'c'"):
        bnfold.stats(model, {"a": data["a"], "b": data["b"]})


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """The functions come without ONNX Runtime, matplotlib, pillow and Dask."""
    code = "import sys, bnfold; bnfold.stats, bnfold.recalibrate, bnfold.unfold; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"onnxruntime", "matplotlib", "PIL", "distributed"} & set(loaded.split())


# The command.


def run(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    return done.exit_code, done.output


def test_exit_codes_say_fit_or_named(tmp_path: Path, images: np.ndarray) -> None:
    """0 when all layers fit, 1 when one is named; both with the same report, in words and as JSON."""
    model = MODELS / "digits_cnn.onnx"
    code, text = run("stats", model, "--data", DIGITS)
    assert code == 0
    assert "The statistics of all 5 layers fit the data" in text
    np.savez(tmp_path / "wrong.npz", image=images * 16)
    code, text = run("stats", model, "--data", tmp_path / "wrong.npz", "--json")
    told = json.loads(text)
    assert code == 1
    assert not told["fits"]
    assert [each["named"] for each in told["layers"]] == [True] * 5
    assert run("stats", model, "--data", tmp_path / "wrong.npz", "--preprocess", "divide 16")[0] == 0


def unusable(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """Data that are of no use, by what the error says of them."""
    arrays: dict[str, dict[str, np.ndarray]] = {
        "holds? no sample": {"image": images[:0]},
        "samples say nothing": {"image": images[:1]},
        "reaches NaN or infinity": {"image": np.full_like(images[:4], np.nan)},
        "needs float32": {"image": (images * 16).astype(np.uint8)},
        "needs shape": {"image": images[..., :7]},
        "name the arrays": {"a": images, "b": images},
    }
    paths = {}
    for number, (words, content) in enumerate(arrays.items()):
        paths[words] = folder / f"{number}.npz"
        np.savez(paths[words], **content)
    paths["does not exist"] = folder / "missing.npz"
    paths["cannot be read"] = folder / "damaged.npz"
    paths["cannot be read"].write_bytes(b"PK\x03\x04 no")
    paths["holds no .npz"] = folder / "empty"
    paths["holds no .npz"].mkdir()
    return paths


def test_useless_data_are_one_sentence_and_exit_code_2(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, path in unusable(tmp_path, images).items():
        command = ["bnfold", "stats", str(MODELS / "digits_cnn.onnx"), "--data", str(path)]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr().err
        assert done.value.code == 2, said
        assert said.count("\n") == 1
        assert words.replace("holds? ", "hold ") in said


def test_a_model_without_batch_norms_is_told_so(tmp_path: Path) -> None:
    folded = tmp_path / "folded.onnx"
    bnfold.fold(MODELS / "digits_cnn.onnx").save(folded)
    with pytest.raises(UnsupportedModelError, match="folded already"):
        bnfold.stats(folded, DIGITS)


def test_pictures_show_every_layer(tmp_path: Path) -> None:
    """One per layer, in the order of the graph."""
    pytest.importorskip("matplotlib")
    code, _ = run("stats", MODELS / "digits_mlp_bn_after.onnx", "--data", DIGITS, "--plot", tmp_path / "p")
    pictures = sorted(path.name[:4] for path in (tmp_path / "p").iterdir())
    assert (code, pictures) == (0, ["001-", "002-"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"bnfold\[ort\]"):
        bnfold.stats(net(), np.zeros((4, 3, 8, 8), np.float32))


def test_a_shared_input_is_measured_for_every_reader() -> None:
    """Two batch norms on one tensor, one of them a graph output too."""
    op = Graph(17)
    x = op.input("x", ("N", 3))
    model = op.finish([op.batch_norm(x), op.batch_norm(x)])
    data = np.random.default_rng(11).normal(size=(40, 3)).astype(np.float32)
    measured = bnfold.stats(model, data)
    assert len(measured.moments) == 2
    for moments in measured.moments.values():
        assert_moments(moments, data, 1e-6)
    assert numpy_helper.to_array(model.graph.initializer[0]).dtype == np.float32


def behind_conv(mean: float) -> onnx.ModelProto:
    """A batch norm on images that stores this mean, and a Relu behind it."""
    op = Graph(17)
    x = op.input("x", ("n", 4, 5, 5))
    four = [op.const(np.full(4, each)) for each in (2.0, 0.5, mean, 1.0)]
    return op.finish([op.Relu(op.BatchNormalization(x, *four))])


@pytest.mark.parametrize("stored", [0.0, 300.0])
@pytest.mark.parametrize("means", [[0.0, 0.0], [300.0, 300.0], [0.0, 300.0], [300.0, 0.0]])
def test_what_cancels_is_measured_again(stored: float, means: list[float]) -> None:
    """Far from the stored mean, in the first batch or in a later one, moments are as good as near it."""
    rng = np.random.default_rng(3)
    batches = [rng.normal(mean, 1.0, (16, 4, 5, 5)).astype(np.float32) for mean in means]
    (moments,) = bnfold.stats(behind_conv(stored), batches).moments.values()
    true = ChannelMoments.of(np.concatenate(batches))
    np.testing.assert_allclose(moments.variance, true.variance, rtol=1e-5)
    np.testing.assert_allclose(moments.mean, true.mean, rtol=1e-6, atol=1e-6)


def test_a_constant_channel_is_one_however_it_is_measured() -> None:
    """It cancels altogether; its variance is 0, and it is counted among the dead."""
    x = np.random.default_rng(0).normal(size=(16, 4, 5, 5)).astype(np.float32)
    x[:, 1] = 7.3
    (layer,) = bnfold.stats(behind_conv(0.0), x).comparisons
    assert layer.dead.tolist() == [False, True, False, False]


@pytest.mark.parametrize("gain", [1e-25, 1e-30, 1e25, 1e30])
def test_squares_that_leave_float32_are_measured_again(gain: float) -> None:
    """A gain that no output can be squared behind does not change what the layer sees."""
    op = Graph(17)
    scale = np.array([1.0, gain, 1.0, 1.0])
    four = [op.const(each) for each in (scale, np.zeros(4), np.zeros(4), np.ones(4))]
    x = op.input("x", ("n", 4, 5, 5))
    model = op.finish([op.Relu(op.BatchNormalization(x, *four))])
    data = np.random.default_rng(1).normal(size=(16, 4, 5, 5)).astype(np.float32)
    (moments,) = bnfold.stats(model, data).moments.values()
    np.testing.assert_allclose(moments.variance, ChannelMoments.of(data).variance, rtol=1e-5)


def test_a_batch_without_samples_changes_nothing() -> None:
    """A loader may yield one; it counts for nothing."""
    data = np.random.default_rng(2).normal(size=(16, 4, 5, 5)).astype(np.float32)
    batches = [data[:10], data[:0], data[10:]]
    (moments,) = bnfold.stats(behind_conv(0.0), batches).moments.values()
    assert moments.count == 16 * 25
    np.testing.assert_allclose(moments.mean, ChannelMoments.of(data).mean, rtol=1e-5, atol=1e-6)
