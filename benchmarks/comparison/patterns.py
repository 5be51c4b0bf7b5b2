"""Small nets of one pattern each: the places in which networks have a batch norm, four times in a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from bnfold.core.example import Graph

Build = Callable[[Graph], str]

PATTERNS: dict[str, Build] = {}

_IMAGE, _TOKENS, _ROWS = (1, 32, 56, 56), (1, 196, 192), (32, 384)
_BLOCKS = 4


def pattern(build: Build) -> Build:
    """Register a pattern under its function's name; the docstring says where it is found."""
    PATTERNS[build.__name__.replace("_", "-")] = build
    return build


def write(name: str, path: Path) -> None:
    """Write the net of one pattern."""
    graph = Graph(opset=17)
    onnx.save(graph.finish([PATTERNS[name](graph)]), path)


def _image(op: Graph) -> str:
    return op.input("image", _IMAGE)


def _weight(op: Graph, *shape: int, fan: int = 0) -> str:
    """A weight that keeps the size of values."""
    deviation = (1 / (fan or int(np.prod(shape[1:])))) ** 0.5
    return op.const(np.random.default_rng(sum(shape)).normal(0, deviation, shape))


def _conv(op: Graph, x: str, out: int = 32, given: int = 32, size: int = 3) -> str:
    pad = size // 2
    return str(op.Conv(x, _weight(op, out, given, size, size), pads=[pad] * 4))


def _norm(op: Graph, x: str, channels: int) -> str:
    return op.batch_norm(x, channels, positive=True)


@pattern
def conv_bn(op: Graph) -> str:
    """Conv, batch norm, Relu: what every folder knows."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = op.Relu(_norm(op, _conv(op, x), 32))
    return x


@pattern
def depthwise_hardswish(op: Graph) -> str:
    """Depthwise and pointwise Conv, batch norm, HardSwish (MobileNetV3)."""
    x = _image(op)
    for _ in range(_BLOCKS):
        depth = op.Conv(x, _weight(op, 32, 1, 3, 3), pads=[1] * 4, group=32)
        x = op.HardSwish(_norm(op, depth, 32))
        x = op.HardSwish(_norm(op, _conv(op, x, size=1), 32))
    return x


@pattern
def decomposed(op: Graph) -> str:
    """Conv, Mul and Add by constants, Relu: batch norm as Keras and TensorFlow export it."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = op.Mul(_conv(op, x), op.positive(32, 1, 1))
        x = op.Relu(op.Add(x, op.weight(32, 1, 1)))
    return x


@pattern
def conv_transpose_bn(op: Graph) -> str:
    """ConvTranspose, batch norm, Relu (decoders, GANs)."""
    x = op.input("image", (1, 32, 28, 28))
    for _ in range(2):
        x = op.ConvTranspose(x, _weight(op, 32, 32, 2, 2), strides=[2, 2])
        x = op.Relu(_norm(op, x, 32))
    return x


@pattern
def gemm_bn(op: Graph) -> str:
    """Gemm, batch norm, Relu (multi-layer perceptrons)."""
    x = op.input("rows", _ROWS)
    for _ in range(_BLOCKS):
        x = op.Relu(_norm(op, op.Gemm(x, _weight(op, 384, 384), op.weight(384), transB=1), 384))
    return x


@pattern
def matmul_add_bn(op: Graph) -> str:
    """MatMul, Add, batch norm, Relu: a dense layer as Keras exports it."""
    x = op.input("rows", _ROWS)
    for _ in range(_BLOCKS):
        x = op.Relu(_norm(op, op.Add(op.MatMul(x, _weight(op, 384, 384)), op.weight(384)), 384))
    return x


@pattern
def transpose_bn(op: Graph) -> str:
    """Dense layer on tokens, batch norm between two Transposes (LeViT, PointNet)."""
    x = op.input("tokens", _TOKENS)
    for _ in range(_BLOCKS):
        x = op.Add(op.MatMul(x, _weight(op, 192, 192)), op.weight(192))
        x = op.Relu(op.Transpose(_norm(op, op.Transpose(x, perm=[0, 2, 1]), 192), perm=[0, 2, 1]))
    return x


@pattern
def reshape_bn(op: Graph) -> str:
    """Dense layer, Reshape to rows, batch norm, and back (LeViT's flattened norm)."""
    x = op.input("tokens", _TOKENS)
    for _ in range(_BLOCKS):
        x = op.Reshape(op.MatMul(x, _weight(op, 192, 192)), op.ints(196, 192))
        x = op.Relu(op.Reshape(_norm(op, x, 192), op.ints(1, 196, 192)))
    return x


@pattern
def bn_conv(op: Graph) -> str:
    """Batch norm in front of a Conv without padding."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = op.Relu(_conv(op, _norm(op, x, 32), size=1))
    return x


@pattern
def bn_padded_conv(op: Graph) -> str:
    """Batch norm in front of a Conv that pads with zeros: only its scale can move."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = op.Relu(_conv(op, _norm(op, x, 32)))
    return x


