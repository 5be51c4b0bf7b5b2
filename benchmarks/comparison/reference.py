"""What a model is held against: its inputs, its own outputs, and those in float64."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bnfold.verification.engines import CannotRunError
from bnfold.verification.inputs import port, runnable

from .executed import session

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))
from truth import truth

Array = NDArray[Any]
Feeds = dict[str, Array]

_BELIEVABLE = 1e-2


class Reference:
    """Random inputs for a model and what comes of them, computed once and kept in a folder.

    Attributes:
        inputs: the inputs, as .npz.
    """

    def __init__(self, model: Path, folder: Path, key: str) -> None:
        self._model, self._folder, self._key = model, folder, key
        self.inputs = folder / f"inputs-{key}.npz"
        if not self.inputs.exists():
            np.savez(self.inputs, allow_pickle=False, **_feeds(model))

    @cached_property
    def feeds(self) -> Feeds:
        """The inputs by name."""
        with np.load(self.inputs) as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def own(self) -> list[Array]:
        """The outputs in ONNX Runtime without optimizations."""
        return list(session(self._model, "off").run(None, self.feeds))

    @cached_property
    def truth(self) -> list[Array] | None:
        """The outputs in float64, None if onnx's evaluator cannot run the model.

        Or if that is far from what ONNX Runtime makes of the original: then one of them is wrong.
        """
        kept = self._folder / f"truth-{self._key}.npz"
        if not kept.exists():
            np.savez(kept, *(self._evaluated() or []))
        with np.load(kept) as file:
            outputs = [file[name] for name in file.files]
        return outputs if outputs and error_of(self.own, outputs) < _BELIEVABLE else None

    def _evaluated(self) -> list[Array] | None:
        model = onnx.load(self._model)
        try:
            values = truth(model, self.feeds)
        except Exception:  # whatever the evaluator raises for an operator that it lacks
            return None
        return [values[each.name] for each in model.graph.output]


def error_of(outputs: list[Array], wanted: list[Array]) -> float:
    """Largest difference as part of the output's largest value; infinite where only one is finite."""
    return max((_error(*pair) for pair in zip(outputs, wanted, strict=True)), default=0.0)


def _error(got: Array, wanted: Array) -> float:
    finite = np.isfinite(wanted)
    if got.shape != wanted.shape or not np.array_equal(np.isfinite(got), finite):
        return float("inf")
    size = float(np.abs(wanted[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(got[finite].astype(np.float64) - wanted[finite]).max(initial=0.0)) / size


def _feeds(path: Path) -> Feeds:
    """Random inputs of sizes on which the model runs."""
    graph = onnx.load(path, load_external_data=False).graph
    runtime = session(path, "all")
    required = {each.name for each in runtime.get_inputs()}

    def attempt(feeds: Feeds) -> None:
        try:
            runtime.run(None, feeds)
        except Exception as error:
            raise CannotRunError(str(error)) from error

    return runnable([port(each) for each in graph.input if each.name in required], attempt, seed=0)[0]
