"""The two models of a comparison, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from ..engines import Engine, Session
from .gap import Array

Feeds = dict[str, Array]
Leader = Callable[[Feeds], dict[str, Array]]
Follower = Callable[[Feeds, Mapping[str, Array]], dict[str, Array]]


@dataclass
class Models:
    """The two models and what they are run on.

    Attributes:
        engine: what runs them.
        paths: the files of the original and of the candidate.
        a: content of the original's file; ``pieces`` rewrites it.
        b: content of the candidate's file; ``pieces`` rewrites it.
        original: the original, loaded from its file.
        outputs: names of the graph outputs.
        samples: inputs on which both are compared; on the first the original is finite if it is on any.
        contrasts: inputs on which only the original is run, to see what depends on its inputs.
        changed: whether any operator or constant differs.
    """

    engine: Engine
    paths: tuple[Path, Path]
    a: ModelProto
    b: ModelProto
    original: Session
    outputs: list[str]
    samples: list[Feeds]
    contrasts: list[Feeds]
    changed: bool

    def rewritten(self, role: str) -> Session:
        """Load one side as rewritten so far."""
        model, path = (self.a, self.paths[0]) if role == "original" else (self.b, self.paths[1])
        return self.engine.open(role, model, path.parent)
