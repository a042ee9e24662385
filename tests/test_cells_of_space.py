"""Cells of near points: planted clusters, copies, and what Lloyd's rounds must come to."""

from __future__ import annotations

import numpy as np
import pytest

from skillbasis.errors import UsageError
from skillbasis.select import cells
from skillbasis.select.cells import cells_of

POINTS = np.random.default_rng(0).normal(size=(600, 3))


def partition(cell: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(cell == number).tolist()) for number in np.unique(cell)}


def within(points: np.ndarray, cell: np.ndarray) -> float:
    """Sum of squared distances to the mean of the cell."""
    return sum(((points[cell == c] - points[cell == c].mean(axis=0)) ** 2).sum() for c in np.unique(cell))


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_far_clusters_are_the_cells(offset: float) -> None:
    rng = np.random.default_rng(3)
    of = rng.integers(6, size=500)
    points = 100 * np.eye(6)[of] + rng.normal(size=(500, 6)) + offset
    for seed in range(5):
        assert partition(cells_of(points, 6, np.random.default_rng(seed))) == partition(of)


def test_every_point_is_in_the_cell_of_the_nearest_mean() -> None:
    """What Lloyd's rounds end in, where the sample holds all points."""
    for seed in range(3):
        cell = cells_of(POINTS, 12, np.random.default_rng(seed))
        assert cell.dtype == np.int64 and sorted(set(cell.tolist())) == list(range(12))
        means = np.array([POINTS[cell == c].mean(axis=0) for c in range(12)])
        distances = ((POINTS[:, None] - means) ** 2).sum(axis=2)
        np.testing.assert_array_equal(cell, distances.argmin(axis=1))


def test_cells_are_tight() -> None:
    chance = np.random.default_rng(1).integers(12, size=len(POINTS))
    # 12 cells in three dimensions: each some 12^(-2/3) = .19 as wide in square as the whole.
    assert within(POINTS, cells_of(POINTS, 12, np.random.default_rng(0))) < 0.35 * within(POINTS, chance)


def test_the_same_seed_gives_the_same_cells() -> None:
    first, again, other = (cells_of(POINTS, 9, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert partition(first) != partition(other)


def test_copies_share_a_cell_and_there_are_no_more_cells_than_different_points() -> None:
    distinct = np.array([[0.0, 0.0], [0.0, 0.01], [3.0, 3.0], [100.0, -5.0]])
    of = np.random.default_rng(0).integers(4, size=200)
    for seed in range(10):
        assert partition(cells_of(distinct[of], 20, np.random.default_rng(seed))) == partition(of)
        coarse = cells_of(distinct[of], 2, np.random.default_rng(seed))
        assert coarse.max() == 1 and all(len(set(coarse[of == i])) == 1 for i in range(4))
    assert cells_of(np.ones((5, 2)), 3, np.random.default_rng(0)).tolist() == [0] * 5
    assert cells_of(np.ones((5, 0)), 3, np.random.default_rng(0)).tolist() == [0] * 5, "no features at all"
    assert cells_of(np.ones((0, 2)), 3, np.random.default_rng(0)).tolist() == []
    assert sorted(cells_of(POINTS[:7], 7, np.random.default_rng(0))) == list(range(7)), "one cell each"
    assert cells_of(POINTS, 1, np.random.default_rng(0)).tolist() == [0] * 600


def test_a_sample_places_the_centres_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    of = rng.integers(4, size=2000)
    points = 100 * np.eye(4)[of] + rng.normal(size=(2000, 4))
    monkeypatch.setattr(cells, "_SAMPLE", 60)
    monkeypatch.setattr(cells, "_BLOCK", 33)
    assert partition(cells_of(points, 4, np.random.default_rng(0))) == partition(of)
    rare = np.zeros((2000, 1))
    rare[7] = 1.0  # outside of this sample, so no cell of its own
    assert cells_of(rare, 2, np.random.default_rng(0)).tolist() == [0] * 2000


def test_requests_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="n_cells must be at least 1, not 0"):
        cells_of(POINTS, 0, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"must be a table .* not of shape \(3,\)"):
        cells_of(np.ones(3), 1, np.random.default_rng(0))
    broken = POINTS.copy()
    broken[400, 1] = np.nan
    with pytest.raises(UsageError, match="point 400 is not finite"):
        cells_of(broken, 4, np.random.default_rng(0))
