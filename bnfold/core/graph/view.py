"""The planner's read-only view of a model: sites, affine nodes, and the order of things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.constants import Constants
from bnfold.core.graph.graphs import graphs_of
from bnfold.core.graph.shapes import infer, is_standard, opset_of
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Rule, registered, rule_for
from bnfold.core.site import Site
from bnfold.errors import InvalidModelError

# What numpy and Python raise where the attributes and constants of a node do not fit each other, or
# claim a size that nothing has.
MISFITS = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)

Chosen = Callable[[str], bool]


class View:
    """Everything the planner may ask of a model. Nothing here changes it.

    Args:
        model: the model, its nodes in topological order.
        chosen: whether a node of this name may be folded (``--only``, ``--skip``).
        portable: keep to rewrites that help on every runtime.
    """

    def __init__(
        self,
        model: ir.Model,
        chosen: Chosen = lambda name: True,
        portable: bool = False,
    ) -> None:
        self.model = model
        self.portable = portable
        self.facts = infer(model)
        self.constants = Constants.of_model(model, self.facts)
        self.opset = opset_of(model)
        self.chosen = chosen
        self.graphs = tuple(graphs_of(model))  # no fold makes or removes a body
        self._positions: dict[ir.Node, float] = {}
        self._reads: dict[ir.Node, tuple[int, Affine] | Reason] = {}
        for place, node in enumerate(self.nodes()):
            self._positions[node] = float(place)

    def nodes(self) -> Iterator[ir.Node]:
        """Every node of the graph and its subgraphs, in topological order within each."""
        for graph in self.graphs:
            yield from graph

    def operators(self) -> dict[str, int]:
        """How many nodes there are of each operator."""
        return dict(sorted(Counter(node.op_type for node in self.nodes()).items()))

    def site(self, node: ir.Node) -> Site:
        """The node as a rule sees it."""
        return Site(node, self._version(node), self.facts, self.constants)

    def rule(self, site: Site) -> Rule:
        """The rule for a site; raises ``Refused`` where there is none."""
        return rule_for(site)

    def reads(self, node: ir.Node) -> bool:
        """Whether the node's operator is one that can be an affine map, with a constant to be it by."""
        entry = registered().get(node.op_type)
        return entry is not None and entry.reads and self._version(node) > 0

    def read(self, node: ir.Node) -> tuple[int, Affine]:
        """Which input of an affine node is its data, and which map the node is.

        Raises:
            Refused: if the node is no affine map, or must be left alone.
        """
        known = self._known(node)
        if isinstance(known, Reason):
            raise Refused(known)
        return known

    def affine(self, node: ir.Node) -> tuple[int, Affine] | None:
        """Like ``read``, but None for a node that is no affine map."""
        known = self._known(node)
        if known is Reason.EXCLUDED:
            raise Refused(known)
        return None if isinstance(known, Reason) else known

    def is_affine(self, node: ir.Node) -> bool:
        """Whether ``read`` gives a map."""
        return not isinstance(self._known(node), Reason)

    def data_producer(self, node: ir.Node) -> ir.Node | None:
        """What makes the data of an affine node; None for any other node, and for an input of the graph."""
        value = node.inputs[self.read(node)[0]] if self.is_affine(node) else None
        return None if value is None else value.producer()

    def is_noop(self, node: ir.Node) -> bool:
        """Whether the node gives what it gets: an Identity, or a Cast to the type that is there."""
        site = self.site(node)
        if not site.version:
            return False
        if node.op_type == "Identity":
            return True
        return node.op_type == "Cast" and site.target_type() == self.facts.dtype(site.input(0))

    def readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Every use of a value; not those that ask only for its shape or type, which no map changes."""
        for node, index in value.uses():
            asks = node.op_type in ("Shape", "Size") or (node.op_type, index) == ("CastLike", 1)
            if not (asks and self._version(node) > 0):
                yield node, index

    def position(self, node: ir.Node) -> float:
        """Where the node stands: every reader of a value stands behind its producer."""
        return self._positions[node]

    def place_behind(self, new: ir.Node, node: ir.Node) -> None:
        """Give a new node a position between ``node`` and whatever comes next."""
        place = self._positions[node]
        self._positions[new] = (place + int(place) + 1) / 2

    def forget(self, node: ir.Node) -> None:
        """Read the node anew next time: it was rewritten."""
        self._reads.pop(node, None)
        for output in node.outputs:
            self.constants.forget(output)

    def _known(self, node: ir.Node) -> tuple[int, Affine] | Reason:
        if node not in self._reads:
            self._reads[node] = self._read(node)
        return self._reads[node]

    def _read(self, node: ir.Node) -> tuple[int, Affine] | Reason:
        site = self.site(node)
        try:
            rule = self.rule(site)
            # Integers are told first, so that no constant is evaluated for them.
            require(self.facts.may_be_float(node.outputs[0]), Reason.NOT_FLOAT)
            index, affine = rule.read(site)
            require(self.facts.is_float(site.input(index)), Reason.NOT_FLOAT)
            # What a constant is mapped to is a constant: its readers take it as such.
            require(not site.is_const(index), Reason.NOT_AFFINE)
            finite = np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()
            require(bool(finite), Reason.NOT_FINITE)
            require(self.chosen(name_of(node)), Reason.EXCLUDED)
        except Refused as refused:
            return refused.reason
        except MISFITS as error:
            raise misfit(node, error) from error
        return index, affine.collapsed()

    def _version(self, node: ir.Node) -> int:
        return _since(node.op_type, self.opset) if is_standard(node, self.model.functions) else 0


# How a pass gets its view of a model.
Look = Callable[[ir.Model], View]


def misfit(node: ir.Node, error: Exception) -> InvalidModelError:
    """What to raise where a rule could not compute: no runtime could, either."""
    return InvalidModelError(
        f"the attributes or constants of {name_of(node)!r} ({node.op_type}) do not fit each other "
        f"({type(error).__name__}: {error}); export the model again."
    )


@contextmanager
def fitting(node: ir.Node) -> Iterator[None]:
    """Raise ``InvalidModelError`` where what is asked of a node cannot be computed."""
    try:
        yield
    except MISFITS as error:
        raise misfit(node, error) from error


def name_of(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or node.outputs[0].name or node.op_type


@cache
def _since(op_type: str, opset: int) -> int:
    """The opset at which the operator took its present form, 0 if there is no such operator."""
    try:
        return onnx.defs.get_schema(op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        return 0
