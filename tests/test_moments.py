"""Moments merge: parts in any order give the mean and variance of the whole, and survive a file."""

from __future__ import annotations

import statistics
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bnfold.errors import InputsError, OutputError
from bnfold.training import ChannelMoments, MovingAverage, Running, bessel

LARGEST = 1e3
NONE = ChannelMoments.empty(2)


def samples(smallest: int) -> st.SearchStrategy[np.ndarray]:
    """Draw tensors of two channels, of ``smallest`` samples or more."""
    shape = st.tuples(st.integers(smallest, 8), st.just(2))
    return arrays(np.float64, shape, elements=st.floats(-LARGEST, LARGEST))


parts = samples(0).map(ChannelMoments.of)


def assert_same(one: ChannelMoments, other: ChannelMoments) -> None:
    """Agree up to rounding, whose unit is that of the samples: hence deviations, not variances."""
    assert one.count == other.count
    close = {"rtol": 1e-12, "atol": 1e-12 * LARGEST}
    np.testing.assert_allclose(one.mean, other.mean, **close)
    np.testing.assert_allclose(np.sqrt(one.m2), np.sqrt(other.m2), **close)


@settings(deadline=None)
@given(a=parts, b=parts, c=parts)
def test_merge_is_a_commutative_monoid(a: ChannelMoments, b: ChannelMoments, c: ChannelMoments) -> None:
    """So that shards may come in any grouping and any order, some of them empty."""
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    for same in (a.merge(NONE), NONE.merge(a)):
        assert (same.count, *same.mean, *same.m2) == (a.count, *a.mean, *a.m2)


@settings(deadline=None)
@given(x=samples(1), data=st.data())
def test_shards_in_any_order_are_the_whole(x: np.ndarray, data: st.DataObject) -> None:
    """However the data are cut, and whichever shard comes first."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    shards = data.draw(st.permutations(np.split(x, cuts)))
    merged = reduce(ChannelMoments.merge, map(ChannelMoments.of, shards), NONE)
    assert_same(merged, ChannelMoments.of(x))
    assert_same(merged, ChannelMoments(len(x), x.mean(axis=0), x.var(axis=0) * len(x)))


@pytest.mark.parametrize("shards", [1, 7, 500])
def test_a_large_offset_does_not_swallow_a_small_variance(shards: int) -> None:
    """Offset 1e8, deviation 1e-3, against exact rational arithmetic: twelve digits in one piece.

    A merge knows each part's mean to the float64 spacing at 1e8 only, 1.5e-5 deviations.
    """
    x = 1e8 + 1e-3 * np.random.default_rng(1).normal(size=(500, 1))
    exact = [Fraction(value) for value in x[:, 0].tolist()]
    merged = reduce(ChannelMoments.merge, map(ChannelMoments.of, np.array_split(x, shards)))
    assert merged.mean[0] == pytest.approx(float(statistics.mean(exact)), rel=1e-15)
    within = 1e-12 if shards == 1 else np.spacing(1e8) / 1e-3
    assert merged.variance[0] == pytest.approx(float(statistics.pvariance(exact)), rel=within)


def test_sorted_data_need_merged_moments() -> None:
    """Where shards differ in mean, averaging their variances loses nearly all of the variance."""
    x = np.sort(np.random.default_rng(6).normal(3.0, 2.0, (1000, 2)), axis=0)
    shards = [ChannelMoments.of(part) for part in np.split(x, 10)]
    merged = reduce(ChannelMoments.merge, shards)
    np.testing.assert_allclose(merged.variance, x.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.unbiased_variance, x.var(axis=0, ddof=1), rtol=1e-12)
    averaged = np.mean([shard.variance for shard in shards], axis=0)
    assert (averaged < 0.1 * merged.variance).all()


def test_moments_are_values() -> None:
    """They own read-only copies, so that neither their source nor their reader can change them."""
    mean = np.array([1.0, 2.0])
    moments = ChannelMoments(3, mean, np.array([4.0, 5.0]))
    mean[0] = 9.0
    assert moments.mean[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        moments.m2[0] = 9.0


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    """Under exactly the given name, replacing what was there, equal input giving equal bytes."""
    path = tmp_path / "part.1"
    NONE.save(path)
    moments = ChannelMoments.of(np.random.default_rng(7).normal(size=(9, 2)))
    moments.save(path)
    first = path.read_bytes()
    loaded = ChannelMoments.load(path)
    loaded.save(str(path))
    assert (loaded.count, *loaded.mean, *loaded.m2) == (9, *moments.mean, *moments.m2)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk half-way through costs the new file, not the one already there."""

    def full(file: IO[bytes], **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "part.npz"
    NONE.save(path)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        ChannelMoments.of([[1.0, 2.0]]).save(path)
    assert ChannelMoments.load(path).count == 0
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="Not a directory"):
        NONE.save(path / "below a file.npz")


def damaged(path: Path) -> dict[str, bytes]:
    """Return the contents of files that are no moments, by what is wrong with them."""
    NONE.save(path)
    whole = path.read_bytes()
    np.savez(path, count=np.int64(1), mean=np.zeros(2))
    key_missing = path.read_bytes()
    np.savez(path, count=np.float64(1.5), mean=np.zeros(2), m2=np.zeros(2))
    fraction = path.read_bytes()
    np.savez(path, count=np.int64(1), mean=np.zeros(2), m2=np.full(2, np.nan))
    nan = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, np.zeros(2))
    array = path.read_bytes()
    flipped = whole.replace(np.zeros(2).tobytes(), np.ones(2).tobytes())
    return {
        "empty": b"",
        "text": b"count,mean,m2\n",
        "cut": whole[:-40],
        "flipped": flipped,
        "one array": array,
        "key missing": key_missing,
        "half a sample": fraction,
        "not finite": nan,
    }


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Whatever is wrong with it, by one typed error."""
    path = tmp_path / "part.npz"
    with pytest.raises(InputsError, match="No such file"):
        ChannelMoments.load(path)
    for content in damaged(path).values():
        path.write_bytes(content)
        with pytest.raises(InputsError):
            ChannelMoments.load(path)


def test_what_no_sample_could_give_is_refused() -> None:
    """Nonsense is caught where it enters, before it can spread through merges."""
    one, two = np.zeros(1), np.zeros(2)
    for wrong in ((1, one, two), (-1, two, two), (1, two, two - 1), (1, two, two + np.inf)):
        with pytest.raises(InputsError):
            ChannelMoments(*wrong)
    with pytest.raises(InputsError, match="2 and 1 channels"):
        NONE.merge(ChannelMoments(1, one, one))
    with pytest.raises(InputsError, match="not a finite number"):
        ChannelMoments.of([[1e200], [-1e200]])
    with pytest.raises(InputsError, match="too few"):
        _ = ChannelMoments(1, one, one).unbiased_variance
    with pytest.raises(InputsError, match="no unbiased variance"):
        bessel(1)
    with pytest.raises(InputsError, match="moving mean has shape"):
        MovingAverage().update(Running(one, two), ChannelMoments(1, two, two))
