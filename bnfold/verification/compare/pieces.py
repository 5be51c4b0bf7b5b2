"""Compare two models as a whole or piece by piece, and collect the worst gap of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..engines import Engine, Session, one_line
from . import graph as graphs
from . import rewrite
from .exact import evaluate
from .findings import Exact, Findings
from .gap import Array, Gap, gap, is_float, rounding_bound, ulp_at

# Rounding moves the folded weights by half an ulp at most; measured: docs/verification.md.
MARGIN = 2.0
# A candidate that is right in float64 may round at most so many times worse than the original, or the bound.
LOSS = 4.0

Feeds = dict[str, Array]
Leader = Callable[[Feeds], dict[str, Array]]
Follower = Callable[[Feeds, Mapping[str, Array]], dict[str, Array]]
_CUT_BYTES = 256 << 20
_SAME_MEANING = 1 / 16


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


def whole(models: Models) -> Findings:
    """Compare the outputs of both models."""
    return _findings(models, (), *_ends(models))


def pieces(models: Models, shared: bool) -> Findings | None:
    """Compare every piece between two shared tensors on the original's values; rewrites both models.

    Args:
        models: both models.
        shared: whether one name is promised to mean one value; if not, only names on which both models
            roughly agree are used.

    Returns:
        the findings for the outputs and the cuts, or None if there is nothing to cut at.
    """
    cuts = _cuts(models, shared)
    if not cuts:
        return None
    names = [*cuts, *(name for name in models.outputs if name not in cuts)]
    original = models.rewritten("original")
    given = rewrite.cut(models.b, cuts)
    candidate = models.rewritten("candidate")

    def follow(feeds: Feeds, want: Mapping[str, Array]) -> dict[str, Array]:
        return candidate.run(names, feeds | {given[name]: want[name] for name in given})

    def lead(feeds: Feeds) -> dict[str, Array]:
        return original.run(names, feeds)

    found = _findings(models, list(cuts), lead, follow)
    _judge_exactly(models, given, lead, follow, found)
    return found


def judge_exactly(models: Models, found: Findings) -> None:
    """Judge the outputs that are beyond their bound end to end in float64, as far as that is possible."""
    lead, follow = _ends(models)
    _judge_exactly(models, {}, lead, follow, found)


def _ends(models: Models) -> tuple[Leader, Follower]:
    candidate = models.engine.open("candidate", models.paths[1], models.paths[1].parent)
    names, original = models.outputs, models.original
    return lambda feeds: original.run(names, feeds), lambda feeds, _: candidate.run(names, feeds)


def _judge_exactly(
    models: Models, given: Mapping[str, str], lead: Leader, follow: Follower, found: Findings
) -> None:
    """Add to ``found.exact``, up to the first tensor that differs in float64 as well.

    Args:
        models: both models, the candidate cut at ``given``.
        given: the candidate's input that stands for each cut.
        lead: runs the original and yields the value of every cut and tensor in question.
        follow: runs the candidate on the original's values.
        found: what was found in the runtime's own arithmetic.
    """
    names = [name for name in found.over if not found.gaps[name].clash]
    want: dict[str, Array] = {}
    got: dict[str, Array] = {}
    last = -1
    for name in sorted(names, key=found.worst_on.__getitem__):
        feeds = models.samples[found.worst_on[name]]
        if found.worst_on[name] != last:
            want, got = {}, {}  # let go of one sample's tensors before the next one's
            last, want = found.worst_on[name], lead(feeds)
            got = follow(feeds, want)
        cuts = {key: want[key] for key in given}
        try:
            wide = _in_float64(models, feeds, cuts, given, name)
        except Exception as error:
            found.trouble = one_line(error)
            return
        found.exact[name] = _exact(want[name], got[name], wide, found.bounds[name])
        if not found.exact[name].ok:
            return


def _in_float64(
    models: Models, feeds: Feeds, cuts: Mapping[str, Array], given: Mapping[str, str], name: str
) -> tuple[Array, Array, Array]:
    """One tensor of the original, of the candidate, and of the original with moved weights."""
    mine = {**feeds, **cuts}
    theirs = feeds | {given[key]: value for key, value in cuts.items()}
    a, b = (path.parent for path in models.paths)
    return (
        evaluate(models.a, a, name, mine),
        evaluate(models.b, b, name, theirs),
        evaluate(models.a, a, name, mine, jitter=True),
    )


def _exact(want: Array, got: Array, wide: tuple[Array, Array, Array], bound: float) -> Exact:
    a, b, moved = wide
    unit = ulp_at(want.dtype, float(np.abs(a).max(initial=0.0)))

    def apart(x: Array, y: Array) -> float:
        return float(np.abs(x - y).max(initial=0.0)) / unit

    return Exact(
        error=apart(a, b),
        reach=max(1.0, MARGIN * apart(a, moved)),
        loss=apart(b, got.astype(np.float64)),
        original_loss=apart(a, want.astype(np.float64)),
        allowed=LOSS * max(bound, apart(a, want.astype(np.float64))),
    )


def _cuts(models: Models, shared: bool) -> dict[str, np.dtype[Any]]:
    """The float tensors to cut at, with their dtypes; the models expose them."""
    names = graphs.shared_cuts(models.a, models.b)
    if not names:
        return {}
    first = models.samples[0]
    rewrite.expose(models.a, names)
    rewrite.pin(models.a, first)
    original = models.rewritten("original")
    values = original.run(_affordable({name: original.size(name) for name in names}), first)
    values = {name: each for name, each in values.items() if name in names and is_float(each.dtype)}
    if not shared:
        rewrite.expose(models.b, list(values))
        theirs = models.rewritten("candidate").run(list(values), first)
        values = {name: each for name, each in values.items() if _alike(gap(each, theirs.get(name)))}
    return {name: each.dtype for name, each in values.items()}


def _alike(between: Gap) -> bool:
    return not between.clash and between.max_abs <= _SAME_MEANING * between.scale


def _affordable(sizes: Mapping[str, int]) -> list[str]:
    """Leave out the largest tensors until the rest fits into memory."""
    left = _CUT_BYTES
    kept = set()
    for name in sorted(sizes, key=sizes.__getitem__):
        left -= sizes[name]
        if left < 0:
            break
        kept.add(name)
    return [name for name in sizes if name in kept]


def _findings(
    models: Models,
    cuts: Sequence[str],
    lead: Leader,
    follow: Follower,
) -> Findings:
    """Run both on every sample and keep the worst gap of each tensor; one sample's tensors at a time."""
    found = Findings()
    for position, feeds in enumerate(models.samples):
        want = lead(feeds)
        if position and not all(map(_finite, want.values())):
            continue  # a random input too large for the model shows nothing but its overflow
        got = follow(feeds, want)
        found.samples += 1
        for name in want | got:
            found.add(name, gap(want.get(name), got.get(name)), position)
    for feeds in models.contrasts:
        for name, value in lead(feeds).items():
            found.gaps[name].contrast(value)
    found.bounds = _bounds(models, cuts, found.gaps)
    return found


def _bounds(models: Models, cuts: Sequence[str], gaps: Mapping[str, Gap]) -> dict[str, float]:
    sides = [graphs.sums(each.graph, set(cuts)) for each in (models.a, models.b)]
    bounds = {}
    for name, each in gaps.items():
        tensor = name if name in sides[0] else name.rsplit("[", 1)[0]  # an element of a sequence
        longest = (rounding_bound(each.dtype, side.get(tensor, ()), whole=not cuts) for side in sides)
        bounds[name] = max(longest)
    return bounds


def _finite(array: Array) -> bool:
    return not is_float(array.dtype) or bool(np.isfinite(array).all())
