"""Which linear layer a node is: Conv, ConvTranspose, AveragePool, Gemm, MatMul with constant weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import cast

import numpy as np

from bnfold.branches.axis import Axis
from bnfold.branches.convolution import Convolution
from bnfold.branches.dense import Dense
from bnfold.branches.layer import Layer
from bnfold.branches.transposed import Transposed
from bnfold.core.affine import Array
from bnfold.core.graph.shapes import Dim
from bnfold.core.graph.view import fitting
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import Site
from bnfold.rules.weights.conv import check_groups


def layer(site: Site) -> Layer:
    """The layer that a node is of its first input.

    Raises:
        Refused: ``NOT_LINEAR`` for any other operator, or the reason why the layer is not known:
            a weight that is computed or overridable, a shape that is not inferred.
        InvalidModelError: the node's attributes and weights do not fit each other.
    """
    reader = _READERS.get(site.node.op_type)
    if reader is None or site.node.domain != "" or site.version == 0:
        raise Refused(Reason.NOT_LINEAR)
    for index in range(1, len(site.node.inputs)):
        floating = not site.is_const(index) or site.const(index).integers is None
        require(floating, Reason.QUANTIZED_SHIFT)
    with fitting(site.node):
        return reader(site)


def _conv(site: Site) -> Convolution:
    weight = site.const(1)
    bias = site.const(2) if site.has(2) else None
    groups = site.attr("group", 1)
    check_groups(site, weight.shape[0])
    filters, width = weight.shape[:2]

    def values() -> tuple[Array, Array]:
        return weight.exact, np.zeros(filters) if bias is None else bias.vector(filters)

    axes = _axes(site, weight.shape[2:])
    return Convolution(filters, groups * width, values, axes, groups)


def _conv_transpose(site: Site) -> Transposed:
    weight = site.const(1)
    bias = site.const(2) if site.has(2) else None
    groups, none = site.attr("group", 1), [0] * (weight.rank - 2)
    channels, width = weight.shape[:2]
    check_groups(site, channels)
    plain = site.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    require(plain and not site.attr("output_shape", cast("list[int]", [])), Reason.WINDOWS_DIFFER)
    longer = site.attr("output_padding", none)
    windows = _axes(site, weight.shape[2:])
    axes = tuple(replace(axis, end=axis.end - a) for a, axis in zip(longer, windows, strict=True))

    def values() -> tuple[Array, Array]:
        outputs = groups * width
        return weight.exact, np.zeros(outputs) if bias is None else bias.vector(outputs)

    return Transposed(groups * width, channels, values, axes, groups)


def _average_pool(site: Site) -> Convolution:
    """The mean of a window of which every element counts: a kernel of equal weights for each channel."""
    shape, kernel = site.shape(0), site.attr("kernel_shape", cast("list[int]", []))
    require(not site.attr("ceil_mode", 0), Reason.WINDOWS_DIFFER)
    axes = _axes(site, kernel)
    padded = any(pad for axis in axes for pad in axis.pads)
    require(not padded or bool(site.attr("count_include_pad", 0)), Reason.WINDOWS_DIFFER)
    channels = shape[1]
    if not isinstance(channels, int):
        raise Refused(Reason.UNKNOWN_SHAPE)
    weight = np.full((channels, 1, *kernel), 1.0 / prod(kernel))
    return Convolution(channels, channels, lambda: (weight, np.zeros(channels)), axes, channels)


def _gemm(site: Site) -> Dense:
    weight = site.const(1)
    require(not site.attr("transA", 0), Reason.MIXED_AXES)
    turned, alpha, beta = site.attr("transB", 0), site.attr("alpha", 1.0), site.attr("beta", 1.0)
    inputs, outputs = weight.shape[::-1] if turned else weight.shape
    bias = site.const(2) if site.has(2) and beta else None
    require(bias is None or all(size == 1 for size in bias.shape[:-1]), Reason.MIXED_AXES)

    def values() -> tuple[Array, Array]:
        matrix = weight.exact.T if turned else weight.exact
        return alpha * matrix, np.zeros(outputs) if bias is None else beta * bias.vector(outputs)

    return Dense(outputs, inputs, values)


def _matmul(site: Site) -> Dense:
    weight = site.const(1)
    require(weight.rank == 2 and len(site.shape(0)) >= 2, Reason.MIXED_AXES)
    inputs, outputs = weight.shape
    return Dense(outputs, inputs, lambda: (weight.exact, np.zeros(outputs)))


_READERS: dict[str, Callable[[Site], Layer]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _axes(site: Site, kernel: Sequence[int]) -> tuple[Axis, ...]:
    """The window along each spatial axis, however the node states its padding."""
    ones = [1] * len(kernel)
    strides, steps = site.attr("strides", ones), site.attr("dilations", ones)
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, steps, strict=True)]
    mode, none = site.attr("auto_pad", "NOTSET"), [0] * (2 * len(kernel))
    if mode.startswith("SAME"):
        sizes = site.shape(0)[2:] if any(stride > 1 for stride in strides) else ones
        triples = zip(sizes, strides, reach, strict=True)
        pads = [_same(*triple, upper=mode == "SAME_UPPER") for triple in triples]
    else:
        flat = site.attr("pads", none) if mode == "NOTSET" else none
        pads = list(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    windows = zip(strides, steps, kernel, reach, pads, strict=True)
    return tuple(
        Axis(stride, -begin, step, taps, end - (span - 1 - begin))
        for stride, step, taps, span, (begin, end) in windows
    )


def _same(size: Dim, stride: int, span: int, *, upper: bool) -> tuple[int, int]:
    """The pads with which there is one output for every ``stride`` inputs; the odd one goes where asked."""
    if stride == 1:
        size = 1  # as many pads on any size
    if not isinstance(size, int):
        raise Refused(Reason.UNKNOWN_SHAPE)
    total = max(0, (-(-size // stride) - 1) * stride + span - size)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)
