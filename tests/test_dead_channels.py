"""Channels that hold one value are carried into their readers and removed: exactly, or for a reason not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnx.shape_inference import InferenceError
from truth import differences, feeds_for, onnx_runtime, outputs_of, truth

import bnfold
from bnfold.cli import cli
from bnfold.core.example import Graph
from bnfold.core.reasons import Reason, silenced
from bnfold.pruning.flatten import flatten

SIZES = {"N": 2, "H": 9, "W": 8}
IMAGE = ("N", 3, "H", "W")
# Every axis behind the first layer is as long as there are channels, so that sizes tell nothing.
CUBE = (4, 3, 4, 4)
Write = Callable[[Graph, str], Any]


def written(
    write: Write, shape: tuple[Any, ...] = IMAGE, opset: int = 17, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    op = Graph(opset, dtype)
    made = write(op, op.input("x", shape))
    return op.finish([made] if isinstance(made, str) else list(made))


def norm(
    op: Graph, x: str, size: int, dead: Sequence[int], beta: float | None = None, gamma: float = 0.0
) -> str:
    """A batch norm with γ = ``gamma`` in some channels."""
    random = np.random.default_rng(size)
    gammas, betas = random.uniform(0.5, 1.5, size), random.normal(size=size)
    gammas[list(dead)] = gamma
    if beta is not None:
        betas[:] = beta
    stored = [op.const(gammas), op.const(betas), op.weight(size), op.positive(size)]
    return str(op.BatchNormalization(x, *stored))


def block(op: Graph, x: str, width: int, size: int, dead: Sequence[int], beta: float | None = None) -> str:
    """A layer whose batch norm has dead channels, and its activation."""
    return str(op.Relu(norm(op, op.Conv(x, op.weight(size, width, 3, 3), pads=[1] * 4), size, dead, beta)))


def pruned(model: onnx.ModelProto, below: float = 0.0) -> tuple[onnx.ModelProto, bnfold.Report]:
    """Prune without folding, and hold the result to the truth, to ONNX's check and to ONNX Runtime."""
    proto = ir.serde.deserialize_model(model)
    pruning = bnfold.PruneDeadChannelsPass(below=below)
    pruning(proto)
    result = ir.serde.serialize_model(proto)
    onnx.checker.check_model(result, full_check=True)
    feeds = feeds_for(model, SIZES)
    if below == 0:
        assert not differences(model, result, feeds)
    if (before := onnx_runtime(model, feeds)) is not None:
        after = onnx_runtime(result, feeds)
        assert after is not None
        assert [a.shape for a in before] == [b.shape for b in after]
    assert list(result.graph.output) == list(model.graph.output)
    return result, pruning.report


def shapes(model: onnx.ModelProto) -> dict[str, list[list[int]]]:
    """The weights of the layers, by operator."""
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, list[list[int]]] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            found.setdefault(node.op_type, []).append(stored.get(node.input[1], []))
    return found


def reasons(report: bnfold.Report) -> set[Reason]:
    return {refusal.reason for each in report.channels for refusal in each.refusals}


def separable(op: Graph, x: str) -> str:
    """A dead channel in front of a depthwise layer, and one behind it."""
    y = block(op, x, 3, 4, [1], beta=-1.0)
    y = op.Relu(norm(op, op.Conv(y, op.weight(4, 1, 3, 3), group=4, pads=[1] * 4), 4, [3]))
    return str(op.Conv(y, op.weight(2, 4, 1, 1)))


def gated(op: Graph, x: str) -> str:
    """Squeeze and excitation: a dead channel takes its gate with it."""
    y = block(op, x, 3, 4, [0, 2], beta=-1.0)
    gate = op.Relu(op.Conv(op.GlobalAveragePool(y), op.weight(2, 4, 1, 1)))
    gate = op.Sigmoid(op.Conv(gate, op.weight(4, 2, 1, 1), op.weight(4)))
    return str(op.Conv(op.Mul(y, gate), op.weight(2, 4, 3, 3), pads=[1] * 4))


