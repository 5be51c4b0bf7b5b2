"""Conv absorbs a map on either side, in any number of dimensions, groups included.

    pull    s·(W∗x + b) + t  =  (s·W)∗x + (s·b + t)        always
    push    W∗(s·x + t) + b  =  (W·s)∗x + (b + Σ W·t)      if t = 0 or nothing is padded

W is M × C/groups × kernel. The sum runs over the input channels of the group and over the kernel.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.errors import InvalidModelError


@rule("Conv", versions={1, 11, 22})
class Conv(Rule):
    """See the module."""

    def pull(self, conv: Site, out: Affine) -> Moved:
        weight = conv.const(1)
        scale, shift = out.along(1, weight.shape[0])
        return Moved({1: Affine.of(_lead(scale, weight.rank)), 2: Affine(scale, shift)})

    def push(self, conv: Site, into: Arriving) -> Moved:
        affine, groups = into.only(0), conv.attr("group", 1)
        weight = conv.const(1)
        filters, width = weight.shape[:2]
        check_groups(conv, filters)
        scale, shift = affine.along(1, groups * width)
        per_filter = np.repeat(scale.reshape(groups, width), filters // groups, axis=0)
        edits = {1: Affine.of(_trail(per_filter, weight.rank))}
        if np.any(shift):
            require(not is_padded(conv, weight.shape[2:]), Reason.PADDED_SHIFT)
            taps = weight.exact.sum(axis=tuple(range(2, weight.rank)))
            grouped = taps.reshape(groups, filters // groups, width)
            total = np.einsum("gmc,gc->gm", grouped, shift.reshape(groups, width))
            edits[2] = Affine.of(1.0, total.reshape(-1))
        return Moved(edits)


def check_groups(conv: Site, channels: int) -> None:
    """An invalid model is named as such, rather than met as an odd number of weights."""
    if channels % conv.attr("group", 1):
        raise InvalidModelError(
            f"{conv.node.op_type} {conv.node.name!r} has {channels} channels in "
            f"{conv.attr('group', 1)} groups; export the model again, no runtime can execute it."
        )


def is_padded(conv: Site, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution may read zeros beyond the border of its input."""
    mode = conv.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return False
    if mode == "NOTSET":
        none: list[int] = []
        return any(pad > 0 for pad in conv.attr("pads", none))
    ones = [1] * len(kernel)
    strides, dilations = conv.attr("strides", ones), conv.attr("dilations", ones)
    sizes = conv.shape(0)[2:] if any(size > 1 for size in kernel) else ones
    return not all(
        isinstance(size, int) and (-(-size // stride) - 1) * stride + (taps - 1) * dilation < size
        for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    )


def _lead(vector: Array, rank: int) -> Array:
    return vector.reshape((-1,) + (1,) * (rank - 1))


def _trail(matrix: Array, rank: int) -> Array:
    return matrix.reshape(matrix.shape + (1,) * (rank - 2))


@folds
def any_padding(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3), op.weight(4), pads=[1, 1, 1, 1], strides=[2, 1])
    return op.batch_norm(y)


@folds
def one_dimension(op: Graph, x: Input = ("N", 3, "L")) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(4, 3, 3), dilations=[2]))


@folds
def three_dimensions(op: Graph, x: Input = (1, 2, 4, 4, 4)) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(4, 2, 3, 3, 3), ""))


@folds
def depthwise_with_multiplier(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(6, 1, 3, 3), op.weight(6), group=3))


@folds
def in_front_of_groups(op: Graph, x: Input = (1, 4, 6, 6)) -> Outputs:
    return op.Conv(op.batch_norm(x), op.weight(6, 2, 3, 3), group=2)


@folds
def in_front_of_valid(op: Graph, x: Input = (1, 2, 7, 7)) -> Outputs:
    return op.Conv(op.batch_norm(x), op.weight(3, 2, 3, 3), op.weight(3), auto_pad="VALID")


@folds
def in_front_of_same_without_padding(op: Graph, x: Input = ("N", 2, 8, 8)) -> Outputs:
    return op.Conv(op.batch_norm(x), op.weight(3, 2, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2])


@folds
def scale_in_front_of_padding(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    return op.Conv(op.Mul(x, op.weight(2, 1, 1)), op.weight(3, 2, 3, 3), pads=[1, 1, 1, 1])


@folds
def several_readers(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    y = op.batch_norm(x)
    return op.Conv(y, op.weight(3, 2, 3, 3)), op.Conv(y, op.weight(4, 2, 1, 1))


@refuses(Reason.PADDED_SHIFT)
def shift_before_padding(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    return op.Conv(op.batch_norm(x), op.weight(3, 2, 3, 3), pads=[1, 1, 1, 1])


@refuses(Reason.PADDED_SHIFT)
def shift_before_same(op: Graph, x: Input = (1, 2, 6, 6)) -> Outputs:
    return op.Conv(op.batch_norm(x), op.weight(3, 2, 3, 3), auto_pad="SAME_LOWER")


@refuses(Reason.MIXED_AXES)
def along_the_wrong_axis(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Mul(op.Conv(x, op.weight(4, 3, 3, 3)), op.weight(4))


@refuses(Reason.NOT_CONSTANT)
def computed_weight(op: Graph, x: Input = (1, 3, 6, 6), w: Input = (4, 3, 3, 3)) -> Outputs:
    return op.batch_norm(op.Conv(x, w))


@refuses(Reason.OTHER_OPERAND)
def into_the_bias(op: Graph, x: Input = (1, 3, 6, 6), b: Input = (4,)) -> Outputs:
    return op.Conv(x, op.weight(4, 3, 1, 1), op.Mul(b, op.weight(4)))
