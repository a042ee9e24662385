"""The examples at both ends of a direction, without near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, nearest
from .keywords import tokens

RankBy = Literal["cosine", "projection", "raw_cosine"]

DUPLICATE_JACCARD = 0.8
"""Two texts that share more than this fraction of their word 3-grams are near-duplicates."""
CANDIDATES_PER_EXAMPLE = 50
"""How many rows are looked at for each example wanted; a corpus of one template would be searched to its end."""


@dataclass(frozen=True)
class Exemplar:
    """An example at one end of a direction."""

    id: str
    """The example's id."""
    row: int
    """Its row in the score table."""
    score: float
    """Projection (x - mean)·v in units of the activations."""
    cosine: float
    """Cosine with the direction: uncentred where the ranking is by `raw_cosine`, else centred; NaN at zero norm."""


def ranking_values(
    scores: NDArray[np.floating],
    norm: NDArray[np.floating],
    raw_norm: NDArray[np.floating],
    mean_scores: NDArray[np.floating],
    by: RankBy = "cosine",
) -> NDArray[np.float64]:
    """Computes the number by which examples are ordered along each direction.

    Args:
        scores: (n, K), projections (x - mean)·v_k.
        norm: (n,), |x - mean|.
        raw_norm: (n,), |x|.
        mean_scores: (K,), mean·v_k.
        by: `cosine` (centred), `projection`, or `raw_cosine` (uncentred, as published; the mean dominates it).
    Returns: (n, K); NaN where the norm is zero and a cosine is therefore undefined.
    Raises: UsageError: when `by` is not one of the three.
    """
    values = np.asarray(scores, dtype=np.float64)
    if by == "projection":
        return values
    if by == "cosine":
        lengths = np.asarray(norm, dtype=np.float64)
    elif by == "raw_cosine":
        values = values + np.asarray(mean_scores, dtype=np.float64)
        lengths = np.asarray(raw_norm, dtype=np.float64)
    else:
        allowed = list(get_args(RankBy))
        raise UsageError(f"by={by!r} is not one of {', '.join(allowed)}{nearest(str(by), allowed)}")
    result = np.full(values.shape, np.nan)
    np.divide(values, lengths[:, None], out=result, where=lengths[:, None] > 0)
    return result


def both_ends(values: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits the rows with a value into an upper and a lower half, each with its extreme first.

    Args:
        values: (n,), NaN where a row has no value.
    Returns: row numbers (upper half, largest first; lower half, smallest first), ties in row order. No row is in both;
        a middle row is in the upper half. Both are empty where all values are equal: there are no ends.
    """
    rows = np.flatnonzero(~np.isnan(values))
    if len(rows) == 0 or np.ptp(values[rows]) == 0:
        return rows[:0], rows[:0]
    descending = rows[np.argsort(-values[rows], kind="stable")]
    n_upper = (len(rows) + 1) // 2
    lower = np.sort(descending[n_upper:])
    return descending[:n_upper], lower[np.argsort(values[lower], kind="stable")]


def top_examples(
    scores: NDArray[np.floating],
    norm: NDArray[np.floating],
    raw_norm: NDArray[np.floating],
    mean_scores: NDArray[np.floating],
    texts: Sequence[str],
    direction: int,
    n: int = 10,
    by: RankBy = "cosine",
    *,
    ids: Sequence[str] | None = None,
) -> tuple[list[Exemplar], list[Exemplar]]:
    """Finds the examples at the positive and at the negative end of a direction, near-duplicates left out.

    Args:
        scores: (n_rows, K), projections (x - mean)·v_k.
        norm: (n_rows,), |x - mean|; rows of zero norm have no cosine and are left out of that ranking.
        raw_norm: (n_rows,), |x|; the same for `raw_cosine`.
        mean_scores: (K,), mean·v_k.
        texts: n_rows texts, by which near-duplicates are seen; only candidates are read.
        direction: which direction, 0-based.
        n: how many examples at each end, at most.
        by: what the order is by; see `ranking_values`.
        ids: n_rows ids; without them the row number is the id.
    Returns: (positive, negative), each with the extreme first, ties in row order. A row is never at both ends. Ends
        are relative: the negative end of a corpus on one side of the mean is its least positive part. Fewer than n
        where the corpus is small or its extremes repeat each other; none where all rows score the same.
    Raises: UsageError: when the direction or `by` does not exist.
    Cost: O(n_rows log n_rows), and the 3-grams of at most 50 n texts at each end.
    """
    if not 0 <= direction < scores.shape[1]:
        raise UsageError(f"there is no direction {direction}; the scores have directions 0 to {scores.shape[1] - 1}")
    column = slice(direction, direction + 1)
    values = ranking_values(scores[:, column], norm, raw_norm, mean_scores[column], by)[:, 0]
    cosines = values
    if by == "projection":
        cosines = ranking_values(scores[:, column], norm, raw_norm, mean_scores[column], "cosine")[:, 0]

    def end(order: NDArray[np.intp]) -> list[Exemplar]:
        return [
            Exemplar(str(row) if ids is None else ids[row], row, float(scores[row, direction]), float(cosines[row]))
            for row in _without_near_duplicates(order, texts, n)
        ]

    upper, lower = both_ends(values)
    return end(upper), end(lower)


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Returns the set of a text's word 3-grams with numbers masked; a shorter text is one gram of all its words."""
    words = tokens(text)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1)))


def _without_near_duplicates(order: NDArray[np.intp], texts: Sequence[str], n: int) -> list[int]:
    """Takes rows in order, skipping those whose text nearly repeats one that was taken."""
    kept: list[int] = []
    kept_shingles: list[frozenset[tuple[str, ...]]] = []
    for row in order[: CANDIDATES_PER_EXAMPLE * n].tolist():
        if len(kept) == n:
            break
        candidate = shingles(texts[row])
        if all(_jaccard(candidate, other) <= DUPLICATE_JACCARD for other in kept_shingles):
            kept.append(row)
            kept_shingles.append(candidate)
    return kept


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    # Never empty: a text without words still has the empty gram.
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
