"""BatchNormalization at inference is an affine map.

    read    y = γ·(x − μ)/√(σ² + ε) + β  =  s·x + t,   s = γ/√(σ² + ε),   t = β − s·μ

Source: Ioffe & Szegedy 2015, Algorithm 2; ONNX operator BatchNormalization, versions 1 to 15.
Parameters may be stored in a wider type than the data (version 15); the map is float64 in any case.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.graph.constants import Const
from bnfold.core.graph.shapes import FLOATS
from bnfold.core.reasons import Reason, require
from bnfold.core.rule import Rule, rule
from bnfold.core.site import Site
from bnfold.errors import InvalidModelError

# What epsilon is where the attribute is missing: the float32 nearest to 1e-5, in every version.
_EPSILON = float(np.float32(1e-5))


@rule("BatchNormalization", versions={1, 6, 7, 9, 14, 15})
class BatchNorm(Rule):
    """See the module."""

    def read(self, norm: Site) -> tuple[int, Affine]:
        require(_is_inference(norm), Reason.TRAINING_MODE)
        extra = [out for out in norm.node.outputs[1:] if out.name]
        require(not extra, Reason.TRAINING_OUTPUTS)
        require(norm.attr("spatial", 1) == 1, Reason.SPATIAL_STATISTICS)
        rank = len(norm.shape(0))
        stored = [norm.const(index) for index in range(1, 5)]
        _check(norm, stored)
        gamma, beta, mean, variance = (const.exact for const in stored)
        spread = variance + float(norm.attr("epsilon", _EPSILON))
        require(bool(np.all(np.isfinite([gamma, beta, mean, spread]))), Reason.NOT_FINITE)
        require(bool(np.all(spread > 0)), Reason.BAD_VARIANCE)
        scale = gamma / np.sqrt(spread)
        channels = (1, -1) + (1,) * (rank - 2) if rank > 1 else ()
        return 0, Affine(scale.reshape(channels), (beta - scale * mean).reshape(channels))


def _is_inference(norm: Site) -> bool:
    if norm.version < 7:
        return norm.attr("is_test", 0) != 0
    return norm.attr("training_mode", 0) == 0


def _check(norm: Site, parameters: list[Const]) -> None:
    """Hold the parameters to what the specification says of them, as every runtime does."""
    channels = norm.shape(0)[1] if len(norm.shape(0)) > 1 else 1
    shapes = {const.shape for const in parameters}
    vectors = len(shapes) == 1 and all(const.rank == 1 for const in parameters)
    if not vectors or (isinstance(channels, int) and shapes != {(channels,)}):
        lengths = ", ".join(str(list(const.shape)) for const in parameters)
        problem = f"of shapes {lengths} for {channels or 'unknown'} channels"
    elif any(const.dtype not in FLOATS for const in parameters):
        problem = f"of types {', '.join(const.dtype.name for const in parameters)}"
    else:
        return
    raise InvalidModelError(
        f"BatchNormalization {norm.node.name or norm.node.outputs[0].name!r} has scale, B, mean and var "
        f"{problem}; export the model again, no runtime can execute it."
    )


@folds
def behind_conv(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(4, 3, 3, 3)))


@folds(opset=6, ir_version=3)
def is_test(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(4, 3, 3, 3)), is_test=1)


@folds
def default_epsilon(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    tiny = op.const([1e-5, 2e-5, 1e-6, 0.0])
    return op.BatchNormalization(y, op.weight(4), op.weight(4), op.weight(4), tiny)


@refuses(Reason.TRAINING_MODE)
def training_mode(op: Graph, x: Input = (2, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.BatchNormalization(y, *(op.positive(4) for _ in range(4)), training_mode=1, outputs=3)[0]


@refuses(Reason.TRAINING_MODE, opset=6)
def without_is_test(op: Graph, x: Input = (2, 3, 6, 6)) -> Outputs:
    return op.batch_norm(op.Conv(x, op.weight(4, 3, 3, 3)))


@refuses(Reason.TRAINING_OUTPUTS, opset=9)
def training_outputs(op: Graph, x: Input = (2, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.BatchNormalization(y, *(op.positive(4) for _ in range(4)), outputs=5)[0]


@refuses(Reason.SPATIAL_STATISTICS, opset=7)
def one_mean_per_position(op: Graph, x: Input = (2, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.BatchNormalization(y, *(op.positive(4, 4, 4) for _ in range(4)), spatial=0)


@refuses(Reason.NOT_CONSTANT)
def computed_scale(op: Graph, x: Input = (1, 3, 6, 6), gamma: Input = (4,)) -> Outputs:
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.BatchNormalization(y, gamma, *(op.positive(4) for _ in range(3)))


@refuses(Reason.OVERRIDABLE)
def overridable_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    gamma = op.positive(4, overridable=True)
    y = op.Conv(x, op.weight(4, 3, 3, 3))
    return op.BatchNormalization(y, gamma, *(op.positive(4) for _ in range(3)))


@refuses(Reason.BAD_VARIANCE)
def no_variance(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(2, 3, 3, 3))
    variance = op.const([1.0, 0.0])
    return op.BatchNormalization(y, *(op.positive(2) for _ in range(3)), variance, epsilon=0.0)


@refuses(Reason.NOT_FINITE)
def broken_scale(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.Conv(x, op.weight(2, 3, 3, 3))
    gamma = op.const([1.0, np.inf])
    return op.BatchNormalization(y, gamma, *(op.positive(2) for _ in range(3)))
