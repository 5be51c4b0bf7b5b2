"""Should we? Rules say what is exact; this module says what is worth doing, and on what measurement.

* A dense bias stays an Add behind its MatMul: ONNX Runtime runs the two as one Gemm anyway, and a
  quantizer or a reader of the graph expects to find it there.
* The constants of a decomposed LayerNormalization or Gelu stay: ONNX Runtime recognizes these runs of
  nodes and executes each as one kernel, which costs less than what is left once a constant moved out.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.plan import Blocked, Direction, Plan
from bnfold.core.reasons import Reason
from bnfold.core.view import View


def worthwhile(view: View, plan: Plan) -> Plan:
    """Pass the plan on if carrying it out is worth it.

    Raises:
        Blocked: ``DENSE_BIAS`` or ``FUSED_BY_RUNTIME`` with the node in question.
    """
    if plan.direction is Direction.UP and _is_dense_bias(view, plan):
        raise Blocked(Reason.DENSE_BIAS, plan.path[-1])
    for node in (*plan.bypassed, *plan.restated):
        if _is_layer_norm_tail(view, node) or _is_gelu_half(view, node):
            raise Blocked(Reason.FUSED_BY_RUNTIME, node)
    return plan


def _is_dense_bias(view: View, plan: Plan) -> bool:
    only_adds = all(node.op_type in ("Add", "Sub") for node in plan.bypassed)
    return only_adds and any(node.op_type == "MatMul" for node in plan.path)


def _is_layer_norm_tail(view: View, node: ir.Node) -> bool:
    """Whether the node is γ or β behind ``(x − mean) / sqrt(variance + ε)``."""
    for _ in range(2):
        producer = _data_producer(view, node)
        if producer is None:
            return False
        if producer.op_type == "Div" and _producer(producer, 1, "Sqrt"):
            return True
        node = producer
    return False


def _is_gelu_half(view: View, node: ir.Node) -> bool:
    """Whether the node is the ½ of ``½·x·(1 + erf(x/√2))`` or its tanh form, at the end of it."""
    product = _data_producer(view, node)
    if node.op_type != "Mul" or product is None or product.op_type != "Mul":
        return False
    sums = (_producer(product, index, "Add") for index in range(2))
    return any(
        _producer(total, index, op_type) is not None
        for total in sums
        if total is not None
        for index in range(2)
        for op_type in ("Erf", "Tanh")
    )


def _data_producer(view: View, node: ir.Node) -> ir.Node | None:
    known = view.affine(node)
    value = None if known is None else node.inputs[known[0]]
    return None if value is None else value.producer()


def _producer(node: ir.Node, index: int, op_type: str) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type else None
