"""Static quantization of the digits CNN with and without the fold in front: what is left, and what it costs.

    python benchmarks/quantization.py [--write]

With --write the table goes into docs/pipelines.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pages
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import bnfold

ROOT = Path(__file__).parent.parent
_CALIBRATION = 100


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The first held-out images, one at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._feeds = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The feeds of one run."""
        return next(self._feeds, None)


def quantized(source: Path, target: Path, optimize: bool, images: np.ndarray) -> None:
    """Prepare and quantize a model, as ONNX Runtime documents it."""
    prepared = target.with_suffix(".prepared")
    quant_pre_process(str(source), str(prepared), skip_optimization=not optimize)
    quantize_static(str(prepared), str(target), Images(images))


def rows() -> Iterator[tuple[str, int, int, int, float]]:
    """What was done; batch norms and nodes left; images right; error of the logits, in their deviations."""
    source = ROOT / "models" / "digits_cnn.onnx"
    with np.load(ROOT / "models" / "digits_test.npz") as data:
        images, labels = data["images"].astype(np.float32), data["labels"]
    exact = _run(source, images)
    yield ("as it is, float32", *_counts(source), int((exact.argmax(1) == labels).sum()), 0.0)
    with TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        bnfold.fold(source, portable=True).save(folded)
        for optimize in (False, True):
            for name, model in (("quantized", source), ("folded, quantized", folded)):
                target = Path(folder) / "quantized.onnx"
                quantized(model, target, optimize, images[:_CALIBRATION])
                got = _run(target, images)
                error = float(np.sqrt(np.mean((got - exact) ** 2)) / np.std(exact))
                what = name if optimize else f"{name} without ONNX Runtime's own optimizations"
                yield what, *_counts(target), int((got.argmax(1) == labels).sum()), error


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "| digits CNN | batch norms | nodes | of 450 images right | error of the logits |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {what} | {norms} | {nodes} | {right} | {error:.3f} |"
        for what, norms, nodes, right, error in rows()
    ]
    return "\n".join(lines)


def _counts(path: Path) -> tuple[int, int]:
    nodes: list[Any] = list(onnx.load(path).graph.node)
    return sum(node.op_type == "BatchNormalization" for node in nodes), len(nodes)


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/pipelines.md")
    asked = parser.parse_args()
    made = table()
    print(made)
    if asked.write:
        pages.write("pipelines.md", "quantization", made)


if __name__ == "__main__":
    main()
