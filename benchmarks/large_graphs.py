"""Fold graphs of 20,000 nodes and of 100,000 initializers, against ONNX Runtime's own load of them.

    python benchmarks/large_graphs.py --rounds 3 --json docs/data/large_graphs.json

prints CPU seconds of ``bnfold.fold`` (no verification), and of what a user pays anyway: one
InferenceSession on the file plus one shape inference. Both run in turns in this process; ratios are of the
median, with the lowest and the highest. Then it folds 50 and 500 small files, two at a time, and prints the
peak memory of the largest process of each run, the parent included.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

CHANNELS = 2


class Chain:
    """A model in the making: nodes in a row, with weights drawn from one seed."""

    def __init__(self, shape: list[int | str]) -> None:
        self.rng = np.random.default_rng(0)
        self.shape, self.value = shape, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[TensorProto] = []

    def weight(self, *shape: int) -> str:
        """The name of a new constant."""
        name = f"w{len(self.held)}"
        self.held.append(numpy_helper.from_array(self.rng.random(shape, np.float32) + 0.5, name))
        return name

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> None:
        """One more node, which reads the last one."""
        number = len(self.nodes)
        node = helper.make_node(
            op_type, [self.value, *inputs], [f"v{number}"], name=f"n{number}", **attributes
        )
        self.nodes.append(node)
        self.value = f"v{number}"

    def model(self) -> onnx.ModelProto:
        """The model so far."""
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shape) for name in ("x", self.value)
        ]
        graph = helper.make_graph(self.nodes, "chain", ports[:1], ports[1:], self.held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(nodes: int) -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu in a row."""
    chain = Chain(["N", CHANNELS, 4, 4])
    while len(chain.nodes) < nodes:
        chain.add("Conv", chain.weight(CHANNELS, CHANNELS, 1, 1))
        chain.add("BatchNormalization", *(chain.weight(CHANNELS) for _ in range(4)))
        chain.add("Relu")
    return chain.model()


def products(nodes: int) -> onnx.ModelProto:
    """MatMul, Add and Mul in a row, with a Relu between."""
    chain = Chain(["N", CHANNELS])
    while len(chain.nodes) < nodes:
        chain.add("MatMul", chain.weight(CHANNELS, CHANNELS))
        chain.add("Add", chain.weight(CHANNELS))
        chain.add("Mul", chain.weight(CHANNELS))
        chain.add("Relu")
    return chain.model()


def nothing(nodes: int) -> onnx.ModelProto:
    """Layers and activations with nothing to fold."""
    chain = Chain(["N", CHANNELS, 4, 4])
    while len(chain.nodes) < nodes:
        chain.add("Conv", chain.weight(CHANNELS, CHANNELS, 1, 1), chain.weight(CHANNELS))
        chain.add("Sigmoid")
    return chain.model()


def initializers(count: int) -> onnx.ModelProto:
    """Nodes that read a hundred constants each."""
    chain = Chain(["N", CHANNELS])
    while len(chain.held) < count:
        chain.add("Max", *(chain.weight(CHANNELS) for _ in range(100)))
    return chain.model()


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "20,000 nodes: Conv, BatchNormalization, Relu": lambda: convolutions(20_000),
    "20,000 nodes: MatMul, Add, Mul, Relu": lambda: products(20_000),
    "20,000 nodes with nothing to fold": lambda: nothing(20_000),
    "100,000 initializers": lambda: initializers(100_000),
}


def compare(proto: onnx.ModelProto, rounds: int, folder: Path) -> dict[str, Any]:
    """CPU seconds of both, in turns."""
    path = folder / "model.onnx"
    onnx.save(proto, path)
    work = {"fold": lambda: _fold(path), "runtime": lambda: _runtime(path)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: 1 if number % 2 else -1]:
            gc.collect()
            started = time.process_time()
            work[name]()
            seconds[name].append(time.process_time() - started)
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds["fold"], seconds["runtime"], strict=True))
    return {
        "nodes": len(proto.graph.node),
        "initializers": len(proto.graph.initializer),
        "rounds": rounds,
        **{name: round(statistics.median(each), 2) for name, each in seconds.items()},
        "ratio": [round(each, 2) for each in (ratios[0], statistics.median(ratios), ratios[-1])],
    }


def memory(folder: Path, count: int) -> int:
    """Peak resident MB of the largest process while that many small files are folded, two at a time."""
    content = convolutions(30).SerializeToString()
    paths = [folder / f"{number}.onnx" for number in range(count)]
    for path in paths:
        path.write_bytes(content)
    command = [sys.executable, "-m", "bnfold", *map(str, paths), "-j", "2", "--no-verify", "-q"]
    with subprocess.Popen(command, cwd=ROOT) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or len(list(folder.glob("*.folded.onnx"))) != count:
        raise click.ClickException(f"folding {count} files ended with exit code {child.returncode}.")
    return round(usage.ru_maxrss * 1024 / 1e6)


def _fold(path: Path) -> None:
    from bnfold.folding import fold

    fold(path)


def _runtime(path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    onnx.shape_inference.infer_shapes(onnx.load(path))


@click.command()
@click.option("--rounds", default=3, show_default=True, help="How often to run both.")
@click.option("--only", default="", help="Only graphs whose title holds this.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures.")
def main(rounds: int, only: str, as_json: Path | None) -> None:
    """Measure large graphs and many files, and print the figures."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    figures: dict[str, Any] = {"graphs": {}}
    with tempfile.TemporaryDirectory() as name:
        for title, make in GRAPHS.items():
            if only in title:
                figures["graphs"][title] = compare(make(), rounds, Path(name))
                click.echo(f"{title}: {json.dumps(figures['graphs'][title])}", err=True)
    figures["memory"] = {}
    for count in () if only else (50, 500):
        with tempfile.TemporaryDirectory() as name:
            figures["memory"][str(count)] = memory(Path(name), count)
    click.echo(json.dumps(figures, indent=1))
    if as_json is not None:
        as_json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
