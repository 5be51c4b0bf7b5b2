"""The one module that writes: it rounds once, refuses what cannot be stored, edits no constant in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from bnfold.core.graph.constants import Const
from bnfold.core.graph.view import View, name_of
from bnfold.core.planning.leftover import Leftover, leftover
from bnfold.core.planning.plan import Blocked, Direction, Plan
from bnfold.core.reasons import Reason, Refused
from bnfold.core.rule import Becomes
from bnfold.core.writing.rounding import stored


@dataclass(frozen=True)
class Change:
    """One constant input that a fold replaced, for the provenance map.

    Attributes:
        node: the node that reads it.
        index: at which input.
        old: what it read before, and under which name; None for an absent optional input.
        new: what it reads now.
    """

    node: str
    index: int
    old: tuple[str | None, Const] | None
    new: tuple[str | None, Const]


Use = tuple[ir.Node, int]
_Stored = tuple[Const, ir.TensorProtocol]


@dataclass(frozen=True)
class Made:
    """An affine node that is to stay, with its constants already rounded."""

    left: Leftover
    consts: list[_Stored]


@dataclass
class Writer:
    """Carries out plans on the model a ``View`` shows.

    Attributes:
        gaps: where a map vanished: what stood in front of it, and the readers that stood behind it.
        freed: whether a sweep took a reader from a tensor that has others.
    """

    view: View
    _names: set[str | None] = field(default_factory=set)
    loose: list[ir.Value] = field(default_factory=list)
    gaps: list[tuple[ir.Value, list[Use]]] = field(default_factory=list)
    freed: bool = False
    _used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for graph in self.view.graphs:
            self._names.update(graph.initializers)
            self._names.update(value.name for value in graph.inputs)
            for node in graph:
                self._names.add(node.name)
                self._names.update(value.name for value in node.outputs)
        self._given = frozenset(self._names)

    def is_given(self, value: ir.Value) -> bool:
        """Whether the value's name is one that the model came with."""
        return value.name in self._given

    def carry_out(self, plan: Plan) -> tuple[list[Change], list[ir.Node]]:
        """Do what the plan says, or nothing.

        Returns:
            The constants that were replaced, and the affine nodes that stay.

        Raises:
            Blocked: ``OVERFLOWS``, ``PRECISION_LOST`` or ``NOT_FINITE`` if a new constant could
                not be stored, ``NOT_FLOAT`` if its type is not known; the model is then untouched.
        """
        params = dict(self._params(plan))
        made = dict(self._leftovers(plan))
        own = {node: list(self._constants_of(node, becomes)) for node, becomes in plan.becomes.items()}
        for node, readers in plan.copies.items():
            self._copy(node, readers)
        changes = [self.replace(node, index, const) for (node, index), const in params.items()]
        for value in plan.changed:
            value.name = self.fresh(f"{value.name}_folded")
        for node, becomes in plan.becomes.items():
            self._become(node, becomes, own[node])
        left = [self._insert_left(value, made[value]) for value in plan.stays]
        for node in plan.restated:
            changes.extend(self._restate(node, made[node.outputs[0]]))
            left.append(node)
        # The seed comes last when the walk went up: only then does it stand right behind its new home.
        for node in reversed(plan.bypassed):
            self._bypass(node, takes_name=plan.direction is Direction.UP and node is plan.seed)
        for node in plan.touched():
            self.view.forget(node)
        return changes, left

    def sweep(self) -> None:
        """Remove the constants, and the nodes that made them, which no longer have a reader."""
        pending, self.loose = self.loose, []
        while pending:
            value = pending.pop()
            if value.uses() or value.is_graph_output():
                continue
            node = value.producer()
            if node is None:
                self._drop_initializer(value)
            elif not any(out.uses() or out.is_graph_output() for out in node.outputs):
                inputs = [item for item in node.inputs if item is not None]
                pending.extend(inputs)
                if node.graph is not None:
                    node.graph.remove(node, safe=True)
                self.freed |= any(item.uses() and not self.view.constants.holds(item) for item in inputs)

    def _params(self, plan: Plan) -> Iterator[tuple[tuple[ir.Node, int], _Stored]]:
        for (node, index), edit in plan.params.items():
            absent = not self.view.site(node).has(index)
            if absent and not edit.shifts:
                continue
            try:
                current = self._current(node, index)
                const = current.mapped(edit)
                if edit.is_identity and const.shape == current.shape:
                    continue
                yield (node, index), (const, stored(const))
            except Refused as refused:
                raise Blocked(refused.reason, node) from refused

    def _current(self, node: ir.Node, index: int) -> Const:
        site = self.view.site(node)
        if site.has(index):
            return site.const(index)
        dtype = next(site.const(other).dtype for other in range(len(node.inputs)) if site.is_const(other))
        return Const.absent(dtype)

    def _leftovers(self, plan: Plan) -> Iterator[tuple[ir.Value, Made]]:
        """Round the constants of every affine node that stays, before anything is changed."""
        restated = {node.outputs[0]: affine for node, affine in plan.restated.items()}
        for value, affine in {**plan.stays, **restated}.items():
            dtype = self.view.facts.dtype(value)
            left = leftover(affine, value, self.view.facts, self.view.opset)
            assert left is not None, "the planner checks this"
            if dtype is None:
                raise Blocked(Reason.NOT_FLOAT, value.producer(), value)
            consts = [Const(array.shape, dtype, array) for array in left.constants]
            try:
                yield value, Made(left, [(const, stored(const)) for const in consts])
            except Refused as refused:
                raise Blocked(refused.reason, value.producer(), value) from refused

    def replace(self, node: ir.Node, index: int, made: _Stored) -> Change:
        """Let a node read a new constant at an input, absent ones included."""
        const, tensor = made
        old = node.inputs[index] if index < len(node.inputs) else None
        before = None if old is None else (old.name, self.view.constants.get(old))
        name = f"{name_of(node)}_bias" if old is None else old.name
        new = self.constant(f"{name}_folded", const, tensor)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, new)
        if old is not None:
            self.loose.append(old)
        return Change(name_of(node), index, before, (new.name, const))

    def constant(self, name: str, const: Const, tensor: ir.TensorProtocol) -> ir.Value:
        """Register a new initializer in the main graph, where every body can read it.

        Before IR version 4 an initializer has to be an input, which a body's cannot be.
        """
        graph = self.view.model.graph
        name = self.fresh(name)
        tensor.name = name
        value = ir.val(name, const.dtype, const.shape, const_value=tensor)
        graph.register_initializer(value)
        if self.view.model.ir_version < 4:
            graph.inputs.append(value)
        self.view.constants.remember(value, const)
        self.view.facts.shapes[value] = const.shape
        self.view.facts.dtypes[value] = const.dtype
        return value

    def _copy(self, node: ir.Node, readers: list[tuple[ir.Node, int]]) -> None:
        """Let everything but these readers read an untouched copy, which takes over all names."""
        value, graph = node.outputs[0], node.graph
        assert isinstance(graph, ir.Graph)
        twin = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            node.attributes.values(),
            version=node.version,
            name=node.name,
        )
        output, name = twin.outputs[0], value.name
        value.replace_all_uses_with(output, replace_graph_outputs=True)
        for reader, index in readers:
            reader.replace_input_with(index, value)
        declare_like(output, value)
        value.name, node.name = self.fresh(f"{name}_folded"), self.fresh(f"{node.name}_folded")
        output.name = name
        graph.insert_after(node, twin)
        self.view.facts.copy(value, output)
        self.view.place_behind(twin, node)

    def _constants_of(self, node: ir.Node, becomes: Becomes) -> Iterator[dict[int, _Stored]]:
        """Round the constants of what a node becomes, and of what comes then."""
        dtype, then = self.view.facts.dtype(node.outputs[0]), becomes.then
        if dtype is None:
            raise Blocked(Reason.NOT_FLOAT, node)
        for each in (becomes,) if then is None else (becomes, then):
            consts = {index: Const(array.shape, dtype, array) for index, array in each.constants.items()}
            try:
                yield {index: (const, stored(const)) for index, const in consts.items()}
            except Refused as refused:
                raise Blocked(refused.reason, node) from refused

    def _become(self, node: ir.Node, becomes: Becomes, own: list[dict[int, _Stored]]) -> None:
        """Turn a node into another operator, and put behind it what comes then."""
        _change_operator(node, becomes.op_type, becomes.attributes)
        if own[0]:
            self.loose.extend(value for value in node.inputs[1:] if value is not None)
            node.resize_inputs(1)
        for index, const in own[0].items():
            node.resize_inputs(max(index + 1, len(node.inputs)))
            node.replace_input_with(index, self.constant(f"{name_of(node)}_bound", *const))
        if (then := becomes.then) is not None:
            self._become(self.insert_behind(node.outputs[0], then.op_type, [], {}), then, own[1:])

    def _insert_left(self, value: ir.Value, made: Made) -> ir.Node:
        """Put an affine node that is left over between a value and its readers."""
        left = made.left
        return self.insert_behind(value, left.op_type, self._register(value, made), left.attributes)

    def insert_behind(
        self, value: ir.Value, op_type: str, constants: list[ir.Value], attributes: Mapping[str, Any]
    ) -> ir.Node:
        """Put a node between a value and its readers; it takes over the value's name."""
        producer = value.producer()
        assert producer is not None
        assert isinstance(producer.graph, ir.Graph)
        node = ir.Node(
            "",
            op_type,
            [value, *constants],
            ir.convenience.convert_attributes(attributes),
            name=self.fresh(f"{name_of(producer)}_{op_type}"),
        )
        output, name = node.outputs[0], value.name
        value.replace_all_uses_with(output, replace_graph_outputs=True)
        node.replace_input_with(0, value)
        output.type, output.shape = value.type, value.shape
        value.name = self.fresh(f"{name}_folded")
        output.name = name
        producer.graph.insert_after(producer, node)
        self.view.facts.copy(value, output)
        self.view.place_behind(node, producer)
        return node

    def _restate(self, node: ir.Node, made: Made) -> list[Change]:
        """Let an affine node be another one, with the same data input and the same output."""
        index, _ = self.view.read(node)
        data, old = node.inputs[index], list(node.inputs)
        values = self._register(node.outputs[0], made)
        node.resize_inputs(1 + len(values))
        for place, value in enumerate([data, *values]):
            node.replace_input_with(place, value)
        _change_operator(node, made.left.op_type, made.left.attributes)
        self.loose.extend(value for value in old if value is not None and value is not data)
        return [
            Change(name_of(node), 1 + i, None, (value.name, const))
            for i, (value, (const, _)) in enumerate(zip(values, made.consts, strict=True))
        ]

    def _register(self, value: ir.Value, made: Made) -> list[ir.Value]:
        stems = {"Add": ["shift"], "Mul": ["scale"]}.get(made.left.op_type, ["scale", "shift", "mean", "var"])
        return [
            self.constant(f"{value.name}_{stem}", const, tensor)
            for stem, (const, tensor) in zip(stems, made.consts, strict=True)
        ]

    def _bypass(self, node: ir.Node, takes_name: bool) -> None:
        """Let the readers of an affine node read its data instead, and remove it."""
        index, _ = self.view.read(node)
        data = node.inputs[index]
        assert data is not None
        self.gaps.append((data, self.skip(node, data, takes_name)))

    def skip(self, node: ir.Node, data: ir.Value, takes_name: bool) -> list[Use]:
        """Let the readers of a node read ``data`` instead, and remove it.

        Args:
            node: the node, of one output.
            data: what they read from now on.
            takes_name: whether ``data`` takes over the name of the node's output.

        Returns:
            The readers, and the index of the input.
        """
        output = node.outputs[0]
        assert isinstance(node.graph, ir.Graph)
        is_output = output.is_graph_output()
        uses = [(reader, index) for reader, index in output.uses()]
        self.loose.extend(value for value in node.inputs if value is not None)
        output.replace_all_uses_with(data, replace_graph_outputs=True)
        if takes_name and (is_output or not data.is_graph_output()) and data.producer() is not None:
            if is_output:
                declare_like(data, output)
            name, output.name = output.name, self.fresh("bypassed")
            data.name = name
        node.graph.remove(node, safe=True)
        return uses

    def _drop_initializer(self, value: ir.Value) -> None:
        graph = value.graph
        if graph is None or not value.is_initializer() or value in self.view.constants.overridable:
            return
        graph.initializers.pop(value.name or "")
        if value.is_graph_input():
            graph.inputs.remove(value)

    def fresh(self, name: str) -> str:
        """A name that nothing in the model has."""
        candidate, number = name, self._used.get(name, 0)
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._used[name] = number  # from there on next time: one name may be wanted thousands of times
        self._names.add(candidate)
        return candidate


def _change_operator(node: ir.Node, op_type: str, attributes: Mapping[str, Any]) -> None:
    node.op_type = op_type
    node.attributes.clear()
    for attribute in ir.convenience.convert_attributes(attributes):
        node.attributes.add(attribute)


def declare_like(value: ir.Value, output: ir.Value) -> None:
    """Let a tensor say of itself what the one before it said."""
    value.type, value.shape, value.doc_string = output.type, output.shape, output.doc_string
    value.metadata_props.clear()
    value.metadata_props.update(output.metadata_props)
