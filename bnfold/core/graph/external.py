"""Constants in a file of their own: read a part at a time, and only from the model's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.errors import UnreadableModelError

_BLOCK_BYTES = 1 << 20


def check(tensor: ir.ExternalTensor, name: str = "the model") -> None:
    """See that a tensor's data lie in the model's folder, or below it, and are all there.

    Raises:
        UnreadableModelError: they do not; the text says what is the matter.
    """
    location, path = os.fspath(tensor.location), tensor.path
    folder, real = os.path.realpath(tensor.base_dir or "."), os.path.realpath(path)
    if os.path.isabs(location) or os.path.commonpath([folder, real]) != folder:
        raise UnreadableModelError(
            f"{name} keeps weights in {location!r}, outside the model's folder, which is not read; "
            "move the file beside the model."
        )
    found = _status(path)
    start, size = tensor.offset or 0, tensor.nbytes
    if found is None:
        problem = "is missing"
    elif not stat.S_ISREG(found.st_mode):
        problem = "is no regular file"
    elif found.st_nlink > 1:
        problem = "has a second name (a hard link), so that it may be any file of the system"
    elif start < 0 or found.st_size < start + size:
        problem = "is too short"
    elif (tensor.length or size) != size:
        problem = f"is said to hold {tensor.length} bytes for the {size} of {tensor.name!r}"
    else:
        return
    raise UnreadableModelError(
        f"{name} needs the external data file {path}, which {problem}; put a copy of it beside the model."
    )


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def read(tensor: ir.ExternalTensor, first: int, count: int) -> npt.NDArray[Any]:
    """``count`` values from number ``first`` on, as a flat array.

    The array is in memory, not mapped: mapped pages would be counted, and kept, as this process's.
    """
    dtype = tensor.dtype.numpy().newbyteorder("<")
    place = (tensor.offset or 0) + first * dtype.itemsize
    with open(tensor.path, "rb") as file:
        file.seek(place)
        array = np.frombuffer(file.read(count * dtype.itemsize), np.uint8).view(dtype)
    return array.astype(tensor.dtype.numpy(), copy=False)


def pieces(tensor: ir.ExternalTensor) -> Iterator[bytes]:
    """The data as they are in the file, a block at a time."""
    left = tensor.nbytes
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left and (piece := file.read(min(left, _BLOCK_BYTES))):
            left -= len(piece)
            yield piece
