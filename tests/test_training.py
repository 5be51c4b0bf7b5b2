"""Training mode obeys the algebra of its definition, and its moving statistics reach the data's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bnfold.errors import InputsError
from bnfold.training import (
    ChannelMoments,
    MovingAverage,
    Running,
    batch_norm_training,
    bessel,
    normalize,
)

tensors = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False),
)


@settings(deadline=None)
@given(x=tensors, epsilon=st.floats(1e-5, 1.0), data=st.data())
def test_output_is_normalized(x: np.ndarray, epsilon: float, data: st.DataObject) -> None:
    """Along whichever axis, y has mean β and variance γ²·σ²/(σ² + ε)."""
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    scale, bias = np.linspace(-2, 3, x.shape[axis]), np.linspace(1, 2, x.shape[axis])
    y, batch = batch_norm_training(x, scale, bias, epsilon=epsilon, axis=axis)
    out = ChannelMoments.of(y, axis)
    assert y.shape == x.shape
    np.testing.assert_allclose(out.mean, bias, rtol=0, atol=1e-9)
    expected = scale**2 * batch.variance / (batch.variance + epsilon)
    np.testing.assert_allclose(out.variance, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(
    x=tensors,
    gain=st.floats(0.1, 10).flatmap(lambda size: st.sampled_from([size, -size])),
    offset=st.floats(-1e3, 1e3),
)
def test_shift_and_scale_of_the_input_cancel(x: np.ndarray, gain: float, offset: float) -> None:
    """The moments of a·x + b follow from those of x; with a²·ε, so does the output: up to sign."""
    ones, zeros = np.ones(x.shape[1]), np.zeros(x.shape[1])
    y, batch = batch_norm_training(x, ones, zeros)
    moved, moments = batch_norm_training(gain * x + offset, ones, zeros, epsilon=gain**2 * 1e-5)
    np.testing.assert_allclose(moments.mean, gain * batch.mean + offset, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(moments.variance, gain**2 * batch.variance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moved, np.sign(gain) * y, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 2), (7, 2, 3)], ids=["one sample", "constant channels"])
def test_without_spread_only_the_bias_is_left(shape: tuple[int, ...]) -> None:
    """A variance of exactly 0 and an output of exactly β, not rounding noise over √ε."""
    x = np.zeros(shape) + np.array([0.1, 1e8 / 3]).reshape(1, 2, *[1] * (len(shape) - 2))
    y, batch = batch_norm_training(x, np.full(2, 5.0), np.full(2, 0.7), epsilon=1e-30)
    assert not batch.variance.any()
    assert (y == 0.7).all()


def test_a_large_offset_does_not_swallow_a_small_variance() -> None:
    """Offset 1e8, deviation 1e-3: y is off by the rounding of μ alone, as a float64 μ must be."""
    x = 1e8 + 1e-3 * np.random.default_rng(1).normal(size=(1000, 2))
    y, batch = batch_norm_training(x, np.ones(2), np.zeros(2), epsilon=1e-12)
    assert np.abs(y.mean(axis=0)).max() <= np.spacing(1e8) / 1e-3
    np.testing.assert_allclose(y.var(axis=0), batch.variance / (batch.variance + 1e-12), rtol=1e-9)


def test_narrow_types_are_reduced_in_float64() -> None:
    """The variance of these float16 and uint8 data overflows their own type."""
    for x in (np.array([[-6e4], [6e4]], np.float16), np.array([[0], [255]], np.uint8)):
        wide = x.astype(np.float64)
        assert ChannelMoments.of(x).variance == np.var(wide)
        assert batch_norm_training(x, [1.0], [0.0])[0].dtype == np.float64


def test_the_two_conventions_convert() -> None:
    """Complementary momentum, and Bessel's factor on a variance whose batches are of one size."""
    ours, torch = MovingAverage(0.9), MovingAverage.from_torch(0.1)
    assert (torch.momentum, ours.torch_momentum) == pytest.approx((0.9, 0.1))
    start = Running(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    onnx, other = start, start._replace(variance=start.variance * bessel(6))
    for x in np.random.default_rng(2).normal(size=(20, 3, 2, 2)):
        batch = ChannelMoments.of(x)
        onnx, other = ours.update(onnx, batch), torch.update(other, batch)
    np.testing.assert_allclose(other.mean, onnx.mean, rtol=1e-12)
    np.testing.assert_allclose(other.variance / bessel(6), onnx.variance, rtol=1e-12)


def test_one_repeated_batch_ties_inference_to_training() -> None:
    """The moving statistics reach that batch's own, and inference then equals training."""
    x = np.random.default_rng(3).normal(4.0, 3.0, (8, 2, 5))
    running = Running(np.zeros(2), np.ones(2))
    y, batch = batch_norm_training(x, [2.0, 3.0], [0.5, -0.5])
    for _ in range(400):
        running = MovingAverage(0.9).update(running, batch)
    np.testing.assert_allclose(normalize(x, *running, [2.0, 3.0], [0.5, -0.5]), y, rtol=1e-12)


def test_many_batches_of_one_distribution_converge_to_it() -> None:
    """The mean does in both conventions; of batches of 4, ONNX's variance stops at ¾ of the true.

    Merged moments are neither biased nor noisy, however small the batches.
    """
    data = np.random.default_rng(4).normal([5.0, -1.0], [2.0, 0.5], (8000, 4, 2))
    rules = MovingAverage(0.999), MovingAverage.from_torch(0.001)
    running = [Running(np.zeros(2), np.ones(2)) for _ in rules]
    for x in data:
        batch = ChannelMoments.of(x)
        running = [rule.update(old, batch) for rule, old in zip(rules, running, strict=True)]
    for result, share in zip(running, (0.75, 1.0), strict=True):
        np.testing.assert_allclose(result.mean, [5.0, -1.0], rtol=0.03)
        np.testing.assert_allclose(result.variance, [share * 4.0, share * 0.25], rtol=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": [1.0]}, "scale has shape"),
        ({"bias": [0.0, np.nan]}, "bias of channel 1 is nan"),
        ({"x": [[1.0, np.inf], [0.0, 0.0]]}, "mean of channel 1"),
        ({"x": np.zeros((0, 2))}, "too few"),
        ({"x": [1.0, 2.0], "axis": 0}, "no channels along axis 0"),
        ({"axis": 2}, "no channels along axis 2"),
        ({"x": np.zeros((2, 0))}, "no channels"),
        ({"epsilon": 0.0}, "not positive"),
    ],
)
def test_misuse_is_named(change: dict[str, Any], message: str) -> None:
    """Every wrong input is an ``InputsError`` that says what is wrong with it, never a warning."""
    good = {"x": np.ones((4, 2)), "scale": [1.0, 1.0], "bias": [0.0, 0.0]}
    with pytest.raises(InputsError, match=message):
        batch_norm_training(**{**good, **change})
