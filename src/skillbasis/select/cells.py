"""Cut points into cells of near ones (k-means), so that a choice can take something from every region."""

from __future__ import annotations

import numpy as np

from ..errors import UsageError

_SAMPLE = 20_000  # points that place the centres; more would move them little
_ROUNDS = 50
_BLOCK = 1 << 14  # rows of one matrix product


def cells_of(points: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """The cell of every point: that of the nearest of `n_cells` centres.

    Centres are placed by k-means++ and moved by Lloyd's rounds until no point changes its cell, or 50 rounds, both on
    a sample of at most 20,000 points drawn without replacement; then every point goes to its nearest centre.

    Args:
        points: (n_points, n_features), finite; scale the features first, since distances are Euclidean.
        n_cells: cells wanted, at least 1.
        rng: the same state gives the same cells.
    Returns: (n_points,) int64, 0 to the number of cells less 1, no cell empty. There are fewer cells than wanted where
        the sample has fewer different points, and where a centre loses all its points.
    Raises: UsageError: no cells are wanted, or a point is not finite.
    Cost: O(n_points n_cells n_features) in matrix products; beside the points, a block of 16,384 rows and the sample.
    Source: Arthur and Vassilvitskii 2007, k-means++: the advantages of careful seeding; Lloyd 1982.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise UsageError(f"points must be a table (n_points, n_features), not of shape {points.shape}")
    if n_cells < 1:
        raise UsageError(f"n_cells must be at least 1, not {n_cells}")
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(points), _BLOCK)]
    for block in blocks:
        broken = np.flatnonzero(~np.isfinite(points[block]).all(axis=1))
        if len(broken):
            raise UsageError(f"point {block.start + broken[0]} is not finite; drop it or mend it first")
    drawn = np.arange(len(points))
    if len(points) > _SAMPLE:
        drawn = np.sort(rng.choice(len(points), _SAMPLE, replace=False))
    sample = points[drawn]
    origin = sample.mean(axis=0)  # products of coordinates far from zero would cancel
    centres = _settled(sample - origin, _seeds(sample - origin, n_cells, rng))
    nearest = np.concatenate([_nearest(points[block] - origin, centres) for block in blocks])
    return np.unique(nearest, return_inverse=True)[1].astype(np.int64)


def _seeds(points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n different points: one at random, then each by its squared distance to the nearest seed before."""
    seeds = [int(rng.integers(len(points)))]
    squared = ((points - points[seeds[0]]) ** 2).sum(axis=1)
    while len(seeds) < n and squared.max() > 0:
        seeds.append(int(rng.choice(len(points), p=squared / squared.sum())))
        squared = np.minimum(squared, ((points - points[seeds[-1]]) ** 2).sum(axis=1))
    return points[seeds]


def _settled(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Moves each centre to the mean of its points until none changes; a centre without points is dropped."""
    before = None
    for _ in range(_ROUNDS):
        cell = _nearest(points, centres)
        if before is not None and np.array_equal(cell, before):
            break
        sizes = np.bincount(cell, minlength=len(centres))
        sums = [np.bincount(cell, weights=feature, minlength=len(centres)) for feature in points.T]
        kept = sizes > 0
        centres = np.array(sums).reshape(-1, len(sizes)).T[kept] / sizes[kept, None]
        before = cell if kept.all() else None  # numbers have moved up
    return centres


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) index of the nearest centre by |c|^2 - 2 x·c, the lowest on ties."""
    return (points @ (-2 * centres.T) + (centres**2).sum(axis=1)).argmin(axis=1)  # type: ignore[no-any-return]
