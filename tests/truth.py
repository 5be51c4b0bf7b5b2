"""What a model computes over the reals, as near as float64 comes: onnx's reference evaluator, widened.

Every floating-point tensor, constant and cast of the model is turned into float64 before it runs,
so that the only difference between an original and its folded model is the rounding of the folded
weights. Nothing of bnfold is used here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_resize
from recurrent import GRU, LSTM, RNN

Array = NDArray[Any]
Arrays = dict[str, Array]

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_OLD_NAMES = {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}

# What a missing epsilon is: the schema's default is a float32.
_EPSILON = float(np.float32(1e-5))


class BatchNormalization(OpRun):
    """Batch normalization as the operator's opset defines it; onnx 1.23's own is wrong below opset 14."""

    def _run(self, x, scale, bias, mean, var, **attributes):  # type: ignore[no-untyped-def]
        """Normalize along axis 1: by the given statistics at inference, by the batch's in training."""
        opset = self.run_params["opsets"][""]
        epsilon = attributes.get("epsilon")
        epsilon = _EPSILON if epsilon is None else epsilon
        tail = [1] * (x.ndim - 2)
        if attributes.get("spatial") == 0:
            y = scale * (x - mean) / np.sqrt(var + epsilon) + bias
        else:
            if _trains(opset, attributes, sum(map(bool, self.onnx_node.output))):
                axes = (0, *range(2, x.ndim))
                mean, var = x.mean(axis=axes), x.var(axis=axes)
            channels = (part.reshape(-1, *tail) for part in (scale, bias, mean, var))
            scale, bias, mean, var = channels
            y = scale * (x - mean) / np.sqrt(var + epsilon) + bias
        # The statistics are returned as given: no test asks for their running values.
        given = (mean.reshape(-1), var.reshape(-1), mean.reshape(-1), var.reshape(-1))
        return (y, *given)[: len(self.onnx_node.output)]


def _trains(opset: int, attributes: Mapping[str, Any], outputs: int) -> bool:
    if opset < 7:
        return not attributes.get("is_test")
    if opset < 14:
        return outputs > 1
    return bool(attributes.get("training_mode"))


class ConvTranspose(OpRun):
    """Transposed convolution by its definition; onnx 1.23's own fails for groups."""

    def _run(self, x, weight, bias=None, **given):  # type: ignore[no-untyped-def]
        """Add every input element times the kernel to the output, then crop the padding."""
        attributes = {name: value for name, value in given.items() if value}
        groups, kernel, rank = attributes.get("group", 1), weight.shape[2:], x.ndim - 2
        ones, sizes = [1] * rank, x.shape[2:]
        strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
        extra = attributes.get("output_padding", [0] * rank)
        taps = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        grid = [s * (n - 1) for s, n in zip(strides, sizes, strict=True)]
        padded = [sum(parts) for parts in zip(grid, taps, extra, strict=True)]
        begins, ends = _crop(attributes, padded, sizes, strides)
        inputs = x.reshape(x.shape[0], groups, -1, *sizes)
        weights = weight.reshape(groups, -1, *weight.shape[1:])
        y = np.zeros((x.shape[0], groups, weight.shape[1], *padded))
        for tap in np.ndindex(*kernel):
            starts = [t * d for t, d in zip(tap, dilations, strict=True)]
            places = [slice(b, b + n + 1, s) for b, n, s in zip(starts, grid, strides, strict=True)]
            y[(..., *places)] += np.einsum("ngc...,gcm->ngm...", inputs, weights[(..., *tap)])
        y = y.reshape(x.shape[0], -1, *padded)
        kept = [slice(b, n - e) for b, e, n in zip(begins, ends, padded, strict=True)]
        y = y[(..., *kept)]
        return (y if bias is None else y + bias.reshape(-1, *ones),)


