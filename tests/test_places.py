"""Wherever a model is and whoever else works there: names, links, folders, two runs at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from test_faults import contents, pair, values

from bnfold import files, job
from bnfold.core.graph import external
from bnfold.errors import OutputError
from bnfold.job import Order
from bnfold.provenance import restore

QUIET = ["--no-verify", "-q", "-f"]


def command(*arguments: object, seed: str = "0") -> subprocess.Popen[str]:
    """The command in a process of its own."""
    given = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.Popen(given, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_runs_at_once_on_one_file(tmp_path: Path) -> None:
    """Both succeed, and the result and its data are whole."""
    path = pair(tmp_path)
    children = [command(path, *QUIET) for _ in range(2)]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    job.run(path, Order(verify=False, output=tmp_path / "alone.onnx"))
    assert values(tmp_path / "model.folded.onnx") == values(tmp_path / "alone.onnx")
    assert not list(tmp_path.glob(".bnfold-*"))


def test_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    """Neither the order of hashing nor the process shows in the result or its data."""
    results = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        with command(pair(folder), *QUIET, seed=seed) as child:
            child.communicate(timeout=120)
        results.append(contents(folder))
    assert results[0] == results[1]
    assert "model.folded.onnx" in results[0]


def test_names_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    """In the folder, the model and the data file."""
    folder = tmp_path / "mes modèles 模型"
    folder.mkdir()
    path = pair(folder, data="poids du modèle.données").rename(folder / "ré seau №1.onnx")
    job.run(path, Order(verify=False))
    assert "w_folded" in values(folder / "ré seau №1.folded.onnx")


def test_an_output_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """The link stays and what it points to is replaced, as by any program that writes to a path."""
    path, target, link = pair(tmp_path), tmp_path / "target.onnx", tmp_path / "out.onnx"
    target.write_bytes(b"old")
    link.symlink_to(target.name)
    job.run(path, Order(verify=False, output=link, force=True))
    assert link.is_symlink()
    assert "w_folded" in values(target)


def test_no_data_are_put_where_a_link_leads(tmp_path: Path) -> None:
    """A model with data files, through a link into another folder: refused, nothing is changed."""
    path, other = pair(tmp_path), tmp_path / "elsewhere" / "kept.onnx"
    other.parent.mkdir()
    other.write_bytes(b"kept")
    (tmp_path / "out.onnx").symlink_to(other)
    before = contents(tmp_path)
    with pytest.raises(OutputError):
        job.run(path, Order(verify=False, output=tmp_path / "out.onnx", force=True))
    assert contents(tmp_path) == before


def test_a_map_reads_weights_in_files_once_and_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fold touched them: they are never in memory as a whole, and the way back needs no copy of them."""
    path, seen = pair(tmp_path), []
    pieces = external.pieces
    monkeypatch.setattr(external, "pieces", lambda tensor: seen.append(tensor.name) or pieces(tensor))
    job.run(path, Order(verify=False, map_file=tmp_path / "map.json"))
    assert sorted(seen) == sorted(set(seen))
    assert "untouched" in seen
    made = json.loads((tmp_path / "map.json").read_text())
    back = restore(files.load(tmp_path / "model.folded.onnx"), made)
    for name, data in values(path).items():
        assert back.graph.initializers[name].const_value.tobytes() == data


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path: Path) -> None:
    """One sentence, and everything as it was."""
    path = pair(tmp_path)
    before = contents(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError):
            job.run(path, Order(verify=False))
        assert contents(tmp_path) == before
    finally:
        tmp_path.chmod(0o700)


def test_a_result_moves_with_its_data(tmp_path: Path) -> None:
    """Into a sub-folder and back, as locations are relative; it folds there, too."""
    (tmp_path / "out").mkdir()
    job.run(pair(tmp_path), Order(verify=False, output=tmp_path / "out" / "model.onnx"))
    there = values(tmp_path / "out" / "model.onnx")
    shutil.copytree(tmp_path / "out", tmp_path / "a" / "b")
    assert values(tmp_path / "a" / "b" / "model.onnx") == there
    shutil.rmtree(tmp_path / "out")
    outcome = job.run(tmp_path / "a" / "b" / "model.onnx", Order(verify=False))
    assert not outcome.report.changed
    shutil.move(tmp_path / "a" / "b", tmp_path / "out")
    assert values(tmp_path / "out" / "model.folded.onnx") == there
    onnx.checker.check_model(tmp_path / "out" / "model.folded.onnx")
