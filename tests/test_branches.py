"""Branches that meet become one layer: exactly, only where it is worth it, and else for a stated reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from onnx_ir.passes import Sequential
from truth import differences, feeds_for, graphs, onnx_runtime, outputs_of, truth

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


def rep_vgg_strided(op: Graph, x: str) -> str:
    y = conv(op, x, 6, 4, 3, 3, norm=True, pads=[1] * 4, strides=[2, 2])
    return str(op.Add(y, conv(op, x, 6, 4, 1, 1, norm=True, strides=[2, 2])))


def mobile_one(op: Graph, x: str) -> str:
    """Four depthwise branches, a 1×1 one and the identity."""
    branches = [conv(op, x, 4, 1, 3, 3, norm=True, group=4, pads=[1] * 4) for _ in range(4)]
    branches += [conv(op, x, 4, 1, 1, 1, norm=True, group=4), op.batch_norm(x)]
    while len(branches) > 1:
        branches = [op.Add(branches[0], branches[1]), *branches[2:]]
    return str(branches[0])


def rep_ghost(op: Graph, x: str) -> str:
    """A depthwise layer beside a batch norm."""
    return str(op.Add(conv(op, x, 4, 1, 3, 3, norm=True, group=4, pads=[1] * 4), op.batch_norm(x)))


def ac_net(op: Graph, x: str) -> str:
    """A square kernel, a lying and a standing one."""
    square = conv(op, x, 5, 4, 3, 3, norm=True, pads=[1, 1, 1, 1])
    lying = conv(op, x, 5, 4, 1, 3, norm=True, pads=[0, 1, 0, 1])
    standing = conv(op, x, 5, 4, 3, 1, norm=True, pads=[1, 0, 1, 0])
    return str(op.Sum(square, lying, standing))


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


BLOCKS = [rep_vgg, rep_vgg_strided, mobile_one, rep_ghost, ac_net, rep_mixer, large_kernel, diverse]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_blocks_become_one_layer(block: Write, dtype: int) -> None:
    """A block as it is trained is one Conv, in every type, on any size."""
    model, report = merged(written(block, dtype=dtype))
    assert operators(model) == {"Conv": 1}
    assert report.joined >= 1
    assert all(row.status == "folded" for row in report.rows)


def test_formula_of_the_authors() -> None:
    """RepVGG's block is its authors' formula: kernels padded to 3×3, scaled by γ/√(σ² + ε), added."""
    random, c, epsilon = np.random.default_rng(0), 3, 0.125
    kernels = {
        "3": random.normal(size=(c, c, 3, 3)),
        "1": np.zeros((c, c, 3, 3)),
        "0": np.zeros((c, c, 3, 3)),
    }
    kernels["1"][:, :, 1:2, 1:2] = random.normal(size=(c, c, 1, 1))
    kernels["0"][range(c), range(c), 1, 1] = 1.0
    op = Graph(17)
    x = op.input("x", ("N", c, "H", "W"))
    weight, bias, outputs = 0.0, 0.0, []
    for name, kernel in kernels.items():
        gamma, beta, mean = random.normal(size=(3, c))
        variance = random.uniform(0.5, 2.0, c)
        given = {"3": kernel, "1": kernel[:, :, 1:2, 1:2]}.get(name)
        y = x if given is None else op.Conv(x, op.const(given), pads=[1] * 4 if name == "3" else [0] * 4)
        stored = [op.const(v) for v in (gamma, beta, mean, variance)]
        outputs.append(op.BatchNormalization(y, *stored, epsilon=epsilon))
        scale = gamma / np.sqrt(variance + epsilon)
        weight, bias = weight + kernel * scale[:, None, None, None], bias + beta - scale * mean
    model, _ = merged(op.finish([op.Add(op.Add(outputs[0], outputs[1]), outputs[2])]))
    got = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (node,) = model.graph.node
    np.testing.assert_allclose(got[node.input[1]], weight, rtol=3e-7, atol=3e-7)
    np.testing.assert_allclose(got[node.input[2]], bias, rtol=3e-7, atol=3e-7)


# ---------------------------------------------------------------- what else is one layer


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


JUDGEMENTS = {Reason.MORE_WORK, Reason.NOT_LINEAR, Reason.OTHER_READER, Reason.GRAPH_OUTPUT}


@pytest.mark.parametrize("name", [n for n, case in REFUSED.items() if case[2] not in JUDGEMENTS])
def test_conditions_bear_load(name: str) -> None:
    """Without the condition the merged graph is wrong, or cannot be made."""
    write, shape, reason = REFUSED[name]
    original = written(write, shape)
    try:
        with silenced(reason):
            result = bnfold.fold(original)
    except (ValueError, AssertionError, IndexError):
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
