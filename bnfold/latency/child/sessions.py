"""ONNX Runtime sessions as a job asks for them, and calls to run them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .process import BenchError, Job, file_in

Feeds = dict[str, NDArray[Any]]

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}


@dataclass(frozen=True)
class Given:
    """What every run of every model is given.

    Attributes:
        arrays: the inputs by name.
        bound: whether inputs and outputs are bound beforehand, which took a call of 20 µs down to 14 µs;
            for all models or none, so that they stay comparable.
    """

    arrays: Feeds
    bound: bool


def runtime() -> Any:
    """The module ``onnxruntime``."""
    return import_module("onnxruntime")


def open_session(job: Job, index: int, trace: Path | None = None) -> Any:
    """A fresh session of one model; with ``trace`` it writes a profile to files of this prefix.

    Raises:
        BenchError: ONNX Runtime cannot load it, or not with this provider.
    """
    ort, label = runtime(), job["labels"][index]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[job["level"]])
    # Threads that still spin after one model's run would slow down the next model's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    try:
        session = ort.InferenceSession(job["paths"][index], options, providers=job["providers"])
    except Exception as error:
        raise BenchError(f"ONNX Runtime cannot load {label} ({_line(error)}).") from error
    if session.get_providers()[0] != job["providers"][0]:
        raise BenchError(f"ONNX Runtime cannot run {label} on {job['providers'][0]} on this machine.")
    return session


def call(session: Any, given: Given) -> Callable[[], object]:
    """One run as a call without arguments."""
    arrays = {each.name: given.arrays[each.name] for each in session.get_inputs()}
    if not given.bound:
        return partial(session.run, None, arrays)
    binding = session.io_binding()
    for name, array in arrays.items():
        value = runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        binding.bind_ortvalue_input(name, value)
    for each in session.get_outputs():
        binding.bind_output(each.name, "cpu")
    return partial(session.run_with_iobinding, binding)


def binds(session: Any, feeds: Feeds) -> bool:
    """Whether a session can run with its inputs and outputs bound.

    That takes tensors, and outputs of the declared shape: from the second run on they are written in place.
    """
    ports = [*session.get_inputs(), *session.get_outputs()]
    if not all(each.type.startswith("tensor(") and "string" not in each.type for each in ports):
        return False
    try:
        run = call(session, Given(feeds, True))
        run()
        run()
    except Exception:  # whatever the runtime throws
        return False
    return True


def attempt(job: Job, index: int, session: Any, feeds: Feeds) -> None:
    """Run a model once.

    Raises:
        BenchError: it takes other inputs than the first model, or fails on them.
    """
    label, wanted = job["labels"][index], {each.name for each in session.get_inputs()}
    if wanted != set(feeds):
        theirs, ours = (", ".join(map(repr, sorted(names))) or "none" for names in (wanted, feeds))
        raise BenchError(
            f"{label} takes the inputs {theirs}, and {job['labels'][0]} takes {ours}; "
            "models that are compared must take the same."
        )
    try:
        call(session, Given(feeds, False))()
    except Exception as error:
        raise BenchError(f"ONNX Runtime fails on {label} ({_line(error)}).") from error


def keep(job: Job, given: Given) -> None:
    """Leave the inputs to the other children of this job; pickled, since .npz knows no bfloat16."""
    file_in(job, "given").write_bytes(pickle.dumps(given))


def kept(job: Job) -> Given:
    """What ``keep`` left in the job's own folder."""
    given: Given = pickle.loads(file_in(job, "given").read_bytes())
    return given


def _line(error: BaseException) -> str:
    from bnfold.verification.engines import one_line

    return one_line(error)
