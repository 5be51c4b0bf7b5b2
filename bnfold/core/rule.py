"""What a rule is: up to three pure functions for one operator, found by its name and version."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bnfold.core.affine import IDENTITY, Affine, Array
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.site import Site


@dataclass(frozen=True)
class Becomes:
    """Another operator that a node turns into.

    Attributes:
        op_type: the new operator.
        attributes: all attributes of the new node.
        constants: inputs that are constants of its own, by index; exact, in float64. Where there are
            any, nothing else is left of the node's inputs but the first.
        then: one more node right behind it, which reads its output as the first input.
    """

    op_type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Array] = field(default_factory=dict)
    then: Becomes | None = None


@dataclass(frozen=True)
class Moved:
    """What moving a map through or into a node does; a description, nothing is done yet.

    Attributes:
        params: for each constant input, the map on *its* values that makes the new constant
            (an absent optional input counts as zero).
        inputs: for each other input, the map that its value must take over (``pull``).
        output: the map that the output's readers must take over (``push``), or that has to stay
            behind the node (``pull``).
        outputs: the same for the outputs behind the first, of which each has its own (``push``).
        becomes: the operator the node turns into, if it does not stay what it is.
        may_stay: whether ``output`` may stay behind the node as an Add of its own.
    """

    params: Mapping[int, Affine] = field(default_factory=dict)
    inputs: Mapping[int, Affine] = field(default_factory=dict)
    output: Affine = IDENTITY
    outputs: Mapping[int, Affine] = field(default_factory=dict)
    becomes: Becomes | None = None
    may_stay: bool = False


class Arriving(dict[int, Affine]):
    """The maps at a node's inputs (or outputs), by index; where there is none, the value stays."""

    def at(self, index: int) -> Affine:
        """The map at an input, the identity where none arrives."""
        return self.get(index, IDENTITY)

    def only(self, index: int) -> Affine:
        """The map at ``index`` if none arrives elsewhere.

        Raises:
            Refused: ``OTHER_OPERAND`` if one does.
        """
        require(set(self) <= {index}, Reason.OTHER_OPERAND)
        return self.at(index)


class Rule:
    """One operator's knowledge. A verb that is not overridden is refused with ``otherwise``.

    Every verb is pure: it sees a read-only ``Site`` and returns a description or raises ``Refused``.
    """

    otherwise = Reason.NO_RULE

    def read(self, site: Site) -> tuple[int, Affine]:
        """``op = affine``: which input is the data, and which map the node is of it."""
        raise Refused(Reason.NOT_AFFINE)

    def pull(self, site: Site, out: Affine) -> Moved | Iterable[Moved]:
        """``out ∘ op = op′ ∘ rest``: how the node takes a map from behind it.

        May return several alternatives, best first.
        """
        raise Refused(self.otherwise)

    def pull_all(self, site: Site, outs: Arriving) -> Moved | Iterable[Moved]:
        """``pull`` with a map behind each output; most operators have but one that a map can follow."""
        return self.pull(site, outs.only(0))

    def push(self, site: Site, into: Arriving) -> Moved:
        """``op ∘ into = rest ∘ op′``: how the node takes maps from in front of it."""
        raise Refused(self.otherwise)


@dataclass(frozen=True)
class Registered:
    """A rule under an operator's name, with the versions of the operator it knows."""

    rule: Rule
    versions: Collection[int]
    module: str

    @property
    def verbs(self) -> list[str]:
        """What the rule can do: of "read", "pull" and "push" those it has an equation for."""
        names = ("read", "pull", "push")
        return [name for name in names if getattr(type(self.rule), name) is not getattr(Rule, name)]

    @property
    def reads(self) -> bool:
        """Whether the operator can be an affine map itself."""
        return "read" in self.verbs


_registry: dict[str, Registered] = {}
_refused: dict[str, Reason] = {}


def rule(*op_types: str, versions: Collection[int]) -> Callable[[type[Rule]], type[Rule]]:
    """Register a rule for standard operators, for the versions its equations were checked against."""

    def register(cls: type[Rule]) -> type[Rule]:
        for op_type in op_types:
            _registry[op_type] = Registered(cls(), frozenset(versions), cls.__module__)
        return cls

    return register


def nonlinear(*op_types: str, reason: Reason = Reason.NONLINEAR) -> None:
    """Name standard operators that no map passes, in any version, and why."""
    _refused.update(dict.fromkeys(op_types, reason))


@cache
def registered() -> Mapping[str, Registered]:
    """Every rule by operator name; the rule files are imported on first use."""
    import bnfold.rules

    bnfold.rules.load()
    return _registry


def rule_for(site: Site) -> Rule:
    """The rule that knows the operator at a site.

    Raises:
        Refused: ``NONLINEAR`` for an operator known to have none, ``NO_RULE`` for any other without
            (a foreign domain's operator is never ours),
            ``UNKNOWN_VERSION`` for a version no equation was checked against.
    """
    entry = registered().get(site.node.op_type)
    if entry is None or site.node.domain != "" or site.version == 0:
        ours = site.node.domain == "" and site.version > 0
        raise Refused(_refused.get(site.node.op_type, Reason.NO_RULE) if ours else Reason.NO_RULE)
    require(site.version in entry.versions, Reason.UNKNOWN_VERSION)
    return entry.rule
