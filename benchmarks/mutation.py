"""Damaged models: valid files, changed by bytes or by fields. Mutant number n is always the same one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

DATA = "seed.data"

_NUMBERS = [0, 1, -1, 2, 3, 7, 16, 127, 255, 256, 65535, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 62]
_STRINGS = ["", "x", "Conv", "BatchNormalization", "Add", "If", "Loop", "Constant", "Identity", "Reshape"]
_STRINGS += ["ai.onnx", "../secret", "/etc/passwd", "seed.data", "\x1b[31m", "ä", "a" * 300, "axis", "value"]


def seeds() -> list[bytes]:
    """Small valid models: every example of every rule, random graphs, and what files may hold besides."""
    from strategies import random_model

    from bnfold.core.example import EXAMPLES
    from bnfold.core.rule import registered

    registered()
    models = [example.model() for example in EXAMPLES]
    models += [random_model(number, 4) for number in range(40)]
    models += [_sparse(), _external(), _function(), _nested(), _literals(), _branches()]
    return [model.SerializeToString(deterministic=True) for model in models]


def data() -> bytes:
    """What is in the file that the seed with external data refers to."""
    return np.linspace(-1, 1, 4 * 3 * 3 * 3, dtype=np.float32).tobytes()


def mutants(seed: int, number: int, pool: list[bytes]) -> bytes:
    """Mutant ``number`` of a run: one of the pool, changed in one to four places."""
    rng = random.Random((seed << 40) + number)
    content = rng.choice(pool)
    if rng.random() < 0.4:
        return _by_bytes(rng, content)
    proto = onnx.load_model_from_string(content)
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        _by_field(rng, proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _by_bytes(rng: random.Random, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        start = rng.randrange(len(made) or 1)
        length = min(rng.choice([1, 1, 2, 4, 8, 64]), len(made) - start)
        kind = rng.randrange(6)
        if kind == 0:
            made[start : start + length] = rng.randbytes(length)
        elif kind == 1:
            del made[start : start + length]
        elif kind == 2:
            made[start:start] = made[start : start + length]
        elif kind == 3 and made:
            made[start] ^= 1 << rng.randrange(8)
        elif kind == 4:
            other = rng.randrange(len(made) or 1)
            made[start : start + length] = made[other : other + length]
        elif rng.random() < 0.2:
            del made[start:]
    return bytes(made)


def _by_field(rng: random.Random, proto: onnx.ModelProto) -> None:
    """Change one field of one message, wherever it is in the model."""
    messages = list(_messages(proto))
    message = rng.choice(messages)
    fields = [field for field, _ in message.ListFields()]
    if not fields or rng.random() < 0.15:
        fields = list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if field.message_type is not None:
        alike = [each for each in messages if each.DESCRIPTOR is field.message_type]
        _change_message(rng, message, field, alike)
    elif field.is_repeated:
        _change_list(rng, getattr(message, field.name), lambda: _scalar(rng, field, proto))
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(rng, field, proto))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change_message(
    rng: random.Random, message: Message, field: FieldDescriptor, alike: list[Message]
) -> None:
    """Remove, double, reorder or replace a message by another of its type."""
    if not field.is_repeated:
        if rng.random() < 0.4 or not alike:
            message.ClearField(field.name)
        else:
            other = type(alike[0])()
            other.CopyFrom(rng.choice(alike))  # a copy first: it may hold the message itself
            getattr(message, field.name).CopyFrom(other)
        return
    items = getattr(message, field.name)
    kind = rng.randrange(4)
    if kind == 0 and items:
        del items[rng.randrange(len(items))]
    elif kind == 1 and alike:
        copied = type(alike[0])()
        copied.CopyFrom(rng.choice(alike))
        items.append(copied)
    elif kind == 2 and len(items) > 1:
        first, second = rng.sample(range(len(items)), 2)
        held = type(items[0])()
        held.CopyFrom(items[first])
        items[first].CopyFrom(items[second])
        items[second].CopyFrom(held)
    elif items and alike:
        copied = type(alike[0])()
        copied.CopyFrom(rng.choice(alike))
        items[rng.randrange(len(items))].CopyFrom(copied)


def _change_list(rng: random.Random, items: object, value: Callable[[], object]) -> None:
    held = list(items)  # type: ignore[call-overload]
    kind = rng.randrange(4)
    if kind == 0 or not held:
        held.insert(rng.randrange(len(held) + 1), value())
    elif kind == 1:
        del held[rng.randrange(len(held))]
    elif kind == 2:
        rng.shuffle(held)
    else:
        held[rng.randrange(len(held))] = value()
    items[:] = held  # type: ignore[index]


def _scalar(rng: random.Random, field: FieldDescriptor, proto: onnx.ModelProto) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice([b"", b"\x00", b"\xff" * 8, rng.randbytes(4), b"SAME_UPPER", b"constant"])
        names = [name for node in proto.graph.node for name in (*node.input, *node.output, node.op_type)]
        return rng.choice(names) if names and rng.random() < 0.6 else rng.choice(_STRINGS)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -0.0, 1.0, -1.0, 1e38, 1e-45, float("nan"), float("inf"), rng.random()])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    number = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.randrange(-4, 30)
    bits = 31 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 63
    unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    return min(abs(number) if unsigned else number, (1 << bits) - 1)


def _model(nodes: list[onnx.NodeProto], shape: list[int | str], **more: object) -> onnx.ModelProto:
    functions = more.pop("functions", [])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        **more,  # type: ignore[arg-type]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)  # type: ignore[arg-type]


def _weight(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _constants(**arrays: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


_BATCH_NORM = helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["y"])


def _sparse() -> onnx.ModelProto:
    values = numpy_helper.from_array(_weight(3), "w")
    indices = numpy_helper.from_array(np.array([0, 5, 7]), "i")
    sparse = helper.make_sparse_tensor(values, indices, [4, 3, 1, 1])
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), _BATCH_NORM]
    return _model(nodes, [1, 3, 4, 4], initializer=_constants(s=_weight(4)), sparse_initializer=[sparse])


def _external() -> onnx.ModelProto:
    weight = TensorProto(name="w", dims=[4, 3, 3, 3], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", "0"), ("length", str(len(data())))):
        weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), _BATCH_NORM]
    return _model(nodes, [1, 3, 4, 4], initializer=[weight, *_constants(s=_weight(4))])


def _function() -> onnx.ModelProto:
    body = [helper.make_node("BatchNormalization", ["a", "b", "b", "b", "b"], ["r"])]
    function = helper.make_function("local", "Norm", ["a", "b"], ["r"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    nodes += [helper.make_node("Norm", ["c", "s"], ["y"], domain="local")]
    held = _constants(w=_weight(4, 3, 1, 1), s=_weight(4))
    return _model(nodes, [1, 3, 4, 4], initializer=held, functions=[function])


def _nested() -> onnx.ModelProto:
    def body(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Conv", ["x", "w"], [f"{name}c"])]
        nodes += [helper.make_node("BatchNormalization", [f"{name}c", "s", "s", "s", "s"], [name])]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    nodes = [helper.make_node("If", ["t"], ["y"], then_branch=body("a"), else_branch=body("b"))]
    held = [*_constants(w=_weight(4, 3, 1, 1), s=_weight(4)), numpy_helper.from_array(np.array(True), "t")]
    return _model(nodes, [1, 3, 4, 4], initializer=held)


def _literals() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Constant", [], ["n"], value_ints=[4, 1, 1]),
        helper.make_node("Reshape", ["f", "n"], ["m"]),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "m"], ["y"]),
    ]
    return _model(nodes, [1, 3, "h", "w"], initializer=_constants(w=_weight(4, 3, 1, 1)))


def _branches() -> onnx.ModelProto:
    """Two layers that become one, and behind them a channel that holds one value."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "s", "s", "s"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "u"], ["y"]),
    ]
    gamma = _weight(4)
    gamma[1] = 0
    held = _constants(
        w=_weight(4, 3, 3, 3), v=_weight(4, 3, 1, 1), g=gamma, s=_weight(4), u=_weight(2, 4, 1, 1)
    )
    return _model(nodes, [1, 3, 4, 4], initializer=held)
