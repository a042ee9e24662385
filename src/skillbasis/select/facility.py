"""Represent the pool: rows chosen so that every row of it is like one of them (facility location)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..corpus import SelectedRow
from ..errors import UsageError
from .candidates import Candidates
from .texts import row_vectors

GROUND_ROWS = 20_000
"""Of larger pools a random sample of so many rows is to be represented."""
_ENTRIES = 1 << 22  # similarities held at a time: 16 MB of float32
_FEWEST, _MOST = 16, 64  # rows whose gains are renewed at a time, twice as many each time they do not suffice
_CHEAP = 1024  # a choice is taken off all gains at once where that costs less than to renew those of so many rows
_GRAIN = 1e-4  # gains are multiples of it: differences below are those of rounding, of which ties are full


@dataclass(frozen=True)
class Representatives:
    """Rows in the order of their choice."""

    indices: np.ndarray
    """(n,) int64, all different."""
    gains: np.ndarray
    """(n,) float64, never increasing but for rounding: what each adds to the sum, over the rows to be represented, of
    the similarity to the most similar chosen row, to the nearest 0.0001; 0 for those that only fill the budget up."""


def representatives(
    vectors: np.ndarray, n: int, ground: np.ndarray | None = None, rest: np.ndarray | None = None
) -> Representatives:
    """Chooses rows one by one, each the one that adds most to the sum over g of max_c sim(g, c), c the chosen rows.

    This is greedy facility location. sim is the cosine, and 0 where that is negative. What a row adds only falls as
    others are chosen, so a row whose last known gain is below the best renewed one need not be looked at (lazy greedy).
    A choice that is nearer to a few rows g only changes the gains by what these had: that is taken off at once, and
    the gains stay as good as they were. Either way the order is that of looking at all rows. Gains are rounded to
    0.0001, for two rows that stand for each other and nobody else add exactly the same, and the last bits of a product
    must not decide between them.

    Args:
        vectors: (n_rows, d) float32, of norm 1 or 0.
        n: rows to choose, 1 to n_rows.
        ground: indices of the rows g that are to be represented; None takes all.
        rest: indices of all rows in the order in which they fill up when nothing is left to gain; None is ascending.
    Returns: indices and gains. Ties go to the lowest index; a gain below 0.00005 is none. The first of them are what a
        smaller n gives.
    Raises: UsageError: n out of range, or vectors that are no finite table.
    Cost: O(n_rows |ground| d) for the first gains and O(|ground| d) for each renewed one, up to some hundreds for
        each choice; memory for 16 MB of similarities, the ground's vectors, and some numbers per row.
    Source: Minoux 1978, Accelerated greedy algorithms for maximizing submodular set functions; the greedy sum is at
        least 1 - 1/e of the best one (Nemhauser, Wolsey & Fisher 1978).
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise UsageError("the vectors must be a table (n_rows, d) of finite numbers; drop the rows that are not")
    if not 1 <= n <= len(vectors):
        raise UsageError(f"n must be from 1 to the number of rows, {len(vectors)}, not {n}")
    asked = vectors if ground is None else vectors[ground]
    nearest = np.zeros(len(asked), dtype=np.float32)  # similarity to the most similar chosen row
    bounds = _gains(vectors, asked, nearest)  # (n_rows,) at least what each row adds
    renewed = np.ones(len(vectors), dtype=bool)  # whether it is what the row adds
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < n:
        best = _best(vectors, asked, nearest, bounds, renewed)
        grains = np.rint(bounds[best] / _GRAIN)
        if grains <= 0:
            break
        chosen.append(best)
        gains.append(float(grains * _GRAIN))
        similarity = asked @ vectors[best]
        nearer = np.flatnonzero(similarity > nearest)
        if len(nearer) * len(vectors) <= _CHEAP * len(asked):
            bounds -= _gains(vectors, asked[nearer], nearest[nearer], similarity[nearer])
        else:
            renewed[:] = False
        nearest[nearer] = similarity[nearer]
        bounds[best], renewed[best] = -np.inf, True
    rest = np.arange(len(vectors)) if rest is None else rest
    left = rest[np.isin(rest, chosen, invert=True)][: n - len(chosen)]
    return Representatives(
        np.array([*chosen, *left], dtype=np.int64), np.concatenate([gains, np.zeros(len(left))]).astype(np.float64)
    )


def representing_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes rows so that every row of the pool is like one of them: facility location over text vectors.

    In a pool above 20,000 rows a random sample of 20,000 is to be represented; rows are chosen from the whole pool
    still, and once the sample has nothing to gain (about when the budget reaches its size) they are drawn at random.
    The seed draws the sample and the rows that fill up, and changes nothing in smaller pools. The score of a row is
    what it adds: the sum of similarities, over the rows to be represented.
    Raises: UsageError: there are no texts, or no such encoder.
    """
    vectors = row_vectors(candidates)
    ground = rest = None
    if len(vectors) > GROUND_ROWS:
        rest = rng.permutation(len(vectors))
        ground = np.sort(rest[:GROUND_ROWS])
    found = representatives(vectors, budget, ground, rest)
    whom = "the pool" if ground is None else f"a random sample of {GROUND_ROWS:,} rows"
    return [
        SelectedRow(
            candidates.ids[i], rank, float(gain), reason=f"represents {whom}" if gain else "filled up: nothing to gain"
        )
        for rank, (i, gain) in enumerate(zip(found.indices, found.gains, strict=True), 1)
    ]


def _best(vectors: np.ndarray, asked: np.ndarray, nearest: np.ndarray, bounds: np.ndarray, renewed: np.ndarray) -> int:
    """The row that adds most, the first of those; renews as many bounds as it takes to know."""
    n_rows = _FEWEST
    while True:
        grains = np.rint(bounds / _GRAIN)
        best = int(grains.argmax())
        if renewed[best]:
            return best
        least = grains[renewed].max(initial=0)  # chosen rows, at -inf, stay as they are
        stale = np.flatnonzero(~renewed & (grains >= least))
        if len(stale) > n_rows:
            stale = stale[np.argpartition(-grains[stale], n_rows)[:n_rows]]
        stale = np.union1d(stale, best)
        bounds[stale] = _gains(vectors[stale], asked, nearest)
        renewed[stale] = True
        n_rows = min(2 * n_rows, _MOST)


def _gains(rows: np.ndarray, asked: np.ndarray, nearest: np.ndarray, nearer: np.ndarray | None = None) -> np.ndarray:
    """(rows,) float64: what each would add to the similarities of those that are asked for.

    With `nearer`, how much less it adds where those similarities are not `nearest` any more but as much as that.
    """
    gains = np.zeros(len(rows))
    most = np.inf if nearer is None else nearer - nearest
    size = max(1, _ENTRIES // max(1, len(asked)))
    for start in range(0, len(rows), size):
        similarity = rows[start : start + size] @ asked.T  # (rows, asked)
        similarity -= nearest
        np.clip(similarity, 0, most, out=similarity)
        gains[start : start + size] = similarity.sum(axis=1, dtype=np.float64)
    return gains
