"""The networks of the export matrix that are written in torch.

Weights are those of initialization; the parameters of every batch norm are drawn as training leaves them, and
its statistics are what random inputs give.
"""

from __future__ import annotations

from collections.abc import Callable

import branch_networks
import torch
from torch import Tensor, nn

_PASSES = 4
_BATCH = 8


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Build a network, full size or small, in inference mode, and an input of batch 1 for it."""
    torch.manual_seed(seed)
    model, shape = {**NETWORKS, **SMALL}[name]()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.momentum = 0.5
    with torch.no_grad():
        for _ in range(_PASSES):
            model.train()(torch.randn(_BATCH, *shape))
    return model.eval(), torch.randn(1, *shape)


def _mlp(size: int, width: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A batch norm in front of an activation, one behind it, and the shape (batch, points, features) once."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(size * size, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ELU(),
        nn.BatchNorm1d(width),
        nn.Linear(width, 10),
    ), (1, size, size)


def _conv_norm(inputs: int, outputs: int, kernel: int, **options: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU()]


def _cnn(size: int, width: int) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        *_conv_norm(3, width, 3, padding=1),
        *_conv_norm(width, width, 3, padding=1, groups=width),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3),
        nn.Hardswish(),
        nn.BatchNorm2d(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    ), (3, size, size)


class _UNet(nn.Module):
    """Three scales with skip connections; the batch norm of a skip stands behind the Concat."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(*_conv_norm(a, b, 3, padding=1), *_conv_norm(b, b, 3, padding=1))
            for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in (2 * width, width))
        self.joined = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(2 * n), *_conv_norm(2 * n, n, 3, padding=0))
            for n in (2 * width, width)
        )
        self.pad = nn.ZeroPad2d(1)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down[0](image)
        second = self.down[1](nn.functional.max_pool2d(first, 2))
        y = self.down[2](nn.functional.max_pool2d(second, 2))
        for up, joined, skip in zip(self.up, self.joined, (second, first), strict=True):
            y = self.pad(joined(torch.cat([up(y), skip], dim=1)))
        return self.head(y)


def _dcgan(width: int, noise: int) -> tuple[nn.Module, tuple[int, ...]]:
    def block(inputs: int, outputs: int, **options: int) -> list[nn.Module]:
        up = nn.ConvTranspose2d(inputs, outputs, 4, bias=False, **options)
        return [up, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(noise, 4 * width),
        *block(4 * width, 2 * width, stride=2, padding=1),
        *block(2 * width, width, stride=2, padding=1),
        nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    ), (noise, 1, 1)


class _PointNet(nn.Module):
    """The input transform, shared layers over points, and a global maximum (Qi et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform = self._features(3, width)
        self.matrix = nn.Sequential(
            nn.Linear(4 * width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 9)
        )
        self.features = self._features(3, width)
        self.head = nn.Sequential(
            nn.Linear(4 * width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(width, 10),
        )

    @staticmethod
    def _features(inputs: int, width: int) -> nn.Sequential:
        sizes = [(inputs, width), (width, 2 * width), (2 * width, 4 * width)]
        layers = [[nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()] for a, b in sizes]
        return nn.Sequential(*(layer for each in layers for layer in each))

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(points).amax(dim=2)).reshape(-1, 3, 3) + torch.eye(3)
        aligned = torch.bmm(points.transpose(1, 2), matrix).transpose(1, 2)
        return self.head(self.features(aligned).amax(dim=2))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "torch-mlp": lambda: _mlp(28, 256),
    "torch-cnn": lambda: _cnn(32, 32),
    "unet": lambda: (_UNet(16), (3, 96, 96)),
    "dcgan": lambda: _dcgan(64, 100),
    "pointnet": lambda: (_PointNet(64), (3, 1024)),
}

# The same forms at a few kB each, and blocks of branches, of which benchmarks/branches.py has the full size.
SMALL: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "small-torch-mlp": lambda: _mlp(4, 6),
    "small-torch-cnn": lambda: _cnn(10, 4),
    "small-unet": lambda: (_UNet(2), (3, 8, 8)),
    "small-dcgan": lambda: _dcgan(2, 4),
    "small-pointnet": lambda: (_PointNet(2), (3, 12)),
    **branch_networks.SMALL,
}
