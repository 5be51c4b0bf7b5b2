"""What was found for one model, as the claims, the pages and the figures ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .data import Data
from .variants import BNFOLD, LEVELS, ORIGINAL, PEERS, then_bnfold

Ratio = list[float | None]

SAME: Ratio = [1.0, 1.0, 1.0]


@dataclass(frozen=True)
class Compared:
    """One variant of a model against another.

    Attributes:
        model: the model's results.
        level: ONNX Runtime's optimizations.
        name: the variant.
        against: the one it is compared with.
        ratio: of the times of a run: lower end, estimate, upper end; None if both execute the same graph.
        verdict: in words; empty if both execute the same graph.
    """

    model: Result
    level: str
    name: str
    against: str
    ratio: Ratio | None
    verdict: str

    @property
    def lost(self) -> bool:
        """Whether the first one is slower, beyond the noise floor."""
        return self.verdict == "slower"


@dataclass(frozen=True)
class Result:
    """One model's part of the data."""

    data: Data

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.data["name"])

    @property
    def is_network(self) -> bool:
        """Whether it is a whole network and not a pattern."""
        return bool(self.data["group"] != "pattern")

    def variant(self, name: str) -> Data | None:
        """What is known of a variant; None if there is none that runs."""
        found: Data | None = self.data["variants"].get(name)
        return None if found is None or found["failure"] else found

    def is_sound(self, name: str) -> bool:
        """Whether a variant runs, and computes what the original does."""
        found = self.variant(name)
        return found is not None and not found["wrong"]

    def to_floor(self, name: str, level: str = "all") -> Ratio | None:
        """Time of a run over that of the twin, with its interval; None if it was not measured."""
        found = self.data["latency"].get(level, {})
        role = found.get("roles", {}).get(name)
        return None if role is None else found["ratios"][role]

    def estimate(self, name: str, level: str = "all") -> float | None:
        """The estimate of ``to_floor``."""
        ratio = self.to_floor(name, level)
        return None if ratio is None else ratio[1]

    def floor_seconds(self) -> float | None:
        """How long a run of the twin takes, as deployed."""
        seconds: float | None = self.data["latency"].get("all", {}).get("seconds")
        return seconds

    def best_peer(self) -> str | None:
        """The fastest of the other optimizers that is right, as deployed; the original where none is."""
        times = {name: self.estimate(name) for name in (*PEERS, ORIGINAL) if self.is_sound(name)}
        known = {name: time for name, time in times.items() if time is not None}
        return min(known, key=known.__getitem__, default=None) if self.estimate(BNFOLD) else None

    def comparisons(self) -> Iterator[Compared]:
        """Those that claims are made of: bnfold alone, and bnfold behind every other optimizer."""
        pairs = [(BNFOLD, ORIGINAL), *((BNFOLD, peer) for peer in PEERS)]
        pairs += [(then_bnfold(peer), peer) for peer in PEERS]
        for level in LEVELS:
            found = self.data["latency"].get(level, {})
            roles = found.get("roles", {})
            for name, against in pairs:
                if name in roles and against in roles and self.is_sound(against):
                    key = f"{roles[name]}/{roles[against]}"
                    ratio, verdict = found["compared"].get(key, (None, ""))
                    yield Compared(self, level, name, against, ratio, verdict)


def results(data: Data) -> list[Result]:
    """All models."""
    return [Result(each) for each in data["models"]]


def times(ratio: Ratio) -> str:
    """A ratio with its interval."""
    low, estimate, high = ratio
    ends = "no interval" if low is None or high is None else f"{low:.2f} to {high:.2f}"
    return f"{estimate:.2f}× the time ({ends})"


def ends(interval: Any) -> Ratio:
    """An interval as the data hold it."""
    known = interval.known
    return [interval.low if known else None, interval.estimate, interval.high if known else None]
