"""Work grows with a graph, not with its square; shapes are inferred once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold.core.example import Graph
from bnfold.core.graph import view

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import large_graphs

CHAINS = [large_graphs.convolutions, large_graphs.products, large_graphs.nothing]


def calls(proto: onnx.ModelProto) -> int:
    """How many Python functions a fold calls."""
    number = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal number
        number += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        bnfold.fold(proto)
    finally:
        sys.setprofile(before)
    return number


@pytest.mark.parametrize("chain", CHAINS)
def test_twice_the_nodes_are_twice_the_work(chain: Callable[[int], onnx.ModelProto]) -> None:
    """Function calls of a fold of 200, 400 and 800 nodes: each step adds what the nodes cost."""
    calls(chain(20))
    small, middle, large = (calls(chain(nodes)) for nodes in (200, 400, 800))
    assert large - middle < 2.2 * (middle - small)


def in_a_row(nodes: int) -> onnx.ModelProto:
    """So many affine nodes between a Sigmoid and a Relu, which no map passes without becoming a Max."""
    op = Graph(17)
    y = op.Sigmoid(op.input("x", (1, 8, 2, 2)))
    for number in range(nodes):
        y = (op.Mul if number % 2 else op.Add)(y, op.positive(8, 1, 1))
    return op.finish([op.Conv(op.Relu(y), op.weight(4, 8, 1, 1))], 8)


def test_a_row_of_maps_costs_no_more_than_its_square() -> None:
    """Function calls of a fold of 20 and 40 affine nodes in a row: each looks at all the others, once."""
    calls(in_a_row(5))
    small, large = (calls(in_a_row(nodes)) for nodes in (20, 40))
    assert large < 4.5 * small


def test_twice_the_initializers_are_twice_the_work() -> None:
    """Function calls of a fold of 1000, 2000 and 4000 initializers, a hundred to each node."""
    calls(large_graphs.initializers(100))
    small, middle, large = (calls(large_graphs.initializers(count)) for count in (1000, 2000, 4000))
    assert large - middle < 2.2 * (middle - small)


@pytest.mark.parametrize("chain", CHAINS)
def test_shapes_are_inferred_once(
    chain: Callable[[int], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before folding, whatever the number of passes and of folds: no fold changes a shape."""
    seen, infer = [], view.infer
    monkeypatch.setattr(view, "infer", lambda model: seen.append(model) or infer(model))
    bnfold.fold(chain(40))
    assert len(seen) == 1
