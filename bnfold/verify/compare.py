"""The distance of two tensors, and the bound that rounding alone keeps.

Distances are counted in units in the last place (ulp) of the tensor's dtype at its largest magnitude::

    ulp(a) = 2^⌊log2 max|a|⌋ · ε        ε = 2⁻²³ float32, 2⁻⁵² float64, 2⁻¹⁰ float16, 2⁻⁷ bfloat16

A fold rounds every weight once and makes each sum round differently. Every summing operator (Conv, MatMul, ...)
so adds an error of a few ulp, independent of the errors before it. Independent errors add as squares, and a
normalized net passes them on about as large as they came, so that after ``depth`` summing operators

    max|b - a|  ≤  ULP_PER_OPERATOR · √max(1, depth) · ulp(a)

``ULP_PER_OPERATOR`` is measured, not assumed: docs/verification.md, benchmarks/verification_bound.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ULP_PER_OPERATOR = 8.0
TELLING = 10.0
_CHUNK = 1 << 20
_PROBES = 1024


def rounding_bound(depth: int) -> float:
    """The ulp that rounding explains behind ``depth`` summing operators."""
    return ULP_PER_OPERATOR * math.sqrt(max(1, depth))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of the dtype round: IEEE floats and those of ml_dtypes (bfloat16, float8)."""
    return dtype.kind in "fc" or (dtype.kind == "V" and "float" in dtype.name)


def ulp_at(dtype: np.dtype[Any], magnitude: float) -> float:
    """The unit in the last place of a float dtype at a magnitude, in float64; at 0 the smallest subnormal."""
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    smallest = float(info.smallest_subnormal)
    if magnitude == 0.0:
        return smallest
    return max(math.ldexp(float(info.eps), math.frexp(magnitude)[1] - 1), smallest)


@dataclass
class Gap:
    """How far ``b`` is from ``a``, on the worst input seen so far.

    Attributes:
        dtype: element type of ``a``.
        max_abs: largest finite ``|b - a|``.
        scale: largest finite ``|a|``.
        ulp: ``max_abs / ulp(a)``; infinite where the two disagree in kind (shape, infinity, NaN, discrete
            value).
        clash: what disagrees in kind, or "".
        same_shape: whether both had one shape and dtype.
        extent: the smaller of ``max a - min a`` and of the largest distance of a value of ``a`` from both 0
            and 1, in ulp: next to nothing for a saturated tensor (infinite for discrete dtypes with two values).
        probes: up to 1024 values of the first ``a`` seen, to notice that another input changes nothing.
        moved: largest change of ``probes`` by another input, in ulp; None while only one input was seen.
    """

    dtype: np.dtype[Any]
    max_abs: float = 0.0
    scale: float = 0.0
    ulp: float = 0.0
    clash: str = ""
    same_shape: bool = True
    extent: float = 0.0
    probes: Array | None = None
    moved: float | None = None

    def tells(self, bound: float) -> bool:
        """Whether a wrong value would show: the tensor varies by more than ``TELLING`` times the bound."""
        return min(self.extent, math.inf if self.moved is None else self.moved) > TELLING * bound

    @property
    def max_rel(self) -> float:
        """``max_abs`` relative to the largest magnitude of ``a``."""
        return self.max_abs / self.scale if self.scale else math.inf * bool(self.max_abs)

    def worse(self, other: Gap) -> Gap:
        """The worse of two inputs' gaps, knowing what both saw."""
        worst = self if self.ulp >= other.ulp else other
        worst.extent = max(self.extent, other.extent)
        worst.moved = max(self.moved or 0.0, _moved(self.probes, other.probes))
        worst.probes = self.probes
        return worst

    def contrast(self, a: Array) -> None:
        """Take note of the original's value on one more input, on which nothing is compared."""
        self.moved = max(self.moved or 0.0, _moved(self.probes, _probe(a)))


def gap(a: Array | None, b: Array | None) -> Gap:
    """Compare one tensor of both models in float64, ``a`` the original's; None where a model lacks it."""
    if a is None or b is None:
        present = next((each.dtype for each in (a, b) if each is not None), np.dtype(object))
        return Gap(present, math.inf, ulp=math.inf, clash="only one model has it", same_shape=False)
    if a.shape != b.shape or a.dtype != b.dtype:
        clash = f"{b.dtype.name}{list(b.shape)} instead of {a.dtype.name}{list(a.shape)}"
        probes = _probe(a)
        return Gap(a.dtype, math.inf, 0.0, math.inf, clash, False, math.inf, probes)
    return _float_gap(a, b) if is_float(a.dtype) else _discrete_gap(a, b)


def _float_gap(a: Array, b: Array) -> Gap:
    lost, worst, scale, extreme = 0, 0.0, 0.0, 0.0
    low, high = math.inf, -math.inf
    for x, y in _chunks(a, b):
        finite = np.isfinite(x)
        same = np.where(finite, np.isfinite(y), (x == y) | (np.isnan(x) & np.isnan(y)))
        lost += int(x.size - np.count_nonzero(same))
        both = finite & same
        worst = max(
            worst, float(np.abs(np.subtract(y, x, where=both, out=np.zeros_like(x))).max(initial=0.0))
        )
        scale = max(scale, float(np.abs(x).max(where=finite, initial=0.0)))
        extreme = max(extreme, float(np.minimum(np.abs(x), np.abs(1 - x)).max(where=finite, initial=0.0)))
        low = min(low, float(x.min(where=finite, initial=math.inf)))
        high = max(high, float(x.max(where=finite, initial=-math.inf)))
    unit = ulp_at(a.dtype, scale)
    clash = f"{lost} of {a.size} values are infinite or NaN in one model only" if lost else ""
    extent = max(0.0, min(extreme, high - low)) / unit
    return Gap(a.dtype, worst, scale, math.inf if lost else worst / unit, clash, True, extent, _probe(a))


def _discrete_gap(a: Array, b: Array) -> Gap:
    wrong = int(np.count_nonzero(a != b))
    clash = f"{wrong} of {a.size} values differ" if wrong else ""
    numeric = wrong and a.dtype.kind in "iu"
    step = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if numeric else 0.0
    scale = float(np.abs(a.astype(np.float64)).max(initial=0.0)) if a.dtype.kind in "iu" else 0.0
    alike = a.size == 0 or bool((a == a.reshape(-1)[0]).all())
    extent = 0.0 if alike else math.inf
    return Gap(a.dtype, step, scale, math.inf if wrong else 0.0, clash, True, extent, _probe(a))


def _chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both tensors piece by piece in float64 (complex ones as pairs): a large tensor is never held twice."""
    flat = [each.reshape(-1).view(each.real.dtype) for each in map(np.ascontiguousarray, (a, b))]
    for start in range(0, flat[0].size, _CHUNK):
        x, y = (each[start : start + _CHUNK].astype(np.float64) for each in flat)
        yield x, y


def _probe(a: Array) -> Array:
    flat = a.reshape(-1)
    return flat[:: max(1, flat.size // _PROBES)][:_PROBES].copy()


def _moved(a: Array | None, b: Array | None) -> float:
    return gap(a, b).ulp
