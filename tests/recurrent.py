"""LSTM, GRU and RNN by their definition; onnx 1.23's own know neither directions nor clipping."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun


def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + np.exp(-x))


class _Recurrent(OpRun):
    """One direction after another, one step after another."""

    gates = 1

    def _run(self, x, w, r, b=None, lengths=None, h0=None, c0=None, p=None, **given):  # type: ignore[no-untyped-def]
        """Return every hidden state, the last one and, of an LSTM, the last cell."""
        self.given = given
        if given.get("layout"):
            x, h0, c0 = (None if part is None else part.swapaxes(0, 1) for part in (x, h0, c0))
        steps, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
        lengths = np.full(batch, steps) if lengths is None else lengths
        ways = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[given.get("direction") or "forward"]
        y = np.zeros((steps, len(ways), batch, hidden))
        h, c = np.zeros((2, len(ways), batch, hidden))
        for d, backwards in enumerate(ways):
            bias = np.zeros(2 * self.gates * hidden) if b is None else b[d]
            peepholes = np.zeros(3 * hidden) if p is None else p[d]
            for n in range(batch):
                state = [np.zeros(hidden) if s is None else s[d, n] for s in (h0, c0)]
                order = range(lengths[n])
                for t in reversed(order) if backwards else order:
                    state = self.step(x[t, n], state, w[d], r[d], np.split(bias, 2), peepholes)
                    y[t, d, n] = state[0]
                h[d, n], c[d, n] = state
        if given.get("layout"):
            y, h, c = y.transpose(2, 0, 1, 3), h.swapaxes(0, 1), c.swapaxes(0, 1)
        return (y, h, c)[: 3 if self.gates == 4 else 2]

    def clipped(self, x):  # type: ignore[no-untyped-def]
        """What an activation is given."""
        limit = self.given.get("clip")
        return np.clip(x, -limit, limit) if limit else x

    def step(self, x, state, w, r, b, p):  # type: ignore[no-untyped-def]
        """The next hidden state and cell."""
        raise NotImplementedError


class RNN(_Recurrent):
    """Tanh alone."""

    def step(self, x, state, w, r, b, p):  # type: ignore[no-untyped-def]
        """Ht = f(Xt*Wi^T + Ht-1*Ri^T + Wbi + Rbi)."""
        return [np.tanh(self.clipped(w @ x + r @ state[0] + b[0] + b[1])), state[1]]


class GRU(_Recurrent):
    """Update, reset and hidden gate."""

    gates = 3

    def step(self, x, state, w, r, b, p):  # type: ignore[no-untyped-def]
        """The reset gate acts before the recurrent weights or, with linear_before_reset, behind them."""
        h = state[0]
        (wz, wr, wh), (rz, rr, rh) = np.split(w @ x + b[0], 3), np.split(r, 3)
        bz, br, bh = np.split(b[1], 3)
        z = _sigmoid(self.clipped(wz + rz @ h + bz))
        reset = _sigmoid(self.clipped(wr + rr @ h + br))
        late = self.given.get("linear_before_reset")
        inner = reset * (rh @ h + bh) if late else rh @ (reset * h) + bh
        return [(1 - z) * np.tanh(self.clipped(wh + inner)) + z * h, state[1]]


class LSTM(_Recurrent):
    """Input, output, forget and cell gate, with peepholes."""

    gates = 4

    def step(self, x, state, w, r, b, p):  # type: ignore[no-untyped-def]
        """The output gate looks at the new cell."""
        h, c = state
        i, o, f, g = np.split(w @ x + r @ h + b[0] + b[1], 4)
        pi, po, pf = np.split(p, 3)
        i, f = (_sigmoid(self.clipped(part)) for part in (i + pi * c, f + pf * c))
        c = f * c + i * np.tanh(self.clipped(g))
        return [_sigmoid(self.clipped(o + po * c)) * np.tanh(c), c]
