"""Fold random graphs, as many as asked for, and check every promise on each.

    python benchmarks/fuzz.py --graphs 20000 --seed 0 -j 2 --state fuzz.json

Graph number i is the one of seed + i, folded with all options off or, every second one, with all on.
``--graphs 1 --seed S`` repeats a failure, ``--steps`` makes it smaller, ``--save`` writes it. With
``--state`` what is done is kept in a file, and the same command goes on where it was stopped; with
``--write`` as well the result goes into docs/random_graphs.md.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import onnx
import pages

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from strategies import BRANCHES, random_model
from test_random_graphs import broken_promises

_CHUNK = 50


@dataclass
class State:
    """What is done so far.

    Attributes:
        done: the seeds at which finished chunks begin.
        graphs: how many graphs these are.
        nodes: how many nodes they have.
        seconds: of all processes together.
        failed: what went wrong, by seed.
    """

    done: list[int] = field(default_factory=list)
    graphs: int = 0
    nodes: int = 0
    seconds: float = 0.0
    failed: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: State) -> None:
        """Count another state in."""
        self.done += other.done
        self.graphs += other.graphs
        self.nodes += other.nodes
        self.seconds += other.seconds
        self.failed |= other.failed


def failures(model: onnx.ModelProto, on: bool) -> list[str]:
    """What is wrong after folding a model, with all options off or on."""
    try:
        broken = broken_promises(model, portable=on, freeze_initializers=on)
    except Exception:
        broken = [traceback.format_exc()]
    return [f"{'with' if on else 'without'} options: {line}" for line in broken]


def chunk(seeds: Sequence[int], steps: int | None, branches: bool) -> State:
    """Fold the graphs of some seeds."""
    started, state = time.perf_counter(), State([seeds[0]], len(seeds))
    for seed in seeds:
        model = random_model(seed, steps, BRANCHES if branches else ())
        state.nodes += len(model.graph.node)
        if found := failures(model, bool(seed % 2)):
            state.failed[str(seed)] = found
    state.seconds = time.perf_counter() - started
    return state


@click.command()
@click.option("--graphs", default=3000, show_default=True, help="How many graphs to fold.")
@click.option("--seed", default=0, show_default=True, help="The seed of the first one.")
@click.option("--steps", type=int, help="How far to write each; at random if not given.")
@click.option("--branches", is_flag=True, help="Graphs of branches that are added, and layers in a row.")
@click.option("-j", "--jobs", default=1, show_default=True, help="How many processes.")
@click.option("--state", "kept", type=click.Path(path_type=Path), help="A file to go on from.")
@click.option("--save", type=click.Path(path_type=Path), help="A folder for the models that fail.")
@click.option("--write", is_flag=True, help="Put the result into docs/random_graphs.md.")
def main(
    graphs: int,
    seed: int,
    steps: int | None,
    branches: bool,
    jobs: int,
    kept: Path | None,
    save: Path | None,
    write: bool,
) -> None:
    """Fold random graphs and print the seed of each that goes wrong."""
    state = State(**json.loads(kept.read_text())) if kept is not None and kept.exists() else State()
    every = [range(start, min(start + _CHUNK, seed + graphs)) for start in range(seed, seed + graphs, _CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(chunk, seeds, steps, branches) for seeds in every if seeds[0] not in state.done
        ]
        for finished in as_completed(waiting):
            part = finished.result()
            state.add(part)
            for number, found in part.failed.items():
                click.echo(f"seed {number} (--graphs 1 --seed {number}):\n  " + "\n  ".join(found))
                _save(random_model(int(number), steps, BRANCHES if branches else ()), number, save)
            if kept is not None:
                kept.write_text(json.dumps(asdict(state)))
    result = summary(state)
    click.echo(result)
    if write:
        pages.write("random_graphs.md", "fuzz", result)
    sys.exit(bool(state.failed))


def summary(state: State) -> str:
    """What came out, in a sentence, and what failed."""
    lines = [
        f"{state.graphs:,} graphs from seed {min(state.done)} with {state.nodes:,} nodes, "
        f"{state.seconds / 3600:.1f} hours: {len(state.failed)} failed."
    ]
    return "\n".join([*lines, *(f"* seed {seed}: {found[0]}" for seed, found in state.failed.items())])


def _save(model: onnx.ModelProto, seed: str, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / f"{seed}.onnx")


if __name__ == "__main__":
    main()
