"""Every Hypothesis strategy of the tests.

``random_model`` writes a random graph from a seed, which Hypothesis, or ``benchmarks/fuzz.py``, chooses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from string import ascii_lowercase
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bnfold.core.example import Graph

# The only dynamic dimension, and its size when a model is run: that of other axes, to be mistaken for them.
BATCH = {"N": 2}

_DTYPES = [TensorProto.DOUBLE] * 6 + [TensorProto.FLOAT] * 3 + [TensorProto.FLOAT16]


@dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    Attributes:
        name: in the graph.
        shape: when the model is run.
        static: for every axis, whether its size stands in the model.
    """

    name: str
    shape: tuple[int, ...]
    static: tuple[bool, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def is_image(self, rank: int = 3) -> bool:
        """Whether the operators on windows apply: channels and positions known, and not too many."""
        return self.rank >= rank and all(self.static[1:]) and prod(self.shape) < 2000


class RandomGraph:
    """Writes one random graph; every choice comes from ``random``."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.opset = random.randint(7, onnx.defs.onnx_opset_version())
        dtype = random.choice(_DTYPES)
        self.op = Graph(self.opset, dtype)
        self.dtype = dtype
        self.ir_version = 3 if self.opset < 9 and self.maybe(0.3) else 8
        self.values = np.random.default_rng(random.randrange(2**31))
        self.tensors: list[Tensor] = []

    def model(self, steps: int | None = None, drawn: Sequence[str] = ()) -> onnx.ModelProto:
        """Write inputs, nodes, and outputs: whatever nothing reads, and some of the rest.

        The same seed with fewer ``steps`` gives the beginning of the same graph. ``drawn`` are the
        operators to draw from, all of them without.
        """
        for number in range(self.random.choice([1, 1, 2])):
            self._input(f"x{number}")
        inputs = len(self.tensors)
        for _ in range(steps or self.random.randint(2, 6 if self.dtype == TensorProto.FLOAT16 else 12)):
            self._step(drawn or _DRAWN)
            if self.maybe(0.3):
                self._step(_MAPS)
        for _ in range(2):
            self._step(_LAYERS)
        while len(self.tensors) == inputs:
            self._step(["Identity"])
        made = self.tensors[inputs:]
        ends = [tensor.name for tensor in made if self.is_end(tensor) or self.maybe(0.03)]
        self.random.shuffle(ends)
        return self.op.finish(ends, self.ir_version)

    def is_end(self, tensor: Tensor) -> bool:
        """Whether nothing reads a tensor yet."""
        return not any(tensor.name in node.input for node in self.op.nodes)

    # ------------------------------------------------------------ choices

    def maybe(self, chance: float) -> bool:
        """True that often."""
        return self.random.random() < chance

    def below(self, stop: int) -> int:
        """A number from 0 on."""
        return self.random.randrange(stop)

    def axes(self, count: int, chance: float = 0.4) -> list[int]:
        """Some of the axes."""
        return [axis for axis in range(count) if self.maybe(chance)]

    def pick(self) -> Tensor:
        """A tensor: mostly one that nothing reads yet, so that graphs are chains with some branches."""
        ends = [tensor for tensor in self.tensors if self.is_end(tensor)]
        return self.random.choice(ends if ends and not self.maybe(0.15) else self.tensors)

    # ------------------------------------------------------------ constants

    def const(self, values: NDArray[np.float64]) -> str:
        """A constant as exporters write it: stored, by a node, or through one."""
        where = self.random.random()
        if where < 0.08:
            kind = onnx.helper.tensor_dtype_to_np_dtype(self.dtype)
            tensor = numpy_helper.from_array(np.asarray(values).astype(kind))
            return str(self.op.Constant(value=tensor))
        if where < 0.12:
            return str(self.op.Identity(self.op.const(values)))
        if where < 0.15 and values.ndim:
            turned = np.asarray(values).transpose()
            return str(self.op.Transpose(self.op.const(turned)))
        ones = [axis for axis, size in enumerate(np.shape(values)) if size == 1]
        if where < 0.2 and ones:
            inner = Tensor(self.op.const(np.squeeze(values)), (), ())
            return _with_axes(self, "Unsqueeze", inner, ones, np.ndim(values), 13)
        return self.op.const(values, overridable=self.ir_version > 3 and where > 0.98)

    def weight(self, *shape: int, summed: int) -> str:
        """A weight that keeps the magnitude of what it sums ``summed`` terms of; now and then quantized."""
        if self.quantizes and self.maybe(0.25):
            return self.quantized(shape, 0.02 / np.sqrt(summed))
        return self.const(self.values.normal(0.0, 1.0, shape) / np.sqrt(summed))

    def bias(self, count: int, shape: tuple[int, ...] = ()) -> str:
        """A bias; now and then in int32."""
        if not self.quantizes or shape or self.maybe(0.7):
            return self.const(self.values.normal(size=shape or count))
        stored = self.op.const(self.values.normal(0.0, 2.0**24, count), TensorProto.INT32)
        if self.opset < 13 or self.maybe(0.5):
            return str(self.op.DequantizeLinear(stored, self.op.const(2.0**-24)))
        return str(self.op.DequantizeLinear(stored, self.op.const(np.full(count, 2.0**-24)), axis=0))

    @property
    def quantizes(self) -> bool:
        """Whether the graph's type and opset have quantized constants."""
        return self.dtype == TensorProto.FLOAT and self.opset >= 10

    def quantized(self, shape: tuple[int, ...], step: float) -> str:
        """A constant in integers: with one scale, or with one for each place on an axis, or for a block."""
        kind, middle = self.random.choice([(TensorProto.INT8, 0), (TensorProto.UINT8, 128)])
        stored = self.op.const(self.values.integers(-127, 128, shape) + middle, kind)
        axis, attributes = self.below(len(shape)), {}
        if self.opset >= 13 and self.maybe(0.7):
            attributes["axis"] = axis - len(shape) if self.maybe(0.3) else axis
            size = (shape[axis],)
            if self.opset >= 21 and self.maybe(0.3):
                attributes["block_size"] = 2
                size = (*shape[:axis], -(-shape[axis] // 2), *shape[axis + 1 :])
        else:
            size = self.random.choice([(), (1,)])
        scale = self.op.const(self.values.uniform(0.5, 1.5, size) * step)
        zeros = [self.op.const(np.full(size, middle), kind)] if middle or self.maybe(0.5) else []
        return str(self.op.DequantizeLinear(stored, scale, *zeros, **attributes))

    def numbers(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Numbers for a scale or a shift: of both signs, positive, all alike, or with zeros and ones."""
        kind = self.random.choice(["both", "both", "positive", "positive", "positive", "alike", "few"])
        if kind == "both":
            return self.values.uniform(0.5, 1.5, shape) * self.values.choice([-1.0, 1.0], shape)
        if kind == "positive":
            return self.values.uniform(0.5, 1.5, shape)
        if kind == "alike":
            return np.full(shape, self.random.choice([1.0, 0.5, -1.0, 0.0]))
        return self.values.choice([0.0, 1.0, 2.0], shape)

    def layout(self, x: Tensor, enlarge: float = 0.0) -> tuple[int, ...]:
        """A shape that broadcasts with a tensor's, along any axes, of any rank up to its own.

        On rare occasions along the dynamic axis, too, and with ``enlarge`` where the tensor has size 1.
        """
        axes = self.random.choice([[], [1], [1], [1], [x.rank - 1], [self.below(x.rank)], self.axes(x.rank)])
        shape = [1] * x.rank
        for axis, size in enumerate(x.shape):
            if axis in axes and (x.static[axis] or self.maybe(0.1)):
                shape[axis] = size
            elif size == 1 and self.maybe(enlarge):
                shape[axis] = 2
        if shape == [1] * x.rank and self.maybe(0.5):
            return ()
        while len(shape) > 1 and shape[0] == 1 and self.maybe(0.6):
            shape = shape[1:]
        return tuple(shape)

    # ------------------------------------------------------------ steps

    def _input(self, name: str) -> None:
        side = self.random.choice([2, 3])
        kind = self.random.choice(["image", "image", "image", "rows", "rows", "tokens", "volume", "cube"])
        shape = {
            "image": (2, side, self.random.randint(4, 6), self.random.randint(4, 6)),
            "rows": (2, side + 2),
            "tokens": (2, side + 2, side),
            "volume": (2, side, 3, 4, 3),
            "cube": (side,) * 4,
        }[kind]
        dynamic = shape[0] == BATCH["N"] and self.maybe(0.5)
        self.op.input(name, ("N", *shape[1:]) if dynamic else shape)
        self.tensors.append(Tensor(name, shape, (not dynamic, *(True for _ in shape[1:]))))

    def _step(self, drawn: Sequence[str]) -> None:
        """Add a node, or a few times try to."""
        for _ in range(4):
            op_type = self.random.choice(drawn)
            made = OPERATORS[op_type](self, op_type, self.pick())
            if made is not None:
                self.tensors.append(made)
                return

    def body(self, x: Tensor) -> onnx.GraphProto:
        """A branch of an If: a few nodes on ``x`` that keep its shape."""
        outer, self.op = self.op, Graph(self.opset, self.dtype)
        self.op._count = outer._count
        for op_type in self.random.choices(_IN_BODIES, k=self.random.randint(1, 4)):
            made = OPERATORS[op_type](self, op_type, x)
            x = x if made is None or (made.shape, made.static) != (x.shape, x.static) else made
        x = self.node(x, "Identity", x.name)
        inner, self.op = self.op, outer
        outer._count = inner._count
        info = onnx.helper.make_tensor_value_info(x.name, self.dtype, [None] * x.rank)
        return onnx.helper.make_graph(inner.nodes, "body", [], [info], inner._initializers)

    def node(self, like: Tensor, op_type: str, *inputs: str, **attributes: object) -> Tensor:
        """A node whose output has the shape of ``like``."""
        return Tensor(self.op.node(op_type, *inputs, **attributes), like.shape, like.static)


Write = Callable[[RandomGraph, str, Tensor], Tensor | None]
OPERATORS: dict[str, Write] = {}
_DRAWN: list[str] = []
_MAPS = ["BatchNormalization", "BatchNormalization", "Mul", "Add"]
_LAYERS = ["Conv", "Conv", "Gemm", "MatMul", "ConvTranspose"]


def writes(*op_types: str, often: int = 1) -> Callable[[Write], Write]:
    """Register how to write operators, drawn ``often``; None where one does not apply."""

    def register(write: Write) -> Write:
        for op_type in op_types:
            OPERATORS[op_type] = write
            _DRAWN.extend([op_type] * often)
        return write

    return register


_IN_BODIES = ["BatchNormalization", "Mul", "Add", "Relu", "Neg", "Conv", "MatMul", "Transpose"]


@writes("If")
def _if(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    # Before IR version 4 a body could hold no initializers.
    if g.ir_version < 4:
        return None
    condition = g.op.input(g.op._fresh("condition"), (), TensorProto.BOOL)
    return g.node(x, op_type, condition, then_branch=g.body(x), else_branch=g.body(x))


@writes("BatchNormalization", often=8)
def _batch_norm(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if x.rank < 2 or not (x.static[1] or g.maybe(0.1)):
        return None
    count = x.shape[1]
    plain = g.maybe(0.4)
    shifts = [np.zeros(count) if plain else g.values.normal(size=count) for _ in range(2)]
    statistics = [g.numbers((count,)), *shifts, g.values.uniform(0.5, 2.0, count)]
    attributes = {} if g.maybe(0.2) else {"epsilon": 0.125}
    wide = g.dtype == TensorProto.FLOAT16 and g.opset >= 15 and g.maybe(0.5)
    stored = [g.op.const(values, TensorProto.FLOAT) if wide else g.const(values) for values in statistics]
    return g.node(x, op_type, x.name, *stored, **attributes)


@writes("Mul", "Add", "Sub", "Div", often=3)
def _arithmetic(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    other = _partner(g, x) if op_type != "Div" and g.maybe(0.3) else None
    if other is not None:
        names = [x.name, other.name]
    else:
        shape = g.layout(x, enlarge=0.03)
        values = g.values.uniform(0.5, 2.0, shape) if op_type == "Div" else g.numbers(shape)
        other = Tensor("", shape, (True,) * len(shape))
        names = [x.name, g.const(values)]
    if op_type != "Div" and g.maybe(0.4):
        names.reverse()
    rank = max(x.rank, other.rank)
    shape = np.broadcast_shapes(x.shape, other.shape)
    static = [
        any(t.static[axis - rank] and t.shape[axis - rank] > 1 for t in (x, other) if axis >= rank - t.rank)
        or all(t.static[axis - rank] for t in (x, other) if axis >= rank - t.rank)
        for axis in range(rank)
    ]
    return Tensor(g.op.node(op_type, *names), shape, tuple(static))


@writes("Quotient")
def _divide(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Div of a tensor or a constant by a tensor that stays away from zero."""
    below = g.op.Sigmoid(g.op.Sin((_partner(g, x) or x).name))
    if g.maybe(0.7):
        return g.node(x, "Div", x.name, below)
    return g.node(x, "Mul", g.op.Div(g.const(g.numbers(())), below), x.name)


@writes("Sum", "Mean", often=2)
def _sum(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Tensors and constants, as many as there are; without broadcasting before opset 8."""
    names = [x.name]
    for _ in range(g.random.choice([0, 1, 1, 2])):
        alike = [t for t in g.tensors if t.shape == x.shape and t.static == x.static]
        partner = g.random.choice(alike) if g.opset < 8 else _partner(g, x)
        constant = g.maybe(0.5) and (g.opset >= 8 or all(x.static))
        if constant or partner is None:
            names.append(g.const(g.numbers(g.layout(x) if g.opset >= 8 else x.shape)))
        else:
            names.append(partner.name)
    g.random.shuffle(names)
    return g.node(x, op_type, *names)


def _partner(g: RandomGraph, x: Tensor) -> Tensor | None:
    """Another tensor, or the same, that broadcasts into ``x`` with nothing left to be seen at run time."""
    fitting = [t for t in g.tensors if t.rank <= x.rank and all(_fits(t, x))]
    return g.random.choice(fitting) if fitting else None


def _fits(small: Tensor, x: Tensor) -> Iterator[bool]:
    for axis in range(1, small.rank + 1):
        same = small.shape[-axis] == x.shape[-axis] and small.static[-axis] == x.static[-axis]
        yield same or (small.shape[-axis] == 1 and small.static[-axis])


@writes("Relu", "LeakyRelu", "Identity", often=2)
@writes("Sigmoid", "Neg", "Tanh", "Abs", "Softplus", "Elu", "HardSigmoid")
def _unary(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    attributes = {"alpha": g.random.choice([0.1, -0.5, 2.0])} if op_type == "LeakyRelu" else {}
    return g.node(x, op_type, x.name, **attributes)


@writes("PRelu", often=2)
def _prelu(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    return g.node(x, op_type, x.name, g.const(g.numbers(g.layout(x))))


@writes("Max", "Min", often=2)
def _extremum(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """With constants, tensors, or both; without broadcasting before opset 8."""
    names = [x.name]
    for _ in range(g.random.choice([1, 1, 1, 2])):
        partner = _partner(g, x) if g.maybe(0.3) else None
        if g.opset < 8:
            alike = [t for t in g.tensors if t.shape == x.shape and t.static == x.static]
            partner = g.random.choice(alike) if not all(x.static) or partner else None
        constant = g.numbers(x.shape if g.opset < 8 else g.layout(x))
        names.append(partner.name if partner else g.const(constant - g.random.choice([0.0, 1.0])))
    g.random.shuffle(names)
    return g.node(x, op_type, *names)


@writes("Clip", often=2)
def _clip(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """One bound or two; attributes before opset 11, and inputs from then on."""
    bounds = {name: g.random.choice([-1.0, 0.0, 0.5, 2.0]) for name in ("min", "max") if g.maybe(0.7)}
    if g.opset < 11:
        return g.node(x, op_type, x.name, **bounds)
    given = [g.const(np.asarray(bounds[n])) if n in bounds else "" for n in ("min", "max")]
    return g.node(x, op_type, x.name, *given)


@writes("Where", often=2)
def _where(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """A mask that is constant or not; the other operand is a tensor or a constant."""
    if g.opset < 9:
        return None
    if g.maybe(0.4):
        mask = g.op.const(g.values.integers(0, 2, g.layout(x)), TensorProto.BOOL)
    else:
        mask = g.op.Less((_partner(g, x) or x).name, g.op.const(0.25))
    partner = _partner(g, x) if g.maybe(0.5) else None
    names = [x.name, partner.name if partner else g.const(g.numbers(g.layout(x)))]
    g.random.shuffle(names)
    return g.node(x, op_type, mask, *names)


@writes("Cast")
def _cast(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if g.maybe(0.2):
        other = TensorProto.FLOAT if g.dtype == TensorProto.DOUBLE else TensorProto.DOUBLE
        x = g.node(x, op_type, x.name, to=other)
    return g.node(x, op_type, x.name, to=g.dtype)


@writes("CastLike")
def _cast_like(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    return g.node(x, op_type, x.name, g.random.choice(g.tensors).name) if g.opset >= 15 else None


@writes("Dropout")
def _dropout(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    attributes = {"ratio": 0.25} if g.opset < 12 and g.maybe(0.5) else {}
    if not g.maybe(0.2):
        return g.node(x, op_type, x.name, **attributes)
    name, _ = g.op.node(op_type, x.name, outputs=2, **attributes)
    return Tensor(name, x.shape, x.static)


@writes("Softmax")
def _softmax(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    return g.node(x, op_type, x.name, axis=x.rank - 1)


@writes("Conv", often=8)
def _conv(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if not x.is_image():
        return None
    channels, sizes = x.shape[1], x.shape[2:]
    groups = g.random.choice([1, 1, channels, *(n for n in (2, 3) if channels % n == 0)])
    filters = groups * g.random.choice([1, 2]) if groups > 1 else g.random.choice([2, 3, channels])
    window = _window(g, sizes)
    if window is None:
        return None
    kernel, attributes, counts = window
    width = channels // groups
    weight = g.weight(filters, width, *kernel, summed=width * prod(kernel))
    bias = g.random.choice([[], [""], [g.bias(filters)]])
    name = g.op.node(op_type, x.name, weight, *bias, group=groups, **attributes)
    return Tensor(name, (x.shape[0], filters, *counts), (x.static[0], True, *(True for _ in counts)))


Window = tuple[list[int], dict[str, object], list[int]]


def _window(g: RandomGraph, sizes: Sequence[int], dilate: bool = True) -> Window | None:
    """A kernel, the attributes that place it, and how many positions it then has on each axis."""
    rank = len(sizes)
    kernel = [g.random.choice([1, 1, 2, 3]) for _ in sizes]
    if g.maybe(0.3):
        kernel = [1] * rank
    strides = [g.random.choice([1, 1, 2]) for _ in sizes]
    dilations = [g.random.choice([1, 1, 2]) if dilate else 1 for _ in sizes]
    mode = g.random.choice(["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [g.below(k) if g.maybe(0.4) else 0 for k in kernel + kernel]
    attributes: dict[str, object] = {"strides": strides, "dilations": dilations}
    if not dilate:
        del attributes["dilations"]
    if mode.startswith("SAME"):
        counts = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        return kernel, {**attributes, "auto_pad": mode}, counts
    if mode == "NOTSET":
        attributes["pads"] = pads
    else:
        attributes["auto_pad"], pads = mode, [0] * (2 * rank)
    room = [n + pads[i] + pads[i + rank] - reach[i] for i, n in enumerate(sizes)]
    counts = [free // stride + 1 for free, stride in zip(room, strides, strict=True)]
    return (kernel, attributes, counts) if min(room) >= 0 else None


@writes("ConvTranspose", often=2)
def _conv_transpose(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if not x.is_image():
        return None
    channels, sizes = x.shape[1], x.shape[2:]
    groups = g.random.choice([1, 1, channels])
    width = g.random.choice([1, 2, 3])
    kernel = [g.random.choice([1, 2, 3]) for _ in sizes] if g.maybe(0.7) else [1] * len(sizes)
    strides = [g.random.choice([1, 1, 2]) for _ in sizes]
    extra = [g.below(s) for s in strides]
    pads = [g.below(k) if g.maybe(0.3) else 0 for k in kernel]
    grown = zip(sizes, strides, kernel, extra, pads, strict=True)
    counts = [(n - 1) * s + k + e - 2 * p for n, s, k, e, p in grown]
    if min(counts) < 1 or max(counts) > 9:
        return None
    weight = g.weight(channels, width, *kernel, summed=channels // groups * prod(kernel))
    bias = g.random.choice([[], [""], [g.bias(groups * width)]])
    attributes = {"group": groups, "strides": strides, "output_padding": extra, "pads": pads + pads}
    name = g.op.node(op_type, x.name, weight, *bias, **attributes)
    static = (x.static[0], True, *(True for _ in counts))
    return Tensor(name, (x.shape[0], groups * width, *counts), static)


@writes("Gemm", often=4)
def _gemm(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if x.rank != 2:
        return None
    weight_first, turned, other = g.maybe(0.3), int(g.maybe(0.3)), int(g.maybe(0.5))
    # The data are A: M × K, or K × M if transposed; or they are B: K × N, or N × K if transposed.
    summed, free = (turned, 1 - turned) if weight_first else (1 - turned, turned)
    if not x.static[summed]:
        return None
    size, count = x.shape[summed], g.random.choice([2, 3, x.shape[free]])
    upright = (size, count) if weight_first == bool(other) else (count, size)
    weight = g.weight(*upright, summed=size)
    rows, columns = (count, x.shape[free]) if weight_first else (x.shape[free], count)
    static = (True, x.static[free]) if weight_first else (x.static[free], True)
    biases = [(), (1,), (columns,), (1, columns), (rows, 1), (rows, columns)]
    fitting = [b for b in biases if all(n == 1 or static[axis - len(b)] for axis, n in enumerate(b))]
    bias = [g.const(g.values.normal(size=g.random.choice(fitting)))]
    if g.opset >= 11 and g.maybe(0.3):
        bias = []
    names = [weight, x.name] if weight_first else [x.name, weight]
    trans = {"transA": other, "transB": turned} if weight_first else {"transA": turned, "transB": other}
    scales = {"alpha": g.random.choice([1.0, 0.5]), "beta": g.random.choice([1.0, 1.0, 2.0, 0.0])}
    return Tensor(g.op.node(op_type, *names, *bias, **trans, **scales), (rows, columns), static)


@writes("MatMul", often=4)
def _matmul(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if x.rank < 2:
        return None
    left, vector = g.maybe(0.3), g.maybe(0.05)
    summed, free = (-2, -1) if left else (-1, -2)
    if not x.static[summed]:
        return None
    size, count = x.shape[summed], g.random.choice([2, 3, x.shape[free]])
    if vector:
        names = [x.name, g.weight(size, summed=size)]
        if left:
            names.reverse()
        shape, static = list(x.shape), list(x.static)
        del shape[summed], static[summed]
        return Tensor(g.op.node(op_type, *names), tuple(shape), tuple(static))
    outer = zip(x.shape[:-2], x.static[:-2], strict=True)
    stack = [n if known and g.maybe(0.5) else 1 for n, known in outer] if g.maybe(0.4) else []
    stack = stack[g.below(len(stack) + 1) :]
    weight = g.weight(*stack, *((count, size) if left else (size, count)), summed=size)
    shape, static = list(x.shape), list(x.static)
    shape[summed], static[summed] = count, True
    names = [weight, x.name] if left else [x.name, weight]
    return Tensor(g.op.node(op_type, *names), tuple(shape), tuple(static))


@writes("Product", often=2)
def _product(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """MatMul of two tensors, or of one with itself; the left one may be a Softmax, as in attention."""
    if x.rank < 2 or prod(x.shape) > 500:
        return None
    turned = g.maybe(0.5)
    summed = -1 if turned else -2
    fitting = [t for t in g.tensors if t.rank == x.rank and _fits_behind(t, x, summed)]
    if not fitting:
        return None
    other = g.random.choice(fitting)
    right, left = other.name, x.name
    if turned:
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        right = g.op.Transpose(right, perm=order)
    if g.maybe(0.5):
        left = g.op.Softmax(left, axis=x.rank - 1)
    free = -2 if turned else -1
    outer = [b if a[0] == 1 else a for a, b in zip(_axes_of(x)[:-2], _axes_of(other)[:-2], strict=True)]
    axes = [*outer, _axes_of(x)[-2], _axes_of(other)[free]]
    shape, static = zip(*axes, strict=True)
    return Tensor(g.op.MatMul(left, right), shape, static)


def _axes_of(t: Tensor) -> list[tuple[int, bool]]:
    """The size of each axis, and whether it stands in the model."""
    return list(zip(t.shape, t.static, strict=True))


def _fits_behind(t: Tensor, x: Tensor, summed: int) -> bool:
    """Whether the product of ``x`` with ``t`` sums over this axis of ``t``; sizes of 1 broadcast."""
    outer = zip(_axes_of(t)[:-2], _axes_of(x)[:-2], strict=True)
    return _axes_of(t)[summed] == _axes_of(x)[-1] and all(a == b or (1, True) in (a, b) for a, b in outer)


@writes("Run")
def _run(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Maps along the last axis and a Relu in front of a Transpose, as Keras on torch exports them."""
    if x.rank != 4 or not x.static[-1]:
        return None
    y = g.op.Tile(x.name, g.op.ints(1, 1, 1, 4)) if prod(x.shape) < 300 and g.maybe(0.5) else x.name
    count = x.shape[-1] * (1 if y == x.name else 4)
    for name in g.random.choices(["Mul", "Add", "Sub"], k=g.random.randint(1, 4)):
        y = g.op.node(name, y, g.const(g.numbers((count,))))
    y = g.op.Relu(y) if g.maybe(0.8) else y
    first = [(x.shape[0], x.static[0]), (count, True), *_axes_of(x)[1:3]]
    shape, static = zip(*first, strict=True)
    return Tensor(g.op.Transpose(y, perm=[0, 3, 1, 2]), shape, static)


@writes("Transpose", often=3)
def _transpose(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    order = list(range(x.rank))
    g.random.shuffle(order)
    attributes = {"perm": order}
    if g.maybe(0.1):
        order, attributes = list(range(x.rank))[::-1], {}
    shape, static = tuple(x.shape[axis] for axis in order), tuple(x.static[axis] for axis in order)
    return Tensor(g.op.node(op_type, x.name, **attributes), shape, static)


@writes("Reshape", often=4)
def _reshape(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Merge neighbouring axes, split others."""
    shape: list[int] = []
    static: list[bool] = []
    joins = False
    for size, known in zip(x.shape, x.static, strict=True):
        if joins:
            shape[-1], static[-1] = shape[-1] * size, static[-1] and known
        else:
            shape.append(size)
            static.append(known)
        joins = g.maybe(0.3)
    for axis in reversed(range(len(shape))):
        factors = [n for n in range(2, shape[axis]) if shape[axis] % n == 0]
        if static[axis] and factors and g.maybe(0.3):
            factor = g.random.choice(factors)
            shape[axis : axis + 1], static[axis : axis + 1] = [factor, shape[axis] // factor], [True, True]
    unknown = [axis for axis, known in enumerate(static) if not known]
    target = list(shape)
    for axis in unknown:
        alike = axis < x.rank and x.shape[: axis + 1] == tuple(shape[: axis + 1]) and not x.static[axis]
        target[axis] = 0 if alike and g.maybe(0.5) else -1
    if target.count(-1) > 1 or len(shape) > 5:
        return None
    if -1 not in target and g.maybe(0.3):
        target[g.below(len(target))] = -1
    return Tensor(g.op.node(op_type, x.name, g.op.ints(*target)), tuple(shape), tuple(static))


@writes("Shape")
def _as_shaped(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Reshape a tensor to the shape of another one, as exporters do for dynamic sizes."""
    alike = [t for t in g.tensors if t.shape == x.shape and t.static == x.static]
    other = g.random.choice(alike)
    return g.node(x, "Reshape", x.name, g.op.node(op_type, other.name))


@writes("Flatten")
def _flatten(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    axis = g.random.choice([1, 1, g.below(x.rank + 1)])
    shape = prod(x.shape[:axis]), prod(x.shape[axis:])
    written = axis - x.rank if g.opset >= 11 and 0 < axis < x.rank and g.maybe(0.3) else axis
    static = all(x.static[:axis]), all(x.static[axis:])
    return Tensor(g.op.node(op_type, x.name, axis=written), shape, static)


@writes("Squeeze", often=4)
def _squeeze(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    ones = [axis for axis, (n, known) in enumerate(zip(x.shape, x.static, strict=True)) if n == 1 and known]
    gone = ones if g.maybe(0.5) else [axis for axis in ones if g.maybe(0.5)]
    if not gone or len(gone) == x.rank:
        return None
    shape = tuple(n for axis, n in enumerate(x.shape) if axis not in gone)
    static = tuple(n for axis, n in enumerate(x.static) if axis not in gone)
    if gone == ones and g.maybe(0.3):
        return Tensor(g.op.node(op_type, x.name), shape, static)
    return Tensor(_with_axes(g, op_type, x, gone, x.rank, 13), shape, static)


@writes("Unsqueeze")
def _unsqueeze(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if x.rank > 4:
        return None
    rank = x.rank + g.random.choice([1, 1, 2])
    new = sorted(g.random.sample(range(rank), rank - x.rank))
    shape, static = list(x.shape), list(x.static)
    for axis in new:
        shape.insert(axis, 1)
        static.insert(axis, True)
    return Tensor(_with_axes(g, op_type, x, new, rank, 13), tuple(shape), tuple(static))


def _with_axes(
    g: RandomGraph, op_type: str, x: Tensor, axes: list[int], rank: int, since: int, **more: object
) -> str:
    """A node whose axes are an attribute or, from an opset on, an input; in any order, also from the end."""
    written = [axis - rank if g.opset >= 11 and g.maybe(0.3) else axis for axis in axes]
    if op_type != "Squeeze" or g.opset >= since:  # onnx's inference takes an attribute's one after another
        g.random.shuffle(written)
    if g.opset >= since:
        return str(g.op.node(op_type, x.name, g.op.ints(*written), **more))
    return str(g.op.node(op_type, x.name, axes=written, **more))


@writes("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", often=2)
def _reduce(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    axes = g.axes(x.rank) or [x.rank - 1]
    keeps = g.maybe(0.5)
    if len(axes) == x.rank and not keeps:
        return None
    pairs = [(1, True) if a in axes else (x.shape[a], x.static[a]) for a in range(x.rank)]
    kept = [pair for axis, pair in enumerate(pairs) if keeps or axis not in axes]
    since = 13 if op_type == "ReduceSum" else 18
    name = _with_axes(g, op_type, x, axes, x.rank, since, keepdims=int(keeps))
    return Tensor(name, tuple(n for n, _ in kept), tuple(known for _, known in kept))


@writes("CumSum")
def _cum_sum(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    axis = g.below(x.rank) - g.random.choice([0, x.rank])
    given = g.op.const(axis, TensorProto.INT64)
    return g.node(x, op_type, x.name, given, reverse=g.below(2)) if g.opset >= 11 else None


@writes("Expand", often=2)
def _expand(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if g.opset < 8 or x.rank > 4 or prod(x.shape) > 500:
        return None
    more, target = [2] if g.maybe(0.3) else [], []
    for size, known in zip(x.shape, x.static, strict=True):
        grows = size == 1 and known and g.maybe(0.7)
        target.append(2 if grows else size if known and g.maybe(0.5) else 1)
    name = g.op.node(op_type, x.name, g.op.ints(*more, *target))
    grown = np.broadcast_shapes(x.shape, tuple(target))
    return Tensor(name, (*more, *grown), (*(True for _ in more), *x.static))


@writes("Tile", often=2)
def _tile(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if prod(x.shape) > 500:
        return None
    times = [2 if g.maybe(0.3) else 1 for _ in x.shape]
    name = g.op.node(op_type, x.name, g.op.ints(*times))
    return Tensor(name, tuple(n * t for n, t in zip(x.shape, times, strict=True)), x.static)


@writes("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if not x.is_image():
        return None
    ones = (1,) * (x.rank - 2)
    return Tensor(g.op.node(op_type, x.name), (*x.shape[:2], *ones), (*x.static[:2], *(True for _ in ones)))


@writes("MaxPool", "AveragePool", often=2)
def _pool(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    # onnx 1.23 and ONNX Runtime disagree on dilated kernels with automatic padding: none are dilated.
    window = _window(g, x.shape[2:], dilate=False) if x.is_image() else None
    if window is None:
        return None
    kernel, attributes, counts = window
    if op_type == "AveragePool" and g.maybe(0.5):
        attributes["count_include_pad"] = 1
    if "pads" in attributes and g.opset >= 10 and g.maybe(0.3):
        attributes["ceil_mode"] = 1
        counts = [_ceiled(x, axis, kernel, attributes) for axis in range(len(kernel))]
    name = g.op.node(op_type, x.name, kernel_shape=kernel, **attributes)
    return Tensor(name, (*x.shape[:2], *counts), (*x.static[:2], *(True for _ in counts)))


@writes("Resize", "Upsample", often=2)
def _resize(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Positions, and on rare occasions any axis; by scales or to sizes, as versions allow."""
    lives = g.opset < 10 if op_type == "Upsample" else g.opset >= 10
    if not lives or x.rank < 3 or not all(x.static[1:]) or prod(x.shape) > 300:
        return None
    axes = [a for a in range(1, x.rank) if g.maybe(0.5 if a > 1 else 0.1)] or [x.rank - 1]
    scales = [
        g.random.choice([1.0, 1.5, 2.0, 0.6]) if a in axes and x.shape[a] > 1 else 1.0 for a in range(x.rank)
    ]
    shape = tuple(int(n * s) for n, s in zip(x.shape, scales, strict=True))
    attributes: dict[str, object] = {"mode": g.random.choice(["nearest", "linear"])}
    if op_type == "Upsample" and g.opset < 9:
        return Tensor(g.op.node(op_type, x.name, scales=scales, **attributes), shape, x.static)
    if g.opset < 11:
        given = [g.op.const(scales, TensorProto.FLOAT)]
        return Tensor(g.op.node(op_type, x.name, *given, **attributes), shape, x.static)
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes["coordinate_transformation_mode"] = g.random.choice(modes)
    attributes["mode"] = g.random.choice(["nearest", "linear", "cubic"])
    attributes |= {"exclude_outside": 1} if attributes["mode"] == "cubic" and g.maybe(0.3) else {}
    attributes |= (
        {"antialias": 1} if attributes["mode"] != "nearest" and g.opset >= 18 and g.maybe(0.3) else {}
    )
    chosen = list(range(x.rank))
    if g.opset >= 18 and g.maybe(0.4):
        chosen = axes
        attributes["axes"] = axes
    if g.maybe(0.4) and all(x.static[a] for a in chosen):
        given = ["", "", g.op.ints(*(shape[a] for a in chosen))]
    else:
        given = ["", g.op.const([scales[a] for a in chosen], TensorProto.FLOAT)]
    return Tensor(g.op.node(op_type, x.name, *given, **attributes), shape, x.static)


def _ceiled(x: Tensor, axis: int, kernel: list[int], given: dict[str, Any]) -> int:
    """How many windows there are if the last may reach beyond the end, but not begin there."""
    size, stride, pads = x.shape[axis + 2], given["strides"][axis], given["pads"]
    room = size + pads[axis] + pads[axis + len(kernel)] - kernel[axis]
    count = int(-(-room // stride)) + 1
    return count - ((count - 1) * stride >= size + pads[axis])


@writes("DepthToSpace", "SpaceToDepth")
def _blocks(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if x.rank != 4 or not x.is_image():
        return None
    attributes = {"mode": "CRD"} if op_type == "DepthToSpace" and g.opset >= 11 and g.maybe(0.5) else {}
    channels, *sizes = x.shape[1:]
    if op_type == "SpaceToDepth":
        if any(size % 2 for size in sizes):
            return None
        shape = (channels * 4, *(size // 2 for size in sizes))
    else:
        channels = g.random.choice([1, 2])
        deep = g.op.Conv(x.name, g.weight(channels * 4, x.shape[1], 1, 1, summed=x.shape[1]))
        x = Tensor(deep, x.shape, x.static)
        shape = (channels, *(size * 2 for size in sizes))
    name = g.op.node(op_type, x.name, blocksize=2, **attributes)
    return Tensor(name, (x.shape[0], *shape), x.static)


@writes("Pad", often=2)
def _pad(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    mode = g.random.choice(["constant", "constant", "reflect", "edge"])
    inner = range(2, x.rank) if g.maybe(0.8) else range(x.rank)
    axes = [axis for axis in inner if g.maybe(0.6) and (x.shape[axis] > 1 or mode != "reflect")]
    pads = [g.below(2) if i % x.rank in axes else 0 for i in range(2 * x.rank)]
    value = g.random.choice([0.0, 0.0, 1.0])
    shape = tuple(n + b + e for n, b, e in zip(x.shape, pads[: x.rank], pads[x.rank :], strict=True))
    if g.opset < 11:
        name = g.op.node(op_type, x.name, pads=pads, mode=mode, value=value)
    else:
        more = [g.const(np.asarray(value))] if value or g.maybe(0.3) else []
        if g.opset >= 18 and g.maybe(0.4):
            chosen = sorted({i % x.rank for i, size in enumerate(pads) if size}) or [0]
            pads = [pads[axis] for axis in chosen] + [pads[axis + x.rank] for axis in chosen]
            written = [axis - x.rank if g.maybe(0.3) else axis for axis in chosen]
            more = [*(more or [""]), g.op.ints(*written)]
        name = g.op.node(op_type, x.name, g.op.ints(*pads), *more, mode=mode)
    return Tensor(name, shape, x.static)


@writes("Concat", often=2)
def _concat(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    axis = g.below(x.rank)
    if prod(x.shape) > 1000:
        return None
    fitting = [t for t in g.tensors if t.rank == x.rank and _alike(t, x, axis)]
    parts = [x, *(g.random.choice(fitting) for _ in range(g.random.choice([1, 1, 2])))]
    g.random.shuffle(parts)
    shape, static = list(x.shape), list(x.static)
    shape[axis], static[axis] = sum(t.shape[axis] for t in parts), all(t.static[axis] for t in parts)
    written = axis - x.rank if g.opset >= 11 and g.maybe(0.3) else axis
    name = g.op.node(op_type, *(t.name for t in parts), axis=written)
    return Tensor(name, tuple(shape), tuple(static))


@writes("Split", often=3)
def _split(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """All parts are tensors to build on; mostly along the channels."""
    axis = g.random.choice([min(1, x.rank - 1), g.below(x.rank)])
    size = x.shape[axis]
    if size < 2 or not x.static[axis]:
        return None
    first = g.random.randint(1, size - 1)
    sizes = [first, size - first]
    attributes: dict[str, object] = {"axis": axis - x.rank if g.opset >= 11 and g.maybe(0.3) else axis}
    given = []
    even = sizes[0] == sizes[1] or (g.opset >= 18 and sizes[0] == sizes[1] + 1)
    if even and g.maybe(0.6):
        attributes |= {"num_outputs": 2} if g.opset >= 18 else {}
    elif g.opset < 13:
        attributes["split"] = sizes
    else:
        given = [g.op.ints(*sizes)]
    names = g.op.node(op_type, x.name, *given, outputs=2, **attributes)
    shapes = [(*x.shape[:axis], n, *x.shape[axis + 1 :]) for n in sizes]
    parts = [Tensor(name, shape, x.static) for name, shape in zip(names, shapes, strict=True)]
    if g.maybe(0.9):
        g.tensors.append(parts[0])
    return parts[1]


@writes("Slice", often=3)
def _slice(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Some axes, forwards or, from opset 10 on, backwards; ends may lie beyond the tensor."""
    axes = [a for a in g.axes(x.rank) if x.static[a]] or [x.rank - 1]
    if not x.static[axes[0]]:
        return None
    shape, rows = list(x.shape), []
    for axis in axes:
        n = x.shape[axis]
        start, count = g.below(n), g.random.randint(1, n)
        step = g.random.choice([1, 1, 2, -1, -2]) if g.opset >= 10 else 1
        end = start + step * count
        shape[axis] = len(range(start, max(-1, min(end, n)), step))
        end = end - n if 0 <= end < n and g.maybe(0.3) else end if end >= 0 else -n - 100
        rows.append(
            (start - n if g.maybe(0.3) else start, end, axis - x.rank if g.maybe(0.3) else axis, step)
        )
    starts, ends, written, steps = (list(column) for column in zip(*rows, strict=True))
    if g.opset < 10:
        name = g.op.node(op_type, x.name, starts=starts, ends=ends, axes=written)
    else:
        more = [g.op.ints(*steps)] if g.maybe(0.3) or set(steps) != {1} else []
        name = g.op.node(op_type, x.name, *(g.op.ints(*c) for c in (starts, ends, written)), *more)
    return Tensor(name, tuple(shape), x.static)


@writes("Gather", often=3)
def _gather(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Constant indices of any rank, or some that are known at run time only; also from a table."""
    if x.rank < 4 and g.maybe(0.25):
        width = g.random.choice([2, 3])
        tokens = g.op.Cast(g.op.Sigmoid(x.name), to=TensorProto.INT64)
        name = g.op.node(op_type, g.weight(4, width, summed=1), tokens)
        return Tensor(name, (*x.shape, width), (*x.static, True))
    axis = g.below(x.rank)
    n = x.shape[axis]
    if not x.static[axis]:
        return None
    order = g.values.permutation(n)[: g.random.randint(1, n)] - g.random.choice(
        [0, n if g.opset >= 11 else 0]
    )
    if g.maybe(0.2):
        order = g.values.integers(0, n, g.random.choice([(), (2,), (2, 2)]))
    indices, picked, known = g.op.const(order, TensorProto.INT64), order.shape, (True,) * order.ndim
    small = [t for t in g.tensors if t.rank < 3]
    if small and n > 1 and g.maybe(0.2):
        other = g.random.choice(small)
        indices = g.op.Cast(g.op.Sigmoid(other.name), to=TensorProto.INT64)
        picked, known = other.shape, other.static
    shape = (*x.shape[:axis], *picked, *x.shape[axis + 1 :])
    static = (*x.static[:axis], *known, *x.static[axis + 1 :])
    if not shape or len(shape) > 5:
        return None
    written = axis - x.rank if g.opset >= 11 and g.maybe(0.3) else axis
    return Tensor(g.op.node(op_type, x.name, indices, axis=written), shape, static)


@writes("GatherElements", "ReverseSequence")
def _within_an_axis(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    if g.opset < 11 or x.rank < 2 or not all(x.static):
        return None
    if op_type == "ReverseSequence":
        time = g.below(2)
        lengths = g.values.integers(1, x.shape[time] + 1, x.shape[1 - time])
        lengths_name = g.op.const(lengths, TensorProto.INT64)
        return g.node(x, op_type, x.name, lengths_name, time_axis=time, batch_axis=1 - time)
    axis = g.below(x.rank)
    shape = tuple(n if a != axis and g.maybe(0.8) else g.random.randint(1, n) for a, n in enumerate(x.shape))
    indices = g.op.const(g.values.integers(-x.shape[axis], x.shape[axis], shape), TensorProto.INT64)
    return Tensor(g.op.node(op_type, x.name, indices, axis=axis), shape, x.static)


@writes("GatherND")
def _gather_nd(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    depth = g.random.randint(1, 2)
    if g.opset < 11 or depth >= x.rank or not all(x.static[:depth]):
        return None
    count = g.random.choice([2, 3])
    rows = np.stack([g.values.integers(0, n, count) for n in x.shape[:depth]], axis=1)
    name = g.op.node(op_type, x.name, g.op.const(rows, TensorProto.INT64))
    return Tensor(name, (count, *x.shape[depth:]), (True, *x.static[depth:]))


@writes("Sum", often=3)
def _branches(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Branches of one tensor that are added, as networks are trained with: most of them linear."""
    write = _image_branch if x.is_image() and prod(x.shape) < 500 else _dense_branch
    if x.rank < 2 or (write is _dense_branch and not x.static[-1]):
        return None
    strides = [g.random.choice([1, 1, 1, 2]) for _ in x.shape[2:]]
    width = x.shape[1] if write is _image_branch else x.shape[-1]
    count = width if g.maybe(0.7) else g.random.choice([2, 3])
    parts = [write(g, x, count, strides) for _ in range(g.random.choice([2, 2, 3, 4]))]
    if write is _image_branch:
        sizes = [-(-n // s) for n, s in zip(x.shape[2:], strides, strict=True)]
        shape, static = (x.shape[0], count, *sizes), (x.static[0], True, *(True for _ in sizes))
    else:
        shape, static = (*x.shape[:-1], count), x.static
    if g.maybe(0.3) and g.opset >= 8:
        return Tensor(g.op.Sum(*parts), shape, static)
    while len(parts) > 1:
        first, second, *rest = g.random.sample(parts, len(parts))
        parts = [g.op.node("Sub" if g.maybe(0.2) else "Add", first, second), *rest]
    return Tensor(parts[0], shape, static)


def _image_branch(g: RandomGraph, x: Tensor, filters: int, strides: list[int]) -> str:
    """A convolution, an average or a map, all with their centres on the same positions."""
    channels, rank = x.shape[1], x.rank - 2
    kernel, steps = (
        [g.random.choice([1, 1, 3]) for _ in strides],
        [g.random.choice([1, 1, 2]) for _ in strides],
    )
    halves = [k // 2 * d for k, d in zip(kernel, steps, strict=True)]
    if filters == channels and strides == [1] * rank and g.maybe(0.4):
        return g.random.choice([x, *[_batch_norm(g, "BatchNormalization", x) or x] * 2]).name
    if filters == channels and g.maybe(0.15):
        pooled = g.op.AveragePool(
            x.name, kernel_shape=[3] * rank, strides=strides, pads=[1] * (2 * rank), count_include_pad=1
        )
        return str(pooled)
    groups = g.random.choice([1, channels]) if filters % channels == 0 else 1
    weight = g.weight(filters, channels // groups, *kernel, summed=channels // groups * prod(kernel))
    bias = [g.const(g.values.normal(size=filters))] if g.maybe(0.5) else []
    pads = {"auto_pad": "SAME_UPPER"} if strides == [1] * rank and g.maybe(0.1) else {"pads": halves * 2}
    y = g.op.Conv(x.name, weight, *bias, group=groups, strides=strides, dilations=steps, **pads)
    made = Tensor(y, (x.shape[0], filters, *x.shape[2:]), x.static)
    if g.maybe(0.4):
        made = _batch_norm(g, "BatchNormalization", made) or made
    return str(g.op.Relu(made.name) if g.maybe(0.1) else made.name)


def _dense_branch(g: RandomGraph, x: Tensor, columns: int, strides: list[int]) -> str:
    """A dense layer, two in a row, or a map."""
    size = x.shape[-1]
    if columns == size and g.maybe(0.3):
        return str(g.op.Mul(x.name, g.const(g.numbers((size,)))) if g.maybe(0.7) else x.name)
    middle = g.random.choice([1, 2, 4])
    y = x.name
    if g.maybe(0.3):
        y, size = g.op.MatMul(y, g.weight(size, middle, summed=size)), middle
    y = g.op.MatMul(y, g.weight(size, columns, summed=size))
    return str(g.op.Add(y, g.const(g.values.normal(size=columns))) if g.maybe(0.4) else y)


def _alike(t: Tensor, x: Tensor, but: int) -> bool:
    axes = [axis for axis in range(x.rank) if axis != but]
    return all(t.shape[axis] == x.shape[axis] and t.static[axis] == x.static[axis] for axis in axes)


@writes("LSTM", "GRU", "RNN")
def _recurrent(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Any direction and layout; the result is the last hidden states, or all of them."""
    if x.rank != 3 or not all(x.static):
        return None
    hidden, size = 2, x.shape[2]
    direction = g.random.choice(["forward", "reverse", "bidirectional"])
    ways = 2 if direction == "bidirectional" else 1
    rows = {"RNN": 1, "GRU": 3, "LSTM": 4}[op_type] * hidden
    names = [x.name, g.weight(ways, rows, size, summed=size), g.weight(ways, rows, hidden, summed=hidden)]
    layout = int(g.opset >= 14 and g.maybe(0.4))
    steps, batch = x.shape[layout], x.shape[1 - layout]
    if g.maybe(0.6):
        names.append(g.bias(ways * 2 * rows, (ways, 2 * rows)))
        if g.maybe(0.4):
            names.append(g.op.const(g.values.integers(1, steps + 1, batch), TensorProto.INT32))
    more = {"linear_before_reset": g.below(2)} if op_type == "GRU" else {}
    more |= {"layout": 1} if layout else {}
    more |= {"clip": 0.5} if g.maybe(0.3) else {}
    y, h = g.op.node(op_type, *names, outputs=2, hidden_size=hidden, direction=direction, **more)
    shapes = [(batch, ways, hidden) if layout else (ways, batch, hidden)]
    shapes += [(batch, steps, ways, hidden) if layout else (steps, ways, batch, hidden)]
    shape = shapes[g.below(2)]
    return Tensor(h if len(shape) == 3 else y, shape, (True,) * len(shape))


@writes("Einsum", often=2)
def _einsum(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """Two operands, or three; some axes are summed, some new."""
    if g.opset < 12 or x.rank < 2 or not x.static[-1]:
        return None
    letters = ascii_lowercase[: x.rank]
    in_weight = [axis for axis in range(x.rank) if axis == x.rank - 1 or (x.static[axis] and g.maybe(0.3))]
    kept = [axis for axis in range(x.rank - 1) if g.maybe(0.9) or not x.static[axis]]
    weight = "".join(letters[axis] for axis in in_weight) + "z"
    shape, static = [x.shape[axis] for axis in kept], [x.static[axis] for axis in kept]
    output = "".join(letters[axis] for axis in kept)
    place, count = g.below(len(kept) + 1), g.random.choice([2, 3])
    output = output[:place] + "z" + output[place:]
    shape.insert(place, count)
    static.insert(place, True)
    sizes = [x.shape[axis] for axis in in_weight]
    operands = [(letters, x.name), (weight, g.weight(*sizes, count, summed=prod(sizes)))]
    if g.maybe(0.1):
        operands.append((letters, x.name))
    g.random.shuffle(operands)
    equation = ",".join(term for term, _ in operands) + "->" + output
    together = len(kept) == x.rank - 1 and place in (0, len(kept))
    if together and in_weight == [x.rank - 1] and g.maybe(0.3):
        equation = equation.replace(letters[:-1], "...")
    name = g.op.node(op_type, *(name for _, name in operands), equation=equation)
    return Tensor(name, tuple(shape), tuple(static))


@writes("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")
def _normalization(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    axis = 1
    if op_type in ("LayerNormalization", "RMSNormalization"):
        axis = g.random.randint(1, x.rank - 1) if x.rank > 1 else 0
        first = {"LayerNormalization": 17, "RMSNormalization": 23}[op_type]
        if g.opset < first or not all(x.static[axis:]) or not x.rank:
            return None
        shape, more = x.shape[axis:], {"axis": axis - x.rank if g.maybe(0.3) else axis}
    elif x.rank < 3 or not x.is_image() or x.shape[1] * prod(x.shape[2:]) < 4:
        return None
    elif op_type == "GroupNormalization":
        if g.opset < 18:
            return None
        groups = g.random.choice([n for n in (1, 2, x.shape[1]) if x.shape[1] % n == 0])
        shape, more = (x.shape[1] if g.opset >= 21 else groups,), {"num_groups": groups}
    else:
        shape, more = (x.shape[1],), {}
    names = [x.name, g.const(g.values.uniform(0.5, 1.5, shape))]
    optional = {"RMSNormalization": 0.0, "LayerNormalization": 0.6}
    if g.maybe(optional.get(op_type, 1.0)):
        names.append(g.const(g.values.normal(size=shape)))
    return g.node(x, op_type, *names, epsilon=0.5, **more)


@writes("QuantizeLinear", "DequantizeLinear")
def _quantize(g: RandomGraph, op_type: str, x: Tensor) -> Tensor | None:
    """A tensor quantized in large steps: rounding moves hardly any value across a border."""
    if not g.quantizes:
        return None
    per_channel = g.opset >= 13 and x.rank > 1 and x.static[1] and g.maybe(0.3)
    scale = g.op.const(g.values.uniform(0.3, 0.6, (x.shape[1],) if per_channel else ()))
    zero = g.op.const(np.full((x.shape[1],) if per_channel else (), g.below(100)), TensorProto.UINT8)
    stored = g.op.QuantizeLinear(x.name, scale, zero)
    return g.node(x, "DequantizeLinear", stored, scale, zero)


@writes("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
def _in_integers(g: RandomGraph, op_type: str, _: Tensor) -> Tensor | None:
    """A layer in integers, on an input of the graph: no fold in front of it moves a value across a border."""
    inputs = [t for t in g.tensors if t.name in g.op.input_names() and t.rank == 4 and t.is_image()]
    if not g.quantizes or g.opset < 11 or not inputs:
        return None
    x, shape = inputs[0], list(inputs[0].shape)
    stored, scale, zero = g.op.DynamicQuantizeLinear(x.name, outputs=3)
    convolves = "Conv" in op_type
    shape[1 if convolves else 3] = 3
    size = (3, x.shape[1], 1, 1) if convolves else (x.shape[3], 3)
    weight = g.op.const(g.values.integers(0, 256, size), TensorProto.UINT8)
    if op_type.endswith("Integer"):
        total = g.op.Cast(g.op.node(op_type, stored, weight, zero), to=TensorProto.FLOAT)
        return Tensor(g.op.Mul(total, scale), tuple(shape), x.static)
    if op_type.startswith("QLinear"):
        step, middle = g.op.const(0.1), g.op.const(128, TensorProto.UINT8)
        stored = g.op.node(op_type, stored, scale, zero, weight, g.op.const(0.01), middle, step, middle)
        return Tensor(g.op.DequantizeLinear(stored, step, middle), tuple(shape), x.static)
    return g.node(x, "DequantizeLinear", stored, scale, zero)


def random_model(seed: int, steps: int | None = None, drawn: Sequence[str] = ()) -> onnx.ModelProto:
    """A random model, always the same for the same seed."""
    return RandomGraph(random.Random(seed)).model(steps, drawn)


# What graphs of branches are made of; "Sum" writes several that meet.
BRANCHES = ["Sum", "Sum", "Sum", "Conv", "MatMul", "BatchNormalization", "Relu", "Add", "Mul", "Concat"]


# A strategy of numbers, not of models: a failure prints the seed that benchmarks/fuzz.py repeats it with.
seeds = st.integers(0, 2**31 - 1)
steps = st.integers(2, 12)
