"""Batch norms that an exporter wrote as arithmetic: which constant is the mean, which the variance?

A run of Sub, Mul, Div and Add is one map s·x + t with s = γ/√(σ² + ε) and t = β - s·μ. No pattern is
matched. Every constant that goes into the map, through whatever nodes compute it, is changed by way
of trial, and how s and t respond says what it is:

    mean          s stays, t moves by -s·change
    variance      1/s² is a straight line in it; where the line starts is ε
    deviation     1/s is proportional to it
    factor        s is proportional to it: γ, or 1/√(σ² + ε) if it comes first and γ follows

Where an exporter has already multiplied the constants into one scale and one shift, no constant
responds as a mean, and the statistics are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.constants import Const, Constants
from bnfold.core.plan import Blocked, Direction, Plan
from bnfold.core.profit import worthwhile
from bnfold.core.reasons import Refused
from bnfold.core.shapes import FLOATS
from bnfold.core.view import View
from bnfold.statistics.graph.slots import Slot, Statistic
from bnfold.training.moments import Floats

MERGED = (
    "Its mean and variance are multiplied into one scale and one shift, so neither can be told; "
    "check the statistics before the exporter folds constants."
)
ONE_FACTOR = (
    "Its variance and gain are one constant, so the variance cannot be told; "
    "check the statistics before the exporter folds constants."
)
SHARED = "A constant of its statistics is shared with other nodes; export the model without sharing."

# What is taken for ε where only √(variance + ε) is stored: torch's and ONNX's default.
EPSILON = 1e-5

# How far, relatively, a response may be off: constants are tried in their own type, mostly float32.
_TOLERANCE = 1e-3


class Role(Enum):
    """What a constant does in the map of a run."""

    MEAN = "mean"
    VARIANCE = "variance"
    DEVIATION = "deviation"
    FACTOR = "factor"
    OTHER = "other"


@dataclass(frozen=True)
class Parts:
    """The statistics of a run, and where they stand."""

    affine: Affine
    mean: Floats
    variance: Floats
    epsilon: float
    mean_slot: Slot
    variance_slot: Slot
    note: str


def runs(view: View) -> Iterator[list[ir.Node]]:
    """Every run of arithmetic in the main graph that scales and shifts per channel."""
    seen: set[ir.Node] = set()
    for node in view.model.graph:
        if node in seen or not _is_arithmetic(view, node):
            continue
        run = [node]
        while (behind := _sole_reader(run[-1])) is not None and _is_arithmetic(view, behind):
            run.append(behind)
        seen.update(run)
        affine = _map(view, run)
        if affine.linear.sizes() and len(affine.sizes()) == 1 and affine.shifts and _stands_alone(view, run):
            yield run


def separate(view: View, run: list[ir.Node]) -> Parts | str:
    """Tell the statistics of a run apart, or say why that cannot be done.

    Nodes in front that concern neither statistic, such as a layer's bias, are taken off ``run``.
    """
    roles = {root: _role(view, run, root) for root in _sources(view, run)[0]}
    means = [root for root, role in roles.items() if role is Role.MEAN]
    if len(means) != 1:
        return MERGED
    spread = _spread(roles)
    if spread is None:
        return ONE_FACTOR
    while not {means[0], spread} & set(_sources(view, run[:1])[0]):
        del run[0]
    holds = _HOLDS[roles[spread]]
    slots = (_slot(view, run, means[0], Statistic.MEAN), _slot(view, run, spread, holds))
    if slots[0] is None or slots[1] is None:
        return SHARED
    mean, stored = (_values(view, root) for root in (means[0], spread))
    variance, epsilon = _variance(view, run, spread, roles[spread], stored)
    note = "" if roles[spread] is Role.VARIANCE else f"ε is not stored apart; taken as {EPSILON:g}."
    return Parts(_map(view, run), mean, variance, epsilon, slots[0], slots[1], note)


_HOLDS = {
    Role.VARIANCE: Statistic.VARIANCE,
    Role.DEVIATION: Statistic.DEVIATION,
    Role.FACTOR: Statistic.RECIPROCAL,
}


def _is_arithmetic(view: View, node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return False
    try:
        view.read(node)
    except Refused:
        return False
    return True


def _sole_reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].node.graph is not node.graph:
        return None
    return uses[0].node


def _stands_alone(view: View, run: list[ir.Node]) -> bool:
    """Whether the run is no part of a LayerNormalization or Gelu."""
    try:
        worthwhile(view, Plan(run[0], Direction.DOWN, bypassed=list(run)))
    except Blocked:
        return False
    return True


def _map(view: View, run: Sequence[ir.Node], tried: Mapping[ir.Value, Any] | None = None) -> Affine:
    """The map of a run, with other values for some constants; raises ``Refused`` where it has none."""
    constants = Constants.of_model(view.model, view.facts) if tried else view.constants
    for value, array in (tried or {}).items():
        constants.remember(value, Const.stored(ir.tensor(array)))
    affine = Affine.of()
    for node in run:
        site = replace(view.site(node), constants=constants)
        affine = view.rule(site).read(site)[1] @ affine
    return affine


def _sources(view: View, run: Sequence[ir.Node]) -> tuple[list[ir.Value], set[ir.Node]]:
    """The stored constants that the map of a run comes from, in its order, and the nodes between."""
    pending = [
        value for node in run for index, value in enumerate(node.inputs) if index != view.read(node)[0]
    ]
    roots: dict[ir.Value, None] = {}
    between: set[ir.Node] = set()
    while pending:
        value = pending.pop(0)
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type != "Constant":
            if producer not in between:
                pending = [*producer.inputs, *pending]
            between.add(producer)
        elif value is not None and view.constants.get(value).dtype in FLOATS:
            roots[value] = None
    return list(roots), between


def _role(view: View, run: list[ir.Node], root: ir.Value) -> Role:
    """What a constant is, by how the map responds to it."""
    base, stored = _map(view, run), view.constants.get(root).base
    size = max(base.sizes().values())
    if stored.size != size:
        return Role.OTHER
    change = 1.0 + float(np.abs(stored).max())
    try:
        moved = _map(view, run, {root: (stored + change).astype(stored.dtype)})
        if np.array_equal(moved.scale, base.scale):
            wanted = -base.scale * change
            return Role.MEAN if _close(moved.shift - base.shift, wanted) else Role.OTHER
        return _scaling_role(view, run, root)
    except Refused:
        return Role.OTHER


def _scaling_role(view: View, run: list[ir.Node], root: ir.Value) -> Role:
    one, two, four = (_inverse_square(view, run, root, value) for value in (1.0, 2.0, 4.0))
    if _close(four - one, 3 * (two - one)) and (two > one).all():
        return Role.VARIANCE
    if _close(two, 4 * one):
        return Role.DEVIATION
    return Role.FACTOR if _close(one, 4 * two) else Role.OTHER


def _inverse_square(view: View, run: list[ir.Node], root: ir.Value, value: float) -> Floats:
    """1/s² where every entry of ``root`` is ``value``, for the channels that s lets through."""
    like = view.constants.get(root).base
    scale = _map(view, run, {root: np.full_like(like, value)}).scale.reshape(-1)
    return np.asarray(1.0 / np.square(scale[scale != 0]))


def _spread(roles: Mapping[ir.Value, Role]) -> ir.Value | None:
    """The constant that holds the variance in one form or another."""
    for role in (Role.VARIANCE, Role.DEVIATION):
        roots = [root for root, each in roles.items() if each is role]
        if roots:
            return roots[0] if len(roots) == 1 else None
    order = [root for root, role in roles.items() if role in (Role.MEAN, Role.FACTOR)]
    return order[1] if len(order) == 3 and roles[order[0]] is Role.MEAN else None


def _variance(
    view: View, run: list[ir.Node], root: ir.Value, role: Role, stored: Floats
) -> tuple[Floats, float]:
    """The stored variance and ε."""
    if role is Role.VARIANCE:
        try:
            start = _inverse_square(view, run, root, 0.0)
        except Refused:  # without ε there is no map at a variance of zero
            return stored, 0.0
        slope = _inverse_square(view, run, root, 1.0) - start
        return stored, float(np.median(start / slope))
    squared = np.square(stored) if role is Role.DEVIATION else 1.0 / np.square(stored)
    return np.maximum(squared - EPSILON, 0.0), EPSILON


def _values(view: View, root: ir.Value) -> Floats:
    return view.constants.get(root).exact.reshape(-1)


def _slot(view: View, run: list[ir.Node], root: ir.Value, holds: Statistic) -> Slot | None:
    """The inputs through which a constant enters the run, None if other nodes would notice."""
    _, between = _sources(view, run)
    readers = [use for use in root.uses() if use.node in between or use.node in run]
    pending = [use.node for use in readers if use.node in between]
    while pending:
        for out in pending.pop().outputs:
            nodes = [use.node for use in out.uses()]
            if out.is_graph_output() or any(node not in between and node not in run for node in nodes):
                return None
            pending.extend(node for node in nodes if node in between)
    return Slot(root, tuple((use.node, use.idx) for use in readers), holds)


def _close(actual: Any, wanted: Any) -> bool:
    return bool(np.allclose(actual, wanted, rtol=_TOLERANCE, atol=0.0)) and np.size(actual) > 0
