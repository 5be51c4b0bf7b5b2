"""Nodes must have what their operator has, as any runtime would ask."""

from __future__ import annotations

import re
from functools import cache

import onnx
from onnx import TensorProto

from bnfold.errors import InvalidModelError
from bnfold.files.walk import unread

# The field that holds an attribute's value, for the types that have no default.
_VALUES = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}

# What the first operator sets required, and nobody wrote.
_FORGOTTEN = {"consumed_inputs"}

_EQUATION = re.compile(rb"[A-Za-z.,>\- ]*")


def check_function(function: onnx.FunctionProto, name: str) -> None:
    """A function reads what is given to it and what it makes; raises ``InvalidModelError``."""
    known = {*function.input, *(output for node in function.node for output in node.output), ""}
    read = [*function.output, *(each for node in function.node for each in node.input)]
    if not known.issuperset(read) or len(set(function.input)) < len(function.input):
        raise InvalidModelError(
            f"{name} has a function {function.name!r} that reads what nothing in it makes; export it again."
        )


def check_node(node: onnx.NodeProto, opset: int, name: str) -> None:
    """What a runtime would refuse as well: attributes and operands that the operator does not have."""
    names = {attribute.name for attribute in node.attribute}
    standard = node.domain in ("", "ai.onnx")
    if len(names) < len(node.attribute):
        problem = "two attributes of one name"
    elif not node.output:
        problem = "no output"
    elif any(not _is_whole(attribute) for attribute in node.attribute):
        problem = "an attribute without a type or a value"
    elif any(tensor.data_location == TensorProto.EXTERNAL for tensor in unread(node)):
        problem = "a list of tensors, or a sparse one, in a file"
    elif standard and any(not _is_equation(attribute) for attribute in node.attribute):
        problem = "an equation that holds other signs than letters, dots, commas and an arrow"
    else:
        problem = _mismatch(node, opset) if standard and opset else ""
    if problem:
        raise InvalidModelError(
            f"{name} has a node {node.name!r} ({node.op_type}) with {problem}; export it again."
        )


def _is_whole(attribute: onnx.AttributeProto) -> bool:
    field = _VALUES.get(attribute.type)
    if attribute.ref_attr_name:  # onnx_ir follows none to a body
        return attribute.type not in (onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.GRAPH)
    return bool(attribute.type) and (field is None or attribute.HasField(field))


def _is_equation(attribute: onnx.AttributeProto) -> bool:
    """False for what onnx 1.23's inference of Einsum never comes to the end of."""
    return attribute.name != "equation" or _EQUATION.fullmatch(attribute.s) is not None


def _mismatch(node: onnx.NodeProto, opset: int) -> str:
    """What of a node does not fit the operator's schema, or "" (also for an operator that is not known)."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return ""
    types, required, (least, most), outputs = schema
    for attribute in node.attribute:
        if types.get(attribute.name, attribute.type) != attribute.type:
            return f"an attribute {attribute.name!r} of another type than the operator's"
    if not required <= {attribute.name for attribute in node.attribute}:
        return "an attribute missing"
    given = len(node.input)
    while given and not node.input[given - 1]:  # absent optional ones may be written or not
        given -= 1
    if given > most or len(node.input) < least or len(node.output) > outputs:
        return f"{len(node.input)} inputs and {len(node.output)} outputs, which the operator does not have"
    return ""


@cache
def _schema(op_type: str, opset: int) -> tuple[dict[str, int], frozenset[str], tuple[int, int], int] | None:
    """Attribute types, required attributes, least and most inputs, most outputs."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    types = {each.name: int(each.type) for each in schema.attributes.values()}  # type: ignore[call-overload]
    required = frozenset(each.name for each in schema.attributes.values() if each.required) - _FORGOTTEN
    return types, required, (schema.min_input, schema.max_input), schema.max_output
