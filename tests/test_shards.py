"""Statistics in parts: cut anywhere, measured anywhere, merged in any order, never counted twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import reduce
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import bnfold
from bnfold.cli import cli
from bnfold.core.example import Graph
from bnfold.errors import InputsError, OutputError
from bnfold.statistics.data.ports import Feeds, Port
from bnfold.statistics.data.sources import Arrays, Shard
from bnfold.statistics.result import Statistics, merge_all
from bnfold.statistics.run.batch import content
from bnfold.statistics.run.measure import Subject, Task, measure
from bnfold.statistics.run.spread import UnfinishedError, spread

MODELS = Path(__file__).parent.parent / "models"
CNN = MODELS / "digits_cnn.onnx"
DIGITS = MODELS / "digits_test.npz"


@pytest.fixture(scope="module")
def parts() -> list[Statistics]:
    return [bnfold.stats(CNN, DIGITS, shard=f"{i}/3") for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def whole() -> Statistics:
    return bnfold.stats(CNN, DIGITS)


def assert_same(one: Statistics, other: Statistics, rtol: float = 1e-5) -> None:
    """Agree up to the rounding of float32, in which every batch is reduced."""
    assert one.samples == other.samples
    for name, moments in one.moments.items():
        assert moments.count == other.moments[name].count
        np.testing.assert_allclose(moments.mean, other.moments[name].mean, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(moments.variance, other.moments[name].variance, rtol=rtol)


# Merging.


def test_parts_in_any_order_are_the_whole(parts: list[Statistics], whole: Statistics) -> None:
    for order in permutations(parts):
        assert_same(reduce(Statistics.merge, order), whole)
    assert [sum(each.samples for each in part.counted) for part in parts] == [150, 150, 150]
    assert merge_all(parts).missing() == []


def one_norm() -> onnx.ModelProto:
    op = Graph(17)
    return op.finish([op.batch_norm(op.input("x", ("N", 2)))])


def test_sorted_data_keep_their_variance() -> None:
    """Shards that differ in mean: averaging their variances loses most of it, merging loses nothing."""
    rows = np.sort(np.random.default_rng(1).normal(3.0, 2.15, (1000, 2)), axis=0).astype(np.float32)
    shards = [bnfold.stats(one_norm(), rows, shard=f"{i}/4") for i in range(1, 5)]
    variances = [next(iter(part.moments.values())).variance for part in shards]
    (merged,) = merge_all(shards).moments.values()
    np.testing.assert_allclose(merged.variance, rows.astype(np.float64).var(axis=0), rtol=1e-5)
    assert (merged.variance > 4.3).all()
    assert (np.mean(variances, axis=0) < 1.0).all()


def test_more_shards_than_samples_are_no_problem() -> None:
    """Empty shards merge like any other; only all data together may not be empty."""
    rows = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    shards = [bnfold.stats(one_norm(), rows, shard=f"{i}/5") for i in range(1, 6)]
    assert sorted(part.samples for part in shards) == [0, 0, 1, 1, 1]
    assert_same(merge_all(shards), bnfold.stats(one_norm(), rows))


def test_any_byte_tells_two_batches_apart() -> None:
    """And so do a name, a type and a shape; where the values lie in memory does not."""
    values = np.arange(10_000, dtype=np.int64).reshape(100, 100)
    seen = {
        content({"x": values}),
        content({"y": values}),
        content({"x": values.view(np.uint64)}),
        content({"x": values[None]}),
        content({"x": values, "y": values[:0]}),
        content({"x": np.array(["a"] * 2000 + ["b"] + ["a"] * 2000, object)}),
        content({"x": np.array(["a"] * 2000 + ["c"] + ["a"] * 2000, object)}),
    }
    changed = np.tile(values.reshape(-1).view(np.uint8), (9, 1))
    for row, place in enumerate(np.linspace(0, values.nbytes - 1, 9, dtype=int)):
        changed[row, place] ^= 1
        seen.add(content({"x": changed[row].view(np.int64).reshape(100, 100)}))
    assert len(seen) == 7 + 9
    assert content({"x": np.asfortranarray(values)}) == content({"x": values})


def test_a_shard_counted_twice_is_refused(parts: list[Statistics], tmp_path: Path) -> None:
    """By its name, by its content under another name, and where two cuts of the same data overlap."""
    with pytest.raises(InputsError, match="Shard 1/3 is counted twice"):
        merge_all([*parts, parts[0]])
    with np.load(DIGITS) as file:
        np.savez(tmp_path / "renamed.npz", pictures=file["images"])
    again = bnfold.stats(CNN, tmp_path / "renamed.npz", shard="2/3")
    with pytest.raises(InputsError, match="held the same samples"):
        merge_all([*parts, again])
    for other in ({"shard": "1/2"}, {"shard": "2/3", "preprocess": "divide 2"}):
        with pytest.raises(InputsError, match="cut or prepare the same data differently"):
            parts[2].merge(bnfold.stats(CNN, DIGITS, **other))
    with pytest.raises(InputsError, match="different models"):
        parts[0].merge(bnfold.stats(MODELS / "digits_mlp_bn_after.onnx", DIGITS, shard="2/3"))


def test_other_data_may_be_added(parts: list[Statistics], tmp_path: Path) -> None:
    """Shards of two data sets are one population; what is missing is told per cut."""
    rows = np.random.default_rng(3).random((40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "more.npz", image=rows)
    merged = merge_all([*parts, bnfold.stats(CNN, tmp_path / "more.npz")])
    assert merged.samples == 490
    assert merge_all(parts[:2]).missing() == ["3/3"]


def test_a_file_gives_everything_back(parts: list[Statistics], tmp_path: Path) -> None:
    """Equal to the last bit, verdict included; a damaged file is refused by one typed error."""
    path = tmp_path / "part.npz"
    parts[1].save(path)
    loaded = Statistics.load(path)
    assert loaded.to_dict() == parts[1].to_dict()
    assert_same(loaded, parts[1], rtol=0)
    content = path.read_bytes()
    version, other = ("schema_version".encode("utf-32-le"), "schema_versiom".encode("utf-32-le"))
    for damaged in (b"", content[:-30], content.replace(version, other)):
        path.write_bytes(damaged)
        with pytest.raises(InputsError):
            Statistics.load(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(InputsError, match="no statistics of bnfold"):
        Statistics.load(path)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "²/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputsError, match="shard"):
        Shard.parse(text)


# Executors.


def test_a_process_pool_measures_the_same(whole: Statistics, tmp_path: Path) -> None:
    """Files, arrays and streams of batches; the model by its path or in memory."""
    with np.load(DIGITS) as file:
        images = file["images"]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert_same(bnfold.stats(CNN, DIGITS, executor=pool, shards=3), whole)
        assert_same(bnfold.stats(onnx.load(CNN), {"image": images}, executor=pool, shards=2), whole)
        assert_same(bnfold.stats(CNN, np.array_split(images, 50), executor=pool, shards=2), whole)
        waves = bnfold.recalibrate(CNN, DIGITS, executor=pool, shards=2).estimated
    for name, running in bnfold.recalibrate(CNN, DIGITS).estimated.new.items():
        np.testing.assert_allclose(waves.new[name].variance, running.variance, rtol=1e-6)


def test_results_do_not_depend_on_who_finishes_first() -> None:
    """Parts are merged in the order of the shards: the same bits every time."""

    class Backwards(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            waiting.append((future, fn, args))
            if len(waiting) == 5:
                for later, work, given in reversed(waiting):
                    later.set_result(work(*given))
            return future

    waiting: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        forwards = bnfold.stats(CNN, DIGITS, executor=pool, shards=5)
    assert_same(bnfold.stats(CNN, DIGITS, executor=Backwards(), shards=5), forwards, rtol=0)


class Failing(Executor):
    """Runs here, and loses the worker of some shards."""

    def __init__(self, *lost: str) -> None:
        self.lost = lost
        self.asked: list[str] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run at once, or fail as a pool does."""
        future: Future[Any] = Future()
        shard = str(args[0].shard)
        self.asked.append(shard)
        if shard in self.lost:
            future.set_exception(RuntimeError("worker lost"))
        else:
            future.set_result(fn(*args))
        return future


