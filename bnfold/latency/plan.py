"""How a time budget is divided into session pairs, blocks and runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .statistics import fewest

# Short enough for neighbours to share the state of the machine, long above the resolution of its clock. At
# load 4 on two cores 2 ms gave intervals half as wide as 5 ms in the same time: more blocks end before
# another process cuts in.
_BLOCK_SECONDS = 2e-3
_TICKS = 1000
# So many pairs make an interval of 7 order statistics; more blocks in fewer pairs would not make it narrower.
_PAIRS = 12
_MOST_BLOCKS = 10
WARM_RUNS, WARM_SECONDS = 2, 10e-3


@dataclass(frozen=True)
class Plan:
    """What happens in one session pair.

    Attributes:
        runs: timed runs in a block.
        lead: runs before them that are not timed, to have this model's data back in the caches.
        blocks: blocks of each session.
    """

    runs: int
    lead: int
    blocks: int

    def after(self, spent: float) -> Plan:
        """The plan once a first pair took so much of the budget: fewer blocks if too few pairs would fit.

        On a busy machine a pair takes several times what the median run promises.
        """
        if spent * fewest() <= 1:
            return self
        return replace(self, blocks=max(1, int(self.blocks / (spent * _PAIRS))))


def plan(loads: Sequence[float], times: Sequence[float], seconds: float) -> Plan:
    """Divide the budget so that at least 12 session pairs fit, if one block each does.

    Args:
        loads: seconds to create each session of a pair, the control's included.
        times: seconds of a run of each.
        seconds: the whole budget.
    """
    shortest = max(_BLOCK_SECONDS, _TICKS * time.get_clock_info("perf_counter").resolution)
    runs = max(1, math.ceil(shortest / min(times)))
    lead = 1 if runs > 1 else 0
    fixed = sum(loads) + sum(max(WARM_RUNS * each, WARM_SECONDS) for each in times)
    fitting = int((seconds / _PAIRS - fixed) / (sum(times) * (runs + lead)))
    return Plan(runs, lead, min(max(1, fitting), _MOST_BLOCKS))
