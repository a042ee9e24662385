"""pass@k, intervals, paired tests and corrections: pure NumPy and SciPy, no files.

The problem is the unit, never problem x sample. An undefined statistic is NaN with a reason, never 0. Three sources
of variance are kept apart: which problems were asked, decoding, and the training or selection seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UsageError

_BOOTSTRAP_BLOCK = 1_000_000  # indices drawn at once: bounds the bootstrap's memory to about 16 MB
_ONE_SEED = "one seed: the variance between seeds is unknown, the interval is over problems"


@dataclass(frozen=True)
class Estimate:
    """A mean (or correlation) with its interval; NaN where undefined, and then `reason` says why."""

    mean: float
    low: float
    high: float
    se: float
    """Standard error, in the unit of the mean."""
    n: int
    """Number of values (problems, or trials of a proportion)."""
    reason: str | None = None
    """Why something is NaN or was computed in another way; None where all is plain."""


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b with its interval and test; NaN where undefined, and then `reason` says why."""

    mean: float
    low: float
    high: float
    se: float
    p_value: float
    """Two-sided, of no difference."""
    n: int
    """Number of pairs."""
    minimum_detectable: float
    """Smallest true difference found significant at 5 % with 80 % power, given this spread and n."""
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SeedEstimate(Estimate):
    """One arm over several training or selection seeds; low, high, se and n are over `interval`."""

    interval: Literal["seeds", "problems"]
    """Seeds decide; problems only where there is one seed."""
    seed_means: tuple[float, ...]
    """Mean over problems, one per seed."""
    sd_seeds: float
    """Standard deviation between seed means (decoding noise included)."""
    problems: Estimate
    """The same mean with its interval over problems (values averaged over seeds first)."""
    se_decoding: float
    """Standard error from sampling the answers; NaN unless the number of 0/1 samples per problem is given."""


@dataclass(frozen=True, kw_only=True)
class SeedDifference(Difference):
    """Arm a minus arm b, paired by seed and problem; low, high, se, p_value and n are over `interval`.

    The primary result is over seeds: would another run of the whole procedure come out the same way? The interval over
    problems asks another question (would other problems?) and stands beside it. A claim needs both: `holds`.
    """

    interval: Literal["seeds", "problems"]
    seed_differences: tuple[float, ...]
    """Mean difference over problems, one per seed."""
    sd_seeds: float
    problems: Difference
    """The same mean, tested over problems (differences averaged over seeds first)."""

    @property
    def holds(self) -> bool:
        """Whether the intervals over seeds and over problems both exclude zero, on the same side."""
        positive = self.low > 0 and self.problems.low > 0
        negative = self.high < 0 and self.problems.high < 0
        return self.interval == "seeds" and (positive or negative)


def nan_to_none(value: Any) -> Any:
    """Replaces NaN and infinities by None and NumPy values by Python's, in nested dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return nan_to_none(value.tolist())
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(estimate: Estimate | Difference) -> dict[str, Any]:
    """A JSON-able dict of an estimate; undefined numbers are None."""
    return dict(nan_to_none(dataclasses.asdict(estimate)))


def pass_at_k(n_samples: ArrayLike, n_correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased chance, per problem, that at least one of k samples is correct.

    Args:
        n_samples: (n_problems,) or one number; samples that exist per problem.
        n_correct: (n_problems,) correct samples per problem.
        k: samples allowed, at most n_samples.
    Returns: (n_problems,) float64 in [0, 1]; average over problems for the benchmark's pass@k.
    Raises: UsageError: when k is below 1 or above n_samples, or a count is impossible.
    Cost: O(k * n_problems).
    Source: Chen et al. 2021 (arXiv 2107.03374), 1 - C(n-c,k)/C(n,k), as the product over j < k of (n-c-j)/(n-j).
    """
    n, c = np.broadcast_arrays(np.asarray(n_samples, dtype=np.float64), np.asarray(n_correct, dtype=np.float64))
    if not (np.all(n == np.floor(n)) and np.all(c == np.floor(c)) and np.all(c >= 0) and np.all(c <= n)):
        raise UsageError("pass@k needs whole counts with 0 <= correct <= samples for each problem")
    if k < 1 or (n.size and k > n.min()):
        least = int(n.min()) if n.size else 0
        raise UsageError(
            f"pass@{k} is undefined: some problem has {least} samples; ask for 1 <= k <= {least}, or sample more"
        )
    none_correct = np.ones(n.shape)
    for j in range(k):
        none_correct *= np.maximum(n - c - j, 0.0) / (n - j)
    return np.asarray(1.0 - none_correct, dtype=np.float64)


