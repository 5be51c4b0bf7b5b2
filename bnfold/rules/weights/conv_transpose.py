"""ConvTranspose absorbs a map from behind, and from in front what every output position sees alike.

    pull    s·(Wᵀ∗x + b) + t  =  (s·W)ᵀ∗x + (s·b + t)       always
    push    Wᵀ∗(s·x) + b      =  (W·s)ᵀ∗x + b               always
            Wᵀ∗(x + t) + b    =  Wᵀ∗x + (b + Σ W·t)          if kernel and stride are 1 and nothing is padded

W is C × M/groups × kernel: input channels first, and the output channels of a group beside each
other. With a larger kernel or stride, output positions sum different taps.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site
from bnfold.rules.weights.conv import check_groups


@rule("ConvTranspose", versions={1, 11, 22})
class ConvTranspose(Rule):
    """See the module."""

    def pull(self, conv: Site, out: Affine) -> Moved:
        weight, groups = conv.const(1), conv.attr("group", 1)
        channels, width = weight.shape[:2]
        check_groups(conv, channels)
        scale, shift = out.along(1, groups * width)
        per_channel = np.repeat(scale.reshape(groups, width), channels // groups, axis=0)
        spread = per_channel.reshape(per_channel.shape + (1,) * (weight.rank - 2))
        return Moved({1: Affine.of(spread), 2: Affine(scale, shift)})

    def push(self, conv: Site, into: Arriving) -> Moved:
        affine, groups = into.only(0), conv.attr("group", 1)
        weight = conv.const(1)
        channels, width = weight.shape[:2]
        check_groups(conv, channels)
        scale, shift = affine.along(1, channels)
        edits = {1: Affine.of(scale.reshape((-1,) + (1,) * (weight.rank - 1)))}
        if np.any(shift):
            require(_sums_alike(conv, weight.shape[2:]), Reason.SHIFT_VARIES)
            taps = weight.exact.reshape(groups, channels // groups, width)
            total = np.einsum("gcm,gc->gm", taps, shift.reshape(groups, -1))
            edits[2] = Affine.of(1.0, total.reshape(-1))
        return Moved(edits)


def _sums_alike(conv: Site, kernel: tuple[int, ...]) -> bool:
    none: list[int] = []
    plain = conv.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return (
        plain
        and not any(conv.attr("pads", none))
        and not any(conv.attr("output_padding", none))
        and not conv.attr("output_shape", none)
        and all(size == 1 for size in (*kernel, *conv.attr("strides", none)))
    )


@folds
def grouped(op: Graph, x: Input = (1, 4, 5, 5)) -> Outputs:
    y = op.ConvTranspose(x, op.weight(4, 3, 3, 3), op.weight(6), group=2, strides=[2, 2])
    return op.batch_norm(y)


@folds
def with_output_padding(op: Graph, x: Input = (1, 2, 4, 4)) -> Outputs:
    y = op.ConvTranspose(x, op.weight(2, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    return op.batch_norm(y)


@folds
def one_dimension(op: Graph, x: Input = ("N", 2, "L")) -> Outputs:
    return op.batch_norm(op.ConvTranspose(x, op.weight(2, 3, 4), "", strides=[2]))


@folds
def three_dimensions(op: Graph, x: Input = (1, 2, 3, 3, 3)) -> Outputs:
    return op.batch_norm(op.ConvTranspose(x, op.weight(2, 3, 2, 2, 2)))


@folds
def scale_in_front(op: Graph, x: Input = (1, 4, 5, 5)) -> Outputs:
    y = op.Mul(x, op.weight(1, 4, 1, 1))
    return op.ConvTranspose(y, op.weight(4, 3, 3, 3), group=2, strides=[2, 2])


@folds
def shift_in_front_of_kernel_one(op: Graph, x: Input = (1, 4, 5, 5)) -> Outputs:
    return op.ConvTranspose(op.batch_norm(x), op.weight(4, 3, 1, 1), op.weight(6), group=2)


@refuses(Reason.SHIFT_VARIES)
def shift_in_front_of_stride(op: Graph, x: Input = (1, 2, 4, 4)) -> Outputs:
    return op.ConvTranspose(op.batch_norm(x), op.weight(2, 3, 2, 2), strides=[2, 2])


@refuses(Reason.SHIFT_VARIES)
def shift_in_front_of_holes(op: Graph, x: Input = (1, 2, 4, 4)) -> Outputs:
    return op.ConvTranspose(op.batch_norm(x), op.weight(2, 3, 1, 1), strides=[2, 2])


@refuses(Reason.MIXED_AXES)
def along_the_wrong_axis(op: Graph, x: Input = (1, 3, 5, 5)) -> Outputs:
    return op.Mul(op.ConvTranspose(x, op.weight(3, 5, 1, 1)), op.weight(5))


@refuses(Reason.NOT_CONSTANT)
def computed_weight(op: Graph, x: Input = (1, 3, 5, 5), w: Input = (3, 4, 3, 3)) -> Outputs:
    return op.batch_norm(op.ConvTranspose(x, w))


@refuses(Reason.OTHER_OPERAND)
def into_the_bias(op: Graph, x: Input = (1, 3, 6, 6), b: Input = (4,)) -> Outputs:
    return op.ConvTranspose(x, op.weight(3, 4, 1, 1), op.Mul(b, op.weight(4)))
