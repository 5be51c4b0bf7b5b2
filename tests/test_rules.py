"""Every rule is held to one contract, over the examples that stand beside it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from truth import Array, feeds_for, largest, onnx_runtime, outputs_of, truth, widened

import bnfold
from bnfold.core.affine import IDENTITY, Affine
from bnfold.core.example import EXAMPLES, Example
from bnfold.core.graph.view import View
from bnfold.core.reasons import Reason, Refused, silenced
from bnfold.core.rule import Arriving, Becomes, Moved, Rule, registered
from bnfold.core.site import Site
from bnfold.errors import InvalidModelError

DOUBLE = onnx.TensorProto.DOUBLE

MODULES = sorted({entry.module for entry in registered().values()})
FOLDS = [example for example in EXAMPLES if example.reason is None]
REFUSES = [example for example in EXAMPLES if example.reason is not None]

# The sizes of dynamic dimensions in the examples that must keep their outputs.
SIZES = {"N": 2, "T": 5, "L": 9, "H": 6, "W": 7}

# Silencing cannot be expressed here: these are no conditions on a value, there is none.
NOT_SILENCED = {
    # Nothing is known at all: there is no number to go wrong with.
    Reason.NOT_CONSTANT,
    # There is no equation to go wrong with.
    Reason.NONLINEAR,
    # Judgements of what is worth doing: what they refuse is exact.
    Reason.COSTS_A_NODE,
    Reason.DENSE_BIAS,
    Reason.ACTIVATION_TURNS,
    # Exact by ONNX's definition, but not in the kernels that execute it.
    Reason.QUANTIZED_SIGN,
    Reason.QUANTIZED_BIAS,
    # There is no equation at all.
    Reason.INTEGER_ARITHMETIC,
}

# Where silencing shows nothing.
NOT_SEEN = {
    # No constant stands at either input: there is no map to read.
    "read.arithmetic:two_tensors",
    # The evaluator's Softmax is along one axis in versions where the specification's is not.
    "weights.matmul:softmax_of_all_axes",
    # The evaluator's Max broadcasts in versions where the specification's does not.
    "pointwise.relu:no_broadcasting_max",
    "pointwise.clip:no_broadcasting_max",
}

# Where another condition stands behind the one in question, both are silenced.
SECOND_GUARD = {
    # A reciprocal of zero is refused once more where it would be stored.
    "read.arithmetic:division_by_zero": {Reason.OVERFLOWS},
    # A constant that enlarges the tensor varies along an axis the tensor does not have.
    "read.arithmetic:constant_enlarges": {Reason.MIXED_AXES},
    # An unknown size differs from every size.
    "read.arithmetic:constant_may_enlarge": {Reason.BROADCASTS, Reason.MIXED_AXES},
    # A node in training returns more than one output, which is refused by itself.
    "read.batch_norm:training_mode": {Reason.TRAINING_OUTPUTS},
    # What is divided by zero is refused once more where it would be stored.
    "pointwise.clip:nothing_to_push": {Reason.NOT_FINITE, Reason.OVERFLOWS},
    "pointwise.choice:zero_in_front": {Reason.NOT_FINITE, Reason.OVERFLOWS},
    # Infinite maps are refused once more where they would be stored, and NaN equals nothing.
    "read.batch_norm:no_variance": {Reason.NOT_FINITE, Reason.BRANCHES_DIFFER, Reason.OVERFLOWS},
    "read.batch_norm:broken_scale": {Reason.BRANCHES_DIFFER, Reason.OVERFLOWS},
}

# Weights are rounded once, to half a unit of 2⁻²³ in float32; sums over the few terms of an example
# are at most 8 times as large as their terms' largest result.
ROUNDING = 8 * 2.0**-24


def named(examples: list[Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", examples, ids=lambda example: example.name)


def error(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    """The largest difference in relation to its tensor's largest magnitude; infinite in another shape."""
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            return np.inf
        a, b = a.astype(np.float64), b.astype(np.float64)
        different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - b)[different] / (np.abs(a[np.isfinite(a)]).max(initial=0.0) or 1.0)
        worst = max(worst, float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0)))
    return worst


