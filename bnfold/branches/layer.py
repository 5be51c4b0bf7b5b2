"""What a linear layer is as a value: it can be added to another one, follow one, take a map from behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from bnfold.core.affine import Affine, Array
from bnfold.core.graph.shapes import Dim
from bnfold.core.reasons import Reason, require

Values = Callable[[], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """A linear layer with a bias; all weights float64, computed when asked for.

    Attributes:
        outputs: channels of what it computes.
        inputs: channels of what it reads.
        values: computes the weight and the bias.
    """

    outputs: int
    inputs: int
    values: Values

    @cached_property
    def made(self) -> tuple[Array, Array]:
        """The weight and the bias."""
        return self.values()

    @property
    @abstractmethod
    def work(self) -> float:
        """Multiplications for each position of the output."""

    @abstractmethod
    def mapped(self, affine: Affine) -> Self:
        """The layer with a map behind it."""

    @abstractmethod
    def plus(self, other: Self, sizes: Sequence[Dim]) -> Self:
        """The sum of both layers on one input whose spatial sizes are ``sizes``, empty where not known.

        Raises:
            Refused: ``WINDOWS_DIFFER`` if that is no single layer.
        """

    @abstractmethod
    def after(self, inner: Self) -> Self:
        """Both layers as one, this one on what the other computes.

        Raises:
            Refused: if they are no single layer.
        """

    @abstractmethod
    def of(self, affine: Affine) -> Self:
        """A map of this layer's input as a layer of the same kind.

        Raises:
            Refused: if there is none.
        """


def common(a: int, b: int) -> int:
    """The channels of a sum; a single one is added to all.

    Raises:
        Refused: ``WINDOWS_DIFFER`` for other numbers.
    """
    require(a == b or 1 in (a, b), Reason.WINDOWS_DIFFER)
    return max(a, b)
