"""How a tensor can be read: as a linear layer, or a map, of a tensor further up.

Every tensor is the identity of itself. One that a layer computes is also that layer of the layer's
input, and so on up, for as long as nothing else reads what would vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import onnx_ir as ir

from bnfold.branches.convolution import Convolution
from bnfold.branches.layer import Layer
from bnfold.branches.read import layer
from bnfold.branches.transposed import Transposed
from bnfold.core.affine import IDENTITY, Affine
from bnfold.core.graph.shapes import Dim
from bnfold.core.graph.view import View, name_of
from bnfold.core.planning.plan import Blocked
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import BROADCASTING

# Longer chains of linear nodes without an activation than this are no network.
_MAX_DEPTH = 8

_SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True, eq=False)
class Form:
    """One reading of a tensor.

    Attributes:
        source: the tensor that is read.
        linear: what is made of it; of no meaning where ``blocked``.
        nodes: the nodes that do so, which nothing else needs.
        work: multiplications (and additions of maps and sums) for each position of the tensor.
        blocked: why the reading must not be used.
    """

    source: ir.Value
    linear: Layer | Affine
    nodes: tuple[ir.Node, ...] = ()
    work: float = 0.0
    blocked: Blocked | None = None

    def negated(self) -> Form:
        """The reading of minus the tensor."""
        return replace(self, linear=mapped(Affine.of(-1.0), self.linear))


def forms(view: View, value: ir.Value, reader: ir.Node, depth: int = 0) -> list[Form]:
    """Every reading of ``value``, one of the inputs of ``reader``; itself first, deeper ones later."""
    found, node = [Form(value, IDENTITY)], value.producer()
    if node is None or value is not node.outputs[0] or depth > _MAX_DEPTH:
        return found
    obstacle = _obstacle(value, reader)
    if obstacle is not None and depth:
        return found
    for form in through(view, node, depth):
        found.append(replace(form, blocked=form.blocked or obstacle))
    return found


def is_sum(view: View, node: ir.Node) -> bool:
    """Whether a node adds or subtracts tensors, of which some are computed."""
    if node.op_type not in _SUMS or not view.site(node).version or view.opset < BROADCASTING:
        return False
    known = view.chosen(name_of(node)) and all(value is not None for value in node.inputs)
    return known and view.affine(node) is None and view.facts.is_float(node.outputs[0])


def signs(node: ir.Node) -> list[int]:
    """With which sign a sum takes each of its inputs."""
    return [1, -1] if node.op_type == "Sub" else [1] * len(node.inputs)


def mapped(affine: Affine, linear: Layer | Affine) -> Layer | Affine:
    """What a map makes of it."""
    return affine @ linear if isinstance(linear, Affine) else linear.mapped(affine)


def added(a: Layer | Affine, b: Layer | Affine, sizes: Sequence[Dim]) -> Layer | Affine:
    """The sum of two readings of one tensor with these spatial sizes.

    Raises:
        Refused: ``WINDOWS_DIFFER`` or ``MIXED_AXES`` if it is no single layer.
    """
    if isinstance(a, Affine) and isinstance(b, Affine):
        return Affine(a.scale + b.scale, a.shift + b.shift)
    if isinstance(a, Affine):
        a, b = b, a
    assert not isinstance(a, Affine)
    return a.plus(_like(b, a), sizes)


def exclusive(value: ir.Value, reader: ir.Node) -> bool:
    """Whether ``reader`` alone needs the tensor."""
    return _obstacle(value, reader) is None


def _obstacle(value: ir.Value, reader: ir.Node) -> Blocked | None:
    """Why a tensor cannot vanish together with one of its readers."""
    uses = list(value.uses())
    if value.is_graph_output():
        return Blocked(Reason.GRAPH_OUTPUT, value.producer(), value)
    if len(uses) > 1:
        other = next((node for node, _ in uses if node is not reader), reader)
        return Blocked(Reason.OTHER_READER, other, value)
    return None if value.graph is reader.graph else Blocked(Reason.SUBGRAPH, reader, value)


def through(view: View, node: ir.Node, depth: int) -> list[Form]:
    """The readings of a node's output that go further up than the node, whoever else reads it."""
    try:
        require(view.chosen(name_of(node)), Reason.EXCLUDED)
        if (known := view.affine(node)) is not None:
            index, affine = known
            return [_with_map(form, affine, node) for form in _inner(view, node, index, depth)]
        if is_sum(view, node):
            return _sums(view, node, depth)
        own = layer(view.site(node))
    except Refused as refused:
        return _unread(view, node, refused.reason) if depth == 0 else []
    return [form for each in _inner(view, node, 0, depth) for form in _with_layer(view, each, own, node)]


