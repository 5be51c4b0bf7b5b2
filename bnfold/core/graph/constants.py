"""Constants as exporters write them, read in float64, evaluated only where a fold asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.core.affine import IDENTITY, Affine, Array
from bnfold.core.graph import external
from bnfold.core.graph.evaluate import evaluate, literal
from bnfold.core.graph.shapes import FLOATS, Facts, is_standard, opset_of, static_shape
from bnfold.core.reasons import Reason, Refused, require
from bnfold.errors import InvalidModelError

# Deterministic operators that exporters put between a stored constant and its reader.
_GENERATORS = frozenset(
    [
        "Add",
        "Cast",
        "CastLike",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Pow",
        "QuantizeLinear",
        "Range",
        "Reciprocal",
        "ReduceProd",
        "Reshape",
        "Shape",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)

# Longer chains of generators than this are not written by any exporter; each node of one takes five frames.
_MAX_DEPTH = 100

# Where a value keeps what its constant was rounded from, for the next pass to compute with.
_UNROUNDED = "bnfold.unrounded"

# What float64 cannot hold is no constant to any rule.
_NO_REALS = {ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}

# A constant that would be generated larger than this is taken as computed at run time.
_MAX_BYTES = 1 << 28


# From this size on a constant in a file of its own is read when, and as far as, it is asked for.
_LARGE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Const:
    """One constant tensor: what is stored, and the map already folded into it.

    The map is kept beside the stored values instead of being rounded into them, so that a constant
    that takes several maps is still rounded only once.

    Attributes:
        shape: of the tensor as it is now, map included.
        dtype: the type the tensor is stored in.
        source: the stored values in their own type (a scalar 0 for a bias that was absent), or the
            large tensor in a file that holds them.
        edit: the map on ``base`` whose result this constant is.
        integers: the integer type that the values are dequantized from. Such a constant is never
            written in floating point: a map on it goes up to its DequantizeLinear.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    source: npt.NDArray[Any] | ir.ExternalTensor
    edit: Affine = IDENTITY
    integers: ir.DataType | None = None

    @classmethod
    def stored(cls, tensor: ir.TensorProtocol) -> Const:
        """A constant that no map has touched; a large one in a file is not read yet."""
        dtype = ir.DataType(tensor.dtype)
        if isinstance(tensor, ir.ExternalTensor) and dtype in FLOATS:
            external.check(tensor)
            shape = tuple(tensor.shape.numpy())
            large = tensor.nbytes > _LARGE_BYTES
            return cls(
                shape, dtype, tensor if large else external.read(tensor, 0, prod(shape)).reshape(shape)
            )
        array = tensor.numpy()
        return cls(tuple(array.shape), dtype, array)

    @classmethod
    def absent(cls, dtype: ir.DataType) -> Const:
        """An optional bias that is not there: zero."""
        return cls((), dtype, np.zeros((), np.float64))

    @property
    def on_disk(self) -> bool:
        """Whether the stored values are in a file, not in memory."""
        return isinstance(self.source, ir.ExternalTensor)

    @property
    def base(self) -> npt.NDArray[Any]:
        """The stored values in their own type, read anew by each call if they are on disk."""
        if not isinstance(self.source, ir.ExternalTensor):
            return self.source
        shape = tuple(self.source.shape.numpy())
        return external.read(self.source, 0, prod(shape)).reshape(shape)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The stored values of these places of the first axis, broadcast against ``shape``."""
        if isinstance(self.source, ir.ExternalTensor) and self.source.shape.numpy() == self.shape:
            row = prod(self.shape[1:])
            stop = min(stop, self.shape[0])
            return external.read(self.source, start * row, (stop - start) * row).reshape(-1, *self.shape[1:])
        base = self.base
        return (base if base.shape == self.shape else np.broadcast_to(base, self.shape))[start:stop]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def exact(self) -> Array:
        """The values in float64, unrounded."""
        base = self.base.astype(np.float64)
        return base if self.edit.is_identity else self.edit(base)

    def vector(self, size: int) -> Array:
        """A bias as one value for each of ``size`` channels, in float64; raises like ``mapped``."""
        return np.broadcast_to(self.mapped(Affine.of(1.0, np.zeros(size))).exact.reshape(-1), size)

    def mapped(self, edit: Affine) -> Const:
        """This constant with one more map folded in.

        Raises:
            InvalidModelError: the constant has not the shape that its layer says.
        """
        try:
            shape = np.broadcast_shapes(self.shape, edit.scale.shape, edit.shift.shape)
        except ValueError as error:
            raise InvalidModelError(
                f"a constant of shape {list(self.shape)} does not fit the layer it belongs to; "
                "export the model again."
            ) from error
        return replace(self, shape=shape, edit=edit @ self.edit)


@dataclass
class Constants:
    """Every constant of a model by the value that holds it, read at most once."""

    facts: Facts
    opset: int
    overridable: frozenset[ir.Value]
    functions: frozenset[ir.OperatorIdentifier]
    _known: dict[ir.Value, Const] = field(default_factory=dict)
    _refused: dict[ir.Value, Reason] = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: ir.Model, facts: Facts) -> Constants:
        """Read the model's constants; from IR version 4 an initializer that is an input is none."""
        inputs = model.graph.inputs if model.ir_version >= 4 else ()
        overridable = frozenset(value for value in inputs if value.is_initializer())
        return cls(facts, opset_of(model), overridable, frozenset(model.functions))

    def get(self, value: ir.Value) -> Const:
        """The constant that ``value`` is.

        Raises:
            Refused: ``OVERRIDABLE`` or ``NOT_CONSTANT`` if it is none.
        """
        return self._get(value, 0)

    def holds(self, value: ir.Value) -> bool:
        """Whether ``value`` is a constant (without evaluating more than that needs)."""
        if value in self._known or value in self._refused:
            return value in self._known
        try:
            self.get(value)
        except Refused:
            return False
        return True

    def integers(self, value: ir.Value) -> ir.DataType | None:
        """The integer type that a constant is dequantized from, None for any other value."""
        return self.get(value).integers if self.holds(value) else None

    def suppose(self, value: ir.Value, const: Const) -> None:
        """Take ``value`` for this constant from now on; nobody else learns of it."""
        self._known[value] = const

    def remember(self, value: ir.Value, const: Const) -> None:
        """Let ``value`` be known with the unrounded values it was stored from, in later passes too."""
        self.suppose(value, const)
        value.meta[_UNROUNDED] = value.const_value, const

    @staticmethod
    def forget_all(model: ir.Model) -> None:
        """Keep nothing but what is stored."""
        for value in model.graph.initializers.values():
            value.meta.pop(_UNROUNDED, None)

    def forget(self, value: ir.Value) -> None:
        """Evaluate ``value``, and what is generated from it, anew next time."""
        pending = [value]
        while pending:
            value = pending.pop()
            if self._known.pop(value, None) is not None:
                pending.extend(output for node, _ in value.uses() for output in node.outputs)

    def _get(self, value: ir.Value, depth: int) -> Const:
        require(value not in self.overridable, Reason.OVERRIDABLE)
        if value in self._refused:  # a walk asks again at every step
            raise Refused(self._refused[value])
        if value not in self._known:
            try:
                tensor, const = value.meta.get(_UNROUNDED, (None, None))
                current = const is not None and tensor is value.const_value
                self._known[value] = const if current else self._read(value, depth)
            except Refused as refused:
                self._refused[value] = refused.reason
                raise
        return self._known[value]

    def _read(self, value: ir.Value, depth: int) -> Const:
        node = None if value.is_initializer() else value.producer()
        if node is not None and self._is(node, "DequantizeLinear"):
            return dequantized(node, [None if i is None else self._get(i, depth + 1) for i in node.inputs])
        const = _stored(value, self._tensor(value, depth))
        sources = (self._known.get(i) for i in (node.inputs if node else ()) if i is not None)
        integers = next((source.integers for source in sources if source and source.integers), None)
        return const if integers is None else replace(const, integers=integers)

    def _tensor(self, value: ir.Value, depth: int) -> ir.TensorProtocol:
        tensor = value.const_value if value.is_initializer() else self._generate(value, depth)
        if tensor is None or tensor.dtype in _NO_REALS:
            raise Refused(Reason.NOT_CONSTANT)
        return tensor

    def _generate(self, value: ir.Value, depth: int) -> ir.TensorProtocol | None:
        node = value.producer()
        if node is None or not self._is(node, *_GENERATORS):
            return None
        if node.op_type == "Constant":
            return literal(node)
        if node.op_type == "Shape":
            return static_shape(node, self.facts)
        if depth > _MAX_DEPTH or not self._is_bounded(value):
            return None
        if node.op_type == "CastLike":
            return self._cast_like(node, depth)
        feeds = [None if i is None else self._get(i, depth + 1) for i in node.inputs]
        return self._evaluate(node, [None if c is None else _numpy(c) for c in feeds])

    def _is(self, node: ir.Node, *op_types: str) -> bool:
        return node.op_type in op_types and is_standard(node, self.functions)

    def _cast_like(self, node: ir.Node, depth: int) -> ir.TensorProtocol | None:
        """Cast to the type of the second input, of which nothing but the type needs to be known."""
        source, like = (*node.inputs, None, None)[:2]
        dtype = None if like is None else self.facts.dtype(like)
        if source is None or dtype is None:
            return None
        array = self._get(source, depth + 1)
        return ir.tensor(_numpy(array).astype(dtype.numpy()), dtype)

    def _is_bounded(self, value: ir.Value) -> bool:
        sizes = [dim for dim in self.facts.shape(value) or () if isinstance(dim, int)]
        return value not in self.facts.vast and 8 * prod(sizes) <= _MAX_BYTES

    def _evaluate(self, node: ir.Node, feeds: list[npt.NDArray[Any] | None]) -> ir.TensorProtocol | None:
        result = evaluate(node, feeds, self.opset)
        return None if result is None else ir.tensor(result)


