"""Where a statistic stands in a model: the constant that holds it, and in which form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from bnfold.errors import InputsError
from bnfold.training.moments import Floats


class Statistic(Enum):
    """What a constant of a batch norm says, from which the others follow."""

    MEAN = "mean"
    VARIANCE = "variance"
    DEVIATION = "√(variance + ε)"
    RECIPROCAL = "1/√(variance + ε)"


_FORMS: dict[Statistic, Callable[[Floats, float], Floats]] = {
    Statistic.MEAN: lambda value, epsilon: value,
    Statistic.VARIANCE: lambda value, epsilon: value,
    Statistic.DEVIATION: lambda value, epsilon: np.sqrt(value + epsilon),
    Statistic.RECIPROCAL: lambda value, epsilon: 1.0 / np.sqrt(value + epsilon),
}


@dataclass(frozen=True)
class Slot:
    """One constant of a layer that a new statistic replaces.

    Attributes:
        value: the constant as it is.
        readers: the inputs that read it on behalf of this layer alone.
        holds: in which form it holds the statistic.
    """

    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]
    holds: Statistic

    @classmethod
    def of_input(cls, node: ir.Node, index: int, holds: Statistic) -> Slot:
        """The constant that one input reads."""
        value = node.inputs[index]
        assert value is not None
        return cls(value, ((node, index),), holds)

    def encoded(self, statistic: Floats, epsilon: float, like: ir.TensorProtocol) -> ir.TensorProtocol:
        """The statistic in the form, shape and type of the constant it replaces.

        Raises:
            InputsError: it is not finite in that type.
        """
        with np.errstate(all="ignore"):
            exact = _FORMS[self.holds](statistic, epsilon)
            rounded = exact.astype(like.dtype.numpy()).reshape(like.shape.numpy())
        if not np.isfinite(rounded.astype(np.float64)).all():
            raise InputsError(
                f"The new {self.holds.value} for {self.value.name!r} is not finite in "
                f"{like.dtype.name}; scale the data as in training."
            )
        return ir.Tensor(rounded, dtype=like.dtype, name=self.value.name)
