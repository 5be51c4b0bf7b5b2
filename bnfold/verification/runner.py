"""``verify``: the parent's side. Models go into a folder, a child answers, its crash is an answer too.

The child is a fresh interpreter with this one's ``sys.path``, so that a fault in ONNX Runtime cannot take the
caller down. Paths need nothing but the standard library here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bnfold import errors

from .verdict import Status, Verdict

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    Model = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model
    Inputs = str | os.PathLike[str] | Mapping[str, Any] | None

# protobuf refuses messages of 2 GiB; attributes and names need some of that.
_INLINE_LIMIT = 3 << 29


def verify(
    a: Model,
    b: Model,
    *,
    inputs: Inputs = None,
    noise: bool = False,
    seed: int = 0,
    shared: bool = False,
    exact: bool = False,
) -> Verdict:
    """Run two models on the same inputs and say whether they are equal up to rounding.

    What is compared, and how much rounding explains: see the module ``equivalence``.

    Args:
        a: the original: a path (external data beside it), an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        b: the candidate, likewise.
        inputs: None for random inputs; else the path of an .npz, or arrays by input name.
        noise: also measure what ONNX Runtime's own optimizations change in the original. Without it that is
            measured only where a bound is exceeded.
        seed: of the random inputs.
        shared: promise that a tensor computed in both models under one name has one value in both; then
            every such tensor beside a changed operator must agree as well, which finds errors at any depth.
        exact: also measure how far the outputs of both are from the original in float64.

    Raises:
        UnreadableModelError: a file is missing or no ONNX model.
        InputsError: the given inputs do not fit the original.
        TypeError: a model is of none of the types above.
    """
    with TemporaryDirectory(prefix="bnfold-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job = {
            "a": str(_file(a, folder / "a.onnx")),
            "b": str(_file(b, folder / "b.onnx")),
            "inputs": str(npz_of(inputs, folder / "inputs.npz")) if inputs is not None else None,
            "noise": noise,
            "seed": seed,
            "shared": shared,
            "exact": exact,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        return _answer(_run(folder), folder)


def command(folder: Path) -> list[str]:
    """The child's command: warnings off, and no module of the working directory in the way."""
    return [sys.executable, "-P", "-W", "ignore", "-m", f"{__package__}.worker", str(folder)]


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = [os.path.abspath(path) for path in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        command(folder),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _answer(child: subprocess.CompletedProcess[str], folder: Path) -> Verdict:
    result = folder / "result.json"
    if child.returncode or not result.exists():
        return Verdict(Status.NOT_VERIFIED, _crash(child, folder))
    answer = json.loads(result.read_text(encoding="utf-8"))
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["text"])
    return Verdict.from_dict(answer["verdict"])


def _crash(child: subprocess.CompletedProcess[str], folder: Path) -> str:
    stage = folder / "stage"
    if not stage.exists():
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return f"The verifying process could not start ({last})."
    role = stage.read_text(encoding="utf-8")
    if child.returncode == 1:  # an exception of Python, not of the system
        return f"The verifying process failed on the {role} ({child.stderr.strip().splitlines()[-1]})."
    how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    return f"ONNX Runtime crashed ({how}) on the {role}."


def _file(model: Model, path: Path) -> Path:
    """The path of a model, written to ``path`` first if it is in memory."""
    if isinstance(model, (str, os.PathLike)):
        return _existing(Path(model))
    # An object of these types exists only if its module is loaded; importing onnx_ir costs a second.
    onnx, onnx_ir = sys.modules.get("onnx"), sys.modules.get("onnx_ir")
    if onnx_ir and isinstance(model, onnx_ir.Model):
        return _write_ir(model, path)
    if onnx and isinstance(model, onnx.ModelProto):
        return _write_proto(model, path)
    raise TypeError(f"verify takes paths, onnx.ModelProto and onnx_ir.Model, not {type(model).__name__}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise errors.UnreadableModelError(f"{path} {what}; give the path of an ONNX model.")
    return path.absolute()  # not resolved: external data lie beside a link, not beside its target


def _write_ir(model: Any, path: Path) -> Path:
    import onnx_ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    external = any(isinstance(tensor, onnx_ir.ExternalTensor) for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors if tensor is not None) > _INLINE_LIMIT
    onnx_ir.save(model, path, external_data=f"{path.stem}.data" if external or large else None)
    return path


def _write_proto(model: Any, path: Path) -> Path:
    import onnx

    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise errors.UnreadableModelError(
            "The model's external data are not loaded; load them, or give the model's path."
        )
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < _INLINE_LIMIT:
        onnx.save(model, path)
        return path
    copy = onnx.ModelProto()  # saving external data empties the tensors that are saved
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=f"{path.stem}.data")
    return path


def npz_of(inputs: str | os.PathLike[str] | Mapping[str, Any], path: Path) -> Path:
    """The path of an .npz, written to ``path`` first if the arrays are in memory.

    Raises:
        InputsError: there is no such file.
    """
    if isinstance(inputs, (str, os.PathLike)):
        given = Path(inputs)
        if not given.is_file():
            what = "is a directory" if given.is_dir() else "does not exist"
            raise errors.InputsError(f"{given} {what}; give an .npz with one array per input.")
        return given.absolute()
    import numpy as np

    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    plain = {name: each.astype(str) if each.dtype.kind == "O" else each for name, each in arrays.items()}
    np.savez(path, allow_pickle=False, **plain)
    return path
