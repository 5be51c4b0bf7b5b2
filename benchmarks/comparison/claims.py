"""What may be said of the results: three statements, computed, whether they hold or not; and the losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf, log
from statistics import fmean, median

from .data import Data
from .results import Result, results, times
from .variants import BNFOLD, then_bnfold

_GOAL_SPEED, _GOAL_FLOOR = 1.3, 1.02


@dataclass(frozen=True)
class Statement:
    """One claim.

    Attributes:
        goal: what is claimed.
        holds: whether the data bear it out.
        found: what the data say.
    """

    goal: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"**{'Holds' if self.holds else 'Does not hold'}.** {self.goal}: {self.found}."


@dataclass(frozen=True)
class Gain:
    """How many times as fast one network is as behind the fastest of the other optimizers.

    Attributes:
        model: the network.
        alone: under bnfold.
        behind: under bnfold behind that optimizer.
        floor: without anything to fold: what a perfect fold would reach.
    """

    model: Result
    alone: float
    behind: float
    floor: float


def statements(data: Data) -> Iterator[Statement]:
    """The three claims; the second and the third are of networks as deployed."""
    models = results(data)
    networks = [each for each in models if each.is_network]
    yield _never_slower(models)
    yield _faster(networks)
    yield _near_floor(networks)


def _never_slower(models: list[Result]) -> Statement:
    compared = [each for model in models for each in model.comparisons() if each.name != BNFOLD]
    same = sum(each.ratio is None for each in compared)
    slower = [
        f"{each.name} on {each.model.name}, level {each.level} ({times(each.ratio)})"
        for each in compared
        if each.lost and each.ratio
    ]
    found = (
        f"slower in {len(slower)} of {len(compared)} comparisons, in {same} of which both execute the same "
        f"graph{': ' if slower else ''}{', '.join(slower)}"
    )
    return Statement("bnfold behind another optimizer never makes its result slower", not slower, found)


def _faster(networks: list[Result]) -> Statement:
    found = list(gains(networks))
    alone, behind, floor = ([getattr(each, name) for each in found] for name in ("alone", "behind", "floor"))
    mean = geometric_mean(alone)
    return Statement(
        "Where the fastest of the other optimizers leaves something to fold, bnfold is "
        f"≥ {_GOAL_SPEED}× as fast (geometric mean)",
        mean >= _GOAL_SPEED,
        f"{mean:.2f}× over {len(found)} networks{_span(alone)}; behind that optimizer "
        f"{geometric_mean(behind):.2f}×; the floor, with nothing left to fold, {geometric_mean(floor):.2f}×",
    )


def gains(networks: list[Result]) -> Iterator[Gain]:
    """Of every network where the fastest of the other optimizers leaves something to fold, as deployed."""
    for model in networks:
        best = model.best_peer()
        if best is not None and model.data["variants"][best]["remaining"]:
            theirs, ours = model.estimate(best) or inf, model.estimate(BNFOLD) or inf
            both = model.estimate(then_bnfold(best)) or ours
            yield Gain(model, theirs / ours, theirs / both, theirs)


def _near_floor(networks: list[Result]) -> Statement:
    ratios = [value for model in networks if (value := model.estimate(BNFOLD)) is not None]
    middle = median(ratios) if ratios else inf
    return Statement(
        f"The median ratio to the floor is ≤ {_GOAL_FLOOR}",
        middle <= _GOAL_FLOOR,
        f"{middle:.3f} over {len(ratios)} networks, {max(ratios, default=inf):.2f} at worst",
    )


def losses(data: Data) -> Iterator[str]:
    """Every model on which bnfold alone is slower than another optimizer or than the original, and why."""
    for model in results(data):
        for each in model.comparisons():
            if each.name == BNFOLD and each.lost and each.ratio:
                cause = _difference(model, each.against)
                yield f"{model.name}, level {each.level}: {times(each.ratio)} of {each.against}, {cause}"


def failures(data: Data) -> Iterator[tuple[str, str, str]]:
    """Model, optimizer, and what went wrong with it."""
    for model in data["models"]:
        for name, variant in model["variants"].items():
            if variant["failure"]:
                yield model["name"], name, variant["failure"]
            elif variant["wrong"]:
                error = variant["error"]
                yield model["name"], name, f"wrong: error {'unknown' if error is None else f'{error:.1e}'}"


def _difference(model: Result, against: str) -> str:
    """Which operators the faster model has fewer or more of."""
    mine, theirs = (model.data["variants"][name]["operators"] for name in (BNFOLD, against))
    gaps = {kind: mine.get(kind, 0) - theirs.get(kind, 0) for kind in sorted({*mine, *theirs})}
    words = [f"{abs(gap)} {kind} {'fewer' if gap > 0 else 'more'}" for kind, gap in gaps.items() if gap]
    return f"which has {', '.join(words)}" if words else "which has the same operators"


def geometric_mean(ratios: list[float]) -> float:
    """The mean of ratios, 1 if there are none."""
    return exp(fmean(map(log, ratios))) if ratios else 1.0


def _span(ratios: list[float]) -> str:
    return f" ({min(ratios):.2f}× to {max(ratios):.2f}×)" if ratios else ""
