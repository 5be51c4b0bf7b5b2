"""Branches that meet become one layer: exactly, only where it is worth it, and else for a stated reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from onnx_ir.passes import Sequential
from truth import Array, differences, feeds_for, graphs, onnx_runtime, outputs_of, truth

import bnfold
from bnfold.core.example import Graph
from bnfold.core.reasons import Reason, silenced

SIZES = {"N": 2, "H": 9, "W": 8, "L": 7}
DYNAMIC = ("N", 4, "H", "W")
Write = Callable[[Graph, str], Any]


def written(write: Write, shape: tuple[Any, ...] = DYNAMIC, **more: Any) -> onnx.ModelProto:
    op = Graph(more.pop("opset", 17), more.pop("dtype", TensorProto.FLOAT))
    made = write(op, op.input("x", shape))
    return op.finish([made] if isinstance(made, str) else list(made), **more)


def merged(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bnfold.Report]:
    """Fold and merge, and hold the result to the truth, to ONNX's check and to ONNX Runtime."""
    result = bnfold.fold(model, prune_below=None, **options)
    feeds = feeds_for(model, SIZES)
    assert not differences(model, result.model, feeds)
    onnx.checker.check_model(result.model, full_check=True)
    if (before := onnx_runtime(model, feeds)) is not None:
        after = onnx_runtime(result.model, feeds)
        assert after is not None
        for a, b in zip(before, after, strict=True):
            assert a.shape == b.shape
            room = 64 * np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0.0
            np.testing.assert_allclose(a, b, rtol=0, atol=room * max(1.0, np.abs(a).max()))
    return result.model, result.report


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for graph in graphs(model.graph) for node in graph.node)


def reasons(report: bnfold.Report) -> set[Reason]:
    return {refusal.reason for each in report.branches for refusal in each.refusals}


def conv(op: Graph, x: str, *shape: int, norm: bool = False, bias: bool = False, **attributes: Any) -> str:
    made = op.Conv(x, op.weight(*shape), *([op.weight(shape[0])] if bias else []), **attributes)
    return op.batch_norm(made, channels=shape[0]) if norm else str(made)


# ---------------------------------------------------------------- blocks as they are trained


def rep_vgg(op: Graph, x: str) -> str:
    """3×3, 1×1 and identity, a batch norm on each."""
    y = op.Add(conv(op, x, 4, 4, 3, 3, norm=True, pads=[1] * 4), conv(op, x, 4, 4, 1, 1, norm=True))
    return str(op.Add(y, op.batch_norm(x)))


def rep_mixer(op: Graph, x: str) -> str:
    """FastViT's token mixer: x + γ·(mixer(x) − norm(x))."""
    mixer = op.Add(conv(op, x, 4, 1, 3, 3, norm=True, group=4, pads=[1] * 4), op.batch_norm(x))
    return str(op.Add(x, op.Mul(op.weight(4, 1, 1), op.Sub(mixer, op.batch_norm(x)))))


def large_kernel(op: Graph, x: str) -> str:
    """RepLKNet and UniRepLKNet: a large kernel, a small one, a dilated one."""
    large = conv(op, x, 4, 1, 7, 7, norm=True, group=4, pads=[3] * 4)
    small = conv(op, x, 4, 1, 3, 3, norm=True, group=4, pads=[1] * 4)
    return str(op.Add(op.Add(large, small), conv(op, x, 4, 1, 3, 3, group=4, pads=[2] * 4, dilations=[2, 2])))