def affine_nodes(model: onnx.ModelProto) -> Counter[str]:
    """What is a map by its looks: a batch norm, a negation, arithmetic with one stored operand."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        operands = sum(name in stored for name in node.input)
        binary = node.op_type in ("Add", "Sub", "Mul", "Div") and operands == 1
        total = node.op_type in ("Sum", "Mean") and operands == len(node.input) - 1
        found[node.op_type] += binary or total or node.op_type in ("BatchNormalization", "Neg")
    return +found


# ---------------------------------------------------------------- folds


@named(FOLDS)
def test_affine_nodes_go(example: Example) -> None:
    """A folds example loses every affine node but those it says it leaves, and gains no node."""
    model = example.model()
    folded = bnfold.fold(model, **example.options).model
    assert affine_nodes(model) != Counter(example.leaves)
    assert affine_nodes(folded) == Counter(example.leaves)
    assert len(folded.graph.node) <= len(model.graph.node)


@named(FOLDS)
def test_outputs_stay(example: Example) -> None:
    """A folds example keeps its outputs to the rounding of its weights, and runs in ONNX Runtime alike."""
    model = example.model()
    folded = bnfold.fold(model, **example.options).model
    feeds = feeds_for(model, SIZES)
    expected = outputs_of(model, truth(model, feeds))
    assert error(expected, outputs_of(folded, truth(folded, feeds))) <= ROUNDING
    if (by_runtime := onnx_runtime(model, feeds)) is not None:
        assert error(expected, by_runtime) <= 4 * ROUNDING, "the truth itself is in doubt"
        after = onnx_runtime(folded, feeds)
        assert after is not None
        assert error(expected, after) <= 4 * ROUNDING


@named(FOLDS)
def test_folded_is_valid(example: Example) -> None:
    """A folded example passes ONNX's full check, and its inputs and outputs are what they were."""
    model = example.model()
    folded = bnfold.fold(model, **example.options).model
    if not any(node.op_type == "GroupNormalization" for node in model.graph.node):
        # onnx 1.23 infers no shape behind it, and then finds that the output has none.
        onnx.checker.check_model(folded, full_check=True)
    assert list(folded.graph.output) == list(model.graph.output)
    fed = feeds_for(model, SIZES)
    signature = [value for value in model.graph.input if value.name in fed]
    assert [value for value in folded.graph.input if value.name in fed] == signature
    assert folded.opset_import == model.opset_import
    assert folded.ir_version == model.ir_version


# ---------------------------------------------------------------- refuses


@named(REFUSES)
def test_refused_is_untouched(example: Example) -> None:
    """A refuses example comes back byte for byte, and the recorded reason is the one it names.

    Rewrites that only replace one node by another, such as a shift that stays in front of padding, are off.
    """
    model = example.model()
    result = bnfold.fold(model, **{"portable": True, **example.options})
    untouched = ir.serde.serialize_model(ir.serde.deserialize_model(model))
    assert result.model.SerializeToString() == untouched.SerializeToString()
    assert not result.report.changed
    assert example.reason in set(reasons_of(result.report)) | set(read_reasons(model))


def reasons_of(report: bnfold.Report) -> Iterator[Reason]:
    for row in report.rows:
        yield from (refusal.reason for refusal in row.refusals)


def read_reasons(model: onnx.ModelProto) -> Iterator[Reason]:
    """Why nodes are no maps: most such nodes are none anyway, and get no row."""
    view = View(ir.serde.deserialize_model(model))
    for node in view.nodes():
        try:
            view.read(node)
        except Refused as refused:
            yield refused.reason


@named([e for e in REFUSES if e.reason not in NOT_SILENCED and e.name not in NOT_SEEN])
def test_conditions_bear_load(example: Example) -> None:
    """Without the condition a refuses example goes wrong: no model, an invalid one, or another output.

    The output must be off by 5 % of its largest value for some size of its dynamic dimensions: what
    is merely unproven is wrong for some input. A graph that grew is as bad.
    """
    model = example.model()
    guards = {example.reason, *SECOND_GUARD.get(example.name, ())}
    try:
        with silenced(*guards), np.errstate(all="ignore"):
            result = bnfold.fold(model, **{"portable": True, **example.options})
    except (ValueError, IndexError, InvalidModelError):
        return
    assert result.report.changed, f"{example.reason} is silenced and {set(reasons_of(result.report))} refuse"
    if len(result.model.graph.node) > len(model.graph.node):
        return
    assert max(error_at(model, result.model, size) for size in (1, 3, 6)) > 0.05


