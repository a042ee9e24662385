"""How alike two bases of one shape are: principal angles of their spans, cosines of their matched directions.

Bases of different models, layers or poolings have no common coordinates; their scores are compared (`agreement.py`).
Dimension names: d features, k directions. Vectors are rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, UsageError
from ..statistics import as_json
from .basis import SkillBasis

N_RANDOM = 200
"""Draws of random directions that the chance level of matched cosines is taken from."""
_DEPENDENT = 1e-5  # of the largest singular value: float32 directions are no more independent than this

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """A direction of A and the one of B that it is matched with."""

    a: int
    b: int
    value: float
    """Their cosine or correlation, with its sign."""


@dataclass(frozen=True)
class SubspaceComparison:
    """Two sets of directions in one space of activations."""

    angles_degrees: tuple[float, ...]
    """Principal angles between the spans, ascending; as many as the smaller span has dimensions."""
    overlap: float
    """Mean squared cosine of the principal angles, |V W^T|_F^2 / min(k_a, k_b) for orthonormal V, W: the share of the
    smaller span that lies in the other."""
    overlap_chance: float
    """Its expectation where either span is random: max(k_a, k_b) / d. Activations fill far fewer than d dimensions
    evenly, so unrelated bases of one model may well overlap more."""
    pairs: tuple[Match, ...]
    """Directions one to one, matched so that the absolute cosines have the largest sum; descending by them."""
    mean_cosine: float
    """Mean absolute cosine of the pairs."""
    cosine_null_95: float
    """95th percentile of the largest matched absolute cosine where B's directions are random (independent, uniform)."""
    mean_null_95: float
    """The same of the mean absolute cosine."""
    scaled: bool
    """Whether they are compared in units of each block's deviation, in which both were found (`normalize_blocks`)."""

    def to_json(self) -> dict[str, object]:
        return as_json(self)


