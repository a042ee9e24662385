"""Area under the ROC curve, and the difference of two; rows may share a source, and be cut in folds.

The area is the probability that a row with the label scores above a row without it, ties counted half. Its variance
comes from placement values, and one formula serves all cases: DeLong's where every row stands alone, Obuchowski's where
rows share a source, and the mean of the folds' areas for predictions that were cross-validated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from .estimates import Difference
from .inputs import cluster_index, numbers
from .power import detectable
from .spread import normal_quantile, t_quantile, t_two_sided

_EPS = 1e-12
"""A squared standard error at or below this is rounding."""


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve with its interval and test; NaN where undefined, and then `reason` says why."""

    auc: float
    """Probability that a row with the label scores above one without it, ties half; .5 is chance."""
    low: float
    high: float
    se: float
    """Standard error, DeLong's or its clustered form."""
    p_value: float
    """Two-sided, of an area of .5."""
    n_positive: int
    """Rows with the label that took part."""
    n_negative: int
    """Rows without it."""
    n_folds: int
    """Folds whose areas were averaged: those that hold both classes; 1 where there are no folds."""
    reason: str | None = None
    """Why something is NaN or was computed in another way; None where all is plain."""


def auc(
    scores: ArrayLike,
    positive: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    folds: ArrayLike | None = None,
    noise: float = 0.0,
    level: float = 0.95,
) -> Auc:
    """Area under the ROC curve with its interval and its test against .5.

    Args:
        scores: (n,) finite numbers, higher for what should have the label.
        positive: (n,) bool, which rows have the label.
        clusters: (n,) labels of rows that share a source (a problem) and are not independent.
        folds: (n,) number of the fold in which each row was held out. Rows are compared within their fold only, and the
            area is the plain mean of the folds' areas: scores of different models are not of one scale. A fold of one
            class takes no part. The interval is then that of the mean area of the models as fitted, on new rows; that
            other training rows would have given other models is not in it.
        noise: share of chance in cross-validated models, by which the variance grows: it is multiplied by 1 + noise
            (`interpret.crossfit.Probabilities.noise` says why and how much).
        level: of the interval.
    Returns: the area, exact with ties (Mann-Whitney's U over n_positive n_negative). se is DeLong's, or Obuchowski's
        with clusters: deviations of the placement values from the area, summed over each cluster. The p-value is that
        of Brunner and Munzel's test: (area - .5) / se against Student's t with Satterthwaite's degrees of freedom
        (where clusters hold both classes: the fewer of the clusters that hold either class, less 1). The interval has
        the same t on the logit scale, so it stays within (0, 1); near 5 % it and the p-value may disagree. At an area
        of 0 or 1 se is 0, and interval and p-value are by the score method, clusters being counted as rows. Where all
        rows score the same the area is .5 and nothing else is defined.
    Raises: UsageError: scores, positive, clusters or folds differ in length; scores are not finite; no fold has both
        classes.
    Cost: O(n log n).
    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837-845; Obuchowski 1997, Biometrics 53:567-578;
        Brunner and Munzel 2000, Biometrical Journal 42:17-25; LeDell, Petersen and van der Laan 2015, Electronic
        Journal of Statistics 9:1583-1607 (mean over folds); Pepe 2003, section 5.2 (logit scale); Newcombe 2006,
        Statistics in Medicine 25:559-573, method 5 (score interval).
    """
    layout = _Layout.of(positive, clusters, folds)
    area, deviations, constant = layout.placements(numbers(scores, "scores"))
    spread = layout.spread(deviations, 1 + noise)
    undefined = Auc(area, math.nan, math.nan, math.nan, math.nan, layout.n_positive, layout.n_negative, layout.n_folds)
    if constant:
        return replace(undefined, reason="all rows score the same: there is no interval")
    if math.isnan(spread.variance):
        return replace(undefined, reason=spread.reason)
    if min(area, 1 - area) <= _EPS:
        return _separated(undefined, spread, level)
    if spread.variance <= _EPS:
        return replace(undefined, reason="no spread between the clusters: there is no interval")
    se = math.sqrt(spread.variance)
    half = t_quantile((1 + level) / 2, spread.df) * se / (area * (1 - area))
    centre = math.log(area / (1 - area))
    low, high = (1 / (1 + math.exp(-(centre + side))) for side in (-half, half))
    return replace(undefined, low=low, high=high, se=se, p_value=t_two_sided((area - 0.5) / se, spread.df))


