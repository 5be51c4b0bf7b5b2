"""The results as one JSON file, from which the pages are written."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import onnxruntime
import peers

from bnfold.latency.environment import environment

from .subjects import Subject
from .variants import LEVELS

FILE = Path(__file__).parent.parent / "results" / "comparison.json"
Data = dict[str, Any]


def load() -> Data:
    """What was measured last."""
    found: Data = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def collect(work: Path, chosen: list[Subject]) -> None:
    """Put the results of these models into the file, beside those of others that are there."""
    known = {each["name"]: each for each in load()["models"]} if FILE.exists() else {}
    for subject in chosen:
        found = _model(work / subject.name, subject)
        if found is not None:
            known[subject.name] = found
    where = asdict(environment(None, onnxruntime.__version__))
    data = {
        "environment": {key: where[key] for key in ("cpu", "cores", "system")},
        "versions": {"python": where["versions"]["python"], **peers.versions()},
        "models": list(known.values()),
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(_rounded(data), indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


def _model(folder: Path, subject: Subject) -> Data | None:
    record = folder / "variants.json"
    if not record.exists():
        return None
    latency = {level: _read(folder / f"latency-{level}.json") for level in LEVELS}
    return {
        "name": subject.name,
        "group": subject.group,
        "about": subject.about,
        "variants": {each["name"]: _shown(each) for each in _read(record)["variants"]},
        "peaks": _read(folder / "peaks.json"),
        "latency": latency,
    }


def _shown(variant: Data) -> Data:
    """What pages show or claims are made of."""
    left = {"name", "executed"} if "→" not in variant["name"] else {"name", "executed", "operators"}
    return {key: value for key, value in variant.items() if key not in left}


def _read(path: Path) -> Data:
    """What is kept in a file, but for its key; nothing if there is none."""
    found: Data = json.loads(path.read_text()) if path.exists() else {}
    found.pop("key", None)
    return found


def _rounded(value: Any) -> Any:
    """With as many digits as mean something; None for what is infinite."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
