"""In parts: what no single direction takes whole, two may take between them.

    s·x + t  =  (s·x) + t  =  s·(x + t/s)

One part goes up and the other down. Or the scale goes and the shift stays, in place of a run of
affine nodes that were more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.plan import Blocked, Direction, Plan, at
from bnfold.core.planning.profit import shift_is_worth_leaving
from bnfold.core.planning.walk.down import send_down
from bnfold.core.planning.walk.merge import run_from
from bnfold.core.planning.walk.up import send_up
from bnfold.core.reasons import Reason, Refused, require

Way = Callable[[], Plan]


def split(view: View, seed: ir.Node, meeting: bool = False) -> Plan:
    """Plan to send one part of the map of ``seed`` up and one down; raises like ``go_up``."""
    return _first(_ways(view, seed, meeting), seed)


def leave_shift(view: View, seed: ir.Node) -> Plan:
    """Plan to send the scale of the run that begins at ``seed`` away and let its shift stay."""
    return _first(_ways_to_stay(view, seed), seed)


def _first(ways: Iterator[Way], seed: ir.Node) -> Plan:
    for way in ways:
        try:
            return way()
        except (Blocked, Refused):
            continue
    raise Blocked(Reason.NO_GAIN, seed)


def _ways(view: View, seed: ir.Node, meeting: bool) -> Iterator[Way]:
    with at(seed):
        _, affine = view.read(seed)
    for first, second in _parts(affine):
        yield lambda first=first, second=second: _both_ways(view, seed, first, second, meeting)  # type: ignore[misc]


def _ways_to_stay(view: View, seed: ir.Node) -> Iterator[Way]:
    with at(seed):
        run, whole = run_from(view, seed)
    if shift_is_worth_leaving(view, run, whole):
        yield lambda: _stays_behind(view, run, whole)
        yield lambda: _stays_in_front(view, run, whole)


def _parts(affine: Affine) -> Iterator[tuple[Affine, Affine]]:
    """What acts first and what acts second: the scale and the shift, in either order."""
    if affine.scales and affine.shifts:
        yield affine.linear, affine.translation
        if np.all(affine.scale):
            yield Affine.of(1.0, affine.shift / affine.scale), affine.linear


def _both_ways(view: View, seed: ir.Node, first: Affine, second: Affine, meeting: bool) -> Plan:
    plan = send_up(view, Plan(seed, Direction.SPLIT, meeting=meeting, bypassed=[seed]), seed, first)
    return plan.joined(send_down(view, Plan(seed, Direction.SPLIT, meeting=meeting), seed.outputs[0], second))


def _stays_behind(view: View, run: list[ir.Node], whole: Affine) -> Plan:
    require(whole.scales and whole.shifts, Reason.NO_GAIN)
    plan = Plan(run[0], Direction.SPLIT, bypassed=run[:-1], restated={run[-1]: whole.translation})
    return send_up(view, plan, run[0], whole.linear)


def _stays_in_front(view: View, run: list[ir.Node], whole: Affine) -> Plan:
    require(whole.scales and whole.shifts and bool(np.all(whole.scale)), Reason.NO_GAIN)
    last, shift = run[-1], Affine.of(1.0, whole.shift / whole.scale)
    plan = Plan(run[0], Direction.SPLIT, bypassed=run[:-1], restated={last: shift}, path=[last])
    plan.changed.append(last.outputs[0])
    return send_down(view, plan, last.outputs[0], whole.linear)
