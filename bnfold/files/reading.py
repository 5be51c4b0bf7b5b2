"""Models in: every defect is named, and nothing is read from outside the model's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bnfold.core.graph import external
from bnfold.core.graph.evaluate import literal
from bnfold.core.graph.garbage import uncollected
from bnfold.core.graph.graphs import graphs_of
from bnfold.errors import InvalidModelError, UnreadableModelError, UnsupportedModelError
from bnfold.files.sound import check
from bnfold.files.sparse import densified


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model; external data stay on disk until a value is asked for.

    Raises:
        UnreadableModelError: no such file, or not an ONNX model, or its external data are missing.
        InvalidModelError: it breaks the ONNX specification (cycles, unknown opset).
        UnsupportedModelError: it holds what would be lost on the way.
    """
    path = Path(path)
    return from_proto(_parse(path), path.parent, str(path))


def from_proto(
    proto: onnx.ModelProto, base_dir: str | os.PathLike[str] | None, name: str = "the model"
) -> ir.Model:
    """Convert a proto, which stays as it is; raises like ``load``."""
    with uncollected():
        return _converted(proto, base_dir, name)


def _converted(proto: onnx.ModelProto, base_dir: str | os.PathLike[str] | None, name: str) -> ir.Model:
    check(proto, name)
    try:
        model = ir.serde.deserialize_model(densified(proto, name))
    except (UnsupportedModelError, InvalidModelError):
        raise
    except Exception as error:  # whatever onnx_ir meets in a broken model
        raise InvalidModelError(
            f"{name} is no valid ONNX model ({_line(error)}); export it again."
        ) from error
    _check_defined(model, name)
    _resolve_external(model, base_dir, name)
    _sort(model, name)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UnreadableModelError(f"{path} is a directory; name the .onnx file in it.") from None
    except FileNotFoundError:
        raise UnreadableModelError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UnreadableModelError(
            f"{path} cannot be read ({error.strerror}); check its permissions."
        ) from error
    if not content:
        raise UnreadableModelError(f"{path} is empty; export the model again.")
    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        if "MaxDepth" in str(error):
            raise UnreadableModelError(
                f"{path} nests graphs deeper than protobuf reads (about 32); flatten its If and Loop nodes."
            ) from error
        raise UnreadableModelError(
            f"{path} is not an ONNX model, or is truncated; export or download it again."
        ) from error


def _resolve_external(model: ir.Model, base_dir: str | os.PathLike[str] | None, name: str) -> None:
    attributes = list(_external_attributes(model))
    tensors = [*external_tensors(model), *(attribute.as_tensor() for _, attribute in attributes)]
    if tensors and base_dir is None:
        raise UnreadableModelError(
            f"{name} keeps weights in external files; pass base_dir, the folder in which they are."
        )
    for tensor in tensors:
        assert isinstance(tensor, ir.ExternalTensor)
        tensor.base_dir = base_dir or ""
        external.check(tensor, name)
    for node, attribute in attributes:
        # The file of a node's literal is not written again with the model, so its data go inside.
        tensor = attribute.as_tensor()
        loaded = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, loaded)


def _external_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if isinstance(attribute.value, ir.ExternalTensor):
                    yield node, attribute


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every initializer of the model whose data are in a file of their own."""
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_defined(model: ir.Model, name: str) -> None:
    """Everything that is read or returned has to come from somewhere."""
    for graph in graphs_of(model):
        read = (value for node in graph for value in node.inputs if value is not None)
        for value in (*graph.outputs, *read):
            if value.producer() is None and not (value.is_graph_input() or value.is_initializer()):
                raise InvalidModelError(
                    f"{name} reads or returns {value.name!r}, which nothing in it makes; export it again."
                )


def _sort(model: ir.Model, name: str) -> None:
    """Bring nodes into topological order where they are not."""
    for graph in graphs_of(model):
        place = {node: index for index, node in enumerate(graph)}
        late = any(
            place.get(producer, -1) >= index
            for node, index in place.items()
            for value in node.inputs
            if value is not None and (producer := value.producer()) is not None
        )
        if late:
            try:
                graph.sort()
            except ValueError as error:
                raise InvalidModelError(f"{name} has a cycle in its graph; export it again.") from error


def constant_bytes(model: ir.Model) -> int:
    """How many bytes the constants of the model take, wherever they are stored."""
    total = 0
    for graph in graphs_of(model):
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            tensor = literal(node) if node.op_type == "Constant" else None
            total += 0 if tensor is None else tensor.nbytes
    return total


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
