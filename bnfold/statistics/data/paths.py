"""Data on disk: a .npz file, or a folder of .npz, .npy and image files."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Array, Feeds, Port, matched
from bnfold.statistics.data.preprocess import SUFFIXES, Preprocess
from bnfold.statistics.data.sources import Arrays, Shard, Source, Stream, as_arrays, fitting, is_whole


@dataclass(frozen=True)
class Npz:
    """A .npz file: samples along the first axis of its arrays."""

    path: Path
    batch: int = 0
    preprocess: Preprocess | None = None

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """See ``Source``."""
        return Arrays(read_npz(self.path), self.batch, self.preprocess).batches(ports, shard)

    def identity(self) -> str:
        """See ``Source``."""
        try:
            with zipfile.ZipFile(self.path) as file:
                parts = sorted((each.filename, each.file_size, each.CRC) for each in file.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise InputsError(f"{self.path} cannot be read; write it with numpy.savez ({error}).") from error
        return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder of .npz (samples), .npy (samples, or one sample) or image files (one sample), by name."""

    path: Path
    batch: int = 0
    preprocess: Preprocess | None = None

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """See ``Source``."""
        files = self._files()
        single: list[Array] = []
        for path in files[shard.of(len(files))]:
            arrays = self._read(path, ports)
            if isinstance(arrays, dict):
                yield from Arrays(arrays, self.batch, self.preprocess).batches(ports, Shard())
                continue
            single.append(arrays)
            if len(single) == (ports[0].fixed or self.batch or fitting(arrays.size)):
                yield self._stacked(single, ports)
                single = []
        if single and is_whole(ports, stacked := self._stacked(single, ports)):
            yield stacked

    def identity(self) -> str:
        """See ``Source``."""
        parts = [(path.name, path.stat().st_size) for path in self._files()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _files(self) -> list[Path]:
        known = SUFFIXES | {".npz", ".npy"}
        files = sorted(path for path in self.path.iterdir() if path.suffix.lower() in known)
        if not files:
            raise InputsError(f"{self.path} holds no .npz, .npy or image file; name the folder that does.")
        if self.preprocess is None and any(path.suffix.lower() in SUFFIXES for path in files):
            raise InputsError(
                f"{self.path} holds images; say with --preprocess what was done to them in training, "
                "such as 'resize 256; crop 224; divide 255'."
            )
        return files

    def _read(self, path: Path, ports: list[Port]) -> dict[str, Array] | Array:
        """Arrays of samples, or one sample."""
        if path.suffix.lower() == ".npz":
            return read_npz(path)
        if path.suffix.lower() != ".npy":
            assert self.preprocess is not None
            return self.preprocess.image(path)
        array = _read_npy(path)
        if len(ports) == 1 and ports[0].shape is not None and array.ndim == len(ports[0].shape) - 1:
            return array if self.preprocess is None else self.preprocess.batch(array[None])[0]
        return {path.stem: array}

    def _stacked(self, samples: list[Array], ports: list[Port]) -> Feeds:
        if len({sample.shape for sample in samples}) > 1:
            raise InputsError(
                f"{self.path} holds samples of different shapes; add resize and crop to --preprocess."
            )
        return matched(ports, {"samples": np.stack(samples)})


def source_of(data: Any, batch: int = 0, preprocess: Preprocess | None = None) -> Source:
    """Understand what a caller names as data.

    Args:
        data: a .npz file, a folder, an array, a mapping of arrays, or an iterable of batches.
        batch: how many samples run at once, 0 for as many as fit; a model or an iterable may fix it.
        preprocess: what is done to files and arrays first.

    Raises:
        InputsError: it is none of these.
    """
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        if path.is_dir():
            return Folder(path, batch, preprocess)
        if not path.is_file():
            raise InputsError(f"{path} does not exist; name a .npz file or a folder.")
        return Npz(path, batch, preprocess)
    if isinstance(data, (np.ndarray, Mapping)):
        return Arrays(as_arrays(data), batch, preprocess)
    if not isinstance(data, Iterable):
        raise InputsError(f"A {type(data).__name__} holds no data; give a path, arrays or an iterable.")
    if preprocess is not None:
        raise InputsError("An iterable makes its own batches; prepare them there, not with preprocess.")
    return Stream(data)


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of a .npz file; raises ``InputsError`` where it is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zlib raise whatever they meet in a damaged file
        raise InputsError(f"{path} cannot be read; write it with numpy.savez ({error}).") from error


def _read_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except Exception as error:
        raise InputsError(f"{path} cannot be read; write it with numpy.save ({error}).") from error
