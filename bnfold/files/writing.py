"""Models out: in a folder of their own first, then renamed, so that a crash leaves the old or the new.

A model with external data is two files or more, and no file system renames two at once. So the data
get a name that no other model has, made from the digest of what refers to them; the old model keeps its
data until the one rename that puts the new model in its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from bnfold.errors import OutputError
from bnfold.files.reading import constant_bytes, external_tensors
from bnfold.files.walk import tensors_of
from bnfold.signals import deferred, under

# Protobuf cannot hold 2 GiB; stay below it with room for the graph itself.
_INLINE_LIMIT = (1 << 31) - (1 << 26)

# Offsets that every system can map.
_ALIGNMENT = 1 << 16


@contextmanager
def staged(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in a new folder beside ``target``; what is written there takes its place on success.

    Everything in the folder is renamed into the target's folder when the block ends without an
    exception, the model last; on any exception nothing outside the folder has changed.

    Raises:
        OutputError: the target's folder cannot be written to.
    """
    link, target = Path(target), Path(os.path.realpath(target))
    with deferred() as mask:
        folder = _new_folder(target.parent)
        try:
            with under(mask):
                yield folder / target.name
            _move_into_place(folder, target, link)
        except OSError as error:
            raise OutputError(
                f"cannot write {target} ({error.strerror or error}); nothing was changed."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(parent: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".bnfold-", dir=parent))
    except OSError as error:
        raise OutputError(f"cannot write to {parent} ({error.strerror}); choose another place.") from error


def _move_into_place(folder: Path, target: Path, link: Path) -> None:
    if target.exists():
        os.chmod(folder / target.name, stat.S_IMODE(target.stat().st_mode))
    model = folder / target.name
    data = sorted(path for path in folder.rglob("*") if path.is_file() and path != model)
    if data and os.path.realpath(link.parent) != os.path.realpath(target.parent):
        raise OutputError(
            f"{link} is a link into another folder, where its data would not be found; "
            f"name {target} with -o instead."
        )
    placed = []
    try:
        for path in data:
            place = target.parent / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            new = not place.exists()
            os.replace(path, place)
            placed += [(place, os.stat(place).st_ino)] if new else []
        os.replace(model, target)
    except BaseException:
        if model.exists():  # else the new model is in place, and needs its data
            _take_back(placed)
        raise


def _take_back(placed: list[tuple[Path, int]]) -> None:
    for place, number in placed:
        if place.exists() and os.stat(place).st_ino == number:  # not what another run put there since
            os.unlink(place)


def write(model: ir.Model, path: Path) -> None:
    """Write a model to a path from ``staged``; data stay external where they were, or do not fit inside.

    The bytes depend on the model and the name alone.

    Raises:
        OutputError: the graph without its constants does not fit into one file.
    """
    try:
        if any(external_tensors(model)) or constant_bytes(model) > _INLINE_LIMIT:
            _write_with_data(model, path)
        else:
            path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    except (ValueError, EncodeError, ir.serde.SerdeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OutputError(
            f"cannot write {path.name}: the model has what ONNX cannot hold ({cause})."
        ) from error


def _write_with_data(model: ir.Model, path: Path) -> None:
    """Keep to the input's sub-folder and, if it has several data files, to the size of its largest."""
    given = {(os.fspath(tensor.location), tensor.path) for tensor in external_tensors(model)}
    folder = min((_folder(location) for location, _ in given), default=PurePath())
    sizes = [os.path.getsize(path) for _, path in given]
    (path.parent / folder).mkdir(parents=True, exist_ok=True)
    ir.save(
        model,
        path,
        external_data=folder / "data",
        alignment=_ALIGNMENT,
        max_shard_size_bytes=max(sizes) if len(sizes) > 1 else None,
    )
    _name_after_content(path, path.parent / folder)


def _folder(location: str) -> PurePath:
    folder = PurePath(location).parent
    return PurePath() if folder.is_absolute() or ".." in folder.parts else folder


def _name_after_content(path: Path, folder: Path) -> None:
    """Rename the data files that a model refers to after a digest, and say so in the model.

    One data file is replaced by one rename, so that the digest of the model alone will do: two pairs
    that share a name differ in the data file only. Several files take part with their content.
    """
    proto = onnx.load(path, load_external_data=False)
    files = sorted(each for each in folder.iterdir() if each != path)
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    for each in files if len(files) > 1 else ():
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for each in files:
        part = each.name.removeprefix("data")
        each.rename(each.with_name(f"{path.name}.{digest.hexdigest()[:12]}{part}.data"))
    for tensor in tensors_of(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                place = PurePath(entry.value)
                part = place.name.removeprefix("data")
                name = f"{path.name}.{digest.hexdigest()[:12]}{part}.data"
                entry.value = (place.parent / name).as_posix()
    path.write_bytes(proto.SerializeToString(deterministic=True))


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model atomically: a failure leaves whatever stood there before.

    Raises:
        OutputError: the file cannot be written.
    """
    with staged(path) as temporary:
        write(model, temporary)
