"""What the models are run on: random inputs for any signature, or the user's own arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray
from onnx import ValueInfoProto
from onnx.helper import tensor_dtype_to_np_dtype

from bnfold.errors import InputsError

from .engines import CannotRunError

Array = NDArray[Any]
Feeds = dict[str, Array]

_SIZES = (1, 2, 8, 16, 32, 64, 224)
# A second and third input only where one run takes less than so many seconds.
_PATIENCE = (2.0, 0.25)


@dataclass(frozen=True)
class Port:
    """One input to feed.

    Attributes:
        name: its name.
        dtype: its numpy dtype (of ml_dtypes for bfloat16 and smaller; object for strings).
        shape: a size, a symbol's name or None for each dimension; None if not even the rank is declared.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Sizes:
    """What a signature leaves open.

    Attributes:
        batch: the first dimension of an input.
        other: all other dimensions; None: 64 for images (rank 4), else 16.
        top: integers lie from 0 to below this.
    """

    batch: int
    other: int | None
    top: int


def port(value: ValueInfoProto) -> Port:
    """Read one graph input.

    Raises:
        CannotRunError: it is a sequence, map or optional.
    """
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not kind.elem_type:
        raise CannotRunError(f"input {value.name!r} is no tensor")
    shape = tuple(_dimension(each) for each in kind.shape.dim) if kind.HasField("shape") else None
    return Port(value.name, np.dtype(tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def runnable(ports: list[Port], run: Callable[[Feeds], object], seed: int) -> list[Feeds]:
    """One to three random inputs (fewer where a run is slow) of the first sizes on which ``run`` succeeds.

    Raises:
        CannotRunError: it fails on all of them, or an input declares no rank.
    """
    failure: CannotRunError | None = None
    for sizes in _attempts(ports):
        first = random_inputs(ports, sizes, seed, 0)
        start = perf_counter()
        try:
            run(first)
        except CannotRunError as error:
            failure = failure or error
            continue
        more = sum(perf_counter() - start < limit for limit in _PATIENCE)
        return [first, *(random_inputs(ports, sizes, seed, kind) for kind in range(1, 1 + more))]
    raise CannotRunError(f"the original fails on random inputs ({failure}); give inputs of your own as .npz")


def random_inputs(ports: list[Port], sizes: Sizes, seed: int, kind: int) -> Feeds:
    """One array for each port, always the same for one seed.

    Floats of kind 0 are normal with deviation 1, of kind 1 uniform from 0 to 1, of kind 2 normal with
    deviation 16: nets are made for images from 0 to 1, features around 0 or pixels in the hundreds, and
    on the wrong kind many saturate. Integers are uniform below ``sizes.top``.
    """
    random = np.random.default_rng((seed, kind))
    shapes = _shapes(ports, sizes)
    return {each.name: _draw(each.dtype, shapes[each.name], sizes.top, kind, random) for each in ports}


def user_inputs(ports: list[Port], path: Path) -> Feeds:
    """The arrays of an .npz file, one for every port.

    Raises:
        InputsError: the file cannot be read, or a name, dtype or shape does not fit; the text says what
            would.
    """
    if not is_zipfile(path):
        raise InputsError(f"{path} is no .npz; write it with numpy.savez, one array per input.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise InputsError(f"{path} cannot be read; write it with numpy.savez ({error}).") from error
    wanted = ", ".join(repr(each.name) for each in ports) or "none"
    for name in sorted({each.name for each in ports} ^ set(arrays)):
        what = "is no input of the model" if name in arrays else "is missing"
        raise InputsError(f"The array {name!r} {what}; give exactly these: {wanted}.")
    return {each.name: _fitting(each, arrays[each.name]) for each in ports}


def reversed_inputs(feeds: Mapping[str, Array]) -> Feeds:
    """The same values in reverse order: another input of the same kind."""
    return {name: array.reshape(-1)[::-1].reshape(array.shape) for name, array in feeds.items()}


def _attempts(ports: list[Port]) -> Iterator[Sizes]:
    """Sizes to try in turn, those left out that change nothing for these ports."""
    seen = set()
    for other in (None, *_SIZES):
        for batch in (2, 1):
            for top in (10, 2, 1) if any(_is_integer(each.dtype) for each in ports) else (10,):
                sizes = Sizes(batch, other, top)
                key = (*_shapes(ports, sizes).values(), top)
                if key not in seen:
                    yield sizes
                seen.add(key)


def _shapes(ports: list[Port], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    symbols: dict[str, int] = {}
    return {each.name: _shape(each, sizes, symbols) for each in ports}


def _shape(each: Port, sizes: Sizes, symbols: dict[str, int]) -> tuple[int, ...]:
    if each.shape is None:
        raise CannotRunError(f"input {each.name!r} declares no shape; give inputs of your own as .npz")
    other = sizes.other or (64 if len(each.shape) == 4 else 16)
    shape = []
    for position, size in enumerate(each.shape):
        free = sizes.batch if position == 0 else other
        if isinstance(size, str):
            free = symbols.setdefault(size, free)
        shape.append(size if isinstance(size, int) else free)
    return tuple(shape)


def _draw(
    dtype: np.dtype[Any], shape: tuple[int, ...], top: int, kind: int, random: np.random.Generator
) -> Array:
    if dtype.kind == "O":
        return random.choice(np.array(["a", "bc", "def"], dtype=object), shape)
    if dtype.kind == "b" or _is_integer(dtype):
        return random.integers(0, 2 if dtype.kind == "b" else top, shape).astype(dtype)
    values = random.random(shape) if kind == 1 else random.standard_normal(shape)
    return np.asarray(values * (16 if kind == 2 else 1)).astype(dtype)


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return "int" in dtype.name


def _dimension(dimension: Any) -> int | str | None:
    fixed = dimension.HasField("dim_value") and dimension.dim_value >= 0  # 0: an empty tensor
    return dimension.dim_value if fixed else dimension.dim_param or None


def _fitting(each: Port, array: Array) -> Array:
    if array.dtype.kind == "V" and array.dtype.itemsize == each.dtype.itemsize:
        array = array.view(each.dtype)  # numpy stores the dtypes of ml_dtypes as bare bytes
    if array.dtype.kind in "US" and each.dtype.kind == "O":
        array = array.astype(str).astype(object)
    if array.dtype != each.dtype:
        wanted = "strings" if each.dtype.kind == "O" else each.dtype.name
        raise InputsError(
            f"Input {each.name!r} is {array.dtype.name}, but the model needs {wanted}; use astype."
        )
    if not fits(each, array):
        raise InputsError(
            f"Input {each.name!r} has shape {list(array.shape)}, "
            f"but the model needs {shown(each.shape or ())}; reshape it."
        )
    return array


def fits(each: Port, array: Array) -> bool:
    """Whether an array has the dtype and the shape that an input declares."""
    if array.dtype != each.dtype or each.shape is None:
        return array.dtype == each.dtype
    return len(each.shape) == array.ndim and all(
        not isinstance(size, int) or size == actual
        for size, actual in zip(each.shape, array.shape, strict=True)
    )


def shown(shape: tuple[int | str | None, ...]) -> str:
    """A shape as people read it."""
    return " × ".join("?" if size is None else str(size) for size in shape) or "scalar"
