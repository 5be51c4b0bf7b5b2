"""Whether ``bnfold bench`` can be believed: how often it sees what is not there, and misses what is.

Trials of three kinds take turns: a convolutional net against itself, a chain of 100 equal MatMuls against
itself, and that chain against one of 103, whose work is 3 % more by construction. One long measurement of the
last kind shows the ratio that its trials should find. As a contrast the same trials are judged once more with
every block counted as an independent observation, which is the mistake that session pairs are there to avoid.

    python benchmarks/bench_calibration.py [--trials 100] [--seconds 5] [--write]

A trial takes 1 to 2 s to start, and its budget or less (until the interval is 2 % wide): 3 × 100 trials of
5 s and the long measurement take 35 minutes where the budget is used up, and 15 on an idle machine.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binomtest

from bnfold.latency.environment import environment, load
from bnfold.latency.measure import Measurement, Settings
from bnfold.latency.models import gathered
from bnfold.latency.report import Case
from bnfold.latency.statistics import Interval, Word, median_ratio
from bnfold.latency.verdict import numbers

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "bench.md"
BEGIN, END = "<!-- calibration: written by benchmarks/bench_calibration.py -->", "<!-- end of calibration -->"
LINKS, MORE, SIZE = 100, 3, 64


@dataclass
class Kind:
    """One kind of trial, and what its trials found."""

    name: str
    paths: tuple[Path, Path]
    cases: list[Case]


def main() -> None:
    """Run the trials, print the table, and put it into the page if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget of a trial")
    parser.add_argument("--long", type=float, default=120.0, help="budget of the long measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    asked = parser.parse_args()
    before, start = load(), time.monotonic()
    with TemporaryDirectory() as name:
        kinds = make_kinds(Path(name))
        truth, runtime = measure(kinds[-1], asked.long, 0.0, asked.seed)
        for trial in range(asked.trials):
            for kind in random.Random(f"{asked.seed}/{trial}").sample(kinds, len(kinds)):
                seed = asked.seed + trial + 1
                kind.cases.append(measure(kind, asked.seconds, 0.02, seed)[0])
            print(f"{trial + 1} of {asked.trials}", end="\r", flush=True)
    text = "\n".join(page(kinds, truth.comparisons[0].time.ratio, asked, before, start, runtime))
    print(text)
    if asked.write:
        write(text)


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


def measure(kind: Kind, seconds: float, width: float, seed: int) -> tuple[Case, str]:
    """One trial as ``bnfold bench`` runs it, without the memory; and the version of ONNX Runtime."""
    settings = Settings(1, ("CPUExecutionProvider",), "all", seconds, width, {}, seed)
    with TemporaryDirectory() as name:
        measurement = Measurement(gathered(kind.paths, Path(name)), settings, None, None, Path(name))
        return measurement.case(memory=False), measurement.onnxruntime


def page(
    kinds: list[Kind],
    truth: Interval,
    asked: argparse.Namespace,
    before: float | None,
    start: float,
    runtime: str,
) -> Iterator[str]:
    """The result as Markdown."""
    yield f"Over a long measurement {kinds[-1].name} took {numbers(truth)}.\n"
    yield "| trials | what was said | how often (95 % interval) | asked for |"
    yield "| --- | --- | --- | --- |"
    for kind in kinds[:-1]:
        yield row(kind, "faster or slower", lambda case: said(case) is not Word.SAME, "≤ 10 %")
        yield row(kind, "faster or slower to load", lambda case: loaded(case) is not Word.SAME, "≤ 10 %")
        yield row(kind, "would be, if blocks were independent", blockwise, "")
    yield row(kinds[-1], "slower", lambda case: said(case) is Word.SLOWER, "")
    yield row(kinds[-1], "faster, which is wrong", lambda case: said(case) is Word.FASTER, "≤ 5 %")
    cases = [case for kind in kinds for case in kind.cases]
    pairs = [len(case.samples.blocks) for case in cases]
    widths = [case.comparisons[0].time.ratio.width for case in cases]
    where = environment(before, runtime)
    yield (
        f"\nSeed {asked.seed}; up to {asked.seconds:g} s a trial, or until the intervals were 2 % wide: "
        f"{np.median(pairs):.0f} session pairs and an interval {np.median(widths):.1%} wide in the median "
        f"trial. {where.cpu}, {where.cores} cores, load {where.load_before} before and {where.load_after} "
        f"after, ONNX Runtime {runtime}, 1 thread, level all; {(time.monotonic() - start) / 60:.0f} minutes."
    )


def row(kind: Kind, what: str, holds: Callable[[Case], bool], asked: str) -> str:
    """How often something was said in the trials of one kind."""
    count, trials = sum(map(holds, kind.cases)), len(kind.cases)
    rate = binomtest(count, trials).proportion_ci()
    often = f"{count / trials:.0%} ({rate.low:.0%} to {rate.high:.0%})"
    return f"| {trials} × {kind.name} | {what} | {often} | {asked} |"


def said(case: Case) -> Word:
    """The verdict on the time of a run."""
    return case.comparisons[0].time.word


def loaded(case: Case) -> Word:
    """The verdict on the time to load."""
    return case.comparisons[0].load.word


def blockwise(case: Case) -> bool:
    """Whether the interval excludes 1 when every block counts as an observation of its own."""
    blocks = np.concatenate(case.samples.blocks)
    ratio = median_ratio(np.log(blocks[:, 1] / blocks[:, 0]))
    return not ratio.low <= 1 <= ratio.high


def write(text: str) -> None:
    """Put the text between the page's markers."""
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