def mean_estimate(values: ArrayLike, clusters: Sequence[Any] | None = None, level: float = 0.95) -> Estimate:
    """Mean over problems with its t-interval.

    Args:
        values: (n_problems,) one number per problem, e.g. its share of correct samples.
        clusters: (n_problems,) labels; problems with one label share a source and are not independent.
    Returns: SE = sd / sqrt(n), n - 1 degrees of freedom; with clusters the clustered SE and n_clusters - 1. Values that
        are all 0, or all 1, get the Wilson interval; fewer than 2 problems or clusters, or no spread, give NaN.
    Raises: UsageError: when values is not one finite number per problem, or clusters has another length.
    Source: Miller 2024 (arXiv 2411.00640), standard and clustered standard errors; the clustered variance is
        multiplied by G/(G-1), G clusters, so that one problem per cluster gives exactly sd / sqrt(n).
    """
    x = _array(values, "values")
    mean = float(x.mean()) if x.size else math.nan
    se, n_units, reason = _standard_error(x, clusters)
    if n_units >= 2 and np.all(x == mean) and mean in (0.0, 1.0):
        interval = wilson(round(mean * n_units), n_units, level)
        return dataclasses.replace(interval, n=x.size, reason=f"all {x.size} values are {mean:g}: Wilson interval")
    half = _t_quantile((1 + level) / 2, n_units - 1) * se
    return Estimate(mean, mean - half, mean + half, se, x.size, reason)


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a plain proportion of independent 0/1 outcomes; not empty at 0 % and 100 %.

    Returns: se is the half width over the normal quantile, so that it too is above 0 at 0 % and 100 %.
    Raises: UsageError: when successes lies outside 0..n.
    Source: Wilson 1927, JASA 22:209-212.
    """
    from scipy import stats

    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n} trials are impossible; give 0 <= successes <= n")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, "no trials")
    z = float(stats.norm.ppf((1 + level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding could pass them
    high = 1.0 if successes == n else centre + half
    return Estimate(p, low, high, half / z, n)


def minimum_detectable_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean that a two-sided t-test on n values of this spread finds with the given power.

    Returns: (t[1-alpha/2] + t[power]) * sd / sqrt(n) with n - 1 degrees of freedom; NaN below 2 values.
    Source: Bloom 1995, Evaluation Review 19(5):547-556.
    """
    if n < 2:
        return math.nan
    return (_t_quantile(1 - alpha / 2, n - 1) + _t_quantile(power, n - 1)) * sd / math.sqrt(n)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Any] | None = None, level: float = 0.95
) -> Difference:
    """Mean of a - b over problems, with t-interval, two-sided p and minimum detectable effect.

    Args:
        a: (n_problems,) one number per problem.
        b: (n_problems,) the same problems in the same order.
        clusters: (n_problems,) labels of problems that share a source.
    Raises: UsageError: when a and b differ in length or hold NaN.
    Source: Miller 2024 (arXiv 2411.00640), paired differences, clustered as in `mean_estimate`.
    """
    from scipy import stats

    d = np.subtract(*_pair(a, b))
    se, n_units, reason = _standard_error(d, clusters)
    mean = float(d.mean()) if d.size else math.nan
    half = _t_quantile((1 + level) / 2, n_units - 1) * se
    detectable = minimum_detectable_effect(se * math.sqrt(n_units), n_units)
    p_value = 2 * float(stats.t.sf(abs(mean) / se, n_units - 1))
    return Difference(mean, mean - half, mean + half, se, p_value, d.size, detectable, reason)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, n_resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Mean of a - b with a percentile interval from resampling problems (pairs stay together).

    Returns: se is the standard deviation of the resampled means; p_value is twice the smaller tail at 0, counted with
        one added resample so that it is never 0; the minimum detectable effect is that of the t-test.
    Raises: UsageError: when a and b differ in length or hold NaN, or n_resamples is below 1.
    Cost: O(n_resamples * n_problems); memory bounded.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if n_resamples < 1:
        raise UsageError(f"n_resamples is {n_resamples}; give at least 1 (10000 is usual)")
    by_t = paired_difference(a, b)
    if math.isnan(by_t.se):
        return by_t
    d = np.subtract(*_pair(a, b))
    rng = np.random.default_rng(seed)
    block = max(1, _BOOTSTRAP_BLOCK // d.size)
    sizes = [(min(block, n_resamples - start), d.size) for start in range(0, n_resamples, block)]
    means = np.concatenate([d[rng.integers(0, d.size, size=size)].mean(axis=1) for size in sizes])  # (n_resamples,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (n_resamples + 1))
    se = float(means.std())
    return dataclasses.replace(by_t, low=float(low), high=float(high), se=se, p_value=p_value)


def mcnemar_exact(b01: int, b10: int) -> float:
    """Two-sided exact p for two systems with one 0/1 outcome per problem.

    Takes the number of problems only the second, and only the first, system solves; 1 where they never disagree.

    Raises: UsageError: when a count is negative.
    Source: McNemar 1947, with the exact binomial of Edwards 1948.
    """
    from scipy import stats

    if b01 < 0 or b10 < 0:
        raise UsageError(f"McNemar's test needs counts of 0 or more, not {b01} and {b10}")
    return min(1.0, 2 * float(stats.binom.cdf(min(b01, b10), b01 + b10, 0.5)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted for the number of tests, step-down; undefined ones (NaN) stay NaN and are not counted.

    Returns: (n_tests,) adjusted p-values in the order given, each at most 1.
    Raises: UsageError: when one lies outside [0, 1].
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    p = np.asarray(p_values, dtype=np.float64)
    defined = np.flatnonzero(~np.isnan(p))
    if np.any((p[defined] < 0) | (p[defined] > 1)):
        raise UsageError("a p-value lies outside [0, 1]; give p-values, or NaN where undefined")
    order = defined[np.argsort(p[defined], kind="stable")]
    factors = np.arange(order.size, 0, -1)  # m, m-1, ..., 1 for the smallest first
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def spearman(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> Estimate:
    """Spearman's rank correlation with an interval on Fisher's z scale.

    Returns: `mean` is the correlation; NaN with a reason where one side is constant; the interval needs 4 pairs whose
        ranks do not agree perfectly.
    Raises: UsageError: when x and y differ in length or hold NaN.
    Source: Bonett and Wright 2000, Psychometrika 65:23-28: var(z) = (1 + r^2/2)/(n - 3).
    """
    from scipy import stats

    first, second = _pair(x, y)
    n = first.size
    if n < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        reason = f"{n} pairs: at least 2 are needed" if n < 2 else "one side is constant: ranks are undefined"
        return Estimate(math.nan, math.nan, math.nan, math.nan, n, reason)
    ranks = np.corrcoef(stats.rankdata(first), stats.rankdata(second))
    r = float(np.clip(ranks[0, 1], -1, 1))
    if n < 4 or 1 - abs(r) < 1e-12:
        reason = f"{n} pairs: the interval needs at least 4" if n < 4 else "ranks agree perfectly: no interval"
        return Estimate(r, math.nan, math.nan, math.nan, n, reason)
    se_z = math.sqrt((1 + r * r / 2) / (n - 3))
    half = float(stats.norm.ppf((1 + level) / 2)) * se_z
    z = math.atanh(r)
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), se_z * (1 - r * r), n)


def aggregate_over_seeds(values: ArrayLike, n_samples: int | None = None, level: float = 0.95) -> SeedEstimate:
    """One arm over seeds: the t-interval over seeds decides; problems and decoding are reported apart.

    Args:
        values: (n_seeds, n_problems) share of correct samples per seed and problem.
        n_samples: 0/1 samples behind each value; with 2 or more the decoding SE is given too.
    Returns: with one seed the interval is over problems, and the reason says that the seed variance is unknown.
    Raises: UsageError: when values is not a full, finite (n_seeds, n_problems) array.
    Source: t-interval over independent runs; Miller 2024 (arXiv 2411.00640) for problems and decoding.
    """
    x = _array(values, "values", ndim=2)
    problems = mean_estimate(x.mean(axis=0), level=level)
    seed_means = x.mean(axis=1)  # (n_seeds,)
    several = len(x) > 1
    se_decoding = math.nan
    if n_samples is not None and n_samples >= 2:
        if x.min() < 0 or x.max() > 1:
            raise UsageError("the decoding error needs shares of 0/1 samples; leave n_samples out for other values")
        # p(1-p)/(n-1) is the unbiased variance of a mean of n 0/1 samples.
        se_decoding = math.sqrt(float(np.sum(x * (1 - x))) / (n_samples - 1)) / x.size
    used = mean_estimate(seed_means, level=level) if several else dataclasses.replace(problems, reason=_ONE_SEED)
    return SeedEstimate(
        **vars(used),
        interval="seeds" if several else "problems",
        seed_means=tuple(seed_means.tolist()),
        sd_seeds=float(seed_means.std(ddof=1)) if several else math.nan,
        problems=problems,
        se_decoding=se_decoding,
    )


def paired_over_seeds(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> SeedDifference:
    """Arm a minus arm b, paired by seed: the t-interval over the per-seed differences is the result.

    Args:
        a: (n_seeds, n_problems) values of one arm, row s trained or selected with seed s.
        b: (n_seeds, n_problems) the other arm, same seeds and problems in the same order.
    Returns: low, high, se and p_value over seeds; `problems` holds the test over problems of the seed-averaged
        difference. With one seed the interval is over problems and the reason says so; `holds` is then False.
    Raises: UsageError: when the shapes differ or a value is not finite.
    Source: paired t-test on per-seed means; two sources are reported, not pooled, since seeds are few and pooling
        would let many problems hide a large variance between runs.
    """
    first, second = _pair(a, b, ndim=2)
    problems = paired_difference(first.mean(axis=0), second.mean(axis=0), level=level)
    over_seeds = paired_difference(first.mean(axis=1), second.mean(axis=1), level=level)
    differences = (first - second).mean(axis=1)  # (n_seeds,)
    several = len(differences) > 1
    return SeedDifference(
        **vars(over_seeds if several else dataclasses.replace(problems, reason=_ONE_SEED)),
        interval="seeds" if several else "problems",
        seed_differences=tuple(differences.tolist()),
        sd_seeds=float(differences.std(ddof=1)) if several else math.nan,
        problems=problems,
    )


def _standard_error(x: NDArray[np.float64], clusters: Sequence[Any] | None) -> tuple[float, int, str | None]:
    """(standard error, number of independent units, reason why the error is NaN)."""
    unit, n_units = "problem", x.size
    residuals = x - x.mean() if x.size else x
    if clusters is not None:
        if len(clusters) != x.size:
            raise UsageError(f"{len(clusters)} cluster labels for {x.size} values; give one label per value")
        labels = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
        unit, n_units = "cluster", len(labels)
        index = np.fromiter((labels[label] for label in clusters), dtype=np.int64, count=x.size)
        residuals = np.bincount(index, weights=residuals, minlength=n_units)  # (n_clusters,) sums
    if n_units < 2:
        return math.nan, n_units, f"{n_units} {unit}{'' if n_units == 1 else 's'}: the spread needs at least 2"
    scale = max(1.0, float(np.abs(x).max()))
    if float(np.abs(residuals).max()) <= 1e-12 * scale:  # rounding of equal values
        return math.nan, n_units, f"no spread between {n_units} {unit}s: the standard error is unknown"
    return math.sqrt(float(np.sum(residuals**2)) * n_units / (n_units - 1)) / x.size, n_units, None


def _t_quantile(q: float, df: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(q, df))


def _array(values: ArrayLike, name: str, ndim: int = 1) -> NDArray[np.float64]:
    """The values as float64, checked to be finite and, for (n_seeds, n_problems), not empty."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == ndim and np.all(np.isfinite(x)) and (ndim == 1 or x.size):
        return x
    what = "holds NaN or infinity" if x.ndim == ndim and x.size else f"has shape {x.shape}"
    wanted = "one number per problem" if ndim == 1 else "a full (n_seeds, n_problems) array of numbers"
    raise UsageError(f"{name} {what}; give {wanted}")


def _pair(a: ArrayLike, b: ArrayLike, ndim: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _array(a, "a", ndim), _array(b, "b", ndim)
    if first.shape != second.shape:
        raise UsageError(f"a has shape {first.shape} and b {second.shape}; pair the same problems in the same order")
    return first, second
