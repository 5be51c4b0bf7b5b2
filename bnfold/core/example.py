"""Examples: small graphs beside the rule they show. They are its tests and its documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.core.reasons import Reason

# A graph input of an example: its shape where the example is written, its name where it is built.
Input = Any
Outputs = Any
Build = Callable[..., Outputs]
DEFAULT_OPSET = 17


@dataclass(frozen=True)
class Example:
    """One graph and what folding must make of it.

    Attributes:
        build: takes a ``Graph`` and one name per graph input (whose shape is the default value of
            that parameter); returns the output or outputs.
        reason: why every affine node stays, or None if they are to go.
        leaves: affine nodes that remain after folding, by operator (a shift that no layer can take).
        opset: the operator set of the model.
        ir_version: the model's IR version.
        options: further arguments for ``bnfold.fold``.
    """

    build: Build
    reason: Reason | None
    leaves: Sequence[str] = ()
    opset: int = DEFAULT_OPSET
    ir_version: int = 8
    dtype: int = TensorProto.FLOAT
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where the example is written."""
        return f"{self.build.__module__.removeprefix('bnfold.rules.')}:{self.build.__name__}"

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """Build the model; the same seed gives the same weights."""
        graph = Graph(self.opset, self.dtype, seed)
        for name, parameter in list(inspect.signature(self.build).parameters.items())[1:]:
            graph.input(name, parameter.default)
        made = self.build(graph, *graph.input_names())
        return graph.finish([made] if isinstance(made, str) else list(made), self.ir_version)


EXAMPLES: list[Example] = []


@overload
def folds(build: Build) -> Build: ...
@overload
def folds(*, leaves: Sequence[str] = (), **more: Any) -> Callable[[Build], Build]: ...
def folds(build: Build | None = None, *, leaves: Sequence[str] = (), **more: Any) -> Any:
    """Mark a graph whose affine nodes are all placed (but for ``leaves``)."""

    def mark(function: Build) -> Build:
        EXAMPLES.append(Example(function, None, leaves, **more))
        return function

    return mark if build is None else mark(build)


def refuses(reason: Reason, **more: Any) -> Callable[[Build], Build]:
    """Mark a graph that is left untouched for ``reason``."""

    def mark(function: Build) -> Build:
        EXAMPLES.append(Example(function, reason, **more))
        return function

    return mark


class Graph:
    """Writes a small ONNX graph: ``op.Conv(x, op.weight(2, 3, 3, 3), pads=[1, 1, 1, 1])``.

    Any operator is a method that takes value names and attributes and returns the name of its
    output (of several with ``outputs=2``). Weights are drawn from a seeded generator.
    """

    def __init__(self, opset: int, dtype: int = TensorProto.FLOAT, seed: int = 0) -> None:
        self.opset = opset
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self._random = np.random.default_rng(seed)
        self._inputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._overridable: list[onnx.ValueInfoProto] = []
        self._count = 0

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.node(op_type, *inputs, **attributes)

    def node(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node and return the names of its outputs."""
        names = [self._fresh(op_type) for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(
                op_type, list(inputs), names, name=f"{names[0]}_node", domain=domain, **attributes
            )
        )
        return names[0] if outputs == 1 else names

    def input(self, name: str, shape: Sequence[int | str | None] | None, dtype: int = 0) -> str:
        """Add a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, shape))
        return name

    def const(self, values: npt.ArrayLike, dtype: int = 0, overridable: bool = False) -> str:
        """Add an initializer with these values, in the model's type unless said otherwise."""
        name = self._fresh("const")
        kind = dtype or self.dtype
        array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind))
        self._initializers.append(numpy_helper.from_array(array, name))
        if overridable:
            self._overridable.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def ints(self, *values: int) -> str:
        """Add a vector of int64, such as a shape."""
        return self.const(np.array(values, np.int64), TensorProto.INT64)

    def weight(self, *shape: int, **more: Any) -> str:
        """Add a random weight."""
        return self.const(self._random.normal(0.0, 1.0, shape), **more)

    def positive(self, *shape: int, **more: Any) -> str:
        """Add a random weight without zero or negative entries."""
        return self.const(self._random.uniform(0.5, 2.0, shape), **more)

    def integers(self, *shape: int, dtype: int = TensorProto.INT8, size: int = 127) -> str:
        """Add random integers of at most this size, about 128 where there are none below zero."""
        middle = 128 if dtype == TensorProto.UINT8 else 0
        return self.const(middle + self._random.integers(-size, size + 1, shape), dtype)

    def batch_norm(
        self,
        x: str,
        channels: int = 0,
        positive: bool = False,
        shift: bool = True,
        **attributes: Any,
    ) -> str:
        """Add a BatchNormalization whose channel count is that of ``x``.

        Args:
            x: the value to normalize.
            channels: the channel count, where inference cannot tell.
            positive: let γ have no negative entry.
            shift: let the mean and β differ from zero.
            attributes: of the node; ``epsilon`` is large enough to be missed if forgotten.
        """
        count = channels or self._channels(x)
        gamma = self.positive(count) if positive else self.weight(count)
        means = [self.weight(count) if shift else self.const(np.zeros(count)) for _ in range(2)]
        attributes.setdefault("epsilon", 0.125)
        variance = self.positive(count)
        return str(self.node("BatchNormalization", x, gamma, *means, variance, **attributes))

    def input_names(self) -> list[str]:
        """The graph inputs so far, in order."""
        return [value.name for value in self._inputs]

    def finish(self, outputs: Sequence[str], ir_version: int = 8) -> onnx.ModelProto:
        """The model with these graph outputs."""
        return self._model([helper.make_value_info(name, onnx.TypeProto()) for name in outputs], ir_version)

    def _model(self, outputs: Sequence[onnx.ValueInfoProto], ir_version: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "example", [*self._inputs, *self._overridable], outputs, self._initializers
        )
        if ir_version < 4:
            kinds = ((t.name, t.data_type, t.dims) for t in self._initializers)
            graph.input.extend(helper.make_tensor_value_info(*kind) for kind in kinds)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(d, 1) for d in domains),
        ]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
            value.CopyFrom(known)
            if not value.type.tensor_type.elem_type:
                value.type.tensor_type.elem_type = self.dtype
        return model

    def _channels(self, value: str) -> int:
        for given in self._inputs:
            if given.name == value:
                return int(given.type.tensor_type.shape.dim[1].dim_value)
        probe = self._model([helper.make_value_info(value, onnx.TypeProto())], 8)
        return int(probe.graph.output[0].type.tensor_type.shape.dim[1].dim_value)

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem.lower()}_{self._count}"
