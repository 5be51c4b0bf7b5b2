"""Whatever graph is folded, the promises hold. ``benchmarks/fuzz.py`` tries many more of the same."""

from __future__ import annotations

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BATCH, BRANCHES, OPERATORS, random_model, seeds, steps
from truth import differences, feeds_for, graphs

import bnfold
from bnfold.core.rule import registered


def broken_promises(model: onnx.ModelProto, **options: bool) -> list[str]:
    """Fold a model and say in words what is wrong with the result: nothing, if all is well."""
    result = bnfold.fold(model, **options)
    folded, report = result.model, result.report
    broken = differences(model, folded, feeds_for(model, BATCH))
    if list(folded.graph.output) != list(model.graph.output):
        broken.append("the outputs are not what they were")
    if signature(folded) != signature(model):
        broken.append("the inputs are not what they were")
    if count_nodes(folded) > count_nodes(model) + shifts(model, report):
        broken.append("there are more nodes than before")
    if sum(report.nodes_after.values()) != count_nodes(folded):
        broken.append("the report counts other nodes")
    again = bnfold.fold(folded, **options)
    if again.report.changed:
        moved = [(row.name, row.op_type, row.direction) for row in again.report.rows if row.status != "kept"]
        broken.append(f"folding once more moves {moved}")
    if is_valid(model) and not is_valid(folded):
        broken.append("the folded model is invalid")
    return broken


def count_nodes(model: onnx.ModelProto) -> int:
    return sum(len(graph.node) for graph in graphs(model.graph))


def shifts(model: onnx.ModelProto, report: bnfold.Report) -> int:
    """How many nodes may come with removed channels: an Add behind each MatMul, which has no bias."""
    removed = any(layer.removed for layer in report.channels)
    return sum(node.op_type == "MatMul" for graph in graphs(model.graph) for node in graph.node if removed)


def signature(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to give."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def is_valid(model: onnx.ModelProto) -> bool:
    """Whether ONNX's full check passes; it asks for shapes that inference cannot always tell."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=seeds, steps=steps, portable=st.sampled_from([False, False, True]), frozen=st.booleans())
def test_promises_hold(seed: int, steps: int, portable: bool, frozen: bool) -> None:
    """Outputs, and tensors that keep their name, keep their value; no node is added; all is done at once."""
    model = random_model(seed, steps)
    assert not broken_promises(model, portable=portable, freeze_initializers=frozen)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=seeds, steps=st.integers(1, 6))
def test_promises_hold_for_branches(seed: int, steps: int) -> None:
    """Graphs of branches that meet, and of channels that are dead, keep all promises too."""
    assert not broken_promises(random_model(seed, steps, BRANCHES))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=seeds, steps=steps, kept=st.integers(0, 9), branches=st.booleans())
def test_promises_hold_beside_what_leads_nowhere(seed: int, steps: int, kept: int, branches: bool) -> None:
    """Nodes of which nothing is returned break no promise; what they kept from moving moves with the rest."""
    model = random_model(seed, steps, BRANCHES if branches else ())
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.append(outputs[kept % len(outputs)])
    assert not broken_promises(model)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=seeds, steps=steps, apart=st.integers(1, 4), branches=st.booleans())
def test_promises_hold_for_a_selection(seed: int, steps: int, apart: int, branches: bool) -> None:
    """Maps and sums that are to be left alone stay, whatever becomes of the rest."""
    model = random_model(seed, steps, BRANCHES if branches else ())
    able = [
        node.name for node in model.graph.node if node.op_type in ("BatchNormalization", "Mul", "Add", "Sub")
    ]
    folded = bnfold.fold(model, skip=able[::apart]).model
    assert not differences(model, folded, feeds_for(model, BATCH))
    assert set(able[::apart]) <= {node.name for node in folded.graph.node}


def test_every_operator_is_drawn() -> None:
    """The random graphs draw from every operator that has a rule."""
    assert set(registered()) <= set(OPERATORS)
