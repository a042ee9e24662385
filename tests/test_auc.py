"""Areas under the ROC curve: against scikit-learn, SciPy, definitions one pair at a time, and resampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from skillbasis.errors import UsageError
from skillbasis.statistics.auc import auc, auc_difference


def drawn(n: int, rate: float, effect: float, seed: int, *, rounded: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < rate
    scores = rng.normal(size=n) + effect * positive
    return (np.round(scores) if rounded else scores), positive


def by_ranks(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    m, n = int(positive.sum()), int((~positive).sum())
    return float((stats.rankdata(scores)[positive].sum() - m * (m + 1) / 2) / (m * n))


def test_a_case_worked_by_hand_with_a_tie() -> None:
    # Pairs: 3 > 2, 3 > 1, 1 < 2, 1 = 1, so (1 + 1 + 0 + 1/2) / 4. Placements: 1 and 1/4; 1/2 and 3/4.
    found = auc([3, 1, 2, 1], [True, True, False, False])
    assert found.auc == pytest.approx(0.625)
    variance = (0.375**2 + 0.375**2) / 1 / 2 + (0.125**2 + 0.125**2) / 1 / 2
    assert found.se == pytest.approx(math.sqrt(variance))
    assert (found.n_positive, found.n_negative, found.n_folds, found.reason) == (2, 2, 1, None)


@pytest.mark.parametrize("rounded", [False, True])
def test_area_and_test_agree_with_two_other_programs(rounded: bool) -> None:
    for seed in range(5):
        scores, positive = drawn(60, 0.3, 0.7, seed, rounded=rounded)
        found = auc(scores, positive)
        assert found.auc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        other = stats.brunnermunzel(scores[~positive], scores[positive])
        assert found.p_value == pytest.approx(other.pvalue, rel=1e-9)
        assert abs((found.auc - 0.5) / found.se) == pytest.approx(abs(other.statistic), rel=1e-9)
        turned = auc(-scores, positive)
        assert (turned.auc, turned.se) == (pytest.approx(1 - found.auc), pytest.approx(found.se))
        assert (turned.low, turned.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))


def clustered_variance(scores: NDArray[Any], positive: NDArray[Any], clusters: NDArray[Any]) -> float:
    """Obuchowski 1997, equations (4) to (8), one pair at a time."""
    kernel = [[(p > q) + (p == q) / 2 for q in scores[~positive]] for p in scores[positive]]
    v10, v01, theta = np.mean(kernel, axis=1), np.mean(kernel, axis=0), np.mean(kernel)
    of_positive, of_negative = clusters[positive], clusters[~positive]
    m, n, names = positive.sum(), (~positive).sum(), np.unique(clusters)
    x = np.array([(v10[of_positive == g] - theta).sum() for g in names])
    y = np.array([(v01[of_negative == g] - theta).sum() for g in names])
    i10, i01, i = len(set(of_positive)), len(set(of_negative)), len(names)
    s10, s01 = i10 / ((i10 - 1) * m) * (x**2).sum(), i01 / ((i01 - 1) * n) * (y**2).sum()
    return float(s10 / m + s01 / n + 2 * i / (i - 1) * (x * y).sum() / (m * n))


def test_clustered_variance_by_its_definition_and_by_resampling_clusters() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    shared = rng.normal(size=60)[clusters]
    positive = rng.random(len(clusters)) < 1 / (1 + np.exp(-shared))
    scores = shared + rng.normal(size=len(clusters))
    found = auc(scores, positive, clusters=clusters.tolist())
    assert found.se**2 == pytest.approx(clustered_variance(scores, positive, clusters), rel=1e-9)
    members = [np.flatnonzero(clusters == g) for g in range(60)]
    resampled = []
    for _ in range(1500):
        rows = np.concatenate([members[g] for g in rng.integers(0, 60, 60)])
        resampled.append(by_ranks(scores[rows], positive[rows]))
    # 1,500 resamples give their standard deviation to 2 %; resampling 60 clusters is some per cent off by itself.
    assert found.se == pytest.approx(np.std(resampled), rel=0.1)
    assert found.se > auc(scores, positive).se  # rows that stand together say less


def test_clusters_of_one_row_change_nothing() -> None:
    scores, positive = drawn(50, 0.4, 0.5, 1)
    assert auc(scores, positive, clusters=list(range(50))) == auc(scores, positive)


def test_folds_are_averaged_and_never_compared_with_one_another() -> None:
    scores, positive = drawn(90, 0.4, 0.8, 2)
    folds = np.arange(90) % 3
    shifted = scores + 100 * folds  # another scale in each fold
    found = auc(shifted, positive, folds=folds)
    areas = [roc_auc_score(positive[folds == f], scores[folds == f]) for f in range(3)]
    assert found.auc == pytest.approx(np.mean(areas))
    assert found.se == pytest.approx(auc(scores, positive).se, rel=0.15)
    lost = auc(scores, positive & (folds > 0), folds=folds)  # fold 0 holds one class
    assert (lost.n_folds, lost.n_positive + lost.n_negative) == (2, 60)


def test_noise_widens_the_interval_and_leaves_the_area() -> None:
    scores, positive = drawn(90, 0.4, 0.8, 2)
    plain, noisy = auc(scores, positive), auc(scores, positive, noise=1.0)
    assert noisy.auc == plain.auc
    assert noisy.se == pytest.approx(math.sqrt(2) * plain.se)


def test_perfect_separation_has_an_interval_and_the_rank_test() -> None:
    scores, positive = np.arange(20.0), np.arange(20) >= 12
    found = auc(scores, positive)
    assert (found.auc, found.high, found.se) == (1.0, 1.0, 0.0)
    m, t = 10, found.low  # 8 and 12 rows: a mean of 10
    variance = t * (1 - t) * (1 + (m - 1) * (1 - t) / (2 - t) + (m - 1) * t / (1 + t)) / (8 * 12)
    assert (1 - t) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)
    by_ranks = stats.mannwhitneyu(scores[positive], scores[~positive], method="asymptotic", use_continuity=False)
    assert found.p_value == pytest.approx(by_ranks.pvalue, rel=1e-6)
    assert found.reason == "perfectly separated: score interval of 8 and 12 independent units"
    turned = auc(-scores, positive)
    assert (turned.auc, turned.low, turned.high) == (0.0, 0.0, pytest.approx(1 - found.low))
    in_pairs = auc(scores, positive, clusters=(np.arange(20) // 2).tolist())
    assert in_pairs.low < found.low


def test_intervals_hold_the_truth_and_the_test_rejects_rarely() -> None:
    rng = np.random.default_rng(5)
    for effect, n_with, n_without in ((0.0, 10, 60), (1.0, 10, 60), (1.5, 40, 40)):
        truth = stats.norm.cdf(effect / math.sqrt(2))
        covered = rejected = 0
        for _ in range(400):
            scores = np.concatenate([rng.normal(effect, 1, n_with), rng.normal(0, 1, n_without)])
            found = auc(scores, np.arange(n_with + n_without) < n_with)
            covered += found.low <= truth <= found.high
            rejected += found.p_value < 0.05
        assert covered >= 0.92 * 400  # at 95 % the standard deviation of 400 counts is 4.4
        if effect == 0:
            assert 0.02 * 400 <= rejected <= 0.085 * 400


def test_difference_against_its_definition_and_resampling() -> None:
    rng = np.random.default_rng(6)
    positive = np.arange(150) < 60
    a = rng.normal(size=150) + 1.0 * positive
    b = 0.6 * a + 0.8 * rng.normal(size=150)
    found = auc_difference(a, b, positive)
    assert found.mean == pytest.approx(roc_auc_score(positive, a) - roc_auc_score(positive, b))
    kernels = [[[(p > q) + (p == q) / 2 for q in x[~positive]] for p in x[positive]] for x in (a, b)]
    by_rows = np.mean(kernels[0], axis=1) - np.mean(kernels[1], axis=1)
    by_columns = np.mean(kernels[0], axis=0) - np.mean(kernels[1], axis=0)
    variance = by_rows.var(ddof=1) / 60 + by_columns.var(ddof=1) / 90  # DeLong et al. 1988, for the contrast (1, -1)
    assert found.se == pytest.approx(math.sqrt(variance))
    resampled = []
    for _ in range(1500):
        rows = np.concatenate([rng.integers(0, 60, 60), rng.integers(60, 150, 90)])
        resampled.append(by_ranks(a[rows], positive[rows]) - by_ranks(b[rows], positive[rows]))
    assert found.se == pytest.approx(np.std(resampled), rel=0.08)
    back = auc_difference(b, a, positive)
    assert (back.mean, back.low, back.p_value) == (-found.mean, pytest.approx(-found.high), found.p_value)
    assert found.n == 150
    doubled = auc_difference(
        *(np.concatenate([x, x]) for x in (a, b, positive)), clusters=[*range(150), *range(150)]
    )  # every row twice, said so: nothing new is known
    assert (doubled.mean, doubled.n) == (pytest.approx(found.mean), 150)
    assert doubled.se == pytest.approx(found.se, rel=0.02)


def test_what_is_undefined_is_nan_with_a_reason() -> None:
    constant = auc([1.0] * 6, [True, False] * 3)
    assert constant.auc == 0.5
    assert math.isnan(constant.low) and constant.reason == "all rows score the same: there is no interval"
    lonely = auc([1.0, 2.0, 1.5], [True, False, False])
    assert math.isnan(lonely.se) and "1 rows with the label and 2 without" in str(lonely.reason)
    same = auc_difference([1.0, 2, 3, 4], [1.0, 2, 3, 4], [True, False, True, False])
    assert same.mean == 0 and math.isnan(same.low) and "no spread" in str(same.reason)


def test_refusals_name_the_cause() -> None:
    with pytest.raises(UsageError, match="3 of 3 rows have the label; an area under the curve needs rows with and"):
        auc([1, 2, 3], [True] * 3)
    with pytest.raises(UsageError, match="no fold holds rows with and without it"):
        auc([1, 2, 3, 4], [True, True, False, False], folds=[0, 0, 1, 1])
    with pytest.raises(UsageError, match="2 scores for 3 rows"):
        auc([1, 2], [True, False, True])
    with pytest.raises(UsageError, match="holds NaN"):
        auc([1, math.nan, 2], [True, False, True])
    with pytest.raises(UsageError, match="give one true or false per row"):
        auc([1, 2], [1, 0])
    with pytest.raises(UsageError, match="folds has shape"):
        auc([1, 2], [True, False], folds=[0])
    with pytest.raises(UsageError, match="1 cluster labels for 2 values"):
        auc([1, 2], [True, False], clusters=["a"])
