"""Rows whose vectors are near those of a query set, as the model reads both: RDS+ and CRDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..corpus import SelectedRow
from ..errors import ArtifactError, UsageError
from .candidates import Candidates

Transform = Callable[[np.ndarray], np.ndarray]
"""Takes (n, d) vectors to the space in which they are compared, (n, k) float64."""

_ENTRIES = 1 << 24  # numbers held at a time: 128 MB of 8 bytes
_PRODUCT = 1 << 19  # of them in one matrix product
_ROWS = 1 << 14  # rows whose similarities are looked at together
_LOW = (1 << 32) - 1
_DIMENSIONS = 512  # of CRDS-W as published, for hidden states of 4,096
_ROWS_PER_DIMENSION = 10
_FITTED = 1 << 15  # rows the whitening is fitted on: more hardly move 512 components


def nearest_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """RDS+: takes the rows whose vectors have the largest cosine to those of a query set.

    The vectors should be the last block's states, averaged with weights proportional to the place of the token
    (`pooling="weighted"`). `aggregate` of the settings says how queries share the budget: `round-robin`, each query in
    turn taking its nearest row that is not taken; or `max`, the rows nearest to any query. Ties go to the row that is
    earlier in the corpus, and the seed changes nothing. A vector of length 0 has cosine 0 with everything. The score
    of a row is its cosine to the query it was taken for.
    Raises: UsageError: there is no query set, or it is empty. ArtifactError: a vector is not finite.
    Cost: O(n q d) in matrix products; besides the vectors some 1 GB at most, whatever n and q.
    Source: Ivison et al. 2025, Large-scale data selection for instruction tuning (arXiv 2503.01807). Their published
        selection lets a query lose its turn whose nearest row is taken; here it takes the next one. Its states come
        from behind the final norm.
    """
    return _nearest(candidates, budget, lambda vectors: np.asarray(vectors, dtype=np.float64))


def nearest_rows_whitened(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """CRDS (whitened): as RDS+, with the cosine taken after centring, PCA and scaling each component to variance 1.

    Hidden states share a few large components that make everything look alike; whitening gives all components one say.
    See `whitening` for how many there are.
    Raises, Cost: as `nearest_rows`, and fitting: O(m d^2 + d^3) for m fitted rows.
    Source: Shu et al. 2026, On representation redundancy in large-scale instruction tuning data selection (arXiv
        2602.13773), variant CRDS-W.
    """
    return _nearest(candidates, budget, whitening(candidates.known_query.rows, rng))


def whitening(rows: np.ndarray, rng: np.random.Generator) -> Transform:
    """Fits centring and PCA whitening on rows.

    The leading components are kept: 512 as published, but at most one for ten rows it is fitted on (others would be
    noise blown up to variance 1), and none whose variance is numerically zero. Nothing is added to the variances.

    Args:
        rows: (n, d); at most 32,768 of them, drawn by `rng`, are used.
    Returns: the transform; the fitted rows come out with mean 0 and unit covariance.
    Raises: ArtifactError: a fitted row is not finite.
    """
    from scipy.linalg import eigh

    drawn = np.arange(len(rows))
    if len(rows) > _FITTED:
        drawn = np.sort(rng.choice(len(rows), _FITTED, replace=False))
    d = rows.shape[1]
    mean, scatter = np.zeros(d), np.zeros((d, d))
    for part in _parts(len(drawn), d):
        mean += rows[drawn[part]].sum(axis=0, dtype=np.float64) / len(drawn)
    if not np.isfinite(mean).all():
        broken = next(i for i in drawn if not np.isfinite(rows[i]).all())
        raise ArtifactError(f"the vector of row number {broken} is not finite; read the row again")
    for part in _parts(len(drawn), d):
        centred = rows[drawn[part]] - mean
        scatter += centred.T @ centred
    n_kept = max(1, min(_DIMENSIONS, d, len(drawn) // _ROWS_PER_DIMENSION))
    variance, components = eigh(scatter / len(drawn), subset_by_index=(d - n_kept, d - 1))
    there = variance > variance[-1] * d * np.finfo(np.float64).eps
    projection = components[:, there] / np.sqrt(variance[there])  # (d, kept)
    return lambda vectors: (vectors - mean) @ projection


def _parts(n: int, d: int) -> Iterator[slice]:
    """Slices of few enough rows of d numbers that what is made of them stays in the cache."""
    size = max(1, min(_ROWS, _PRODUCT // d))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _nearest(candidates: Candidates, budget: int, transform: Transform) -> list[SelectedRow]:
    vectors = candidates.known_query
    if not len(vectors.query):
        raise UsageError("the query set is empty; give one with at least one row")
    similarities = _Similarities(candidates.ids, vectors.rows, vectors.query, transform)
    if candidates.settings.aggregate == "max":
        chosen = _nearest_to_any(similarities, budget)
        reason = "nearest to any of the queries, to query"
    else:
        chosen = _round_robin(similarities, budget)
        reason = "nearest row left to query"
    return [
        SelectedRow(candidates.ids[one.row], rank, one.cosine, reason=f"{reason} {one.query}")
        for rank, one in enumerate(chosen, 1)
    ]


@dataclass(frozen=True)
class _Choice:
    row: int
    query: int
    cosine: float


class _Similarities:
    """Cosines of all rows with all queries, made anew block by block and never held together."""

    def __init__(self, ids: Sequence[str], rows: np.ndarray, query: np.ndarray, transform: Transform) -> None:
        self.n_rows, self.n_queries = len(rows), len(query)
        self._ids, self._rows, self._transform = ids, rows, transform
        broken = np.flatnonzero(~np.isfinite(query).all(axis=1))
        if len(broken):
            raise ArtifactError(f"the vector of query {broken[0]} is not finite; read the query set again")
        vectors = transform(query)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._query = vectors / np.where(length > 0, length, 1)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the first row of a block of at most `size` rows, and their cosines (queries, rows in it) float32.

        Products are in float64, so that copies of a row, which round otherwise in the last bits, come out equal.
        """
        for start in range(0, self.n_rows, size):
            block = self._rows[start : start + size]
            cosines = np.empty((self.n_queries, len(block)), dtype=np.float32)
            for part in _parts(len(block), block.shape[1]):
                if not np.isfinite(block[part]).all():
                    broken = start + part.start + int(np.flatnonzero(~np.isfinite(block[part]).all(axis=1))[0])
                    raise ArtifactError(f"the vector of row {self._ids[broken]!r} is not finite; read the row again")
                vectors = self._transform(block[part])
                length = np.linalg.norm(vectors, axis=1)
                cosines[:, part] = self._query @ vectors.T / np.where(length > 0, length, 1)
            yield start, cosines

    def best(self, n: int, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The n nearest free rows of each query, nearest first, on ties the earlier row.

        Args:
            n: at most the number of free rows.
            free: (n_rows,) bool.
        Returns: (queries, n) int64 rows and (queries, n) float32 cosines.
        """
        kept = np.empty((self.n_queries, 0), dtype=np.int64)
        for start, cosines in self.blocks(max(n, _block_rows(self.n_queries))):
            keys = _keys(cosines, start)[:, free[start : start + cosines.shape[1]]]
            kept = np.concatenate([kept, keys], axis=1)
            if kept.shape[1] > n:
                kept = np.partition(kept, kept.shape[1] - n, axis=1)[:, -n:]
        kept.sort(axis=1)
        return _rows_of(kept[:, ::-1]), _cosines_of(kept[:, ::-1])


def _block_rows(n_queries: int) -> int:
    return max(1, min(_ROWS, _ENTRIES // n_queries))


def _keys(cosines: np.ndarray, start: int) -> np.ndarray:
    """One int64 for each entry whose order is that of the cosines and, where these are equal, of earlier rows.

    The upper half holds the bits of the cosine (those of a negative one turned round, so that they rise with it), the
    lower half the number of the row counted downwards.
    """
    bits = (cosines + np.float32(0)).view(np.int32)  # adding 0 makes -0 and 0 one
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return (rising << 32) | (_LOW - np.arange(start, start + cosines.shape[1]))  # type: ignore[no-any-return]


def _rows_of(keys: np.ndarray) -> np.ndarray:
    return _LOW - (keys & _LOW)


def _cosines_of(keys: np.ndarray) -> np.ndarray:
    rising = (keys >> 32).astype(np.int32)
    return (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(np.float32)


def _nearest_to_any(similarities: _Similarities, n: int) -> list[_Choice]:
    nearest = np.empty(similarities.n_rows, dtype=np.float32)
    query = np.empty(similarities.n_rows, dtype=np.int64)
    for start, cosines in similarities.blocks(_block_rows(similarities.n_queries)):
        part = slice(start, start + cosines.shape[1])
        query[part] = cosines.argmax(axis=0)
        nearest[part] = cosines.max(axis=0)
    best = np.argsort(-nearest, kind="stable")[:n]
    return [_Choice(int(i), int(query[i]), float(nearest[i])) for i in best]


def _round_robin(similarities: _Similarities, n: int) -> list[_Choice]:
    """Each query in turn takes its nearest free row.

    Of each query only so many rows are kept as memory allows. With n of them no query can run out, as others take less
    than n; else, when one has lost all of its kept rows, the nearest free ones are looked up anew, for all queries.
    """
    free = np.ones(similarities.n_rows, dtype=bool)
    depth = max(1, min(n, _ENTRIES // similarities.n_queries))
    rows, cosines = similarities.best(depth, free)
    place = [0] * similarities.n_queries
    chosen: list[_Choice] = []
    while len(chosen) < n:
        j = len(chosen) % similarities.n_queries
        while place[j] < rows.shape[1] and not free[rows[j, place[j]]]:
            place[j] += 1
        if place[j] == rows.shape[1]:
            rows, cosines = similarities.best(min(depth, n - len(chosen)), free)
            place = [0] * similarities.n_queries
        i = int(rows[j, place[j]])
        chosen.append(_Choice(i, j, float(cosines[j, place[j]])))
        free[i] = False
    return chosen
