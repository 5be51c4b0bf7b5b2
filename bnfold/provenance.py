"""Where every folded map went: what ``--map`` writes, enough to undo a fold by hand."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

from bnfold.core.apply import Change, stored
from bnfold.core.constants import Const
from bnfold.core.engine import Fold

SCHEMA_VERSION = 1


def provenance(folds: Iterable[Fold]) -> dict[str, Any]:
    """Every fold as JSON-ready data.

    ``scale`` and ``shift`` are nested lists of float64 that broadcast against the folded node's
    tensor. An old constant comes with its data (base64 of the little-endian bytes in row order), as
    the folded model no longer holds it; a new one with the SHA-256 of its data in the model.
    """
    return {"schema_version": SCHEMA_VERSION, "folds": [_fold(each) for each in folds]}


def _fold(fold: Fold) -> dict[str, Any]:
    return {
        "name": fold.seed,
        "direction": fold.direction,
        "scale": fold.affine.scale.tolist(),
        "shift": fold.affine.shift.tolist(),
        "constants": [_change(change) for change in fold.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    old, new = change.old, change.new
    return {
        "node": change.node,
        "input": change.index,
        "old": None if old is None else {**_header(*old), "data": _encoded(_bytes(old[1]))},
        "new": {**_header(*new), "sha256": hashlib.sha256(_bytes(new[1])).hexdigest()},
    }


def _header(name: str, const: Const) -> dict[str, Any]:
    return {"name": name, "dtype": const.dtype.name, "shape": list(const.shape)}


def _bytes(const: Const) -> bytes:
    return stored(const).tobytes()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
