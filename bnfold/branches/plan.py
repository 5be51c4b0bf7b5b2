"""Which branches become one layer. Pure: it reads a view and returns a description.

A sum is taken apart into its terms, through sums that nothing else reads. Terms that are layers or maps
of one tensor form a group; the costliest is its host, and each of the others joins it if that takes
fewer multiplications and additions than it takes apart. A layer whose input is a layer that nothing else
reads is tried as one with it, on the same terms.

Termination: every plan takes away nodes, or work at the same number of nodes, and adds neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnfold.branches.convolution import Convolution
from bnfold.branches.form import Form, added, exclusive, forms, is_sum, signs, spatial, through
from bnfold.branches.layer import Layer
from bnfold.branches.transposed import Transposed
from bnfold.core.affine import Affine
from bnfold.core.graph.constants import Const
from bnfold.core.graph.shapes import FLOATS
from bnfold.core.graph.view import View, fitting, name_of
from bnfold.core.planning.leftover import leftover
from bnfold.core.planning.plan import Blocked
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import BROADCASTING
from bnfold.core.writing.rebuild import Step

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Term:
    """One summand: a tensor with its sign, and how it can be read."""

    value: ir.Value
    sign: int
    forms: Sequence[Form]

    def of(self, source: ir.Value) -> Form | None:
        """How the summand, with its sign, can be read as a layer of ``source``."""
        form = next((form for form in self.forms if form.source is source), None)
        return form.negated() if form is not None and form.blocked is None and self.sign < 0 else form


@dataclass
class Plan:
    """One tensor that is to be computed by a single layer, or by a sum of fewer.

    Attributes:
        root: the node that computes the tensor now.
        kind: "across" for branches that are added, "serial" for layers in a row.
        source: the tensor that the new layer reads.
        linear: the new layer.
        host: the node that the new one is named after.
        gone: the nodes that it replaces, sums included.
        rest: what else is added, with signs.
        work: multiplications and additions for each position, before and after.
        refusals: which terms stay apart, and why.
    """

    root: ir.Node
    kind: str
    source: ir.Value
    linear: Layer | Affine
    host: ir.Node
    gone: tuple[ir.Node, ...]
    work: tuple[float, float]
    rest: list[tuple[int, ir.Value]] = field(default_factory=list)
    refusals: list[tuple[ir.Value, Blocked]] = field(default_factory=list)


def plan_for(view: View, root: ir.Node) -> tuple[Plan | None, list[tuple[ir.Value, Blocked]]]:
    """What can be made one layer at ``root``, and which branches must stay apart for which reason.

    Raises:
        InvalidModelError: layers do not fit each other, or the tensors they read.
    """
    with fitting(root):
        if is_sum(view, root):
            return _across(view, root)
        if root.op_type in _WEIGHTED and root.domain == "":
            return _serial(view, root)
    return None, []


def steps(view: View, plan: Plan) -> list[Step]:
    """The nodes that carry out a plan.

    Raises:
        Blocked: ``COSTS_A_NODE`` if there would be no fewer nodes or the map is no single node.
        InvalidModelError: as ``plan_for``.
    """
    output = plan.root.outputs[0]
    try:
        with fitting(plan.root):
            made = list(_layer(view, plan))
        require(len(made) + len(plan.rest) <= len(plan.gone), Reason.COSTS_A_NODE)
    except Refused as refused:
        raise Blocked(refused.reason, plan.root, output) from refused
    for sign, value in sorted(plan.rest, key=lambda item: -item[0]):
        last = len(made) - 1
        made.append(Step("Add" if sign > 0 else "Sub", [last, value], f"{name_of(plan.root)}_{last}"))
    return made


def _across(view: View, root: ir.Node) -> tuple[Plan | None, list[tuple[ir.Value, Blocked]]]:
    terms, sums = _terms(view, root)
    best: Plan | None = None
    refusals: list[tuple[ir.Value, Blocked]] = []
    for source in dict.fromkeys(form.source for term in terms for form in term.forms):
        readings = [(term, form) for term in terms if (form := term.of(source)) is not None]
        if len(readings) < 2 or not any(form.nodes for _, form in readings):
            continue
        plan, refused = _group(view, root, sums, terms, readings)
        refusals += refused
        if plan is not None and (best is None or len(plan.rest) < len(best.rest)):
            best = plan
    return best, refusals


def _terms(view: View, root: ir.Node) -> tuple[list[Term], list[ir.Node]]:
    """The summands of a sum, through the sums in it, and all these sums."""
    terms, sums, pending = [], [], [(1, root)]
    while pending:
        outer, node = pending.pop()
        sums.append(node)
        for sign, value in zip(signs(node), node.inputs, strict=True):
            assert value is not None
            inner = value.producer()
            if inner is not None and is_sum(view, inner) and exclusive(value, node):
                pending.append((outer * sign, inner))
            else:
                terms.append(Term(value, outer * sign, forms(view, value, node)))
    return terms, sums


def _group(
    view: View,
    root: ir.Node,
    sums: Sequence[ir.Node],
    terms: Sequence[Term],
    readings: Sequence[tuple[Term, Form]],
) -> tuple[Plan | None, list[tuple[ir.Value, Blocked]]]:
    """Let as many terms as is worth it become one layer of one tensor."""
    refusals = [(term.value, form.blocked) for term, form in readings if form.blocked is not None]
    able = [(term, form) for term, form in readings if form.blocked is None]
    able.sort(key=lambda pair: -_work(pair[1].linear))
    if not able:
        return None, refusals
    (host, form), *others = able
    linear, joined, gone, before = form.linear, [host], list(form.nodes), form.work
    sizes = spatial(view, form.source)
    for term, form in others:
        try:
            total = added(linear, form.linear, sizes)
            more = _work(total) - _work(linear)
            require(more < form.work + _adding(total), Reason.MORE_WORK)
        except Refused as refused:
            if form.nodes:
                refusals.append((term.value, Blocked(refused.reason, form.nodes[-1], term.value)))
            continue
        linear, before = total, before + form.work + _adding(total)
        joined.append(term)
        gone += form.nodes
    weighted = [node for node in gone if node.op_type in _WEIGHTED]
    if len(joined) < 2 or not gone or not (weighted or isinstance(linear, Affine)):
        return None, refusals
    rest = [(term.sign, term.value) for term in terms if term not in joined]
    source = able[0][1].source
    named = weighted[0] if weighted else gone[0]
    work = before, float(_work(linear))
    return Plan(root, "across", source, linear, named, (*gone, *sums), work, rest), refusals


def _serial(view: View, root: ir.Node) -> tuple[Plan | None, list[tuple[ir.Value, Blocked]]]:
    refusals = []
    for form in reversed(through(view, root, 0)):
        layers = [node for node in form.nodes if node.op_type in (*_WEIGHTED, "AveragePool")]
        if len(layers) < 2:
            continue
        blocked = form.blocked
        if blocked is None and _work(form.linear) >= form.work:
            blocked = Blocked(Reason.MORE_WORK, layers[0])
        if blocked is not None:
            refusals.append((root.outputs[0], blocked))
            continue
        assert not isinstance(form.linear, Affine)
        work = form.work, float(_work(form.linear))
        return Plan(root, "serial", form.source, form.linear, root, form.nodes, work), refusals
    return None, refusals


def _work(linear: Layer | Affine) -> float:
    return 0 if isinstance(linear, Affine) else linear.work


def _adding(linear: Layer | Affine) -> int:
    """Additions for each position that a summand less saves."""
    return 1 if isinstance(linear, Affine) else linear.outputs


def _layer(view: View, plan: Plan) -> Iterator[Step]:
    """The new layer: one node, or a MatMul with the Add that is its bias."""
    output, name = plan.root.outputs[0], f"{name_of(plan.host)}_merged"
    dtype = view.facts.dtype(output)
    if dtype is None or dtype not in FLOATS:
        raise Refused(Reason.NOT_FLOAT)

    def const(array: np.typing.NDArray[np.float64]) -> Const:
        return Const(array.shape, dtype, array)

    linear = plan.linear
    if isinstance(linear, Affine):
        left = leftover(linear.collapsed(), plan.source, view.facts, view.opset)
        require(left is not None, Reason.COSTS_A_NODE)
        assert left is not None
        yield Step(left.op_type, [plan.source, *map(const, left.constants)], name, left.attributes)
        return
    weight, bias = (const(np.ascontiguousarray(array)) for array in linear.made)
    biased = bool(np.any(linear.made[1]))
    if isinstance(linear, Convolution | Transposed):
        op_type = "Conv" if isinstance(linear, Convolution) else "ConvTranspose"
        yield Step(op_type, [plan.source, weight, *([bias] if biased else [])], name, _attributes(linear))
    elif len(view.facts.shape(plan.source) or ()) == 2 and view.opset >= BROADCASTING:
        yield Step("Gemm", [plan.source, weight, bias], name)
    else:
        yield Step("MatMul", [plan.source, weight], name)
        if biased:
            require(view.opset >= BROADCASTING, Reason.UNKNOWN_VERSION)
            yield Step("Add", [0, bias], f"{name}_bias")


def _attributes(linear: Convolution | Transposed) -> dict[str, object]:
    """The window; ``pads`` states first all begins, then all ends. An end below 0 is output padding."""
    begins, ends = zip(*(axis.pads for axis in linear.axes), strict=True)
    extra = {"output_padding": [-min(0, end) for end in ends]} if min(ends) < 0 else {}
    return {
        "kernel_shape": [axis.count for axis in linear.axes],
        "strides": [axis.stride for axis in linear.axes],
        "dilations": [axis.step for axis in linear.axes],
        "pads": [*begins, *(max(0, end) for end in ends)],
        "group": linear.groups,
        **extra,
    }
