"""The training mode of batch normalization: reference kernel, moments, moving statistics."""

from __future__ import annotations

from bnfold.training.kernel import batch_norm_training, normalize
from bnfold.training.moments import ChannelMoments
from bnfold.training.running import MovingAverage, Running, bessel

__all__ = [
    "ChannelMoments",
    "MovingAverage",
    "Running",
    "batch_norm_training",
    "bessel",
    "normalize",
]
