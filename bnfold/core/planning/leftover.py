"""The cheapest single node that an affine map can be, for maps that find no home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.core.affine import Affine, Array
from bnfold.core.graph.shapes import Facts

# The measure that every plan lowers: what a node counts for as long as it stands.
WEIGHT_OF_BATCH_NORM = 3
WEIGHT_OF_AFFINE = 2


@dataclass(frozen=True)
class Leftover:
    """An affine map as one node: operator, attributes, and constants behind the data input."""

    op_type: str
    constants: tuple[Array, ...]
    attributes: dict[str, Any]

    @property
    def weight(self) -> int:
        """What the node adds to the measure."""
        return weight(self.op_type)


def weight(op_type: str) -> int:
    """What an affine node of this operator counts for in the measure."""
    return WEIGHT_OF_BATCH_NORM if op_type == "BatchNormalization" else WEIGHT_OF_AFFINE


def leftover(affine: Affine, value: ir.Value, facts: Facts, opset: int) -> Leftover | None:
    """State ``affine`` on ``value`` as one node, or None where no single node can say it.

    A shift is an Add and a scale a Mul (opset 7: earlier ones broadcast by attributes). Both at once
    are a BatchNormalization with mean 0, variance 1 and epsilon 0, where ONNX Runtime's kernel was
    measured at half the time of Mul and Add: float32 or float64, rank 3 and more, channels on axis 1. One
    map for all channels is no batch norm, and no model gets one that had none.
    """
    if opset < 7:
        return None
    if not affine.scales:
        return Leftover("Add", (_lean(affine.shift),), {})
    if not affine.shifts:
        return Leftover("Mul", (_lean(affine.scale),), {})
    return _batch_norm(affine, value, facts) if opset >= 9 else None


def _batch_norm(affine: Affine, value: ir.Value, facts: Facts) -> Leftover | None:
    shape = facts.shape(value)
    if facts.dtype(value) not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or shape is None:
        return None
    channels = shape[1] if len(shape) >= 3 else None
    if not isinstance(channels, int) or set(affine.sizes()) != ({1} if channels > 1 else set()):
        return None
    scale, shift = affine.along(1, channels)
    return Leftover(
        "BatchNormalization", (scale, shift, np.zeros(channels), np.ones(channels)), {"epsilon": 0.0}
    )


def _lean(array: Array) -> Array:
    """Drop leading axes of size 1, which broadcasting adds again."""
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return array
