"""Statistics estimated anew: restored accuracy, layers in their order, and a way back that loses no bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import files
from bnfold.cli import cli
from bnfold.core.example import EXAMPLES, Graph
from bnfold.core.rule import registered
from bnfold.errors import InputsError, UnsupportedModelError
from bnfold.provenance import fingerprint, provenance, restore
from bnfold.statistics.graph.layers import survey
from bnfold.statistics.graph.rewrite import put
from bnfold.training import ChannelMoments, MovingAverage, Running, batch_norm_training

MODELS = Path(__file__).parent.parent / "models"
CNN = MODELS / "digits_cnn.onnx"
NETS = ("digits_cnn", "digits_mlp_bn_before", "digits_mlp_bn_after")
DIGITS = MODELS / "digits_test.npz"


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS) as file:
        return file["images"], file["labels"]


def logits(model: ir.Model | onnx.ModelProto, x: np.ndarray, *, optimized: bool = True) -> np.ndarray:
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def accuracy(model: ir.Model, digits: tuple[np.ndarray, np.ndarray]) -> float:
    """In percent."""
    return 100 * float((logits(model, digits[0]).argmax(axis=1) == digits[1]).mean())


def untrained(path: Path) -> ir.Model:
    """The net with the statistics that training starts from."""
    model = files.load(path)
    found, _ = survey(model)
    start = {each.layer.output: Running(0 * each.layer.mean, 0 * each.layer.mean + 1) for each in found}
    put(model, found, start)
    return model


# Restoring.


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", ["wrong input scale", "one update"])
def test_spoiled_statistics_are_found_and_restored(
    name: str, how: str, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """Accuracy falls, every layer is named, and 200 images bring it back within 0.5 points on others."""
    unseen = digits[0][200:], digits[1][200:]
    path, images = MODELS / f"{name}.onnx", digits[0]
    if how == "wrong input scale":
        spoiled = bnfold.recalibrate(path, images * 16).model
    else:
        spoiled = bnfold.recalibrate(untrained(path), images[:32], moving=MovingAverage(0.9)).model
    good = accuracy(files.load(path), unseen)
    assert accuracy(spoiled, unseen) < good - 15
    assert all(each.named for each in bnfold.stats(spoiled, images).comparisons)
    restored = bnfold.recalibrate(spoiled, images[:200]).model
    assert accuracy(restored, unseen) >= good - 0.5
    assert bnfold.stats(restored, unseen[0]).fits


def test_waves_are_exact(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Measured again, every layer sees exactly what its new statistics say, however wrong the old were."""
    made = bnfold.recalibrate(untrained(CNN), digits[0])
    for each in bnfold.stats(made.model, digits[0]).comparisons:
        assert np.abs(each.shift).max() < 1e-5
        np.testing.assert_allclose(each.ratio, 1, rtol=1e-5)
    assert "5 waves" in made.estimated.method
    assert "statistics that are final" in made.estimated.method