def residual(op: Graph, x: str) -> str:
    """Two branches with a dead channel in common."""
    a = norm(op, op.Conv(x, op.weight(4, 3, 1, 1)), 4, [1, 2])
    b = norm(op, op.Conv(x, op.weight(4, 3, 1, 1)), 4, [1, 3])
    return str(op.Conv(op.Relu(op.Add(a, b)), op.weight(2, 4, 1, 1)))


def flat(op: Graph, x: str) -> str:
    y = op.MaxPool(block(op, x, 3, 4, [1, 2]), kernel_shape=[2, 2], strides=[2, 2])
    return str(op.Gemm(op.Flatten(y), op.weight(5, 64), op.weight(5), transB=1, alpha=0.5, beta=2.0))


def tokens(op: Graph, x: str) -> str:
    y = op.Add(op.Mul(op.MatMul(x, op.weight(4, 5)), op.const([0.0, 1.0, 2.0, 0.0, 3.0])), op.weight(5))
    return str(op.MatMul(op.Sigmoid(y), op.weight(5, 3)))


CUT: dict[str, tuple[Write, tuple[Any, ...], dict[str, list[list[int]]]]] = {
    "carried into a layer without padding": (
        lambda op, x: op.Conv(block(op, x, 3, 4, [1]), op.weight(2, 4, 3, 3)),
        IMAGE,
        {"Conv": [[3, 3, 3, 3], [2, 3, 3, 3]]},
    ),
    "zero into a padded layer": (
        lambda op, x: op.Conv(block(op, x, 3, 4, [1, 3], beta=-1.0), op.weight(2, 4, 3, 3), pads=[1] * 4),
        IMAGE,
        {"Conv": [[2, 3, 3, 3], [2, 2, 3, 3]]},
    ),
    "a filter of zeros": (
        lambda op, x: op.Conv(
            op.Tanh(op.Conv(x, op.const(np.eye(4, 3)[:, :, None, None]), op.weight(4))), op.weight(2, 4, 1, 1)
        ),
        IMAGE,
        {"Conv": [[3, 3, 1, 1], [2, 3, 1, 1]]},
    ),
    "a filter that sees dead channels alone": (
        lambda op, x: op.Conv(
            op.Conv(block(op, x, 3, 2, [0]), op.const(np.array([[1.0, 0.0], [0.5, 2.0]])[:, :, None, None])),
            op.weight(2, 2, 1, 1),
        ),
        IMAGE,
        {"Conv": [[1, 3, 3, 3], [1, 1, 1, 1], [2, 1, 1, 1]]},
    ),
    "through a depthwise layer": (separable, IMAGE, {"Conv": [[2, 3, 3, 3], [2, 1, 3, 3], [2, 2, 1, 1]]}),
    "with its gate": (gated, IMAGE, {"Conv": [[2, 3, 3, 3], [2, 2, 1, 1], [2, 2, 1, 1], [2, 2, 3, 3]]}),
    "where branches agree": (residual, IMAGE, {"Conv": [[3, 3, 1, 1], [3, 3, 1, 1], [2, 3, 1, 1]]}),
    "side by side": (
        lambda op, x: op.Conv(
            op.Concat(block(op, x, 3, 2, [1]), op.Sigmoid(x), block(op, x, 3, 3, [0]), axis=1),
            op.weight(2, 8, 1, 1),
        ),
        IMAGE,
        {"Conv": [[1, 3, 3, 3], [2, 3, 3, 3], [2, 6, 1, 1]]},
    ),
    "through a Flatten": (flat, ("N", 3, 8, 8), {"Conv": [[2, 3, 3, 3]], "Gemm": [[5, 32]]}),
    "into a bias that is a row": (
        lambda op, x: op.Gemm(op.Flatten(block(op, x, 3, 4, [1])), op.weight(256, 5), op.weight(1, 5)),
        ("N", 3, 8, 8),
        {"Conv": [[3, 3, 3, 3]], "Gemm": [[192, 5]]},
    ),
    "through a Reshape that names the size": (
        lambda op, x: op.Gemm(op.Reshape(block(op, x, 3, 4, [0]), op.ints(-1, 4 * 64)), op.weight(256, 3)),
        ("N", 3, 8, 8),
        {"Conv": [[3, 3, 3, 3]], "Gemm": [[192, 3]]},
    ),
    "through a mean and a Transpose": (
        lambda op, x: op.MatMul(
            op.Transpose(op.ReduceMean(block(op, x, 3, 4, [2]), axes=[3], keepdims=0), perm=[0, 2, 1]),
            op.weight(4, 3),
        ),
        ("N", 3, 8, 8),
        {"Conv": [[3, 3, 3, 3]], "MatMul": [[3, 3]]},
    ),
    "dense layers": (tokens, ("N", 6, 4), {"MatMul": [[4, 3], [3, 3]]}),
    "zero into a transposed layer": (
        lambda op, x: op.ConvTranspose(
            block(op, x, 3, 4, [1], beta=-2.0), op.weight(4, 2, 2, 2), strides=[2, 2]
        ),
        IMAGE,
        {"Conv": [[3, 3, 3, 3]], "ConvTranspose": [[3, 2, 2, 2]]},
    ),
    "interpolated": (
        lambda op, x: op.Conv(
            op.Resize(
                block(op, x, 3, 4, [1]), "", op.const([1.0, 1.0, 2.0, 2.0], TensorProto.FLOAT), mode="linear"
            ),
            op.weight(2, 4, 1, 1),
        ),
        ("N", 3, 8, 8),
        {"Conv": [[3, 3, 3, 3], [2, 3, 1, 1]]},
    ),
    "zero through a Pad": (
        lambda op, x: op.Conv(
            op.Pad(block(op, x, 3, 4, [1], beta=-1.0), op.ints(0, 0, 1, 1, 0, 0, 1, 1)),
            op.weight(2, 4, 3, 3),
        ),
        IMAGE,
        {"Conv": [[3, 3, 3, 3], [2, 3, 3, 3]]},
    ),
    "a value through a mirror": (
        lambda op, x: op.Conv(
            op.Pad(block(op, x, 3, 4, [1], beta=1.0), op.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
            op.weight(2, 4, 3, 3),
        ),
        IMAGE,
        {"Conv": [[3, 3, 3, 3], [2, 3, 3, 3]]},
    ),
    "one channel stays": (
        lambda op, x: op.Conv(block(op, x, 3, 3, [0, 1, 2]), op.weight(2, 3, 1, 1)),
        IMAGE,
        {"Conv": [[1, 3, 3, 3], [2, 1, 1, 1]]},
    ),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_what_is_cut(name: str, dtype: int) -> None:
    """Dead channels go from the layers that make and read them, and the outputs stay."""
    write, shape, left = CUT[name]
    model, report = pruned(written(write, shape, dtype=dtype))
    assert shapes(model) == left
    assert report.work_after < report.work_before


def unused(op: Graph, x: str) -> str:
    """A layer with a filter of zeros, in any opset."""
    return str(op.Conv(x, op.const(np.eye(4, 3)[:, :, None, None]), op.weight(4)))


def turned(op: Graph, x: str) -> str:
    """Channels and lines change places."""
    return str(op.Transpose(x, perm=[0, 2, 1, 3]))


def pooled(op: Graph, x: str) -> str:
    """Rows of channels, of which one is dead."""
    return str(op.Flatten(op.GlobalAveragePool(block(op, x, 3, 4, [1], 1.0))))


def conditional(op: Graph, y: str) -> str:
    """A body that reads a tensor from around it."""
    made = helper.make_node("ReduceMean", [y], ["mean"], axes=[1], keepdims=1)
    body = helper.make_graph([made], "body", [], [helper.make_tensor_value_info("mean", op.dtype, None)])
    return str(op.If(op.const(True, TensorProto.BOOL), then_branch=body, else_branch=body))


def test_interpolated_along_named_axes() -> None:
    """A Resize that names its axes leaves the channels alone if they are not among them."""

    def write(op: Graph, x: str) -> str:
        factors = op.const([2.0, 1.5], TensorProto.FLOAT)
        y = op.Resize(block(op, x, 3, 4, [1]), "", factors, axes=[-2, 3], mode="linear")
        return str(op.Conv(y, op.weight(2, 4, 1, 1)))

    model, _ = pruned(written(write, (1, 3, 8, 8), opset=19))
    assert shapes(model) == {"Conv": [[3, 3, 3, 3], [2, 3, 1, 1]]}


KEPT: dict[str, tuple[Write, Reason] | tuple[Write, Reason, int]] = {
    "a value before padding": (
        lambda op, x: op.Conv(block(op, x, 3, 4, [1], beta=1.0), op.weight(2, 4, 3, 3), pads=[1] * 4),
        Reason.PADDED_SHIFT,
    ),
    "a value that a pool averages with padding": (
        lambda op, x: op.Conv(
            op.AveragePool(
                block(op, x, 3, 4, [1], 1.0), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
            ),
            op.weight(2, 4, 1, 1),
        ),
        Reason.PADDED_SHIFT,
    ),
    "a value beside what a Pad fills in": (
        lambda op, x: op.Conv(
            op.Pad(block(op, x, 3, 4, [1], beta=1.0), op.ints(0, 0, 1, 1, 0, 0, 1, 1)),
            op.weight(2, 4, 3, 3),
        ),
        Reason.PADDED_SHIFT,
    ),
    "padded with more channels": (
        lambda op, x: op.Conv(
            op.Pad(block(op, x, 3, 4, [1]), op.ints(0, 1, 0, 0, 0, 0, 0, 0)), op.weight(2, 5, 1, 1)
        ),
        Reason.MIXED_AXES,
    ),
    "a value before a transposed layer": (
        lambda op, x: op.ConvTranspose(block(op, x, 3, 4, [1], 1.0), op.weight(4, 2, 2, 2), strides=[2, 2]),
        Reason.SHIFT_VARIES,
    ),
    "a depthwise layer on a graph input": (
        lambda op, x: op.Conv(
            op.Conv(x, op.const(np.array([1.0, 0.0, 2.0])[:, None, None, None]), group=3),
            op.weight(2, 3, 1, 1),
        ),
        Reason.GRAPH_INPUT,
    ),
    "a graph output": (lambda op, x: block(op, x, 3, 4, [1]), Reason.GRAPH_OUTPUT),
    "added to what varies": (
        lambda op, x: op.Conv(op.Add(block(op, x, 3, 3, [1]), x), op.weight(2, 3, 1, 1)),
        Reason.STILL_READ,
    ),
    "groups": (
        lambda op, x: op.Conv(block(op, x, 3, 4, [1]), op.weight(4, 2, 1, 1), group=2),
        Reason.GROUPED,
    ),
    "groups of a transposed layer": (
        lambda op, x: op.ConvTranspose(block(op, x, 3, 4, [1], -1.0), op.weight(4, 2, 1, 1), group=2),
        Reason.GROUPED,
    ),
    "a mask that is returned": (
        lambda op, x: (
            op.Conv((both := op.Dropout(block(op, x, 3, 4, [1]), outputs=2))[0], op.weight(2, 4, 1, 1)),
            both[1],
        ),
        Reason.OTHER_READER,
    ),
    "indices that are returned": (
        lambda op, x: (
            op.Conv(
                (both := op.MaxPool(block(op, x, 3, 4, [1]), kernel_shape=[2, 2], outputs=2))[0],
                op.weight(2, 4, 1, 1),
            ),
            both[1],
        ),
        Reason.OTHER_READER,
    ),
    "dropout in training": (
        lambda op, x: op.Conv(
            op.Dropout(block(op, x, 3, 4, [1], 1.0), op.const(0.5), op.const(True, TensorProto.BOOL), seed=7),
            op.weight(2, 4, 1, 1),
        ),
        Reason.DROPS,
    ),
    "a body reads it": (
        lambda op, x: op.Add(
            op.Conv(y := block(op, x, 3, 4, [1], 1.0), op.weight(1, 4, 1, 1)), conditional(op, y)
        ),
        Reason.SUBGRAPH,
    ),
    "a size that is named elsewhere": (
        lambda op, x: op.Conv(
            op.Resize(block(op, x, 3, 4, [1]), "", "", op.ints(4, 4, 8, 8)), op.weight(2, 4, 1, 1)
        ),
        Reason.UNKNOWN_SHAPE,
    ),
    "interpolated between channels": (
        lambda op, x: op.Conv(
            op.Resize(block(op, x, 3, 4, [1]), "", op.const([1.0, 2.0, 1.0, 1.0], TensorProto.FLOAT)),
            op.weight(2, 8, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "filled in beyond the border": (
        lambda op, x: op.Conv(
            op.Resize(
                block(op, x, 3, 4, [1], 1.0),
                op.const([0.0, 0.0, -1.0, 0.0, 1.0, 1.0, 2.0, 1.0]),
                op.const([1.0, 1.0, 2.0, 2.0], TensorProto.FLOAT),
                mode="linear",
                coordinate_transformation_mode="tf_crop_and_resize",
            ),
            op.weight(2, 4, 1, 1),
        ),
        Reason.PADDED_SHIFT,
    ),
    "pooled with other channels": (
        lambda op, x: op.Conv(
            turned(
                op, op.MaxPool(turned(op, block(op, x, 3, 4, [1], 1.0)), kernel_shape=[3, 1], pads=[1, 0] * 2)
            ),
            op.weight(2, 4, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "a mean over channels": (
        lambda op, x: op.Conv(op.ReduceMean(block(op, x, 3, 4, [1], 1.0), axes=[1]), op.weight(2, 1, 1, 1)),
        Reason.MIXED_AXES,
    ),
    "a layer along another axis": (
        lambda op, x: op.MatMul(block(op, x, 3, 4, [1], 1.0), op.weight(4, 2)),
        Reason.MIXED_AXES,
    ),
    "a depthwise layer along another axis": (
        lambda op, x: op.Conv(
            op.Conv(turned(op, block(op, x, 3, 4, [1], 1.0)), op.weight(4, 1, 1, 1), group=4),
            op.weight(2, 4, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "a transposed operand": (
        lambda op, x: op.Gemm(pooled(op, x), op.weight(4, 3), transA=1),
        Reason.OTHER_OPERAND,
    ),
    "a bias for each row": (
        lambda op, x: op.Gemm(pooled(op, x), op.weight(4, 3), op.weight(4, 1)),
        Reason.MIXED_AXES,
    ),
    "a bias that is not taken": (
        lambda op, x: op.Gemm(pooled(op, x), op.weight(4, 3), op.weight(3), beta=0.0),
        Reason.COSTS_A_NODE,
    ),
    "a stack of weights": (
        lambda op, x: op.MatMul(pooled(op, x), op.weight(2, 4, 3)),
        Reason.MIXED_AXES,
    ),
    "a mask for all channels": (
        lambda op, x: op.Conv(
            op.Add(
                block(op, x, 3, 4, [1], 1.0), norm(op, op.Conv(x, op.weight(1, 3, 1, 1)), 1, [0], beta=2.0)
            ),
            op.weight(2, 4, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "added along another axis": (
        lambda op, x: op.Conv(
            op.Add(block(op, x, 3, 4, [1], 1.0), turned(op, block(op, x, 3, 4, [1], 2.0))),
            op.weight(2, 4, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "side by side along another axis": (
        lambda op, x: op.Conv(
            op.Concat(block(op, x, 3, 4, [1], 1.0), turned(op, block(op, x, 3, 4, [1], 1.0)), axis=3),
            op.weight(2, 4, 1, 1),
        ),
        Reason.MIXED_AXES,
    ),
    "a slope for each column": (
        lambda op, x: op.Conv(
            op.PRelu(block(op, x, 3, 4, [1], 1.0), op.weight(4, 1, 4)), op.weight(2, 4, 1, 1)
        ),
        Reason.MIXED_AXES,
    ),
    "rows of another axis": (
        lambda op, x: op.Gemm(op.Flatten(turned(op, block(op, x, 3, 4, [1], 1.0))), op.weight(64, 2)),
        Reason.MIXED_AXES,
    ),
    "rows of two channels": (
        lambda op, x: op.Conv(
            op.Reshape(block(op, x, 3, 4, [1], 1.0), op.ints(4, 2, 8, 4)), op.weight(2, 2, 1, 1)
        ),
        Reason.MIXED_AXES,
    ),
    "the only channel squeezed": (
        lambda op, x: op.MatMul(
            op.Squeeze(norm(op, op.Conv(x, op.weight(1, 3, 1, 1)), 1, [0], beta=1.0), op.ints(1)),
            op.weight(4, 2),
        ),
        Reason.MIXED_AXES,
    ),
    "the last channel": (
        lambda op, x: op.Conv(
            norm(op, op.Conv(x, op.weight(1, 3, 1, 1)), 1, [0], beta=1.0), op.weight(2, 1, 1, 1)
        ),
        Reason.LAST_CHANNEL,
    ),
    "broadcast by an attribute": (
        lambda op, x: op.Conv(
            op.Add(
                unused(op, x),
                op.Transpose(op.ReduceMean(unused(op, x), axes=[3], keepdims=0), perm=[1, 0, 2]),
                broadcast=1,
                axis=0,
            ),
            op.weight(2, 4, 1, 1),
        ),
        Reason.UNKNOWN_VERSION,
        6,
    ),
    "an integer kernel": (
        lambda op, x: op.Conv(
            block(op, x, 3, 4, [1]), op.DequantizeLinear(op.integers(2, 4, 1, 1), op.const(0.5))
        ),
        Reason.QUANTIZED_SHIFT,
    ),
    "its shape is read": (
        lambda op, x: (op.Conv(y := block(op, x, 3, 4, [1]), op.weight(2, 4, 1, 1)), op.Shape(y)),
        Reason.NO_RULE,
    ),
    "a value that would have to be broadcast by an attribute": (
        lambda op, x: op.MatMul(op.Transpose(unused(op, x), perm=[0, 2, 3, 1]), op.weight(4, 2)),
        Reason.COSTS_A_NODE,
        6,
    ),
    "an operator nobody knows": (
        lambda op, x: op.Conv(op.Softmax(block(op, x, 3, 4, [1]), axis=1), op.weight(2, 4, 1, 1)),
        Reason.NO_RULE,
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept(name: str) -> None:
    """The channel stays, and the report says why."""
    write, reason, *opset = KEPT[name]
    original = written(write, CUBE, *opset)
    model, report = pruned(original)
    assert shapes(model) == shapes(original)
    assert reason in reasons(report)
    assert not report.changed


# Where silencing shows nothing.
NOT_SEEN = {
    # Channels vary, or are linked to one that stays: there is no condition, but the consequence of another.
    "a value that a pool averages with padding",
    "a value beside what a Pad fills in",
    "added to what varies",
    # The sizes are not read, so that there is no factor to compare.
    "a size that is named elsewhere",
    # An axis of one channel loses none.
    "the only channel squeezed",
    # Exact, but then integers no more.
    "an integer kernel",
    # A layer of no channels at all is exact, if nothing that kernels are made for.
    "the last channel",
}

# Where another condition stands behind the one in question, both are silenced.
SECOND_GUARD = {
    # What is returned has no reader.
    "a graph output": {Reason.NO_READER},
    # What is divided by zero is refused once more where it would be stored.
    "a bias that is not taken": {Reason.NOT_FINITE, Reason.OVERFLOWS},
}


@pytest.mark.parametrize("name", [name for name in KEPT if name not in NOT_SEEN])
def test_conditions_bear_load(name: str) -> None:
    """Without the condition the channel goes, and the model breaks or computes something else."""
    write, reason, *opset = KEPT[name]
    original = written(write, CUBE, *opset)
    proto, pruning = ir.serde.deserialize_model(original), bnfold.PruneDeadChannelsPass()
    try:
        with silenced(reason, *SECOND_GUARD.get(name, ())):
            pruning(proto)
        result = ir.serde.serialize_model(proto)
        onnx.checker.check_model(result, full_check=True)
        wrong = differences(original, result, feeds_for(original, SIZES))
    except (ValueError, IndexError, KeyError, InferenceError, bnfold.InvalidModelError):
        return
    assert pruning.report.changed
    assert wrong


def test_below_a_threshold() -> None:
    """Small γ count as 0: equal to the model with γ = 0, and near to the original."""
    original = written(
        lambda op, x: op.Conv(
            op.Relu(norm(op, op.Conv(x, op.weight(4, 3, 3, 3)), 4, [0, 2], beta=0.5, gamma=1e-4)),
            op.weight(2, 4, 3, 3),
        )
    )
    assert shapes(pruned(original)[0])["Conv"] == [[4, 3, 3, 3], [2, 4, 3, 3]]
    proto = ir.serde.deserialize_model(original)
    pruning = bnfold.PruneDeadChannelsPass(below=1e-2)
    pruning(proto)
    result = ir.serde.serialize_model(proto)
    assert shapes(result)["Conv"] == [[2, 3, 3, 3], [2, 2, 3, 3]]
    (row,) = (each for each in pruning.report.channels if each.op_type == "BatchNormalization")
    assert row.approximate == row.removed == (0, 2)
    yardstick = ir.serde.deserialize_model(original)
    flatten(yardstick, pruning.flattened)
    feeds = feeds_for(original, SIZES)
    compared = (original, ir.serde.serialize_model(yardstick), result)
    exact, flat, got = (outputs_of(m, truth(m, feeds))[0] for m in compared)
    np.testing.assert_allclose(got, flat, rtol=0, atol=1e-6 * np.abs(flat).max())
    assert 0 < np.abs(exact - got).max() < 0.1 * np.abs(exact).max()


def test_small_channels_that_stay_are_untouched() -> None:
    """A channel under the threshold that cannot go keeps its γ."""
    original = written(
        lambda op, x: op.Conv(
            op.Relu(norm(op, op.Conv(x, op.weight(4, 3, 3, 3)), 4, [0], beta=1.0, gamma=1e-3)),
            op.weight(2, 4, 3, 3),
            pads=[1] * 4,
        )
    )
    model, report = pruned(original, below=1e-1)
    assert not report.changed
    assert not differences(original, model, feeds_for(original, SIZES))


def test_command_measures_the_error(tmp_path: Path) -> None:
    """``--prune-below`` proves what it can, reports the rest, and exits 0."""
    path = tmp_path / "m.onnx"
    onnx.save(
        written(
            lambda op, x: op.Conv(
                norm(op, op.Conv(x, op.weight(4, 3, 1, 1)), 4, [1], gamma=1e-4), op.weight(2, 4, 1, 1)
            )
        ),
        path,
    )
    done = CliRunner().invoke(cli, ["fold", str(path), "--prune-below", "0.01"])
    assert done.exit_code == 0, done.output
    assert "Taking small γ for 0 changes the outputs by up to" in done.output
    for wrong in (
        ["--prune-below", "nan"],
        ["--prune-below", "-1"],
        ["--prune-below", "1", "--no-verify"],
        ["--prune-below", "1", "--no-prune"],
    ):
        refused = CliRunner().invoke(cli, ["fold", "-f", str(path), *wrong])
        assert refused.exit_code == 2
    exact = CliRunner().invoke(cli, ["fold", "-f", str(path)])
    assert exact.exit_code == 0
    assert "small γ" not in exact.output


def test_report_is_short(tmp_path: Path) -> None:
    """Channels in a row are named by the first and the last, a batch norm only if it says more."""
    dead = [0, 1, 2, 5, 7]
    model = written(lambda op, x: op.Conv(block(op, x, 3, 8, dead, beta=-1.0), op.weight(2, 8, 1, 1)))
    onnx.save(model, path := tmp_path / "m.onnx")
    done = CliRunner().invoke(cli, [str(path), "--dry-run"])
    assert "removed 0–2, 5, 7" in done.output
    assert done.output.count("removed") == 1


def test_dry_run_says_that_nothing_was_measured(tmp_path: Path) -> None:
    """Without writing, the report does not pass over the error of ``--prune-below``."""
    model = written(
        lambda op, x: op.Conv(
            op.Relu(norm(op, op.Conv(x, op.weight(4, 3, 1, 1)), 4, [1], gamma=1e-3)), op.weight(2, 4, 1, 1)
        )
    )
    onnx.save(model, path := tmp_path / "m.onnx")
    arguments = [str(path), "--dry-run", "--prune-below", "0.01"]
    assert "measured on writing" in CliRunner().invoke(cli, arguments).output
    assert "measured on writing" not in CliRunner().invoke(cli, arguments[:2]).output


def test_unfold_undoes_all(tmp_path: Path) -> None:
    """What was merged and pruned comes back bit for bit from the map."""
    path, made, back = (tmp_path / name for name in ("m.onnx", "m.json", "back.onnx"))
    onnx.save(ir.serde.serialize_model(ir.serde.deserialize_model(written(residual))), path)
    done = CliRunner().invoke(cli, ["fold", str(path), "--map", str(made)])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        cli, ["unfold", str(tmp_path / "m.folded.onnx"), "--map", str(made), "-o", str(back)]
    )
    assert done.exit_code == 0, done.output
    assert onnx.load(back).graph == onnx.load(path).graph


def test_selection() -> None:
    """``skip`` keeps a layer's channels; ``prune_below=None`` keeps all."""
    original = written(lambda op, x: op.Conv(block(op, x, 3, 4, [1]), op.weight(2, 4, 1, 1)))
    whole = shapes(original)
    assert shapes(bnfold.fold(original, prune_below=None, merge=False).model) == whole
    assert shapes(bnfold.fold(original, skip="batchnorm*", merge=False).model) == whole
    assert shapes(bnfold.fold(original, merge=False).model)["Conv"] == [[3, 3, 3, 3], [2, 3, 1, 1]]


def test_overflow_is_refused() -> None:
    """A carried value that float16 cannot hold stays where it is."""
    op = Graph(17, TensorProto.FLOAT16)
    x = op.input("x", IMAGE)
    y = norm(op, op.Conv(x, op.weight(4, 3, 1, 1)), 4, [1], beta=6e4)
    original = op.finish([op.Conv(y, op.const(np.full((2, 4, 1, 1), 2.0)))])
    model, report = pruned(original)
    assert shapes(model) == shapes(original)
    assert Reason.OVERFLOWS in reasons(report)


def test_threshold_is_checked() -> None:
    """A threshold below 0 or that is no number is an error at once."""
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            bnfold.PruneDeadChannelsPass(below=wrong)


def test_slimmed_digits() -> None:
    """A net trained with an L1 penalty on γ loses its dead channels and classifies every image as before."""
    folder = Path(__file__).parent.parent / "models"
    original = onnx.load(folder / "digits_slim.onnx")
    result = bnfold.fold(original)
    with np.load(folder / "digits_test.npz") as data:
        feeds = {"image": data["images"]}
    before, after = (onnx_runtime(each, feeds) for each in (original, result.model))
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before[0].argmax(axis=1), after[0].argmax(axis=1))
    assert result.report.pruned >= 1
    assert result.report.work_after < 0.9 * result.report.work_before
    assert result.model.ByteSize() < 0.9 * original.ByteSize()


def test_a_mask_that_nobody_reads() -> None:
    """It is as narrow as the output beside it, so it cannot keep its name either."""
    op = Graph(17)
    x = block(op, op.input("x", (1, 3, 6, 6)), 3, 4, [1])
    dropped, mask = op.Dropout(x, outputs=2)
    result, report = pruned(op.finish([op.Conv(dropped, op.weight(2, 4, 1, 1))], 8))
    assert any(layer.removed for layer in report.channels)
    assert mask not in {name for node in result.graph.node for name in node.output}
