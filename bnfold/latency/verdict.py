"""Findings in words: one sentence that stands on a line of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .statistics import CONFIDENCE, Interval, Word, fewest, judge


@dataclass(frozen=True)
class Finding:
    """One measured ratio, what the control did in the same run, and what may be said.

    Attributes:
        ratio: time of the second model over time of the first.
        control: time of the first model over its own.
    """

    ratio: Interval
    control: Interval

    @property
    def word(self) -> Word:
        """Faster, slower, or no measurable difference."""
        return judge(self.ratio, self.control)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**self.ratio.to_dict(), "verdict": self.word.value}


@dataclass(frozen=True)
class Comparison:
    """A model against the first one: the time of a run, and the time to load it.

    Attributes:
        model: label of the model.
        against: label of the first model.
        time: of one run.
        load: of creating a session.
    """

    model: str
    against: str
    time: Finding
    load: Finding

    @property
    def sentence(self) -> str:
        """The verdict on the time of a run."""
        return _sentence(self.time, self.model, self.against, "is", "")

    @property
    def load_sentence(self) -> str:
        """The verdict on the time to load."""
        return _sentence(self.load, self.model, self.against, "loads", "in loading ")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "model": self.model,
            "against": self.against,
            "time": {**self.time.to_dict(), "sentence": self.sentence},
            "load": {**self.load.to_dict(), "sentence": self.load_sentence},
        }


def numbers(ratio: Interval) -> str:
    """A ratio and its interval, with enough digits to tell its ends from 1 and from each other."""
    if not ratio.known:
        return f"{ratio.estimate:.2f}× the time, no interval"
    digits = _digits(ratio)
    low, estimate, high = (f"{each:.{digits}f}" for each in (ratio.low, ratio.estimate, ratio.high))
    return f"{estimate}× the time ({CONFIDENCE:.0%} interval {low} to {high})".replace("%", " %")


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 core", "2 cores"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sentence(finding: Finding, model: str, against: str, verb: str, where: str) -> str:
    word, ratio = finding.word, finding.ratio
    if word is not Word.SAME:
        return f"{model} {verb} {word.value} than {against}: {numbers(ratio)}"
    why = ""
    if not ratio.known:
        verb = "is" if ratio.count == 1 else "are"
        pairs = counted(ratio.count, "session pair")
        why = f"; {pairs} {verb} too few, {fewest()} are needed: give it more time"
    elif not ratio.low <= 1 <= ratio.high:
        why = f"; {against} against itself is no closer: {numbers(finding.control)}"
    return f"{word.value} {where}between {model} and {against}: {numbers(ratio)}{why}"


def _digits(ratio: Interval) -> int:
    different = sorted({ratio.low, 1.0, ratio.high})
    enough = (n for n in range(2, 6) if len({round(end, n) for end in different}) == len(different))
    return next(enough, 6)
