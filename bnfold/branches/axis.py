"""Where a window stands along one spatial axis, in terms that do not depend on the input's size.

    output p reads the input at   stride·p + first + step·i     i = 0 … count − 1, zero beyond the border
    and there are                 ⌊(n − 1 + end) / stride⌋ + 1  outputs on n inputs

Two windows of one stride and one ``end`` stand at the same positions on every input, whatever their
kernels, dilations and pads. With those of a convolution: ``first = −pad_begin``, ``step = dilation``,
``end = pad_end − (first + step·(count − 1))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from bnfold.core.graph.shapes import Dim
from bnfold.core.reasons import Reason, require


@dataclass(frozen=True)
class Axis:
    """See the module; all in elements of the input."""

    stride: int = 1
    first: int = 0
    step: int = 1
    count: int = 1
    end: int = 0

    @property
    def last(self) -> int:
        """The offset of the last tap."""
        return self.first + self.step * (self.count - 1)

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and behind the input, as a convolution states them."""
        return -self.first, self.end + self.last

    @property
    def offsets(self) -> list[int]:
        """Of all taps."""
        return [self.first + self.step * tap for tap in range(self.count)]

    @property
    def is_point(self) -> bool:
        """Whether the window is the one element at ``stride·p``, of which none is left out."""
        return self.count == 1 and self.first == 0 and self.end == 0

    def outputs(self, size: int) -> int:
        """The number of positions on an input of this size."""
        return (size - 1 + self.end) // self.stride + 1

    def after(self, inner: Axis) -> Axis:
        """The window of both, one on what the other computes."""
        taps = {a + inner.stride * b for a in inner.offsets for b in self.offsets}
        end = inner.end + inner.stride * self.end
        return _covering(taps, inner.stride * self.stride, end)

    def place(self, offset: int) -> int:
        """Which tap reads at an offset."""
        return (offset - self.first) // self.step


def union(axes: Sequence[Axis], size: Dim) -> Axis:
    """One window that covers several at the same positions.

    Args:
        axes: the windows.
        size: of the input, where it is known.

    Raises:
        Refused: ``WINDOWS_DIFFER`` if they do not, or may not, stand at the same positions.
    """
    strides, ends = {axis.stride for axis in axes}, {axis.end for axis in axes}
    require(len(strides) == 1, Reason.WINDOWS_DIFFER)
    if len(ends) > 1:
        counts = {axis.outputs(size) for axis in axes} if isinstance(size, int) else set()
        require(len(counts) == 1, Reason.WINDOWS_DIFFER)
    taps = {offset for axis in axes for offset in axis.offsets}
    return _covering(taps, axes[0].stride, max(ends))


def _covering(taps: set[int], stride: int, end: int) -> Axis:
    first = min(taps)
    step = gcd(*(tap - first for tap in taps)) or 1
    return Axis(stride, first, step, (max(taps) - first) // step + 1, end)
