"""The command: what it prints, what it leaves behind, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.cli import main

MODELS = Path(__file__).parent.parent / "models"
CNN = MODELS / "digits_cnn.onnx"


class Done(NamedTuple):
    """What one run of the command returned."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["bnfold", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(CNN.read_bytes())
    return path


def batch_norms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def conv_bn(channels: int = 4, length: int = 4, opset: int = 17) -> onnx.ModelProto:
    """Conv and BatchNormalization, whose parameters have ``length`` entries for ``channels``."""
    weight = np.ones((channels, 3, 1, 1), np.float32)
    tensors = [numpy_helper.from_array(weight, "w")]
    tensors += [numpy_helper.from_array(np.ones(length, np.float32), name) for name in "abcd"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("BatchNormalization", ["y", *"abcd"], ["z"], name="bn"),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xz")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 4))
    graph = helper.make_graph(nodes, "g", [x], [z], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def refused(done: Done, code: int = 2) -> str:
    """Check that a run refused as it should, and return its sentence."""
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("bnfold: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    return done.err


def test_folds_proves_and_writes(run: Run, cnn: Path) -> None:
    """``bnfold MODEL`` leaves MODEL.folded.onnx, says where every batch norm went, and that it is equal."""
    before = cnn.read_bytes()
    done = run(cnn)
    assert done.code == 0
    assert batch_norms(cnn.with_name("cnn.folded.onnx")) == 0
    assert "5 folded" in done.out
    assert "folded up into /0/0.0/Conv (Conv)" in done.out
    assert any(line.startswith("equal: ") for line in done.out.splitlines())
    assert cnn.read_bytes() == before
    assert sorted(path.name for path in cnn.parent.iterdir()) == ["cnn.folded.onnx", "cnn.onnx"]


def test_in_place_and_twice(run: Run, cnn: Path) -> None:
    """``--in-place`` replaces the input; folding the result again changes no byte."""
    assert run(cnn, "--in-place").code == 0
    once = cnn.read_bytes()
    assert batch_norms(cnn) == 0
    assert run(cnn, "--in-place").code == 0
    assert cnn.read_bytes() == once


def test_same_input_same_bytes(run: Run, cnn: Path) -> None:
    """Output is deterministic."""
    assert run(cnn, "-o", cnn.with_name("a.onnx"), "-q").code == 0
    assert run(cnn, "-o", cnn.with_name("b.onnx"), "-q").code == 0
    assert cnn.with_name("a.onnx").read_bytes() == cnn.with_name("b.onnx").read_bytes()


def test_nothing_to_fold_still_leaves_the_output(run: Run, tmp_path: Path) -> None:
    """A model without batch norms is copied, so that a script finds the output in any case."""
    model = conv_bn()
    del model.graph.node[1]
    model.graph.output[0].name = "y"
    onnx.save(model, tmp_path / "plain.onnx")
    assert run(tmp_path / "plain.onnx").code == 0
    copied = tmp_path / "plain.folded.onnx"
    assert copied.read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_json_alone_on_stdout(run: Run, cnn: Path) -> None:
    """``--json`` prints one document with a schema version, and nothing else."""
    document = json.loads(run(cnn, "--json").out)
    assert document["schema_version"] == 1
    (entry,) = document["files"]
    assert entry["error"] is None
    assert entry["report"]["folded"] == 5
    assert entry["report"]["nodes_before"]["BatchNormalization"] == 5
    assert {row["status"] for row in entry["report"]["rows"]} == {"folded"}
    assert entry["verification"]["status"] == "equal"


def test_markdown(run: Run, cnn: Path) -> None:
    """``--markdown`` prints tables that GitHub shows."""
    out = run(cnn, "--markdown", "--dry-run").out
    assert "| node | operator | what became of it |" in out
    assert not cnn.with_name("cnn.folded.onnx").exists()


def test_check(run: Run, cnn: Path) -> None:
    """``--check`` writes nothing and exits 1 as long as something could be folded."""
    assert run(cnn, "--check").code == 1
    assert list(cnn.parent.iterdir()) == [cnn]
    assert run(cnn, "--in-place", "-q").code == 0
    assert run(cnn, "--check").code == 0


def test_only_and_skip(run: Run, cnn: Path) -> None:
    """``--only`` and ``--skip`` choose nodes by name; what is left out says so."""
    done = run(cnn, "--only", "/7/*", "--json")
    assert json.loads(done.out)["files"][0]["report"]["folded"] == 1
    assert "EXCLUDED" in done.out
    assert "matches no node" in refused(run(cnn, "-f", "--skip", "nothing*"))


def test_map(run: Run, cnn: Path) -> None:
    """``--map`` writes each fold's map and the constants it replaced."""
    assert run(cnn, "-q", "--map", cnn.with_suffix(".json")).code == 0
    folds = json.loads(cnn.with_suffix(".json").read_text())["folds"]
    assert len(folds) == 5
    for fold in folds:
        assert np.shape(fold["scale"])[1] == np.shape(fold["shift"])[1]
        assert all(change["new"]["sha256"] for change in fold["constants"])


def test_several_files_one_bad(run: Run, cnn: Path) -> None:
    """One bad file does not stop the others, and the exit code tells."""
    bad = cnn.with_name("bad.onnx")
    bad.write_text("no model")
    done = run(bad, cnn, "-q")
    assert done.code == 2
    assert "bad.onnx" in done.err
    assert cnn.with_name("cnn.folded.onnx").exists()


def _missing(folder: Path) -> Path:
    return folder / "missing.onnx"


def _empty(folder: Path) -> Path:
    (folder / "empty.onnx").touch()
    return folder / "empty.onnx"


def _truncated(folder: Path) -> Path:
    (folder / "cut.onnx").write_bytes(CNN.read_bytes()[:5000])
    return folder / "cut.onnx"


def _text(folder: Path) -> Path:
    (folder / "text.onnx").write_text("hello, I am no model\n" * 20)
    return folder / "text.onnx"


def _directory(folder: Path) -> Path:
    (folder / "folder.onnx").mkdir()
    return folder / "folder.onnx"


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _cyclic(folder: Path) -> Path:
    model = conv_bn()
    model.graph.node[0].input[0] = "z"
    return _saved(model, folder / "cycle.onnx")


def _wrong_lengths(folder: Path) -> Path:
    return _saved(conv_bn(length=3), folder / "lengths.onnx")


def _future(folder: Path) -> Path:
    return _saved(conv_bn(opset=999), folder / "future.onnx")


def _no_data(folder: Path) -> Path:
    onnx.save(conv_bn(), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (folder / "m.data").unlink()
    return folder / "m.onnx"


def _training_info(folder: Path) -> Path:
    model = conv_bn()
    model.training_info.add()
    return _saved(model, folder / "training.onnx")


BAD = [
    _missing,
    _empty,
    _truncated,
    _text,
    _directory,
    _cyclic,
    _wrong_lengths,
    _future,
    _no_data,
    _training_info,
]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input(run: Run, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Bad input is refused with one sentence and exit code 2, and leaves no file behind."""
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    sentence = refused(run(path))
    assert path.name in sentence or "BatchNormalization" in sentence
    assert sorted(tmp_path.iterdir()) == before


def test_existing_output_is_kept(run: Run, cnn: Path) -> None:
    """An existing output is replaced only with ``-f``; the input never without ``--in-place``."""
    target = cnn.with_name("cnn.folded.onnx")
    target.write_text("mine")
    assert "-f" in refused(run(cnn))
    assert target.read_text() == "mine"
    assert "--in-place" in refused(run(cnn, "-o", cnn, "-f"))
    assert run(cnn, "-f", "-q").code == 0
    assert batch_norms(target) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(run: Run, cnn: Path) -> None:
    """A folder that cannot be written to is one sentence."""
    cnn.parent.chmod(0o500)
    try:
        refused(run(cnn))
    finally:
        cnn.parent.chmod(0o700)


def test_output_in_no_folder(run: Run, cnn: Path) -> None:
    """An output whose folder does not exist is one sentence."""
    assert "nowhere" in refused(run(cnn, "-o", cnn.parent / "nowhere" / "x.onnx"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bogus", "m.onnx"],
        ["a.onnx", "b.onnx", "-o", "c.onnx"],
        ["a.onnx", "--in-place", "-o", "c.onnx"],
        ["a.onnx", "--json", "--markdown"],
        ["a.onnx", "--check", "--in-place"],
        ["a.onnx", "--dry-run", "-o", "c.onnx"],
        ["."],
        [""],
        ["a.onnx", "--inputs", "x.npz", "--no-verify"],
        ["verify", "a.onnx"],
        ["explain", "NOBODY_KNOWS"],
    ],
    ids=" ".join,
)
def test_bad_usage(run: Run, arguments: list[str]) -> None:
    """What click itself refuses is one sentence as well."""
    refused(run(*arguments))


def test_failed_verification_writes_nothing(run: Run, cnn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that changes the outputs is exit code 1, and no file appears."""
    from bnfold import files

    write = files.write

    def spoiled(model, path):  # type: ignore[no-untyped-def]
        write(model, path)
        proto = onnx.load(path)
        for tensor in proto.graph.initializer:
            if tensor.name.endswith("_folded"):
                values = numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                break
        onnx.save(proto, path)

    monkeypatch.setattr(files, "write", spoiled)
    done = run(cnn)
    assert "differ" in refused(done, code=1)
    assert list(cnn.parent.iterdir()) == [cnn]
    assert run(cnn, "--no-verify", "-q").code == 0


def test_verify_command(run: Run, cnn: Path) -> None:
    """``bnfold verify A B`` exits 0 for equal models and 1 for others."""
    assert run(cnn, "-q").code == 0
    done = run("verify", cnn, cnn.with_name("cnn.folded.onnx"))
    assert done.code == 0
    assert "equal: " in done.out
    assert run("verify", cnn, MODELS / "digits_mlp_bn_after.onnx").code == 1


def test_verify_with_own_inputs(run: Run, cnn: Path) -> None:
    """``--inputs`` takes the user's arrays; what does not fit is exit code 2."""
    images = np.load(MODELS / "digits_test.npz")["images"]
    good, bad = cnn.with_name("good.npz"), cnn.with_name("bad.npz")
    np.savez(good, image=images[:16])
    np.savez(bad, picture=images[:16])
    assert run(cnn, "--inputs", good, "-q").code == 0
    assert "'image'" in refused(run(cnn, "-f", "--inputs", bad))


def test_explain_and_rules(run: Run) -> None:
    """Every reason can be explained, every operator is listed."""
    assert "Zero padding" in run("explain", "padded-shift").out
    assert "PADDED_SHIFT" in run("explain").out
    assert "ConvTranspose" in run("rules").out


def test_freeze_initializers(run: Run, tmp_path: Path) -> None:
    """Overridable constants are refused with one hint; ``--freeze-initializers`` folds them."""
    model = conv_bn()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    path = _saved(model, tmp_path / "m.onnx")
    hint = run(path)
    assert hint.code == 0
    assert "--freeze-initializers" in hint.out
    assert run(path, "-f", "-q", "--freeze-initializers").code == 0
    folded = onnx.load(tmp_path / "m.folded.onnx")
    assert [value.name for value in folded.graph.input] == ["x"]
    assert [node.op_type for node in folded.graph.node] == ["Conv"]


def test_control_characters_are_escaped(run: Run, tmp_path: Path) -> None:
    """A name from a model cannot write to the terminal."""
    model = conv_bn()
    model.graph.node[1].name = "evil\x1b[31m\nname"
    out = run(_saved(model, tmp_path / "m.onnx")).out
    assert "\x1b" not in out
    assert "evil\\x1b[31m\\nname" in out


@pytest.mark.parametrize("command", [["-m", "bnfold"], ["cli.py"]])
def test_other_doors(command: list[str]) -> None:
    """``python -m bnfold`` and ``python cli.py`` are the command too."""
    root = MODELS.parent
    done = subprocess.run([sys.executable, *command, "rules"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Conv" in done.stdout


def in_training(path: Path) -> Path:
    """Conv and a batch norm that was exported in training mode, with statistics of its own."""
    model = conv_bn()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    return _saved(model, path)


def test_training_mode_is_explained_and_left_alone(run: Run, tmp_path: Path) -> None:
    """Without ``--to-inference`` a node in training mode stays, and the report says what would help."""
    path = in_training(tmp_path / "t.onnx")
    done = run(path)
    assert done.code == 0
    assert "stay because they are in training mode, normalizing by each batch: 1" in done.out
    assert "--to-inference" in done.out
    assert (tmp_path / "t.folded.onnx").read_bytes() == path.read_bytes()


def test_to_inference_is_done_when_asked_and_said(run: Run, tmp_path: Path) -> None:
    """With it the node folds by its stored statistics, proven against that; unfold undoes it all."""
    path, made = in_training(tmp_path / "t.onnx"), tmp_path / "t.map.json"
    assert run(path, "--check", "-q").code == 0
    assert run(path, "--check", "-q", "--to-inference").code == 1
    done = run(path, "--to-inference", "--map", made)
    assert (done.code, done.err) == (0, "")
    assert "1 nodes left training mode" in done.out
    assert batch_norms(tmp_path / "t.folded.onnx") == 0
    assert run("unfold", tmp_path / "t.folded.onnx", "--map", made).code == 0
    restored = onnx.load(tmp_path / "t.folded.unfolded.onnx")
    assert restored.graph.node[1].attribute[0].name == "training_mode"
    report = json.loads(run(path, "-f", "--to-inference", "--json").out)["files"][0]
    assert report["report"]["converted"] == 1
    assert report["verification"]["status"] == "equal"


def test_batch_statistics_in_use_are_refused(run: Run, tmp_path: Path) -> None:
    """Where something reads the statistics of the batch, ``--to-inference`` says so and writes nothing."""
    model = conv_bn(opset=9)
    model.graph.node[1].output.extend(["m", "v", "sm", "sv"])
    model.graph.output.append(helper.make_tensor_value_info("sm", TensorProto.FLOAT, None))
    path = _saved(model, tmp_path / "t.onnx")
    assert "statistics of its batch" in refused(run(path, "--to-inference"))
    assert list(tmp_path.iterdir()) == [path]


def test_in_place_with_external_data_leaves_a_way_back(run: Run, cnn: Path) -> None:
    """The map is made of the data as they were, and unfold restores them bit for bit."""
    model = onnx.load(cnn)
    external = cnn.with_name("external.onnx")
    onnx.save(onnx.load(cnn), external, save_as_external_data=True, location="w.bin", size_threshold=0)
    made = cnn.with_suffix(".json")
    assert run(external, "--in-place", "-q", "--map", made).code == 0
    assert batch_norms(external) == 0
    assert run("unfold", external, "--map", made).code == 0
    restored = onnx.load(cnn.with_name("external.unfolded.onnx"))
    data = [
        {t.name: numpy_helper.to_array(t).tobytes() for t in each.graph.initializer}
        for each in (model, restored)
    ]
    assert data[0] == data[1]
    assert restored.graph.node == model.graph.node


def test_a_map_that_cannot_be_written_leaves_the_input(run: Run, cnn: Path) -> None:
    """Nothing is replaced before its way back is safe; a map replaces no model, nor unasked a map."""
    before, old, other = cnn.read_bytes(), cnn.with_suffix(".json"), cnn.with_name("other.onnx")
    refused(run(cnn, "--in-place", "--map", cnn.parent / "no" / "such" / "map.json"))
    assert "no place for a map" in refused(run(cnn, "--in-place", "--map", cnn))
    assert "no place for a map" in refused(run(cnn, "-f", "-o", other, "--map", other))
    old.write_text("another way back")
    assert "exists" in refused(run(cnn, "--in-place", "--map", old))
    assert cnn.read_bytes() == before
    assert old.read_text() == "another way back"
    assert not other.exists()


def test_verification_states_its_memory_first(run: Run, cnn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a large model: said before anything is written, and refused where it is not there."""
    from bnfold import job

    monkeypatch.setattr(job, "_LARGE", 1)
    monkeypatch.setattr(job, "_free_memory", lambda: 10**6)
    code, _, err = run(cnn)
    assert code == 1
    assert "GB are free" in err
    assert list(cnn.parent.iterdir()) == [cnn]
    monkeypatch.setattr(job, "_free_memory", lambda: 10**12)
    code, _, err = run(cnn)
    assert code == 0
    assert "takes up to" in err