def auc_difference(
    a: ArrayLike,
    b: ArrayLike,
    positive: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    folds: ArrayLike | None = None,
    noise: float = 0.0,
    level: float = 0.95,
) -> Difference:
    """Area of a minus area of b on the same rows, with interval and test of no difference.

    Args:
        a: (n,) finite numbers.
        b: (n,) the same rows in the same order.
        positive, clusters, folds, noise: as of `auc`.
    Returns: the difference of the two areas of `auc`; se from the differences of the placement values of each row,
        summed over each cluster; Student's t on the plain scale. `n` is the number of independent units: clusters, or
        rows.
    Raises: UsageError: as of `auc`.
    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837-845 (paired); Obuchowski 1997, Biometrics
        53:567-578 (clustered).
    """
    layout = _Layout.of(positive, clusters, folds)
    area_a, deviations_a, _ = layout.placements(numbers(a, "a"))
    area_b, deviations_b, _ = layout.placements(numbers(b, "b"))
    mean = area_a - area_b
    spread = layout.spread(deviations_a - deviations_b, 1 + noise)
    if not spread.variance > _EPS:  # too small, or NaN
        reason = spread.reason or "no spread between the placements of the two: there is no interval"
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, layout.n_units, math.nan, reason)
    se = math.sqrt(spread.variance)
    half = t_quantile((1 + level) / 2, spread.df) * se
    p_value = t_two_sided(mean / se, spread.df)
    least = detectable(se, spread.df)
    return Difference(mean, mean - half, mean + half, se, p_value, layout.n_units, least)


@dataclass(frozen=True)
class _AreaSpread:
    variance: float
    df: float
    n_with: int
    """Clusters (or rows) that hold the label."""
    n_without: int
    """Clusters (or rows) that hold a row without it."""
    reason: str | None = None


