"""The moving statistics of training, in the two conventions that models come with.

============  ====================================  =====================  ================
convention    update                                batch variance         default momentum
============  ====================================  =====================  ================
ONNX, Keras   r ← momentum·r + (1 - momentum)·new   population, m2/m       0.9, 0.99
torch         r ← (1 - momentum)·r + momentum·new   unbiased, m2/(m - 1)   0.1
============  ====================================  =====================  ================

Sources: ONNX BatchNormalization-15; ``keras.layers.BatchNormalization`` (Keras 3);
``torch.nn.BatchNorm2d``. The article takes the unbiased variance too (Algorithm 2, step 10). So
does the fused kernel of tf.keras (tensorflow#55545): ``MovingAverage(0.99, unbiased=True)``.

With batches of m samples a population moving variance settles at (m - 1)/m of the true one;
moments merged over the batches do not depend on how the data were cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from numpy.typing import ArrayLike

from bnfold.errors import InputsError
from bnfold.training.moments import ChannelMoments, Floats, per_channel


class Running(NamedTuple):
    """The moving mean (unit of x) and variance (its square), each of shape (C,)."""

    mean: Floats
    variance: Floats


@dataclass(frozen=True)
class MovingAverage:
    """One rule for updating moving statistics.

    Attributes:
        momentum: the share of the old value that is kept, from 0 to 1, as in ONNX and Keras.
        unbiased: whether a batch enters with the variance m2/(m - 1) instead of m2/m.
    """

    momentum: float = 0.9
    unbiased: bool = False

    @classmethod
    def from_torch(cls, momentum: float = 0.1) -> MovingAverage:
        """Convert torch's rule, whose momentum is the share of the new value."""
        return cls(1 - momentum, unbiased=True)

    @property
    def torch_momentum(self) -> float:
        """The share of the new value, which torch calls momentum."""
        return 1 - self.momentum

    def update(self, running: Running, batch: ChannelMoments) -> Running:
        """Blend a batch into the moving mean and variance; both come back in float64.

        Raises:
            InputsError: the channels differ, or the batch is too small for its variance.
        """
        variance = batch.unbiased_variance if self.unbiased else batch.variance
        return Running(
            self._blend("moving mean", running.mean, batch.mean),
            self._blend("moving variance", running.variance, variance),
        )

    def _blend(self, name: str, old: ArrayLike, new: Floats) -> Floats:
        return self.momentum * per_channel(name, old, new.size) + self.torch_momentum * new


def bessel(count: int) -> float:
    """Return m/(m - 1): what turns the population variance of m samples into the unbiased one.

    Dividing by it converts a running variance of torch to ONNX's, if every batch had m samples per
    channel and the variance it started from is converted too.

    Raises:
        InputsError: fewer than two samples.
    """
    if count < 2:
        raise InputsError(f"{count} samples per channel have no unbiased variance.")
    return count / (count - 1)
