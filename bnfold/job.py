"""One file, folded, proven and written: what the command does for each of its arguments."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bnfold import files
from bnfold.errors import OutputError, VerificationError
from bnfold.passes.inference import to_inference
from bnfold.passes.optimize import OptimizePass
from bnfold.provenance import provenance
from bnfold.pruning.flatten import flatten
from bnfold.report import Report

if TYPE_CHECKING:
    from bnfold.verification import Deviation, Verdict


# From this size on a verification says what it needs.
_LARGE = 1 << 30

# What a process with ONNX Runtime takes besides the models, measured at 0.2 GB.
_RUNTIME = 300_000_000


class Mode(Enum):
    """What to do with the folded model."""

    WRITE = "write"
    DRY_RUN = "dry-run"
    CHECK = "check"


@dataclass(frozen=True)
class Order:
    """What the command line asks for, the same for every file.

    Attributes:
        mode: write the result, or only say what would happen.
        output: where to write, None for ``MODEL.folded.onnx``.
        in_place: write over the input.
        force: write over an existing output.
        verify: prove the outputs equal before writing.
        inputs: a ``.npz`` to verify with, None for random inputs.
        noise: measure the original's own noise floor too.
        map_file: where to write the provenance of every fold, before anything is replaced.
        folding: makes the pass, one for each file.
        say: shows what is being done.
        tell: says what the user should know before it is done.
    """

    mode: Mode = Mode.WRITE
    output: Path | None = None
    in_place: bool = False
    force: bool = False
    verify: bool = True
    inputs: Path | None = None
    noise: bool = False
    map_file: Path | None = None
    folding: Callable[[], OptimizePass] = OptimizePass
    say: Callable[[str], None] = lambda text: None
    tell: Callable[[str], None] = lambda text: None


@dataclass
class Outcome:
    """What became of one file.

    Attributes:
        model: the input file.
        output: the file that was written, None if none was.
        report: what was folded.
        verdict: the proof, None if there was nothing to prove or nobody asked.
        deviations: how far ``--prune-below`` takes each output from the original's; the proof is then
            that nothing else does.
        bytes_before: size of the input, its external data included.
        bytes_after: size of the output, 0 if none was written.
        seconds: wall time of everything, verification included.
    """

    model: Path
    output: Path | None = None
    report: Report = field(default_factory=Report)
    verdict: Verdict | None = None
    deviations: tuple[Deviation, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "model": str(self.model),
            "output": None if self.output is None else str(self.output),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": self.seconds,
            "report": self.report.to_dict(),
            "verification": None if self.verdict is None else self.verdict.to_dict(),
            "deviations": [each.to_dict() for each in self.deviations],
        }


def run(path: Path, order: Order) -> Outcome:
    """Fold one file as ordered.

    Raises:
        BnfoldError: a subclass that says what is the matter; no file has been changed then.
    """
    started = time.perf_counter()
    target = _target(path, order) if order.mode is Mode.WRITE else None
    check_map(order.map_file, order.force, path, target)
    order.say(f"reading {path.name}")
    model = files.load(path)
    outcome = Outcome(path, bytes_before=path.stat().st_size + _external_bytes(model))
    original = None if order.map_file is None else model.clone()
    order.say(f"folding {path.name}")
    folding = order.folding()
    changed = folding(model).modified
    outcome.report = folding.report
    # Before the model, which may take the input's place: nothing is replaced that has no way back.
    way_back = None if original is None else provenance(folding.folds, original, model)
    if target is not None:
        _deliver(path, target, model if changed else None, order, outcome, way_back, folding.flattened)
        outcome.output = target
    else:
        _write_map(order, way_back)
    outcome.seconds = time.perf_counter() - started
    return outcome


def check_map(where: Path | None, force: bool, *models: Path | None) -> None:
    """Refuse to lose a model, or the only way back to one.

    Raises:
        OutputError: the map would replace one of the models, or (without ``force``) another map.
    """
    if where is None:
        return
    if where.is_dir() or os.path.realpath(where) in {os.path.realpath(each) for each in models if each}:
        raise OutputError(f"{where} is no place for a map; name another file with --map.")
    if where.exists() and not force:
        raise OutputError(f"{where} exists; pass -f to replace it or choose another name with --map.")


def _write_map(order: Order, way_back: Mapping[str, Any] | None) -> None:
    if order.map_file is not None and way_back is not None:
        with files.staged(order.map_file) as temporary, temporary.open("w") as file:
            json.dump(way_back, file, indent=1)
            file.write("\n")


def _target(path: Path, order: Order) -> Path:
    """Where the result goes, if it may go there."""
    if order.in_place:
        return path
    target = order.output or path.parent / f"{path.name.removesuffix('.onnx')}.folded.onnx"
    if target.is_dir():
        raise OutputError(f"{target} is a directory; name a file with -o.")
    if target.exists() and path.exists() and target.samefile(path):
        raise OutputError(f"{target} is the input itself; pass --in-place to replace it.")
    if target.exists() and not order.force:
        raise OutputError(f"{target} exists; pass -f to replace it or choose another name with -o.")
    return target


def _deliver(
    path: Path,
    target: Path,
    model: ir.Model | None,
    order: Order,
    outcome: Outcome,
    way_back: Mapping[str, Any] | None,
    flattened: Mapping[str, Sequence[int]],
) -> None:
    """Write what was folded (or the file as it was), proven before it takes its place."""
    if model is None and target == path:
        outcome.bytes_after = outcome.bytes_before
        _write_map(order, way_back)
        return
    if model is not None and order.verify and outcome.bytes_before > _LARGE:
        _announce(path, outcome.bytes_before, order)
    with files.staged(target) as temporary:
        order.say(f"writing {target.name}")
        if model is not None:
            files.write(model, temporary)
        elif outcome.bytes_before == path.stat().st_size:
            shutil.copyfile(path, temporary)
        else:
            files.write(files.load(path), temporary)
        outcome.bytes_after = sum(
            each.stat().st_size for each in temporary.parent.rglob("*") if each.is_file()
        )
        if model is not None and order.verify:
            order.say(f"verifying {target.name}")
            _prove(path, temporary, order, outcome, flattened)
        _write_map(order, way_back)


def _announce(path: Path, size: int, order: Order) -> None:
    """Say what memory a verification takes, which holds both models, before anything is written.

    Raises:
        VerificationError: it is not there.
    """
    need, free = 2 * size + _RUNTIME, _free_memory()
    text = f"verifying {path} takes up to {need / 1e9:.1f} GB of memory"
    if free is not None and free < need:
        raise VerificationError(
            f"{text}, and {free / 1e9:.1f} GB are free; free some, or pass --no-verify. Nothing was written."
        )
    order.tell(f"{text}; --no-verify does without.")


def _free_memory() -> int | None:
    """What the system could give, in bytes, where it says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _prove(
    path: Path, candidate: Path, order: Order, outcome: Outcome, flattened: Mapping[str, Sequence[int]]
) -> None:
    """Prove the candidate equal to the original, but for what was asked for; that is measured."""
    from bnfold.verification import verify

    original: Path | ir.Model = path
    if outcome.report.converted or flattened:
        original = files.load(path)
        if outcome.report.converted:
            to_inference(original)
        if flattened:
            outcome.deviations = verify(original, candidate, inputs=order.inputs).outputs
            flatten(original, flattened)
    outcome.verdict = verify(original, candidate, inputs=order.inputs, noise=order.noise, shared=True)
    if not outcome.verdict.ok:
        raise VerificationError(f"{path}: {outcome.verdict.reason}", outcome.verdict)


def _external_bytes(model: ir.Model) -> int:
    paths = {os.path.realpath(tensor.path) for tensor in files.external_tensors(model)}
    return sum(os.path.getsize(each) for each in paths)
