"""ONNX Runtime, opened on a model and run on many batches at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from bnfold import files
from bnfold.errors import InputsError, UnsupportedModelError
from bnfold.statistics.data.ports import Array, Feeds
from bnfold.statistics.optional import optional


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
        self.threads = threads or os.cpu_count() or 1
        try:
            self._session = _opened(ort, model, options)
        except Exception as error:  # the runtime's own types are not exported
            raise UnsupportedModelError(
                f"ONNX Runtime cannot load the model ({one_line(error)}); convert it to a newer opset."
            ) from error
        self.names: list[str] = [each.name for each in self._session.get_outputs()]

    def over(self, batches: Iterable[Feeds]) -> Generator[tuple[Feeds, dict[str, Array]], None, None]:
        """The outputs of every batch by name, in the order of the batches.

        Raises:
            InputsError: the model fails on a batch.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[Feeds, Future[dict[str, Array]]]] = deque()
            pending = iter(batches)
            try:
                # One batch more than there are threads: no thread waits, and memory stays bounded.
                for feeds in islice(pending, self.threads + 1):
                    waiting.append((feeds, pool.submit(self.run, feeds)))
                while waiting:
                    feeds, outputs = waiting.popleft()
                    yield feeds, outputs.result()
                    for more in islice(pending, 1):
                        waiting.append((more, pool.submit(self.run, more)))
            finally:
                for _, future in waiting:
                    future.cancel()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs of one batch by name; raises ``InputsError`` if the model fails on it."""
        try:
            return dict(zip(self.names, self._session.run(None, feeds), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputsError(
                f"The model fails on a batch of {shapes} ({one_line(error)}); the data do not fit it."
            ) from error


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
