"""Many files in one call: in order, one bad file stops no other, a crash is an error like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from test_hostile import model

from bnfold import job
from bnfold.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, stdout, stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bnfold", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capfd.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return command


def files(folder: Path, count: int) -> list[Path]:
    """That many models, each under a name of its own."""
    paths = [folder / f"{number:03}.onnx" for number in range(count)]
    for path in paths:
        onnx.save(model(), path)
    return paths


def crashing(number: int) -> Callable[[Path, job.Order], job.Outcome]:
    """``job.run``, but one of the files takes its process down."""
    run = job.run

    def crash(path: Path, order: job.Order) -> job.Outcome:
        if path.stem == f"{number:03}":
            os.kill(os.getpid(), signal.SIGKILL)
        return run(path, order)

    return crash


def test_neither_a_bad_file_nor_a_crash_stops_the_rest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty files at four at a time: each has its status, in order, and the exit code tells."""
    paths = files(tmp_path, 40)
    paths[7].write_bytes(b"garbage")
    monkeypatch.setattr(job, "run", crashing(21))
    code, out, err = run(*paths, "-j", 4, "--no-verify", "--json")
    told = json.loads(out)["files"]
    assert code == 2
    assert [each["model"] for each in told] == [str(path) for path in paths]
    assert {Path(each["model"]).stem for each in told if each["error"]} == {"007", "021"}
    assert "signal 9" in told[21]["error"]
    assert err.count("bnfold: ") == 2
    assert len(list(tmp_path.glob("*.folded.onnx"))) == 38
    assert not list(tmp_path.glob(".bnfold-*"))


def test_a_single_crash_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one file only."""
    (path,) = files(tmp_path, 1)
    monkeypatch.setattr(job, "run", crashing(0))
    code, _, err = run(path, "--no-verify")
    assert code == 2
    assert "signal 9" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_stops_and_leaves_whole_files(number: int, tmp_path: Path) -> None:
    """In the middle of many files: exit code 130, nothing half-written, nothing temporary left."""
    paths = files(tmp_path, 300)
    command = [sys.executable, "-m", "bnfold", *map(str, paths), "-j", "2", "--no-verify", "-q"]
    # A test run in the background ignores Ctrl-C, and so would everything that it starts.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listening
    ) as child:
        while child.poll() is None and not list(tmp_path.glob("*.folded.onnx")):
            time.sleep(0.02)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert err == "bnfold: interrupted; no file was left half-written.\n"
    made = list(tmp_path.glob("*.folded.onnx"))
    assert 0 < len(made) < 300
    for path in made:
        onnx.checker.check_model(path)
    assert not list(tmp_path.glob(".bnfold-*"))
