"""Load, fold and save damaged models, as many as a time allows, and keep every one that goes wrong.

    python benchmarks/fuzz_bytes.py --state /tmp/fuzz.json --minutes 60

A damaged model may be folded or refused with a typed error; anything else is a failure: another exception,
a crash of the process, more than ``SECONDS`` of processor time or ``MEGABYTES`` of memory. A crash that onnx,
asked alone to infer the file's shapes, shows as well is counted as onnx's. The run goes on where ``--state``
says it ended, until the time is over or it is told to stop (SIGTERM). ``--minimize`` makes the kept
failures small and writes them to tests/data/damaged.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import itertools
import json
import logging
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import onnx
from google.protobuf.message import Message

sys.path.insert(0, str(Path(__file__).parent.parent))

import mutation

from bnfold import files
from bnfold.errors import BnfoldError
from bnfold.passes.optimize import OptimizePass

SECONDS = 10
MEGABYTES = 1500

# A worker is forked anew after this many files, so that no leak goes unseen for long.
_BATCH = 1000
_KEPT = 3
_CORPUS = Path(__file__).parent.parent / "tests" / "data" / "damaged"


@dataclass
class State:
    """What a run has done so far."""

    seed: int = 0
    next: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, seed: int) -> State:
        """Go on where a run with this file ended."""
        if not path.exists():
            return cls(seed)
        held = json.loads(path.read_text())
        return cls(**{**held, "counts": Counter(held["counts"])})

    def save(self, path: Path) -> None:
        """Keep the state; a crash leaves the old or the new."""
        with files.staged(path) as part:
            part.write_text(json.dumps(vars(self), indent=1))

    def add(self, what: str, pool: list[bytes]) -> None:
        """Note that the next file goes wrong, and keep it: the pool changes with the rules."""
        self.counts["failed"] += 1
        known = self.failures.setdefault(what, [])
        if len(known) < _KEPT:
            known.append(base64.b64encode(mutation.mutants(self.seed, self.next, pool)).decode())


def try_one(content: bytes, folder: Path) -> str:
    """What becomes of one file: "folded", "unchanged" or the name of a typed error; all else is raised."""
    path = folder / "damaged.onnx"
    path.write_bytes(content)
    try:
        model = files.load(path)
        changed = OptimizePass()(model).modified
        files.save(model, folder / "out.onnx")
    except BnfoldError as error:
        str(error).encode()
        return type(error).__name__
    return "folded" if changed else "unchanged"


def signature(error: BaseException) -> str:
    """An exception's type and where in bnfold it passed last."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "/bnfold/" in each.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "nowhere"
    return f"{type(error).__name__} at {place}"


