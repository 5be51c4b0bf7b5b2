"""The inputs that all models are run on, and a first run of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import onnx

from bnfold.errors import InputsError
from bnfold.verification.engines import CannotRunError
from bnfold.verification.inputs import Port, fits, port, runnable, shown, user_inputs

from .process import BenchError, Job
from .sessions import Feeds, Given, attempt, binds, call, keep, open_session, runtime


def answer(
    job: Job,
    say: Callable[[str], None],
    inputs: str | None,
    batch: int | None,
    dim: Mapping[str, int],
    seed: int,
) -> dict[str, Any]:
    """Make the inputs, run every model once, and say how long loading and running takes, in seconds."""
    _check_providers(job)
    feeds = _feeds(job, say, inputs, batch, dim, seed)
    opened = [_opened(job, index, feeds, say) for index in range(len(job["paths"]))]
    given = Given(feeds, all(binds(session, feeds) for session, _ in opened))
    keep(job, given)
    return {
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "bound": given.bound,
        "load": [seconds for _, seconds in opened],
        "run": [_seconds(call(session, given)) for session, _ in opened],
        "onnxruntime": runtime().__version__,
    }


def _feeds(
    job: Job,
    say: Callable[[str], None],
    inputs: str | None,
    batch: int | None,
    dim: Mapping[str, int],
    seed: int,
) -> Feeds:
    label = job["labels"][0]
    say(f"making inputs for {label}")
    session = open_session(job, 0)
    required = {each.name for each in session.get_inputs()}
    try:
        ports = [port(each) for each in _inputs(job, 0) if each.name in required]
        if inputs is not None:
            return user_inputs(ports, Path(inputs))
        return runnable(sized(ports, batch, dim, label), lambda feeds: _try(job, session, feeds), seed)[0]
    except CannotRunError as error:
        raise BenchError(f"{label} cannot be run: {error}.") from error
    except MemoryError as error:
        raise InputsError(
            f"Inputs for {label} do not fit into memory ({error}); ask for smaller ones."
        ) from error


def sized(ports: list[Port], batch: int | None, dim: Mapping[str, int], label: str) -> list[Port]:
    """The ports with open dimensions filled in: those named in ``dim``, then the first of each input.

    Raises:
        InputsError: ``dim`` names a dimension that the model does not have, or ``batch`` is asked of a model
            without an open first dimension.
    """
    shapes = [each.shape or () for each in ports]
    names = sorted({size for shape in shapes for size in shape if isinstance(size, str)})
    for name in dim:
        if name not in names:
            have = ", ".join(map(repr, names)) or "none by name"
            raise InputsError(f"{label} has no open dimension {name!r}; it has {have}.")
    inner = {size for shape in shapes for size in shape[1:]}
    firsts = [shape[0] for shape in shapes if shape and not (isinstance(shape[0], str) and shape[0] in inner)]
    for name, size in dim.items():
        if batch is not None and name in firsts and size != batch:
            raise InputsError(
                f"{name!r} is the batch dimension of {label}, so --batch sets it; leave out --dim."
            )
    if batch is not None and all(isinstance(size, int) for size in firsts) and {batch} != set(firsts):
        fixed = ", ".join(map(str, firsts)) or "nothing"
        raise InputsError(f"{label} has no open batch dimension (it is fixed at {fixed}); leave out --batch.")
    known = {size: batch or 1 for size in firsts if isinstance(size, str)} | dict(dim)
    return [replace(each, shape=_filled(each.shape, known, batch or 1)) for each in ports]


def _filled(
    shape: tuple[int | str | None, ...] | None, known: Mapping[str, int], batch: int
) -> tuple[int | str | None, ...] | None:
    if not shape:
        return shape
    named = [known.get(size, size) if isinstance(size, str) else size for size in shape]
    return (batch if named[0] is None else named[0], *named[1:])


def _try(job: Job, session: Any, feeds: Feeds) -> None:
    try:
        attempt(job, 0, session, feeds)
    except BenchError as error:
        raise CannotRunError(str(error).rstrip(".")) from error


def _opened(job: Job, index: int, feeds: Feeds, say: Callable[[str], None]) -> tuple[Any, float]:
    """A session that has run once, and the seconds it took to create."""
    say(f"running {job['labels'][index]}")
    start = perf_counter()
    session = open_session(job, index)
    seconds = perf_counter() - start
    try:
        attempt(job, index, session, feeds)
    except BenchError:
        _check_alike(job, index, feeds)
        raise
    return session, seconds


def _check_alike(job: Job, index: int, feeds: Feeds) -> None:
    """Say where a model asks for other inputs than the first, of which ONNX Runtime knows nothing."""
    label, first = job["labels"][index], job["labels"][0]
    for each in _inputs(job, index):
        given = feeds.get(each.name)
        if given is None or fits(wanted := port(each), given):
            continue
        raise BenchError(
            f"{label} takes {each.name!r} as {shown(wanted.shape or ())} {wanted.dtype}, and {first} runs on "
            f"{shown(given.shape)} {given.dtype}; models that are compared must take the same."
        )


def _inputs(job: Job, index: int) -> Sequence[onnx.ValueInfoProto]:
    return list(onnx.load(job["paths"][index], load_external_data=False).graph.input)


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of a run, roughly: enough to plan with."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 100 and sum(times) < 0.02):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return median(times)


def _check_providers(job: Job) -> None:
    available = runtime().get_available_providers()
    for name in job["providers"]:
        if name not in available:
            raise BenchError(f"ONNX Runtime has no {name} here; it has {', '.join(available)}.")
