"""Every exporter's form of a network folds completely: the small exports in models/exporters.

``benchmarks/exporters`` makes them, and the same matrix at full size.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from truth import Array, largest, onnx_runtime, outputs_of, truth

import bnfold
from bnfold.core.example import Graph

EXPORTS = sorted((Path(__file__).parent.parent / "models" / "exporters").glob("*.onnx"))

# Upsampling that computes a shape at run time, behind which not even the rank is known.
STAYS = {"anysize.tf2onnx-raw": 1}

# The bias of a matrix product is in its place.
_IN_PLACE = {bnfold.Reason.DENSE_BIAS}

# Of the last Relu's eight channels: one batch norm costs less than what the Relu would become.
BATCH_NORMS = {"preactivation.keras-tf": 1, "preactivation.tf2onnx": 1}


def feeds(model: ModelProto, batch: int, side: int) -> dict[str, Array]:
    """Random images for every input, open dimensions filled in."""
    random, made = np.random.default_rng(0), {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        sizes = [dim.dim_value or (batch if axis == 0 else side) for axis, dim in enumerate(dims)]
        made[value.name] = random.uniform(0.0, 4.0, sizes).astype(np.float32)
    return made


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_every_form_folds(path: Path) -> None:
    """No map between layers is left that is worth moving, and the outputs stay, whatever the sizes are."""
    model = onnx.load(path)
    result = bnfold.fold(model)
    left = [row for row in result.report.rows if row.status == "kept"]
    left = [row for row in left if not _IN_PLACE & {refusal.reason for refusal in row.refusals}]
    assert len(left) == STAYS.get(path.stem, 0), [(row.name, row.refusals) for row in left]
    norms = {row.leaves for row in result.report.rows if row.status == "merged"}
    assert len(norms) == BATCH_NORMS.get(path.stem, 0)
    kinds = Counter(node.op_type for node in result.model.graph.node)
    assert kinds["BatchNormalization"] == len(norms)
    for batch, side in ((1, 8), (3, 14)):
        given = feeds(model, batch, side)
        expected = outputs_of(model, truth(model, given))
        got = outputs_of(result.model, truth(result.model, given))
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * largest([a]))
        assert onnx_runtime(result.model, given) is not None


def test_every_exporter_is_there() -> None:
    """The committed exports cover all forms."""
    forms = {path.suffixes[0] for path in EXPORTS}
    keras = {".keras-torch", ".keras-torch-static", ".keras-tf", ".tf2onnx", ".tf2onnx-raw"}
    assert forms == keras | {".dynamo", ".dynamo-raw", ".torchscript"}


# ---------------------------------------------------------------- what stood around a map


def counted(op: Graph, *outputs: str) -> tuple[ModelProto, Counter[str]]:
    """The folded model, and its operators."""
    folded = bnfold.fold(op.finish(list(outputs), 8)).model
    onnx.checker.check_model(folded, full_check=True)
    return folded, Counter(node.op_type for node in folded.graph.node)


def test_noops_around_a_map_go() -> None:
    """Casts, identities and transpositions there and back vanish with the map that they stood around."""
    op = Graph(17)
    y = op.Cast(op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3)), to=1)
    y = op.Cast(op.Transpose(y, perm=[0, 2, 3, 1]), to=1)
    y = op.Identity(op.Add(op.Cast(op.Mul(y, op.weight(4)), to=1), op.weight(4)))
    y = op.Cast(op.Transpose(op.Cast(y, to=1), perm=[0, 3, 1, 2]), to=1)
    _, found = counted(op, op.Sigmoid(y))
    assert found == {"Conv": 1, "Sigmoid": 1}


def test_other_noops_stay() -> None:
    """What stands anywhere else is not bnfold's to simplify."""
    op = Graph(17)
    x = op.Identity(op.Cast(op.input("x", (1, 3, 6, 6)), to=1))
    y = op.Transpose(op.Transpose(op.batch_norm(op.Conv(x, op.weight(4, 3, 3, 3)))))
    z = op.Identity(op.Sigmoid(y))
    _, found = counted(op, op.Cast(z, to=1))
    assert found == {"Identity": 2, "Cast": 2, "Conv": 1, "Transpose": 2, "Sigmoid": 1}


