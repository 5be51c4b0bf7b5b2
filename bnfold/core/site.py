"""What a rule sees of the graph: one node, read-only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import onnx_ir as ir

from bnfold.core.graph.constants import Const, Constants
from bnfold.core.graph.shapes import Facts, Shape, is_standard
from bnfold.core.reasons import Reason, Refused, require

T = TypeVar("T")

# Before this opset operators broadcast by attributes.
BROADCASTING = 7

# Before this opset a Softmax without an axis, or with one, is along all axes from it on.
_SOFTMAX_OF_ONE_AXIS = 13


@dataclass(frozen=True)
class Site:
    """A read-only view of one node: attributes, constants as float64, inferred shapes.

    Attributes:
        node: the node itself, for its name; rules do not touch it.
        version: the opset in which the node's operator last changed.
    """

    node: ir.Node
    version: int
    facts: Facts
    constants: Constants

    @property
    def opset(self) -> int:
        """The version of the standard operator set that the model uses."""
        return self.constants.opset

    def attr(self, name: str, default: T) -> T:
        """The attribute's value, or ``default`` where it is absent; strings are ``str``."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        require(not attribute.is_ref(), Reason.IN_FUNCTION)
        return cast(T, list(attribute.value) if isinstance(default, list) else attribute.value)

    def has(self, index: int) -> bool:
        """Whether the input is given (an optional one may be absent or ``""``)."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> ir.Value:
        """The value at an input that must be given."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is None:
            raise Refused(Reason.NOT_CONSTANT)
        return value

    def const(self, index: int) -> Const:
        """The constant at an input.

        Raises:
            Refused: ``NOT_CONSTANT`` or ``OVERRIDABLE`` if it is none, ``NOT_FLOAT`` or
                ``NOT_FINITE`` if its values cannot be computed with.
        """
        return self.constants.get(self.input(index))

    def is_const(self, index: int) -> bool:
        """Whether an input is a constant."""
        return self.has(index) and self.constants.holds(self.input(index))

    def sums_to_one(self, index: int) -> bool:
        """Whether an input is known to sum to one along its last axis, for a Softmax made it."""
        made = self.input(index).producer()
        if made is None or made.op_type != "Softmax" or not is_standard(made, self.constants.functions):
            return False
        axis = made.attributes.get("axis")
        if axis is not None and axis.is_ref():
            return False
        place = (1 if self.opset < _SOFTMAX_OF_ONE_AXIS else -1) if axis is None else axis.as_int()
        return place % len(self.shape(index)) == len(self.shape(index)) - 1

    def ints(self, index: int, attribute: str) -> list[int] | None:
        """A list of integers that is an attribute in old opsets and a constant input in new ones."""
        if self.has(index):
            return [int(item) for item in np.atleast_1d(self.const(index).base)]
        values = self.attr(attribute, cast("list[int]", []))
        return values if attribute in self.node.attributes else None

    def target_type(self) -> ir.DataType | None:
        """The type that a Cast casts to; before version 6 a name, later a number."""
        to = self.node.attributes.get("to")
        if to is None:
            return None
        return ir.DataType[to.value] if isinstance(to.value, str) else ir.DataType(to.value)

    def shape(self, index: int) -> Shape:
        """The inferred shape of an input.

        Raises:
            Refused: ``UNKNOWN_SHAPE`` if not even its rank is known.
        """
        return _known(self.facts.shape(self.input(index)))

    def out_shape(self, index: int = 0) -> Shape:
        """The inferred shape of an output; raises like ``shape``."""
        return _known(self.facts.shape(self.node.outputs[index]))


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise Refused(Reason.UNKNOWN_SHAPE)
    return shape
