"""Batch normalization as the article defines it: the reference everything else is held against.

Source: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift", ICML 2015 (arXiv:1502.03167), Algorithm 1 (training) and Algorithm 2
(inference); the same equations as ONNX BatchNormalization-15.

Everything is computed and returned in float64, whatever the input: rounding to a narrower type is
left to who compares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bnfold.errors import InputsError
from bnfold.training.moments import ChannelMoments, Floats, channels_last, per_channel


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    scale: ArrayLike,
    bias: ArrayLike,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Floats:
    """Normalize with given statistics, as at inference (Algorithm 2, step 11).

        y = scale·(x - mean)/√(variance + epsilon) + bias

    Args:
        x: tensor of at least two axes and any real dtype.
        mean: μ of shape (C,), in the unit of x.
        variance: σ² of shape (C,), in the unit of x squared.
        scale: gamma of shape (C,), in the unit of y per standard deviation.
        bias: β of shape (C,), in the unit of y.
        epsilon: ε, in the unit of x squared; 1e-5 in ONNX and torch, 1e-3 in Keras.
        axis: which axis of x holds the C channels; negative counts from the end.

    Returns:
        y in float64, of the shape of x.

    Raises:
        InputsError: a vector does not fit the channels or is not finite, or σ² + ε is not positive.
    """
    samples = channels_last(x, axis)
    channels = samples.shape[-1]
    power = per_channel("variance", variance, channels) + epsilon
    if not (power > 0).all():
        raise InputsError(f"With epsilon {epsilon}, variance + epsilon is not positive everywhere.")
    centred = samples - per_channel("mean", mean, channels)
    gain = per_channel("scale", scale, channels) / np.sqrt(power)
    return np.moveaxis(centred * gain + per_channel("bias", bias, channels), -1, axis)


def batch_norm_training(
    x: ArrayLike, scale: ArrayLike, bias: ArrayLike, *, epsilon: float = 1e-5, axis: int = 1
) -> tuple[Floats, ChannelMoments]:
    """Normalize a batch with its own mean and population variance (Algorithm 1).

        μ = Σx/m,   σ² = Σ(x - μ)²/m,   y = scale·(x - μ)/√(σ² + epsilon) + bias

    Arguments and y are those of ``normalize``. Returned with y are the moments of the batch, which
    a ``MovingAverage`` takes next.

    Raises:
        InputsError: as ``normalize`` does, or x is empty or holds NaN or infinity.
    """
    batch = ChannelMoments.of(x, axis)
    y = normalize(x, batch.mean, batch.variance, scale, bias, epsilon=epsilon, axis=axis)
    return y, batch
