"""Should we? Rules say what is exact; this module says what is worth doing, and on what measurement.

* A dense bias stays an Add behind its MatMul: ONNX Runtime runs the two as one Gemm anyway, and a
  quantizer or a reader of the graph expects to find it there.
* The constants of a decomposed LayerNormalization or Gelu stay: ONNX Runtime recognizes these runs of
  nodes and executes each as one kernel, which costs less than what is left once a constant moved out.
* One factor for all of a product of two tensors stays behind it: the scores of attention, which ONNX Runtime
  scales in the product itself (FusedMatMul) and recognizes by it.
* A Relu becomes a Max with constants if that removes more affine nodes than it turns activations: a Max
  took half the time of Mul, Add and Relu. Against a single batch norm it is a gain where no convolution of
  images is near (0.95 times BatchNormalization and Relu on matrices, 0.97 in residual blocks of sequences).
  Between these ONNX Runtime runs BatchNormalization and Relu as one kernel in its blocked layout, which a Max
  leaves: 1.03 (8 channels) to 1.7 times (32) the time of light residual blocks, but 0.95 of those of 3
  channels, which fill no block. So what one batch norm can state is left as one, if need be below the
  Transpose in front of a convolution. In front of a Relu that ONNX Runtime runs with the layer before it a
  Max was never a gain.
* A Max and a Min (channels of both signs) are two such nodes: a gain over three, and about even over two
  where the channels are last (0.87 and 1.04 on two machines); where they are first, one BatchNormalization
  takes 0.6 times as long as the pair (``benchmarks/activation_bounds.py``).
* A single BatchNormalization stays although a layer that pads could take its scale and leave an Add: behind
  a convolution ONNX Runtime runs it in its blocked layout, which the Add leaves (0.95 to 0.96 of the time of
  the block with the Add, elsewhere 0.98 to 1.01). So do several nodes that one BatchNormalization can state,
  unless the channels are too few to fill a block of that layout (three 1.08, eight 1.01;
  ``benchmarks/worth.py``).
* A producer with other readers is copied for a map where the copy costs no more than the batch norm it
  takes the place of, measured in ONNX Runtime 1.32 as batch norm / copy (``benchmarks/worth.py``):
  one multiplication per element (Conv 1×1 on one channel 1.05×, Gather 1.13×) or a layer whose time is
  the overhead of one node (Gemm 64×64 on one row 1.06×). Beyond that it loses (Conv 1×1 on three channels
  0.94×, 3×3 0.86×, Gemm 256×256 0.79×). The file must not grow by more than 256 KiB.
* A DequantizeLinear of a constant is copied: both copies read the same integers, and a runtime executes it
  with the layer behind it, or once when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.leftover import leftover
from bnfold.core.planning.plan import Blocked, Direction, Plan
from bnfold.core.planning.walk.merge import run_through
from bnfold.core.reasons import Reason

# What only moves values; what multiplies them.
_MOVES = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MULTIPLIES = frozenset({"Conv", "Gemm", "MatMul"})
_FEW_MULTIPLICATIONS = 64 * 64
_MOST_STORED = 1 << 16
_CHANNELS_OF_A_BLOCK = 8
_RANK_OF_IMAGES = 4


def worthwhile(view: View, plan: Plan) -> Plan:
    """Pass the plan on if carrying it out is worth it.

    Raises:
        Blocked: ``DENSE_BIAS``, ``ACTIVATION_TURNS`` or ``FUSED_BY_RUNTIME`` with the node in question.
    """
    turned = [node for node, becomes in plan.becomes.items() if becomes.constants]
    if turned and not _is_worth_turning(view, plan, len(turned)):
        raise Blocked(Reason.ACTIVATION_TURNS, turned[0])
    if plan.direction is Direction.UP and _is_dense_bias(view, plan):
        raise Blocked(Reason.DENSE_BIAS, plan.path[-1])
    scores = next((node for node in plan.path if _is_product(view, node)), None)
    if scores is not None and not view.read(plan.seed)[1].sizes():
        raise Blocked(Reason.FUSED_BY_RUNTIME, scores)
    for node in (*plan.bypassed, *plan.restated):
        if _is_layer_norm_tail(view, node) or _is_gelu_half(view, node):
            raise Blocked(Reason.FUSED_BY_RUNTIME, node)
    return plan


def is_cheap_to_copy(view: View, node: ir.Node) -> bool:
    """Whether a second ``node`` costs no more than a batch norm behind it."""
    held = {i: value for i, value in enumerate(node.inputs) if value and view.constants.holds(value)}
    if node.op_type == "DequantizeLinear":
        return len(held) == len(node.inputs)
    if sum(prod(view.constants.get(value).shape) for value in held.values()) > _MOST_STORED:
        return False
    return node.op_type in _MOVES or (
        node.op_type in _MULTIPLIES and _multiplies_little(view, node, set(held))
    )


def shift_is_worth_leaving(view: View, run: list[ir.Node], whole: Affine) -> bool:
    """Whether an Add of its shift is to take the place of a run of affine nodes; its scale goes away."""
    if len(run) == 1:
        return False
    if view.portable or whole.volume < _CHANNELS_OF_A_BLOCK:
        return True
    return not _is_one_batch_norm(view, run, whole)


def is_blocked(view: View, affine: Affine, value: ir.Value) -> bool:
    """Whether the map on a value is a batch norm that ONNX Runtime may run in its layout of images."""
    return _fills_blocks(affine) and _is_batch_norm(view, affine, value)


def _fills_blocks(affine: Affine) -> bool:
    return affine.rank == _RANK_OF_IMAGES and affine.volume >= _CHANNELS_OF_A_BLOCK


def _multiplies_little(view: View, node: ir.Node, held: set[int]) -> bool:
    """Whether a layer multiplies once per element it makes, or few times altogether."""
    shape, index = view.facts.shape(node.outputs[0]), 1 if 1 in held else 0
    if index not in held or shape is None or len(shape) < 2:
        return False
    value = node.inputs[index]
    assert value is not None
    weight = view.constants.get(value).shape
    channels = shape[1] if node.op_type == "Conv" else shape[-1 if index else -2]
    if not isinstance(channels, int):
        return False
    taps = prod(weight) // max(1, channels)
    sizes = [dim for dim in shape if isinstance(dim, int)]
    return taps == 1 or (len(sizes) == len(shape) and prod(sizes) * taps <= _FEW_MULTIPLICATIONS)


def _is_worth_turning(view: View, plan: Plan, turned: int) -> bool:
    bypassed = set(plan.bypassed)
    runs = _runs(view, plan.bypassed)
    blocked = [run for run, whole in runs if _fills_blocks(whole) and _is_one_batch_norm(view, run, whole)]
    merging = sum(len(bypassed.intersection(run)) - 1 for run in blocked)
    gone = len(plan.bypassed) - merging - len(plan.stays) - len(plan.copies)
    if any(becomes.then is not None for becomes in plan.becomes.values()):
        return not blocked and gone > turned
    if gone > turned:
        return True
    producer = view.data_producer(plan.seed)
    is_bias = producer is not None and producer.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
    return gone == turned == 1 and plan.direction is Direction.DOWN and not is_bias and not blocked


def _runs(view: View, nodes: list[ir.Node]) -> Iterator[tuple[list[ir.Node], Affine]]:
    """Every run of affine nodes that one of these is part of."""
    seen: set[ir.Node] = set()
    for node in nodes:
        if node not in seen:
            run, whole = run_through(view, node)
            seen.update(run)
            yield run, whole


def _is_one_batch_norm(view: View, run: list[ir.Node], whole: Affine) -> bool:
    """Whether a run of affine nodes is one batch norm, or would be left as one."""
    if len(run) == 1:
        return run[0].op_type == "BatchNormalization"
    return _is_batch_norm(view, whole, run[-1].outputs[0])


def _is_batch_norm(view: View, affine: Affine, value: ir.Value) -> bool:
    left = leftover(affine, value, view.facts, view.opset)
    return left is not None and left.op_type == "BatchNormalization"


def _is_product(view: View, node: ir.Node) -> bool:
    """Whether the node multiplies two matrices that are computed at run time."""
    constant = (view.constants.holds(value) for value in node.inputs if value is not None)
    return node.op_type == "MatMul" and not any(constant)


def _is_dense_bias(view: View, plan: Plan) -> bool:
    only_adds = all(node.op_type in ("Add", "Sub") for node in plan.bypassed)
    return only_adds and any(node.op_type == "MatMul" for node in plan.path)


def _is_layer_norm_tail(view: View, node: ir.Node) -> bool:
    """Whether the node is γ or β behind ``(x − mean) / sqrt(variance + ε)``."""
    for _ in range(2):
        producer = view.data_producer(node)
        if producer is None:
            return False
        if producer.op_type == "Div" and _producer(producer, 1, "Sqrt"):
            return True
        node = producer
    return False


def _is_gelu_half(view: View, node: ir.Node) -> bool:
    """Whether the node is the ½ of ``½·x·(1 + erf(x/√2))`` or its tanh form, at the end of it."""
    product = view.data_producer(node)
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


def _producer(node: ir.Node, index: int, op_type: str) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type else None