@dataclass(frozen=True)
class _Layout:
    """Which rows are compared with which, and which of them belong together."""

    positive: NDArray[np.bool_]
    """(n,)"""
    clusters: NDArray[np.int64]
    """(n,) number of each row's cluster; of its own where there are none."""
    parts: list[NDArray[np.intp]]
    """Rows of each fold that holds both classes."""
    given: bool
    """Whether there are clusters."""

    @classmethod
    def of(cls, positive: ArrayLike, clusters: Sequence[Any] | None, folds: ArrayLike | None) -> _Layout:
        has = np.asarray(positive)
        if has.dtype != np.bool_ or has.ndim != 1:
            raise UsageError(f"positive has type {has.dtype} and shape {has.shape}; give one true or false per row")
        index = np.arange(has.size) if clusters is None else cluster_index(clusters, has.size)[0]
        numbers_of = np.zeros(has.size, dtype=np.int64) if folds is None else np.asarray(folds)
        if numbers_of.shape != has.shape:
            raise UsageError(f"folds has shape {numbers_of.shape} for {has.size} rows; give one fold per row")
        parts = [np.flatnonzero(numbers_of == fold) for fold in np.unique(numbers_of)]
        parts = [rows for rows in parts if has[rows].any() and not has[rows].all()]
        if not parts:
            what = f"{int(has.sum())} of {has.size} rows have the label"
            within = "" if folds is None else ", and no fold holds rows with and without it"
            raise UsageError(f"{what}{within}; an area under the curve needs rows with and without it")
        return cls(has, index, parts, clusters is not None)

    @property
    def rows(self) -> NDArray[np.intp]:
        return np.concatenate(self.parts)

    @property
    def n_folds(self) -> int:
        return len(self.parts)

    @property
    def n_positive(self) -> int:
        return int(self.positive[self.rows].sum())

    @property
    def n_negative(self) -> int:
        return int((~self.positive[self.rows]).sum())

    @property
    def n_units(self) -> int:
        return int(np.unique(self.clusters[self.rows]).size)

    def placements(self, scores: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], bool]:
        """(area, (n,) weighted deviation of each row's placement value from the area, whether all rows are tied).

        A row's placement value is the share of the other class's rows in its fold that it is on the right side of.
        Weights are 1 / (folds x rows of its class in its fold), so the area is the weighted sum over either class.
        """
        from scipy.stats import rankdata

        if scores.shape != self.positive.shape:
            raise UsageError(f"{scores.size} scores for {self.positive.size} rows; give one score per row")
        placed, weights = np.zeros(scores.size), np.zeros(scores.size)
        constant, areas = True, []
        for rows in self.parts:
            has, values = self.positive[rows], scores[rows]
            constant = constant and bool(np.ptp(values) == 0)
            ranks = rankdata(values)  # ties at their mean rank, which is what counts them half
            for mine, sign in ((has, 1), (~has, -1)):
                n_mine, n_other = int(mine.sum()), int((~mine).sum())
                below = (ranks[mine] - rankdata(values[mine])) / n_other  # share of the other class below, ties half
                placed[rows[mine]] = below if sign > 0 else 1 - below
                weights[rows[mine]] = 1 / (self.n_folds * n_mine)
            areas.append(placed[rows[has]].mean())
        area = float(np.mean(areas))
        return area, weights * (placed - area), constant

    def spread(self, deviations: NDArray[np.float64], factor: float) -> _AreaSpread:
        """`factor` times the variance of an area, or of a difference of two, from the deviations of its rows."""
        rows = self.rows
        has, index = self.positive[rows], np.unique(self.clusters[rows], return_inverse=True)[1]
        n = int(index.max()) + 1
        sums, holds = [], []  # per cluster: of the rows with the label, of those without
        for mine in (has, ~has):
            sums.append(np.bincount(index[mine], weights=deviations[rows[mine]], minlength=n))
            holds.append(np.bincount(index[mine], minlength=n) > 0)
        n_with, n_without = int(holds[0].sum()), int(holds[1].sum())
        mixed = bool((holds[0] & holds[1]).any())
        if min(n_with, n_without) < 2:
            unit = "cluster" if self.given else "row"
            least = f"{n_with} {unit}s with the label and {n_without} without: the spread needs at least 2 of each"
            return _AreaSpread(math.nan, math.nan, n_with, n_without, least)
        parts = [
            n_with / (n_with - 1) * float(sums[0] @ sums[0]),
            n_without / (n_without - 1) * float(sums[1] @ sums[1]),
        ]
        if not mixed:
            variance = sum(parts)
            degrees = parts[0] ** 2 / (n_with - 1) + parts[1] ** 2 / (n_without - 1)
            return _AreaSpread(factor * variance, variance**2 / degrees if degrees > 0 else math.nan, n_with, n_without)
        variance = sum(parts) + 2 * n / (n - 1) * float(sums[0] @ sums[1])
        if variance <= 0:  # the three factors differ, so a strongly negative covariance could take more than there is
            variance = n / (n - 1) * float(((sums[0] + sums[1]) ** 2).sum())
        return _AreaSpread(factor * variance, min(n_with, n_without) - 1, n_with, n_without)


def _separated(found: Auc, spread: _AreaSpread, level: float) -> Auc:
    """An area of 0 or 1 with interval and p-value by the score method.

    The interval holds all areas t with |area - t| <= z sqrt(V(t)), where
    V(t) = t(1 - t) (1 + (m - 1)(1 - t)/(2 - t) + (m - 1) t/(1 + t)) / (n_with n_without), m the mean of the two counts:
    Hanley and McNeil's variance with both classes alike. At t = .5 it is that of the Mann-Whitney test.
    """
    from scipy.optimize import brentq

    m, pairs = (spread.n_with + spread.n_without) / 2, spread.n_with * spread.n_without
    z = normal_quantile((1 + level) / 2)

    def deviation(t: float) -> float:
        inner = 1 + (m - 1) * (1 - t) / (2 - t) + (m - 1) * t / (1 + t)
        return math.sqrt(t * (1 - t) * inner / pairs)

    end = float(brentq(lambda t: (1 - t) - z * deviation(t), 1e-9, 1 - 1e-9))  # for 1; that for 0 is its mirror image
    area = float(round(found.auc))
    low, high = (end, 1.0) if area else (0.0, 1 - end)
    p_value = math.erfc(0.5 / deviation(0.5) / math.sqrt(2))
    reason = f"perfectly separated: score interval of {spread.n_with} and {spread.n_without} independent units"
    return replace(found, auc=area, low=low, high=high, se=0.0, p_value=p_value, reason=reason)