@pytest.mark.parametrize(
    ("there", "back", "undone"),
    [
        (None, None, True),
        ([0, 2, 3, 1], [0, 3, 1, 2], True),
        (None, [3, 2, 0, 1], False),
        ([3, 2, 0, 1], None, False),
    ],
)
def test_transpositions_that_undo_each_other(
    there: list[int] | None, back: list[int] | None, undone: bool
) -> None:
    """Without ``perm`` all axes turn around; only what comes back to the first order goes."""
    op = Graph(17)
    first, second = ({} if perm is None else {"perm": perm} for perm in (there, back))
    y = op.Transpose(op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(3, 3, 1, 1)), **first)
    y = op.Transpose(op.Mul(op.Mul(y, op.const(2.0)), op.const(0.5)), **second)
    _, found = counted(op, op.Sigmoid(y))
    assert found == {"Conv": 1, "Sigmoid": 1, **({} if undone else {"Transpose": 2})}


def test_noops_with_other_readers_stay() -> None:
    """A cast whose result something else reads did not only stand around the map."""
    op = Graph(17)
    y = op.Cast(op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3)), to=1)
    below = op.Conv(op.batch_norm(y), op.weight(2, 4, 1, 1))
    _, found = counted(op, below, op.Sigmoid(y))
    assert found == {"Cast": 1, "Conv": 2, "Sigmoid": 1}


def test_an_output_keeps_its_name() -> None:
    """A no-op that makes an output of the graph hands its name on, or stays where that is promised twice."""
    op = Graph(17)
    y = op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3))
    z = op.Identity(op.batch_norm(y))
    folded, found = counted(op, z)
    assert found == {"Conv": 1}
    assert [value.name for value in folded.graph.output] == [z]

    op = Graph(17)
    y = op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3))
    z = op.batch_norm(y)
    folded, found = counted(op, z, op.Identity(z))
    assert found == {"Conv": 1, "Identity": 1}
    assert folded.graph.output[0].name == z


def test_absent_inputs_are_left_out() -> None:
    """An empty name at the end of a node's inputs says nothing, and keeps ONNX Runtime from fusing a Pad."""
    op = Graph(17)
    y = op.Pad(
        op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3)), op.ints(0, 0, 1, 1, 0, 0, 1, 1), ""
    )
    y = op.Conv(y, op.weight(4, 4, 3, 3), "")
    folded, found = counted(op, op.batch_norm(y))
    assert found == {"Conv": 2, "Pad": 1}
    assert all(all(node.input) for node in folded.graph.node)


def test_absent_inputs_of_a_loop_stay() -> None:
    """A Loop has to name its first two inputs, though either may be absent."""
    op = Graph(17)
    y = op.batch_norm(op.Conv(op.input("x", (1, 3, 6, 6)), op.weight(4, 3, 3, 3)))
    values = [helper.make_tensor_value_info("step", TensorProto.INT64, [])]
    values += [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still_on")]
    nodes = [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Relu", [y], ["scanned"])]
    scanned = helper.make_tensor_value_info("scanned", TensorProto.FLOAT, None)
    body = helper.make_graph(nodes, "body", values[:2], [values[2], scanned])
    folded, found = counted(op, op.Loop(op.const(3, TensorProto.INT64), "", body=body))
    assert found == {"Conv": 1, "Loop": 1}
    assert list(folded.graph.node[-1].input)[1:] == [""]
    onnx.checker.check_model(folded)


def test_page_shows_its_data() -> None:
    """``docs/exporters.md`` is what ``benchmarks/exporters/page.py`` makes of results.json."""
    root = EXPORTS[0].parents[2]
    folder = root / "benchmarks" / "exporters"
    page = runpy.run_path(str(folder / "page.py"))["page"]
    made = page(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    assert (root / "docs" / "exporters.md").read_text(encoding="utf-8") == made
