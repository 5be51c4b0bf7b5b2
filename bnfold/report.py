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
        direction: "read", "up", "down" or "merge"; "across" or "serial" for branches and layers.
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
        refusals: for one that is kept or was merged, one refusal per direction.
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
class Branches:
    """What became of layers that are added, or that stand in a row.

    Attributes:
        name: the sum's, or the last layer's name.
        op_type: its operator.
        kind: "across" or "serial"; empty where all branches stay.
        into: the nodes that took their place, as "name (OpType)"; empty where all stay.
        nodes: the nodes that are gone.
        work_before: multiplications and additions for each position of the output, before.
        work_after: the same after.
        refusals: for each branch that stays, its tensor and the reason.
    """

    name: str
    op_type: str
    kind: str = ""
    into: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    work_before: float = 0.0
    work_after: float = 0.0
    refusals: tuple[Refusal, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**vars(self), "refusals": [refusal.to_dict() for refusal in self.refusals]} | {
            "into": list(self.into),
            "nodes": list(self.nodes),
        }


@dataclass
class Channels:
    """What became of the channels that a layer makes, where some hold one value everywhere.

    Attributes:
        name: the layer's or batch norm's name.
        op_type: its operator.
        channels: how many channels it made.
        removed: which of them are gone.
        kept: which hold one value and stay all the same.
        approximate: which of the removed ones hold one value only by ``--prune-below``.
        refusals: why those stay, one for each reason and place.
    """

    name: str
    op_type: str
    channels: int
    removed: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    approximate: tuple[int, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        lists = {name: list(getattr(self, name)) for name in ("removed", "kept", "approximate")}
        return {**vars(self), **lists, "refusals": [refusal.to_dict() for refusal in self.refusals]}


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
        bias_rounding: by how much, at most, an int32 bias was rounded to whole steps of its scale; 0 if
            none was.
        overridable: how many refusals ``--freeze-initializers`` would lift.
        training: how many refusals ``--to-inference`` would lift.
        converted: how many nodes were taken out of training mode before.
        branches: layers that were merged, and branches that could not be.
        channels: layers whose channels hold one value, and what became of these.
        work_before: multiplications of all layers on one input before channels were removed, open
            dimensions counting as 1; 0 where none were looked for.
        work_after: the same after.
    """

    rows: list[Row] = field(default_factory=list)
    nodes_before: Mapping[str, int] = field(default_factory=dict)
    nodes_after: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    constant_bytes: int = 0
    bias_rounding: float = 0.0
    inlined: list[str] = field(default_factory=list)
    converted: int = 0
    branches: list[Branches] = field(default_factory=list)
    channels: list[Channels] = field(default_factory=list)
    work_before: int = 0
    work_after: int = 0

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
        narrowed = any(each.removed for each in self.channels)
        counted = self.folded + self.merged + self.joined + self.converted
        return counted > 0 or narrowed or bool(self.inlined)

    @property
    def pruned(self) -> int:
        """How many layers make fewer channels."""
        return sum(bool(each.removed) and each.op_type != "BatchNormalization" for each in self.channels)

    @property
    def joined(self) -> int:
        """How many times several layers became one."""
        return sum(bool(each.into) for each in self.branches)

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

    def then(self, later: Report) -> Report:
        """This pass and a later one on the same model, as one report.

        Rows are those of the nodes that were there at the beginning; a batch norm that vanished with the
        branch it was on is folded across.
        """
        known = {row.name: row for row in later.rows}
        rows = [known.get(row.name, row) if row.status == "kept" else row for row in self.rows]
        for joined in later.branches:
            for row in rows if joined.into else ():
                if row.status == "kept" and f"{row.name} ({row.op_type})" in joined.nodes:
                    row.status, row.direction = "folded", "across"
                    row.into, row.refusals = joined.into, ()
        settled = [each for each in self.branches if each.into]
        return Report(
            rows=rows if self.rows else later.rows,
            nodes_before=self.nodes_before or later.nodes_before,
            nodes_after=later.nodes_after,
            seconds=self.seconds + later.seconds,
            constant_bytes=self.constant_bytes + later.constant_bytes,
            bias_rounding=max(self.bias_rounding, later.bias_rounding),
            inlined=self.inlined + later.inlined,
            converted=self.converted + later.converted,
            branches=settled + later.branches if later.branches else self.branches,
            channels=[
                *self.channels,
                *(each for each in later.channels if each.removed or not self.work_before),
            ],
            work_before=self.work_before or later.work_before,
            work_after=later.work_after if later.pruned else self.work_after or later.work_after,
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
            "bias_rounding": self.bias_rounding,
            "inlined": list(self.inlined),
            "rows": [row.to_dict() for row in self.rows],
            "branches": [each.to_dict() for each in self.branches],
            "channels": [each.to_dict() for each in self.channels],
            "work_before": self.work_before,
            "work_after": self.work_after,
        }
