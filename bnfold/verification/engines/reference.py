"""Where onnx's reference evaluator may be believed.

It is believed for the operators below only, from the opset on where it was compared with ONNX Runtime in
float32 (tests/test_verify.py repeats the comparison). onnx 1.23 is wrong for Softmax and LogSoftmax
before opset 13 (it takes one axis instead of all axes from it on), for BatchNormalization before 14 (it
blends batch statistics into the running ones; replaced here), for DequantizeLinear (it takes integers to
float32, and has none before 19; replaced here), for LSTM, GRU and RNN (it knows one direction; replaced in
``recurrent``), for MaxPool with SAME_LOWER, and for LRN at any opset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.defs import onnx_opset_version
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ..compare.graph import all_nodes
from .recurrent import GRU, LSTM, RNN, is_ordinary

_FROM_7 = (
    "Abs Add ArgMax AveragePool BatchNormalization Cast Clip Concat Constant Conv ConvTranspose "
    "DepthToSpace Div Dropout Elu Exp Flatten GRU Gather Gemm GlobalAveragePool GlobalMaxPool "
    "HardSigmoid Identity InstanceNormalization LSTM LeakyRelu MatMul MaxPool Mul Neg PRelu Pad Pow "
    "RNN ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape Selu Shape Sigmoid Slice Softplus Softsign "
    "SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile Transpose Unsqueeze"
)
_LATER = {
    "ConstantOfShape": 9,
    "DequantizeLinear": 10,
    "Expand": 8,
    "Max": 8,
    "Min": 8,
    "Erf": 9,
    "Where": 9,
    "LogSoftmax": 13,
    "Softmax": 13,
    "HardSwish": 14,
    "CastLike": 15,
    "LayerNormalization": 17,
    "Gelu": 20,
}
EXACT_FROM = dict.fromkeys(_FROM_7.split(), 7) | _LATER


class BatchNormalization(OpRun):
    """Inference-mode batch normalization before opset 14, which the evaluator lacks."""

    def _run(
        self, x: NDArray[Any], *vectors: NDArray[Any], epsilon: float | None = None, **_: Any
    ) -> tuple[NDArray[Any]]:
        """Compute scale · (x - mean) / √(var + ε) + bias along axis 1, in the dtype of ``x``."""
        scale, bias, mean, var = (each.reshape(-1, *[1] * (x.ndim - 2)) for each in vectors)
        epsilon = 1e-5 if epsilon is None else epsilon
        y = scale * (x - mean) / np.sqrt(var + np.asarray(epsilon, var.dtype)) + bias
        return (y.astype(x.dtype),)


class DequantizeLinear(OpRun):
    """Dequantization in the dtype of the scale, for every opset."""

    def _run(
        self,
        q: NDArray[Any],
        scale: NDArray[Any],
        zero: NDArray[Any] | None = None,
        axis: int = 1,
        block_size: int = 0,
        **_: Any,
    ) -> tuple[NDArray[Any]]:
        """Compute (q - zero) · scale, for the tensor, along an axis or in blocks along it."""

        def spread(each: NDArray[Any]) -> NDArray[Any]:
            if each.size == 1:
                return each.reshape(())
            if block_size:
                return np.repeat(each, block_size, axis=axis).take(range(q.shape[axis]), axis=axis)
            return each.reshape(-1, *[1] * (q.ndim - axis % q.ndim - 1))

        wide = q.astype(np.float64) - (0.0 if zero is None else spread(zero).astype(np.float64))
        return ((wide * spread(scale)).astype(scale.dtype),)


class Reference:
    """A model in the evaluator, with the operators above as their opsets define them."""

    def __init__(self, model: ModelProto) -> None:
        new: list[type[OpRun]] = [DequantizeLinear, GRU, LSTM, RNN]
        new += [BatchNormalization] if _opset(model) < 14 else []
        self._evaluator = ReferenceEvaluator(model, new_ops=new)

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Sequence[Any]:
        """The named outputs, in order."""
        given = {name: feeds[name] for name in self._evaluator.input_names if name in feeds}
        with np.errstate(all="ignore"):
            return list(self._evaluator.run(list(names), given))

    def size(self, name: str) -> int:
        """Unknown before running: 1."""
        del name
        return 1


def require_exact(model: ModelProto) -> None:
    """Refuse a model on which the evaluator must not be believed.

    Raises:
        NotImplementedError: the text names the operator.
    """
    version = _opset(model)
    for node in all_nodes(model.graph):
        known = node.domain in ("", "ai.onnx") and EXACT_FROM.get(node.op_type, version + 1) <= version
        if not known or version > onnx_opset_version() or _odd(node, version):
            raise NotImplementedError(f"not known to be exact for {node.op_type} at opset {version}")


def _opset(model: ModelProto) -> int:
    versions = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return max(versions, default=0)


def _odd(node: NodeProto, version: int) -> bool:
    """Whether a known operator is used in a way on which the evaluator or the class above is wrong."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "MaxPool":
        return attributes.get("auto_pad") == b"SAME_LOWER"
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return not is_ordinary(node.op_type, attributes)
    if node.op_type == "BatchNormalization" and version < 14:
        return attributes.get("spatial") == 0 or sum(map(bool, node.output)) > 1  # elementwise, or training
    return False