def match(values: NDArray[np.floating]) -> tuple[Match, ...]:
    """Matches rows with columns one to one so that the sum of absolute values is largest (Hungarian method).

    Args:
        values: (k_a, k_b) cosines or correlations.
    Returns: min(k_a, k_b) matches in descending order of absolute value, with the sign of each value.
    Source: Kuhn 1955, Naval Research Logistics Quarterly 2:83-97, as solved by scipy (Crouse 2016).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.abs(values), maximize=True)
    order = np.argsort(-np.abs(values[rows, columns]), kind="stable")
    return tuple(Match(int(rows[i]), int(columns[i]), float(values[rows[i], columns[i]])) for i in order)


def span(directions: NDArray[np.floating]) -> Floats:
    """Orthonormal rows (rank, d) of the space that directions (k, d) span. Cost: O(k^2 d)."""
    q, r = np.linalg.qr(np.asarray(directions, dtype=np.float64).T)
    left, sizes, _ = np.linalg.svd(r)
    return (q @ left[:, : len(sizes)][:, sizes > _DEPENDENT * sizes[0]]).T  # type: ignore[no-any-return]


def principal_angles(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """Principal angles between the spans of two sets of directions.

    Args:
        a: (k_a, d) directions, neither unit nor orthogonal.
        b: (k_b, d) others.
    Returns: (min of the ranks,) degrees, ascending, accurate for small angles, too.
    Source: Björck & Golub 1973, Mathematics of Computation 27:579-594: cosines are the singular values of V W^T;
        angles below 45 degrees come from the sines, as their cosines are all nearly 1.
    """
    return _angles(span(a), span(b))


def _angles(v: Floats, w: Floats) -> Floats:
    """Principal angles in degrees of the spans of orthonormal rows (k_a, d) and (k_b, d)."""
    if len(v) < len(w):
        v, w = w, v  # the smaller span gives the angles
    _, cosines, right = np.linalg.svd(v @ w.T, full_matrices=False)
    of_w = right @ w  # (m, d) principal vectors
    sines = np.linalg.norm(of_w - (of_w @ v.T) @ v, axis=1).clip(0, 1)
    cosines = cosines.clip(0, 1)
    return np.sort(np.degrees(np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines))))


def compare_subspaces(
    a: NDArray[np.floating], b: NDArray[np.floating], *, seed: int = 0, scaled: bool = False
) -> SubspaceComparison:
    """Compares two sets of directions in one space.

    Args:
        a: (k_a, d) directions of any length but 0; they need not be orthogonal.
        b: (k_b, d) others.
        seed: of the random directions that the chance level comes from.
        scaled: put into the result as it is: whether both were scaled by the deviation of their blocks.
    Raises: UsageError: shapes that do not go together, a direction of length 0, numbers that are not finite.
    Cost: O(k^2 d), and N_RANDOM matchings of k directions.
    """
    a, b = _unit_rows(a, "A"), _unit_rows(b, "B")
    if a.shape[1] != b.shape[1]:
        raise UsageError(
            f"directions of {a.shape[1]} and of {b.shape[1]} features have no angle between them; compare the scores"
        )
    v, w = span(a), span(b)
    smaller = min(len(v), len(w))
    pairs = match(np.clip(a @ b.T, -1, 1))
    null = _random_cosines(a @ v.T, a.shape[1], len(b), seed)
    return SubspaceComparison(
        angles_degrees=tuple(_angles(v, w).tolist()),
        overlap=min(float(np.square(v @ w.T).sum() / smaller), 1.0),
        overlap_chance=max(len(v), len(w)) / a.shape[1],
        pairs=pairs,
        mean_cosine=float(np.mean([abs(pair.value) for pair in pairs])),
        cosine_null_95=float(np.quantile(null[:, 0], 0.95)),
        mean_null_95=float(np.quantile(null.mean(axis=1), 0.95)),
        scaled=scaled,
    )


def same_shape(a: SkillBasis, b: SkillBasis) -> bool:
    """Whether two bases lie in one space: the same weights, blocks and hidden size. Pooling and corpus may differ."""
    return all(a.config[key] == b.config[key] for key in ("weights_fingerprint", "block_ids", "hidden_size"))


def compare_bases(a: SkillBasis, b: SkillBasis, *, seed: int = 0) -> SubspaceComparison:
    """Compares two bases of one shape; where both were found with `normalize_blocks`, in that metric (`frame`).

    Raises: ArtifactError: they are not of one shape.
    """
    if not same_shape(a, b):
        raise ArtifactError(
            f"the bases are of different shape ({_shape_words(a)}; {_shape_words(b)}), so there are no angles between "
            "them; give the scores of both on the same examples"
        )
    scaled = a.block_scale is not None and b.block_scale is not None
    first, second = (x.frame if scaled else x.directions.reshape(x.n_components, -1) for x in (a, b))
    return compare_subspaces(first, second, seed=seed, scaled=scaled)


def _shape_words(basis: SkillBasis) -> str:
    config = basis.config
    return f"{config['model']}, blocks {config['block_ids']}, hidden size {config['hidden_size']}"


def _unit_rows(directions: NDArray[np.floating], name: str) -> Floats:
    rows = np.asarray(directions, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise UsageError(f"directions {name} have shape {rows.shape}; give (directions, features)")
    if not np.isfinite(rows).all():
        raise UsageError(f"directions {name} hold NaN or infinity; discover them again")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise UsageError(f"direction {int(np.argmin(lengths))} of {name} has length 0; leave it out")
    return rows / lengths  # type: ignore[no-any-return]


def _random_cosines(a: Floats, d: int, k_b: int, seed: int) -> Floats:
    """Matched absolute cosines of directions with random ones, (N_RANDOM, min(k_a, k_b)), each row descending.

    A random unit vector is g / |g| for normal g in d dimensions. Only its r coordinates within the span of `a` matter;
    the squares of the others add up to a chi-square variable, so the cost does not depend on d.

    Args:
        a: (k_a, r) unit directions in orthonormal coordinates of their span.
    """
    rng, r = np.random.default_rng(seed), a.shape[1]
    rows = []
    for _ in range(N_RANDOM):
        inside = rng.standard_normal((r, k_b))
        outside = rng.chisquare(d - r, k_b) if d > r else np.zeros(k_b)
        cosines = a @ inside / np.sqrt(np.square(inside).sum(axis=0) + outside)
        rows.append([abs(pair.value) for pair in match(cosines)])
    return np.array(rows)
