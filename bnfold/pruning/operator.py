"""What an operator does with channels: pure knowledge, one class per algebra, found by name.

A tensor's channels run along one axis. ``known`` holds for each channel the value that it has
everywhere, or NaN where it varies. An operator either *links* channels (output channel j is made of
input channel i alone, and both can only go together) or *absorbs* them (a layer sums over its input
channels, so that a known one moves into its bias).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.core.affine import Array
from bnfold.core.graph.constants import Const
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import Site

Mask = npt.NDArray[np.bool_]
Origin = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor: along which axis they run, and the value of each, NaN where it varies."""

    axis: int
    known: Array

    @property
    def dead(self) -> Mask:
        """Which channels hold one value everywhere."""
        return ~np.isnan(self.known)


@dataclass(frozen=True)
class Cut:
    """What becomes of a node whose channels are removed.

    Attributes:
        constants: the new constant at each input that changes.
        shift: what has to be added behind the node along the last axis, if anything.
        group: how many groups a convolution then has, None where that stays.
    """

    constants: Mapping[int, Const] = field(default_factory=dict)
    shift: Array | None = None
    group: int | None = None


@dataclass(frozen=True)
class Removal:
    """Which channels stay at a node.

    Attributes:
        inputs: by input, which of its channels stay.
        known: by input, the values of its channels.
        output: which channels of the output stay.
        axis: along which the output's channels run.
    """

    inputs: Mapping[int, Mask]
    known: Mapping[int, Array]
    output: Mask
    axis: int


class Operator:
    """One operator's knowledge. ``Refused`` from any method: nothing is removed at this node.

    Attributes:
        why: why a channel may vary behind the node that did not in front of it.
    """

    why = Reason.STILL_READ

    def data(self, site: Site) -> list[int]:
        """The inputs whose channels the node handles."""
        return [0]

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        """The channels of the output; ``given`` holds those of the inputs, as far as they are known."""
        raise NotImplementedError

    def origin(self, site: Site, index: int, given: Channels, output: Channels) -> Origin | None:
        """For each output channel the channel of this input that it is made of, −1 if of none.

        None if the input is absorbed instead.
        """
        return np.arange(len(output.known))

    def absorbs(self, site: Site, index: int, given: Channels) -> tuple[Mask, Reason]:
        """Which channels of an absorbed input may go, and why others may not."""
        raise NotImplementedError

    def cut(self, site: Site, removal: Removal) -> Cut:
        """The node's constants once the channels are gone."""
        return Cut()


_registry: dict[str, Operator] = {}


def operator(*op_types: str) -> Callable[[type[Operator]], type[Operator]]:
    """Register what a class knows for standard operators."""

    def register(cls: type[Operator]) -> type[Operator]:
        _registry.update((op_type, cls()) for op_type in op_types)
        return cls

    return register


@cache
def registered() -> Mapping[str, Operator]:
    """Every operator by name; the files are imported on first use."""
    package = import_module("bnfold.pruning.operators")
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
    return _registry


def only(given: Mapping[int, Channels]) -> Channels:
    """The channels of a node's one data input.

    Raises:
        Refused: ``UNKNOWN_SHAPE`` if nothing is known of them.
    """
    if 0 not in given:
        raise Refused(Reason.UNKNOWN_SHAPE)
    return given[0]


def alone(site: Site) -> None:
    """Insist that the node's first output is all that anyone needs of it.

    Raises:
        Refused: ``OTHER_READER`` for a mask or indices that are read or returned.
    """
    needed = any(value.uses() or value.is_graph_output() for value in site.node.outputs[1:])
    require(not needed, Reason.OTHER_READER)


def selected(const: Const, axis: int, keep: Mask) -> Const:
    """A constant without some of its entries along an axis, if it has them there; unrounded."""
    require(const.integers is None, Reason.QUANTIZED_SHIFT)
    if axis < 0 or axis >= const.rank or const.shape[axis] != len(keep):
        return const
    base = const.base if const.edit.is_identity else const.exact
    kept = np.compress(keep, np.broadcast_to(base, const.shape), axis=axis)
    return Const(kept.shape, const.dtype, kept)


def shifted(const: Const, shift: Array) -> Const:
    """A bias, which may broadcast, with something added; unrounded."""
    total = const.exact + shift
    return Const(total.shape, const.dtype, total)


def size_along(site: Site, value: ir.Value, axis: int) -> int:
    """The size of a tensor along an axis.

    Raises:
        Refused: ``UNKNOWN_SHAPE`` if it is not known.
    """
    shape = site.facts.shape(value)
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(size, int):
        raise Refused(Reason.UNKNOWN_SHAPE)
    return size
