"""``bench``: what a caller asks for, made into cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from bnfold.errors import MissingDependencyError
from bnfold.folding import Inputs, ModelLike
from bnfold.verification.runner import npz_of

from .environment import environment, load
from .measure import Measurement, Progress, Settings
from .models import gathered
from .report import BenchReport


def bench(
    *models: ModelLike,
    inputs: Inputs = None,
    batch: int | Sequence[int] | None = None,
    dim: Mapping[str, int] | None = None,
    threads: int = 1,
    provider: str | Sequence[str] = "CPUExecutionProvider",
    level: str | Sequence[str] = "all",
    seconds: float = 20.0,
    width: float = 0.02,
    profile: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, text: None,
) -> BenchReport:
    """Measure models against the first one, or a single one against its fold, in ONNX Runtime.

    Fresh sessions of all models, and a second one of the first as a control, run in alternating blocks in
    random order, until every 95 % interval is as narrow as asked for or the time is up.

    Args:
        models: paths, ``onnx.ModelProto`` or ``onnx_ir.Model``.
        inputs: what to run on: a ``.npz`` path or arrays by input name; random without.
        batch: sizes for the open first dimension of the inputs, each a case of its own; 1 without.
        dim: sizes for other open dimensions, by name.
        threads: threads of each session.
        provider: execution providers, in order of preference.
        level: ONNX Runtime's graph optimizations: "all" as deployed, "extended", "basic" or "off"; of
            several, each is a case of its own.
        seconds: time budget of each case; loading, memory and profile come on top.
        width: stop earlier once every interval is relatively this narrow; 0 uses all the time.
        profile: attribute the time to operators, in separate runs.
        seed: of the random inputs and of the random order.
        progress: called with the part that is done, from 0 to 1, and what is going on.

    Raises:
        BnfoldError: a subclass that says what is the matter with a model, the inputs or the installation.
    """
    _require("onnxruntime", "scipy")
    providers = (provider,) if isinstance(provider, str) else tuple(provider)
    levels = [level] if isinstance(level, str) else list(dict.fromkeys(level))
    settings = [Settings(threads, providers, each, seconds, width, dict(dim or {}), seed) for each in levels]
    sizes: list[int | None] = [batch] if batch is None or isinstance(batch, int) else [*dict.fromkeys(batch)]
    before = load()
    with TemporaryDirectory(prefix="bnfold-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        progress(0.0, "reading")
        compared = gathered(models, folder)
        npz = None if inputs is None else npz_of(inputs, folder / "inputs.npz")
        cases = []
        for index, (chosen, size) in enumerate(wanted := list(product(settings, sizes))):
            part = _part(progress, index, len(wanted))
            measured = Measurement(compared, chosen, size, npz, folder, part)
            cases.append(measured.case(profile=profile))
    given = {"level": levels[0] if len(levels) == 1 else levels, "inputs": npz and str(npz)}
    where = environment(before, measured.onnxruntime)
    return BenchReport(compared, cases, where, asdict(measured.settings) | given)


def _part(progress: Progress, index: int, count: int) -> Progress:
    return lambda done, text: progress((index + done) / count, text)


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"bench needs {package}, which is not installed; run: pip install 'bnfold[bench]'"
            )