def test_a_run_goes_on_where_a_worker_was_lost(whole: Statistics, tmp_path: Path) -> None:
    """Finished shards are kept at once and not measured again; only what is missing is."""
    failing, working = Failing("2/4", "3/4"), Failing()
    with pytest.raises(UnfinishedError, match="2 of 4 shards were not measured, the first being 2/4"):
        bnfold.stats(CNN, DIGITS, executor=failing, shards=4, parts=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-1-of-4.npz", "part-4-of-4.npz"]
    assert_same(bnfold.stats(CNN, DIGITS, executor=working, shards=4, parts=tmp_path), whole)
    assert working.asked == ["2/4", "3/4"]
    assert_same(bnfold.stats(CNN, DIGITS, executor=Failing("1/4"), shards=4, parts=tmp_path), whole)
    with pytest.raises(OutputError, match="another model, data set or shard"):
        bnfold.stats(MODELS / "digits_mlp_bn_after.onnx", DIGITS, executor=working, shards=4, parts=tmp_path)
    with pytest.raises(InputsError, match="An iterable has no shards"):
        bnfold.stats(CNN, [np.zeros((2, 1, 8, 8), np.float32)], executor=working, parts=tmp_path)


class Deadly(Arrays):
    """Data that kill the process that reads them."""

    def batches(self, ports: list[Port], shard: Shard) -> Iterator[Feeds]:
        """Die on the first shard."""
        if shard.index == 0:
            os._exit(1)
        return super().batches(ports, shard)


def test_a_worker_that_dies_is_one_error() -> None:
    """The pool breaks, and says so in a typed error instead of hanging."""
    source = Deadly({"image": np.zeros((9, 1, 8, 8), np.float32)})
    tasks = {str(each): Task(Subject(CNN), source, each) for each in (Shard(0, 2), Shard(1, 2))}
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(UnfinishedError, match="BrokenProcessPool"),
    ):
        list(spread(pool, measure, tasks))


