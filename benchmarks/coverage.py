"""Batch norms before and after, for bnfold and its peers, and whether each result still computes the same.

    BNFOLD_MODELS=folder python benchmarks/coverage.py [--only GLOB] [--again] [--write]

The models are the light zoo of the onnx package, with random weights, and every .onnx file of the folder
$BNFOLD_MODELS. Each tool runs as a process of its own (see peers.py). A result is compared with the original
in ONNX Runtime with all optimizations off; it is wrong if an output is off by more than 1e-3 of its largest
value. What is known is kept in benchmarks/results/coverage.json, so that the script goes on where it was
stopped. With --write the table goes into docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import light
import numpy as np
import onnx
import onnxruntime as ort
import pages
import peers

ROOT = Path(__file__).parent.parent
DATA = ROOT / "benchmarks" / "results" / "coverage.json"
WRONG = 1e-3
TIMEOUT = 300.0
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
TOOLS = ["bnfold", *peers.PEERS]

sys.path.insert(0, str(ROOT / "tests"))


def models(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Every model by name; those of the zoo are made when they are needed, in ``folder``."""
    zoo = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(zoo.glob("light_*.onnx")):
        yield path.stem.removeprefix("light_"), None
    given = os.environ.get("BNFOLD_MODELS")
    for path in sorted(Path(given).glob("*.onnx")) if given else ():
        yield path.name, path


def batch_norms(path: Path) -> int:
    """How many batch norms a file holds, those of bodies and functions included."""
    from truth import graphs

    model = onnx.load(path, load_external_data=False)
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return sum(node.op_type == "BatchNormalization" for node in nodes)


def outputs(path: Path) -> dict[str, np.ndarray]:
    """What a file computes of the same random inputs, with all optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {}
    for each in session.get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in each.shape]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}[
            each.type
        ]
        values = random.normal(size=shape) if kind != np.int64 else np.ones(shape)
        feeds[each.name] = values.astype(kind)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def error(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    """The largest difference in relation to its output's largest value; infinite without that output."""
    worst = 0.0
    for name, before in expected.items():
        after = got.get(name)
        if after is None or after.shape != before.shape:
            return float("inf")
        gap = np.abs(after.astype(np.float64) - before.astype(np.float64)).max(initial=0.0)
        scale = np.abs(before.astype(np.float64)).max(initial=0.0) or 1.0
        worst = max(worst, float(gap / scale) if np.isfinite(gap) else float("inf"))
    return worst


def measured(tool: str, source: Path, expected: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """What one tool makes of one model."""
    target = folder / tool / "result.onnx"
    ran = peers.optimize(tool, source, target, TIMEOUT)
    if ran.failure:
        return {"failure": str(ran.failure).strip().splitlines()[-1][:100]}
    try:
        return {"after": batch_norms(target), "error": error(expected, outputs(target)) if expected else None}
    except Exception as failed:  # whatever a runtime raises, the result cannot be used
        return {"failure": f"result cannot be run: {str(failed).splitlines()[0][:80]}"}


def main() -> None:
    """Run what is not known yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="a glob on the names of models")
    parser.add_argument("--again", action="store_true", help="forget the results that are there")
    parser.add_argument("--write", action="store_true", help="put the table into docs/coverage.md")
    asked = parser.parse_args()
    known = {} if asked.again or not DATA.exists() else json.loads(DATA.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        for name, given in models(Path(folder)):
            if fnmatchcase(name, asked.only) and len(known.get(name, {}).get("tools", {})) < len(TOOLS):
                known[name] = one(name, given, Path(folder) / name, known.get(name, {}))
                DATA.parent.mkdir(exist_ok=True)
                DATA.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                print(row(name, known[name]), flush=True)
    if asked.write:
        pages.write("coverage.md", "coverage", table(known))


def one(name: str, given: Path | None, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Everything of one model that is not known yet."""
    folder.mkdir()
    source = given or folder / "model.onnx"
    if given is None:
        light.make(name, source)
    try:
        expected = outputs(source)
    except Exception:  # whatever the runtime raises, there is nothing to compare with
        expected = {}
    tools = dict(known.get("tools", {}))
    for tool in TOOLS:
        if tool not in tools:
            tools[tool] = measured(tool, source, expected, folder)
    return {"before": batch_norms(source), "tools": tools}


def row(name: str, result: dict[str, Any]) -> str:
    """One model in Markdown."""
    return f"| {name} | {result['before']} | {' | '.join(cell(result['tools'][tool]) for tool in TOOLS)} |"


def cell(made: dict[str, Any]) -> str:
    """What one tool made of it."""
    if "failure" in made:
        return f"failed: {made['failure']}"
    if made["error"] is None:
        return f"{made['after']} (not run: the original does not load in ONNX Runtime)"
    wrong = f" **wrong by {made['error']:.1g}**" if made["error"] > WRONG else ""
    return f"{made['after']}{wrong}"


def table(known: dict[str, Any]) -> str:
    """All models in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    head = f"| model | before | {' | '.join(TOOLS)} |"
    line = "|" + "---|" * (2 + len(TOOLS))
    return "\n".join([head, line, *(row(name, each) for name, each in known.items()), "", f"{versions}."])


if __name__ == "__main__":
    main()
