"""Fold random graphs, as many as asked for, and check every promise on each.

    python benchmarks/fuzz.py --graphs 3000 --seed 0

Graph number i is the one of seed + i; ``--graphs 1 --seed S`` repeats a failure, ``--steps`` makes it
smaller, ``--save`` writes it.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import click
import onnx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from strategies import BRANCHES, random_model
from test_random_graphs import broken_promises


def failures(model: onnx.ModelProto) -> list[str]:
    """What is wrong after folding a model, with all options off and with all on."""
    found = []
    for on in (False, True):
        try:
            broken = broken_promises(model, portable=on, freeze_initializers=on)
        except Exception:
            broken = [traceback.format_exc()]
        found += [f"{'with' if on else 'without'} options: {line}" for line in broken]
    return found


@click.command()
@click.option("--graphs", default=3000, show_default=True, help="How many graphs to fold.")
@click.option("--seed", default=0, show_default=True, help="The seed of the first one.")
@click.option("--steps", type=int, help="How far to write each; at random if not given.")
@click.option("--branches", is_flag=True, help="Graphs of branches that are added, and layers in a row.")
@click.option("--save", type=click.Path(path_type=Path), help="A folder for the models that fail.")
def main(graphs: int, seed: int, steps: int | None, branches: bool, save: Path | None) -> None:
    """Fold random graphs and print the seed of each that goes wrong."""
    started, nodes, failed = time.perf_counter(), Counter[str](), 0
    for number in range(seed, seed + graphs):
        model = random_model(number, steps, BRANCHES if branches else ())
        nodes.update(node.op_type for node in model.graph.node)
        if found := failures(model):
            failed += 1
            click.echo(f"seed {number} (--graphs 1 --seed {number}):\n  " + "\n  ".join(found))
            if save is not None:
                save.mkdir(parents=True, exist_ok=True)
                onnx.save(model, save / f"{number}.onnx")
    took = time.perf_counter() - started
    click.echo(f"{graphs} graphs of {nodes.total()} nodes in {took:.0f} s: {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
