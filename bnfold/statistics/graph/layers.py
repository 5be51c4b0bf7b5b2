"""The batch norms of a model with the statistics they store, and how deep each one stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.core.reasons import Reason, Refused
from bnfold.core.view import View, name_of
from bnfold.statistics.graph import decomposed
from bnfold.statistics.graph.slots import Slot, Statistic
from bnfold.training import Running
from bnfold.training.moments import Floats

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One batch norm: y = gain·(x - mean)/√(variance + epsilon) + bias, per channel.

    Attributes:
        name: as reports name it.
        output: the name of the tensor y, which no other layer has.
        tensor: the name of the tensor x.
        axis: the axis of x that holds the channels, counted from the front.
        rank: how many axes x has.
        dtype: the type of x, as onnx_ir calls it: "FLOAT", "FLOAT16" and so on.
        wave: 1 + the number of batch norms on the longest path in front of it.
        parents: the outputs of the batch norms right in front of it.
        mean: stored moving mean of shape (C,), in the unit of x.
        variance: stored moving variance of shape (C,), in the unit of x squared.
        gain: gamma of shape (C,).
        bias: β of shape (C,).
        epsilon: ε, in the unit of x squared.
        note: what had to be assumed to read it, if anything.
    """

    name: str
    output: str
    tensor: str
    axis: int
    rank: int
    dtype: str
    wave: int
    parents: tuple[str, ...]
    mean: Floats = field(repr=False)
    variance: Floats = field(repr=False)
    gain: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    epsilon: float
    note: str = ""

    @property
    def deviation(self) -> Floats:
        """√(variance + epsilon), what the layer divides by: the unit of every shift in a report."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self.variance + self.epsilon))

    @property
    def broken(self) -> Flags:
        """The channels whose stored statistics no value can be normalized by."""
        finite = np.isfinite(self.mean) & np.isfinite(self.variance)
        return np.asarray(~(finite & (self.variance + self.epsilon > 0)))

    def relative(self, new: Running) -> tuple[Floats, Floats]:
        """How far other statistics are off: per channel, a shift in stored σ and a ratio of variances.

        With ε in both variances, a channel that is dead in both counts as one that fits. A broken
        channel has shift 0 and ratio 1: there is nothing to hold it against.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = (new.mean - self.mean) / self.deviation
            ratio = (new.variance + self.epsilon) / (self.variance + self.epsilon)
        return np.where(self.broken, 0.0, shift), np.where(self.broken, 1.0, ratio)


@dataclass(frozen=True)
class Found:
    """A layer and the constants of the model in which its statistics stand."""

    layer: Layer
    mean: Slot
    variance: Slot


@dataclass(frozen=True)
class Unmeasured:
    """A batch norm whose statistics cannot be compared with data.

    Attributes:
        name: of the node.
        why: one or two sentences that say why, and what would help.
    """

    name: str
    why: str


def survey(model: ir.Model) -> tuple[list[Found], list[Unmeasured]]:
    """Find every batch norm of a model in graph order, and say which ones cannot be measured."""
    view = View(model)
    found: dict[ir.Node, Found] = {}
    left: list[Unmeasured] = []
    for node in view.nodes():
        if node.op_type != "BatchNormalization" or node.domain != "":
            continue
        try:
            if node.graph is not model.graph:
                raise _Left("It stands in the body of an If, Loop or Scan; inline the body.")
            found[node] = _read(view, node)
        except (Refused, _Left) as problem:
            left.append(Unmeasured(name_of(node), _why(problem)))
    for function in model.functions.values():
        inside = (node for node in function if node.op_type == "BatchNormalization")
        left.extend(Unmeasured(name_of(node), _IN_FUNCTION) for node in inside)
    for run in decomposed.runs(view):
        parts = decomposed.separate(view, run)
        if isinstance(parts, str):
            left.append(Unmeasured(name_of(run[0]), parts))
        else:
            found[run[-1]] = _of_parts(view, run, parts)
    return list(_in_waves(model, found)), left


_IN_FUNCTION = "It stands in a model-local function; inline it first: onnx.inliner.inline_local_functions."


class _Left(Exception):  # noqa: N818  like Refused, an answer
    """Why a batch norm is left out."""


def _why(problem: Refused | _Left) -> str:
    if not isinstance(problem, Refused):
        return str(problem)
    reason = problem.reason
    if reason in (Reason.TRAINING_MODE, Reason.TRAINING_OUTPUTS):
        return f"{reason.text} What would help: --to-inference lets it use its stored statistics."
    return f"{reason.text} What would help: {reason.unblock}"


def _read(view: View, node: ir.Node) -> Found:
    """A BatchNormalization node; raises ``Refused`` where it is no map that other statistics would mend."""
    site = view.site(node)
    try:
        view.read(node)
    except Refused as refused:
        mendable = refused.reason in (Reason.NOT_FINITE, Reason.BAD_VARIANCE)
        if not mendable or not all(np.isfinite(site.const(index).exact).all() for index in (1, 2)):
            raise
    gain, bias, mean, variance = (site.const(index).exact for index in range(1, 5))
    layer = Layer(
        **_place(view, node, node.inputs[0]),
        output=node.outputs[0].name or "",
        axis=1,
        rank=len(site.shape(0)),
        mean=mean,
        variance=variance,
        gain=gain,
        bias=bias,
        epsilon=float(site.attr("epsilon", float(np.float32(1e-5)))),
    )
    slots = (Slot.of_input(node, 3, Statistic.MEAN), Slot.of_input(node, 4, Statistic.VARIANCE))
    return Found(layer, *slots)


def _place(view: View, node: ir.Node, x: ir.Value | None) -> dict[str, Any]:
    """What a layer says of the tensor it normalizes; its wave is counted later."""
    assert x is not None, "a node without data has been refused"
    dtype = view.facts.dtype(x)
    assert dtype is not None, "a node of unknown type has been refused"
    return {"name": name_of(node), "tensor": x.name or "", "dtype": dtype.name, "wave": 0, "parents": ()}


def _of_parts(view: View, run: list[ir.Node], parts: decomposed.Parts) -> Found:
    """A run of arithmetic whose statistics are constants of their own."""
    index, _ = view.read(run[0])
    ((axis, channels),) = parts.affine.sizes().items()
    scale, shift = parts.affine.along(axis, channels)
    layer = Layer(
        **_place(view, run[0], run[0].inputs[index]),
        output=run[-1].outputs[0].name or "",
        axis=axis,
        rank=parts.affine.rank,
        mean=parts.mean,
        variance=parts.variance,
        gain=scale * np.sqrt(parts.variance + parts.epsilon),
        bias=shift + scale * parts.mean,
        epsilon=parts.epsilon,
        note=parts.note,
    )
    return Found(layer, parts.mean_slot, parts.variance_slot)


def _in_waves(model: ir.Model, found: dict[ir.Node, Found]) -> Iterator[Found]:
    """The layers in graph order, each with its wave and its parents."""
    waves: dict[str, int] = {}
    behind: dict[ir.Value, frozenset[str]] = {}
    for node in model.graph:
        parents = frozenset[str]().union(*(behind.get(value, ()) for value in _reads(node)))
        if node in found:
            each = found[node]
            wave = 1 + max((waves[parent] for parent in parents), default=0)
            yield replace(each, layer=replace(each.layer, wave=wave, parents=tuple(sorted(parents))))
            waves[each.layer.output] = wave
            parents = frozenset({each.layer.output})
        behind.update(dict.fromkeys(node.outputs, parents))


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value a node depends on, those that its bodies take from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _reads(inner)
