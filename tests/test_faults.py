"""Whatever goes wrong while a model is written, there is the old one or the new one, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import job, signals
from bnfold.errors import OutputError
from bnfold.files import writing
from bnfold.job import Order

CHANNELS = 24


def pair(folder: Path, seed: int = 0, data: str = "model.onnx.data") -> Path:
    """A Conv and a BatchNormalization whose weights are in a file beside the model, or below it."""
    rng = np.random.default_rng(seed)
    arrays = {"w": rng.normal(size=(CHANNELS, CHANNELS, 3, 3)), "s": rng.random(CHANNELS) + 0.5}
    arrays["untouched"] = rng.normal(size=(CHANNELS, 50))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "untouched"], ["y"]),
    ]
    shapes = {"x": [1, CHANNELS, 5, 5], "y": [1, 50]}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = folder / "model.onnx"
    (folder / data).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def values(path: Path) -> dict[str, bytes]:
    """Every constant of the model at a path, read with its data files by onnx alone."""
    return {each.name: numpy_helper.to_array(each).tobytes() for each in onnx.load(path).graph.initializer}


# What changes the file system, as Python's own audit events call it.
CHANGES = {"os.mkdir", "os.rename", "os.chmod", "os.truncate", "os.link", "os.symlink"}


class Fault:
    """Stops the process's change number ``number`` to the file system; what cleans up afterwards may work."""

    def __init__(self) -> None:
        self.act: Callable[[], None] | None = None
        self.left = 0
        self.happened = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.act is None:
            return
        mode = arguments[1] if event == "open" else None
        if event in CHANGES or (isinstance(mode, str) and set(mode) & set("wax+")):
            self.left -= 1
            if self.left < 0:
                act, self.act = self.act, None
                act()

    @contextmanager
    def at(self, number: int, act: Callable[[], None]) -> Iterator[None]:
        """Do ``act`` instead of the change with this number."""
        self.left, self.act = number, act
        try:
            yield
        finally:
            self.happened, self.act = self.act is None, None


FAULT = Fault()


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted() -> None:
    raise KeyboardInterrupt


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fresh(folder: Path) -> Callable[[], None]:
    """Fold to a new file."""
    path = pair(folder)
    return lambda: fold(path, Order(verify=False))


def again(folder: Path) -> Callable[[], None]:
    """Fold over the result for an older model, whose data are in a file of their own."""
    fold(pair(folder, seed=1), Order(verify=False))
    path = pair(folder)
    return lambda: fold(path, Order(verify=False, force=True))


def in_place(folder: Path) -> Callable[[], None]:
    """Fold over the input."""
    path = pair(folder)
    return lambda: fold(path, Order(verify=False, in_place=True))


def shards(folder: Path) -> Callable[[], None]:
    """Fold over the input, which keeps its weights in two files of a sub-folder."""
    path = pair(folder, data="weights/a.data")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.name == "untouched":
            data = (folder / "weights/a.data").read_bytes()
            entries = {entry.key: entry for entry in tensor.external_data}
            start, size = int(entries["offset"].value), int(entries["length"].value)
            (folder / "weights/b.data").write_bytes(data[start : start + size])
            entries["location"].value, entries["offset"].value = "weights/b.data", "0"
    onnx.save(proto, path)
    return lambda: fold(path, Order(verify=False, in_place=True))


SCENARIOS = [fresh, again, in_place, shards]


def fold(path: Path, order: Order) -> None:
    job.run(path, order)


def states(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every model in a folder with the values it holds."""
    return {path.name: values(path) for path in folder.glob("*.onnx")}


def outcome(scenario: Callable[[Path], Callable[[], None]], folder: Path) -> dict[str, dict[str, bytes]]:
    """The models of a folder after all went well."""
    folder.mkdir()
    scenario(folder)()
    return states(folder)


def try_at(
    number: int, act: Callable[[], None], scenario: Callable[[Path], Callable[[], None]], folder: Path
) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]], bool]:
    """The folder before, its models before, and whether the fault happened, in a fork if it kills."""
    folder.mkdir()
    work = scenario(folder)
    before, models = contents(folder), states(folder)
    if act is killed:
        child = os.fork()
        if not child:
            with FAULT.at(number, act):
                work()
            os._exit(0)
        return before, models, os.waitpid(child, 0)[1] != 0
    try:
        with FAULT.at(number, act):
            work()
    except (OutputError, KeyboardInterrupt):
        return before, models, True
    return before, models, FAULT.happened


def tried(scenario: Callable[[Path], Callable[[], None]], act: Callable[[], None], folder: Path) -> int:
    """Let every change fail in turn; returns how many there are, raises if anything is lost."""
    folder.mkdir()
    good = outcome(scenario, folder / "good")
    for number in count():
        place = folder / str(number)
        before, models, happened = try_at(number, act, scenario, place)
        now = contents(place)
        if not happened:
            assert states(place) == good
            return number
        if act is not killed and states(place) != good:
            assert now == before, f"step {number} left something behind"
        for name, held in states(place).items():
            assert held in (models.get(name), good[name]), f"{name} is neither old nor new at step {number}"
        data = {name for name in before if not name.endswith(".onnx")}
        assert all(now[name] == before[name] for name in data), "a data file changed"
    raise AssertionError("the loop only ends above")


@pytest.mark.parametrize("act", [full, interrupted, killed])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_step_may_fail(
    scenario: Callable[[Path], Callable[[], None]], act: Callable[[], None], tmp_path: Path
) -> None:
    """Whichever step fails, is interrupted or kills the process: the old pair or the new one is there."""
    assert tried(scenario, act, tmp_path / "all") > 3


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("limit", [0, 100, 1000, 5000, 20000])
def test_a_full_disk_changes_nothing(
    scenario: Callable[[Path], Callable[[], None]], limit: int, tmp_path: Path
) -> None:
    """Where a file cannot grow any further, in the middle of a write, everything is as it was."""
    resource = pytest.importorskip("resource")
    work = scenario(tmp_path)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError):
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


class Told:
    """Sends this process a signal at the line with number ``number`` of the code that keeps files whole."""

    FILES = (writing.__file__, signals.__file__, shutil.__file__, tempfile.__file__)

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, argument: object) -> Told | None:
        """Count a line, and follow calls into these files."""
        if event == "line":
            self.left -= 1
            if self.left == -1:
                signal.raise_signal(signal.SIGTERM)
        return self if frame.f_code.co_filename in self.FILES else None


def test_told_to_stop_at_any_line(tmp_path: Path) -> None:
    """A signal may come at any moment: the old file or the new one is there, and nothing temporary."""
    target = tmp_path / "out"
    os.rmdir(tempfile.mkdtemp(dir=tmp_path))  # what Python makes once, under a lock
    stopped = 0
    for number in count():
        target.write_text("old")
        told, traced = Told(number), sys.gettrace()
        try:
            with signals.orderly():
                sys.settrace(told)
                with writing.staged(target) as part:
                    part.write_text("new")
        except KeyboardInterrupt:
            stopped += 1
        finally:
            sys.settrace(traced)
        assert [path.name for path in tmp_path.iterdir()] == ["out"], f"line {number}"
        assert target.read_text() in ("old", "new")
        if told.left >= 0:
            assert target.read_text() == "new"
            break
    assert stopped > 50


class Finalized:
    """Sends this process a signal when it goes: what is raised then, Python ignores."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_told_to_stop_within_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is heeded all the same, once; the next run starts afresh."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with signals.orderly():
        Finalized()
        assert len(ignored) == 1
        with pytest.raises(KeyboardInterrupt):
            signals.heed()
    with signals.orderly():
        signals.heed()
