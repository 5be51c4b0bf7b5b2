"""The batch norms of a model with the statistics they store, and how deep each one stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.core.graph.view import View, name_of
from bnfold.core.reasons import Reason, Refused
from bnfold.statistics.graph import decomposed
from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.graph.slots import Slot, Statistic


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
    """Find every batch norm of a model in graph order, and say which ones cannot be measured.

    Statistics that a caller may replace at run time are taken as they are stored.
    """
    with _frozen(model):
        return _survey(model)


@contextmanager
def _frozen(model: ir.Model) -> Iterator[None]:
    """Let initializers be no graph inputs for a while."""
    inputs = list(model.graph.inputs)
    model.graph.inputs[:] = [value for value in inputs if not value.is_initializer()]
    try:
        yield
    finally:
        model.graph.inputs[:] = inputs


def _survey(model: ir.Model) -> tuple[list[Found], list[Unmeasured]]:
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


# Folding needs these, measuring does not: the statistics may be what has to be mended.
_NO_HINDRANCE = (Reason.NOT_FINITE, Reason.BAD_VARIANCE, Reason.UNKNOWN_SHAPE)


class _Left(Exception):  # noqa: N818  like Refused, an answer
    """Why a batch norm is left out."""


def _why(problem: Refused | _Left) -> str:
    if not isinstance(problem, Refused):
        return str(problem)
    return f"{problem.reason.text} What would help: {problem.reason.unblock}"


def _read(view: View, node: ir.Node) -> Found:
    """A BatchNormalization node; raises ``Refused`` where it is none at inference."""
    site = view.site(node)
    try:
        view.read(node)
    except Refused as refused:
        numbers = all(np.isfinite(site.const(index).exact).all() for index in (1, 2))
        if refused.reason not in _NO_HINDRANCE or not numbers or not view.facts.is_float(node.outputs[0]):
            raise
    gain, bias, mean, variance = (site.const(index).exact for index in range(1, 5))
    layer = Layer(
        **_place(view, node, node.inputs[0]),
        output=node.outputs[0].name or "",
        axis=1,
        rank=len(view.facts.shape(site.input(0)) or ()),
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
