"""Models in and out: read with every defect named, written atomically, never damaged."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from bnfold.core.evaluate import literal
from bnfold.errors import InvalidModelError, OutputError, UnreadableModelError, UnsupportedModelError

# Protobuf cannot hold 2 GiB; stay below it with room for the graph itself.
_INLINE_LIMIT = (1 << 31) - (1 << 26)

# A sparse initializer that would be densified to more than this is refused.
_DENSE_LIMIT = 1 << 31


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
    _check_proto(proto, name)
    try:
        model = ir.serde.deserialize_model(_densified(proto, name))
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
        raise UnreadableModelError(
            f"{path} is not an ONNX model, or is truncated; export or download it again."
        ) from error


def _check_proto(proto: onnx.ModelProto, name: str) -> None:
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise UnreadableModelError(f"{name} is not an ONNX model; export it again.")
    if proto.training_info:
        raise UnsupportedModelError(
            f"{name} carries training_info, which folding would make wrong; export it for inference."
        )
    known = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= known:
            raise InvalidModelError(
                f"{name} uses opset {opset.version}, and the installed onnx knows 1 to {known}; "
                "update onnx or convert the model."
            )


def _densified(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Replace sparse initializers, which onnx_ir would drop, by dense ones."""
    sparse = (graph.sparse_initializer or any(_sparse_literals(graph)) for graph in _graphs(proto.graph))
    if not any(sparse):
        return proto
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    for graph in _graphs(copied.graph):
        graph.initializer.extend(_dense(sparse, name) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for attribute in _sparse_literals(graph):
            dense = _dense(attribute.sparse_tensor, name)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    return copied


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _sparse_literals(graph: onnx.GraphProto) -> Iterator[onnx.AttributeProto]:
    """The values of Constant nodes that are written as sparse tensors."""
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                yield attribute


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if prod(sparse.dims) * values.itemsize > _DENSE_LIMIT:
        raise UnsupportedModelError(
            f"{name} has a sparse initializer {sparse.values.name!r} of more than 2 GiB; store it densely."
        )
    dense = np.zeros(list(sparse.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise InvalidModelError(
            f"{name} has a sparse initializer {sparse.values.name!r} with bad indices; export it again."
        ) from error
    return numpy_helper.from_array(dense, sparse.values.name)


def _resolve_external(model: ir.Model, base_dir: str | os.PathLike[str] | None, name: str) -> None:
    tensors = list(external_tensors(model))
    if tensors and base_dir is None:
        raise UnreadableModelError(
            f"{name} keeps weights in external files; pass base_dir, the folder in which they are."
        )
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, base_dir or "")
    for tensor in tensors:
        path = Path(tensor.path)
        size = path.stat().st_size if path.is_file() else -1
        if size < (tensor.offset or 0) + tensor.nbytes:
            problem = "is missing" if size < 0 else "is too short"
            raise UnreadableModelError(
                f"{name} needs the external data file {path}, which {problem}; put it beside the model."
            )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every initializer of the model whose data are in a file of their own."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_defined(model: ir.Model, name: str) -> None:
    """Everything that is read or returned has to come from somewhere."""
    for graph in model.graphs():
        read = (value for node in graph for value in node.inputs if value is not None)
        for value in (*graph.outputs, *read):
            if value.producer() is None and not (value.is_graph_input() or value.is_initializer()):
                raise InvalidModelError(
                    f"{name} reads or returns {value.name!r}, which nothing in it makes; export it again."
                )


def _sort(model: ir.Model, name: str) -> None:
    """Bring nodes into topological order where they are not."""
    for graph in model.graphs():
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
    for graph in model.graphs():
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            tensor = literal(node) if node.op_type == "Constant" else None
            total += 0 if tensor is None else tensor.nbytes
    return total


@contextmanager
def staged(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in a new folder beside ``target``; what is written there takes its place on success.

    Everything in the folder is renamed into the target's folder when the block ends without an
    exception, the model last; on any exception nothing outside the folder has changed.

    Raises:
        OutputError: the target's folder cannot be written to.
    """
    target = Path(os.path.realpath(target))
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=target.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write to {target.parent} ({error.strerror}); choose another place with -o."
        ) from error
    try:
        yield folder / target.name
        _move_into_place(folder, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target} ({error.strerror or error}); nothing was changed."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> None:
    if target.exists():
        os.chmod(folder / target.name, stat.S_IMODE(target.stat().st_mode))
    others = [path for path in folder.iterdir() if path.name != target.name]
    for path in (*others, folder / target.name):
        os.replace(path, target.parent / path.name)


def write(model: ir.Model, path: Path) -> None:
    """Write a model to a path from ``staged``; data stay external where they were, or do not fit inside."""
    external = any(external_tensors(model)) or constant_bytes(model) > _INLINE_LIMIT
    ir.save(model, path, external_data=f"{path.name}.data" if external else None)


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model atomically: a failure leaves whatever stood there before.

    Raises:
        OutputError: the file cannot be written.
    """
    with staged(path) as temporary:
        write(model, temporary)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
