"""A network trained until channels are dead: what removing them saves, on top of folding.

    python benchmarks/slimmed.py [--seconds 120]
    python benchmarks/slimmed.py --page

``models/digits_slim.onnx`` (models/make_slim.py) as it is, folded with all its channels, and folded
without the dead ones run interleaved in ONNX Runtime, one thread, all optimizations, on one image and on
64; and all three classify the test images. The result goes to results/slimmed.json, and from there, as
with ``--page`` alone, into docs/branches.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pages
from branches import interval, times

import bnfold

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
DATA = HERE / "results" / "slimmed.json"
BATCHES = [1, 64]
FORMS = {"original": "as trained", "folded": "folded", "pruned": "folded, without dead channels"}


def main() -> None:
    """Measure and write the page, or only write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="for each batch")
    parser.add_argument("--page", action="store_true", help="write docs/branches.md and measure nothing")
    asked = parser.parse_args()
    if not asked.page:
        DATA.write_text(json.dumps(measure(asked.seconds), indent=1) + "\n", encoding="utf-8")
    made = table(json.loads(DATA.read_text(encoding="utf-8")))
    pages.write("branches.md", "slimmed", made)
    print(made)


def measure(seconds: float) -> dict[str, Any]:
    """Everything about the three forms, as JSON-ready data."""
    original = onnx.load(MODELS / "digits_slim.onnx")
    pruned = bnfold.fold(original)
    models = {
        "original": original,
        "folded": bnfold.fold(original, prune_below=None).model,
        "pruned": pruned.model,
    }
    with np.load(MODELS / "digits_test.npz") as data:
        images, labels = data["images"], data["labels"]
    classes = {name: classify(model, images) for name, model in models.items()}
    report = bnfold.bench(
        *(models[name] for name in ("pruned", "folded", "original")),
        batch=BATCHES,
        seconds=seconds,
        width=0.0,
        threads=1,
    )
    return {
        "bytes": {name: model.ByteSize() for name, model in models.items()},
        "filters": {name: filters(model) for name, model in models.items()},
        "multiplications": [pruned.report.work_before, pruned.report.work_after],
        "images": len(images),
        "correct": {name: int((each == labels).sum()) for name, each in classes.items()},
        "same": {name: int((each == classes["original"]).sum()) for name, each in classes.items()},
        "ratios": {
            str(case.batch): {
                name: interval(compared.time.ratio)
                for name, compared in zip(("folded", "original"), case.comparisons, strict=True)
            }
            for case in report.cases
        },
        "control": {str(case.batch): interval(case.control) for case in report.cases},
        "microseconds": {
            str(case.batch): 1e6 * float(np.median(case.samples.runs[0])) for case in report.cases
        },
        "seconds": seconds,
        "environment": report.environment.to_dict(),
    }


def filters(model: onnx.ModelProto) -> int:
    """Output channels of all convolutions."""
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer}
    return sum(sizes[node.input[1]] for node in model.graph.node if node.op_type == "Conv")


def classify(model: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The class of each image."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (logits,) = session.run(None, {"image": images})
    return np.asarray(logits).argmax(axis=1)


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| form | size | channels of convolutions | classified as by the original (correctly) | "
        "times of the last form, 1 image | 64 images |",
        "|---|---|---|---|---|---|",
    ]
    for name, text in FORMS.items():
        known = [found["ratios"][str(batch)].get(name) for batch in BATCHES]
        cells = " | ".join(times(ratio) if ratio else "1" for ratio in known)
        lines.append(
            f"| {text} | {found['bytes'][name] / 1e3:.0f} kB | {found['filters'][name]} "
            f"| {found['same'][name]} of {found['images']} ({found['correct'][name]}) | {cells} |"
        )
    before, after = found["multiplications"]
    own = ", ".join(
        f"{found['microseconds'][batch]:.0f} µs on {batch} (against itself {times(found['control'][batch])})"
        for batch in map(str, BATCHES)
    )
    load = found["environment"]["load_before"]
    lines += [
        "",
        f"Multiplications of an image: {before} → {after}. The last takes {own}; "
        f"{found['seconds']:.0f} s each, load average {load}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
