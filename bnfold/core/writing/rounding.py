"""From float64 to what is stored: rounded once, refused where it cannot be held, a block at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.core.affine import Array
from bnfold.core.graph.constants import Const, integer_range
from bnfold.core.graph.shapes import FLOATS
from bnfold.core.reasons import Reason, require

# How many values of a constant are computed at a time: a block stays in the processor's cache.
_BLOCK = 1 << 16


class Rounded(ir.LazyTensor):
    """A constant that is computed, block by block, each time it is read or written; it holds no data.

    What it is computed from stays in its file, so a model larger than the memory can be folded.
    """

    __slots__ = ("const",)

    def __init__(self, const: Const) -> None:
        super().__init__(self._all, const.dtype, ir.Shape(const.shape))
        self.const = const

    def _all(self) -> ir.TensorProtocol:
        array = np.empty(self.const.shape, self.const.dtype.numpy())
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for rows, exact in blocks(self.const):
                array[rows] = exact
        return ir.Tensor(array, dtype=self.const.dtype)

    def tobytes(self) -> bytes:
        """The data as a file holds them: in row order, little-endian."""
        return b"".join(self.pieces())

    def tofile(self, file: IO[bytes]) -> None:
        """Write the data, a block at a time."""
        for piece in self.pieces():
            file.write(piece)

    def pieces(self) -> Iterator[bytes]:
        """The data in row order, little-endian, a block at a time."""
        dtype = self.const.dtype.numpy().newbyteorder("<")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for _, exact in blocks(self.const):
                yield exact.astype(dtype).tobytes()


def stored(const: Const) -> ir.TensorProtocol:
    """Round a constant from float64 to the type it is stored in, once.

    Returns:
        A tensor of ``const.shape`` in ``const.dtype``, without a name; it is computed only when it is
        asked for if the constant's source is on disk.

    Raises:
        Refused: ``NOT_FLOAT`` for a type that no fold writes, ``NOT_FINITE`` if the exact values are
            not finite, ``OVERFLOWS`` if the rounded ones are not, ``PRECISION_LOST`` if underflow costs more
            than 2 ulp of a channel's largest magnitude.
    """
    if const.dtype.is_integer():
        return _integers(const)
    require(const.dtype in FLOATS, Reason.NOT_FLOAT)
    info = _finfo(const.dtype)
    array = None if const.on_disk else np.empty(const.shape, const.dtype.numpy())
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        largest = _largest(const, into=array)
        require(bool(np.isfinite(largest).all()), Reason.NOT_FINITE)
        if largest.max(initial=0.0) > info.max:
            require(bool(np.isfinite(_largest(const, _round)).all()), Reason.OVERFLOWS)
        if (largest < info.tiny).any():
            lost = _largest(const, lambda exact, dtype: exact - _round(exact, dtype))
            kept = (largest >= info.tiny) | (lost <= 2 * info.eps * largest)
            require(bool(kept.all()), Reason.PRECISION_LOST)
    return Rounded(const) if array is None else ir.Tensor(array, dtype=const.dtype)


def _integers(const: Const) -> ir.TensorProtocol:
    """Whole numbers: those of a quantized tensor turned around, or an int32 bias rounded to its steps."""
    rounded = np.rint(np.broadcast_to(const.exact, const.shape))
    low, high = integer_range(const.dtype)
    require(bool(np.all((rounded >= low) & (rounded <= high))), Reason.OVERFLOWS)
    return ir.Tensor(rounded.astype(const.dtype.numpy()), dtype=const.dtype)


def _round(exact: Array, dtype: npt.DTypeLike) -> Array:
    return exact.astype(dtype).astype(np.float64)


def _largest(
    const: Const,
    of: Callable[[Array, npt.DTypeLike], Array] = lambda exact, dtype: exact,
    into: npt.NDArray[Any] | None = None,
) -> Array:
    """The largest magnitude within each channel, of the exact values or of what is made ``of`` them.

    The rounded values are put ``into`` an array on the way.
    """
    axes, parts = _axes_within_channel(const), []
    for rows, exact in blocks(const):
        if into is not None:
            into[rows] = exact
        made = np.abs(of(exact, const.dtype.numpy()))
        parts.append(made.max(axis=axes, keepdims=True, initial=0.0))
    if not parts or not const.shape or 0 in axes:
        return functools.reduce(np.maximum, parts, np.zeros(()))
    return np.concatenate(parts)


def blocks(const: Const) -> Iterator[tuple[Any, Array]]:
    """The exact values in float64, some rows at a time."""
    edit = const.edit
    if not const.shape:
        yield (), np.asarray(edit(const.base))
        return
    for rows, base in stored_blocks(const):
        block = base.astype(np.float64)
        if edit.scales:
            block *= _rows(edit.scale, const.rank, rows)
        if edit.shifts:
            block += _rows(edit.shift, const.rank, rows)
        yield rows, block


def stored_blocks(const: Const) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """The values that are stored, before any map, some rows at a time; a constant with at least one axis."""
    step = max(1, _BLOCK * const.shape[0] // max(1, prod(const.shape)))
    for start in range(0, const.shape[0], step):
        rows = slice(start, start + step)
        yield rows, const.rows(start, start + step)


def _rows(array: Array, rank: int, rows: slice) -> Array:
    """What of a map's array belongs to these rows of a constant."""
    return array[rows] if array.ndim == rank and len(array) > 1 else array


def _axes_within_channel(const: Const) -> tuple[int, ...]:
    """The axes of one channel: a slice of the constant on which the map is the same everywhere.

    The entries of a vector (a bias) are judged together: each is added to a channel whose weights
    are judged by themselves.
    """
    rank = len(const.shape)
    scale = const.edit.scale.shape if rank > 1 else ()
    varying = {axis + rank - len(scale) for axis, size in enumerate(scale) if size > 1}
    return tuple(axis for axis in range(rank) if axis not in varying)


@dataclass(frozen=True)
class _FloatInfo:
    max: float
    tiny: float
    eps: float


@functools.cache
def _finfo(dtype: ir.DataType) -> _FloatInfo:
    info = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    return _FloatInfo(float(info.max), float(info.tiny), float(info.eps))
