"""Compare two models as a whole or piece by piece, and collect the worst gap of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from . import graph as graphs
from .compare import Array, Gap, gap, is_float, rounding_bound, ulp_at
from .exact import evaluate
from .inputs import Feeds
from .runtime import Engine, Session, one_line

# Moving every weight by 1 ulp does more than rounding the folded ones by half an ulp; see docs/verification.md.
MARGIN = 2.0
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
    """

    engine: Engine
    paths: tuple[Path, Path]
    a: ModelProto
    b: ModelProto
    original: Session
    outputs: list[str]
    samples: list[Feeds]
    contrasts: list[Feeds]

    def rewritten(self, role: str) -> Session:
        """Load one side as rewritten so far."""
        model, path = (self.a, self.paths[0]) if role == "original" else (self.b, self.paths[1])
        return self.engine.open(role, model, path.parent)


@dataclass
class Findings:
    """What was compared.

    Attributes:
        gaps: the worst gap of every tensor, in graph order.
        bounds: its bound, in ulp.
        samples: on how many inputs.
        exact: difference and bound in float64, in ulp of the tensor's own dtype, where a bound was exceeded.
        trouble: why float64 could not be asked, or "".
    """

    gaps: dict[str, Gap] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    exact: dict[str, tuple[float, float]] = field(default_factory=dict)
    trouble: str = ""

    @property
    def over(self) -> list[str]:
        """The tensors beyond their bound, in float64 where they were judged in it."""
        return [name for name in self.gaps if not self.measure(name)[0] <= self.measure(name)[1]]

    def measure(self, name: str) -> tuple[float, float]:
        """Difference and bound of one tensor, in ulp."""
        return self.exact.get(name, (self.gaps[name].ulp, self.bounds[name]))

    @property
    def telling(self) -> bool:
        """Whether any float tensor would have shown an error."""
        floats = {name: each for name, each in self.gaps.items() if is_float(each.dtype)}
        return any(each.tells(self.bounds[name]) for name, each in floats.items())

    @property
    def nearest(self) -> str:
        """The first tensor beyond its bound, else the one nearest to it."""
        ratio = {name: self.measure(name)[0] / max(self.bounds[name], 1.0) for name in self.gaps}
        return next(iter(self.over), None) or max(ratio, key=ratio.__getitem__)


def whole(models: Models) -> Findings:
    """Compare the outputs of both models."""
    candidate = models.engine.open("candidate", models.paths[1], models.paths[1].parent)
    names, run = models.outputs, models.original.run
    return _findings(
        models, (), lambda feeds: run(names, feeds), lambda feeds, _: candidate.run(names, feeds)
    )


def pieces(models: Models, shared: bool) -> Findings | None:
    """Compare every piece between two shared tensors on the original's values; rewrites both models.

    Args:
        models: both models.
        shared: whether one name is promised to mean one value; if not, only names on which both models
            roughly agree are used.

    Returns:
        the findings for the outputs and the cuts, or None if there is nothing to cut at.
    """
    values = _cut_values(models, shared)
    if not values:
        return None
    names = [*values, *(name for name in models.outputs if name not in values)]
    original = models.rewritten("original")
    given = graphs.cut(models.b, values)
    candidate = models.rewritten("candidate")

    def follow(feeds: Feeds, want: Mapping[str, Array]) -> dict[str, Array]:
        return candidate.run(names, feeds | {given[name]: want[name] for name in given})

    found = _findings(models, list(values), lambda feeds: original.run(names, feeds), follow)
    _judge_exactly(models, given, original, found)
    return found


def judge_exactly(models: Models, found: Findings) -> None:
    """Judge the outputs that are beyond their bound end to end in float64, as far as that is possible."""
    _judge_exactly(models, {}, models.original, found)


def _judge_exactly(models: Models, given: Mapping[str, str], original: Session, found: Findings) -> None:
    """Add to ``found.exact``, in graph order, up to the first tensor that differs in float64 as well.

    Args:
        models: both models, the candidate cut at ``given``.
        given: the candidate's input that stands for each cut.
        original: yields the original's value of every cut and output.
        found: what was found in the runtime's own arithmetic.
    """
    for name in [name for name in found.over if not found.gaps[name].clash]:
        try:
            found.exact[name] = _exact_error(models, given, original, found.gaps[name].dtype, name)
        except Exception as error:
            found.trouble = one_line(error)
        if name in found.over:
            return


def _exact_error(
    models: Models,
    given: Mapping[str, str],
    original: Session,
    dtype: np.dtype[Any],
    name: str,
) -> tuple[float, float]:
    """Difference of one tensor in float64 and what the weights' rounding explains, both in ulp; the worst sample."""
    worst = (0.0, 1.0)
    (folder_a, folder_b) = (path.parent for path in models.paths)
    for feeds in models.samples:
        values = original.run(list(given), feeds) if given else {}
        theirs = {given[key]: value for key, value in values.items()}
        a = evaluate(models.a, folder_a, name, feeds | values)
        moved = evaluate(models.a, folder_a, name, feeds | values, jitter=True)
        b = evaluate(models.b, folder_b, name, feeds | theirs)
        unit = ulp_at(dtype, float(np.abs(a).max(initial=0.0)))
        error, reach = (float(np.abs(each - a).max(initial=0.0)) / unit for each in (b, moved))
        worst = max(worst, (error, max(1.0, MARGIN * reach)), key=lambda each: each[0] / each[1])
    return worst


def _cut_values(models: Models, shared: bool) -> dict[str, Array]:
    """The float tensors to cut at, with the original's values on the first sample; exposes them in the original."""
    names = graphs.shared_cuts(models.a, models.b)
    if not names:
        return {}
    first = models.samples[0]
    graphs.expose(models.a, names)
    graphs.pin(models.a, first)
    original = models.rewritten("original")
    names = _affordable({name: original.size(name) for name in names})
    values = original.run(names, first)
    values = {name: values[name] for name in names if name in values and is_float(values[name].dtype)}
    if shared:
        return values
    graphs.expose(models.b, list(values))
    theirs = models.rewritten("candidate").run(list(values), first)
    return {name: each for name, each in values.items() if _alike(gap(each, theirs[name]))}


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
    original: Callable[[Feeds], dict[str, Array]],
    candidate: Callable[[Feeds, Mapping[str, Array]], dict[str, Array]],
) -> Findings:
    """Run both on every sample and keep the worst gap of each tensor; one sample's tensors at a time."""
    found = Findings()
    for position, feeds in enumerate(models.samples):
        want = original(feeds)
        if position and not all(map(_finite, want.values())):
            continue  # a random input too large for the model shows nothing but its overflow
        got = candidate(feeds, want)
        found.samples += 1
        for name in want | got:
            new = gap(want.get(name), got.get(name))
            found.gaps[name] = found.gaps[name].worse(new) if name in found.gaps else new
    for feeds in models.contrasts:
        for name, value in original(feeds).items():
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
