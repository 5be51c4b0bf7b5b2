"""What was found and what became of it, as plain data: the table, the JSON and the docs show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.core.reasons import Reason

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Refusal:
    """Why a map could not go one way.

    Attributes:
        direction: "read", "up", "down" or "merge".
        reason: the condition that does not hold.
        node: the node that refused, as "name (OpType)"; empty where the graph's edge did.
        tensor: the tensor in question, if the refusal is about one.
    """

    direction: str
    reason: Reason
    node: str = ""
    tensor: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON-ready data, the reason spelled out."""
        return {
            "direction": self.direction,
            "reason": self.reason.name,
            "text": self.reason.text,
            "unblock": self.reason.unblock,
            "node": self.node,
            "tensor": self.tensor,
        }


@dataclass
class Row:
    """What became of one affine node of the original model.

    Attributes:
        name: the node's name.
        op_type: its operator.
        status: "folded", "merged" or "kept".
        direction: "up" or "down" for a folded one.
        into: the nodes whose constants took the map, as "name (OpType)".
        through: the nodes it passed on the way.
        leaves: affine nodes that stay in its place, as "name (OpType)".
        copies: nodes of which a copy serves the other readers, as "name (OpType)".
        refusals: for a kept one, one refusal per direction.
        per_channel: whether the map differs between channels.
    """

    name: str
    op_type: str
    status: str = "kept"
    direction: str = ""
    into: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    per_channel: bool = True

    @property
    def is_batch_norm(self) -> bool:
        """Whether to list the node among the batch norms: not a bias, a scalar or a fused constant."""
        minor = {Reason.DENSE_BIAS, Reason.FUSED_BY_RUNTIME}
        if self.op_type == "BatchNormalization" or self.status != "kept":
            return True
        return self.per_channel and not any(refusal.reason in minor for refusal in self.refusals)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "name": self.name,
            "op_type": self.op_type,
            "status": self.status,
            "direction": self.direction,
            "into": list(self.into),
            "through": list(self.through),
            "leaves": list(self.leaves),
            "copies": list(self.copies),
            "refusals": [refusal.to_dict() for refusal in self.refusals],
        }


@dataclass
class Report:
    """What folding one model did.

    Attributes:
        rows: one per affine node of the original, in graph order.
        nodes_before: number of nodes by operator before folding, subgraphs and what is inlined included.
        nodes_after: the same after folding.
        seconds: wall time of the fold itself.
        inlined: the model-local functions that were inlined because a map of theirs folds.
        constant_bytes: by how many bytes the stored constants grew (negative: shrank).
        overridable: how many refusals ``--freeze-initializers`` would lift.
        training: how many refusals ``--to-inference`` would lift.
        converted: how many nodes were taken out of training mode before.
    """

    rows: list[Row] = field(default_factory=list)
    nodes_before: Mapping[str, int] = field(default_factory=dict)
    nodes_after: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    constant_bytes: int = 0
    inlined: list[str] = field(default_factory=list)
    converted: int = 0

    @property
    def folded(self) -> int:
        """How many affine nodes found a home."""
        return sum(row.status == "folded" for row in self.rows)

    @property
    def merged(self) -> int:
        """How many affine nodes were merged into a single one."""
        return sum(row.status == "merged" for row in self.rows)

    @property
    def kept(self) -> int:
        """How many batch norms stay."""
        return sum(row.status == "kept" and row.is_batch_norm for row in self.rows)

    @property
    def changed(self) -> bool:
        """Whether the model is any different."""
        return self.folded + self.merged + self.converted > 0 or bool(self.inlined)

    @property
    def overridable(self) -> int:
        """How many nodes stay because a constant is listed as a graph input."""
        return self._kept_for(Reason.OVERRIDABLE)

    @property
    def training(self) -> int:
        """How many nodes stay because they are in training mode."""
        return self._kept_for(Reason.TRAINING_MODE, Reason.TRAINING_OUTPUTS)

    def _kept_for(self, *reasons: Reason) -> int:
        return sum(
            any(refusal.reason in reasons for refusal in row.refusals)
            for row in self.rows
            if row.status == "kept"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data, with the version of this layout."""
        return {
            "schema_version": SCHEMA_VERSION,
            "folded": self.folded,
            "merged": self.merged,
            "kept": self.kept,
            "converted": self.converted,
            "seconds": self.seconds,
            "nodes_before": dict(self.nodes_before),
            "nodes_after": dict(self.nodes_after),
            "constant_bytes": self.constant_bytes,
            "inlined": list(self.inlined),
            "rows": [row.to_dict() for row in self.rows],
        }
