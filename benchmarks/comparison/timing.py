"""How long the variants of one model take, each against the floor, by the measurement of ``bnfold bench``."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bnfold.latency.child.process import Job, child
from bnfold.latency.environment import load
from bnfold.latency.measure import Measurement, Settings
from bnfold.latency.models import Model
from bnfold.latency.report import Case
from bnfold.latency.samples import Samples
from bnfold.latency.statistics import Word, judge, median_ratio

from .results import SAME, Ratio, ends
from .variants import BNFOLD, PEERS, TWIN, Variant, Workshop, then_bnfold

Roles = dict[str, int]

_PATIENCE = 3.0
_AGAIN = 2.0
_FEWEST_LOADS, _MOST_LOADS = 6, 18


def latency(shop: Workshop, variants: list[Variant], level: str, seconds: float) -> None:
    """Measure, unless the same graphs have been measured in the same way."""

    def make() -> dict[str, Any]:
        before = load()
        found = measure(shop, variants, level, seconds)
        if _is_loss(found):
            found = measure(shop, variants, level, _AGAIN * seconds)
        if level == "all":
            found["loads"] = _loads(shop, variants, seconds / 3)
        return {"load": [before, load()], **found}

    shop.once(f"latency-{level}", _digests(variants, level) | {"seconds": seconds}, make)


def _is_loss(found: dict[str, Any]) -> bool:
    """Whether bnfold made another optimizer's result slower: by chance, in some of a thousand comparisons."""
    roles, compared = found["roles"], found["compared"]
    pairs = [(then_bnfold(peer), peer) for peer in PEERS if {then_bnfold(peer), peer} <= set(roles)]
    verdicts = [compared.get(f"{roles[mine]}/{roles[other]}", (None, ""))[1] for mine, other in pairs]
    return Word.SLOWER.value in verdicts


def peaks(shop: Workshop, variants: list[Variant]) -> None:
    """Bytes by which loading and running each variant raises the peak memory of a fresh process."""
    chosen, role_of = _distinct(variants, "off")

    def make() -> dict[str, int | None]:
        with TemporaryDirectory() as folder:
            job = _job(shop, chosen, folder)
            with child(job) as line:
                line.ask("prepare", inputs=str(shop.inputs.resolve()), batch=None, dim={}, seed=0)
            found = [_peak(job, index) for index in range(len(chosen))]
        return {name: found[role] for name, role in role_of.items()}

    shop.once("peaks", _digests(variants, "off"), make)


def _digests(variants: list[Variant], level: str) -> dict[str, Any]:
    return {each.name: each.executed and each.executed[level] for each in variants}


def measure(shop: Workshop, variants: list[Variant], level: str, seconds: float) -> dict[str, Any]:
    """Measure every graph that is executed once, for all variants that come to it.

    Returns:
        Which of these graphs (its role) each variant executes, the ratio of each to the floor, and those that
        claims are made of to each other, with a verdict.
    """
    chosen, roles = _distinct(variants, level)
    case = _case(shop, chosen, level, seconds)
    if not case.control.known:  # too slow for enough session pairs
        case = _case(shop, chosen, level, _PATIENCE * seconds)
    ours = {role for name, role in roles.items() if BNFOLD in name}
    pairs = [(mine, other) for mine in sorted(ours) for other in range(len(chosen)) if mine != other]
    return {
        "pairs": len(case.samples.blocks),
        "stopped": case.stopped,
        "control": ends(case.control),
        "seconds": float(np.median(case.samples.runs[0])),
        "roles": roles,
        "ratios": [SAME, *(ends(case.samples.time(role)) for role in range(1, len(chosen)))],
        "compared": {f"{mine}/{other}": _compared(case, mine, other) for mine, other in pairs},
    }


def _case(shop: Workshop, names: list[str], level: str, seconds: float) -> Case:
    settings = Settings(1, ("CPUExecutionProvider",), level, seconds, 0.02, {}, seed=0)
    models = [Model(name, shop.path(name), 0) for name in names]
    with TemporaryDirectory() as folder:
        measurement = Measurement(models, settings, None, shop.inputs.resolve(), Path(folder))
        return measurement.case(memory=False)


def _distinct(variants: list[Variant], level: str) -> tuple[list[str], Roles]:
    """One name for each graph that is executed, the twin's first; and which of them each variant's is."""
    runs = sorted((each for each in variants if each.executed), key=lambda each: each.name != TWIN)
    graphs = [each.executed[level] for each in runs if each.executed]
    first = list(dict.fromkeys(graphs))
    roles = {each.name: first.index(graph) for each, graph in zip(runs, graphs, strict=True)}
    return [runs[graphs.index(graph)].name for graph in first], roles


def _compared(case: Case, mine: int, other: int) -> tuple[Ratio, str]:
    logs = [float(np.median(np.log(blocks[:, mine] / blocks[:, other]))) for blocks in case.samples.blocks]
    ratio = median_ratio(logs)
    return ends(ratio), judge(ratio, case.control).value


def _loads(shop: Workshop, variants: list[Variant], seconds: float) -> dict[str, float]:
    """Seconds to create a session, which optimizes the graph: so every different file counts."""
    chosen, role_of = _distinct(variants, "off")
    samples, start = Samples(), time.monotonic()
    with TemporaryDirectory() as folder, child(_job(shop, chosen, folder)) as line:
        line.ask("prepare", inputs=str(shop.inputs.resolve()), batch=None, dim={}, seed=0)
        while len(samples.loads) < _FEWEST_LOADS or (
            len(samples.loads) < _MOST_LOADS and time.monotonic() - start < seconds
        ):
            seed = f"loads/{len(samples.loads)}"
            samples.add(**line.ask("pair", seed=seed, runs=1, lead=0, blocks=0))
    medians = np.median(samples.loads, axis=0)
    return {name: float(medians[role]) for name, role in role_of.items()}


def _peak(job: Job, index: int) -> int | None:
    with child(job) as line:
        peak: int | None = line.ask("memory", model=index)["bytes"]
        return peak


def _job(shop: Workshop, names: list[str], folder: str) -> Job:
    return {
        "labels": names,
        "paths": [str(shop.path(name).resolve()) for name in names],
        "folder": folder,
        "threads": 1,
        "level": "all",
        "providers": ["CPUExecutionProvider"],
    }
