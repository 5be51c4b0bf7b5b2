"""How far rounding and wrong folds are from the bound of ``bnfold.verify``, for docs/verification.md.

Every Conv or Gemm with a BatchNormalization behind it is folded by hand, in float64 with one rounding,
correctly or in one way wrong, so that nothing here depends on bnfold's own folding.

    python benchmarks/verification_bound.py

It takes single operators, synthetic chains, the light zoo of the onnx package (as it is, where all weights
of a tensor are equal, and with random weights), and the models in the folder of the environment variable
BNFOLD_MODELS. All ratios are in units of the bound: below 1 passes, above 1 does not. 4 minutes on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.verification.compare.findings import Findings
from bnfold.verification.compare.gap import gap, rounding_bound
from bnfold.verification.compare.graph import read_model
from bnfold.verification.compare.models import Models
from bnfold.verification.compare.pieces import pieces, whole
from bnfold.verification.engines import CannotRunError, OnnxRuntime
from bnfold.verification.equivalence import Job, load_models, optimization_noise

ZOO = Path(onnx.__file__).parent / "backend/test/data/light"
SABOTAGES = ("epsilon", "axis", "bias", "channel")
FLOAT = TensorProto.FLOAT
Constants = dict[str, np.ndarray]


def main() -> None:
    """Print the four tables."""
    operators()
    chains()
    table = [case for case in (*zoo(), *chosen()) if case.pairs]
    correct(table)
    wrong(table)


# --------------------------------------------------------------------------------------- single operators


def operators() -> None:
    """One sum of K products, computed with weights in two scales: what rounding does, against the bound."""
    print("\n| K | MatMul, one sign | MatMul, both signs | Conv, one sign | Conv, both signs | bound |")
    print("|---|---|---|---|---|---|")
    for terms in (9, 27, 63, 126, 252, 504, 1008, 4608):
        cells = [rescaling(op, terms, low) for op in ("MatMul", "Conv") for low in (0.0, -0.5)]
        bound = rounding_bound(np.dtype(np.float32), [terms])
        print(f"| {terms} | {' | '.join(f'{each:.1f}' for each in cells)} | {bound:.1f} |")


def rescaling(op: str, terms: int, low: float) -> float:
    """The largest difference in ulp, in four trials, of an operator from itself with each column rescaled."""
    worst = 0.0
    for seed in range(4):
        random = np.random.default_rng(seed)
        weight = (random.random((terms, 64)) + low) * random.uniform(0.5, 2, 64)
        scale = random.uniform(0.5, 2, 64)
        x = random.random((512, terms), dtype=np.float32)
        if op == "Conv":
            x = np.ascontiguousarray(x.T).reshape(1, terms, 16, 32)
        a, b = (one_operator(op, x, each) for each in (weight, weight * scale))
        worst = max(worst, gap(a, (b / scale.reshape(-1, *[1] * (b.ndim - 2))).astype(np.float32)).ulp)
    return worst


def one_operator(op: str, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Run one MatMul or 1×1 Conv; the result in float64."""
    kernel = weight.T[..., None, None] if op == "Conv" else weight
    nodes = [helper.make_node(op, ["x", "w"], ["y"])]
    model = build(nodes, {"x": x.shape}, ["y"], {"w": kernel.astype(np.float32)})
    session = OnnxRuntime(lambda _: None).open("original", model, Path())
    return session.run(["y"], {"x": x})["y"]


# ------------------------------------------------------------------------------------------------- chains


