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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.constants import Const, Constants
from bnfold.core.graph.shapes import FLOATS
from bnfold.core.graph.view import View
from bnfold.core.reasons import Refused
from bnfold.training.moments import Floats

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


def map_of(view: View, run: Sequence[ir.Node], tried: Mapping[ir.Value, Any] | None = None) -> Affine:
    """The map of a run, with other values for some constants; raises ``Refused`` where it has none."""
    constants = Constants.of_model(view.model, view.facts) if tried else view.constants
    for value, array in (tried or {}).items():
        constants.suppose(value, Const.stored(ir.tensor(array)))
    affine = Affine.of()
    for node in run:
        site = replace(view.site(node), constants=constants)
        affine = view.rule(site).read(site)[1] @ affine
    return affine


def sources(view: View, run: Sequence[ir.Node]) -> tuple[list[ir.Value], set[ir.Node]]:
    """The stored constants that the map of a run comes from, in its order, and the nodes between."""
    pending = [
        value for node in run for index, value in enumerate(node.inputs) if index != view.read(node)[0]
    ]
    roots: dict[ir.Value, None] = {}
    between: set[ir.Node] = set()
    while pending:
        value = pending.pop(0)
        if value is None or not view.constants.holds(value):  # such as what Shape only looks at
            continue
        producer = value.producer()
        if producer is not None and producer.op_type != "Constant":
            if producer not in between:
                pending = [*producer.inputs, *pending]
            between.add(producer)
        elif view.constants.get(value).dtype in FLOATS:
            roots[value] = None
    return list(roots), between


def role_of(view: View, run: list[ir.Node], root: ir.Value) -> Role:
    """What a constant is, by how the map responds to it."""
    base, stored = map_of(view, run), view.constants.get(root).base
    size = max(base.sizes().values())
    if stored.size != size:
        return Role.OTHER
    change = 1.0 + float(np.abs(stored).max())
    try:
        moved = map_of(view, run, {root: (stored + change).astype(stored.dtype)})
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
    scale = map_of(view, run, {root: np.full_like(like, value)}).scale.reshape(-1)
    return np.asarray(1.0 / np.square(scale[scale != 0]))


def variance_of(
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


def _close(actual: Any, wanted: Any) -> bool:
    return bool(np.allclose(actual, wanted, rtol=_TOLERANCE, atol=0.0)) and np.size(actual) > 0