@pattern
def bn_gemm(op: Graph) -> str:
    """Batch norm in front of a Gemm (tabular nets)."""
    x = op.input("rows", _ROWS)
    for _ in range(_BLOCKS):
        x = op.Relu(op.Gemm(_norm(op, x, 384), _weight(op, 384, 384), op.weight(384), transB=1))
    return x


@pattern
def conv_relu_bn_conv(op: Graph) -> str:
    """Conv, Relu, batch norm, Conv without padding."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = _norm(op, op.Relu(_conv(op, x, size=1)), 32)
    return _conv(op, x, size=1)


@pattern
def preactivation(op: Graph) -> str:
    """Residual blocks with batch norm and Relu first (ResNet-v2)."""
    x = _conv(op, _image(op))
    for _ in range(_BLOCKS):
        inner = _conv(op, op.Relu(_norm(op, x, 32)), size=1)
        x = op.Add(x, _conv(op, op.Relu(_norm(op, inner, 32))))
    return x


@pattern
def residual_bn(op: Graph) -> str:
    """Two Convs, Add, batch norm, Relu."""
    x = _image(op)
    for _ in range(_BLOCKS):
        x = op.Relu(_norm(op, op.Add(_conv(op, x), _conv(op, x, size=1)), 32))
    return x


@pattern
def concat_bn(op: Graph) -> str:
    """Concat of two Convs, batch norm, Relu (Inception, DenseNet)."""
    x = _image(op)
    for _ in range(_BLOCKS):
        parts = [_conv(op, x, out=16), _conv(op, x, out=16, size=1)]
        x = op.Relu(_norm(op, op.Concat(*parts, axis=1), 32))
    return x


@pattern
def dense_block(op: Graph) -> str:
    """Growing Concat, batch norm, Relu, Conv (DenseNet)."""
    x, channels = _image(op), 32
    for _ in range(_BLOCKS):
        inner = op.Relu(_norm(op, x, channels))
        x = op.Concat(x, _conv(op, inner, out=16, given=channels), axis=1)
        channels += 16
    return op.Relu(_norm(op, x, channels))


@pattern
def resize_bn(op: Graph) -> str:
    """Conv, Resize to twice the size, batch norm, Relu (decoders)."""
    x = op.input("image", (1, 32, 28, 28))
    for _ in range(2):
        scales = op.const([1, 1, 2, 2], onnx.TensorProto.FLOAT)
        up = op.Resize(_conv(op, x), "", scales, mode="nearest")
        x = op.Relu(_norm(op, up, 32))
    return x


@pattern
def pool_bn(op: Graph) -> str:
    """Conv, average pooling or max pooling, batch norm, Relu."""
    x = _image(op)
    for pool in (op.AveragePool, op.MaxPool) * 2:
        pooled = pool(_conv(op, x), kernel_shape=[2, 2], strides=[1, 1])
        x = op.Relu(_norm(op, pooled, 32))
    return x


@pattern
def depth_to_space_bn(op: Graph) -> str:
    """Conv, DepthToSpace, batch norm, Relu (super-resolution)."""
    x = op.input("image", (1, 32, 28, 28))
    for _ in range(2):
        up = op.DepthToSpace(_conv(op, x, out=128), blocksize=2)
        x = op.Relu(_norm(op, up, 32))
    return x


@pattern
def pooled_neck(op: Graph) -> str:
    """Conv, global pooling, Flatten, batch norm, Gemm (re-identification heads)."""
    x = op.Relu(_norm(op, _conv(op, _image(op)), 32))
    x = op.Flatten(op.GlobalAveragePool(x))
    return str(op.Gemm(_norm(op, x, 32), _weight(op, 1000, 32), op.weight(1000), transB=1))


@pattern
def shared_weights(op: Graph) -> str:
    """One Conv's weights used twice, each time with a batch norm of its own (detector heads)."""
    x, weight = _image(op), _weight(op, 32, 32, 3, 3)
    for _ in range(_BLOCKS):
        x = op.Relu(_norm(op, op.Conv(x, weight, pads=[1] * 4), 32))
    return x


@pattern
def bn_lstm(op: Graph) -> str:
    """Batch norm over the features in front of an LSTM (speech)."""
    size = 128
    x = op.Transpose(_norm(op, op.input("sound", (1, size, 64)), size), perm=[2, 0, 1])
    weights = [_weight(op, 1, 4 * size, size, fan=size) for _ in range(2)]
    return str(op.LSTM(x, *weights, hidden_size=size, outputs=2)[0])


@pattern
def input_scaling(op: Graph) -> str:
    """An image divided by 255, less a mean, over a deviation, in front of a Conv without padding."""
    x = op.Div(op.input("image", (1, 3, 112, 112)), op.const(255.0))
    x = op.Div(op.Sub(x, op.weight(3, 1, 1)), op.positive(3, 1, 1))
    x = op.Relu(op.Conv(x, _weight(op, 32, 3, 4, 4), strides=[4, 4]))
    return _conv(op, x)
