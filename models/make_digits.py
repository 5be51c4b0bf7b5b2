"""Train the small digit nets of this folder on real data and export them with torch.

    python models/make_digits.py [--output-dir DIR]

Writes one .onnx file per recipe, the held-out test images (digits_test.npz) and the record
of what was made (digits.json). Needs torch, onnxscript, scikit-learn and onnxruntime.
The three recipes are the three places a batch norm is found in, each written by another of
torch's exporters, so that together they show what exported batch norms look like.
"""

import argparse
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
TEST_IMAGES = 450
SPLIT_SEED = 0
EPOCHS = 40
BATCH = 32
LEAST_ACCURACY = 0.97
MOST_BYTES = 300_000

EXPECTED_WARNINGS = (
    (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, "The feature will be removed"),  # the TorchScript exporter, of itself
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # inside torch.export
)

Split = tuple[np.ndarray, np.ndarray]


# The nets


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(x + body(x))."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the body's output to its input."""
        return torch.relu(x + self.body(x))


def cnn() -> nn.Module:
    depthwise, pointwise = conv_bn(16, 16, groups=16), conv_bn(16, 16, kernel=1)
    return nn.Sequential(
        *(conv_bn(1, 16), nn.ReLU()),
        Residual(depthwise, nn.ReLU(), pointwise),
        *(conv_bn(16, 32, stride=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Linear(32, 10),
    )


def mlp_bn_before() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Linear(32, 10),
    )


def mlp_bn_after() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64)),
        *(nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32)),
        nn.Linear(32, 10),
    )


@dataclass(frozen=True)
class Recipe:
    """One net, its seed, and the options it is exported with."""

    name: str
    architecture: str
    build: Callable[[], nn.Module]
    seed: int
    export_options: Mapping[str, Any]


RECIPES = (
    Recipe(
        "digits_cnn",
        "Conv3-BN-ReLU, relu(x + DepthwiseConv3-BN-ReLU-Conv1-BN), Conv3/2-BN-ReLU, "
        "Flatten, Linear-BN-ReLU, Linear",
        cnn,
        seed=1,
        export_options={
            # Evaluation mode with constant folding would fold Conv-BN itself.
            "dynamo": False,
            "training": torch.onnx.TrainingMode.PRESERVE,
            "do_constant_folding": False,
            "opset_version": 17,
        },
    ),
    Recipe(
        "digits_mlp_bn_before",
        "Flatten, 2 x (Linear-BN-ReLU), Linear",
        mlp_bn_before,
        seed=2,
        # The optimizer would fold Linear-BN itself.
        export_options={"dynamo": True, "optimize": False, "opset_version": 20},
    ),
    Recipe(
        "digits_mlp_bn_after",
        "Flatten, 2 x (Linear-ReLU-BN), Linear",
        mlp_bn_after,
        seed=3,
        # torch's default export: its optimizer leaves a batch norm behind an activation alone.
        export_options={"dynamo": True, "optimize": True, "opset_version": 20},
    ),
)


# Data and training


def digits() -> tuple[Split, Split]:
    """Train and test split: images as float32 N x 1 x 8 x 8 in [0, 1], labels as int64."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=TEST_IMAGES, random_state=SPLIT_SEED, stratify=labels
    )
    return (x, y), (x_test, y_test)


def train(recipe: Recipe, data: Split) -> nn.Module:
    """Train for a fixed number of epochs: nothing is chosen by looking at the test split."""
    torch.manual_seed(recipe.seed)
    net = recipe.build().train()
    images, labels = map(torch.from_numpy, data)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


# Export


@contextmanager
def without_expected_warnings() -> Iterator[None]:
    """Drop what the exporters are known to say about themselves, and nothing else."""

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(unexpected)
    try:
        with warnings.catch_warnings():
            for category, message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        logger.removeFilter(unexpected)


def export(net: nn.Module, options: Mapping[str, Any]) -> onnx.ModelProto:
    example = (torch.zeros(2, 1, 8, 8),)
    named = {"input_names": ["image"], "output_names": ["logits"], "verbose": False, **options}
    with without_expected_warnings():
        if options["dynamo"]:
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(net, example, dynamic_shapes=({0: batch},), **named)
            return program.model_proto
        file = io.BytesIO()
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(net, example, file, dynamic_axes=axes, **named)
        return onnx.load_from_string(file.getvalue())


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the stack traces and file paths of the exporting machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for message in (model, graph, *graph.node, *values):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    return model


# The record


def count_correct(model: bytes, test: Split) -> int:
    """Test images the exported file classifies correctly in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images, labels = test
    (logits,) = session.run(["logits"], {"image": images})
    return int((logits.argmax(axis=1) == labels).sum())


def record(recipe: Recipe, model: onnx.ModelProto, correct: int) -> dict[str, Any]:
    options = ", ".join(f"{name}={value}" for name, value in recipe.export_options.items())
    return {
        "file": f"{recipe.name}.onnx",
        "architecture": recipe.architecture,
        "correct": correct,
        "total": TEST_IMAGES,
        "accuracy": round(correct / TEST_IMAGES, 4),
        "batch_normalizations": sum(n.op_type == "BatchNormalization" for n in model.graph.node),
        "exporter": f"torch.onnx.export({options})",
        "opset": model.opset_import[0].version,
        "torch": torch.__version__,
        "seed": recipe.seed,
    }


def check(recipe: Recipe, net: nn.Module, content: bytes, made: Mapping[str, Any]) -> None:
    """Refuse a file that lost a batch norm, learned too little, grew too big or names a path."""
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    if made["batch_normalizations"] != norms:
        raise SystemExit(f"{recipe.name}: {made['batch_normalizations']} of {norms} batch norms")
    if made["accuracy"] < LEAST_ACCURACY:
        raise SystemExit(f"{recipe.name}: accuracy {made['accuracy']} < {LEAST_ACCURACY}")
    if len(content) > MOST_BYTES:
        raise SystemExit(f"{recipe.name}: {len(content)} bytes > {MOST_BYTES}")
    if any(str(path).encode() in content for path in (HERE, Path(torch.__file__).parents[1])):
        raise SystemExit(f"{recipe.name}: holds a path of this machine")


def write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that an interrupted run leaves no half of one."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def make(recipe: Recipe, train_split: Split, test: Split, folder: Path) -> dict[str, Any]:
    net = train(recipe, train_split)
    model = strip(export(net, recipe.export_options))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    made = record(recipe, model, count_correct(content, test))
    check(recipe, net, content, made)
    write(folder / made["file"], content)
    print(f"{made['file']}: {made['correct']}/{made['total']} correct, {len(content)} bytes")
    return made


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=HERE)
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_split, test = digits()
    models = [make(recipe, train_split, test, folder) for recipe in RECIPES]
    split = {"test": TEST_IMAGES, "random_state": SPLIT_SEED, "stratified": True}
    listing = {"data": "sklearn.datasets.load_digits", "split": split, "models": models}
    write(folder / "digits_test.npz", npz(images=test[0], labels=test[1]))
    write(folder / "digits.json", (json.dumps(listing, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