def error_at(model: onnx.ModelProto, folded: onnx.ModelProto, size: int) -> float:
    """How wrong a folded model is with every dynamic dimension of this size, every input overridden."""
    feeds = feeds_for(model, dict.fromkeys([*SIZES, ""], size), overriding=True)
    try:
        expected = outputs_of(model, truth(model, feeds))
    except ValueError:  # not a size the original can have
        return 0.0
    try:
        known = {value.name for value in folded.graph.input}
        fed = {name: feed for name, feed in feeds.items() if name in known}
        return error(expected, outputs_of(folded, truth(folded, fed)))
    except (ValueError, KeyError):
        return np.inf


# ---------------------------------------------------------------- completeness


def examples_of(module: str) -> list[Example]:
    return [example for example in EXAMPLES if example.build.__module__ == module]


@pytest.mark.parametrize("name", MODULES)
def test_operators_have_examples(name: str) -> None:
    """Every operator a file registers is in one of the file's examples that fold."""
    shown = {
        node.op_type
        for example in examples_of(name)
        if example.reason is None
        for node in example.model().graph.node
    }
    assert {op for op, entry in registered().items() if entry.module == name} <= shown


@pytest.mark.parametrize("name", MODULES)
def test_reasons_have_examples(name: str) -> None:
    """Every reason a file names is the reason of one of its examples."""
    tree = ast.parse(inspect.getsource(import_module(name)))
    mentioned = {
        Reason[node.attr]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }
    assert mentioned <= {example.reason for example in examples_of(name)}


@pytest.mark.parametrize("name", MODULES)
def test_conditions_have_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every single ``require`` of a file is what one of the file's refuses examples fails."""
    module = import_module(name)
    if not hasattr(module, "require"):
        return
    failed = spied(module, monkeypatch)
    for example in examples_of(name):
        if example.reason is not None:
            model = example.model()
            list(read_reasons(model))
            bnfold.fold(model, **example.options)
    without = [
        ast.unparse(call)
        for call in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "require"
        if not failed & set(range(call.lineno, (call.end_lineno or call.lineno) + 1))
    ]
    assert not without


