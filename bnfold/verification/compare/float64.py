"""Judge tensors that are beyond their bound in float64, where sums do not round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..engines import one_line
from .exact import evaluate
from .findings import Exact, Findings
from .gap import Array, ulp_at
from .models import Feeds, Follower, Leader, Models

# Rounding moves the folded weights by half an ulp at most; measured: docs/verification.md.
MARGIN = 2.0
# A candidate that is right in float64 may round at most so many times worse than the original, or the bound.
LOSS = 4.0


def judge(models: Models, given: Mapping[str, str], lead: Leader, follow: Follower, found: Findings) -> None:
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


def distances(models: Models, lead: Leader, follow: Follower) -> dict[str, tuple[float, float]]:
    """How far the outputs of the original and of the candidate are from the original in float64, in ulp.

    On the first sample; outputs that cannot be computed in float64 are left out.
    """
    feeds, folder = models.samples[0], models.paths[0].parent
    want = lead(feeds)
    got, found = follow(feeds, want), {}
    for name, value in want.items():
        try:
            true = evaluate(models.a, folder, name, feeds)
            unit = ulp_at(value.dtype, float(np.abs(true).max(initial=0.0)))
            gaps = (np.abs(side.astype(np.float64) - true) for side in (value, got[name]))
            original, candidate = (float(each.max(initial=0.0)) / unit for each in gaps)
        except Exception:  # whatever the evaluator raises, or a type that has no ulp
            continue
        found[name] = original, candidate
    return found


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
