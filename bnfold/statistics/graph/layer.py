"""One batch norm as a value, whatever nodes it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnfold.training import Running
from bnfold.training.moments import Floats

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One batch norm: y = gain·(x - mean)/√(variance + epsilon) + bias, per channel.

    Attributes:
        name: as reports name it.
        output: the name of the tensor y, which no other layer has.
        tensor: the name of the tensor x.
        axis: the axis of x that holds the channels, counted from the front.
        rank: how many axes x has, 0 if that is not known (then axis is 1).
        dtype: the type of x, as onnx_ir calls it: "FLOAT", "FLOAT16" and so on.
        wave: 1 + the number of batch norms on the longest path in front of it.
        parents: the outputs of the batch norms right in front of it.
        mean: stored moving mean of shape (C,), in the unit of x.
        variance: stored moving variance of shape (C,), in the unit of x squared.
        gain: gamma of shape (C,).
        bias: β of shape (C,).
        epsilon: ε, in the unit of x squared.
        note: what had to be assumed to read it, if anything.
    """

    name: str
    output: str
    tensor: str
    axis: int
    rank: int
    dtype: str
    wave: int
    parents: tuple[str, ...]
    mean: Floats = field(repr=False)
    variance: Floats = field(repr=False)
    gain: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    epsilon: float
    note: str = ""

    @property
    def deviation(self) -> Floats:
        """√(variance + epsilon), what the layer divides by: the unit of every shift in a report."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self.variance + self.epsilon))

    @property
    def broken(self) -> Flags:
        """The channels whose stored statistics no value can be normalized by."""
        finite = np.isfinite(self.mean) & np.isfinite(self.variance)
        return np.asarray(~(finite & (self.variance + self.epsilon > 0)))

    def relative(self, new: Running) -> tuple[Floats, Floats]:
        """How far other statistics are off: per channel, a shift in stored σ and a ratio of variances.

        With ε in both variances, a channel that is dead in both counts as one that fits. A broken
        channel has shift 0 and ratio 1: there is nothing to hold it against.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = (new.mean - self.mean) / self.deviation
            ratio = (new.variance + self.epsilon) / (self.variance + self.epsilon)
        return np.where(self.broken, 0.0, shift), np.where(self.broken, 1.0, ratio)
