"""Pad carries a map that does not vary along the padded axes and leaves the padding as it is.

    pull, push    s·pad(x) + t = pad(s·x + t)        always for reflect, edge and wrap
                                                     for a constant c if s·c + t = c everywhere

A pad of zeros so takes any scale, and a shift only where nothing is padded.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


@rule("Pad", versions={2, 11, 13, 18, 19, 21, 23, 24, 25})
class Pad(Rule):
    """See the module."""

    def pull(self, pad: Site, out: Affine) -> Moved:
        return Moved(inputs={0: _checked(pad, out)})

    def push(self, pad: Site, into: Arriving) -> Moved:
        return Moved(output=_checked(pad, into.only(0)))


def _checked(pad: Site, affine: Affine) -> Affine:
    padded = padded_axes(pad)
    require(not padded & set(affine.sizes()), Reason.MIXED_AXES)
    if padded and pad.attr("mode", "constant") == "constant":
        value = filling(pad)
        require(bool(np.all(affine(value) == value)), Reason.PADDED_SHIFT)
    return affine


def filling(pad: Site) -> float:
    """What a constant pad inserts."""
    return float(pad.const(2).exact.item()) if pad.has(2) else pad.attr("value", 0.0)


def padded_axes(pad: Site) -> set[int]:
    """Along which axes positions are added or taken away."""
    pads = pad.ints(1, "pads") or []
    count = len(pads) // 2
    axes = pad.ints(3, "axes") or list(range(count))
    rank = len(pad.shape(0)) if any(axis < 0 for axis in axes) else 0
    ends = zip(axes, pads[:count], pads[count:], strict=True)
    return {axis % rank if axis < 0 else axis for axis, begin, end in ends if begin or end}


@folds
def reflected(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.batch_norm(x), op.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    return op.Conv(y, op.weight(3, 2, 3, 3))


@folds
def behind_edge(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.Conv(x, op.weight(3, 2, 3, 3)), op.ints(0, 0, 1, 1, 0, 0, 0, 0), mode="edge")
    return op.batch_norm(y)


@folds
def scale_in_front_of_zeros(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.Mul(x, op.weight(2, 1, 1)), op.ints(0, 0, 1, 1, 0, 0, 1, 1))
    return op.Conv(y, op.weight(3, 2, 3, 3))


@folds(opset=18)
def chosen_axes(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.Conv(x, op.weight(3, 2, 3, 3)), op.ints(1, 1), "", op.ints(-1))
    return op.Mul(y, op.weight(3, 1, 1))


@refuses(Reason.PADDED_SHIFT)
def shift_in_front_of_zeros(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.batch_norm(x), op.ints(0, 0, 1, 1, 0, 0, 1, 1))
    return op.Conv(y, op.weight(3, 2, 3, 3))


@refuses(Reason.PADDED_SHIFT)
def scale_in_front_of_ones(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.Mul(x, op.weight(2, 1, 1)), op.ints(0, 0, 1, 1, 0, 0, 1, 1), op.const(1.0))
    return op.Conv(y, op.weight(3, 2, 3, 3))


@refuses(Reason.MIXED_AXES)
def padded_channels(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.Pad(op.Mul(x, op.weight(2, 1, 1)), op.ints(0, 1, 0, 0, 0, 0, 0, 0))
    return op.Conv(y, op.weight(3, 3, 3, 3))