def diverse(op: Graph, x: str) -> str:
    """DBB: 3×3; 1×1; 1×1 then 3×3; 1×1 then average."""
    row = conv(op, conv(op, x, 4, 4, 1, 1), 4, 4, 3, 3, pads=[1] * 4)
    pooled = op.AveragePool(conv(op, x, 4, 4, 1, 1), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return str(op.Add(op.Add(conv(op, x, 4, 4, 3, 3, bias=True, pads=[1] * 4), row), op.Add(pooled, x)))


BLOCKS = [rep_vgg, rep_mixer, large_kernel, diverse]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_blocks_become_one_layer(block: Write, dtype: int) -> None:
    """A block as it is trained is one Conv, in every type, on any size."""
    model, report = merged(written(block, dtype=dtype))
    assert operators(model) == {"Conv": 1}
    assert report.joined >= 1
    assert all(row.status == "folded" for row in report.rows)


# Of float32, and what float64 adds in another order.
HALF_UNIT = 2.0**-24 * (1 + 1e-6)

# Networks of blocks as torch exports them in training, and how many layers are left (benchmarks/exporters).
EXPORTED = {"rep-vgg": 2, "mobile-one": 4, "rep-ghost": 4, "ac-net": 2}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "dynamo-raw"])
@pytest.mark.parametrize("name", EXPORTED)
def test_formula_of_the_authors(name: str, exporter: str) -> None:
    """An exported network is a plain one; each layer is its authors' formula, rounded to float32 once."""
    path = Path(__file__).parent.parent / "models" / "exporters" / f"{name}.{exporter}.onnx"
    original = onnx.load(path)
    model, report = merged(original)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"] * EXPORTED[name]
    assert report.joined >= 2
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    got = stored(model)
    for layer, expected in zip(layers, deployed(original), strict=True):
        for made, formula in zip(layer.input[1:], expected, strict=True):
            assert got[made].shape == formula.shape
            np.testing.assert_allclose(got[made], formula, rtol=HALF_UNIT, atol=1e-15)


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def deployed(model: onnx.ModelProto) -> list[tuple[Array, Array]]:
    """Weight and bias of each block in float64: kernels scaled by γ/√(σ² + ε), centred, added.

    The sum that an activation reads is a block; a branch is a Conv, a batch norm behind one, or a batch
    norm alone, which is a kernel of ones in its middle. Source: Ding et al. 2021, RepVGG, section 3.3.
    """
    known = {**stored(model), **truth(model, feeds_for(model))}
    nodes = {name: node for node in model.graph.node for name in node.output}

    def branches(name: str) -> list[onnx.NodeProto]:
        node = nodes[name]
        return [each for part in node.input for each in branches(part)] if node.op_type == "Add" else [node]

    def read(node: onnx.NodeProto) -> tuple[Array | None, Array, Array]:
        """The kernel, None for a batch norm alone, with the scale and the shift behind it."""
        scale, shift = np.ones(1), np.zeros(1)
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (known[name].astype(np.float64) for name in node.input[1:])
            epsilon = next(each.f for each in node.attribute if each.name == "epsilon")
            scale = gamma / np.sqrt(variance + epsilon)
            shift = beta - scale * mean
            node = nodes[node.input[0]]
        if node.op_type != "Conv":
            return None, scale, shift
        weight, *bias = (known[name].astype(np.float64) for name in node.input[1:])
        return weight, scale, shift + scale * (bias[0] if bias else 0.0)

    return [
        formula([read(branch) for branch in branches(node.input[0])])
        for node in model.graph.node
        if node.op_type == "Relu"
    ]


