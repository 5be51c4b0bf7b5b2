"""Do stored statistics fit the data? A judgement per layer, and what it means, in words.

A channel is off by ``shift`` = (data's mean - stored mean)/√(stored variance + ε), in σ, and by
``ratio`` = (data's variance + ε)/(stored variance + ε).

Data are a sample: n images leave a mean uncertain by up to σ/√n, since positions within an image are
not independent, and a variance by √(2/n) of itself or more. What a sample of that size explains is not
held against a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.graph.layer import Layer
from bnfold.training import ChannelMoments, Running
from bnfold.training.moments import Floats

# The limits of what fits: on a layer's root mean square shift and its worst channel's, in σ; on its
# typical variance ratio and its worst channel's, either way; on the share of channels that became
# constant. Held-out images reach 0.04, 0.11, 1.05 and 1.3 on the digit nets (docs/statistics.md).
SHIFT, WORST_SHIFT = 0.3, 1.0
RATIO, WORST_RATIO = 1.5, 4.0
LOST = 0.25

# Worth a note: gains γ/√(σ² + ε) from here on multiply rounding errors (trained ones reach 889).
LARGE_GAIN = 100.0
LARGE_VARIANCE = 1e8

# How many standard errors are put down to chance, and the variance of a squared normal value (2),
# three times over: activations have heavier tails.
_CHANCE = 4.0
_TAILS = 6.0

# A deviation below this share of the mean is none: it is how well float32 knows the mean.
_RESOLUTION = 5e-7
_LEAST = 1e-300


@dataclass(frozen=True)
class Comparison:
    """One layer judged.

    Attributes:
        layer: what the model stores.
        moments: what the data gave.
        shift: per channel, in stored σ.
        ratio: per channel, the data's variance over the stored one.
        samples: how many samples the data held.
        problems: why the layer is named, in words; none if it fits.
        notes: what is remarkable without being wrong.
        follows: whether a layer in front of it is named, whose error it may have inherited.
    """

    layer: Layer
    moments: ChannelMoments
    shift: Floats
    ratio: Floats
    samples: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    follows: bool = False

    @property
    def named(self) -> bool:
        """Whether the layer's statistics do not fit the data."""
        return bool(self.problems)

    @property
    def typical_shift(self) -> float:
        """Root mean square over the channels, in σ."""
        return float(np.sqrt(np.mean(np.square(self.shift))))

    @property
    def typical_ratio(self) -> float:
        """Geometric mean over the channels that vary."""
        return _geometric(self.ratio[~self.dead])

    @property
    def dead(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The channels that are constant on the data."""
        return np.asarray(self.moments.variance <= np.square(_RESOLUTION * self.moments.mean) + _LEAST)

    def worst(self, count: int = 3) -> list[int]:
        """The channels that are off the most, the worst first."""
        off = np.maximum(np.abs(self.shift), np.abs(np.log(np.maximum(self.ratio, _LEAST))))
        return [int(channel) for channel in np.argsort(-off, kind="stable")[:count]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "name": self.layer.name,
            "wave": self.layer.wave,
            "channels": int(self.shift.size),
            "named": self.named,
            "follows": self.follows,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "shift": self.typical_shift,
            "worst_shift": float(np.abs(self.shift).max()),
            "ratio": self.typical_ratio,
            "dead": int(self.dead.sum()),
            "worst": [
                {"channel": c, "shift": float(self.shift[c]), "ratio": float(self.ratio[c])}
                for c in self.worst()
            ],
        }


def compare(
    layers: Sequence[Layer], moments: Mapping[str, ChannelMoments], samples: int
) -> tuple[Comparison, ...]:
    """Judge every layer, in the order given, which is that of the graph.

    Raises:
        InputsError: there are fewer than two samples.
    """
    if samples < 2:
        raise InputsError(f"{samples} samples say nothing about a variance; give more data.")
    judged: list[Comparison] = []
    tainted: set[str] = set()
    for layer in layers:
        follows = not tainted.isdisjoint(layer.parents)
        made = _judge(layer, moments[layer.output], samples, follows)
        judged.append(made)
        if made.named or follows:
            tainted.add(layer.output)
    return tuple(judged)


def _judge(layer: Layer, moments: ChannelMoments, samples: int, follows: bool) -> Comparison:
    shift, ratio = layer.relative(Running(moments.mean, moments.variance))
    plain = Comparison(layer, moments, shift, ratio, samples, (), (), follows)
    problems = tuple(filter(None, (_broken(plain), _mean(plain), _variance(plain), _constant(plain))))
    return replace(plain, problems=problems, notes=tuple(filter(None, _notes(plain))))


def _broken(it: Comparison) -> str:
    broken = it.layer.broken
    if not broken.any():
        return ""
    return f"{broken.sum()} of {broken.size} stored statistics are infinite, not a number, or below zero"


def _mean(it: Comparison) -> str:
    chance = it.ratio / it.samples
    typical = sqrt(max(0.0, it.typical_shift**2 - float(chance.mean())))
    beyond = np.abs(it.shift) - _CHANCE * np.sqrt(chance)
    if typical <= SHIFT and beyond.max() <= WORST_SHIFT:
        return ""
    worst = int(np.abs(it.shift).argmax())
    return f"mean off by {it.typical_shift:.3g} σ, worst {it.shift[worst]:+.3g} σ at channel {worst}"


def _variance(it: Comparison) -> str:
    if it.dead.all():
        return ""
    off = np.abs(np.log(np.maximum(it.ratio, _LEAST)))
    off[it.dead] = 0.0
    chance = sqrt(_TAILS / it.samples)
    beyond = abs(log(max(it.typical_ratio, _LEAST))) - chance
    if beyond <= log(RATIO) and off.max() - _CHANCE * chance <= log(WORST_RATIO):
        return ""
    worst = int(off.argmax())
    typical, extreme = it.typical_ratio, it.ratio[worst]
    return f"variance {typical:.3g} times the stored one, worst {extreme:.3g} at channel {worst}"


def _constant(it: Comparison) -> str:
    lost = it.dead & (it.ratio < 1 / WORST_RATIO)
    if lost.mean() <= LOST:
        return ""
    return f"{lost.sum()} of {lost.size} channels are constant on the data, but varied in training"


def _notes(it: Comparison) -> Iterator[str]:
    sound = ~it.layer.broken
    variance, tiny = np.where(sound, it.layer.variance, 1.0), float(np.finfo(np.float32).tiny)
    gain = np.where(sound, np.abs(it.layer.gain) / it.layer.deviation, 0.0)
    if (dead := int(it.dead.sum())) > 0:
        yield f"{dead} of {it.dead.size} channels are constant on the data"
    if (denormal := variance < tiny).any():
        least = float(variance[denormal].min())
        yield f"{denormal.sum()} stored variances are denormal or zero, the least {least:.2g}"
    if variance.max() > LARGE_VARIANCE:
        yield f"stored variance up to {variance.max():.2g} at channel {variance.argmax()}"
    if gain.max() > LARGE_GAIN:
        yield f"gain up to {gain.max():.3g} at channel {gain.argmax()} multiplies rounding errors"
    yield it.layer.note.rstrip(".")


def _geometric(values: Floats) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(values, _LEAST))))) if values.size else 1.0
