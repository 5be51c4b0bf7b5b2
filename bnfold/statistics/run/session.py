"""ONNX Runtime, opened on a model and run on many batches at once."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import onnx_ir as ir

from bnfold import files
from bnfold.errors import InputsError, UnsupportedModelError
from bnfold.statistics.data.ports import Array, Feeds
from bnfold.statistics.optional import optional

# How many batches are waited for together, unless they take more bytes than this.
_TOGETHER = 64
_BYTES = 1 << 26


class Session:
    """A model in ONNX Runtime on the CPU.

    Args:
        model: what to run; external data are read from where they are.
        threads: how many batches run at once, each on a thread of its own; with one batch after the
            other, layers of small nets would wait for each other's threads most of the time.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """

    def __init__(self, model: ir.Model, threads: int = 0) -> None:
        ort = optional("onnxruntime", "ort")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.threads = threads or processors()
        try:
            self._session = _opened(ort, model, options)
        except Exception as error:  # the runtime's own types are not exported
            raise UnsupportedModelError(
                f"ONNX Runtime cannot load the model ({one_line(error)}); convert it to a newer opset."
            ) from error
        self.names: list[str] = [each.name for each in self._session.get_outputs()]

    def over(self, batches: Iterable[Feeds]) -> Generator[list[tuple[Feeds, dict[str, Array]]], None, None]:
        """The outputs of every batch by name, in the order of the batches, several of them at a time.

        While some batches run the next are read, and nobody has to wake for every single one.

        Raises:
            InputsError: the model fails on a batch.
        """
        pool, pending, stopped = ThreadPoolExecutor(self.threads), iter(batches), Event()

        def run(feeds: list[Feeds]) -> list[dict[str, Array]]:
            return [self.run(each) for each in feeds if not stopped.is_set()]

        def start() -> tuple[list[Feeds], list[Future[list[dict[str, Array]]]]]:
            feeds = self._next(pending)
            share = -(-len(feeds) // self.threads) or 1
            return feeds, [pool.submit(run, feeds[k : k + share]) for k in range(0, len(feeds), share)]

        try:
            ahead = start()
            while ahead[0]:
                (feeds, parts), ahead = ahead, start()
                wait(parts)
                yield list(zip(feeds, [each for part in parts for each in part.result()], strict=True))
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)

    def _next(self, pending: Iterator[Feeds]) -> list[Feeds]:
        """As many batches as are cheap to wait for together, and to keep in memory."""
        feeds, size = [], 0
        for each in pending:
            feeds.append(each)
            size += sum(array.nbytes for array in each.values())
            if len(feeds) >= _TOGETHER or (size >= _BYTES and len(feeds) >= self.threads):
                break
        return feeds

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs of one batch by name; raises ``InputsError`` if the model fails on it."""
        try:
            return dict(zip(self.names, self._session.run(None, feeds), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputsError(
                f"The model fails on a batch of {shapes} ({one_line(error)}); the data do not fit it."
            ) from error


def processors() -> int:
    """On how many processors this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _opened(ort: Any, model: ir.Model, options: Any) -> Any:
    providers = ["CPUExecutionProvider"]
    external = next(files.external_tensors(model), None)
    if external is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(external.base_dir))
        content = ir.serde.serialize_model(model).SerializeToString()
        return ort.InferenceSession(content, options, providers=providers)
    with TemporaryDirectory(prefix="bnfold-stats-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        files.write(model, path)  # a message of more than 2 GiB could not be handed over in memory
        return ort.InferenceSession(str(path), options, providers=providers)


def one_line(error: BaseException) -> str:
    """The text of an error on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
