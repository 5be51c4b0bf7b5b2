"""What folding leaves has to stay: checked against a search that knows nothing of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from placement import Op, Small, compared, fewest  # noqa: E402


@pytest.mark.parametrize("seed", range(30))
def test_nothing_stays_that_need_not(seed: int) -> None:
    """On a small graph folding leaves exactly as many affine nodes as the best placement there is.

    But for maps that other readers would have to undo: these are refused, and the report says so.
    """
    result = compared(seed)
    assert result.left == result.least or (result.left > result.least and result.inverse)


def test_the_search_can_fail() -> None:
    """The search tells a map that a layer can take from one that is stuck, or that padding keeps."""
    norm = Op("BatchNormalization", (0,), 1)
    norm.scale, norm.shift = norm.scale * 2, norm.shift + 1
    assert fewest(Small([norm, Op("conv", (1,), 2)], [2])) == 0
    assert fewest(Small([norm, Op("padded", (1,), 2)], [2])) == 1
    assert fewest(Small([norm, Op("sigmoid", (1,), 2)], [2])) == 1
