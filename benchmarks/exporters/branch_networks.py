"""Blocks of linear branches, as their papers describe them, in the form in which they are trained.

Every branch ends in a batch norm, and what is added passes one activation. The networks are two or four
sums in a row, without a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_Kernel = int | tuple[int, int]


class _Branches(nn.Module):
    """A sum of convolutions, each with a batch norm of its own, and of a batch norm alone, then ReLU.

    Args:
        inputs: channels.
        outputs: channels; as many as inputs where there is an identity.
        kernels: of each convolution, all centred.
        stride: of all convolutions.
        groups: of all convolutions.
        identity: whether the input itself is a branch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernels: Sequence[_Kernel],
        *,
        stride: int = 1,
        groups: int = 1,
        identity: bool = False,
    ) -> None:
        super().__init__()
        branches = [_normed(inputs, outputs, kernel, stride, groups) for kernel in kernels]
        self.branches = nn.ModuleList([*branches, nn.BatchNorm2d(inputs)] if identity else branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        return torch.relu(sum(others, start=first))


def _normed(inputs: int, outputs: int, kernel: _Kernel, stride: int, groups: int) -> nn.Sequential:
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = tuple(size // 2 for size in sizes)
    layer = nn.Conv2d(inputs, outputs, sizes, stride=stride, padding=pads, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def _rep_vgg(width: int) -> nn.Module:
    """3×3, 1×1 and, where the shape stays, the identity (Ding et al. 2021, RepVGG)."""
    return nn.Sequential(
        _Branches(3, width, (3, 1), stride=2),
        _Branches(width, width, (3, 1), identity=True),
    )


def _mobile_one(width: int) -> nn.Module:
    """Depthwise 3×3 several times, 1×1 and identity; then 1×1 several times (Vasu et al. 2022, MobileOne)."""
    return nn.Sequential(
        _Branches(3, 3, (3, 3, 1), groups=3, stride=2),
        _Branches(3, width, (1, 1)),
        _Branches(width, width, (3, 3, 1), groups=width, identity=True),
        _Branches(width, width, (1, 1), identity=True),
    )


def _rep_ghost(width: int) -> nn.Module:
    """A pointwise layer, then a depthwise one beside a batch norm (Chen et al. 2022, RepGhost)."""
    return nn.Sequential(
        _Branches(3, width, (1,)),
        _Branches(width, width, (3,), groups=width, identity=True),
        _Branches(width, 2 * width, (1,)),
        _Branches(2 * width, 2 * width, (5,), groups=2 * width, identity=True),
    )


def _ac_net(width: int) -> nn.Module:
    """A square kernel with a lying and a standing one over its middle (Ding et al. 2019, ACNet)."""
    return nn.Sequential(
        _Branches(3, width, (3, (1, 3), (3, 1)), stride=2),
        _Branches(width, width, (5, (1, 5), (5, 1))),
    )


SMALL: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "small-rep-vgg": lambda: (_rep_vgg(4), (3, 8, 8)),
    "small-mobile-one": lambda: (_mobile_one(4), (3, 8, 8)),
    "small-rep-ghost": lambda: (_rep_ghost(4), (3, 8, 8)),
    "small-ac-net": lambda: (_ac_net(4), (3, 8, 8)),
}
