"""Principal directions of resampled rows, found in a small space that holds nearly all they could turn to.

Dimension names: n rows, d features, k directions of the basis, m = size of the leading space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..activations import ActivationSource
from .basis import SkillBasis
from .compare import Floats, match
from .sums import PassSums

_N_PASSES = 2
_CHUNK_ROWS = 2048
_FEW_ROWS = 256  # with so few the leading space holds every row


@dataclass(frozen=True)
class LeadingScores:
    """Scores of the rows in a leading space whose first k coordinates are the directions of a basis."""

    values: NDArray[np.float32]
    """(n, m) centred scores, in units of the block deviations for `normalize_blocks`."""
    k: int
    total_variance: float
    """Of the activations in all d dimensions, in the same units."""

    @property
    def size(self) -> int:
        return int(self.values.shape[1])

    def covariance(self, counts: NDArray[np.integer] | None = None) -> Floats:
        """(m, m) covariance (divided by n - 1) of the rows, each taken as often as `counts` (n,) says; once if None.

        Cost: O(n m^2).
        """
        n, m = self.values.shape
        total, product = np.zeros(m), np.zeros((m, m))
        for start in range(0, n, _CHUNK_ROWS):  # bounds the float64 copies
            rows = self.values[start : start + _CHUNK_ROWS].astype(np.float64)
            weighted = rows if counts is None else rows * counts[start : start + _CHUNK_ROWS, None]
            total += weighted.sum(axis=0)
            product += weighted.T @ rows
        return (product - np.outer(total, total) / n) / (n - 1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Resamples:
    """What became of each direction in every resample."""

    cosines: Floats
    """(B, k) absolute cosine with the direction that it is matched with among the resample's first k."""
    span_cosines: Floats
    """(B, k) cosine with the span of the resample's first k."""
    eigenvalues: Floats
    """(B, k) variance along the matched direction."""


def default_space(k: int, n_rows: int, n_features: int) -> int:
    """Size of the leading space: all there is for few rows, else 4 k + 32."""
    return min(n_features, n_rows - 1 if n_rows <= _FEW_ROWS else 4 * k + 32)


def leading_scores(source: ActivationSource, basis: SkillBasis, m: int, *, seed: int = 0) -> LeadingScores:
    """Scores of all rows in a space of m dimensions: the basis, and next to it the largest variances that are left.

    The rest of the space comes from subspace iteration: random vectors, orthogonal to the basis, are multiplied twice
    by the covariance. It needs no gap between variances, so it costs the same whatever they are.

    Args:
        source: the rows the basis was found on.
        m: size of the space, from k to d.
        seed: of the random vectors.
    Cost: three passes over the rows, O(n d m); memory O(n m + d m).
    Source: Halko, Martinsson & Tropp 2011, SIAM Review 53:217-288, algorithm 4.4.
    """
    scale = np.ones(source.n_features) if basis.block_scale is None else basis.block_scale
    frame, k = np.linalg.qr(basis.frame.T)[0].T, basis.n_components  # orthonormal to the last bit, signs aside
    block = np.random.default_rng(seed).standard_normal((m - k, source.n_features))
    for _ in range(_N_PASSES):
        block = _orthonormal_rest(frame, block)
        sums = PassSums.empty(basis.mean.reshape(-1), block / scale, squares=True)
        for part in source.shards():
            sums.add(part)
        block = sums.image / scale
    space = np.vstack([frame, _orthonormal_rest(frame, block)])
    readers = np.ascontiguousarray((space / scale).T, dtype=np.float32)  # (d, m)
    mean = sums.mean.astype(np.float32)
    parts = [(part[i : i + 512] - mean) @ readers for part in source.shards() for i in range(0, len(part), 512)]
    total = float(np.sum(sums.variance / scale**2)) * sums.n_rows / (sums.n_rows - 1)
    return LeadingScores(np.concatenate(parts), k, total)


def _orthonormal_rest(frame: Floats, block: Floats) -> Floats:
    """Orthonormal rows that span what `block` adds to orthonormal `frame`, as many as the block has."""
    return np.linalg.qr(np.vstack([frame, block]).T)[0].T[len(frame) :]


def bootstrap(scores: LeadingScores, n_resamples: int, *, seed: int = 0) -> Resamples:
    """Draws the rows anew, with replacement, and finds the first k directions of each draw.

    All principal directions of resampled rows lie in the span of the rows. In a basis of that span their covariance is
    small, so a resample costs no pass over the activations. Here the basis is that of the leading space: what lies
    outside of it can turn no direction (`outside_loss` bounds how much it would).

    Args:
        scores: in the leading space.
        n_resamples: B.
        seed: of the draws.
    Cost: O(B (n m^2 + m^3)).
    Source: Fisher, Caffo, Schwartz & Zipunnikov 2016, JASA 111:846-860 (fast, exact bootstrap PCA).
    """
    from scipy.linalg import eigh

    n, m = scores.values.shape
    k, rng = scores.k, np.random.default_rng(seed)
    shape = (n_resamples, k)
    cosines, span_cosines, eigenvalues = np.empty(shape), np.empty(shape), np.empty(shape)
    for i in range(n_resamples):
        counts = np.bincount(rng.integers(0, n, n), minlength=n)
        values, vectors = eigh(scores.covariance(counts), subset_by_index=[m - k, m - 1])
        found = vectors[:k].T  # (k found, k of the basis): the basis is the first k axes
        span_cosines[i] = np.linalg.norm(found, axis=0).clip(0, 1)
        for pair in match(found.T):
            cosines[i, pair.a] = min(abs(pair.value), 1.0)
            eigenvalues[i, pair.a] = values[pair.b]
    return Resamples(cosines, span_cosines, eigenvalues)


def gaps(variances: NDArray[np.floating], k: int) -> Floats:
    """(k,) distance from each of the first k variances (m,) to the nearest other one, as a share of it.

    Variances nearer to each other than about sqrt(2 / n) of their size cannot be told apart from n rows.
    Source: North et al. 1982, Monthly Weather Review 110:699-706.
    """
    distances = np.abs(variances[:k, None] - variances)  # (k, m)
    distances[np.arange(k), np.arange(k)] = np.inf
    return distances.min(axis=1) / variances[:k]  # type: ignore[no-any-return]


def outside_loss(scores: LeadingScores, variances: NDArray[np.floating]) -> Floats:
    """(k,) the most that variance outside the leading space would take from each squared cosine; inf where unknown.

    To first order a direction of variance l_i loses sum_j l_i l_j / (n (l_i - l_j)^2) to directions j. Those outside
    have variances of at most the smallest inside, and their sum is what the space lacks of the total.

    Args:
        variances: (m,) eigenvalues in the leading space, in descending order.
    Source: Anderson 1963, Annals of Mathematical Statistics 34:122-148 (normal rows).
    """
    n, k = len(scores.values), scores.k
    outside = max(scores.total_variance - float(variances.sum()), 0.0)
    if outside <= 1e-6 * scores.total_variance:  # rounding of float32
        return np.zeros(k)
    with np.errstate(divide="ignore"):
        return variances[:k] * outside / (n * (variances[:k] - variances[-1]) ** 2)  # type: ignore[no-any-return]
