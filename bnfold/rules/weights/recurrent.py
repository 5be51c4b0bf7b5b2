"""LSTM, GRU and RNN absorb a map in front of their input sequence, whatever its direction and layout.

    push    W·(s·x + t) + b  =  (W·s)·x + (b + W·t)       for every gate, in every direction

W is directions × gates·hidden × input, b the first half of B; the recurrent weights R, their bias (the
second half) and the initial states stay. Gates are sums of W·x + b and the rest also where they are
clipped or a GRU applies its reset gate behind R (linear_before_reset). Steps beyond a sequence's length
are not read. Behind the node there is no equation: activations stand between the weights and Y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.core.affine import Affine
from bnfold.core.example import Graph, Input, Outputs, folds, refuses
from bnfold.core.reasons import Reason, Refused
from bnfold.core.rule import Arriving, Moved, Rule, rule
from bnfold.core.site import Site

_WEIGHT, _BIAS = 1, 3


@rule("LSTM", "RNN", versions={1, 7, 14, 22})
@rule("GRU", versions={1, 3, 7, 14, 22})
class Recurrent(Rule):
    """See the module."""

    otherwise = Reason.NONLINEAR

    def pull_all(self, site: Site, outs: Arriving) -> Moved:
        raise Refused(self.otherwise)

    def push(self, node: Site, into: Arriving) -> Moved:
        affine, weight = into.only(0), node.const(_WEIGHT)
        scale, shift = affine.along(2, weight.shape[2])
        edits = {_WEIGHT: Affine.of(scale.reshape(1, 1, -1))}
        if np.any(shift):
            total = weight.exact @ shift
            edits[_BIAS] = Affine.of(1.0, np.concatenate([total, np.zeros_like(total)], axis=1))
        return Moved(edits)


def _layer(op: Graph, op_type: str, x: str, directions: int = 1, bias: bool = True, **more: Any) -> str:
    """A layer with two inputs and three hidden units; its last hidden states, as rows."""
    rows = {"RNN": 1, "GRU": 3, "LSTM": 4}[op_type] * 3
    weights = [op.weight(directions, rows, 2), op.weight(directions, rows, 3)]
    weights += [op.weight(directions, 2 * rows)] if bias else []
    return str(op.node(op_type, x, *weights, outputs=2, hidden_size=3, **more)[1])


@folds
def lstm(op: Graph, x: Input = (5, "N", 2)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(2)), op.weight(2))
    return _layer(op, "LSTM", y, 2, direction="bidirectional", clip=0.5)


@folds
def gru(op: Graph, x: Input = (5, "N", 2)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(2)), op.weight(2))
    return _layer(op, "GRU", y, direction="reverse", linear_before_reset=1), _layer(op, "GRU", y)


@folds
def rnn_without_bias(op: Graph, x: Input = (5, "N", 2)) -> Outputs:
    return _layer(op, "RNN", op.Add(op.Mul(x, op.weight(2)), op.weight(2)), bias=False)


@folds
def batch_norm_over_features(op: Graph, x: Input = ("N", 2, 5)) -> Outputs:
    return _layer(op, "LSTM", op.Transpose(op.batch_norm(x), perm=[2, 0, 1]))


@folds
def lengths_and_initial_state(op: Graph, x: Input = (5, 2, 2), h: Input = (1, 2, 3)) -> Outputs:
    y = op.Add(op.Mul(x, op.weight(2)), op.weight(2))
    weights = [op.weight(1, 12, 2), op.weight(1, 12, 3), op.weight(1, 24)]
    more = [op.const([5, 3], dtype=6), h, op.weight(1, 2, 3), op.weight(1, 9)]
    return op.LSTM(y, *weights, *more, hidden_size=3, outputs=3)


@refuses(Reason.NONLINEAR)
def behind_the_states(op: Graph, x: Input = (5, 1, 2)) -> Outputs:
    return op.Mul(_layer(op, "LSTM", x), op.weight(3))


@refuses(Reason.MIXED_AXES)
def along_the_steps(op: Graph, x: Input = (5, 1, 2)) -> Outputs:
    return _layer(op, "LSTM", op.Mul(x, op.weight(5, 1, 1)))


@refuses(Reason.OTHER_OPERAND)
def into_the_state(op: Graph, x: Input = (5, 1, 2), h: Input = (1, 1, 3)) -> Outputs:
    state = op.Mul(h, op.weight(3))
    return op.RNN(x, op.weight(1, 3, 2), op.weight(1, 3, 3), "", "", state, hidden_size=3, outputs=2)


@refuses(Reason.NOT_CONSTANT)
def computed_weight(op: Graph, x: Input = (5, 1, 2), w: Input = (1, 3, 2)) -> Outputs:
    return op.RNN(op.Mul(x, op.weight(2)), w, op.weight(1, 3, 3), hidden_size=3, outputs=2)
