"""What a comparison found: the worst gap and the bound of every compared tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gap import Gap, is_float


@dataclass(frozen=True)
class Exact:
    """One tensor judged in float64; all in ulp of the tensor's own dtype.

    Attributes:
        error: how far the candidate is from the original in float64.
        reach: how far rounding the weights explains.
        loss: how far the candidate in the runtime's arithmetic is from itself in float64.
        original_loss: the same of the original.
        allowed: the largest acceptable ``loss``.
    """

    error: float
    reach: float
    loss: float
    original_loss: float
    allowed: float

    @property
    def lossy(self) -> bool:
        """Whether the candidate is right, but loses too much to rounding."""
        return self.error <= self.reach and not self.loss <= self.allowed

    @property
    def ok(self) -> bool:
        """Whether the candidate is right and rounds about as well as the original."""
        return self.error <= self.reach and self.loss <= self.allowed


@dataclass
class Findings:
    """What was compared.

    Attributes:
        gaps: the worst gap of every tensor, in graph order.
        bounds: its bound, in ulp.
        samples: on how many inputs.
        worst_on: the sample on which each tensor's gap is worst.
        exact: the judgement in float64 of tensors beyond their bound.
        trouble: why float64 could not be asked, or "".
    """

    gaps: dict[str, Gap] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    worst_on: dict[str, int] = field(default_factory=dict)
    exact: dict[str, Exact] = field(default_factory=dict)
    trouble: str = ""

    @property
    def over(self) -> list[str]:
        """The tensors beyond their bound that float64 did not clear."""
        return [
            name
            for name, each in self.gaps.items()
            if each.ulp > self.bounds[name] and not (name in self.exact and self.exact[name].ok)
        ]

    def add(self, name: str, new: Gap, sample: int) -> None:
        """Take one more comparison of a tensor into account."""
        old = self.gaps.get(name)
        if old is None or new.ulp > old.ulp:
            self.worst_on[name] = sample
        self.gaps[name] = old.worse(new) if old else new

    def measure(self, name: str) -> tuple[float, float]:
        """Difference and bound of one tensor in ulp, in float64 where it was judged in that."""
        exact = self.exact.get(name)
        return (exact.error, exact.reach) if exact else (self.gaps[name].ulp, self.bounds[name])

    @property
    def telling(self) -> bool:
        """Whether any float tensor would have shown an error."""
        return any(is_float(each.dtype) and self.tells(name) for name, each in self.gaps.items())

    def tells(self, name: str) -> bool:
        """Whether an error would have shown in one tensor."""
        return self.gaps[name].tells(self.bounds[name])

    @property
    def nearest(self) -> str:
        """The first tensor beyond its bound, else the one nearest to it."""
        ratio = {name: self.measure(name)[0] / max(self.bounds[name], 1.0) for name in self.gaps}
        culprits = [name for name in self.over if name in self.exact] or self.over
        return culprits[0] if culprits else max(ratio, key=ratio.__getitem__)
