"""Where every folded map went, and the way back: what ``--map`` writes and ``unfold`` reads.

The way back is the original graph, with its constants named by the SHA-256 of their data. Data that
the result still holds, or that the list of folds quotes, are not stored again.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bnfold import files
from bnfold.core.engine import Fold
from bnfold.core.graph import external
from bnfold.core.graph.constants import Const
from bnfold.core.writing.apply import Change
from bnfold.core.writing.rounding import Rounded, stored
from bnfold.errors import BnfoldError, InputsError

SCHEMA_VERSION = 1

# Where data are: the file, from which byte on, and how many.
_Place = tuple[str, int | None, int]


def provenance(
    folds: Iterable[Fold], original: ir.Model | None = None, result: ir.Model | None = None
) -> dict[str, Any]:
    """Every fold as JSON-ready data, and with both models also how to undo them.

    ``scale`` and ``shift`` are nested lists of float64 that broadcast against the folded node's
    tensor; null where layers were merged (``nodes`` names them) or lost channels. An old constant comes
    with its data (base64 of the little-endian bytes in row order), as the folded model no longer holds
    it; a new one with the SHA-256 of its data in the model.

    Args:
        folds: what was folded.
        original: the model before (``model.clone()`` taken in time is enough).
        result: the model that is written.
    """
    made: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "folds": [_fold(each) for each in folds]}
    if original is not None and result is not None:
        made["undo"] = _undo(original, result, _quoted(made))
    return made


def restore(result: ir.Model, made: Mapping[str, Any]) -> ir.Model:
    """Build the original model, bit for bit, from its result and the map.

    Raises:
        InputsError: the map says nothing of the way back, is damaged, or belongs to another model.
    """
    undo = made.get("undo")
    if not isinstance(undo, dict):
        raise InputsError("The map does not say how to undo; write it with --map of this version of bnfold.")
    if undo.get("result") != fingerprint(result):
        raise InputsError("The map belongs to another model, or the model was changed after it was written.")
    try:
        held = {digest: tensor for tensor, digest in _constants(result)}
        data = {**_quoted(made), **undo["data"]}
        proto = onnx.load_model_from_string(base64.b64decode(undo["model"]))
        folder = None
        for each in proto.graph.initializer:
            digest = undo["constants"].get(each.name)
            tensor = held.get(digest)
            if isinstance(tensor, ir.ExternalTensor) and tensor.name == each.name:
                each.CopyFrom(ir.serde.serialize_tensor(tensor))
                folder = tensor.base_dir
            elif digest is not None:
                each.raw_data = base64.b64decode(data[digest]) if tensor is None else tensor.tobytes()
        return files.from_proto(proto, folder)
    except (AttributeError, BnfoldError, KeyError, TypeError, ValueError, DecodeError) as error:
        raise InputsError(f"The map is damaged ({type(error).__name__}: {error}).") from error


def fingerprint(model: ir.Model) -> str:
    """A digest of what a model computes: nodes, constants, inputs and outputs.

    It does not depend on how the file is written (external data, declared shapes, comments).
    """
    return _fingerprint(model, _constants(model))


def _fingerprint(model: ir.Model, constants: Iterable[tuple[ir.TensorProtocol, str]]) -> str:
    digest = hashlib.sha256(repr(sorted(model.graph.opset_imports.items())).encode())
    for tensor, data in constants:
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} {data}\n".encode())
    ports = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    digest.update(repr(ports).encode())
    for node in (*model.graph, *(node for each in model.functions.values() for node in each)):
        proto = ir.serde.serialize_node(node)
        proto.ClearField("doc_string")
        proto.ClearField("metadata_props")
        digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _undo(original: ir.Model, result: ir.Model, quoted: Mapping[str, str]) -> dict[str, Any]:
    """The original graph without the data of its constants, and what of these is nowhere else."""
    clone = original.clone()
    read: dict[_Place, str] = {}
    constants = {tensor.name or "": (tensor, digest) for tensor, digest in _constants(original, read)}
    held = list(_constants(result, read))
    for name in constants:
        clone.graph.initializers[name].const_value = ir.Tensor(np.zeros(0, np.float32), name=name)
    proto = ir.serde.serialize_model(clone)
    for each in proto.graph.initializer:
        if each.name in constants:
            tensor = constants[each.name][0]
            each.Clear()
            each.name, each.data_type = tensor.name or "", int(tensor.dtype)
            each.dims.extend(tensor.shape.numpy())
    elsewhere = {digest for _, digest in held} | set(quoted)
    missing = {digest: tensor for tensor, digest in constants.values() if digest not in elsewhere}
    return {
        "result": _fingerprint(result, held),
        "model": _encoded(proto.SerializeToString()),
        "constants": {name: digest for name, (_, digest) in constants.items()},
        "data": {digest: _encoded(tensor.tobytes()) for digest, tensor in missing.items()},
    }


def _constants(
    model: ir.Model, read: dict[_Place, str] | None = None
) -> Iterator[tuple[ir.TensorProtocol, str]]:
    """The main graph's stored constants by name, each with the SHA-256 of its data.

    What was ``read`` from a file already, for another model, is not read again.
    """
    read = {} if read is None else read
    for _, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING:
            if isinstance(tensor, ir.ExternalTensor):
                place = tensor.path, tensor.offset, tensor.nbytes
                if place not in read:
                    read[place] = _digest(tensor)
                yield tensor, read[place]
            else:
                yield tensor, _digest(tensor)


def _digest(tensor: ir.TensorProtocol) -> str:
    """The SHA-256 of the data, of which a block at a time is held where they are in a file."""
    digest = hashlib.sha256()
    if isinstance(tensor, ir.ExternalTensor):
        external.check(tensor)
        for piece in external.pieces(tensor):
            digest.update(piece)
    elif isinstance(tensor, Rounded):
        for piece in tensor.pieces():
            digest.update(piece)
    else:
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _quoted(made: Mapping[str, Any]) -> dict[str, str]:
    """The old data that the list of folds holds, by their SHA-256."""
    old = (change["old"] for fold in made["folds"] for change in fold["constants"])
    held = (each["data"] for each in old if each is not None)
    return {hashlib.sha256(base64.b64decode(data)).hexdigest(): data for data in held}


def _fold(fold: Fold) -> dict[str, Any]:
    return {
        "name": fold.seed,
        "direction": fold.direction,
        "scale": None if fold.affine is None else fold.affine.scale.tolist(),
        "shift": None if fold.affine is None else fold.affine.shift.tolist(),
        "nodes": list(fold.nodes),
        "constants": [_change(change) for change in fold.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    old, new = change.old, change.new
    return {
        "node": change.node,
        "input": change.index,
        "old": None if old is None else {**_header(*old), "data": _encoded(_bytes(old[1]))},
        "new": {**_header(*new), "sha256": hashlib.sha256(_bytes(new[1])).hexdigest()},
    }


def _header(name: str | None, const: Const) -> dict[str, Any]:
    return {"name": name, "dtype": const.dtype.name, "shape": list(const.shape)}


def _bytes(const: Const) -> bytes:
    return stored(const).tobytes()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
