"""What wrong statistics cost the digit nets, whether `stats` names them, and what `recalibrate` restores.

    python benchmarks/spoiled_statistics.py [--write]

Accuracy is on the 250 last test images; statistics are checked and estimated on the 200 first, without
their labels. With --write the table goes into docs/statistics.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pages

import bnfold
from bnfold import files
from bnfold.statistics.graph.layers import survey
from bnfold.statistics.graph.rewrite import put
from bnfold.training import MovingAverage, Running

ROOT = Path(__file__).parent.parent
NETS = ("digits_cnn", "digits_mlp_bn_before", "digits_mlp_bn_after")

with np.load(ROOT / "models" / "digits_test.npz") as file:
    SEEN, UNSEEN, LABELS = file["images"][:200], file["images"][200:], file["labels"][200:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/statistics.md")
    lines = [
        "| net | statistics | accuracy | layers named | recalibrated | by one pass only |",
        "|---|---|---|---|---|---|",
        *(line for name in NETS for line in rows(name)),
    ]
    print("\n".join(lines))
    if parser.parse_args().write:
        pages.write("statistics.md", "spoiled_statistics", "\n".join(lines))


def rows(name: str) -> Iterator[str]:
    """One net, spoiled in each way."""
    good = files.load(ROOT / "models" / f"{name}.onnx")
    for how, spoil in SPOILED.items():
        model = spoil(good)
        judged = bnfold.stats(model, SEEN).comparisons
        named = f"{sum(each.named for each in judged)} of {len(judged)}"
        restored, once = (bnfold.recalibrate(model, SEEN, passes=passes).model for passes in (None, 1))
        values = " | ".join(f"{accuracy(each):.1f} %" for each in (restored, once))
        yield f"| {name} | {how} | {accuracy(model):.1f} % | {named} | {values} |"


def accuracy(model: ir.Model) -> float:
    """Of the unseen images, in percent."""
    content = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": UNSEEN})
    return 100 * float((logits.argmax(axis=1) == LABELS).mean())


def estimated_on(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Model], ir.Model]:
    """Statistics of other data."""

    def spoil(model: ir.Model) -> ir.Model:
        changed: ir.Model = bnfold.recalibrate(model, change(SEEN)).model
        return changed

    return spoil


def one_update(model: ir.Model) -> ir.Model:
    """Statistics after the first step of training: a tenth of the way from mean 0 and variance 1."""
    start = model.clone()
    found, _ = survey(start)
    put(start, found, {each.layer.output: zero_one(each.layer.mean) for each in found})
    updated: ir.Model = bnfold.recalibrate(start, SEEN[:32], moving=MovingAverage(0.9)).model
    return updated


def zero_one(like: np.ndarray) -> Running:
    """What training starts from."""
    return Running(np.zeros_like(like), np.ones_like(like))


SPOILED: dict[str, Callable[[ir.Model], ir.Model]] = {
    "as trained": lambda model: model,
    "of images from 0 to 16": estimated_on(lambda images: images * 16),
    "of images from 0.5 to 1.5": estimated_on(lambda images: images + 0.5),
    "of one batch of 8 images": estimated_on(lambda images: images[:8]),
    "after one batch, momentum 0.9": one_update,
}


if __name__ == "__main__":
    main()
