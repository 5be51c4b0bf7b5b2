"""What is compared: networks and small nets of one pattern each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import light
import onnx
import rep_networks
from peers import CACHE

from . import patterns

_ROOT = Path(__file__).parent.parent.parent
_ZOO = ("densenet121", "inception_v2", "resnet50", "shufflenet")
# Lists its weights as inputs, which a caller may override: no optimizer may fold them, until it is told.
_OVERRIDABLE = "ultraface-slim-320"


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: unique, and good for a folder.
        group: where it comes from; "pattern" for the small nets.
        path: its file.
        about: one line.
    """

    name: str
    group: str
    path: Path
    about: str = ""

    @property
    def is_network(self) -> bool:
        """Whether it is a whole network."""
        return self.group != "pattern"


def subjects(folder: Path) -> list[Subject]:
    """All models that are there; those that are made are written to ``folder`` once."""
    folder.mkdir(parents=True, exist_ok=True)
    return [*_zoo(folder), *_digits(), *_others(folder), *_exports(), *_branches(folder), *_patterns(folder)]


def _zoo(folder: Path) -> Iterator[Subject]:
    for name in _ZOO:
        path = folder / f"light-{name}.onnx"
        if not path.exists():
            light.make(name, path)
        yield Subject(f"light-{name}", "onnx light zoo", path, "random weights")


def _digits() -> Iterator[Subject]:
    for path in sorted((_ROOT / "models").glob("*.onnx")):
        yield Subject(path.stem, "digits", path, "trained on the UCI digits")


def _others(folder: Path) -> Iterator[Subject]:
    """The models in the folder BNFOLD_MODELS; one that ONNX Runtime does not load is told as failed."""
    given = os.environ.get("BNFOLD_MODELS")
    for path in sorted(Path(given).glob("*.onnx")) if given else ():
        yield Subject(path.stem, "models of others", path)
        if path.stem == _OVERRIDABLE:
            frozen = folder / f"{path.stem}-frozen.onnx"
            if not frozen.exists():
                _freeze(path, frozen)
            yield Subject(frozen.stem, "models of others", frozen, "its weights no longer inputs")


def _exports() -> Iterator[Subject]:
    """The export matrix: ``<network>.<exporter>.onnx`` in the folder BNFOLD_EXPORTS, or in the cache.

    Of an exporter's two forms the one that users get: not "-raw", its own optimizer off, nor "-static".
    """
    folder = Path(os.environ.get("BNFOLD_EXPORTS", CACHE / "exports"))
    for path in sorted(folder.glob("*.*.onnx")):
        exporter = path.stem.rpartition(".")[2]
        if not exporter.endswith(("-raw", "-static")):
            yield Subject(path.stem, f"exported by {exporter}", path)


def _branches(folder: Path) -> Iterator[Subject]:
    """Networks of branches as they are trained, where BNFOLD_TORCH_PYTHON names an interpreter with timm."""
    given = os.environ.get("BNFOLD_TORCH_PYTHON")
    for name, about in rep_networks.NETWORKS.items() if given else ():
        path = folder / name / "training.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            subprocess.run([given, rep_networks.__file__, name, path.parent], check=True, timeout=900)
        yield Subject(name, "networks of branches", path, about)


def _patterns(folder: Path) -> Iterator[Subject]:
    for name, build in patterns.PATTERNS.items():
        path = folder / f"{name}.onnx"
        patterns.write(name, path)
        yield Subject(name, "pattern", path, (build.__doc__ or "").rstrip("."))


def _freeze(path: Path, target: Path) -> None:
    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, target)