def spied(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The lines at which a module's conditions fail from now on."""
    failed: set[int] = set()
    real = module.require

    def spy(condition: bool, reason: Reason) -> None:
        if not condition:
            failed.add(sys._getframe(1).f_lineno)
        real(condition, reason)

    monkeypatch.setattr(module, "require", spy)
    return failed


def test_example_names_are_unique() -> None:
    """No example hides another of the same name."""
    assert not [name for name, times in Counter(e.name for e in EXAMPLES).items() if times > 1]


# ---------------------------------------------------------------- algebra


@dataclass
class Lone:
    """One node of an example in a float64 model of its own.

    Attributes:
        model: the node; its constants are initializers.
        data: what the other inputs hold, by the input's index.
    """

    model: onnx.ModelProto
    data: dict[int, Array]

    @property
    def node(self) -> onnx.NodeProto:
        """The node itself."""
        return self.model.graph.node[0]

    @property
    def rule(self) -> Rule:
        """The rule for its operator."""
        return registered()[self.node.op_type].rule

    @cached_property
    def constants(self) -> dict[int, Array]:
        """The values of its constant inputs."""
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        return {i: stored[name] for i, name in enumerate(self.node.input) if name in stored}

    @cached_property
    def site(self) -> Site:
        """The node as a rule sees it."""
        view = View(ir.serde.deserialize_model(self.model))
        return view.site(next(iter(view.nodes())))

    @cached_property
    def output(self) -> Array:
        """What it computes of the values in the example."""
        return self.run({})

    def run(self, other: Mapping[int, Array]) -> Array:
        """The node's output, some of its inputs having other values."""
        return self.run_all(other)[0]

    def run_all(self, other: Mapping[int, Array]) -> list[Array]:
        """Every output of the node, some of its inputs having other values."""
        feeds = {self.node.input[i]: array for i, array in {**self.data, **other}.items()}
        values = truth(self.model, feeds)
        return [values[name] for name in self.model.graph.node[-1].output]

    def pull(self, out: Affine) -> list[Moved]:
        """The rule's alternatives, none where it refuses."""
        try:
            return self.alternatives(self.rule.pull(self.site, out))
        except Refused:
            return []

    def pull_all(self, outs: Mapping[int, Affine]) -> list[Moved]:
        """The rule's alternatives for maps behind several outputs, none where it refuses."""
        try:
            return self.alternatives(self.rule.pull_all(self.site, Arriving(outs)))
        except Refused:
            return []

    @staticmethod
    def alternatives(pulled: Moved | Iterable[Moved]) -> list[Moved]:
        """What a rule may pull, as a list."""
        return [pulled] if isinstance(pulled, Moved) else list(pulled)

    def push(self, into: Mapping[int, Affine]) -> list[Moved]:
        """What the rule makes of the maps that arrive, nothing where it refuses."""
        try:
            return [self.rule.push(self.site, Arriving(into))]
        except Refused:
            return []

    def changed(self, moved: Moved) -> Lone:
        """The node after what ``moved`` says of its constants and its operator."""
        becomes = moved.becomes or Becomes(self.node.op_type, attributes_of(self.node))
        edits = {i: edit for i, edit in moved.params.items() if i in self.constants or edit.shifts}
        edits |= {i: edit for i, edit in moved.inputs.items() if i in self.constants}
        edited = {i: self._edited(i, edit) for i, edit in edits.items()}
        constants = dict(becomes.constants) or {**self.constants, **edited}
        return lone(becomes, self.node, self.data, constants, self.model)

    def _edited(self, index: int, edit: Affine) -> Array:
        stored = np.asarray(self.constants.get(index, 0.0))
        exact = edit(stored)
        return exact if stored.dtype.kind == "f" else np.rint(exact).astype(stored.dtype)

    @property
    def step(self) -> float:
        """What one unit of an int32 bias is worth: it is rounded by half of that. Otherwise 0."""
        integers = self.node.op_type == "DequantizeLinear" and self.constants.get(0)
        return float(self.constants[1].max()) if getattr(integers, "dtype", None) == np.int32 else 0.0


def lone(
    becomes: Becomes,
    node: onnx.NodeProto,
    data: dict[int, Array],
    constants: dict[int, Array],
    model: onnx.ModelProto,
) -> Lone:
    """A model of one node with these inputs."""
    count = 1 + max((*data, *constants))
    names = [f"input_{i}" if i in data or i in constants else "" for i in range(count)]
    outputs = ["output", *(f"output_{i}" for i in range(1, len(node.output)))]
    made = [onnx.helper.make_node(becomes.op_type, names, outputs, **becomes.attributes)]
    bounds = {} if becomes.then is None else {f"then_{i}": a for i, a in becomes.then.constants.items()}
    if becomes.then is not None:
        made[0].output[0] = "between"
        made.append(onnx.helper.make_node(becomes.then.op_type, ["between", *bounds], outputs))
    graph = onnx.helper.make_graph(
        made,
        "lone",
        [info(names[i], array) for i, array in data.items()],
        [onnx.helper.make_tensor_value_info("output", DOUBLE, None)],
        [numpy_helper.from_array(array, names[i]) for i, array in constants.items()]
        + [numpy_helper.from_array(array, name) for name, array in bounds.items()],
    )
    return Lone(onnx.helper.make_model(graph, opset_imports=model.opset_import), data)


def info(name: str, array: Array) -> onnx.ValueInfoProto:
    """Declare an input that holds such an array."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


@cache
def lone_nodes(example: str) -> list[Lone]:
    """Every node of an example whose rule pulls or pushes, with the values that it sees there."""
    model = widened(next(e for e in EXAMPLES if e.name == example).model())
    values = truth(model, feeds_for(model, SIZES))
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if {"pull", "push"} & verbs_of(node.op_type):
            given = {i: values[name] for i, name in enumerate(node.input) if name}
            constants = {i: array for i, array in given.items() if node.input[i] in stored}
            data = {i: array for i, array in given.items() if i not in constants}
            if all(array.dtype.kind in "iub" for array in given.values()):
                continue  # shapes, which no map ever reaches
            found.append(lone(Becomes(node.op_type, attributes_of(node)), node, data, constants, model))
    return found


def verbs_of(op_type: str) -> set[str]:
    """The verbs that an operator's rule defines."""
    entry = registered().get(op_type)
    verbs = ("read", "pull", "push")
    return {verb for verb in verbs if entry and getattr(type(entry.rule), verb) is not getattr(Rule, verb)}


def maps_for(shape: tuple[int, ...], seed: int = 0) -> list[Affine]:
    """Maps of a tensor: for every axis, for none and for all; whole, scales alone and shifts alone.

    Lists of the same shape correspond, whatever the seed.
    """
    random = np.random.default_rng(seed)
    rank = len(shape)
    per_axis = [(1,) * k + (size,) + (1,) * (rank - k - 1) for k, size in enumerate(shape) if size > 1]
    maps = []
    for sizes in [(), *per_axis, shape]:
        scale, shift = random.normal(size=sizes), random.normal(size=sizes)
        positive = random.uniform(0.5, 2.0, sizes)
        maps += [Affine(scale, shift), Affine.of(scale), Affine.of(positive), Affine.of(1.0, shift)]
    return maps


def arrivals(node: Lone, seed: int = 0) -> list[dict[int, Affine]]:
    """Maps in front of a node: at one of its inputs, and at all of them with the same scale."""
    floats = [i for i, array in node.data.items() if array.dtype == np.float64]
    single = [{i: affine} for i in floats for affine in maps_for(node.data[i].shape, seed)]
    alike = [dict.fromkeys(floats, affine) for affine in maps_for((), seed)]
    return single + alike


def assert_close(got: Array, expected: Array, scale: float, more: float = 0.0) -> None:
    """Assert equality to the rounding of float64."""
    with np.errstate(all="raise"):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * scale + more)


