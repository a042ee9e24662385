"""How alike two bases of any two models, layers, poolings or corpora are, by their scores on shared examples.

Dimension names: n shared examples, K_a and K_b directions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, UsageError, nearest
from ..statistics import Estimate, as_json, correlation_interval, relative_change
from .compare import Floats, match
from .scores import Scores

N_PERMUTATIONS = 200
N_FOLDS = 5
MIN_SHARED = 3
_ROUNDING = 1e-10  # a deviation this small, as a share of the largest value, is rounding; so is an unexplained share

Correlation = Literal["pearson", "spearman"]
CORRELATIONS: tuple[str, ...] = get_args(Correlation)


@dataclass(frozen=True)
class ScorePair:
    """A direction of A, the one of B that it is matched with, and how their scores go together."""

    a: int
    b: int
    correlation: float
    """With its sign, which is arbitrary where nothing ties the signs of two bases."""
    low: float
    """Lower end of the 95 % interval of the correlation of these two directions; that they were chosen as the best
    match is not in it, but in the null. NaN with 3 examples."""
    high: float
    null_95: float
    """95th percentile of the absolute correlation at this rank (first, second, ... best pair) under permutation."""
    p_value: float
    """Share of permutations whose pair at this rank is as large, the data itself counted; uncorrected."""


@dataclass(frozen=True)
class Explained:
    """How much of a basis' scores all scores of another one explain linearly."""

    directions: tuple[Estimate, ...]
    """Cross-validated R^2 of each direction; `mean` is the R^2. Below 0 where the mean would predict better."""
    total: Estimate
    """The same of all directions, weighted by their variance over the shared examples."""


@dataclass(frozen=True)
class ScoreComparison:
    """Two bases on the same examples."""

    n: int
    """Shared examples."""
    method: Correlation
    correlations: Floats
    """(K_a, K_b)."""
    pairs: tuple[ScorePair, ...]
    """min(K_a, K_b) pairs, matched so that the absolute correlations have the largest sum; descending by them."""
    mean_correlation: float
    """Mean absolute correlation of the pairs."""
    mean_null_95: float
    """Its 95th percentile under permutation."""
    mean_p_value: float
    canonical: tuple[float, ...]
    """Canonical correlations (of the ranks for `spearman`): of the best-correlated combinations of either side's
    scores; in-sample, so to be held against `canonical_null_95`."""
    canonical_null_95: tuple[float, ...]
    a_from_b: Explained
    b_from_a: Explained
    n_permutations: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-able; undefined numbers are None."""
        return as_json(self)


def compare_score_tables(
    a: Scores,
    b: Scores,
    *,
    method: Correlation = "pearson",
    n_permutations: int = N_PERMUTATIONS,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> ScoreComparison:
    """`compare_scores` on the examples that two tables share, found by their ids.

    Raises: ArtifactError: as `shared_rows` and `compare_scores`.
    """
    rows_a, rows_b = shared_rows(a.ids, b.ids)
    return compare_scores(
        a.values[rows_a], b.values[rows_b], method=method, n_permutations=n_permutations, n_folds=n_folds, seed=seed
    )


def shared_rows(ids_a: Sequence[str], ids_b: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the examples that two tables share, in the order of the first.

    Raises: ArtifactError: a table names an example twice, or they share fewer than three.
    """
    row_of = {example: row for row, example in enumerate(ids_b)}
    for ids, n_different in ((ids_a, len(set(ids_a))), (ids_b, len(row_of))):
        if n_different < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ArtifactError(f"the scores name {twice!r} more than once; give every example its own id and score it")
    pairs = [(row, row_of[example]) for row, example in enumerate(ids_a) if example in row_of]
    if len(pairs) < MIN_SHARED:
        raise ArtifactError(
            f"the score tables share {len(pairs) or 'no'} examples by id ({len(ids_a):,} and {len(ids_b):,} in all), "
            f"and {MIN_SHARED} are the least; score the same corpus with both bases"
        )
    rows_a, rows_b = np.array(pairs, dtype=np.intp).T
    return rows_a, rows_b


