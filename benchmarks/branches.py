"""Networks of branches: what bnfold makes of their training form, against their authors' deployed form.

    python benchmarks/branches.py [--networks mobileone_s0,...] [--seconds 120] [--again]
    python benchmarks/branches.py --page

For each network: both forms are written (rep_networks.py, in the interpreter named by BNFOLD_TORCH_PYTHON,
which has torch and timm), the training form goes through bnfold and through every peer (peers.py), and all
results run interleaved in ONNX Runtime, one thread, all optimizations, one 224×224 image. A network that
is measured is written to results/branches.json at once and not measured again. ``--page`` writes
docs/branches.md from there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pages
import peers
import rep_networks

import bnfold

HERE = Path(__file__).parent
DATA = HERE / "results" / "branches.json"


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(rep_networks.NETWORKS))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each network")
    parser.add_argument("--again", action="store_true", help="measure networks again")
    parser.add_argument("--page", action="store_true", help="write docs/branches.md and measure nothing")
    asked = parser.parse_args()
    known = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in () if asked.page else asked.networks.split(","):
        if name not in known or asked.again:
            with TemporaryDirectory(prefix="bnfold-branches-") as folder:
                known[name] = measure(name, Path(folder), asked.seconds)
            DATA.parent.mkdir(exist_ok=True)
            DATA.write_text(json.dumps(known, indent=1) + "\n")
    pages.write("branches.md", "branches", table(known))
    print(table(known))


def measure(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Everything about one network, as JSON-ready data."""
    python = os.environ.get("BNFOLD_TORCH_PYTHON", sys.executable)
    subprocess.run([python, HERE / "rep_networks.py", name, folder], check=True, timeout=900)
    training, deployed, folded = (folder / f"{form}.onnx" for form in ("training", "deployed", "bnfold"))
    made = {"bnfold": folded, "deployed": deployed, "training": training}
    failures = {}
    for peer in ("bnfold", *peers.PEERS):
        target = made.setdefault(peer, folder / peer / "model.onnx")
        ran = peers.optimize(peer, training, target)
        if ran.failure:
            failures[peer] = ran.failure
            del made[peer]
    if "bnfold" not in made:
        raise SystemExit(f"bnfold failed on {name}: {failures['bnfold']}")
    report = bnfold.bench(*made.values(), seconds=seconds, width=0.0, threads=1)
    (case,) = report.cases
    labels = list(made)
    ratios = {
        label: interval(each.time.ratio) for label, each in zip(labels[1:], case.comparisons, strict=True)
    }
    return {
        "nodes": {label: nodes(made[label]) for label in labels[:3]},
        "difference": difference(deployed, folded),
        "milliseconds": {
            label: 1e3 * float(np.median(case.samples.runs[role])) for role, label in enumerate(labels)
        },
        "ratios": ratios,
        "control": interval(case.control),
        "failures": failures,
        "seconds": seconds,
        "versions": peers.versions(),
        "environment": report.environment.to_dict(),
    }


def nodes(path: Path) -> dict[str, int]:
    """How many nodes there are, and how many of these are layers and batch norms."""
    count = Counter(node.op_type for node in onnx.load(path).graph.node)
    return {"all": count.total(), "Conv": count["Conv"], "BatchNormalization": count["BatchNormalization"]}


def difference(a: Path, b: Path) -> float:
    """The largest difference of the outputs on a random image, relative to the largest output of ``a``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    image = (
        np.random.default_rng(0).normal(size=(1, 3, rep_networks.SIZE, rep_networks.SIZE)).astype(np.float32)
    )
    sessions = [onnxruntime.InferenceSession(str(path), options) for path in (a, b)]
    x, y = (session.run(None, {"image": image})[0].astype(np.float64) for session in sessions)
    return float(np.abs(x - y).max() / np.abs(x).max())


def table(known: dict[str, Any]) -> str:
    """The figures as Markdown."""
    if not known:
        return "Not measured yet.\n"
    lines = [
        "| network | nodes: trained → bnfold (deployed) | batch norms left (deployed) | outputs differ by | "
        "against deployed | against trained | against the best peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in known.items():
        count = found["nodes"]
        best = min((p for p in peers.PEERS if p in found["ratios"]), key=lambda p: found["ratios"][p][0])
        lines.append(
            f"| {rep_networks.NETWORKS[name]} "
            f"| {count['training']['all']} → {count['bnfold']['all']} ({count['deployed']['all']}) "
            f"| {count['bnfold']['BatchNormalization']} ({count['deployed']['BatchNormalization']}) "
            f"| {found['difference']:.1e} "
            f"| {times(found['ratios']['deployed'])} | {times(found['ratios']['training'])} "
            f"| {times(found['ratios'][best])} ({best}) |"
        )
    lines.append("")
    for name, found in known.items():
        failed = "".join(f" {peer} failed: {why}." for peer, why in found["failures"].items())
        load = found["environment"]["load_before"]
        lines.append(
            f"{name}: bnfold's takes {found['milliseconds']['bnfold']:.2f} ms; against itself it takes "
            f"{times(found['control'])}; {found['seconds']:.0f} s, load average {load}.{failed}  "
        )
    return "\n".join(lines) + "\n"


def interval(found: Any) -> list[float]:
    """A ratio with its 95 % interval."""
    return [found.estimate, found.low, found.high]


def times(ratio: list[float]) -> str:
    """A ratio with its interval."""
    estimate, low, high = ratio
    return f"{estimate:.2f}× ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
