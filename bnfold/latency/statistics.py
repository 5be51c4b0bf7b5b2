"""The statistics of a comparison: no model, no clock, nothing but numbers.

One session pair is one observation. Blocks within a pair share the sessions' place in memory, so they are not
independent: their median is the pair's ratio, and the interval comes from the pairs alone. Under the null
hypothesis the roles in a pair are exchangeable (the order is drawn), each pair is as likely above 1 as below,
and the interval from order statistics holds whatever the distribution is (the sign test; David & Nagaraja,
Order Statistics, 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
# Looking at the width after every pair would stop on lucky narrow intervals: in simulation that covers 92 to
# 93 % instead of 95. From 12 pairs on, each look half as many pairs again after the last, it covers 94 to
# 96 %.
_FIRST_LOOK, _GROWTH = 12, 1.5


@dataclass(frozen=True)
class Interval:
    """The median of a ratio, and where it lies with ``CONFIDENCE``: 0 to infinity in too small a sample.

    Attributes:
        low: lower end of the interval.
        estimate: median of the sample.
        high: upper end of the interval.
        count: size of the sample, in session pairs.
    """

    low: float
    estimate: float
    high: float
    count: int

    @property
    def known(self) -> bool:
        """Whether the sample was large enough for an interval."""
        return math.isfinite(self.high)

    @property
    def width(self) -> float:
        """Relative width: 0.02 for 0.99 to 1.01."""
        return self.high / self.low - 1 if self.known else math.inf

    @property
    def floor(self) -> float:
        """How far, as a factor above 1, the interval reaches from 1 in either direction."""
        return max(1 / self.low, self.high) if self.known else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data; unknown ends are None."""
        ends = (self.low, self.high) if self.known else (None, None)
        return {"low": ends[0], "estimate": self.estimate, "high": ends[1], "pairs": self.count}


class Word(Enum):
    """What may be said of a ratio."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no measurable difference"


@lru_cache(maxsize=4096)
def ranks(count: int, fraction: float = 0.5) -> tuple[int, int] | None:
    """The order statistics (from 0) that enclose a quantile with ``CONFIDENCE``; None if there are none.

    The same as ``scipy.stats.quantile_test(...).confidence_interval()``, without its cost per call.
    """
    from scipy.stats import binom

    tail = (1 - CONFIDENCE) / 2
    low, high = int(binom.ppf(tail, count, fraction)) - 1, int(binom.isf(tail, count, fraction))
    return (low, high) if low >= 0 and high < count else None


@lru_cache(maxsize=1)
def fewest() -> int:
    """How many observations the median needs to have an interval."""
    return next(count for count in range(1, 100) if ranks(count) is not None)


def median_ratio(logs: Sequence[float] | Array) -> Interval:
    """The median of a sample of log-ratios, as a ratio with its interval."""
    ordered = np.sort(np.asarray(logs, dtype=np.float64))
    estimate = math.exp(float(np.median(ordered)))
    found = ranks(len(ordered))
    if found is None:
        return Interval(0.0, estimate, math.inf, len(ordered))
    low, high = (math.exp(float(ordered[rank])) for rank in found)
    return Interval(low, estimate, high, len(ordered))


def pair_log_ratio(blocks: Array, role: int) -> float:
    """One session pair's observation: the median log-ratio to role 0 of blocks × roles, in seconds."""
    return float(np.median(np.log(blocks[:, role] / blocks[:, 0])))


def judge(ratio: Interval, control: Interval) -> Word:
    """Faster or slower only if the interval excludes 1 and reaches beyond the control's, A against itself."""
    within_noise = ratio.floor <= control.floor
    if not ratio.known or ratio.low <= 1 <= ratio.high or within_noise:
        return Word.SAME
    return Word.FASTER if ratio.high < 1 else Word.SLOWER


def percentiles(runs: Array) -> dict[float, float]:
    """The percentiles that a sample of run times supports.

    The rule: a percentile is shown if its own interval of ``CONFIDENCE`` lies inside the sample, which takes
    6 runs for the median, 36 for p90, 72 for p95, 368 for p99 and 3688 for p99.9. Any less, and the next run
    could be anywhere.
    """
    shown = [each for each in PERCENTILES if ranks(len(runs), each / 100) is not None]
    return {each: float(np.quantile(runs, each / 100)) for each in shown}


def is_look(pairs: int) -> bool:
    """Whether the widths may end the measurement after so many pairs: at 12, 18, 27, 41, ..."""
    look = float(_FIRST_LOOK)
    while math.ceil(look) < pairs:
        look *= _GROWTH
    return math.ceil(look) == pairs
