"""Train a digit net with an L1 penalty on γ (network slimming), so that channels die exactly, and export it.

    python models/make_slim.py [--output-dir DIR]

Writes digits_slim.onnx. Needs what make_digits.py needs, and takes half a minute on one thread.
Source: Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming. The penalty
is applied as its proximal step (soft thresholding) after each step of the optimizer, which reaches zero
exactly where a subgradient only swings around it. A channel whose γ is zero is a constant; its β is taken
to zero too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import make_digits
import onnx
import torch
from torch import nn

# How far each step takes γ towards zero, in units of the learning rate.
PENALTY = 0.8
EPOCHS = 20
SEED = 4


def slim_cnn() -> nn.Module:
    conv = make_digits.conv_bn
    return nn.Sequential(
        *(conv(1, 32), nn.ReLU()),
        *(conv(32, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(64, 64, groups=64), nn.ReLU(), conv(64, 64, kernel=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1024, 64), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 10),
    )


def train(data: make_digits.Split) -> nn.Module:
    torch.manual_seed(SEED)
    net = slim_cnn().train()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    images, labels = map(torch.from_numpy, data)
    steps = EPOCHS * (len(images) // make_digits.BATCH)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for batch in order.split(make_digits.BATCH)[: len(images) // make_digits.BATCH]:
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shrink(norms, PENALTY * schedule.get_last_lr()[0])
            schedule.step()
    return net.eval()


@torch.no_grad()
def shrink(norms: list[nn.Module], by: float) -> None:
    """Soft thresholding of γ, and of β where γ is zero."""
    for norm in norms:
        norm.weight.copy_(nn.functional.softshrink(norm.weight, by))
        dead = norm.weight == 0
        norm.bias[dead] = nn.functional.softshrink(norm.bias[dead], by)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=make_digits.HERE)
    folder = parser.parse_args().output_dir
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_split, test = make_digits.digits()
    net = train(train_split)
    model = make_digits.strip(make_digits.export(net, make_digits.RECIPES[0].export_options))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    correct = make_digits.count_correct(content, test)
    if correct < make_digits.LEAST_ACCURACY * make_digits.TEST_IMAGES:
        raise SystemExit(f"{correct} of {make_digits.TEST_IMAGES} are too few")
    make_digits.write(folder / "digits_slim.onnx", content)
    print(f"digits_slim.onnx: {correct}/{make_digits.TEST_IMAGES} correct, {len(content)} bytes")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            print(f"  {name}: {int((module.weight == 0).sum())} of {len(module.weight)} channels are dead")


if __name__ == "__main__":
    main()