def compare_scores(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    method: Correlation = "pearson",
    n_permutations: int = N_PERMUTATIONS,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> ScoreComparison:
    """Compares the scores of the same examples along two bases.

    Under the null hypothesis the rows of one table belong to other examples: they are permuted, and the whole matching
    is repeated, so the null has the same freedom to find matches among K_a x K_b correlations as the data had. It holds
    for examples that are exchangeable; near-duplicates and groups of alike examples make it, and all intervals, narrow.

    Args:
        a: (n, K_a) scores.
        b: (n, K_b) scores of the same examples in the same order.
        method: `pearson`, or `spearman` (ranks, ties at their mean), which single outlying examples do not rule.
        n_permutations: of the rows of b.
        n_folds: parts of the examples for the cross-validated R^2; each is predicted from a regression on the others.
        seed: of permutations and folds.
    Returns: correlations with 95 % intervals on Fisher's z scale, nulls, p-values, and R^2 both ways.
    Raises: ArtifactError: fewer than three examples, numbers that are not finite, a direction whose scores are all the
        same. UsageError: arrays of different length, an unknown method, no permutations, fewer than two folds.
    Cost: O((n_permutations + n_folds) n K_a K_b) time; memory of a copy or two of the scores.
    Source: Fisher 1915 for Pearson's z, variance 1/(n - 3); Bonett & Wright 2000, Psychometrika 65:23-28, for
        Spearman's, (1 + r^2/2)/(n - 3); Phipson & Smyth 2010, SAGMB 9:39, for p = (1 + exceeding) / (1 + permutations);
        Hotelling 1936, Biometrika 28:321-377, for canonical correlations.
    """
    if method not in CORRELATIONS:
        raise UsageError(f"unknown correlation {method!r}{nearest(method, list(CORRELATIONS))}; give pearson, spearman")
    if n_permutations < 1 or n_folds < 2:
        raise UsageError(f"give at least 1 permutation and 2 folds, not {n_permutations} and {n_folds}")
    x, y = _checked(a, "A"), _checked(b, "B")
    if len(x) != len(y):
        raise UsageError(f"A has {len(x)} examples and B {len(y)}; give the scores of the same ones in the same order")
    u, v = _standardised(x, method), _standardised(y, method)  # columns of mean 0 and length 1
    rng = np.random.default_rng(seed)
    correlations = np.clip(u.T @ v, -1, 1)
    matches = match(correlations)
    whiten_u, whiten_v = _whitening(u), _whitening(v)
    found = np.array([abs(pair.value) for pair in matches])
    canonical = _singular_values(whiten_u.T @ correlations @ whiten_v)
    null, canonical_null = np.empty((n_permutations, len(found))), np.empty((n_permutations, len(canonical)))
    for i in range(n_permutations):
        permuted = u.T @ v[rng.permutation(len(v))]
        null[i] = [abs(pair.value) for pair in match(permuted)]
        canonical_null[i] = _singular_values(whiten_u.T @ permuted @ whiten_v)
    null_95 = np.quantile(null, 0.95, axis=0)
    p_values = _p_values(found, null)
    fold = rng.permutation(len(x)) % min(n_folds, len(x))
    return ScoreComparison(
        n=len(x),
        method=method,
        correlations=correlations,
        pairs=tuple(
            ScorePair(pair.a, pair.b, pair.value, *_interval(pair.value, len(x), method), float(limit), float(p))
            for pair, limit, p in zip(matches, null_95, p_values, strict=True)
        ),
        mean_correlation=float(found.mean()),
        mean_null_95=float(np.quantile(null.mean(axis=1), 0.95)),
        mean_p_value=float(_p_values(found.mean(keepdims=True), null.mean(axis=1, keepdims=True))[0]),
        canonical=tuple(canonical.tolist()),
        canonical_null_95=tuple(np.quantile(canonical_null, 0.95, axis=0).tolist()),
        a_from_b=explained(y, x, fold),
        b_from_a=explained(x, y, fold),
        n_permutations=n_permutations,
        seed=seed,
    )


def explained(x: Floats, y: Floats, fold: NDArray[np.integer]) -> Explained:
    """Cross-validated R^2 of linear regressions of scores on other scores.

    R^2 = 1 - sum (y - prediction)^2 / sum (y - mean)^2 over all examples, where prediction (least squares with a
    constant) and mean come from the other folds.

    Args:
        x: (n, K_x) what is predicted from.
        y: (n, K_y) what is predicted.
        fold: (n,) number of each example's part.
    Returns: intervals over the examples (Fieller's, of the ratio of the two sums) with the regressions as they are: the
        chance in fitting them is not in it. NaN with a reason where a regression has no more rows than coefficients.
    Cost: O(n K_x (K_x + K_y)) for each fold.
    """
    n_training = len(x) - int(np.bincount(fold).max())
    if n_training < x.shape[1] + 2:
        reason = f"{n_training} examples are too few to fit {x.shape[1] + 1} coefficients"
        undefined = Estimate(np.nan, np.nan, np.nan, np.nan, len(x), reason)
        return Explained((undefined,) * y.shape[1], undefined)
    deviation = y.std(axis=0)
    scaled = (y - y.mean(axis=0)) / deviation
    design = np.column_stack([np.ones(len(x)), (x - x.mean(axis=0)) / x.std(axis=0)])
    errors, totals = np.empty_like(scaled), np.empty_like(scaled)
    for part in range(int(fold.max()) + 1):
        inside, outside = fold == part, fold != part
        coefficients = np.linalg.lstsq(design[outside], scaled[outside])[0]
        errors[inside] = np.square(scaled[inside] - design[inside] @ coefficients)
        totals[inside] = np.square(scaled[inside] - scaled[outside].mean(axis=0))
    weights = deviation**2 / np.sum(deviation**2)
    return Explained(
        tuple(_r_squared(errors[:, k], totals[:, k]) for k in range(y.shape[1])),
        _r_squared(errors @ weights, totals @ weights),
    )


def _r_squared(errors: Floats, totals: Floats) -> Estimate:
    """1 - mean(errors) / mean(totals) over examples, with its interval."""
    change = relative_change(errors, totals)
    if 1 + change.mean < _ROUNDING:  # all is explained: what is left has no spread but rounding
        return Estimate(1.0, 1.0, 1.0, 0.0, change.n)
    return replace(change, mean=-change.mean, low=-change.high, high=-change.low)


def _checked(scores: NDArray[np.floating], name: str) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise UsageError(f"scores {name} have shape {values.shape}; give (examples, directions)")
    if len(values) < MIN_SHARED:
        raise ArtifactError(f"{len(values)} shared examples are too few to correlate scores; give {MIN_SHARED} or more")
    if not np.isfinite(values).all():
        row, direction = np.argwhere(~np.isfinite(values))[0]
        raise ArtifactError(f"scores {name} are not finite (row {row}, direction {direction}); extract and score again")
    still = np.flatnonzero(np.ptp(values, axis=0) <= _ROUNDING * np.abs(values).max(axis=0))
    if len(still):
        raise ArtifactError(
            f"direction {still[0]} of {name} scores all {len(values)} shared examples the same, so nothing correlates "
            "with it; give examples that differ"
        )
    return values


def _standardised(values: Floats, method: Correlation) -> Floats:
    """Columns of mean 0 and length 1, of the values or of their ranks."""
    from scipy.stats import rankdata

    columns = np.asarray(rankdata(values, axis=0), dtype=np.float64) if method == "spearman" else values
    centred = columns - columns.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=0)  # type: ignore[no-any-return]


def _whitening(columns: Floats) -> Floats:
    """(K, rank) that turns standardised columns into uncorrelated ones of length 1."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    kept = values > _ROUNDING * values[-1]
    return vectors[:, kept] / np.sqrt(values[kept])  # type: ignore[no-any-return]


def _singular_values(product: Floats) -> Floats:
    return np.linalg.svd(product, compute_uv=False).clip(0, 1)


def _interval(r: float, n: int, method: Correlation) -> tuple[float, float]:
    """95 % interval of a correlation."""
    low, high = correlation_interval(r, n, ranks=method == "spearman")
    return float(low), float(high)


def _p_values(found: Floats, null: Floats) -> Floats:
    """(m,) p of each of m numbers, from (n_permutations, m) under the null. Rounding must not tell equals apart."""
    return (1 + (null >= found - 1e-12).sum(axis=0)) / (1 + len(null))  # type: ignore[no-any-return]