def test_passes_settle_one_wave_each(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """As many passes as waves give the same; with fewer, the report says what is still moving."""
    model, images = untrained(CNN), digits[0][:100]
    waves = bnfold.recalibrate(model, images).estimated.new
    for passes in (2, 5):
        estimated = bnfold.recalibrate(model, images, passes=passes).estimated
        for wave, (name, running) in enumerate(estimated.new.items(), 1):
            same = np.allclose(running.mean, waves[name].mean, rtol=1e-4, atol=1e-5)
            assert same == (wave <= passes)
    assert "every layer's statistics are final" in estimated.method
    two = bnfold.recalibrate(model, images, passes=2).estimated.method
    assert "3 layers of wave 3 and later (5 waves) were measured behind statistics that changed" in two


def test_the_folded_model_equals_training_mode_on_the_same_batch(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    """Both modes meet: with the statistics of the whole data, inference is what training computes."""
    images = digits[0]
    folded = bnfold.recalibrate(CNN, images, batch=450, fold=True)
    assert folded.report is not None
    assert folded.report.nodes_after.get("BatchNormalization", 0) == 0
    training = ir.serde.serialize_model(files.load(CNN))
    for node in training.graph.node:
        if node.op_type == "BatchNormalization":
            next(each for each in node.attribute if each.name == "training_mode").i = 1
            node.output.extend([f"{node.output[0]}_mean", f"{node.output[0]}_var"])
    expected = logits(training, images, optimized=False)
    np.testing.assert_allclose(logits(folded.model, images), expected, rtol=1e-4, atol=1e-3)


def test_a_moving_average_is_what_training_leaves(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Batch after batch through torch in training mode gives the same running statistics."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    second = (torch.nn.Conv2d(4, 3, 3), torch.nn.BatchNorm2d(3, momentum=0.1))
    twin = torch.nn.Sequential(*layers, *second)
    model = exported(twin)
    batches = np.split(digits[0][:96], 3)
    twin.train()
    for batch in batches:
        twin(torch.from_numpy(batch))
    made = bnfold.recalibrate(model, batches, moving=MovingAverage.from_torch())
    norms = [each for each in twin if isinstance(each, torch.nn.BatchNorm2d)]
    for norm, running in zip(norms, made.estimated.new.values(), strict=True):
        np.testing.assert_allclose(running.mean, norm.running_mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(running.variance, norm.running_var, rtol=1e-4, atol=1e-6)
    assert "in training mode" in made.estimated.method


def exported(twin: Any) -> onnx.ModelProto:
    """The torch net as ONNX, node by node."""
    op = Graph(17)
    x = op.input("x", ("N", 1, 8, 8))
    for module in twin:
        given = [op.const(each.detach().numpy()) for each in module.parameters()]
        if hasattr(module, "running_mean"):
            given += [op.const(each.numpy()) for each in (module.running_mean, module.running_var)]
            x = op.BatchNormalization(x, *given, epsilon=module.eps)
        else:
            x = op.Conv(x, *given) if given else op.Relu(x)
    return op.finish([x])


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("average", [MovingAverage(0.5), MovingAverage(0.9, unbiased=True)])
def test_a_moving_average_follows_the_reference_kernel(opset: int, average: MovingAverage) -> None:
    """Each batch normalized by itself, each layer's moving statistics updated by the rule."""
    op = Graph(opset)
    model = op.finish([op.batch_norm(op.Relu(op.batch_norm(op.input("x", ("N", 3, 8)))))])
    data = np.random.default_rng(8).normal(1.0, 3.0, (40, 3, 8)).astype(np.float32)
    first, second = (each.layer for each in survey(ir.serde.deserialize_model(model))[0])
    running = [Running(each.mean, each.variance) for each in (first, second)]
    for batch in np.split(data, 4):
        y, moments = batch_norm_training(batch, first.gain, first.bias, epsilon=first.epsilon)
        behind = ChannelMoments.of(np.maximum(y, 0))
        running = [average.update(old, new) for old, new in zip(running, (moments, behind), strict=True)]
    made = bnfold.recalibrate(model, data, moving=average, batch=10).estimated.new.values()
    for one, other in zip(made, running, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)


@pytest.mark.parametrize("opset", [9, 17, 18])
def test_training_mode_is_the_same_in_every_opset(opset: int) -> None:
    """Where the runtime has no kernel for it, the nodes that stand in compute the same."""
    data = np.random.default_rng(0).normal(1.0, 3.0, (40, 3, 8)).astype(np.float32)

    def model(version: int) -> onnx.ModelProto:
        op = Graph(version)
        y = op.Relu(op.batch_norm(op.input("x", ("N", 3, 8))))
        return op.finish([op.batch_norm(op.MatMul(y, op.weight(8, 4)))])

    made = [
        bnfold.recalibrate(model(each), data, moving=MovingAverage(0.5), batch=10).estimated.new
        for each in (opset, 15)
    ]
    for one, other in zip(made[0].values(), made[1].values(), strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)


# Where statistics stand.


def shared() -> onnx.ModelProto:
    """Two batch norms in a row that share the constants of their statistics."""
    op = Graph(17)
    vectors = [op.positive(3) for _ in range(4)]
    x = op.BatchNormalization(op.input("x", ("N", 3)), *vectors)
    return op.finish([op.BatchNormalization(op.Relu(x), *vectors)])


def test_shared_constants_are_parted() -> None:
    """Each layer gets statistics of its own; what else reads the constant keeps it."""
    data = np.random.default_rng(1).normal(4, 2, (100, 3)).astype(np.float32)
    made = bnfold.recalibrate(shared(), data)
    first, second = made.estimated.new.values()
    assert not np.allclose(first.mean, second.mean)
    assert bnfold.stats(made.model, data).fits
    onnx.checker.check_model(made.model, full_check=True)


def arithmetic(four: list[np.ndarray]) -> onnx.ModelProto:
    """A batch norm as torch decomposes it, in front of another one."""
    op = Graph(17)
    x = op.input("x", ("N", 3))
    gain, bias, mean, variance = (op.const(each) for each in four)
    unit = op.Mul(op.Sub(x, mean), op.Reciprocal(op.Sqrt(op.Add(variance, op.const(1e-3)))))
    y = op.Relu(op.Add(op.Mul(unit, gain), bias))
    return op.finish([op.BatchNormalization(y, *(op.const(each) for each in four), epsilon=1e-3)])


def test_arithmetic_gets_new_statistics_like_a_node() -> None:
    """The decomposed form, recalibrated, computes what its twin of one node computes."""
    random = np.random.default_rng(2)
    four = [random.uniform(0.5, 2, 3) for _ in range(4)]
    op = Graph(17)
    x = op.input("x", ("N", 3))
    for last in (False, True):
        y = op.BatchNormalization(x, *(op.const(each) for each in four), epsilon=1e-3)
        x = y if last else op.Relu(y)
    data = random.normal(3, 2, (200, 3)).astype(np.float32)
    results = [bnfold.recalibrate(each, data).model for each in (arithmetic(four), op.finish([x]))]
    np.testing.assert_allclose(*(logits(each, data) for each in results), rtol=1e-4, atol=1e-5)
    assert bnfold.stats(results[0], data).fits
    assert len(bnfold.stats(results[0], data).layers) == 2


def test_old_ir_versions_and_external_data(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Constants that are listed as inputs, and constants in a file of their own, are replaced alike."""
    data = np.random.default_rng(3).normal(4, 2, (100, 3)).astype(np.float32)
    for version in (3, 8):
        old = shared()
        old.ir_version = version
        kinds = ((t.name, t.data_type, t.dims) for t in old.graph.initializer)
        old.graph.input.extend(helper.make_tensor_value_info(*kind) for kind in kinds)
        made = bnfold.recalibrate(old, data).model
        onnx.checker.check_model(made)
        assert bnfold.stats(made, data).fits
        assert {each.name for each in old.graph.input} <= {each.name for each in made.graph.input}
    onnx.save(
        onnx.load(CNN), tmp_path / "x.onnx", save_as_external_data=True, location="x.bin", size_threshold=0
    )
    outer = bnfold.recalibrate(tmp_path / "x.onnx", digits[0])
    outer.save(tmp_path / "y.onnx")
    inner = bnfold.recalibrate(CNN, digits[0])
    for name, running in inner.estimated.new.items():
        np.testing.assert_array_equal(running.variance, outer.estimated.new[name].variance)
    assert fingerprint(files.load(tmp_path / "y.onnx")) == fingerprint(inner.model)


# The way back.


@pytest.mark.parametrize("name", NETS)
def test_a_fold_is_undone_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Batch norms and original weights come back: the same bytes as the original written again."""
    original = files.load(MODELS / f"{name}.onnx")
    folded, folding = original.clone(), bnfold.FoldPass()
    folding(folded)
    files.save(folded, tmp_path / "folded.onnx")
    made = json.loads(json.dumps(provenance(folding.folds, original, folded)))
    back = restore(files.load(tmp_path / "folded.onnx"), made)
    files.save(back, tmp_path / "back.onnx")
    files.save(original, tmp_path / "again.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_every_kind_of_fold_is_undone(tmp_path: Path) -> None:
    """Every rule's examples: folded, written, read, restored, and equal to the last byte."""
    registered()  # imports the rules, and with them their examples
    for example in EXAMPLES:
        original = files.from_proto(example.model(), None)
        folded, folding = original.clone(), bnfold.FoldPass(**example.options)
        folding(folded)
        files.save(folded, tmp_path / "folded.onnx")
        back = restore(files.load(tmp_path / "folded.onnx"), provenance(folding.folds, original, folded))
        one, other = (ir.serde.serialize_model(each).SerializeToString() for each in (back, original))
        assert one == other, example.name


def run(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_the_commands_go_there_and_back(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Recalibrate --fold --map, then unfold --map: the original with its original statistics."""
    there, back, map_file = (tmp_path / name for name in ("there.onnx", "back.onnx", "map.json"))
    code, text = run("recalibrate", CNN, "--data", DIGITS, "-o", there, "--fold", "--map", map_file)
    assert code == 0
    assert "Folded 5 affine nodes" in text
    assert "5 waves" in text
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(there).graph.node}
    told = json.loads(map_file.read_text())["statistics"]
    assert told[0]["layer"] == "/0/0.1/BatchNormalization"
    assert told[0]["before"]["mean"] != told[0]["after"]["mean"]
    assert run("unfold", there, "--map", map_file, "-o", back)[0] == 0
    assert fingerprint(files.load(back)) == fingerprint(files.load(CNN))
    np.testing.assert_array_equal(logits(onnx.load(back), digits[0]), logits(onnx.load(CNN), digits[0]))


def test_a_map_of_another_model_is_refused(tmp_path: Path) -> None:
    """Nothing is guessed: another model, a changed one, a map without the way back, a damaged one."""
    original = files.load(CNN)
    folded, folding = original.clone(), bnfold.FoldPass()
    folding(folded)
    made = provenance(folding.folds, original, folded)
    with pytest.raises(InputsError, match="another model"):
        bnfold.unfold(original, made)
    changed = folded.clone()
    next(iter(changed.graph)).op_type = "Relu"
    with pytest.raises(InputsError, match="was changed"):
        bnfold.unfold(changed, made)
    with pytest.raises(InputsError, match="does not say how to undo"):
        bnfold.unfold(folded, provenance(folding.folds))
    for damage in ({"model": "?"}, {"constants": None}, {"data": {}}):
        with pytest.raises(InputsError, match="damaged"):
            bnfold.unfold(folded, {**made, "undo": {**made["undo"], **damage}})
    (tmp_path / "map.json").write_text("[1]")
    assert "is no map" in run("unfold", CNN, "--map", tmp_path / "map.json", "-o", tmp_path / "x.onnx")[1]


def test_outputs_are_not_overwritten_unasked(tmp_path: Path) -> None:
    target = tmp_path / "there.onnx"
    target.write_bytes(b"precious")
    for arguments in (("-o", target), ("-o", CNN), ("-o", tmp_path)):
        code, text = run("recalibrate", CNN, "--data", DIGITS, *arguments)
        assert code != 0
        assert "choose another name" in text or "is a directory" in text
    assert target.read_bytes() == b"precious"
    assert run("recalibrate", CNN, "--data", DIGITS, "-o", target, "-f", "--json")[0] == 0
    assert (
        json.loads(run("recalibrate", CNN, "--data", DIGITS, "-o", target, "-f", "--json")[1])["samples"]
        == 450
    )


# Refusals.


class Ending:
    """Batches that can be run through once."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.rest = iter(batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.rest


def test_what_cannot_be_estimated_is_refused(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """By one sentence each, before or instead of a wrong number."""
    images = digits[0]
    assert bnfold.recalibrate(CNN, iter([images[:9], images[9:20]]), passes=1).estimated.samples == 20
    refused: list[tuple[str, Any, dict[str, Any]]] = [
        ("an iterator ends after one", iter([images]), {}),
        ("an iterator ends after one", Ending([images]).rest, {"passes": 2}),
        ("allow at least one", images, {"passes": 0}),
        ("is one pass", images, {"passes": 2, "moving": MovingAverage()}),
        ("leave the executor out", images, {"executor": ThreadPoolExecutor(), "moving": MovingAverage()}),
        ("say nothing about a variance", images[:1], {}),
        ("NaN or infinity", np.full_like(images, np.inf), {}),
    ]
    for words, data, options in refused:
        with pytest.raises(InputsError, match=words):
            bnfold.recalibrate(CNN, data, **options)


def test_a_statistic_that_cannot_be_stored_is_refused() -> None:
    """A variance beyond float16 would be written as infinity."""
    op = Graph(17, TensorProto.FLOAT16)
    model = op.finish([op.batch_norm(op.input("x", ("N", 3)))])
    data = np.random.default_rng(4).normal(0, 1000, (50, 3)).astype(np.float16)
    with pytest.raises(InputsError, match="not finite in FLOAT16"):
        bnfold.recalibrate(model, data)


def test_without_epsilon_a_constant_channel_keeps_its_variance() -> None:
    """Its estimate, zero, has no reciprocal root; the other channels get theirs."""
    op = Graph(17)
    model = op.finish([op.batch_norm(op.input("x", ("N", 2)), epsilon=0.0)])
    data = np.random.default_rng(5).normal(0, 3, (50, 2)).astype(np.float32) * np.float32([1, 0])
    made = bnfold.recalibrate(model, data)
    (running,) = made.estimated.new.values()
    assert running.variance[1] == made.layers[0].variance[1] > 0
    assert running.variance[0] == pytest.approx(data[:, 0].var(), rel=1e-5)


# Training-mode nodes in the wild.


def in_training(opset: int, read: tuple[int, ...] = ()) -> onnx.ModelProto:
    """A batch norm as exported for training, with the outputs ``read`` also given out."""
    op = Graph(opset)
    x = op.input("x", ("N", 3, 4))
    given = [op.positive(3) for _ in range(4)]
    modern = opset >= 14
    attributes = {"training_mode": 1} if modern else {}
    outputs = op.BatchNormalization(x, *given, outputs=3 if modern else 5, **attributes)
    model = op.finish([op.Dropout(outputs[0])])
    model.graph.output.extend(
        helper.make_tensor_value_info(outputs[index], TensorProto.FLOAT, [3]) for index in read
    )
    return model


@pytest.mark.parametrize(("opset", "read"), [(7, ()), (9, (1, 2)), (13, (2,)), (14, (1, 2)), (17, ())])
def test_to_inference_uses_the_stored_statistics(opset: int, read: tuple[int, ...]) -> None:
    """The node normalizes by them, and whoever reads running statistics gets the stored ones."""
    proto = in_training(opset, read)
    model = ir.serde.deserialize_model(proto)
    assert bnfold.to_inference(model) == 1
    assert bnfold.to_inference(model) == 0
    x = np.random.default_rng(6).normal(size=(5, 3, 4)).astype(np.float32)
    gain, bias, mean, variance = (
        numpy_helper.to_array(each).reshape(-1, 1).astype(np.float64) for each in proto.graph.initializer
    )
    wanted = gain * (x - mean) / np.sqrt(variance + 1e-5) + bias
    made = ir.serde.serialize_model(model)
    session = ort.InferenceSession(made.SerializeToString())
    y, *others = session.run(None, {"x": x})
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    for index, value in zip(read, others, strict=True):
        np.testing.assert_array_equal(value, (mean, variance)[index - 1].reshape(-1).astype(np.float32))
    assert [each.name for each in made.graph.output] == [each.name for each in proto.graph.output]


def test_batch_statistics_have_no_inference() -> None:
    """What reads the moments of the batch itself cannot be served, and is named."""
    model = ir.serde.deserialize_model(in_training(9, (3,)))
    with pytest.raises(UnsupportedModelError, match="statistics of its batch"):
        bnfold.to_inference(model)


def test_the_oldest_form_and_dropout_are_converted() -> None:
    """is_test before opset 7, and Dropout's training input since opset 12."""
    op = Graph(6)
    x = op.input("x", ("N", 3))
    y = op.BatchNormalization(x, *(op.positive(3) for _ in range(4)))
    model = ir.serde.deserialize_model(op.finish([op.Dropout(y)], ir_version=3))
    assert bnfold.to_inference(model) == 2
    assert [node.attributes["is_test"].value for node in model.graph] == [1, 1]
    op = Graph(13)
    x = op.input("x", ("N", 3))
    ratio, yes, no = op.const(0.5), *(op.const(each, TensorProto.BOOL) for each in (True, False))
    model = ir.serde.deserialize_model(op.finish([op.Dropout(op.Dropout(x, ratio, yes), ratio, no)]))
    assert bnfold.to_inference(model) == 1


def test_recalibrate_converts_when_asked() -> None:
    """A model in training mode, its statistics estimated, is a model for inference."""
    data = np.random.default_rng(7).normal(2, 3, (60, 3, 4)).astype(np.float32)
    with pytest.raises(UnsupportedModelError, match="--to-inference"):
        bnfold.recalibrate(in_training(17), data)
    made = bnfold.recalibrate(in_training(17), data, to_inference=True, fold=False).model
    (node,) = [each for each in made.graph.node if each.op_type == "BatchNormalization"]
    assert len(node.output) == 1
    assert bnfold.stats(made, data).fits