def _limit() -> None:
    """A worker that asks for more memory gets a MemoryError, and one that hangs a signal."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _too_long(*_: object) -> None:
    raise TimeoutError


def _work(state: State, pool: list[bytes], pipe: int) -> None:
    """In a fork: try a batch of files, and say of each in one line what became of it."""
    _limit()
    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = Path(tempfile.mkdtemp(prefix="bnfold-fuzz-", dir=_memory_folder()))
    (folder / mutation.DATA).write_bytes(mutation.data())
    for number in range(state.next, state.next + _BATCH):
        content = mutation.mutants(state.seed, number, pool)
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            what = try_one(content, folder)
        except BaseException as error:
            what = f"!{signature(error)}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(pipe, f"{what}\n".encode())
    shutil.rmtree(folder, ignore_errors=True)


def _forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Run ``work`` in a fork; its process and the end of a pipe on which it talks."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        return child, reader
    try:
        os.close(reader)
        work(writer)
    finally:
        os._exit(0)


def _batch(state: State, pool: list[bytes]) -> None:
    """Let a worker try files; where it dies, or hangs, the file under way is the one to blame."""
    child, pipe = _forked(lambda pipe: _work(state, pool, pipe))
    first, rest, hung = state.next, b"", False
    while True:
        ready, _, _ = select.select([pipe], [], [], 30 * SECONDS)
        hung = not ready
        if hung:
            os.kill(child, signal.SIGKILL)
        read = os.read(pipe, 1 << 16)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            what = line.decode()
            if what.startswith("!"):
                state.add(what[1:], pool)
            else:
                state.counts[what] += 1
            state.next += 1
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    if state.next < first + _BATCH:
        how = "hang" if hung else f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "exit"
        state.add(f"{_whose(state, pool)}: {how}", pool)
        state.next += 1


def _whose(state: State, pool: list[bytes]) -> str:
    """Whether onnx alone, asked to read the file and infer its shapes, dies as well."""

    def ask(pipe: int) -> None:
        _limit()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            onnx.shape_inference.infer_shapes(
                onnx.load_model_from_string(mutation.mutants(state.seed, state.next, pool)), data_prop=True
            )
        except Exception:
            os.write(pipe, b"typed")
        os.write(pipe, b"done")

    child, pipe = _forked(ask)
    os.waitpid(child, 0)
    alive = os.read(pipe, 100)
    os.close(pipe)
    return "bnfold" if alive else "onnx"


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def reproduce(content: bytes) -> str:
    """What goes wrong with one file, or "" if nothing does."""

    def ask(pipe: int) -> None:
        _limit()
        signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with tempfile.TemporaryDirectory(dir=_memory_folder()) as name:
            (Path(name) / mutation.DATA).write_bytes(mutation.data())
            try:
                what = f"={try_one(content, Path(name))}"
            except BaseException as error:
                what = signature(error)
        os.write(pipe, what.encode())

    child, pipe = _forked(ask)
    said = os.read(pipe, 1000).decode()
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    if not said:
        return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "exit"
    return "" if said.startswith("=") else said


def minimized(content: bytes) -> bytes:
    """Leave out whatever the failure does not need: list items and fields, then bytes of a broken message."""
    wrong = reproduce(content)
    try:
        proto = onnx.load_model_from_string(content)
    except Exception:
        return content
    if reproduce(proto.SerializeToString(deterministic=True)) != wrong:
        return content
    smaller = True
    while smaller:
        smaller = False
        for position in range(sum(1 for _ in _parts(proto)) - 1, -1, -1):
            trial = onnx.ModelProto()
            trial.CopyFrom(proto)
            for remove in itertools.islice(_parts(trial), position, position + 1):
                remove()
            if reproduce(trial.SerializeToString(deterministic=True)) == wrong:
                proto, smaller = trial, True
    return bytes(proto.SerializeToString(deterministic=True))


def _parts(message: Message) -> Iterator[Callable[[], None]]:
    """Ways to leave something out of a message, outer ones first."""
    for each, value in message.ListFields():
        yield partial(message.ClearField, each.name)
        if each.is_repeated:
            for index in range(len(value)):
                yield partial(value.__delitem__, index)
        if each.message_type is not None:
            for inner in value if each.is_repeated else [value]:
                yield from _parts(inner)


@click.command()
@click.option(
    "--state", "path", required=True, type=click.Path(path_type=Path), help="Where the run is kept."
)
@click.option("--seed", default=0, show_default=True, help="Of a new run.")
@click.option("--minutes", default=1.0, show_default=True, help="How long to go on.")
@click.option("--minimize", is_flag=True, help="Make the failures found so far small; try no more files.")
def main(path: Path, seed: int, minutes: float, minimize: bool) -> None:
    """Fold damaged models and print what became of them."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    state, pool = State.load(path, seed), mutation.seeds()
    if minimize:
        _keep(state)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    gc.freeze()  # what is imported would be searched anew, and copied, by every worker
    started = time.perf_counter()
    before = state.seconds
    while state.seconds - before < 60 * minutes:
        _batch(state, pool)
        state.seconds = before + time.perf_counter() - started
        state.save(path)
    click.echo(f"{state.next} files in {state.seconds:.0f} s: {dict(sorted(state.counts.items()))}")
    for what, contents in state.failures.items():
        click.echo(f"  {what}: {len(contents)} kept")
    sys.exit(bool(state.failures))


def _keep(state: State) -> None:
    _CORPUS.mkdir(parents=True, exist_ok=True)
    for what, contents in state.failures.items():
        content = base64.b64decode(contents[0])
        small = minimized(content)
        name = hashlib.sha256(small).hexdigest()[:10]
        (_CORPUS / f"{name}.onnx").write_bytes(small)
        click.echo(f"{name}.onnx: {what}, {len(content)} → {len(small)} bytes")


if __name__ == "__main__":
    main()
