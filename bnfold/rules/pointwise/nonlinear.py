"""Operators that no map passes: f(s·x + t) is no map of f(x), nor s·f(x) + t an f of some map of x.

They are refused by name, so that a batch norm left beside one is known to be left for good.
"""

from __future__ import annotations

from bnfold.core.example import Graph, Input, Outputs, refuses
from bnfold.core.reasons import Reason
from bnfold.core.rule import nonlinear

# Saturating, exponential and trigonometric functions, powers, roots, and what rounds.
nonlinear("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf")
nonlinear("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Mod", "Pow", "Reciprocal")
nonlinear("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt")
nonlinear("SwiGLU", "Swish", "Tan", "Tanh", "ThresholdedRelu")

# Functions of several elements at once: normalizations by the data, norms, products, logarithms of sums.
nonlinear("CumProd", "Det", "GlobalLpPool", "Hardmax", "LRN", "LogSoftmax", "LpNormalization", "LpPool")
nonlinear("MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
nonlinear("ReduceProd", "ReduceSumSquare", "Softmax")

# Comparisons, and what counts or orders elements.
nonlinear("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual")
nonlinear("Multinomial", "NonMaxSuppression", "NonZero", "TopK", "Unique")


@refuses(Reason.NONLINEAR)
def between_two_layers(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    y = op.batch_norm(op.Softplus(op.Conv(x, op.weight(4, 3, 3, 3))))
    return op.Sigmoid(y)


@refuses(Reason.NONLINEAR)
def in_front(op: Graph, x: Input = (1, 3, 6, 6)) -> Outputs:
    return op.Conv(op.HardSwish(op.batch_norm(x)), op.weight(4, 3, 3, 3))