@named(FOLDS)
def test_pull_is_an_equation(example: Example) -> None:
    """Pull: out ∘ op = op′ ∘ rest, for every map that a rule takes behind any node of a folds example."""
    for node in lone_nodes(example.name):
        for out in maps_for(node.output.shape):
            for moved in node.pull(out):
                rest = {i: affine(node.data[i]) for i, affine in moved.inputs.items() if i in node.data}
                after = node.changed(moved)
                got, expected = moved.output(after.run(rest)), out(node.output)
                assert got.shape == expected.shape
                assert_close(got, expected, largest([expected, got]), after.step / 2)


@named(FOLDS)
def test_push_is_an_equation(example: Example) -> None:
    """Push: op ∘ into = rest ∘ op′, for every map that a rule takes in front of any node."""
    for node in lone_nodes(example.name):
        for into in arrivals(node):
            for moved in node.push(into):
                expected = node.run({i: affine(node.data[i]) for i, affine in into.items()})
                got = moved.output(node.changed(moved).output)
                assert got.shape == expected.shape
                assert_close(got, expected, largest([expected, got]))


SEVERAL = [e for e in FOLDS if any(len(node.output) > 1 for node in e.model().graph.node)]


@named(SEVERAL)
def test_every_output_takes_its_map(example: Example) -> None:
    """An operator with several outputs takes a map behind, and hands on a map to, each of them."""
    for node in lone_nodes(example.name):
        outputs = node.run_all({})
        for maps in zip(*(maps_for(output.shape, seed) for seed, output in enumerate(outputs)), strict=False):
            for moved in node.pull_all(dict(enumerate(maps))):
                got = node.changed(moved).run_all(
                    {i: moved.inputs[i](node.data[i]) for i in moved.inputs if i in node.data}
                )
                for affine, output, array in zip(maps, outputs, got, strict=True):
                    assert_close(array, affine(output), largest([array]))
        for into in arrivals(node):
            for moved in node.push(into):
                expected = node.run_all({i: affine(node.data[i]) for i, affine in into.items()})
                got = node.changed(moved).run_all({})
                for index, affine in moved.outputs.items():
                    assert_close(affine(got[index]), expected[index], largest(expected))


@named(FOLDS)
def test_pull_composes(example: Example) -> None:
    """Pulling f and then g is pulling g ∘ f: the same constants, the same rest."""
    for node in lone_nodes(example.name):
        shape = node.output.shape
        for f, g in zip(maps_for(shape, 1), maps_for(shape, 2), strict=True):
            whole = node.pull(g @ f)
            for first in node.pull(f):
                between = node.changed(first)
                if len(between.model.graph.node) > 1:
                    continue  # channels of both signs: the second map would meet two nodes
                for second in between.pull(g @ first.output):
                    after = between.changed(second)
                    rest = {
                        i: second.inputs.get(i, IDENTITY) @ first.inputs.get(i, IDENTITY) for i in node.data
                    }
                    matches = [same(after, rest, second.output, node.changed(m), m) for m in whole]
                    # The alternatives of an Add may be mixed: f's shift to one operand, g's to the other.
                    assert any(matches) or len(whole) > 1


