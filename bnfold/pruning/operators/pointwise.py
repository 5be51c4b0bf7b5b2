"""Operators that treat every element alike: a known channel stays known, at the function's value.

The value is computed in float64 by onnx's reference evaluator. Only continuous functions are here: behind
a jump, the rounding of a constant could change the result by a whole step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.core.graph.evaluate import evaluate
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import Site
from bnfold.pruning.operator import Channels, Cut, Operator, Removal, alone, only, operator, selected


@operator("Identity", "Dropout")
class Same(Operator):
    """Nothing changes."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        alone(site)
        inference = site.node.op_type == "Identity" or (site.opset >= 7 and not site.has(2))
        require(inference, Reason.DROPS)
        return only(given)


@operator(
    "Abs",
    "Celu",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
)
class Function(Operator):
    """A function of one element, with scalar parameters."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner = only(given)
        known = np.full(len(inner.known), np.nan)
        more = [site.const(i).exact if site.has(i) else None for i in range(1, len(site.node.inputs))]
        if inner.dead.any():
            with np.errstate(all="ignore"):
                values = evaluate(site.node, [inner.known[inner.dead], *more], site.opset)
            if values is None or values.shape != (int(inner.dead.sum()),):
                raise Refused(Reason.NO_RULE)
            known[inner.dead] = np.where(np.isfinite(values), values, np.nan)
        return Channels(inner.axis, known)


@operator("PRelu")
class PRelu(Operator):
    """x above zero, slope·x below; the slope may differ between channels."""

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        inner, slope = only(given), site.const(1)
        axis = aligned(site, 0, inner.axis, slope.rank)
        require(all(size == 1 for i, size in enumerate(slope.shape) if i != axis), Reason.MIXED_AXES)
        slopes = slope.exact.reshape(-1)
        return Channels(inner.axis, np.where(inner.known < 0, slopes * inner.known, inner.known))

    def cut(self, site: Site, removal: Removal) -> Cut:
        slope = site.const(1)
        return Cut({1: selected(slope, aligned(site, 0, removal.axis, slope.rank), removal.output)})


def aligned(site: Site, index: int, axis: int, rank: int) -> int:
    """Where an axis of input ``index`` is in a constant of fewer axes that broadcasts; −1 if nowhere."""
    return axis - (len(site.shape(index)) - rank)
