"""Clip carries any map, and its bounds move with it.

    pull    s·clip(x, l, h) + t    =  clip(s·x + t, s·l + t, s·h + t)              s > 0
    push    clip(s·x + t, l, h)    =  s·clip(x, (l − t)/s, (h − t)/s) + t          s > 0

Where s < 0 the two bounds change places; where s = 0 there is nothing to push. A Clip has one number for
either bound: a map that varies turns it into a Max for the lower bounds and a Min for the upper ones.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.pointwise.choice import inverse

# From this version on the bounds are inputs.
_INPUTS = 11

# The types for which ONNX Runtime's Max and Min broadcast from version 8 on; for the others from 12.
_FIRST = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


@rule("Clip", versions={1, 6, 11, 12, 13})
class Clip(Rule):
    """See the module."""

    def pull(self, clip: Site, out: Affine) -> Moved:
        params, becomes = _bounded(clip, out)
        return Moved(params, {0: out}, becomes=becomes)

    def push(self, clip: Site, into: Arriving) -> Moved:
        affine = into.only(0)
        params, becomes = _bounded(clip, inverse(affine))
        return Moved(params, output=affine, becomes=becomes)


def _bounded(clip: Site, affine: Affine) -> tuple[dict[int, Affine], Becomes | None]:
    """What makes the bounds those of the map's result: other constants, or another operator."""
    low, high = (None if end is None else affine(end) for end in _ends(clip))
    lower, upper = _chosen(low, high, affine), _chosen(high, low, affine)
    if affine.volume == 1 and clip.version < _INPUTS and _fits(clip, lower, upper):
        named = {"min": lower, "max": upper}
        return {}, Becomes("Clip", {name: float(end.max()) for name, end in named.items() if end is not None})
    if affine.volume == 1 and clip.version >= _INPUTS and _fills(clip, lower, upper):
        placed = {1: lower, 2: upper}
        return {i: Affine.of(0.0, end.max()) for i, end in placed.items() if end is not None}, None
    require(clip.opset >= (8 if clip.facts.dtype(clip.input(0)) in _FIRST else 12), Reason.MIXED_AXES)
    return {}, _max_min(clip, lower, upper)


def _ends(clip: Site) -> tuple[float | None, float | None]:
    """The lower and the upper bound, None where there is none; an upper one below the lower wins."""
    if clip.version < _INPUTS:
        most = float(np.finfo(np.float32).max)
        low, high = clip.attr("min", -most), clip.attr("max", most)
        low, high = low if low > -most else -np.inf, high if high < most else np.inf
    else:
        low = clip.const(1).exact.item() if clip.has(1) else -np.inf
        high = clip.const(2).exact.item() if clip.has(2) else np.inf
    return None if low == -np.inf else min(low, high), None if high == np.inf else high


def _chosen(end: Array | None, other: Array | None, affine: Affine) -> Array | None:
    """A bound of each channel, NaN where it has none, or None where none has one."""
    ends = [np.asarray(np.nan) if each is None else each for each in (end, other)]
    chosen = np.where(affine.scale < 0, ends[1], ends[0])
    return None if np.all(np.isnan(chosen)) else chosen


def _fits(clip: Site, *ends: Array | None) -> bool:
    """Whether attributes, which are float32, hold these bounds as well as the tensor's type would."""
    wide = clip.facts.dtype(clip.input(0)) == ir.DataType.DOUBLE
    with np.errstate(over="ignore"):
        stored = [(float(np.float32(end.max())), float(end.max())) for end in ends if end is not None]
    return all(np.isfinite(kept) and (kept == end or not wide) for kept, end in stored)


def _fills(clip: Site, *ends: Array | None) -> bool:
    """Whether the bounds that are given are again those that are needed."""
    given = [end is not None for end in _ends(clip)]
    return given == [end is not None for end in ends]


def _max_min(clip: Site, lower: Array | None, upper: Array | None) -> Becomes | None:
    dtype = clip.facts.dtype(clip.input(0))
    most = np.inf if dtype is None else float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    least = None if upper is None else Becomes("Min", constants={1: np.where(np.isnan(upper), most, upper)})
    if lower is None:
        return least
    return Becomes("Max", constants={1: np.where(np.isnan(lower), -most, lower)}, then=least)


@folds
def scalar_map(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Conv(x, op.weight(4, 3, 3, 3)), op.const(-0.5), op.const(0.5))
    return op.Sub(op.const(0.5), y)


@folds
def scalar_map_in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Add(op.Mul(x, op.const(0.5)), op.const(0.25)), "", op.const(0.5))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def upper_bound_wins(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Conv(x, op.weight(4, 3, 3, 3)), op.const(0.5), op.const(-0.5))
    return op.Mul(y, op.const(-2.0))


@folds(opset=10)
def attributes(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Conv(x, op.weight(4, 3, 3, 3)), min=0.0, max=6.0)
    return op.Div(y, op.const(-6.0))


@folds(opset=10, dtype=int(ir.DataType.DOUBLE))
def attributes_would_round(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Conv(x, op.weight(4, 3, 3, 3)), min=0.5)
    return op.Sub(op.Mul(y, op.const(0.1)), op.const(0.3))


@folds
def lower_bound_of_each_channel(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Clip(op.Conv(x, op.weight(4, 3, 3, 3)), op.const(0.5))
    return op.Add(op.Mul(y, op.positive(4, 1, 1)), op.weight(4, 1, 1))


@folds
def bounds_of_each_channel(op: Graph, x: Input = ("N", 5, 3)) -> Outputs:
    y = op.Clip(
        op.Add(op.Mul(op.Sub(x, op.weight(3)), op.weight(3)), op.weight(3)), op.const(0.0), op.const(1.0)
    )
    return op.Conv(op.Transpose(y, perm=[0, 2, 1]), op.weight(4, 3, 2))


@refuses(Reason.ZERO_SCALE)
def nothing_to_push(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Clip(op.Mul(x, op.const(0.0)), op.const(0.5))
    return op.Conv(y, op.weight(4, 2, 3, 3))


@refuses(Reason.MIXED_AXES, opset=7)
def no_broadcasting_max(op: Graph, x: Input = ("N", 3)) -> Outputs:
    y = op.Clip(op.Gemm(x, op.weight(3, 4), op.weight(4)), min=0.0)
    return op.Add(op.Mul(y, op.weight(4)), op.weight(4))