@named(FOLDS)
def test_push_composes(example: Example) -> None:
    """Pushing f and then what stands before it, g, is pushing f ∘ g."""
    for node in lone_nodes(example.name):
        for f, g in zip(arrivals(node, 1), arrivals(node, 2), strict=True):
            whole = node.push({i: f[i] @ g[i] for i in f})
            for first in node.push(f):
                between = node.changed(first)
                if len(between.model.graph.node) > 1:
                    continue
                for second in between.push(g):
                    after = between.changed(second)
                    rest = first.output @ second.output
                    assert same(after, {}, rest, node.changed(whole[0]), whole[0])


def same(node: Lone, inputs: Mapping[int, Affine], output: Affine, other: Lone, moved: Moved) -> bool:
    """Whether two ways lead to the same constants and the same rest."""
    pairs = [(output, moved.output), *((a, moved.inputs.get(i, IDENTITY)) for i, a in inputs.items())]
    if node.node.op_type != other.node.op_type:  # a Relu may come back as a Max with zeros
        return bool(np.allclose(node.output, other.output, rtol=1e-11, atol=1e-11))
    constants = [(node.constants[i], array) for i, array in other.constants.items()]
    # An int32 that is rounded twice may be another one than if it is rounded once.
    whole = [a.dtype == b.dtype and np.abs(a - b).max() <= 1 for a, b in constants if a.dtype == np.int32]
    arrays = [(a, b) for a, b in constants if a.dtype != np.int32]
    arrays += [(a.scale, b.scale) for a, b in pairs] + [(a.shift, b.shift) for a, b in pairs]
    return all(whole) and all(np.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in arrays)


@named(FOLDS)
def test_identity_moves_nothing(example: Example) -> None:
    """The identity leaves every constant as it is, and hands on identities alone."""
    for node in lone_nodes(example.name):
        arriving = dict.fromkeys(node.data, IDENTITY)
        for moved in (*node.pull(IDENTITY), *node.push(arriving)):
            assert moved.output.is_identity
            assert all(affine.is_identity for affine in moved.inputs.values())
            after = node.changed(moved)
            np.testing.assert_allclose(after.output, node.output, rtol=1e-15)


@named(EXAMPLES)
def test_verbs_are_pure(example: Example) -> None:
    """Asking a rule, whatever it answers, changes nothing in the model."""
    model = ir.serde.deserialize_model(example.model())
    before = ir.serde.serialize_model(model).SerializeToString()
    view = View(model)
    for node in view.nodes():
        if node.op_type in registered():
            ask_everything(view, node)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def ask_everything(view: View, node: ir.Node) -> None:
    site, rule = view.site(node), registered()[node.op_type].rule
    with suppress(Refused):
        rule.read(site)
    for out in maps_for(fixed(view, node.outputs[0])):
        with suppress(Refused):
            Lone.alternatives(rule.pull(site, out))
    for index, value in enumerate(node.inputs):
        for into in maps_for(fixed(view, value)) if value is not None else ():
            with suppress(Refused):
                rule.push(site, Arriving({index: into}))


def fixed(view: View, value: ir.Value) -> tuple[int, ...]:
    """The value's shape, with 1 for what is not known: maps do not vary there."""
    return tuple(size if isinstance(size, int) else 1 for size in view.facts.shape(value) or ())


def test_verbs_are_shown() -> None:
    """Every verb that a rule defines takes some map other than the identity in some example."""
    shown = set()
    for example in FOLDS:
        for node in lone_nodes(example.name):
            if any(node.pull(out) for out in maps_for(node.output.shape)):
                shown.add((node.node.op_type, "pull"))
            if any(node.push(into) for into in arrivals(node)):
                shown.add((node.node.op_type, "push"))
    defined = {(op_type, verb) for op_type in registered() for verb in verbs_of(op_type) - {"read"}}
    assert defined <= shown
