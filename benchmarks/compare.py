"""Every model under every optimizer, against the floor: how fast, how large, how right.

    python benchmarks/compare.py prepare            run the optimizers, check what they write
    python benchmarks/compare.py measure            measure latencies: wants a quiet machine
    python benchmarks/compare.py page               write docs/benchmarks.md and its figures from the data
    python benchmarks/compare.py                    all three

Each is taken up where it was interrupted; ``--again`` measures anew. The floor is the twin without batch
norms (twin.py); the measurement is that of ``bnfold bench``. Models of others are taken from the folder
BNFOLD_MODELS, exported networks from BNFOLD_EXPORTS, the other optimizers as peers.py says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import count

import peers
from comparison import data, page, timing
from comparison.subjects import Subject, subjects
from comparison.variants import LEVELS, Workshop

WORK = peers.CACHE / "compare"


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="?", choices=["prepare", "measure", "page", "all"], default="all")
    parser.add_argument("--only", default="*", metavar="GLOB", help="only models of these names")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each model and level")
    parser.add_argument("--jobs", type=int, default=1, help="how many to prepare at a time")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before")
    parser.add_argument("--here", metavar="NAME", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        known = {each.name: each for each in subjects(WORK / "models")}
        _here(asked.step, known[asked.here], asked.budget)
        return
    if asked.again:
        for record in WORK.glob("*/latency-*.json"):
            if fnmatchcase(record.parent.name, asked.only):
                record.unlink()
    if asked.step in ("prepare", "measure", "all"):
        chosen = [each for each in subjects(WORK / "models") if fnmatchcase(each.name, asked.only)]
        steps = ["prepare", "measure"] if asked.step == "all" else [asked.step]
        for step in steps:
            _each(step, chosen, asked)
        data.collect(WORK, chosen)
    if asked.step in ("page", "all"):
        page.write(data.load())


def _each(step: str, chosen: list[Subject], asked: argparse.Namespace) -> None:
    """One process for each model, the smallest first: what crashes there stops only that model."""
    start, done = time.monotonic(), count(1)

    def one(subject: Subject) -> None:
        here = [sys.executable, __file__, step, "--here", subject.name, "--budget", str(asked.budget)]
        ran = subprocess.run(here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        print(f"{step} {next(done)} of {len(chosen)}: {subject.name}", flush=True)
        if ran.returncode:
            print(f"  failed: {(ran.stderr.strip().splitlines() or [ran.returncode])[-1]}", flush=True)

    with ThreadPoolExecutor(asked.jobs if step == "prepare" else 1) as pool:
        list(pool.map(one, sorted(chosen, key=lambda each: each.path.stat().st_size)))
    print(f"{step}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def _here(step: str, subject: Subject, budget: float) -> None:
    """One step for one model, in this process."""
    shop = Workshop(subject, WORK / subject.name)
    variants = shop.variants()
    timing.peaks(shop, variants)
    if step == "measure":
        for level in LEVELS:
            timing.latency(shop, variants, level, budget if level == "all" else budget / 2)


if __name__ == "__main__":
    main()
