"""Fold a model of 2.4 GiB with external data; print its time and memory against onnx_ir's own load and save.

    python benchmarks/huge.py --folder /tmp/huge --rounds 5 --json docs/data/huge.json

The model has 38 Conv + BatchNormalization pairs (0.36 GiB) and 17 large weights that no fold touches
(2 GiB). Each round runs both in a new process, in alternating order, with the files in the page cache;
the time of a process includes its start, and its memory is the peak of its resident set. At the end
bnfold runs once more with ``--map``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

PAIRS = 38
CHANNELS = 512
TABLES = 17
TABLE = (1024, 31_500)

_RUNS = {
    "onnx_ir": "import onnx_ir as ir, sys; _, a, b, c = sys.argv; ir.save(ir.load(a), b, external_data=c)",
    "bnfold": "from bnfold.cli import main; main()",
    "map": "from bnfold.cli import main; main()",
}
_MAKE = "import huge, pathlib, sys; huge.make(pathlib.Path(sys.argv[1]))"


def make(path: Path, pairs: int = PAIRS, channels: int = CHANNELS, table: tuple[int, int] = TABLE) -> None:
    """Write the model and its data file, one tensor at a time."""
    rng = np.random.default_rng(0)
    data = path.with_name(f"{path.name}.data")
    initializers, nodes, value = [], [], "x"
    with data.open("wb") as file:

        def weight(name: str, shape: tuple[int, ...], low: float, high: float) -> str:
            array = rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
            offset = file.tell()
            file.write(array.tobytes())
            tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            for key, held in (("location", data.name), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(held))
            initializers.append(tensor)
            return name

        for i in range(pairs):
            bound = (6 / (9 * channels)) ** 0.5
            kernel = weight(f"conv{i}.weight", (channels, channels, 3, 3), -bound, bound)
            nodes.append(helper.make_node("Conv", [value, kernel], [f"conv{i}"], pads=[1, 1, 1, 1]))
            ranges = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.5, 1.5)}
            params = [weight(f"bn{i}.{name}", (channels,), *span) for name, span in ranges.items()]
            nodes.append(helper.make_node("BatchNormalization", [f"conv{i}", *params], [f"bn{i}"]))
            nodes.append(helper.make_node("Relu", [f"bn{i}"], [f"relu{i}"]))
            value = f"relu{i}"
        nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        value, width = "flat", channels
        for i in range(TABLES):
            inner = weight(f"table{i}", table, -0.01, 0.01)
            nodes.append(helper.make_node("Gather", [inner, "row"], [f"row{i}"]))
    outputs = [f"row{i}" for i in range(TABLES)]
    graph = helper.make_graph(
        nodes,
        "huge",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8]),
            helper.make_tensor_value_info("row", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, width]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, table[1]]) for name in outputs),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def _measure(name: str, arguments: list[str]) -> dict[str, float]:
    """One run in a process of its own: wall seconds and peak resident MB."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", _RUNS[name], *arguments]) as child:
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise click.ClickException(f"{name} ended with exit code {child.returncode}.")
    return {"seconds": seconds, "megabytes": usage.ru_maxrss * 1024 / 1e6}


def _round(model: Path, out: Path, names: list[str]) -> dict[str, dict[str, float]]:
    arguments = {
        "onnx_ir": [str(model), str(out / "saved.onnx"), "saved.onnx.data"],
        "bnfold": [str(model), "--no-verify", "-q", "-f", "-o", str(out / "folded.onnx")],
    }
    arguments["map"] = [*arguments["bnfold"], "--map", str(out / "map.json")]
    made = {}
    for name in names:
        made[name] = _measure(name, arguments[name])
        for each in out.iterdir():  # each run writes to a folder as empty as the other's
            each.unlink()
    return made


@click.command()
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Where 8 GB can be written.")
@click.option("--rounds", default=5, show_default=True, help="How often to run both.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures.")
def main(folder: Path, rounds: int, as_json: Path | None) -> None:
    """Fold the model of 2.4 GiB and print the figures."""
    model, out = folder / "huge.onnx", folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        # In a process of its own: what is measured would begin with the memory of this one.
        subprocess.run([sys.executable, "-c", _MAKE, str(model)], check=True, cwd=Path(__file__).parent)
    size = model.stat().st_size + model.with_name(f"{model.name}.data").stat().st_size
    names = ["onnx_ir", "bnfold"]
    _round(model, out, names)  # into the page cache
    made = [_round(model, out, names if i % 2 else names[::-1]) for i in range(rounds)]
    ratios = sorted(each["bnfold"]["seconds"] / each["onnx_ir"]["seconds"] for each in made)
    figures: dict[str, object] = {"gibibytes": round(size / 2**30, 2), "rounds": rounds}
    for name in names:
        seconds = sorted(each[name]["seconds"] for each in made)
        figures[name] = {
            "seconds": round(seconds[rounds // 2], 2),
            "megabytes": round(max(each[name]["megabytes"] for each in made)),
        }
    once = _round(model, out, ["map"])["map"]
    figures["map"] = {"seconds": round(once["seconds"], 2), "megabytes": round(once["megabytes"])}
    figures["ratio"] = [round(ratios[i], 2) for i in (0, rounds // 2, -1)]
    click.echo(json.dumps(figures, indent=1))
    if as_json is not None:
        as_json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
