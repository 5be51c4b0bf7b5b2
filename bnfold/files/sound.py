"""What a file must keep to before anything in it is believed: each defect by name."""

from __future__ import annotations

import onnx

from bnfold.errors import InvalidModelError, UnreadableModelError, UnsupportedModelError
from bnfold.files.known import check_known
from bnfold.files.nodes import check_function, check_node
from bnfold.files.tensors import check_tensor
from bnfold.files.walk import graphs_of, nodes_by_opset, tensors_of


def check(proto: onnx.ModelProto, name: str) -> None:
    """See that a model is one, and that nothing in it would be lost or lies about its size.

    Raises:
        UnreadableModelError: it is no model.
        InvalidModelError: it breaks the ONNX specification.
        UnsupportedModelError: it holds what would be lost on the way.
    """
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise UnreadableModelError(f"{name} is not an ONNX model; export it again.")
    if proto.training_info:
        raise UnsupportedModelError(
            f"{name} carries training_info, which folding would make wrong; export it for inference."
        )
    _check_opsets(proto, name)
    check_known([proto, *proto.opset_import, *proto.functions], name)
    for graph in graphs_of(proto.graph):
        _check_names(graph, name)
        check_known([graph, *graph.input, *graph.output, *graph.value_info], name)
    for function in proto.functions:
        check_function(function, name)
    local = {(each.domain, each.name) for each in proto.functions}
    for opset, nodes in nodes_by_opset(proto):
        for node in nodes:
            check_known([node, *node.attribute], name)
            check_node(node, 0 if (node.domain, node.op_type) in local else opset, name)
    for tensor in tensors_of(proto):
        check_tensor(tensor, name)


def _check_opsets(proto: onnx.ModelProto, name: str) -> None:
    known = onnx.defs.onnx_opset_version()
    imports = (each for holder in (proto, *proto.functions) for each in holder.opset_import)
    for opset in imports:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= known:
            raise InvalidModelError(
                f"{name} uses opset {opset.version}, and the installed onnx knows 1 to {known}; "
                "update onnx or convert the model."
            )


def _check_names(graph: onnx.GraphProto, name: str) -> None:
    """One name, one value: an initializer may share the name of a graph input, and nothing else may."""
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    made = [output for node in graph.node for output in node.output if output]
    for names in (inputs, stored, [*made, *{*inputs, *stored}]):
        if len(set(names)) < len(names):
            seen: set[str] = set()
            twice = next(each for each in names if each in seen or seen.add(each))  # type: ignore[func-returns-value]
            raise InvalidModelError(f"{name} gives the name {twice!r} to two values; export it again.")
