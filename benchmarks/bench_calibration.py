"""Whether ``bnfold bench`` can be believed: how often it sees what is not there, and misses what is.

Trials of three kinds take turns: a convolutional net against itself, a chain of 100 equal MatMuls against
itself, and that chain against one of 103, whose work is 3 % more by construction. One long measurement of the
last kind shows the ratio that its trials should find. As a contrast the same trials are judged once more with
every block counted as an independent observation, which is the mistake that session pairs are there to avoid.

    python benchmarks/bench_calibration.py [--trials 100] [--seconds 5] [--keep FILE] [--write]

A trial takes 1 to 2 s to start, and its budget or less (until the interval is 2 % wide): 3 × 100 trials of
5 s and the long measurement take 35 minutes where the budget is used up, and 15 on an idle machine. With
--keep every trial is kept in FILE as soon as it is done, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pages
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binomtest

from bnfold.latency.environment import environment, load
from bnfold.latency.measure import Measurement, Settings
from bnfold.latency.models import gathered
from bnfold.latency.report import Case
from bnfold.latency.statistics import Word, median_ratio
from bnfold.latency.verdict import numbers

ROOT = Path(__file__).parent.parent
LINKS, MORE, SIZE = 100, 3, 64


@dataclass
class Kind:
    """One kind of trial, and what its trials found."""

    name: str
    paths: tuple[Path, Path]
    trials: list[Trial]


@dataclass(frozen=True)
class Trial:
    """What one trial found.

    Attributes:
        said: the verdict on the time of a run.
        loaded: the verdict on the time to load.
        blockwise: whether the interval excludes 1 when every block counts as an observation of its own.
        numbers: the ratio in words.
        pairs: how many session pairs there were.
        width: of the interval.
        runtime: the version of ONNX Runtime.
        seconds: how long the trial took.
    """

    said: str
    loaded: str
    blockwise: bool
    numbers: str
    pairs: int
    width: float
    runtime: str
    seconds: float


class Kept:
    """Finished trials by number and kind, in a file of one line each if there is one.

    Raises:
        SystemExit: the file is of a run with other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, float]) -> None:
        self.path, self.done = path, dict[str, Trial]()
        if path is None:
            return
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != settings:
            raise SystemExit(f"{path} holds trials with other settings: {first}")
        for line in rest:
            key, trial = json.loads(line)
            self.done[key] = Trial(**trial)

    def trial(self, key: str, run: Callable[[], Trial]) -> Trial:
        """A trial that was done before, or is done and kept now."""
        if key not in self.done:
            self.done[key] = run()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, asdict(self.done[key])]) + "\n")
        return self.done[key]


