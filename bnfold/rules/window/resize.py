"""Resize and Upsample carry a map that does not vary along the resized axes.

    pull, push    resize(s·x + t) = s·resize(x) + t

for every value is a mean of neighbours with weights that sum to one: nearest, linear and cubic, with
antialiasing and with ``exclude_outside`` as well, which divides the weights by what is left of their sum.
``tf_crop_and_resize`` puts a fixed value outside the input, which the map would have to leave alone: it is
refused. An axis is not resized if its scale is exactly one, or its size stays what it was; by scales
alone the size may stay while the grid moves.
"""

from __future__ import annotations

from typing import cast

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site


class Interpolation(Rule):
    """Means of neighbours along some axes."""

    def pull(self, node: Site, out: Affine) -> Moved:
        return Moved(inputs={0: self.checked(node, out)})

    def push(self, node: Site, into: Arriving) -> Moved:
        return Moved(output=self.checked(node, into.only(0)))

    def checked(self, node: Site, affine: Affine) -> Affine:
        """The map, if it may pass."""
        mode = node.attr("coordinate_transformation_mode", "half_pixel")
        require(mode != "tf_crop_and_resize", Reason.EXTRAPOLATES)
        if affine.sizes():
            require(not self.resized(node) & set(affine.sizes()), Reason.MIXED_AXES)
        return affine

    def resized(self, node: Site) -> set[int]:
        """The axes along which positions change."""
        raise NotImplementedError


@rule("Upsample", versions={7, 9})
class Upsample(Interpolation):
    """By scales, which are an attribute at first."""

    def resized(self, node: Site) -> set[int]:
        return _scaled(_scales(node, 1), list(range(len(node.shape(0)))))


@rule("Resize", versions={10, 11, 13, 18, 19})
class Resize(Interpolation):
    """By scales or to sizes, from version 18 on for some axes only."""

    def resized(self, node: Site) -> set[int]:
        before = node.shape(0)
        axes = [axis % len(before) for axis in node.attr("axes", cast("list[int]", []))]
        axes = axes or list(range(len(before)))
        keeps_ratio = node.attr("keep_aspect_ratio_policy", "stretch") != "stretch"
        off_centre = node.attr("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn"
        if keeps_ratio or off_centre:
            return set(axes)
        if node.has(3):
            after = node.out_shape()
            return {axis for axis in axes if before[axis] is None or before[axis] != after[axis]}
        return _scaled(_scales(node, 1 if node.version < 11 else 2), axes)


def _scales(node: Site, index: int) -> list[float]:
    return (
        node.const(index).exact.tolist() if node.has(index) else node.attr("scales", cast("list[float]", []))
    )


def _scaled(scales: list[float], axes: list[int]) -> set[int]:
    return {axis for axis, scale in zip(axes, scales, strict=True) if scale != 1.0}


_FLOAT = int(ir.DataType.FLOAT)


@folds
def nearest_behind(op: Graph, x: Input = ("N", 3, "H", "W")) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    return op.batch_norm(op.Resize(y, "", op.const([1.0, 1.0, 2.0, 2.0], _FLOAT)), channels=4)


@folds
def linear_in_front(op: Graph, x: Input = (1, 3, 4, 5)) -> Outputs:
    scales = op.const([1.0, 1.0, 1.5, 2.0], _FLOAT)
    y = op.Resize(op.batch_norm(x), "", scales, mode="linear", coordinate_transformation_mode="align_corners")
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds
def cubic_to_sizes(op: Graph, x: Input = (1, 3, 4, 5)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    y = op.Resize(y, "", "", op.ints(1, 4, 7, 9), mode="cubic", exclude_outside=1)
    return op.batch_norm(y)


@folds
def to_the_size_of_another(op: Graph, x: Input = ("N", 3, 4, 5), y: Input = ("N", 3, "H", "W")) -> Outputs:
    kept = op.Slice(op.Shape(x), op.ints(0), op.ints(2))
    sizes = op.Concat(kept, op.Slice(op.Shape(y), op.ints(2), op.ints(4)), axis=0)
    return op.Conv(op.Resize(op.batch_norm(x), "", "", sizes, mode="linear"), op.weight(4, 3, 1, 1))


@folds(opset=18)
def antialiased(op: Graph, x: Input = (1, 3, 8, 8)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    y = op.Resize(y, "", op.const([0.5, 0.6], _FLOAT), axes=[-2, -1], mode="linear", antialias=1)
    return op.batch_norm(y)


@folds(opset=18)
def ratio_is_kept(op: Graph, x: Input = (1, 3, 4, 6)) -> Outputs:
    y = op.Resize(
        op.Conv(x, op.weight(4, 3, 1, 1)),
        "",
        "",
        op.ints(7, 7),
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
    )
    return op.batch_norm(y)


@folds(opset=10)
def first_version(op: Graph, x: Input = (1, 3, 4, 5)) -> Outputs:
    y = op.Resize(op.batch_norm(x), op.const([1.0, 1.0, 2.0, 1.0], _FLOAT))
    return op.Conv(y, op.weight(4, 3, 3, 3))


@folds(opset=9)
def upsample(op: Graph, x: Input = (1, 3, 4, 5)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    return op.batch_norm(op.Upsample(y, op.const([1.0, 1.0, 2.0, 2.0], _FLOAT), mode="linear"))


@folds(opset=8)
def upsample_by_attribute(op: Graph, x: Input = (1, 3, 4, 5)) -> Outputs:
    y = op.Upsample(op.batch_norm(x), scales=[1.0, 1.0, 2.0, 2.0])
    return op.Conv(y, op.weight(4, 3, 3, 3))


@refuses(Reason.EXTRAPOLATES)
def crop_and_extrapolate(op: Graph, x: Input = (1, 3, 4, 4)) -> Outputs:
    crop = op.const([0.0, 0.0, -0.5, -0.5, 1.0, 1.0, 1.5, 1.5], _FLOAT)
    mode = "tf_crop_and_resize"
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    y = op.Resize(y, crop, "", op.ints(1, 4, 6, 6), mode="linear", coordinate_transformation_mode=mode)
    return op.batch_norm(y)


@refuses(Reason.MIXED_AXES)
def channels_are_resized(op: Graph, x: Input = (1, 3, 4, 4)) -> Outputs:
    y = op.Resize(op.Conv(x, op.weight(6, 3, 1, 1)), "", "", op.ints(1, 4, 4, 4), mode="linear")
    return op.batch_norm(y)


@refuses(Reason.MIXED_AXES)
def size_stays_and_grid_moves(op: Graph, x: Input = (1, 3, 4, 4)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 1, 1))
    y = op.Resize(y, "", op.const([1.0, 1.2, 1.0, 1.0], _FLOAT), mode="linear")
    return op.batch_norm(y)