def _inner(view: View, node: ir.Node, index: int, depth: int) -> list[Form]:
    value = node.inputs[index]
    return [] if value is None else forms(view, value, node, depth + 1)


def _unread(view: View, node: ir.Node, reason: Reason) -> list[Form]:
    """What would be a branch if only the node were a known layer: it is reported."""
    blocked = Blocked(reason, node)
    if reason is not Reason.NOT_LINEAR:
        return [
            Form(value, IDENTITY, (node,), blocked=blocked) for value in node.inputs[:1] if value is not None
        ]
    data = [i for i, value in enumerate(node.inputs) if value is not None and not value.is_initializer()]
    found = _inner(view, node, data[0], 0) if len(data) == 1 else []
    return [replace(form, blocked=blocked) for form in found if form.nodes]


def _with_map(form: Form, affine: Affine, node: ir.Node) -> Form:
    nodes, work = (*form.nodes, node), form.work + _width(form.linear, affine)
    if form.blocked is not None:
        return replace(form, nodes=nodes, work=work)
    try:
        return replace(form, linear=mapped(affine, form.linear), nodes=nodes, work=work)
    except Refused as refused:
        return replace(form, nodes=nodes, work=work, blocked=Blocked(refused.reason, node))


def _with_layer(view: View, form: Form, own: Layer, node: ir.Node) -> list[Form]:
    """A layer of what is a reading itself; none where the two kinds do not fit each other."""
    nodes = (*form.nodes, node)
    if form.blocked is not None or not form.nodes:
        return [replace(form, linear=own, nodes=nodes, work=float(own.work))]
    work = own.work + form.work * _denser(view, node, own)
    try:
        return [Form(form.source, own.after(_like(form.linear, own)), nodes, work)]
    except Refused as refused:
        return [Form(form.source, IDENTITY, nodes, work, Blocked(refused.reason, node))]


def _like(linear: Layer | Affine, model: Layer) -> Layer:
    """A map as a layer of the kind of another one."""
    if isinstance(linear, Affine):
        return model.of(linear)
    require(type(linear) is type(model), Reason.WINDOWS_DIFFER)
    return linear


def _denser(view: View, node: ir.Node, own: Layer) -> float:
    """How many positions the layer's input has for each position of its output."""
    if not isinstance(own, Convolution | Transposed):
        return 1.0
    values = (node.inputs[0], node.outputs[0])
    shapes = [(view.facts.shape(value) or ())[2:] if value is not None else () for value in values]
    sizes = [[size for size in shape if isinstance(size, int)] for shape in shapes]
    if all(len(each) == len(own.axes) for each in sizes) and all(sizes[1]):
        return prod(sizes[0]) / prod(sizes[1])
    return float(prod(axis.stride for axis in own.axes))


def _sums(view: View, node: ir.Node, depth: int) -> list[Form]:
    """The readings in which all operands of a sum are layers or maps of one tensor."""
    operands = [_inner(view, node, index, depth) for index in range(len(node.inputs))]
    found = []
    for first in operands[0]:
        chosen = [_reading(each, first.source) for each in operands]
        parts = [form for form in chosen if form is not None]
        if len(parts) == len(operands) and all(form.blocked is None for form in parts):
            signed = [
                form if sign > 0 else form.negated() for form, sign in zip(parts, signs(node), strict=True)
            ]
            found.extend(_total(view, signed, node))
    return found


def _reading(found: Sequence[Form], source: ir.Value) -> Form | None:
    return next((form for form in found if form.source is source), None)


def _total(view: View, parts: Sequence[Form], node: ir.Node) -> list[Form]:
    sizes = spatial(view, parts[0].source)

    def add(a: Layer | Affine, b: Layer | Affine) -> Layer | Affine:
        return added(a, b, sizes)

    nodes = (*(each for part in parts for each in part.nodes), node)
    work = sum(part.work for part in parts) + (len(parts) - 1) * max(_width(part.linear) for part in parts)
    try:
        return [Form(parts[0].source, reduce(add, (part.linear for part in parts)), nodes, work)]
    except Refused as refused:
        return [Form(parts[0].source, IDENTITY, nodes, work, Blocked(refused.reason, node))]


def spatial(view: View, value: ir.Value) -> tuple[Dim, ...]:
    """The sizes of a tensor behind its channels, None for each not known; none without a rank."""
    return (view.facts.shape(value) or ())[2:]


def _width(linear: Layer | Affine, affine: Affine = IDENTITY) -> int:
    """Channels of what a layer computes; of a map only those in which it differs are known."""
    return max(linear.volume, affine.volume) if isinstance(linear, Affine) else linear.outputs
