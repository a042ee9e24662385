"""Whether two orders agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .estimates import Estimate
from .inputs import pair
from .spread import normal_quantile


def correlation_interval(
    r: ArrayLike, n: ArrayLike, *, ranks: bool, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends of the interval of correlations on Fisher's z scale.

    Args:
        r: correlations; a perfect one has the limit of the transform, an interval of no width.
        n: pairs behind each; NaN comes of fewer than four.
        ranks: Spearman's, whose var(z) is (1 + r^2/2)/(n - 3); else Pearson's, 1/(n - 3).
    Source: Fisher 1915, Biometrika 10:507-521; Bonett and Wright 2000, Psychometrika 65:23-28.
    """
    found, free = np.asarray(r, dtype=np.float64), np.asarray(n, dtype=np.float64) - 3
    with np.errstate(divide="ignore"):
        centre = np.arctanh(found)
    se = np.sqrt((1 + found**2 / 2 if ranks else 1.0) / np.where(free > 0, free, np.nan))
    half = normal_quantile((1 + level) / 2) * se
    return np.asarray(np.tanh(centre - half)), np.asarray(np.tanh(centre + half))


def spearman(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> Estimate:
    """Spearman's rank correlation with an interval on Fisher's z scale.

    Returns: `mean` is the correlation; NaN with a reason where one side is constant; the interval needs 4 pairs whose
        ranks do not agree perfectly.
    Raises: UsageError: when x and y differ in length or hold NaN.
    Source: Bonett and Wright 2000, Psychometrika 65:23-28: var(z) = (1 + r^2/2)/(n - 3).
    """
    from scipy import stats

    first, second = pair(x, y)
    n = first.size
    if n < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        reason = f"{n} pairs: at least 2 are needed" if n < 2 else "one side is constant: ranks are undefined"
        return Estimate(math.nan, math.nan, math.nan, math.nan, n, reason)
    ranks = np.corrcoef(stats.rankdata(first), stats.rankdata(second))
    r = float(np.clip(ranks[0, 1], -1, 1))
    if n < 4 or 1 - abs(r) < 1e-12:
        reason = f"{n} pairs: the interval needs at least 4" if n < 4 else "ranks agree perfectly: no interval"
        return Estimate(r, math.nan, math.nan, math.nan, n, reason)
    low, high = correlation_interval(r, n, ranks=True, level=level)
    return Estimate(r, float(low), float(high), math.sqrt((1 + r * r / 2) / (n - 3)) * (1 - r * r), n)
