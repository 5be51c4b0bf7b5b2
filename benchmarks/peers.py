"""The optimizers that bnfold is held against, each a whole process: load, optimize, write.

    python benchmarks/peers.py MODEL.onnx           run all of them and print what each costs
    python benchmarks/peers.py --versions

Each runs as its authors document it, with everything on that folds a batch norm. They need an environment of
their own: the interpreter named by BNFOLD_PEERS_PYTHON, or one in a cache folder that is made from
requirements-peers.txt on first use. bnfold runs in the interpreter of this script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from processes import Ran, run

Optimizer = Callable[[str, str], None]

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements-peers.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bnfold"
_LARGE = 1 << 30


def onnxoptimizer(source: str, target: str) -> None:
    """All fuse and eliminate passes, which ``fuse_bn_into_conv`` is one of, until nothing changes."""
    import onnx
    import onnxoptimizer as peer

    model = onnx.load(source)
    model = peer.optimize(model, peer.get_fuse_and_elimination_passes(), fixed_point=True)
    onnx.save(model, target, save_as_external_data=_is_large(source), location=f"{Path(target).name}.data")


def onnxsim(source: str, target: str) -> None:
    """As on its command line without options."""
    from onnxsim import simplify

    simplify(source, output_path=target)


def onnxslim(source: str, target: str) -> None:
    """As on its command line without options."""
    from onnxslim import slim

    slim(source, target, save_as_external_data=_is_large(source))


def onnxscript(source: str, target: str) -> None:
    """The optimizer, then the rewriter with its default rules."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    model = onnx_ir.load(source)
    optimizer.optimize(model)
    model = rewriter.rewrite(model)
    data = f"{Path(target).name}.data" if _is_large(source) else None
    onnx_ir.save(model, target, external_data=data)


def ort_basic(source: str, target: str) -> None:
    """ONNX Runtime's basic optimizations, written to a file; further ones are for one machine only."""
    _offline(source, target, "ORT_ENABLE_BASIC")


def ort_extended(source: str, target: str) -> None:
    """ONNX Runtime's extended optimizations: operators of its own, so no other runtime reads the file."""
    _offline(source, target, "ORT_ENABLE_EXTENDED")


PEERS: dict[str, Optimizer] = {
    "onnxoptimizer": onnxoptimizer,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "ort-basic": ort_basic,
    "ort-extended": ort_extended,
}
# Without its proof, too, since no other one proves anything.
OWN = {"bnfold": [], "bnfold --no-verify": ["--no-verify"]}


def optimize(name: str, source: Path, target: Path, timeout: float = 300.0) -> Ran:
    """Run one optimizer on a file, in the folder of ``target``, which is gone afterwards if it failed.

    Args:
        name: a key of ``PEERS``, "bnfold" or "bnfold --no-verify".
        source: the model.
        target: where to write; large weights go beside it.
        timeout: seconds after which it is stopped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source, target = source.resolve(), target.resolve()
    if name in OWN:
        command = [sys.executable, "-m", "bnfold", "-q", "-f", source, "-o", target, *OWN[name]]
        env = {"PYTHONPATH": str(HERE.parent.resolve())}
    else:
        command, env = [peers_python(), Path(__file__).resolve(), "--run", name, source, target], {}
    ran = run(command, target.parent, timeout, env)
    if not ran.failure and not target.exists():
        ran = Ran("wrote nothing", ran.seconds, ran.peak)
    if ran.failure:
        target.unlink(missing_ok=True)
    return ran


def peers_python() -> str:
    """The interpreter in which the others are installed."""
    given = os.environ.get("BNFOLD_PEERS_PYTHON")
    if given:
        return given
    home = CACHE / "peers"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = home / REQUIREMENTS.name
    if not done.exists() or done.read_bytes() != REQUIREMENTS.read_bytes():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        shutil.copy(REQUIREMENTS, done)
    return str(python)


def versions() -> dict[str, str]:
    """The version of each package that takes part, as installed."""
    from bnfold import __version__

    script = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    asked = [peers_python(), "-c", script, *pinned()]
    found: dict[str, str] = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    return {"bnfold": __version__, **found}


def pinned() -> dict[str, str]:
    """The versions of requirements-peers.txt."""
    return dict(line.split("==") for line in REQUIREMENTS.read_text().split())


def _offline(source: str, target: str, level: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = target
    if _is_large(source):
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{Path(target).name}.data")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _is_large(source: str) -> bool:
    """Whether weights lie beside the model, as they must from 2 GiB on; what is small is not read for it."""
    import onnx

    if Path(source).stat().st_size > _LARGE >> 4:
        return False
    tensors = onnx.load(source, load_external_data=False).graph.initializer
    return any(each.data_location == onnx.TensorProto.EXTERNAL for each in tensors)


def main() -> None:
    """Run one optimizer here, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--versions", action="store_true")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="in this very process")
    asked = parser.parse_args()
    if asked.run:
        PEERS[asked.run[0]](*asked.run[1:])
        return
    for name, version in versions().items():
        note = "" if pinned().get(name, version) == version else f" (pinned: {pinned()[name]})"
        print(f"{name} {version}{note}")
    if asked.model:
        _print_costs(asked.model)


def _print_costs(model: Path) -> None:
    with TemporaryDirectory() as folder:
        for name in (*OWN, *PEERS):
            ran = optimize(name, model, Path(folder) / name / "model.onnx")
            cost = (
                "" if ran.seconds is None or ran.peak is None else f"{ran.seconds:.2f} s, {ran.peak >> 20} MB"
            )
            print(f"{name:20} {cost} {ran.failure}")


if __name__ == "__main__":
    main()
