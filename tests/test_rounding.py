"""Folded weights are correctly rounded, and what cannot be stored is refused.

The truth is computed here with 60 decimal digits from the stored numbers; nothing of bnfold's
arithmetic is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, getcontext
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.core import affine
from bnfold.core.example import Graph
from bnfold.core.graph.constants import Const
from bnfold.core.reasons import Reason, Refused
from bnfold.core.writing import rounding

getcontext().prec = 60

Array = NDArray[Any]

DTYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}

# Allowed distance from the exact value, in ulp: of the value for a product, of Σ|terms| for a sum.
PRODUCT = {"float16": 0.501, "bfloat16": 0.501, "float32": 0.501, "float64": 4.0}
SUM = {"float16": 1.0, "bfloat16": 1.0, "float32": 1.0, "float64": 4.0}


@dataclass(frozen=True)
class Layer:
    """A layer to fold into: how it is written, and which channels each of its weights connects."""

    shape: tuple[int, ...]
    x: tuple[int, ...]
    bias: int
    write: Callable[[Graph, str, str, str], str]
    channels: Callable[[Array], tuple[Array, Array]]


def _conv(groups: int) -> Callable[[Array], tuple[Array, Array]]:
    """W is M × C/groups × kernel."""

    def channels(index: Array) -> tuple[Array, Array]:
        filters, width = index.shape[1:3]
        return index[0], index[0] // (filters // groups) * width + index[1]

    return channels


def _conv_transpose(groups: int) -> Callable[[Array], tuple[Array, Array]]:
    """W is C × M/groups × kernel."""

    def channels(index: Array) -> tuple[Array, Array]:
        inputs, width = index.shape[1:3]
        return index[0] // (inputs // groups) * width + index[1], index[0]

    return channels


LAYERS = {
    "conv": Layer((4, 3, 3, 3), (1, 3, 5, 5), 4, lambda g, x, w, b: g.Conv(x, w, b), _conv(1)),
    "conv_grouped": Layer((4, 3, 3), (1, 6, 5), 4, lambda g, x, w, b: g.Conv(x, w, b, group=2), _conv(2)),
    "depthwise": Layer((6, 1, 3, 3), (1, 3, 5, 5), 6, lambda g, x, w, b: g.Conv(x, w, b, group=3), _conv(3)),
    "conv_transpose": Layer(
        (4, 3, 1, 1),
        (1, 4, 5, 5),
        6,
        lambda g, x, w, b: g.ConvTranspose(x, w, b, group=2),
        _conv_transpose(2),
    ),
    "gemm": Layer((5, 4), (2, 4), 5, lambda g, x, w, b: g.Gemm(x, w, b, transB=1), lambda i: (i[0], i[1])),
    "matmul": Layer((4, 5), (2, 4), 5, lambda g, x, w, b: g.MatMul(x, w), lambda i: (i[1], i[0])),
}
HOLDERS = {"conv": "Conv", "conv_grouped": "Conv", "depthwise": "Conv", "conv_transpose": "ConvTranspose"}


@dataclass
class Affine:
    """A batch norm in 60 digits: ``s·x + t`` and the magnitude of the terms that make ``t``."""

    scale: Array
    shift: Array
    terms: Array

    @classmethod
    def none(cls, channels: int) -> Affine:
        """The identity."""
        one, zero = np.full(channels, Decimal(1)), np.full(channels, Decimal(0))
        return cls(one, zero, zero)

    @classmethod
    def of(cls, node: onnx.NodeProto, stored: dict[str, Array]) -> Affine:
        """The map of a batch norm."""
        gamma, beta, mean, variance = (exact(stored[name]) for name in node.input[1:])
        epsilon = next(Decimal(item.f) for item in node.attribute if item.name == "epsilon")
        scale = gamma / np.array([(each + epsilon).sqrt() for each in variance])
        return cls(scale, beta - scale * mean, abs(beta) + abs(scale * mean))


def exact(array: Array) -> Array:
    """The stored numbers, exactly."""
    wide = np.asarray(array).astype(np.float64)
    return np.array([Decimal(float(item)) for item in wide.reshape(-1)]).reshape(wide.shape)


def in_ulp(distance: Array, size: Array, dtype: np.dtype[Any]) -> float:
    """The largest ``distance`` in units in the last place of ``size``."""
    info = ml_dtypes.finfo(dtype)
    last, lowest = int(info.nmant), math.frexp(float(info.tiny))[1]
    worst = 0.0
    for off, at in zip(distance.reshape(-1), size.reshape(-1), strict=True):
        exponent = max(math.frexp(float(at))[1], lowest)
        worst = max(worst, float(off / Decimal(2) ** (exponent - 1 - last)))
    return worst


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def graph(dtype: str, seed: int = 0, opset: int = 22) -> Graph:
    """A graph writer; opset 22 is the first in which Conv knows bfloat16."""
    return Graph(opset, DTYPES[dtype], seed)


def batch_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


@pytest.mark.parametrize("where", ["before", "after", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_rounded_once(kind: str, dtype: str, where: str) -> None:
    """Every weight is the exact product rounded once, every bias within 1 ulp of its terms.

    So it is, too, where a layer takes one batch norm from either side. Float64 is computed in itself: 4 ulp.
    """
    layer, seed = LAYERS[kind], len(kind) + len(where)
    g = graph(dtype, seed)
    x = g.input("x", layer.x)
    y = g.batch_norm(x) if where != "after" else x
    y = layer.write(g, y, g.weight(*layer.shape), g.weight(layer.bias) if kind != "matmul" else "")
    original = g.finish([g.batch_norm(y) if where != "before" else y])
    folded = bnfold.fold(original).model
    assert not batch_norms(folded)

    before, after = arrays(original), arrays(folded)
    (old,) = (node for node in original.graph.node if node.op_type != "BatchNormalization")
    (new,) = folded.graph.node
    weight = before[old.input[1]]
    out, into = layer.channels(np.indices(weight.shape))
    norms = [Affine.of(node, before) for node in batch_norms(original)]
    front = norms[0] if where != "after" else Affine.none(into.max() + 1)
    behind = norms[-1] if where != "before" else Affine.none(out.max() + 1)

    product = exact(weight) * front.scale[into] * behind.scale[out]
    got = after[new.input[1]]
    assert got.dtype == weight.dtype
    assert in_ulp(abs(exact(got) - product), abs(product), got.dtype) <= PRODUCT[dtype]

    bias = exact(before[old.input[2]]) if kind != "matmul" else np.full(layer.bias, Decimal(0))
    total, terms = bias.copy(), abs(bias)
    np.add.at(total, out.reshape(-1), (exact(weight) * front.shift[into]).reshape(-1))
    np.add.at(terms, out.reshape(-1), (abs(exact(weight)) * front.terms[into]).reshape(-1))
    total, terms = behind.scale * total + behind.shift, abs(behind.scale) * terms + behind.terms
    got = after[new.input[2]]
    assert got.dtype == weight.dtype
    assert in_ulp(abs(exact(got) - total), terms, got.dtype) <= SUM[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_five_maps_round_once(dtype: str) -> None:
    """A run of Mul, Add, Sub and Div is one map: the weight takes it with one rounding."""
    g = graph(dtype, 3)
    x = g.input("x", (1, 3, 4, 4))
    weight, divisor = g.weight(4, 3, 1, 1), g.positive(4, 1, 1)
    factors, offsets = [g.weight(4, 1, 1) for _ in range(2)], [g.weight(4, 1, 1) for _ in range(2)]
    y = g.Add(g.Mul(g.Conv(x, weight), factors[0]), offsets[0])
    original = g.finish([g.Sub(g.Mul(g.Div(y, divisor), factors[1]), offsets[1])])
    folded = bnfold.fold(original).model
    before, after = arrays(original), arrays(folded)
    (conv,) = folded.graph.node
    c, (m1, m2), (a1, a2) = (
        exact(before[divisor]),
        *([exact(before[n]) for n in names] for names in (factors, offsets)),
    )
    product = exact(before[weight]) * (m1 * m2 / c)[..., None]
    got = after[conv.input[1]]
    assert in_ulp(abs(exact(got) - product), abs(product), got.dtype) <= PRODUCT[dtype]
    total, terms = a1 / c * m2 - a2, abs(a1 / c * m2) + abs(a2)
    got = after[conv.input[2]].reshape(4, 1, 1)
    assert in_ulp(abs(exact(got) - total), terms, got.dtype) <= SUM[dtype]


def test_long_sum_in_float64() -> None:
    """A shift through 2048 channels of nine taps each, all of one sign, stays within 4 ulp in float64."""
    g = graph("float64")
    x = g.input("x", (1, 2048, 3, 3))
    y = g.Add(x, g.positive(2048, 1, 1))
    original = g.finish([g.Conv(y, g.positive(2, 2048, 3, 3), g.positive(2))])
    folded = bnfold.fold(original).model
    before, after = arrays(original), arrays(folded)
    conv = original.graph.node[1]
    shift, weight, bias = (exact(before[n]) for n in (original.graph.node[0].input[1], *conv.input[1:]))
    total = bias + (weight * shift).sum(axis=(1, 2, 3))
    got = after[folded.graph.node[0].input[2]]
    assert in_ulp(abs(exact(got) - total), total, got.dtype) <= 4.0


# A batch norm as plain numbers, one channel unless said otherwise.
def norm(g: Graph, x: str, channels: int, epsilon: float = 1e-5, **given: Any) -> str:
    """A batch norm with γ = σ² = 1 and β = μ = 0 but for what is given."""
    plain = {"gamma": 1.0, "beta": 0.0, "mean": 0.0, "variance": 1.0}
    parameters = [g.const(np.broadcast_to(given.get(name, plain[name]), channels)) for name in plain]
    return str(g.BatchNormalization(x, *parameters, epsilon=epsilon))


def reasons(result: Any) -> set[Reason]:
    return {refusal.reason for row in result.report.rows for refusal in row.refusals}


def assert_untouched(original: onnx.ModelProto, result: Any) -> None:
    assert not result.report.changed
    nodes, before = (
        [(n.op_type, [*n.input], [*n.output], [*n.attribute]) for n in model.graph.node]
        for model in (result.model, original)
    )
    assert nodes == before
    ours, theirs = arrays(result.model), arrays(original)
    assert {name: item.tobytes() for name, item in ours.items()} == {
        name: item.tobytes() for name, item in theirs.items()
    }


def conv_norm(dtype: str, weight: Array, bias: Any = 0.0, **given: Any) -> onnx.ModelProto:
    """1×1 convolution and batch norm; the last axes of ``weight`` are added."""
    g = graph(dtype)
    weight = np.asarray(weight, np.float64)[..., None, None]
    x = g.input("x", (1, weight.shape[1], 2, 2))
    y = g.Conv(x, g.const(weight), g.const(np.broadcast_to(bias, len(weight))))
    return g.finish([norm(g, y, len(weight), **given)])


@pytest.mark.parametrize(
    ("dtype", "weight", "given"),
    [
        ("float16", [[100.0]], {"gamma": 1000.0}),
        ("float16", [[1.0], [100.0]], {"gamma": [1.0, -1000.0]}),
        ("float16", [[1.0]], {"gamma": 2000.0, "mean": 40.0}),
        ("float16", [[65504.0]], {"gamma": 1.001, "epsilon": 0.0}),
        ("bfloat16", [[1e30]], {"gamma": 1e30}),
        ("float32", [[1e30]], {"gamma": 1e30}),
        ("float32", [[1e20]], {"variance": 0.0, "epsilon": 1e-38}),
    ],
)
def test_overflow_is_refused(dtype: str, weight: Array, given: dict[str, Any]) -> None:
    """A weight or a bias that would be infinite in its type is refused, and nothing has changed."""
    original = conv_norm(dtype, weight, **given)
    result = bnfold.fold(original)
    assert Reason.OVERFLOWS in reasons(result)
    assert_untouched(original, result)


def test_overflow_in_front_is_refused() -> None:
    """The same from above: both layers keep their weights, though only one would overflow."""
    g = graph("float16")
    y = norm(g, g.input("x", (1, 2, 2, 2)), 2, gamma=1000.0)
    weights = [g.const(np.full((1, 2, 1, 1), value)) for value in (1.0, 100.0)]
    original = g.finish([g.Conv(y, weight) for weight in weights])
    result = bnfold.fold(original)
    assert Reason.OVERFLOWS in reasons(result)
    assert_untouched(original, result)


@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("given", [{"gamma": 1e300, "mean": 1e300}, {"gamma": 1e200, "variance": 1e-300}])
def test_overflow_of_float64_is_refused(dtype: str, given: dict[str, Any]) -> None:
    """Where float64 itself overflows there is nothing to round: refused, without a warning."""
    original = conv_norm(dtype, [[1e200]], epsilon=0.0, **given)
    result = bnfold.fold(original)
    assert reasons(result) & {Reason.OVERFLOWS, Reason.NOT_FINITE}
    assert_untouched(original, result)


def test_largest_half_that_fits() -> None:
    """Rounding to nearest reaches the largest finite number from just above it."""
    original = conv_norm("float16", [[2.0]], gamma=32752.0, epsilon=0.0)
    folded = bnfold.fold(original).model
    weights = arrays(folded)[folded.graph.node[0].input[1]]
    assert weights.reshape(-1).tolist() == [65504.0]


@pytest.mark.parametrize(
    ("dtype", "weight"),
    [("float16", [[1e-4, 2e-4]]), ("float16", [[1.0, 1.0], [1e-5, -3e-5]]), ("float32", [[1e-20, 3e-21]])],
)
def test_underflow_of_a_channel_is_refused(dtype: str, weight: Array) -> None:
    """A channel whose largest weight loses more than 2 ulp below the normal numbers is not folded."""
    small = 1e-3 if dtype == "float16" else 1e-22
    original = conv_norm(dtype, weight, gamma=small)
    result = bnfold.fold(original)
    assert Reason.PRECISION_LOST in reasons(result)
    assert_untouched(original, result)


def test_one_subnormal_weight_is_no_reason() -> None:
    """Small weights beside large ones of the same channel may underflow: they hardly count there."""
    original = conv_norm("float16", [[1.0, 1e-4], [0.5, 3e-6]], gamma=1e-3)
    result = bnfold.fold(original)
    assert result.report.folded == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_of_large_weights_are_judged_whole(axis: int) -> None:
    """A weight is rounded some rows at a time, and yet every channel is held against its own largest value.

    Here the last rows are small. Along axis 1 they are parts of channels that are large elsewhere.
    """
    weight = np.ones((2500, 100), np.float16)
    weight[2400:] = 1e-4
    scale = np.full((2500, 1) if axis == 0 else (1, 100), 1e-3)
    const = Const.stored(ir.tensor(weight)).mapped(affine.Affine.of(scale))
    if axis == 0:
        with pytest.raises(Refused) as refused:
            rounding.stored(const)
        assert refused.value.reason is Reason.PRECISION_LOST
        const = Const.stored(ir.tensor(weight[:2400])).mapped(affine.Affine.of(scale[:2400]))
    np.testing.assert_array_equal(rounding.stored(const).numpy(), const.exact.astype(np.float16))


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT8E4M3FN, ir.DataType.BOOL])
def test_other_types_are_not_written(kind: ir.DataType) -> None:
    """No fold rounds to a type of so few values, or of none that could be rounded to."""
    const = Const.stored(ir.tensor(np.ones(3, kind.numpy()), kind)).mapped(affine.Affine.of(1.5))
    with pytest.raises(Refused) as refused:
        rounding.stored(const)
    assert refused.value.reason is Reason.NOT_FLOAT


def test_power_of_two_below_the_normal_numbers() -> None:
    """A subnormal weight that is exact loses nothing, and is folded."""
    original = conv_norm("float16", [[2.0**-10]], gamma=2.0**-10, epsilon=0.0)
    folded = bnfold.fold(original).model
    assert arrays(folded)[folded.graph.node[0].input[1]].reshape(-1).tolist() == [2.0**-20]


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"gamma": np.nan}, Reason.NOT_FINITE),
        ({"beta": [0.0, np.inf]}, Reason.NOT_FINITE),
        ({"mean": [np.nan, 0.0]}, Reason.NOT_FINITE),
        ({"variance": np.inf}, Reason.NOT_FINITE),
        ({"variance": [1.0, np.nan]}, Reason.NOT_FINITE),
        ({"variance": [1.0, -1.0]}, Reason.BAD_VARIANCE),
        ({"variance": 0.0, "epsilon": 0.0}, Reason.BAD_VARIANCE),
        ({"variance": -(2.0**-10), "epsilon": 2.0**-10}, Reason.BAD_VARIANCE),
    ],
)
def test_broken_statistics_are_refused(given: dict[str, Any], reason: Reason, direction: str) -> None:
    """Statistics that are no numbers, or whose variance plus epsilon is not positive, fold nowhere."""
    g = graph("float32")
    x = g.input("x", (1, 2, 2, 2))
    up = direction == "up"
    y = norm(g, g.Conv(x, g.weight(2, 2, 1, 1)) if up else x, 2, **given)
    original = g.finish([y if up else g.Conv(y, g.weight(2, 2, 1, 1))])
    result = bnfold.fold(original)
    assert reason in reasons(result)
    assert_untouched(original, result)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_refused(value: float) -> None:
    """A weight that is no number is left as it is."""
    original = conv_norm("float32", [[1.0, value]])
    result = bnfold.fold(original)
    assert Reason.NOT_FINITE in reasons(result)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize(
    "given",
    [
        {"variance": 5.6e-45},
        {"variance": 5.6e-45, "epsilon": 0.0},
        {"variance": 1e-12, "gamma": 889.0, "mean": 3.0},
        {"variance": -9.9e-6, "epsilon": 1e-5, "mean": 0.5},
        {"gamma": 0.0, "mean": 1e30, "beta": 0.25},
    ],
    ids=["subnormal variance", "no epsilon", "gain 889", "nearly cancelled", "dead channel"],
)
def test_extreme_statistics_are_exact(given: dict[str, Any]) -> None:
    """Statistics of real checkpoints at their most extreme fold with the same one rounding."""
    original = conv_norm("float32", [[0.5, -0.25], [3e-3, 1.0]], bias=0.125, **given)
    result = bnfold.fold(original)
    assert result.report.folded == 1
    before, after = arrays(original), arrays(result.model)
    conv, node = original.graph.node
    affine = Affine.of(node, before)
    product = exact(before[conv.input[1]]) * affine.scale[:, None, None, None]
    got = [after[name] for name in result.model.graph.node[0].input[1:]]
    assert in_ulp(abs(exact(got[0]) - product), abs(product), got[0].dtype) <= PRODUCT["float32"]
    term = affine.scale * exact(before[conv.input[2]])
    total, terms = term + affine.shift, abs(term) + affine.terms
    assert in_ulp(abs(exact(got[1]) - total), terms, got[1].dtype) <= SUM["float32"]


def test_epsilon_is_the_stored_float() -> None:
    """Epsilon is the float32 that the attribute holds, and the float32 nearest 1e-5 where it is absent."""
    tiny = [1e-9, 2e-5]
    with_epsilon = conv_norm("float64", [[1.0], [1.0]], variance=tiny, epsilon=1e-5)
    without = onnx.ModelProto()
    without.CopyFrom(with_epsilon)
    del without.graph.node[1].attribute[:]
    expected = [float(1 / (Decimal(v) + Decimal(float(np.float32(1e-5)))).sqrt()) for v in tiny]
    for model in (with_epsilon, without):
        folded = bnfold.fold(model).model
        got = arrays(folded)[folded.graph.node[0].input[1]].reshape(-1)
        np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_shared_weights_are_rounded_from_the_stored_ones() -> None:
    """Two layers that share a weight get a constant each, both rounded from the shared original."""
    g = graph("float32", 5)
    x = g.input("x", (1, 3, 4, 4))
    weight = g.weight(4, 3, 3, 3)
    original = g.finish([g.batch_norm(g.Conv(x, weight)) for _ in range(2)])
    folded = bnfold.fold(original).model
    before, after = arrays(original), arrays(folded)
    for node, conv in zip(batch_norms(original), folded.graph.node, strict=True):
        product = exact(before[weight]) * Affine.of(node, before).scale[:, None, None, None]
        got = after[conv.input[1]]
        assert in_ulp(abs(exact(got) - product), abs(product), got.dtype) <= PRODUCT["float32"]


def test_subnormal_results_in_half_are_rounded_once() -> None:
    """Below the normal numbers of float16 the one rounding is to the subnormal grid."""
    weight = np.array([[1.0, *(1e-4 * np.arange(1, 60))]])
    original = conv_norm("float16", weight, gamma=3e-3)
    folded = bnfold.fold(original).model
    before, after = arrays(original), arrays(folded)
    node = batch_norms(original)[0]
    product = exact(before[original.graph.node[0].input[1]]) * Affine.of(node, before).scale[0]
    got = after[folded.graph.node[0].input[1]]
    assert helper.np_dtype_to_tensor_dtype(got.dtype) == TensorProto.FLOAT16
    assert in_ulp(abs(exact(got) - product), abs(product), got.dtype) <= 0.501