def main() -> None:
    """Run the trials, print the table, and put it into the page if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget of a trial")
    parser.add_argument("--long", type=float, default=120.0, help="budget of the long measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a file that keeps finished trials")
    parser.add_argument("--write", action="store_true", help="put the table into docs/bench.md")
    asked = parser.parse_args()
    before = load()
    kept = Kept(asked.keep, {name: getattr(asked, name) for name in ("seconds", "long", "seed")})
    with TemporaryDirectory() as name:
        kinds = make_kinds(Path(name))
        truth = kept.trial("long", lambda: measure(kinds[-1], asked.long, 0.0, asked.seed))
        for trial in range(asked.trials):
            for kind in random.Random(f"{asked.seed}/{trial}").sample(kinds, len(kinds)):
                run = partial(measure, kind, asked.seconds, 0.02, asked.seed + trial + 1)
                kind.trials.append(kept.trial(f"{trial} {kind.name}", run))
            print(f"{trial + 1} of {asked.trials}", end="\r", flush=True)
    text = "\n".join(page(kinds, truth, asked, before))
    print(text)
    if asked.write:
        pages.write("bench.md", "bench_calibration", text)


def make_kinds(folder: Path) -> list[Kind]:
    """The three kinds of trials, their chains written to ``folder``."""
    net = ROOT / "models" / "digits_cnn.onnx"
    short, long = (chain(folder / f"chain{links}.onnx", links) for links in (LINKS, LINKS + MORE))
    return [
        Kind("digits_cnn.onnx against itself", (net, net), []),
        Kind(f"{LINKS} MatMuls against themselves", (short, short), []),
        Kind(f"{LINKS + MORE} MatMuls against {LINKS}", (short, long), []),
    ]


def chain(path: Path, links: int) -> Path:
    """Write a model of equal MatMuls by one orthogonal matrix, so that values do not grow."""
    weight = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0].astype(np.float32)
    names = [f"t{index}" for index in range(links + 1)]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(links)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [SIZE, SIZE]) for n in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def measure(kind: Kind, seconds: float, width: float, seed: int) -> Trial:
    """One trial as ``bnfold bench`` runs it, without the memory."""
    start = time.monotonic()
    settings = Settings(1, ("CPUExecutionProvider",), "all", seconds, width, {}, seed)
    with TemporaryDirectory() as name:
        measurement = Measurement(gathered(kind.paths, Path(name)), settings, None, None, Path(name))
        case = measurement.case(memory=False)
    found = case.comparisons[0]
    return Trial(
        found.time.word.value,
        found.load.word.value,
        blockwise(case),
        numbers(found.time.ratio),
        len(case.samples.blocks),
        found.time.ratio.width,
        measurement.onnxruntime,
        time.monotonic() - start,
    )


def page(kinds: list[Kind], truth: Trial, asked: argparse.Namespace, before: float | None) -> Iterator[str]:
    """The result as Markdown."""
    same, slower, faster = (word.value for word in (Word.SAME, Word.SLOWER, Word.FASTER))
    yield f"Over a long measurement {kinds[-1].name} took {truth.numbers}.\n"
    yield "| trials | what was said | how often (95 % interval) | asked for |"
    yield "| --- | --- | --- | --- |"
    for kind in kinds[:-1]:
        yield row(kind, "faster or slower", lambda trial: trial.said != same, "≤ 10 %")
        yield row(kind, "faster or slower to load", lambda trial: trial.loaded != same, "≤ 10 %")
        yield row(kind, "would be, if blocks were independent", lambda trial: trial.blockwise, "")
    yield row(kinds[-1], "slower", lambda trial: trial.said == slower, "")
    yield row(kinds[-1], "faster, which is wrong", lambda trial: trial.said == faster, "≤ 5 %")
    trials = [trial for kind in kinds for trial in kind.trials]
    minutes = (sum(trial.seconds for trial in trials) + truth.seconds) / 60
    where = environment(before, truth.runtime)
    yield (
        f"\nSeed {asked.seed}; up to {asked.seconds:g} s a trial, or until the intervals were 2 % wide: "
        f"{np.median([trial.pairs for trial in trials]):.0f} session pairs and an interval "
        f"{np.median([trial.width for trial in trials]):.1%} wide in the median trial. {where.cpu}, "
        f"{where.cores} cores, load {where.load_before} before and {where.load_after} after, ONNX Runtime "
        f"{truth.runtime}, 1 thread, level all; {minutes:.0f} minutes."
    )


def row(kind: Kind, what: str, holds: Callable[[Trial], bool], asked: str) -> str:
    """How often something was said in the trials of one kind."""
    count, trials = sum(map(holds, kind.trials)), len(kind.trials)
    rate = binomtest(count, trials).proportion_ci()
    often = f"{count / trials:.0%} ({rate.low:.0%} to {rate.high:.0%})"
    return f"| {trials} × {kind.name} | {what} | {often} | {asked} |"


def blockwise(case: Case) -> bool:
    """Whether the interval excludes 1 when every block counts as an observation of its own."""
    blocks = np.concatenate(case.samples.blocks)
    ratio = median_ratio(np.log(blocks[:, 1] / blocks[:, 0]))
    return not ratio.low <= 1 <= ratio.high


if __name__ == "__main__":
    main()
