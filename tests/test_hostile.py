"""What a file may do to harm: each gets one clear error or the right result, and nothing outside is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import files
from bnfold.errors import BnfoldError, InvalidModelError, UnreadableModelError, UnsupportedModelError

DAMAGED = Path(__file__).parent / "data" / "damaged"

Change = Callable[[onnx.ModelProto], None]


def model() -> onnx.ModelProto:
    """A Conv and a BatchNormalization."""
    held = {"w": np.ones((4, 3, 1, 1), np.float32), "s": np.full(4, 0.5, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["y"], name="bn"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, 2, 2])
        for name, size in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        ports[:1],
        ports[1:],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(proto: onnx.ModelProto, **entries: str) -> None:
    """Let the kernel be in a file."""
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "data.bin", **entries}.items():
        weight.external_data.add(key=key, value=value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data in it, and a secret beside it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in (inside / "data.bin", tmp_path / "secret.bin"):
        path.write_bytes(np.ones(12, np.float32).tobytes())
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "within.bin").symlink_to(inside / "data.bin")
    os.link(tmp_path / "secret.bin", inside / "hard.bin")
    (inside / "sub").mkdir()
    return inside


def refused(proto: onnx.ModelProto, folder: Path, kind: type[BnfoldError]) -> str:
    """The error that loading gives: of the kind, and one line."""
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(kind) as caught:
        bnfold.fold(folder / "m.onnx")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "sub/../../secret.bin", "link.bin", "hard.bin", "sub", "no"]
)
def test_data_outside_the_folder_are_not_read(folder: Path, location: str) -> None:
    """By `..`, by a link of either kind, or as something that is no file: the model is refused."""
    proto = model()
    external(proto, location=location)
    assert location in refused(proto, folder, UnreadableModelError)


def test_an_absolute_path_is_not_read(folder: Path) -> None:
    """Not even one into the model's own folder."""
    proto = model()
    external(proto, location=str(folder / "data.bin"))
    refused(proto, folder, UnreadableModelError)


@pytest.mark.parametrize("location", ["data.bin", "within.bin", "sub/../data.bin"])
def test_data_in_the_folder_are_read(folder: Path, location: str) -> None:
    """Directly, or by a link that stays inside."""
    proto = model()
    external(proto, location=location)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    assert bnfold.fold(folder / "m.onnx").report.folded == 1


def test_a_literal_in_a_file_is_held_to_the_same(folder: Path) -> None:
    """A Constant node may not read what an initializer may not; what it may is kept inside."""
    for location, kind in (("../secret.bin", UnreadableModelError), ("data.bin", None)):
        proto = model()
        external(proto, location=location)
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=proto.graph.initializer[0]))
        del proto.graph.initializer[0]
        if kind:
            refused(proto, folder, kind)
        else:
            (folder / "m.onnx").write_bytes(proto.SerializeToString())
            target = folder.parent / "elsewhere.onnx"
            bnfold.fold(folder / "m.onnx").save(target)
            onnx.checker.check_model(target)


def _dims(*dims: int) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].dims[:] = dims

    return change


def _entry(**entries: str) -> Change:
    return lambda proto: external(proto, **entries)


def _twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[1])


def _same_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "c"


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def _type(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.add(name="group", type=onnx.AttributeProto.STRING, s=b"1")


def _text(proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString().replace(b"conv", b"\xff\xfe\xfd\xfc")
    proto.CopyFrom(onnx.load_model_from_string(content))


LIES: dict[str, tuple[Change, type[BnfoldError]]] = {
    "larger": (_dims(400, 3, 1, 1), InvalidModelError),
    "smaller": (_dims(1, 3, 1, 1), InvalidModelError),
    "negative": (_dims(-4, -3, 1, 1), InvalidModelError),
    "overflow": (_dims(1 << 62, 1 << 62, 1 << 62, 4), InvalidModelError),
    "impossible": (_dims(1 << 40, 1 << 20, 1, 1), InvalidModelError),
    "length": (_entry(length="4"), UnreadableModelError),
    "offset": (_entry(offset="40"), UnreadableModelError),
    "negative offset": (_entry(offset="-8"), InvalidModelError),
    "huge offset": (_entry(offset="9" * 30), InvalidModelError),
    "unknown key": (_entry(driver="s3"), InvalidModelError),
    "an initializer twice": (_twice, InvalidModelError),
    "an output twice": (_same_output, InvalidModelError),
    "cycle": (_cycle, InvalidModelError),
    "attribute type": (_type, InvalidModelError),
    "text": (_text, InvalidModelError),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str, folder: Path) -> None:
    """Sizes, names, types and order that cannot be: refused, with a sentence."""
    proto, (change, kind) = model(), LIES[lie]
    change(proto)
    refused(proto, folder, kind)


def test_a_sparse_bomb_is_refused(folder: Path) -> None:
    """A few bytes that would become a terabyte."""
    proto = model()
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
    )
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20]))
    assert "sparse" in refused(proto, folder, UnsupportedModelError)


def test_unknown_fields_are_not_lost(folder: Path) -> None:
    """A field of a newer onnx cannot be written again, so the model is refused."""
    (folder / "m.onnx").write_bytes(model().SerializeToString() + b"\xfa\x7f\x01x")
    with pytest.raises(UnsupportedModelError, match="update onnx"):
        files.load(folder / "m.onnx")


def test_200_nested_bodies_are_refused(folder: Path) -> None:
    """Protobuf itself reads about 32; the error says so."""
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], model().graph.output[:1])
    content = body.SerializeToString()

    def field(number: int, data: bytes) -> bytes:
        length, size = len(data), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + data

    for _ in range(200):
        attribute = field(1, b"then_branch") + field(6, content) + b"\xa0\x01\x05"
        content = field(1, field(2, b"y") + field(4, b"If") + field(5, attribute)) + field(2, b"b")
    (folder / "m.onnx").write_bytes(b"\x08\x08" + field(7, content))
    with pytest.raises(UnreadableModelError, match=r"deeper than protobuf reads|not an ONNX model"):
        files.load(folder / "m.onnx")


def test_control_characters_are_escaped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A name from a model cannot talk to the terminal, in the report or in an error."""
    from bnfold.cli import main

    proto = model()
    proto.graph.node[1].name = "bn\x1b]0;owned\x07"
    (folder / "good.onnx").write_bytes(proto.SerializeToString())
    proto.graph.node[0].input[1] = "w\x1b[31m"
    (folder / "bad.onnx").write_bytes(proto.SerializeToString())
    for name, code in (("good", 0), ("bad", 2)):
        monkeypatch.setattr(sys, "argv", ["bnfold", str(folder / f"{name}.onnx"), "--dry-run"])
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == code
        said = capfd.readouterr()
        assert "\\x1b" in said.out + said.err
        assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("path", sorted(DAMAGED.glob("*.onnx")), ids=lambda path: path.stem)
def test_damaged_files_that_once_went_wrong(path: Path, tmp_path: Path) -> None:
    """Each was found by fuzzing and made small: now it is folded or refused with a typed error."""
    with suppress(BnfoldError):
        bnfold.fold(path).save(tmp_path / "out.onnx")
