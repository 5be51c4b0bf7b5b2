"""Everything that was timed in one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .statistics import Array, Interval, median_ratio, pair_log_ratio


@dataclass
class Samples:
    """Everything that was timed in one case, in seconds; the last role is the control.

    Attributes:
        loads: session creation, one row a session pair, one column a role.
        blocks: median time of a run, for each session pair an array blocks × roles.
        runs: for each role, the time of every single run.
    """

    loads: list[list[float]] = field(default_factory=list)
    blocks: list[Array] = field(default_factory=list)
    runs: list[list[float]] = field(default_factory=list)

    def add(self, created: Sequence[int], blocks: Sequence[Sequence[Sequence[int]]]) -> None:
        """Add one session pair, timed in nanoseconds: of each session, and of blocks × roles × runs.

        A block counts with its median run: another process then spoils a run or two, not the block. On two
        cores with load 3 the interval came out 1.1 % wide instead of 3.6 % with the mean.
        """
        self.loads.append([each * 1e-9 for each in created])
        self.blocks.append(np.array([[np.median(times) for times in block] for block in blocks]) * 1e-9)
        self.runs = self.runs or [[] for _ in created]
        for block in blocks:
            for role, times in enumerate(block):
                self.runs[role] += [each * 1e-9 for each in times]

    def time(self, role: int) -> Interval:
        """Time of a run over that of role 0."""
        return median_ratio([pair_log_ratio(blocks, role) for blocks in self.blocks])

    def load(self, role: int) -> Interval:
        """Time to create a session over that of role 0."""
        return median_ratio([float(np.log(pair[role] / pair[0])) for pair in self.loads])
