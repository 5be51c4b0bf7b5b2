"""Compare two models as a whole or piece by piece, and collect the worst gap of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engines import Session
from . import graph as graphs
from . import rewrite
from .findings import Findings
from .float64 import distances, judge
from .gap import Array, Gap, gap, is_float, rounding_bound
from .models import Feeds, Follower, Leader, Models

_CUT_BYTES = 256 << 20
_SAME_MEANING = 1 / 16


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
    common = graphs.shared_cuts(models.a, models.b)
    if not common:
        return None
    rewrite.expose(models.a, common)
    rewrite.pin(models.a, models.samples[0])
    original = models.rewritten("original")
    cuts = _cuts(models, common, original, shared)
    if not cuts:
        return None
    names = [*cuts, *(name for name in models.outputs if name not in cuts)]
    given = rewrite.cut(models.b, cuts)
    candidate = models.rewritten("candidate")

    def follow(feeds: Feeds, want: Mapping[str, Array]) -> dict[str, Array]:
        return candidate.run(names, feeds | {given[name]: want[name] for name in given})

    def lead(feeds: Feeds) -> dict[str, Array]:
        return original.run(names, feeds)

    found = _findings(models, list(cuts), lead, follow)
    judge(models, given, lead, follow, found)
    return found


def judge_exactly(models: Models, found: Findings) -> None:
    """Judge the outputs that are beyond their bound end to end in float64, as far as that is possible."""
    lead, follow = _ends(models)
    judge(models, {}, lead, follow, found)


def from_truth(models: Models) -> dict[str, tuple[float, float]]:
    """How far each output of both models is from the original in float64, in ulp."""
    return distances(models, *_ends(models))


def _ends(models: Models) -> tuple[Leader, Follower]:
    candidate = models.engine.open("candidate", models.paths[1], models.paths[1].parent)
    names, original = models.outputs, models.original
    return lambda feeds: original.run(names, feeds), lambda feeds, _: candidate.run(names, feeds)


def _cuts(models: Models, names: Sequence[str], original: Session, shared: bool) -> dict[str, np.dtype[Any]]:
    """The float tensors among ``names`` to cut at, with their dtypes; ``original`` exposes them."""
    first = models.samples[0]
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
