"""What may be said of the results: three statements, computed, whether they hold or not; and the losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf, log
from statistics import fmean, median
from typing import Any

from .data import Data
from .variants import BNFOLD, ORIGINAL, PEERS, TWIN, then_bnfold

_SLOWER = "slower"
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


def statements(data: Data) -> Iterator[Statement]:
    """The three claims, of what is deployed: all of ONNX Runtime's optimizations on."""
    yield _never_slower(data)
    yield _faster(data)
    yield _near_floor(data)


def _never_slower(data: Data) -> Statement:
    pairs = [
        (model, each)
        for model in data["models"]
        for level in model["latency"].values()
        for each in level.get("comparisons", ())
        if each["name"] not in (BNFOLD,) and _sound(model, each["against"])
    ]
    same = sum(each["ratio"] is None for _, each in pairs)
    slower = [
        f"{each['name']} on {model['name']} ({times(each['ratio'])})" for model, each in pairs if _lost(each)
    ]
    found = (
        f"slower in {len(slower)} of {len(pairs)} comparisons, in {same} of which both execute the same graph"
        f"{': ' if slower else ''}{', '.join(slower)}"
    )
    return Statement("bnfold behind another optimizer never makes its result slower", not slower, found)


def _faster(data: Data) -> Statement:
    alone, behind = [], []
    for model in networks(data):
        best = best_peer(model)
        if best is not None and model["variants"][best]["remaining"]:
            alone.append(seconds(model, best) / seconds(model, BNFOLD))
            after = then_bnfold(best)
            behind.append(seconds(model, best) / seconds(model, after) if _time(model, after) else alone[-1])
    mean = geometric_mean(alone)
    return Statement(
        "Where the fastest of the other optimizers leaves something to fold, bnfold is "
        f"≥ {_GOAL_SPEED}× as fast (geometric mean)",
        mean >= _GOAL_SPEED,
        f"{mean:.2f}× over {len(alone)} networks{_span(alone)}; "
        f"behind that optimizer {geometric_mean(behind):.2f}×{_span(behind)}",
    )


def _span(ratios: list[float]) -> str:
    return f", from {min(ratios):.2f}× to {max(ratios):.2f}×" if ratios else ""


def _near_floor(data: Data) -> Statement:
    ratios = [value for model in networks(data) if (value := to_floor(model, BNFOLD)) is not None]
    middle = median(ratios) if ratios else inf
    return Statement(
        f"The median ratio to the floor is ≤ {_GOAL_FLOOR}",
        middle <= _GOAL_FLOOR,
        f"{middle:.3f} over {len(ratios)} networks, {max(ratios, default=inf):.2f} at worst",
    )


def losses(data: Data) -> Iterator[str]:
    """Every model on which bnfold alone is slower than another optimizer or than the original, and why."""
    for model in data["models"]:
        for level, found in model["latency"].items():
            for each in found.get("comparisons", ()):
                if each["name"] == BNFOLD and _lost(each) and _sound(model, each["against"]):
                    took, cause = times(each["ratio"]), _difference(model, each["against"])
                    yield f"{model['name']}, level {level}: {took} of {each['against']}, {cause}"


def failures(data: Data) -> Iterator[tuple[str, str, str]]:
    """Model, optimizer, and what went wrong with it."""
    for model in data["models"]:
        for name, variant in model["variants"].items():
            if variant["failure"]:
                yield model["name"], name, variant["failure"]
            elif variant["wrong"]:
                error = variant["error"]
                yield model["name"], name, f"wrong: error {'unknown' if error is None else f'{error:.1e}'}"


def _difference(model: Data, against: str) -> str:
    """Which operators the faster model has fewer or more of."""
    mine, theirs = (model["variants"][name]["operators"] for name in (BNFOLD, against))
    gaps = {kind: mine.get(kind, 0) - theirs.get(kind, 0) for kind in sorted({*mine, *theirs})}
    words = [f"{abs(gap)} {kind} {'fewer' if gap > 0 else 'more'}" for kind, gap in gaps.items() if gap]
    return f"which has {', '.join(words)}" if words else "which has the same operators"


def networks(data: Data) -> Iterator[Data]:
    """The models that are whole networks."""
    return (each for each in data["models"] if each["group"] != "pattern")


def best_peer(model: Data) -> str | None:
    """The fastest of the other optimizers that is right, as deployed; the original where none is."""
    runs = [name for name in (*PEERS, ORIGINAL) if _sound(model, name) and _time(model, name)]
    return min(runs, key=lambda name: seconds(model, name), default=None) if _time(model, BNFOLD) else None


def seconds(model: Data, name: str, level: str = "all") -> float:
    """How long a run takes: the floor's time times the measured ratio."""
    floor = model["latency"][level]["variants"][TWIN]["seconds"]
    return float(floor * (to_floor(model, name, level) or 1.0))


def to_floor(model: Data, name: str, level: str = "all") -> float | None:
    """Time of a run over that of the twin; None if it was not measured."""
    found = _time(model, name, level)
    if found is None:
        return None
    return 1.0 if found["ratio"] is None else float(found["ratio"]["estimate"])


def geometric_mean(ratios: list[float]) -> float:
    """The mean of ratios, 1 if there are none."""
    return exp(fmean(map(log, ratios))) if ratios else 1.0


def times(ratio: Data) -> str:
    """A ratio with its interval."""
    ends = "no interval" if ratio["low"] is None else f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    return f"{ratio['estimate']:.2f}× the time ({ends})"


def _time(model: Data, name: str, level: str = "all") -> Any:
    return model["latency"].get(level, {}).get("variants", {}).get(name)


def _sound(model: Data, name: str) -> bool:
    variant = model["variants"].get(name)
    return variant is not None and not variant["failure"] and not variant["wrong"]


def _lost(comparison: Data) -> bool:
    return bool(comparison["verdict"] == _SLOWER)
