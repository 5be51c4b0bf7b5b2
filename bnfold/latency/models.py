"""What is compared: models as files, with a label for each and the size of everything it reads."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold import files
from bnfold.folding import ModelLike
from bnfold.passes.fold import FoldPass


@dataclass(frozen=True)
class Model:
    """One model to measure.

    Attributes:
        label: what the report calls it.
        path: the file to load.
        lasting: whether that file was there before, and will be.
        bytes: size of the file and of its external data.
    """

    label: str
    path: Path
    bytes: int
    lasting: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {"label": self.label, "path": str(self.path) if self.lasting else None, "bytes": self.bytes}


def gathered(given: Sequence[ModelLike], folder: Path) -> list[Model]:
    """The models as files, and where only one is given, its fold too; ``folder`` takes what is written.

    Raises:
        BnfoldError: a model cannot be read; the subclass and its text say why.
    """
    loaded = [_loaded(each, folder / f"model{index}.onnx") for index, each in enumerate(given)]
    labels = _labels([_name(each, index) for index, each in enumerate(given)])
    models = [
        _model(label, path, model, path.parent != folder)
        for label, (path, model) in zip(labels, loaded, strict=True)
    ]
    if len(models) == 1 and FoldPass()(loaded[0][1]).modified:
        path = folder / "folded.onnx"
        files.save(loaded[0][1], path)
        models.append(_model(f"{labels[0]} (folded)", path, files.load(path), False))
    return models


def _loaded(given: ModelLike, target: Path) -> tuple[Path, ir.Model]:
    """A model and the file it is in, written to ``target`` if it is in none."""
    if isinstance(given, (str, os.PathLike)):
        return Path(given).resolve(), files.load(given)
    if isinstance(given, onnx.ModelProto):
        given = files.from_proto(given, None)
    if not isinstance(given, ir.Model):
        raise TypeError(f"bench takes paths, onnx.ModelProto and onnx_ir.Model, not {type(given).__name__}")
    files.save(given, target)
    return target, files.load(target)


def _model(label: str, path: Path, model: ir.Model, lasting: bool) -> Model:
    external = {os.path.realpath(tensor.path) for tensor in files.external_tensors(model)}
    size = path.stat().st_size + sum(os.path.getsize(each) for each in external)
    return Model(label, path, size, lasting)


def _name(given: ModelLike, index: int) -> str:
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else f"model {index + 1}"


def _labels(names: Sequence[str]) -> list[str]:
    """File names, paths where files of one name lie in several folders, a number where one comes again."""
    paths: dict[str, set[str]] = defaultdict(set)
    for name in names:
        paths[Path(name).name].add(name)
    seen: Counter[str] = Counter()
    labels = []
    for path in names:
        name = Path(path).name if len(paths[Path(path).name]) == 1 else path
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels
