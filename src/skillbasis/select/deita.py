"""The best rows that are unlike each other: by a given quality, those too similar to a better one left out."""

from __future__ import annotations

import numpy as np

from ..corpus import SelectedRow
from ..errors import ArtifactError, UsageError
from .candidates import Candidates
from .shortage import TooFewRows
from .texts import row_vectors

_BLOCK = 256  # rows compared with those kept at a time
_KEPT = 1 << 14  # kept rows in one product: 16 MB of float32


def good_and_unlike(vectors: np.ndarray, quality: np.ndarray, n: int, max_similarity: float = 0.9) -> np.ndarray:
    """Goes through the rows by falling quality and keeps each whose cosine to every kept one is at most a limit.

    Args:
        vectors: (n_rows, d) float32, of norm 1 or 0.
        quality: (n_rows,), finite; ties in the order of the rows.
        n: rows to keep.
        max_similarity: largest cosine of two kept rows, above -1 to 1.
    Returns: (n,) int64 indices in the order of their choice; fewer where no more are unlike each other.
    Raises: UsageError: a limit that cannot be meant.
    Cost: O(rows looked at x kept x d); memory for the vectors of kept rows and 16 MB of products.
    Source: Liu et al. 2024 (DEITA), arXiv 2312.15685, section 2.4; the quality there is complexity x quality.
    """
    if not -1 < max_similarity <= 1:
        raise UsageError(f"max_similarity must be above -1 and at most 1, not {max_similarity}")
    order = np.argsort(-quality, kind="stable")
    kept = np.empty((n, vectors.shape[1]), dtype=np.float32)
    chosen: list[int] = []
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        near = np.full(len(block), -1.0, dtype=np.float32)  # cosine to the most similar kept row
        for first in range(0, len(chosen), _KEPT):
            some = kept[first : min(first + _KEPT, len(chosen))]
            np.maximum(near, (vectors[block] @ some.T).max(axis=1), out=near)
        among = vectors[block] @ vectors[block].T
        for i, row in enumerate(block):
            if near[i] <= max_similarity:
                kept[len(chosen)] = vectors[row]
                chosen.append(int(row))
                if len(chosen) == n:
                    return np.array(chosen, dtype=np.int64)
                np.maximum(near, among[i], out=near)
    return np.array(chosen, dtype=np.int64)


def good_and_unlike_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes the rows of highest given quality whose vectors are unlike those taken before; the seed changes nothing.

    Vectors are those of `text_encoder`: TF-IDF, a sentence encoder, or `native` scores. The score of a row is its
    quality.
    Raises: UsageError: no quality was given, or there is no such encoder. TooFewRows: fewer rows than the budget are
        unlike each other. ArtifactError: a quality is not finite.
    """
    quality = candidates.quality
    broken = np.flatnonzero(~np.isfinite(quality))
    if len(broken):
        raise ArtifactError(
            f"row {candidates.ids[broken[0]]!r} has a quality that is not finite; give every row a number"
        )
    limit = candidates.settings.max_similarity
    chosen = good_and_unlike(row_vectors(candidates), quality, budget, limit)
    if len(chosen) < budget:
        raise TooFewRows(
            f"only {len(chosen)} rows have no cosine above {limit:g} to a better one, fewer than the budget of "
            f"{budget}; raise max_similarity or choose a smaller budget",
            len(chosen),
        )
    reason = f"best quality, cosine at most {limit:g} to the rows before"
    return [SelectedRow(candidates.ids[i], rank, float(quality[i]), reason=reason) for rank, i in enumerate(chosen, 1)]