def _crop(attributes, padded, sizes, strides):  # type: ignore[no-untyped-def]
    """How much of the full output is cut off at the begin and at the end of each axis."""
    mode, rank = attributes.get("auto_pad", "NOTSET"), len(sizes)
    wanted = attributes.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = attributes.get("pads", [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    wanted = wanted or [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [max(0, size - target) for size, target in zip(padded, wanted, strict=True)]
    halves = [total // 2 for total in totals]
    rests = [total - half for total, half in zip(totals, halves, strict=True)]
    return (halves, rests) if mode == "SAME_UPPER" else (rests, halves)


class Pool(OpRun):
    """Pooling by its definition; onnx 1.23's own pads wrongly where pads are not symmetric."""

    def _windows(self, x, padding, beyond, given):  # type: ignore[no-untyped-def]
        """For every tap of the kernel, what each output position sees there."""
        sizes, ones = x.shape[2:], [1] * (x.ndim - 2)
        strides, dilations = given.get("strides") or ones, given.get("dilations") or ones
        reach = [(k - 1) * d + 1 for k, d in zip(given["kernel_shape"], dilations, strict=True)]
        begins, ends = _pads(given, sizes, strides, reach)
        room = [sum(parts) for parts in zip(sizes, begins, ends, strict=True)]
        counts = [
            _count(w, r, s, bool(given.get("ceil_mode")), n + b)
            for w, r, s, n, b in zip(room, reach, strides, sizes, begins, strict=True)
        ]
        needed = [(c - 1) * s + r for c, s, r in zip(counts, strides, reach, strict=True)]
        more = [max(0, w - n) for w, n in zip(needed, room, strict=True)]
        still = [(0, 0), (0, 0)]
        x = np.pad(x, [*still, *zip(begins, ends, strict=True)], constant_values=padding)
        x = np.pad(x, [*still, *((0, size) for size in more)], constant_values=beyond)
        for tap in np.ndindex(*given["kernel_shape"]):
            starts = [t * d for t, d in zip(tap, dilations, strict=True)]
            spans = zip(starts, counts, strides, strict=True)
            yield x[(..., *(slice(b, b + (n - 1) * s + 1, s) for b, n, s in spans))]


def _pads(given, sizes, strides, reach):  # type: ignore[no-untyped-def]
    """The padding at the begin and at the end of each axis."""
    mode, rank = given.get("auto_pad") or "NOTSET", len(sizes)
    if mode in ("NOTSET", "VALID"):
        pads = (given.get("pads") if mode == "NOTSET" else None) or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    spans = zip(sizes, strides, reach, strict=True)
    totals = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in spans]
    small, large = [total // 2 for total in totals], [-(-total // 2) for total in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _count(room: int, reach: int, stride: int, ceil: bool, start: int) -> int:
    """How many windows fit; with ``ceil`` one more, unless it would start behind ``start``."""
    count = (-(-(room - reach) // stride) if ceil else (room - reach) // stride) + 1
    return count - (ceil and (count - 1) * stride >= start)


class MaxPool(Pool):
    """The largest value of a window and, where asked for, its position in the whole tensor."""

    def _run(self, x, **given):  # type: ignore[no-untyped-def]
        """Padding never wins; of equal values the first one does."""
        places = np.arange(x.size).reshape(x.shape)
        windows = np.stack(list(self._windows(x, -np.inf, -np.inf, given)))
        positions = np.stack(list(self._windows(places, -1, -1, given)))
        first = windows.argmax(axis=0)[None]
        found = [np.take_along_axis(part, first, axis=0)[0] for part in (windows, positions)]
        return tuple(found[: len(self.onnx_node.output)])


class AveragePool(Pool):
    """The mean of a window."""

    def _run(self, x, count_include_pad=0, **given):  # type: ignore[no-untyped-def]
        """Padding counts as zeros, or does not count; what lies beyond it never does."""
        counts = sum(self._windows(np.ones_like(x), count_include_pad or 0, 0.0, given))
        return (sum(self._windows(x, 0.0, 0.0, given)) / counts,)


class DequantizeLinear(OpRun):
    """Multiplied out in float64; onnx 1.23's own starts at opset 19 and takes integers to float32."""

    def _run(self, x, scale, zero=None, axis=1, block_size=0, output_dtype=None):  # type: ignore[no-untyped-def]
        """Subtract the zero point, multiply by the scale."""
        if self.run_params["opsets"][""] < 13 and scale.size > 1:
            raise ValueError("one scale for a tensor before opset 13")
        zero = 0.0 if zero is None else _per_element(zero, x.shape, axis, block_size)
        return ((x.astype(np.float64) - zero) * _per_element(scale, x.shape, axis, block_size),)


class QuantizeLinear(OpRun):
    """Rounded to the nearest integer; onnx 1.23's own starts at opset 10 with an int32 that may wrap."""

    def _run(self, x, scale, zero=None, axis=1, block_size=0, output_dtype=None, **_):  # type: ignore[no-untyped-def]
        """Divide, round half to even, add the zero point, clip to the type."""
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(output_dtype)) if output_dtype else np.dtype(np.uint8)
        kind = kind if zero is None else zero.dtype
        info = ml_dtypes.iinfo(kind)
        zero = 0.0 if zero is None else _per_element(zero, x.shape, axis, block_size)
        steps = np.rint(x / _per_element(scale, x.shape, axis, block_size)) + zero
        return (np.clip(steps, info.min, info.max).astype(kind),)


def _per_element(parameter, shape, axis, block):  # type: ignore[no-untyped-def]
    """A scale or zero point, in float64, for each element of a tensor of this shape."""
    parameter = np.asarray(parameter).astype(np.float64)
    if parameter.size == 1:
        return parameter.reshape(())
    if block:
        return np.repeat(parameter, block, axis=axis).take(np.arange(shape[axis]), axis=axis)
    tail = len(shape) - axis % len(shape) - 1
    return parameter.reshape(-1, *[1] * tail)


class GroupNormalization(OpRun):
    """In float64 throughout; onnx 1.23's own computes the statistics in float32 from version 21 on."""

    def _run(self, x, scale, bias, num_groups=1, epsilon=None, **_):  # type: ignore[no-untyped-def]
        """Up to version 18 scale and bias are one per group, later one per channel."""
        epsilon = _EPSILON if epsilon is None else epsilon
        grouped = x.reshape(x.shape[0], num_groups, -1)
        spread = np.sqrt(grouped.var(axis=2, keepdims=True) + epsilon)
        y = ((grouped - grouped.mean(axis=2, keepdims=True)) / spread).reshape(x.shape)
        repeats = 1 if self.run_params["opsets"][""] >= 21 else x.shape[1] // num_groups
        ones = [1] * (x.ndim - 2)
        scale, bias = (np.repeat(part, repeats).reshape(-1, *ones) for part in (scale, bias))
        return (scale * y + bias,)


class GlobalMaxPool(OpRun):
    """The largest value of a channel; onnx 1.23's own takes images only."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        """Reduce every axis but the first two."""
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Slice(OpRun):
    """Slices with their ends clamped; onnx 1.23's own loses the first entry of backward slices."""

    def _run(self, x, *given, starts=None, ends=None, axes=None):  # type: ignore[no-untyped-def]
        """Take the ends from attributes or, from opset 10 on, from the inputs."""
        starts, ends, axes, steps = (*(given or (starts, ends, axes)), None, None)[:4]
        axes = range(len(starts)) if axes is None else axes
        for place, axis in enumerate(axes):
            size, step = x.shape[axis], 1 if steps is None else steps[place]
            low, high = (0, size) if step > 0 else (-1, size - 1)
            start, end = (int(e[place]) + size * (e[place] < 0) for e in (starts, ends))
            start, end = min(max(start, 0), high), min(max(end, low), high)
            x = np.take(x, np.arange(start, end, step), axis=int(axis))
        return (x,)


class GatherElements(OpRun):
    """An index for every element; onnx 1.23's own wants as many indices as there are elements."""

    def _run(self, x, indices, axis=0):  # type: ignore[no-untyped-def]
        """Replace one coordinate of every position by its index."""
        places = list(np.indices(indices.shape))
        places[axis] = indices
        return (x[tuple(places)],)


class Resize(op_resize.Resize):
    """Interpolation; onnx 1.23's own does not know the first version, nor axes counted from the end."""

    def _run(self, x, *given, **attributes):  # type: ignore[no-untyped-def]
        """Before opset 11 the only other input is the scales, and a position is divided by its scale."""
        if self.run_params["opsets"][""] >= 11:
            if attributes.get("axes") is not None:
                attributes["axes"] = [int(axis) % x.ndim for axis in attributes["axes"]]
            return super()._run(x, *given, **attributes)
        return self._stretched(x, *given, **attributes)

    def _stretched(self, x, scales, mode="nearest", **_):  # type: ignore[no-untyped-def]
        grid = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return super()._run(x, None, np.asarray(scales, np.float64), mode=mode or "nearest", **grid)


class Upsample(Resize):
    """What became Resize; onnx 1.23's own repeats nearest neighbours only."""

    def _run(self, x, given=None, scales=None, mode="nearest"):  # type: ignore[no-untyped-def]
        """Take the scales from the attribute or, from opset 9 on, from the input."""
        return self._stretched(x, scales if given is None else given, mode)


class Mean(OpRun):
    """The mean of the operands; onnx 1.23's own does not broadcast the first one."""

    def _run(self, *operands):  # type: ignore[no-untyped-def]
        """Add all, and divide by their number."""
        return (sum(operands) / len(operands),)


class Unsqueeze(OpRun):
    """New axes of size 1; onnx 1.23's own inserts axes counted from the end one after another."""

    def _run(self, x, given=None, axes=None):  # type: ignore[no-untyped-def]
        """Take the axes from the attribute or, from opset 13 on, from the input."""
        return (np.expand_dims(x, tuple(int(axis) for axis in (axes if given is None else given))),)


class Squeeze(OpRun):
    """Axes of size 1 vanish; onnx 1.23's own drops axes counted from the end one after another."""

    def _run(self, x, given=None, axes=None):  # type: ignore[no-untyped-def]
        """Take the axes from the attribute or, from opset 13 on, from the input; all if there are none."""
        chosen = axes if given is None else given
        return (np.squeeze(x, None if chosen is None else tuple(int(axis) for axis in chosen)),)


def _before_7(op_type: str, ufunc: np.ufunc) -> type[OpRun]:
    """A binary operator that broadcasts by attributes, which onnx's evaluator does not know."""

    def run(self, a, b, axis=None, broadcast=0, **_):  # type: ignore[no-untyped-def]
        """Line up b with a from ``axis`` on, or with the last axes; without the attribute they are alike."""
        if not broadcast and a.shape != b.shape:
            raise ValueError(f"{op_type} of {a.shape} and {b.shape} does not broadcast")
        if broadcast and axis is not None:
            b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
        return (ufunc(a, b),)

    return type(op_type, (OpRun,), {"_run": run})


class Dropout(OpRun):
    """Dropout before opset 7, which drops unless ``is_test`` is set."""

    def _run(self, x, is_test=0, ratio=0.5, **_):  # type: ignore[no-untyped-def]
        """Keep each element with probability ``1 - ratio``, the same ones every time."""
        ratio = 0.5 if ratio is None else ratio
        kept = np.random.default_rng(0).random(x.shape) >= ratio
        return (x if is_test else x * kept / (1 - ratio),)


_UFUNCS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_BEFORE_7 = [Dropout, *(_before_7(name, ufunc) for name, ufunc in _UFUNCS.items())]


def truth(model: ModelProto, feeds: Mapping[str, NDArray[Any]], new_ops: Iterable[type] = ()) -> Arrays:
    """The value of every tensor of the main graph, initializers and inputs included, by name."""
    old = _BEFORE_7 if any(opset.domain == "" and opset.version < 7 for opset in model.opset_import) else []
    ops = [BatchNormalization, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool, Squeeze, Unsqueeze]
    ops += [GroupNormalization, LSTM, GRU, RNN]
    ops += [DequantizeLinear, QuantizeLinear, Slice, GatherElements, Mean, Resize, Upsample, *old, *new_ops]
    evaluator = ReferenceEvaluator(widened(model), new_ops=ops)
    given = {name: feed.astype(np.float64) if _is_float(feed) else feed for name, feed in feeds.items()}
    with np.errstate(all="ignore"):
        values = evaluator.run(None, given, intermediate=True)
    tensors = {name: value for name, value in values.items() if not isinstance(value, list)}
    return {name: np.asarray(value) for name, value in tensors.items() if name and value is not None}


# Half a unit in the last place of 1: what one rounding of a stored weight costs at most.
UNIT = {
    TensorProto.DOUBLE: 2.0**-53,
    TensorProto.FLOAT: 2.0**-24,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
}


def differences(
    original: ModelProto,
    folded: ModelProto,
    feeds: Mapping[str, Array],
    new_ops: Iterable[type] = (),
) -> list[str]:
    """What differs between two models beyond the rounding of weights: outputs, and tensors of one name.

    A tensor name that stands in both models has to denote the same value. Rounded weights may sum up
    to some units of the largest magnitude in either model, times the layers and terms of a small graph.
    """
    before, after = truth(original, feeds, new_ops), truth(folded, feeds, new_ops)
    missing = [output.name for output in original.graph.output if output.name not in after]
    units = [UNIT[t.data_type] for t in original.graph.initializer if t.data_type in UNIT]
    room = 500 * max(units, default=UNIT[TensorProto.FLOAT]) * largest([*before.values(), *after.values()])
    found = [f"output {name} is gone" for name in missing]
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        if a.shape != b.shape:
            found.append(f"{name} has shape {b.shape}, not {a.shape}")
        elif a.dtype.kind == "f" and not np.allclose(a, b, rtol=0, atol=room, equal_nan=True):
            found.append(f"{name} is off by {np.abs(a - b).max():.3g}, of which rounding explains {room:.3g}")
        elif a.dtype.kind != "f" and not np.array_equal(a, b):
            found.append(f"{name} differs")
    return found


def outputs_of(model: ModelProto, values: Arrays) -> list[NDArray[Any]]:
    """The graph outputs among the values of all tensors, in order."""
    return [values[output.name] for output in model.graph.output]


def widened(model: ModelProto) -> ModelProto:
    """A copy in which everything of floating point is float64."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for graph in graphs(wide.graph):
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _FLOATS:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for node in graph.node:
            _widen_node(node)
    for function in wide.functions:
        for node in function.node:
            _widen_node(node)
    return wide


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph nested in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif node.op_type == "Cast" and attribute.name == "to":
            if attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif attribute.s.decode() in _OLD_NAMES:
                attribute.s = b"DOUBLE"
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.asarray(value, np.float64))
            attribute.CopyFrom(helper.make_attribute("value", tensor))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _is_float(array: NDArray[Any]) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"


def feeds_for(
    model: ModelProto,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    overriding: bool = False,
) -> Arrays:
    """Random inputs, the same for the same seed; an unknown dimension is ``sizes[name]``, else 3.

    Args:
        model: its inputs that are no initializers are fed.
        sizes: by symbolic name; an unnamed dimension is called "".
        seed: of the random numbers.
        overriding: feed initializers, too, where a caller may (IR version 4).
    """
    fixed = not overriding or model.ir_version < 4
    stored = {tensor.name for tensor in model.graph.initializer} if fixed else set()
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            feeds[value.name] = _random(value, sizes or {}, seed)
    return feeds


def _random(value: onnx.ValueInfoProto, sizes: Mapping[str, int], seed: int) -> NDArray[Any]:
    kind = value.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, 3) for dim in kind.shape.dim
    ]
    random = np.random.default_rng([seed, zlib.crc32(value.name.encode())])
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if kind.elem_type == TensorProto.BOOL:
        return np.asarray(random.integers(0, 2, shape), dtype)
    if kind.elem_type not in _FLOATS:
        return np.asarray(random.integers(1, 9, shape), dtype)
    return np.asarray(random.normal(0.0, 1.0, shape)).astype(dtype)


def onnx_runtime(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]] | None:
    """The graph outputs in ONNX Runtime with its optimizations off, or None where it has no kernel."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def largest(values: Iterable[NDArray[Any]]) -> float:
    """The largest finite magnitude in any of the arrays, at least 1."""
    sizes = (np.abs(v[np.isfinite(v)]).max(initial=0.0) for v in map(_as_float, values))
    return max(1.0, *(float(size) for size in sizes))


def _as_float(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(array).astype(np.float64) if np.asarray(array).dtype.kind in "biufV" else np.zeros(1)
