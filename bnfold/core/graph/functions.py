"""Model-local functions: those that hold a map which folds once they are inlined are inlined, no other.

A function may be called twice with different weights, so nothing folds inside one. Whether inlining
helps is tried on a copy of the model; the weights are not copied for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bnfold.core.rule import registered

# Where a node of the trial comes from.
_MARK = "function that the node stood in"

Touched = Callable[[ir.Model], set[ir.Node]]


def inline_where_it_helps(model: ir.Model, fold: Touched) -> list[str]:
    """Inline, in place, the functions without which less would fold.

    Args:
        model: the model; untouched if no function has to be inlined.
        fold: folds a model in place and returns the nodes that took part.

    Returns:
        The names of the functions that are inlined now.
    """
    wanted = {f.identifier() for f in model.functions.values() if any(map(_may_be_a_map, f.all_nodes()))}
    able = _with_callers(model, wanted) if wanted else set()
    if not able or any(not _can_be_inlined(model, model.functions[name]) for name in able):
        return []
    trial = model.clone()
    for name in able:
        for node in trial.functions[name].all_nodes():
            node.metadata_props[_MARK] = repr(name)
    _inline(trial, able)
    marks = {node.metadata_props.get(_MARK, "") for node in fold(trial)}
    needed = _with_callers(model, {name for name in able if repr(name) in marks})
    if needed:
        _inline(model, needed)
    return sorted(f"{domain}::{name}" if domain else name for domain, name, _ in needed)


def _may_be_a_map(node: ir.Node) -> bool:
    entry = registered().get(node.op_type)
    return node.domain == "" and entry is not None and entry.reads


def _with_callers(model: ir.Model, names: set[ir.OperatorIdentifier]) -> set[ir.OperatorIdentifier]:
    """These functions, and those that call one of them, directly or not."""
    while True:
        callers = {
            name
            for name, function in model.functions.items()
            if any(node.op_identifier() in names for node in function.all_nodes())
        }
        if callers <= names:
            return names
        names = names | callers


def _can_be_inlined(model: ir.Model, function: ir.Function) -> bool:
    """Whether a call and the body in its place are the same: no parameter is a graph, no output an input."""
    opsets, known = dict(function.opset_imports), dict(model.opset_imports)
    made = [value.producer() for value in function.outputs]
    plain = None not in made and len(set(function.outputs)) == len(function.outputs)
    alike = all(known.get(domain, version) == version for domain, version in opsets.items())
    return plain and alike and all(_is_plain(call, function) for call in _calls(model, function))


def _is_plain(call: ir.Node, function: ir.Function) -> bool:
    kinds = {attribute.type for attribute in call.attributes.values()}
    named = len(call.outputs) == len(function.outputs) and all(out.name for out in call.outputs)
    fits = len(call.inputs) <= len(function.inputs)
    return named and fits and not kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _calls(model: ir.Model, function: ir.Function) -> Iterator[ir.Node]:
    nodes = chain(model.graph.all_nodes(), *(each.all_nodes() for each in model.functions.values()))
    return (node for node in nodes if node.op_identifier() == function.identifier())


class _Inline(InlinePass):
    """Knows the names in bodies, too, which onnx_ir 1.1 meets only after it has given them away."""

    def _reset(self, model: ir.Model) -> None:
        super()._reset(model)
        for graph in model.graphs():
            self._used_value_names.update(value.name or "" for value in graph.inputs)
            self._used_value_names.update(graph.initializers)
            for node in graph:
                self._used_node_names.add(node.name or "")
                self._used_value_names.update(out.name or "" for out in node.outputs)


def _inline(model: ir.Model, names: set[ir.OperatorIdentifier]) -> None:
    said = [(value.doc_string, dict(value.metadata_props)) for value in model.graph.outputs]
    _Inline(lambda function: function.identifier() in names).call(model)
    for value, (doc_string, metadata) in zip(model.graph.outputs, said, strict=True):
        value.doc_string = doc_string
        value.metadata_props.clear()
        value.metadata_props.update(metadata)