def formula(block: list[tuple[Array | None, Array, Array]]) -> tuple[Array, Array]:
    """The sum of a block's branches as one kernel and one bias."""
    kernels = [kernel for kernel, _, _ in block if kernel is not None]
    whole = np.max([kernel.shape for kernel in kernels], axis=0)
    channels, width, *taps = whole.tolist()
    identity = np.zeros((channels, width, 1, 1))
    identity[range(channels), np.arange(channels) % width] = 1.0
    weight, bias = np.zeros(whole), np.zeros(channels)
    for kernel, scale, shift in block:
        part = identity if kernel is None else kernel
        around = [(total - size) // 2 for total, size in zip(taps, part.shape[2:], strict=True)]
        weight += np.pad(scale.reshape(-1, 1, 1, 1) * part, [(0, 0), (0, 0), *((n, n) for n in around)])
        bias += shift
    return weight, bias


# ---------------------------------------------------------------- what else is one layer


def transposed(op: Graph, x: str, *shape: int, bias: bool = False, **attributes: Any) -> str:
    outputs = shape[1] * attributes.get("group", 1)
    return str(op.ConvTranspose(x, op.weight(*shape), *([op.weight(outputs)] if bias else []), **attributes))


def two(op: Graph, a: str, b: str) -> str:
    return str(op.Add(a, b))


JOINED: dict[str, tuple[Write, tuple[Any, ...], dict[str, int]]] = {
    "even kernel and identity": (
        lambda op, x: two(op, conv(op, x, 4, 1, 2, 2, group=4, pads=[1, 0, 0, 1]), x),
        DYNAMIC,
        {"Conv": 1},
    ),
    "asymmetric pads of one window": (
        lambda op, x: two(op, conv(op, x, 3, 4, 3, 3, pads=[2, 1, 0, 1]), conv(op, x, 3, 4, 1, 1)),
        DYNAMIC,
        {"Conv": 1},
    ),
    "same lower and upper": (
        lambda op, x: two(
            op, conv(op, x, 3, 4, 3, 3, auto_pad="SAME_LOWER"), conv(op, x, 3, 4, 2, 2, auto_pad="SAME_UPPER")
        ),
        DYNAMIC,
        {"Conv": 1},
    ),
    "valid": (
        lambda op, x: two(op, conv(op, x, 3, 4, 3, 3, auto_pad="VALID"), conv(op, x, 3, 4, 3, 3, bias=True)),
        DYNAMIC,
        {"Conv": 1},
    ),
    "same with a stride on a known size": (
        lambda op, x: two(
            op,
            conv(op, x, 3, 4, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
            conv(op, x, 3, 4, 1, 1, strides=[2, 2]),
        ),
        (1, 4, 8, 8),
        {"Conv": 1},
    ),
    "ends that agree on a known size": (
        lambda op, x: two(
            op,
            conv(op, x, 3, 4, 3, 3, pads=[1, 1, 0, 0], strides=[2, 2]),
            conv(op, x, 3, 4, 1, 1, strides=[2, 2]),
        ),
        (1, 4, 8, 8),
        {"Conv": 1},
    ),
    "dilated beside its centre": (
        lambda op, x: two(op, conv(op, x, 4, 4, 3, 3, dilations=[2, 2], pads=[2] * 4), op.batch_norm(x)),
        DYNAMIC,
        {"Conv": 1},
    ),
    "groups of different number": (
        lambda op, x: two(
            op, conv(op, x, 4, 2, 3, 3, group=2, pads=[1] * 4), conv(op, x, 4, 1, 1, 1, group=4)
        ),
        DYNAMIC,
        {"Conv": 1},
    ),
    "dense beside depthwise": (
        lambda op, x: two(
            op, conv(op, x, 4, 4, 3, 3, pads=[1] * 4), conv(op, x, 4, 1, 3, 3, group=4, pads=[1] * 4)
        ),
        DYNAMIC,
        {"Conv": 1},
    ),
    "one dimension": (
        lambda op, x: two(op, conv(op, x, 4, 4, 3, pads=[1, 1]), op.batch_norm(x)),
        ("N", 4, "L"),
        {"Conv": 1},
    ),
    "three dimensions": (
        lambda op, x: two(op, conv(op, x, 2, 2, 3, 3, 3, pads=[1] * 6), x),
        (1, 2, 4, 4, 4),
        {"Conv": 1},
    ),
    "minus a branch": (
        lambda op, x: op.Sub(op.batch_norm(x), conv(op, x, 4, 4, 3, 3, pads=[1] * 4)),
        DYNAMIC,
        {"Conv": 1},
    ),
    "a scalar factor": (
        lambda op, x: two(op, conv(op, x, 4, 4, 3, 3, pads=[1] * 4), op.Mul(x, op.const(0.5))),
        DYNAMIC,
        {"Conv": 1},
    ),
    "beside what is no branch": (
        lambda op, x: op.Sub(
            op.Add(conv(op, x, 4, 4, 1, 1), op.Sigmoid(x)), op.Sub(op.Tanh(x), conv(op, x, 4, 4, 1, 1))
        ),
        DYNAMIC,
        {"Conv": 1, "Add": 1, "Sub": 1, "Sigmoid": 1, "Tanh": 1},
    ),
    "two tensors, two layers each": (
        lambda op, x: op.Sum(
            conv(op, x, 4, 4, 1, 1),
            conv(op, y := op.Relu(x), 4, 4, 1, 1),
            conv(op, x, 4, 4, 1, 1),
            conv(op, y, 4, 4, 1, 1),
        ),
        DYNAMIC,
        {"Conv": 2, "Add": 1, "Relu": 1},
    ),
    "maps alone": (
        lambda op, x: two(op, op.batch_norm(x), op.Mul(x, op.weight(4, 1, 1))),
        DYNAMIC,
        {"BatchNormalization": 1},
    ),
    "one channel beside several": (
        lambda op, x: two(op, conv(op, x, 1, 4, 1, 1, bias=True), conv(op, x, 4, 4, 1, 1)),
        DYNAMIC,
        {"Conv": 1},
    ),
    "dense siblings": (
        lambda op, x: two(
            op,
            op.MatMul(x, op.weight(5, 7)),
            op.Gemm(x, op.weight(7, 5), op.weight(1, 7), transB=1, alpha=0.5, beta=2.0),
        ),
        ("N", 5),
        {"Gemm": 1},
    ),
    "dense and identity": (
        lambda op, x: two(op, op.Add(op.MatMul(x, op.weight(5, 5)), op.weight(5)), x),
        ("N", 3, 5),
        {"MatMul": 1, "Add": 1},
    ),
    "low rank beside dense": (
        lambda op, x: two(
            op, op.MatMul(x, op.weight(6, 6)), op.MatMul(op.MatMul(x, op.weight(6, 2)), op.weight(2, 6))
        ),
        ("N", 3, 6),
        {"MatMul": 1},
    ),
    "a scalar bias": (
        lambda op, x: two(op, op.Gemm(x, op.weight(5, 5), op.const(0.5)), x),
        ("N", 5),
        {"Gemm": 1},
    ),
    "transposed siblings": (
        lambda op, x: two(
            op,
            transposed(op, x, 4, 3, 3, 4, strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0]),
            op.batch_norm(transposed(op, x, 4, 3, 3, 3, strides=[2, 2]), channels=3),
        ),
        DYNAMIC,
        {"ConvTranspose": 1},
    ),
    "transposed in groups, dilated": (
        lambda op, x: op.Sub(
            transposed(op, x, 4, 2, 3, 3, group=2, dilations=[2, 1], pads=[2, 1, 2, 1], bias=True),
            transposed(op, x, 4, 1, 1, 1, group=4),
        ),
        DYNAMIC,
        {"ConvTranspose": 1},
    ),
    "transposed, one channel beside several": (
        lambda op, x: two(op, transposed(op, x, 4, 1, 1, 1, bias=True), transposed(op, x, 4, 3, 1, 1)),
        DYNAMIC,
        {"ConvTranspose": 1},
    ),
    "1×1 then 3×3, padded": (
        lambda op, x: conv(op, conv(op, x, 12, 4, 1, 1), 3, 12, 3, 3, pads=[1] * 4, bias=True),
        DYNAMIC,
        {"Conv": 1},
    ),
    "1×1 with bias then 3×3": (
        lambda op, x: conv(op, conv(op, x, 12, 4, 1, 1, bias=True), 3, 12, 3, 3),
        DYNAMIC,
        {"Conv": 1},
    ),
    "strided, dilated, grouped in a row": (
        lambda op, x: conv(
            op,
            conv(op, x, 12, 4, 3, 3, bias=True, pads=[1] * 4, strides=[2, 1]),
            3,
            4,
            2,
            2,
            bias=True,
            group=3,
            dilations=[1, 2],
            strides=[1, 2],
        ),
        DYNAMIC,
        {"Conv": 1},
    ),
    "dense in a row": (
        lambda op, x: op.MatMul(op.Add(op.MatMul(x, op.weight(4, 9)), op.weight(9)), op.weight(9, 3)),
        ("N", 3, 4),
        {"MatMul": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_is_one_layer(name: str) -> None:
    """Each graph is as small as it gets, and computes the same."""
    write, shape, left = JOINED[name]
    model, report = merged(written(write, shape))
    assert operators(model) == left
    assert all(each.work_after <= each.work_before for each in report.branches if each.into)


@pytest.mark.parametrize("seed", range(40))
def test_transposed_windows(seed: int) -> None:
    """Any windows whose outputs are as long become one, unless that is more work."""
    random = np.random.default_rng(seed)
    stride, groups, longer = (int(random.integers(*limits)) for limits in ((1, 4), (1, 3), (0, 3)))

    def window() -> tuple[int, dict[str, Any]]:
        while True:
            count, step = random.integers(1, 5), random.integers(1, 3)
            begin, extra = random.integers(0, 3), random.integers(0, stride)
            end = extra + (count - 1) * step - begin - longer
            if end >= 0:
                pads = {"pads": [int(begin), int(end)], "output_padding": [int(extra)]}
                return int(count), {"dilations": [int(step)], **pads}

    def write(op: Graph, x: str) -> str:
        windows = [window() for _ in range(2)]
        parts = (
            transposed(op, x, 4, 4 // groups, count, group=groups, strides=[stride], **more)
            for count, more in windows
        )
        return two(op, *parts)

    _, report = merged(written(write, ("N", 4, "L")))
    assert report.joined == 1 or reasons(report) == {Reason.MORE_WORK}


# ---------------------------------------------------------------- refused

REFUSED: dict[str, tuple[Write, tuple[Any, ...], Reason]] = {
    "an activation between": (
        lambda op, x: two(op, op.Relu(conv(op, x, 4, 4, 3, 3, pads=[1] * 4)), conv(op, x, 4, 4, 1, 1)),
        DYNAMIC,
        Reason.NOT_LINEAR,
    ),
    "read elsewhere": (
        lambda op, x: (two(op, y := conv(op, x, 4, 4, 1, 1), conv(op, x, 4, 4, 1, 1)), op.Relu(y)),
        DYNAMIC,
        Reason.OTHER_READER,
    ),
    "a graph output": (
        lambda op, x: (two(op, y := conv(op, x, 4, 4, 1, 1), conv(op, x, 4, 4, 1, 1)), y),
        DYNAMIC,
        Reason.GRAPH_OUTPUT,
    ),
    "other strides": (
        lambda op, x: two(op, conv(op, x, 3, 4, 2, 2, strides=[2, 2]), conv(op, x, 3, 4, 3, 3)),
        (1, 4, 4, 4),
        Reason.WINDOWS_DIFFER,
    ),
    "ends that may differ": (
        lambda op, x: two(
            op,
            conv(op, x, 3, 4, 3, 3, pads=[1, 1, 0, 0], strides=[2, 2]),
            conv(op, x, 3, 4, 1, 1, strides=[2, 2]),
        ),
        ("N", 4, "W", "W"),
        Reason.WINDOWS_DIFFER,
    ),
    "depthwise would become dense": (
        lambda op, x: two(op, conv(op, x, 16, 16, 1, 1), conv(op, x, 16, 1, 3, 3, group=16, pads=[1] * 4)),
        ("N", 16, "H", "W"),
        Reason.MORE_WORK,
    ),
    "a cross would become a square": (
        lambda op, x: two(
            op, conv(op, x, 4, 4, 1, 5, pads=[0, 2, 0, 2]), conv(op, x, 4, 4, 5, 1, pads=[2, 0, 2, 0])
        ),
        DYNAMIC,
        Reason.MORE_WORK,
    ),
    "a map along another axis": (
        lambda op, x: two(op, conv(op, x, 4, 4, 1, 1), op.Mul(x, op.weight(8))),
        (1, 4, 8, 8),
        Reason.MIXED_AXES,
    ),
    "a bias before padding": (
        lambda op, x: conv(op, conv(op, x, 12, 4, 1, 1, bias=True), 3, 12, 3, 3, pads=[1] * 4),
        DYNAMIC,
        Reason.PADDED_SHIFT,
    ),
    "padding between wide kernels": (
        lambda op, x: conv(op, conv(op, x, 12, 1, 3, 3, pads=[1] * 4), 1, 12, 3, 3, pads=[1] * 4),
        ("N", 1, "H", "W"),
        Reason.PADDED_BETWEEN,
    ),
    "a bottleneck": (
        lambda op, x: op.MatMul(op.MatMul(x, op.weight(6, 2)), op.weight(2, 6)),
        ("N", 6),
        Reason.MORE_WORK,
    ),
    "windows that overhang": (
        lambda op, x: two(
            op,
            conv(op, x, 4, 1, 1, 1, group=4, strides=[2, 2]),
            op.AveragePool(x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ),
        (1, 4, 8, 8),
        Reason.WINDOWS_DIFFER,
    ),
    "a mean without the padding": (
        lambda op, x: two(
            op,
            conv(op, x, 4, 4, 3, 3, pads=[1] * 4),
            op.AveragePool(x, kernel_shape=[3, 3], pads=[1] * 4),
        ),
        DYNAMIC,
        Reason.WINDOWS_DIFFER,
    ),
    "a transposed operand": (
        lambda op, x: two(
            op, op.Gemm(x, op.weight(5, 5), op.weight(5), transA=1), op.MatMul(x, op.weight(5, 5))
        ),
        (5, 5),
        Reason.MIXED_AXES,
    ),
    "a bias for each row": (
        lambda op, x: two(op, op.Gemm(x, op.weight(5, 5), op.weight(5, 1)), op.MatMul(x, op.weight(5, 5))),
        (5, 5),
        Reason.MIXED_AXES,
    ),
    "a stack of weights": (
        lambda op, x: two(op, op.MatMul(x, op.weight(2, 5, 5)), op.MatMul(x, op.weight(5, 5))),
        (2, 5, 5),
        Reason.MIXED_AXES,
    ),
    "a layer along another axis": (
        lambda op, x: two(op, conv(op, x, 4, 4, 1), op.MatMul(x, op.weight(4, 4))),
        (1, 4, 4),
        Reason.WINDOWS_DIFFER,
    ),
    "same with a stride on any size": (
        lambda op, x: two(
            op,
            conv(op, x, 3, 4, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
            conv(op, x, 3, 4, 1, 1, strides=[2, 2]),
        ),
        DYNAMIC,
        Reason.UNKNOWN_SHAPE,
    ),
    "transposed with other strides": (
        lambda op, x: two(
            op,
            transposed(op, x, 4, 3, 3, 3, strides=[2, 2]),
            transposed(op, x, 4, 3, 4, 4),
        ),
        (1, 4, 2, 2),
        Reason.WINDOWS_DIFFER,
    ),
    "transposed to a shape": (
        lambda op, x: two(
            op,
            transposed(op, x, 4, 3, 3, 3, output_shape=[8, 8]),
            transposed(op, x, 4, 3, 3, 3, pads=[1] * 4),
        ),
        (1, 4, 8, 8),
        Reason.WINDOWS_DIFFER,
    ),
    "transposed beside the tensor": (
        lambda op, x: two(op, transposed(op, x, 4, 4, 3, 3, pads=[1] * 4), op.batch_norm(x)),
        DYNAMIC,
        Reason.WINDOWS_DIFFER,
    ),
    "transposed in a row": (
        lambda op, x: transposed(op, transposed(op, x, 4, 4, 1, 1), 4, 1, 3, 3),
        DYNAMIC,
        Reason.WINDOWS_DIFFER,
    ),
    "an integer kernel": (
        lambda op, x: two(
            op,
            op.Conv(x, op.DequantizeLinear(op.integers(4, 4, 1, 1), op.const(0.5))),
            conv(op, x, 4, 4, 1, 1),
        ),
        DYNAMIC,
        Reason.QUANTIZED_SHIFT,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays(name: str) -> None:
    """Each graph is left as it is, for the reason that the report states."""
    write, shape, reason = REFUSED[name]
    original = written(write, shape)
    model, report = merged(original)
    assert operators(model) == operators(original)
    assert reason in reasons(report)
    assert not report.joined


# Exact, but not worth doing, or not wanted.
JUDGEMENTS = {Reason.MORE_WORK, Reason.OTHER_READER, Reason.GRAPH_OUTPUT, Reason.QUANTIZED_SHIFT}
# There is no equation to go wrong with.
NO_EQUATION = {
    "an activation between",
    "same with a stride on any size",
    "transposed beside the tensor",
    "transposed in a row",
}
SILENCED = [n for n, case in REFUSED.items() if case[2] not in JUDGEMENTS and n not in NO_EQUATION]


@pytest.mark.parametrize("name", SILENCED)
def test_conditions_bear_load(name: str) -> None:
    """Without the condition the merged graph is wrong, or cannot be made."""
    write, shape, reason = REFUSED[name]
    original = written(write, shape)
    try:
        with silenced(reason):
            result = bnfold.fold(original)
    except (bnfold.InvalidModelError, AssertionError):
        return
    assert result.report.joined
    try:
        assert differences(original, result.model, feeds_for(original, {"N": 2, "H": 8, "W": 3}))
    except ValueError:
        return


def test_computed_weight() -> None:
    """A branch whose weight is computed, or may be replaced by a caller, stays; the report says why."""
    op = Graph(17)
    x, w = op.input("x", DYNAMIC), op.input("w", (4, 4, 1, 1))
    y = op.Add(op.Conv(x, op.Tanh(w)), conv(op, x, 4, 4, 1, 1))
    z = op.Add(op.Conv(x, op.weight(4, 4, 1, 1, overridable=True)), conv(op, x, 4, 4, 1, 1))
    original = op.finish([y, z])
    model, report = merged(original)
    assert operators(model) == operators(original)
    assert {Reason.NOT_CONSTANT, Reason.OVERRIDABLE} <= reasons(report)
    frozen = bnfold.fold(original, freeze_initializers=True)
    assert frozen.report.joined == 1


def test_overflow_is_refused() -> None:
    """A sum of weights that float16 cannot hold is not made, and the model is untouched."""
    op = Graph(17, TensorProto.FLOAT16)
    x = op.input("x", DYNAMIC)
    big = np.full((4, 4, 1, 1), 6e4)
    original = op.finish([op.Add(op.Conv(x, op.const(big)), op.Conv(x, op.const(big)))])
    result = bnfold.fold(original)
    assert operators(result.model) == operators(original)
    assert Reason.OVERFLOWS in reasons(result.report)


def test_shared_weights_and_bodies() -> None:
    """A weight that several layers read stays what it is; bodies of an If are merged within themselves."""
    op = Graph(17)
    x, w = op.input("x", (1, 4, 5, 5)), op.weight(4, 4, 1, 1)
    shared = op.Add(op.Conv(x, w), op.Relu(op.Conv(op.Relu(x), w)))
    joined = op.Add(op.Conv(x, w), conv(op, x, 4, 4, 3, 3, pads=[1] * 4))
    model, _ = merged(op.finish([shared, joined]))
    assert operators(model) == {"Conv": 3, "Relu": 2, "Add": 1}


def test_passes_compose_and_round_once() -> None:
    """The passes stand in a Sequential; weights that are folded, then merged, are rounded once."""
    original = written(rep_vgg)
    model = ir.serde.deserialize_model(original)
    merging = bnfold.MergeBranchesPass()
    Sequential(bnfold.FoldPass(), merging, bnfold.PruneDeadChannelsPass())(model)
    assert merging.report.joined == 1
    (kernel,) = (v.const_value.numpy() for v in model.graph.initializers.values() if len(v.shape or ()) == 4)
    one = np.zeros((4, 4, 3, 3))
    for index in np.ndindex(4, 3, 3):
        feeds = {"x": np.zeros((1, 4, 3, 3))}
        feeds["x"][(0, *index)] = 1.0
        zero = outputs_of(original, truth(original, {"x": np.zeros((1, 4, 3, 3))}))[0]
        one[(slice(None), *index)] = (outputs_of(original, truth(original, feeds))[0] - zero)[0, :, 1, 1]
    np.testing.assert_allclose(kernel, one, rtol=2.0**-24, atol=1e-12)


def test_turned_off_and_selected() -> None:
    """``merge=False`` leaves branches apart, and so does ``skip`` for the sum's name."""
    original = written(lambda op, x: two(op, conv(op, x, 4, 4, 1, 1), conv(op, x, 4, 4, 1, 1)))
    assert operators(bnfold.fold(original, merge=False).model) == {"Conv": 2, "Add": 1}
    assert operators(bnfold.fold(original, skip="add_*").model) == {"Conv": 2, "Add": 1}
    assert operators(bnfold.fold(original).model) == {"Conv": 1}


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        ({"skip": "add_6*"}, {"Conv": 2, "Add": 2}),
        ({"skip": "add_7*"}, {"Conv": 3, "Add": 1, "Sub": 1}),
        ({"skip": "conv_4*"}, {"Conv": 2, "Add": 1}),
        ({"only": ["sub*", "add*"]}, {"Conv": 3, "Add": 1, "Sub": 1}),
        ({"only": ["sub*", "add*", "conv*"]}, {"Conv": 1}),
    ],
    ids=["a map", "a sum", "a layer", "sums alone", "all"],
)
def test_what_is_excluded_stays(selection: dict[str, Any], left: dict[str, int]) -> None:
    """A map, a sum or a layer that is to be left alone becomes part of no layer."""

    def write(op: Graph, x: str) -> str:
        a, b = conv(op, x, 4, 4, 1, 1), conv(op, x, 4, 4, 1, 1)
        shifted = op.Add(b, op.weight(4, 1, 1))
        return op.Sub(op.Add(a, shifted), conv(op, x, 4, 4, 1, 1))

    assert operators(merged(written(write), **selection)[0]) == left


@pytest.mark.parametrize("gemm", [False, True])
def test_dense_layers_before_opset_7(gemm: bool) -> None:
    """Where a bias broadcasts by an attribute, only what needs none is written."""

    def write(op: Graph, x: str) -> str:
        for shape in ((8, 8), (8, 4)):
            bias = [op.weight(shape[1])] if gemm else []
            x = op.node(*(["Gemm"] if gemm else ["MatMul"]), x, op.weight(*shape), *bias, **broadcast)
        return x

    broadcast = {"broadcast": 1} if gemm else {}
    original = written(write, (2, 8), opset=6)
    result = bnfold.fold(original)
    assert not differences(original, result.model, feeds_for(original))
    assert operators(result.model) == ({"Gemm": 2} if gemm else {"MatMul": 1})


def test_ports_and_names() -> None:
    """Names of tensors that survive keep their meaning, and graph outputs their declaration."""
    original = written(lambda op, x: (op.Relu(rep_vgg(op, x)), op.Shape(x)))
    model, _ = merged(original)
    assert list(model.graph.output) == list(original.graph.output)
    assert list(model.graph.input) == list(original.graph.input)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_opsets(opset: int) -> None:
    """Every opset from 7 on."""
    assert operators(merged(written(rep_vgg, opset=opset))[0]) == {"Conv": 1}


def test_merged_layers_merge_with_the_next() -> None:
    """What branches became may be one layer with the one behind: everything is done at once."""
    op = Graph(17)
    x = op.input("x", ("N", 5, 6))
    y = op.Add(op.MatMul(x, op.weight(6, 6)), op.Add(op.MatMul(x, op.weight(6, 6)), op.weight(6)))
    parts = [op.MatMul(y, op.weight(6, 6)) for _ in range(3)]
    model = op.finish([op.Add(parts[0], op.Sub(parts[1], parts[2]))], 8)
    result = bnfold.fold(model)
    assert Counter(node.op_type for node in result.model.graph.node) == {"MatMul": 1, "Add": 1}
    assert not bnfold.fold(result.model).report.changed
    assert not differences(model, result.model, feeds_for(model, {"N": 2}))