def chains() -> None:
    """Chains of Conv, BatchNormalization and Relu, end to end: rounding and a forgotten epsilon."""
    print("\n| layers | channels | rounding, ulp | epsilon in all layers | in one layer | bound, ulp |")
    print("|---|---|---|---|---|---|")
    for depth, channels in ((1, 16), (5, 16), (10, 16), (10, 64), (20, 16), (50, 16)):
        bound = rounding_bound(np.dtype(np.float32), [9 * channels] * depth, whole=True)
        cases = [chain(depth, channels, seed) for seed in range(6)]
        cells = []
        for sabotage, only in (("", None), ("epsilon", None), ("epsilon", depth // 2)):
            found = [end_to_end(*each, sabotage, only) for each in cases]
            cells.append(f"{min(found):.0f} to {max(found):.0f}")
        print(f"| {depth} | {channels} | {' | '.join(cells)} | {bound:.0f} |")


def chain(depth: int, channels: int, seed: int) -> tuple[ModelProto, Constants]:
    """Normalized layers with random weights."""
    nodes, constants, read = [], {}, "x"
    for index in range(depth):
        names = [f"{part}{index}" for part in ("w", "b", "scale", "beta", "mean", "var")]
        constants |= dict.fromkeys(names, np.zeros(channels, np.float32))
        constants[names[0]] = np.zeros((channels, channels if index else 3, 3, 3), np.float32)
        nodes.append(helper.make_node("Conv", [read, *names[:2]], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"c{index}", *names[2:]], [f"n{index}"]))
        nodes.append(helper.make_node("Relu", [f"n{index}"], [f"r{index}"]))
        read = f"r{index}"
    model = build(nodes[:-1], {"x": (2, 3, 10, 10)}, [f"n{depth - 1}"], {})
    randomize(model, constants, seed)
    return model, constants


def end_to_end(model: ModelProto, constants: Constants, sabotage: str, only: int | None) -> float:
    """The difference in ulp between the output of a model and that of its fold."""
    with TemporaryDirectory() as folder:
        found = whole(opened(model, constants, sabotage, only, Path(folder)))
    return max(each.ulp for each in found.gaps.values())


# ------------------------------------------------------------------------------------------------- models


@dataclass
class Case:
    """A real net with its constants and the pairs of operators that can be folded."""

    name: str
    model: ModelProto
    constants: Constants
    pairs: list[tuple[NodeProto, NodeProto]]


def zoo() -> Iterator[Case]:
    """The light zoo with its own weights and with random ones."""
    for name in ("resnet50", "densenet121", "inception_v2", "shufflenet"):
        for weights in ("equal", "random"):
            model, constants = dense(onnx.load(ZOO / f"light_{name}.onnx"))
            if weights == "random":
                randomize(model, constants, seed=0)
            yield Case(f"light {name}, {weights} weights", model, constants, foldable(model, constants))


def chosen() -> Iterator[Case]:
    """The models of the folder in BNFOLD_MODELS."""
    folder = os.environ.get("BNFOLD_MODELS")
    for path in sorted(Path(folder).glob("*.onnx")) if folder else ():
        model, constants = dense(onnx.load(path))
        yield Case(path.stem, model, constants, foldable(model, constants))


def correct(cases: list[Case]) -> None:
    """Correct folds: end to end, what optimizations change and what the fold changes; then piece by piece."""
    print("\n| model | layers | on/off | fold | pieces | nearest | in float64 | rounding of weights | loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        with TemporaryDirectory() as folder:
            try:
                models = opened(case.model, case.constants, "", None, Path(folder))
            except CannotRunError as error:
                print(f"| {case.name} | {len(case.pairs)} | {error} |")
                continue
            found, noise = whole(models), optimization_noise(models)
            ratios = (
                [noise[name] / found.bounds[name] for name in noise],
                [ratio(found, name) for name in found.gaps],
            )
            cells = [f"{max(each):.2f}" for each in ratios]
            cells += summary(pieces(models, shared=True))
            print(f"| {case.name} | {len(case.pairs)} | {' | '.join(cells)} |", flush=True)


def summary(found: Findings | None) -> list[str]:
    """Number of tensors, nearest to the bound, how many were judged in float64, and the worst of those."""
    if found is None:
        return ["0"]
    nearest = max((ratio(found, name) for name in found.gaps if name not in found.exact), default=0.0)
    exact = found.exact.values()
    error = max((each.error / each.reach for each in exact), default=0.0)
    loss = max((each.loss / each.allowed for each in exact), default=0.0)
    verdict = "" if not found.over else " (different)"
    return [f"{len(found.gaps)}", f"{nearest:.2f}", f"{len(exact)}{verdict}", f"{error:.2f}", f"{loss:.2f}"]


def wrong(cases: list[Case]) -> None:
    """One layer in the middle folded wrongly: ratio end to end, and of the first wrong piece."""
    print(f"\n| model | {' | '.join(f'{each}, outputs | {each}, pieces' for each in SABOTAGES)} |")
    print(f"|---|{'---|' * 2 * len(SABOTAGES)}")
    for case in cases:
        try:
            cells = [cell for sabotage in SABOTAGES for cell in wrong_layer(case, sabotage)]
        except CannotRunError:
            continue
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


def wrong_layer(case: Case, sabotage: str) -> list[str]:
    """The ratio of the worst output and of the piece that decides; dashes if the sabotage changes nothing."""
    layer = len(case.pairs) // 2
    good, bad = (folded(case.model, case.constants, each, layer) for each in ("", sabotage))
    if good.SerializeToString(deterministic=True) == bad.SerializeToString(deterministic=True):
        return ["–", "–"]
    with TemporaryDirectory() as folder:
        models = opened(case.model, case.constants, sabotage, layer, Path(folder))
        found, inner = whole(models), pieces(models, shared=True)
    ulp, bound = inner.measure(inner.nearest) if inner else (0.0, 1.0)
    return [f"{max(ratio(found, name) for name in found.gaps):.3g}", f"{ulp / bound:.3g}"]


def ratio(found: Findings, name: str) -> float:
    """The gap of one tensor in units of its bound; of a discrete one infinite or 0."""
    return found.gaps[name].ulp / (found.bounds[name] or 1.0)


# ---------------------------------------------------------------------------------------- folding by hand


def opened(model: ModelProto, constants: Constants, sabotage: str, only: int | None, folder: Path) -> Models:
    """Original and fold, written to a folder and loaded with random inputs."""
    paths = folder / "a.onnx", folder / "b.onnx"
    onnx.save(finished(model, constants), paths[0])
    onnx.save(folded(model, constants, sabotage, only), paths[1])
    job = Job(*paths, inputs=None, noise=False, seed=0, shared=True)
    return load_models(job, read_model(paths[0]), read_model(paths[1]), lambda _: None)


def foldable(model: ModelProto, constants: Constants) -> list[tuple[NodeProto, NodeProto]]:
    """Each Conv or Gemm (transB) with the only reader of its output, a BatchNormalization."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pairs = []
    for node in model.graph.node:
        reader = readers.get(node.output[0], [])
        linear = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0) == 1)
        if (
            linear
            and node.input[1] in constants
            and [each.op_type for each in reader] == ["BatchNormalization"]
        ):
            pairs.append((node, reader[0]))
    return pairs


def folded(model: ModelProto, constants: Constants, sabotage: str, only: int | None) -> ModelProto:
    """The model with every pair folded into fresh constants, one of them or all in one way wrong."""
    result = ModelProto()
    result.CopyFrom(model)
    fresh = dict(constants)
    for index, (linear, norm) in enumerate(foldable(result, constants)):
        weight, bias = fold_one(linear, norm, constants, sabotage if only in (None, index) else "")
        dtype = constants[linear.input[1]].dtype
        fresh |= {f"fold{index}_w": weight.astype(dtype), f"fold{index}_b": bias.astype(dtype)}
        linear.input[:] = [linear.input[0], f"fold{index}_w", f"fold{index}_b"]
        linear.output[0] = norm.output[0]
        result.graph.node.remove(norm)
    return finished(result, fresh)


def fold_one(
    linear: NodeProto, norm: NodeProto, constants: Constants, sabotage: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of one folded pair, in float64."""
    gamma, beta, mean, var = (constants[name].astype(np.float64) for name in norm.input[1:5])
    epsilon = 0.0 if sabotage == "epsilon" else float(np.float32(attribute(norm, "epsilon", 1e-5)))
    scale = gamma / np.sqrt(var + epsilon)
    shift = beta - scale * mean
    if sabotage == "channel":
        scale = scale * np.where(np.arange(len(scale)) == 0, 1.01, 1.0)
    weight = constants[linear.input[1]].astype(np.float64)
    bias = constants[linear.input[2]].astype(np.float64) if len(linear.input) > 2 else np.full_like(mean, 0)
    rows = (-1, *[1] * (weight.ndim - 1))
    if sabotage == "axis":  # where the weight is not square, the scale of another channel
        square = weight.shape[0] == weight.shape[1]
        rows, scale = ((1, *rows[:-1]), scale) if square else (rows, np.roll(scale, 1))
    return weight * scale.reshape(rows), (bias if sabotage == "bias" else scale * bias) + shift


def attribute(node: NodeProto, name: str, default: float) -> float:
    """The number of an attribute."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def randomize(model: ModelProto, constants: Constants, seed: int) -> None:
    """Weights, biases and statistics as in a trained net: every layer keeps the size of its values."""
    random = np.random.default_rng(seed)
    for node in model.graph.node:
        shapes = [constants[name].shape for name in node.input if name in constants]
        if node.op_type in ("Conv", "Gemm"):
            deviation = np.sqrt(2 / np.prod(shapes[0][1:]))
            values = [
                random.standard_normal(shapes[0]) * deviation,
                *(random.standard_normal(each) / 10 for each in shapes[1:]),
            ]
        elif node.op_type == "BatchNormalization":
            values = [random.uniform(0.5, 1.5, shapes[0]) for _ in range(4)]
            values[1:3] = [random.standard_normal(shapes[0]) * 0.3 for _ in range(2)]
        elif node.op_type in ("Mul", "Add"):
            values = [random.uniform(0.5, 1.5, each) - (node.op_type == "Add") for each in shapes]
        else:
            continue
        names = [name for name in node.input if name in constants]
        constants |= {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}


# ------------------------------------------------------------------------------------------ models as data


def dense(model: ModelProto) -> tuple[ModelProto, Constants]:
    """Take all constants out of a model, those that nodes make of others too."""
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        value = made(node, constants)
        if value is None:
            kept.append(node)
        else:
            constants[node.output[0]] = value
    del model.graph.node[:]
    model.graph.node.extend(kept)
    inputs = [each for each in model.graph.input if each.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    return model, constants


def made(node: NodeProto, constants: Constants) -> np.ndarray | None:
    """The value of a node that makes a constant, else None."""
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Constant" and "value" in values:
        return numpy_helper.to_array(values["value"])
    if not node.input or node.input[0] not in constants:
        return None
    if node.op_type == "ConstantOfShape":
        value = numpy_helper.to_array(values["value"]) if "value" in values else np.zeros(1, np.float32)
        return np.full(constants[node.input[0]], value[0])
    if node.op_type == "Unsqueeze" and "axes" in values:
        return np.expand_dims(constants[node.input[0]], tuple(values["axes"]))
    return None


def finished(model: ModelProto, constants: Constants) -> ModelProto:
    """The model with those of the constants that it reads."""
    result = ModelProto()
    result.CopyFrom(model)
    read = {name for node in result.graph.node for name in node.input}
    del result.graph.initializer[:]
    used = (numpy_helper.from_array(np.asarray(constants[name]), name) for name in constants if name in read)
    result.graph.initializer.extend(used)
    return result


def build(
    nodes: list[NodeProto], inputs: dict[str, tuple[int, ...]], outputs: list[str], constants: Constants
) -> ModelProto:
    """A float32 model."""
    graph = helper.make_graph(
        nodes,
        "benchmark",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


if __name__ == "__main__":
    main()
