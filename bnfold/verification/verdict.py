"""What a verification says: one verdict, with one deviation for every graph output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """The three answers; only EQUAL is a proof."""

    EQUAL = "equal"
    DIFFERENT = "different"
    NOT_VERIFIED = "not verified"


@dataclass(frozen=True)
class Deviation:
    """How far one tensor of the candidate is from the original's, on the worst of the inputs.

    Attributes:
        name: the tensor's name in both graphs.
        dtype: its ONNX-style element type, such as ``float32`` or ``int64``.
        ok: whether it agrees, by the bound or for the reason in ``note``.
        max_abs: largest ``|b - a|``, in the tensor's own unit.
        max_rel: ``max_abs`` divided by the largest magnitude of ``a`` (of the whole tensor).
        ulp: ``max_abs`` in units of the last place of the dtype at the largest magnitude of ``a``;
            infinite where infinities, NaN, shapes or discrete values disagree.
        bound: the largest ``ulp`` that rounding explains (0 for discrete types).
        noise: the original's own difference between optimizations off and on, in the same ulp;
            None where it was not measured.
        note: what else a reader should know, or "".
    """

    name: str
    dtype: str
    ok: bool
    max_abs: float
    max_rel: float
    ulp: float
    bound: float
    noise: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; what is not finite becomes None."""
        return {key: _finite(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """The answer of one verification.

    Attributes:
        status: EQUAL, DIFFERENT or NOT_VERIFIED.
        reason: one sentence that says why.
        outputs: one deviation per graph output, in graph order; empty if nothing was compared.
        runtime: what ran the models, for example "ONNX Runtime 1.32.0, optimizations off".
        seed: seed of the random inputs, None for the user's own.
        samples: how many inputs both models were run on.
        shared: how many inner tensors were compared as well (see the module ``equivalence``).
        worst: the inner tensor nearest to its bound, or the first one beyond it.
        from_truth: by output, how many ulp the original and the candidate are from the original in
            float64, on the first input; empty where nobody asked.
    """

    status: Status
    reason: str
    outputs: tuple[Deviation, ...] = ()
    runtime: str = ""
    seed: int | None = None
    samples: int = 0
    shared: int = 0
    worst: Deviation | None = None
    from_truth: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the models were shown to be equal."""
        return self.status is Status.EQUAL

    def __bool__(self) -> bool:
        return self.ok

    @property
    def summary(self) -> str:
        """The status and its reason on one line."""
        return f"{self.status.value}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, ``status`` as its text."""
        plain = {key: getattr(self, key) for key in self.__dataclass_fields__}
        outputs = [deviation.to_dict() for deviation in self.outputs]
        worst = self.worst.to_dict() if self.worst else None
        plain["from_truth"] = {name: list(each) for name, each in self.from_truth.items()}
        return {**plain, "status": self.status.value, "outputs": outputs, "worst": worst}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        """The inverse of ``to_dict``."""
        fields = dict(plain, status=Status(plain["status"]))
        fields["from_truth"] = {
            name: (each[0], each[1]) for name, each in plain.get("from_truth", {}).items()
        }
        fields["outputs"] = tuple(_deviation(each) for each in plain["outputs"])
        fields["worst"] = _deviation(plain["worst"]) if plain["worst"] else None
        return cls(**fields)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _deviation(plain: Mapping[str, Any]) -> Deviation:
    infinite = {key: math.inf for key in ("max_abs", "max_rel", "ulp", "bound") if plain[key] is None}
    return Deviation(**{**plain, **infinite})
