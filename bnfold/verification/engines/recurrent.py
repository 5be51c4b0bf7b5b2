"""LSTM, GRU and RNN in the dtype of their input; onnx 1.23's own know neither directions nor clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]

_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_OTHER = ("activation_alpha", "activation_beta", "input_forget", "layout")


def is_ordinary(op_type: str, attributes: dict[str, Any]) -> bool:
    """Whether gates and axes are the usual ones, the only ones that the classes here know."""
    names = [each.decode().lower() for each in attributes.get("activations", ())]
    usual = _DEFAULTS[op_type] * (len(names) // len(_DEFAULTS[op_type]))
    return names == usual and not any(attributes.get(name) for name in _OTHER)


@dataclass(frozen=True)
class _Way:
    """One direction: R transposed, both biases, the peepholes, and how gates are computed."""

    r: Array
    b: list[Array]
    p: list[Array]
    limit: float
    late: bool

    def tanh(self, x: Array) -> Array:
        return np.asarray(np.tanh(np.clip(x, -self.limit, self.limit)))

    def sigmoid(self, x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-np.clip(x, -self.limit, self.limit))))


class _Recurrent(OpRun):
    gates = 1

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        h: Array | None = None,
        c: Array | None = None,
        p: Array | None = None,
        **given: Any,
    ) -> tuple[Array, ...]:
        """Compute every hidden state, the last one and, of an LSTM, the last cell."""
        ways, size, dtype = len(r), r.shape[2], x.dtype
        b = np.zeros((ways, 2 * self.gates * size), dtype) if b is None else b
        p = np.zeros((ways, 3 * size), dtype) if p is None else p
        lengths = np.full(x.shape[1], len(x)) if lengths is None else lengths
        zeros = np.zeros((ways, x.shape[1], size), dtype)
        h, c = (zeros.copy() if each is None else each.copy() for each in (h, c))
        y = np.zeros((len(x), *zeros.shape), dtype)
        for d in range(ways):
            late, limit = bool(given.get("linear_before_reset")), given.get("clip") or np.inf
            way = _Way(r[d].T, np.split(b[d], 2), np.split(p[d], 3), limit, late)
            backwards = d == 1 or given.get("direction") == "reverse"
            for t in reversed(range(len(x))) if backwards else range(len(x)):
                live = (t < lengths)[:, None]
                new = self.step(x[t] @ w[d].T, h[d], c[d], way)
                h[d], c[d] = (np.where(live, *each) for each in zip(new, (h[d], c[d]), strict=True))
                y[t, d] = np.where(live, h[d], 0)
        return (y, h, c)[: 3 if self.gates == 4 else 2]

    def step(self, x: Array, h: Array, c: Array, way: _Way) -> tuple[Array, Array]:
        """Compute the next hidden state and cell from the last ones, ``x`` being W·x."""
        raise NotImplementedError


class RNN(_Recurrent):
    """Tanh alone."""

    def step(self, x: Array, h: Array, c: Array, way: _Way) -> tuple[Array, Array]:
        """H = tanh(W·x + R·h + b)."""
        return way.tanh(x + h @ way.r + way.b[0] + way.b[1]), c


class GRU(_Recurrent):
    """Update, reset and hidden gate."""

    gates = 3

    def step(self, x: Array, h: Array, c: Array, way: _Way) -> tuple[Array, Array]:
        """The reset gate acts before R or, with ``linear_before_reset``, behind it."""
        (xz, xr, xh), (rz, rr, rh) = np.split(x + way.b[0], 3, axis=1), np.split(way.r, 3, axis=1)
        bz, br, bh = np.split(way.b[1], 3)
        z, reset = way.sigmoid(xz + h @ rz + bz), way.sigmoid(xr + h @ rr + br)
        inner = reset * (h @ rh + bh) if way.late else (reset * h) @ rh + bh
        return (1 - z) * way.tanh(xh + inner) + z * h, c


class LSTM(_Recurrent):
    """Input, output, forget and cell gate, with peepholes."""

    gates = 4

    def step(self, x: Array, h: Array, c: Array, way: _Way) -> tuple[Array, Array]:
        """The output gate looks at the new cell."""
        i, o, f, g = np.split(x + h @ way.r + way.b[0] + way.b[1], 4, axis=1)
        i, f = way.sigmoid(i + way.p[0] * c), way.sigmoid(f + way.p[2] * c)
        c = f * c + i * way.tanh(g)
        return way.sigmoid(o + way.p[1] * c) * np.tanh(c), c
