"""What probably happened to statistics that do not fit, in sentences a person can act on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.statistics.judge.verdict import Comparison

# How far, relatively, statistics may be from an explanation that is then given, and what is worth one.
_CLEARLY = 0.2
_MUCH = 1.5


def conclusions(judged: Sequence[Comparison]) -> list[str]:
    """Each layer at which something goes wrong, with what probably did, and how far it spreads."""
    causes = [each for each in judged if each.named and not each.follows]
    if not causes:
        return [_fits(judged)]
    said = [f"{each.layer.name}: {'; '.join(each.problems)}. {_cause(each)}" for each in causes]
    spread = sum(each.named and each.follows for each in judged)
    if spread:
        said.append(
            f"{spread} more named layers stand behind {'it' if len(causes) == 1 else 'these'} and may only "
            "inherit the error; bnfold recalibrate re-estimates all of them."
        )
    return said


def _fits(judged: Sequence[Comparison]) -> str:
    shift = max(float(np.abs(each.shift).max()) for each in judged)
    ratios = [each.typical_ratio for each in judged]
    return (
        f"The statistics of all {len(judged)} layers fit the data: no channel's mean is off by more than "
        f"{shift:.2g} σ, variances are {min(ratios):.3g} to {max(ratios):.3g} times the stored ones."
    )


def _cause(it: Comparison) -> str:
    """What would explain the first layer that is wrong."""
    if it.layer.broken.any():
        return "The model gives no numbers from here on; training diverged, or the file is damaged."
    way = _way_from_start(it)
    if way is not None:
        return (
            f"They went {way:.0%} of the way from where training starts them (mean 0, variance 1): "
            "too few updates, or a momentum too close to 1."
        )
    if it.dead.mean() > 0.5:
        return "The data hardly vary here; they are probably not what the model was trained on."
    if not it.layer.parents:
        factor = _factor(it)
        if factor is not None:
            return (
                f"Its input varies about {factor:.2g} times as much as when the statistics were taken: "
                "the inputs are probably not scaled as in training."
            )
        return "The inputs are probably not normalized as in training, or the statistics saw too few of them."
    return (
        "What stands in front of it fits, so its own statistics are stale: weights were changed after "
        "they were taken (fine-tuning, quantization), or they saw too few batches."
    )


def _way_from_start(it: Comparison) -> float | None:
    """How far the stored statistics moved from (0, 1) towards the data's, if they are on that line."""
    towards = np.concatenate([it.moments.mean, it.moments.variance - 1.0])
    moved = np.concatenate([it.layer.mean, it.layer.variance - 1.0])
    way = float(towards @ moved / max(float(towards @ towards), 1e-300))
    rest, size = (float(np.linalg.norm(each)) for each in (moved - way * towards, moved))
    return way if rest <= _CLEARLY * size and 0.0 <= way < 0.9 else None


def _factor(it: Comparison) -> float | None:
    """By what one number the spread of all channels differs, if by one."""
    alive = ~it.dead & (it.layer.variance > 0)
    if not alive.any():
        return None
    logs = 0.5 * np.log(it.moments.variance[alive] / it.layer.variance[alive])
    factor = float(np.exp(np.median(logs)))
    uniform = float(np.median(np.abs(logs - np.log(factor)))) <= _CLEARLY
    return factor if uniform and abs(np.log(factor)) > np.log(_MUCH) else None