def test_useless_data_are_an_error_of_their_own(tmp_path: Path) -> None:
    """Not a lost worker: to run again would not help."""
    np.savez(tmp_path / "wrong.npz", image=np.zeros((4, 2, 8, 8), np.float32))
    with ThreadPoolExecutor(2) as pool, pytest.raises(InputsError, match="needs shape"):
        bnfold.stats(CNN, tmp_path / "wrong.npz", executor=pool)


@pytest.mark.filterwarnings("ignore")  # what Dask and tornado say about themselves
def test_a_dask_cluster_measures_the_same(whole: Statistics) -> None:
    """Two workers in processes of their own, through the executor that Dask offers."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )
    with closing(cluster), closing(distributed.Client(cluster)) as client:
        executor = client.get_executor()
        assert_same(bnfold.stats(CNN, DIGITS, executor=executor, shards=4), whole)
        waves = bnfold.recalibrate(CNN, DIGITS, executor=executor, shards=2).estimated
        assert len({each["pid"] for each in client.run(lambda: {"pid": os.getpid()}).values()}) == 2
    for name, running in bnfold.recalibrate(CNN, DIGITS).estimated.new.items():
        np.testing.assert_allclose(waves.new[name].mean, running.mean, rtol=1e-5, atol=1e-6)


# The command.


def run(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_shards_on_the_command_line(tmp_path: Path, whole: Statistics) -> None:
    """One part per run, in any place; merge-stats judges them together and misses none."""
    paths = [tmp_path / f"part{i}.npz" for i in (1, 2)]
    for number, path in enumerate(paths, 1):
        code, text = run("stats", CNN, "--data", DIGITS, "--shard", f"{number}/2", "-o", path)
        assert (code, "measured" in text) == (0, True)
    before = paths[0].read_bytes()
    assert "was finished before" in run("stats", CNN, "--data", DIGITS, "--shard", "1/2", "-o", paths[0])[1]
    assert paths[0].read_bytes() == before
    code, text = run("merge-stats", *paths, "-o", tmp_path / "all.npz")
    assert (code, "all 5 layers fit" in text) == (0, True)
    assert_same(Statistics.load(tmp_path / "all.npz"), whole)
    assert "2/2 are missing" in run("merge-stats", paths[0])[1]
    assert run("merge-stats", paths[0], "--partial")[0] == 0
    assert "counted twice" in run("merge-stats", *paths, paths[1])[1]
    for arguments in (["--shard", "1/2"], ["--shard", "1/2", "-o", paths[0], "--json"]):
        assert run("stats", CNN, "--data", DIGITS, *arguments)[0] == 2


def test_what_stands_in_the_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    path.write_bytes(b"precious")
    code, _ = run("stats", CNN, "--data", DIGITS, "--shard", "1/2", "-o", path)
    assert code != 0
    assert path.read_bytes() == b"precious"
