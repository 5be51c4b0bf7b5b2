"""Tensors must not lie: as many values as the dimensions say, and of a type that there is."""

from __future__ import annotations

from math import prod

import onnx
import onnx_ir as ir
from onnx import TensorProto

from bnfold.errors import InvalidModelError
from bnfold.files.known import check_known

# The largest tensor that any runtime can hold; what is larger overflows somewhere.
_MAX_BYTES = 1 << 47

_EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}

# The field in which a tensor's values are where they are not raw bytes.
_FIELDS = {
    "float_data": {TensorProto.FLOAT, TensorProto.COMPLEX64},
    "double_data": {TensorProto.DOUBLE, TensorProto.COMPLEX128},
    "int64_data": {TensorProto.INT64},
    "uint64_data": {TensorProto.UINT32, TensorProto.UINT64},
    "string_data": {TensorProto.STRING},
}
_FIELD_OF: dict[int, str] = {dtype: field for field, dtypes in _FIELDS.items() for dtype in dtypes}
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}


def check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    """The values that are declared are there, as many of them as the dimensions say."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    count = prod(tensor.dims)
    if dtype == ir.DataType.UNDEFINED:
        problem = f"is of type {tensor.data_type}, which the installed onnx does not know"
    elif min(tensor.dims, default=0) < 0:
        problem = f"has a negative dimension in {list(tensor.dims)}"
    elif dtype != ir.DataType.STRING and count * dtype.bitwidth > 8 * _MAX_BYTES:
        problem = f"claims the impossible size {list(tensor.dims)}"
    elif tensor.HasField("segment"):
        problem = "is stored in segments, which nothing reads"
    else:
        problem = _misfit(tensor, dtype, count)
    if problem:
        raise InvalidModelError(f"{name} has a tensor {tensor.name!r} that {problem}; export it again.")
    check_known([tensor], name)


def _misfit(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> str:
    """What is wrong with the amount of data, or ""."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return _misplaced(tensor, dtype)
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            return "holds strings as raw bytes"
        held, wanted = len(tensor.raw_data), -(-count * dtype.bitwidth // 8)
        return (
            f"holds {held} bytes where its shape needs {wanted}"
            if held != wanted
            else _surplus(tensor, dtype)
        )
    field = _FIELD_OF.get(tensor.data_type, "int32_data")
    held, wanted = len(getattr(tensor, field)), count
    if dtype != ir.DataType.STRING and dtype.bitwidth < 8:
        wanted = -(-count * dtype.bitwidth // 8)
    elif tensor.data_type in _COMPLEX:
        wanted = 2 * count
    return (
        f"holds {held} values where its shape needs {wanted}" if held != wanted else _surplus(tensor, dtype)
    )


def _surplus(tensor: onnx.TensorProto, dtype: ir.DataType) -> str:
    """What is wrong behind the last value of a type that fills no whole bytes, or ""."""
    if dtype != ir.DataType.STRING and dtype.bitwidth == 6:
        try:
            ir.serde.deserialize_tensor(tensor).numpy()
        except ValueError as error:
            return f"is packed wrongly ({error})"
    return ""


def _misplaced(tensor: onnx.TensorProto, dtype: ir.DataType) -> str:
    """What is wrong with where external data are said to be, or "" (the file itself is looked at later)."""
    entries: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    if dtype == ir.DataType.STRING:
        return "keeps strings in a file"
    if not entries.keys() <= _EXTERNAL_KEYS or not all(isinstance(each, str) for each in entries.values()):
        return "says of its data file what the installed onnx does not know"
    location = entries.get("location", "")
    if not location or "\0" in location:
        return "does not say in which file its data are"
    for key in ("offset", "length"):
        if not entries.get(key, "0").isdecimal() or len(entries.get(key, "0")) > 18:
            return f"has {key} {entries[key]!r} in its data file"
    return ""