def dequantized(node: ir.Node, inputs: Sequence[Const | None]) -> Const:
    """What a DequantizeLinear makes of constants: ``scale·(q − zero point)``, not yet multiplied out."""
    stored, scale, zero = (*inputs, None, None, None)[:3]
    if stored is None or scale is None:
        raise Refused(Reason.NOT_CONSTANT)
    require(not any(each.is_ref() for each in node.attributes.values()), Reason.IN_FUNCTION)
    axis, block = (node.attributes.get_int(name, given) for name, given in (("axis", 1), ("block_size", 0)))
    factor = per_element(scale, stored.shape, axis, block)
    shift = -factor * (0.0 if zero is None else per_element(zero, stored.shape, axis, block))
    to = node.attributes.get_int("output_dtype", 0)
    edit = Affine.of(factor, shift) @ stored.edit
    return Const(
        stored.shape, ir.DataType(to) if to else scale.dtype, stored.source, edit, integers=stored.dtype
    )


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    info = ml_dtypes.iinfo(dtype.numpy())  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def per_element(parameter: Const, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point of a quantized tensor, so that it broadcasts against that tensor.

    It holds for the whole tensor, for one place on ``axis``, or for a block of so many places.
    """
    values = parameter.exact
    if values.size == 1:
        return values.reshape(())
    try:
        if block:
            values = np.repeat(values, block, axis=axis)
            return values.take(np.arange(shape[axis]), axis=axis)
        return values.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise InvalidModelError(
            f"a DequantizeLinear has a scale or zero point of shape {list(parameter.shape)} for a tensor "
            f"of shape {list(shape)}; export the model again."
        ) from error


def _stored(value: ir.Value, tensor: ir.TensorProtocol) -> Const:
    try:
        return Const.stored(tensor)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(
            f"the data of constant {value.name!r} do not fit its type and shape; export the model again."
        ) from error


def _numpy(const: Const) -> npt.NDArray[Any]:
    plain = const.edit.is_identity and const.integers is None
    return const.base if plain else const.exact.astype(const.dtype.numpy())
