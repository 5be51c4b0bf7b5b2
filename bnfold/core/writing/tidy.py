"""What only stood around a map goes with it: casts to the same type, identities, transpositions and back.

Exporters write them on either side of a batch norm. Only what touches the place where a map vanished, or
touches something else that vanished there, is removed; nothing else in the graph is simplified.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.graph.view import View
from bnfold.core.writing.apply import Use, Writer


def tidy(view: View, writer: Writer) -> bool:
    """Remove the no-ops around every map that the writer took out; says whether there was any."""
    gaps, writer.gaps, found = writer.gaps, [], False
    if gaps:
        _trim(view)
    for value, uses in gaps:
        gap = _narrowed(view, writer, value, uses)
        while gap is not None:
            gap, found = _narrowed(view, writer, *gap), True
    return found


def _trim(view: View) -> None:
    """Let absent inputs at the end of a Pad's list be left out, which says the same as an empty name.

    ONNX Runtime takes only the short form of a Pad into the convolution behind it: 0.8 times the time of
    MobileNetV2 as Keras' torch backend exports it. A Loop must not be without its first two.
    """
    for node in view.nodes():
        while (node.domain, node.op_type) == ("", "Pad") and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)


def _narrowed(
    view: View, writer: Writer, value: ir.Value, uses: list[Use]
) -> tuple[ir.Value, list[Use]] | None:
    """The gap once one more no-op beside it is gone, None if there is none."""
    uses = [(node, index) for node, index in uses if index < len(node.inputs) and node.inputs[index] is value]
    producer = value.producer()
    for reader, _ in uses:
        rest = [use for use in uses if use[0] is not reader]
        if view.is_noop(reader) and _may_go(reader, value):
            return value, rest + _skip(writer, reader, value)
        if producer is not None and _undoes(view, reader, producer):
            source = producer.inputs[0]
            if source is not None and _may_go(reader, source):
                moved = _skip(writer, reader, source)
                writer.sweep()  # nothing may read the first one any more
                return source, moved
    if producer is None or producer.graph is None or not view.is_noop(producer):
        return None
    source = producer.inputs[0]
    if source is None or len(value.uses()) > len(uses) or not _may_go(producer, source):
        return None
    return source, _skip(writer, producer, source)


def _skip(writer: Writer, node: ir.Node, source: ir.Value) -> list[Use]:
    """Remove a node whose output is ``source``; a name that the model came with outlives a new one."""
    return writer.skip(node, source, takes_name=writer.is_given(node.outputs[0]))


def _undoes(view: View, node: ir.Node, first: ir.Node) -> bool:
    """Whether ``node`` transposes back what ``first`` transposed."""
    if not all(each.op_type == "Transpose" and view.site(each).version for each in (node, first)):
        return False
    there, back = (list(each.attributes.get_ints("perm", ())) for each in (first, node))
    return len(there) == len(back) and [there[axis] for axis in back] == list(range(len(there)))


def _may_go(node: ir.Node, source: ir.Value) -> bool:
    """Whether ``source`` can stand for the node's output, also as an output of the graph."""
    output = node.outputs[0]
    if not output.is_graph_output():
        return True
    return source.producer() is not None and source.graph is output.graph and not source.is_graph_output()
