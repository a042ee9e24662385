"""Angles and cosines against planted subspaces and scipy; scores against hand-worked numbers and nulls."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skillbasis.activations import ActivationStore
from skillbasis.basis import PcaSettings, Scores, SkillBasis, fit_pca
from skillbasis.basis.agreement import compare_score_tables, compare_scores, explained, shared_rows
from skillbasis.basis.compare import compare_bases, compare_subspaces, match, principal_angles, same_shape, span
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.statistics import spearman

MakeStore = Callable[..., ActivationStore]


def turned(degrees: float, along: int, towards: int, d: int) -> np.ndarray:
    """Unit vector (d,) that stands at an angle to one axis, in the plane of two."""
    vector = np.zeros(d)
    vector[along], vector[towards] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return vector


def table(ids: list[str], values: np.ndarray) -> Scores:
    return Scores(ids, values, np.ones(len(ids)), np.ones(len(ids)))


# --- spans and directions ---


def test_planted_angles_are_found_whatever_the_basis_of_the_span() -> None:
    rng = np.random.default_rng(0)
    a = np.eye(6)[:2]
    b = np.stack([turned(10, 0, 2, 6), turned(70, 1, 3, 6)])
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    skewed = np.array([[3.0, 1.0], [-2.0, 0.5]])  # neither unit nor orthogonal, the same span
    for first, second in ((a, b), (b, a), (skewed @ a, b), (a @ rotation, skewed @ b @ rotation)):
        np.testing.assert_allclose(principal_angles(first, second), [10, 70], atol=1e-9)
        found = compare_subspaces(first, second)
        np.testing.assert_allclose(found.angles_degrees, [10, 70], atol=1e-9)
        expected = (np.cos(np.radians(10)) ** 2 + np.cos(np.radians(70)) ** 2) / 2
        assert found.overlap == pytest.approx(expected, abs=1e-12)
        assert found.overlap_chance == pytest.approx(2 / 6)


@pytest.mark.parametrize(("k_a", "k_b"), [(3, 3), (2, 5), (5, 2), (1, 7)])
def test_angles_are_those_of_scipy(k_a: int, k_b: int) -> None:
    from scipy.linalg import subspace_angles

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((k_a, 9)), rng.standard_normal((k_b, 9))
    expected = np.sort(np.degrees(subspace_angles(a.T, b.T)))
    np.testing.assert_allclose(principal_angles(a, b), expected, atol=1e-9)


def test_tiny_angles_are_not_lost_in_their_cosine() -> None:
    for degrees in (1e-6, 1e-9):  # the cosine of both is 1 in float64
        found = principal_angles(np.eye(4)[:1], turned(degrees, 0, 2, 4)[None])
        np.testing.assert_allclose(found, [degrees], rtol=1e-6)


def test_two_rotated_axes_by_hand() -> None:
    b = np.stack([turned(120, 0, 1, 2), turned(30, 0, 1, 2)])  # both axes turned by 30 degrees, in the other order
    found = compare_subspaces(np.eye(2), b)
    np.testing.assert_allclose(found.angles_degrees, [0, 0], atol=1e-9)
    assert found.overlap == pytest.approx(1) and found.overlap_chance == 1
    assert {(pair.a, pair.b) for pair in found.pairs} == {(0, 1), (1, 0)}
    assert [pair.value for pair in found.pairs] == pytest.approx([np.cos(np.radians(30))] * 2)
    assert found.mean_cosine == pytest.approx(np.cos(np.radians(30)))


def test_matching_is_the_best_of_all_permutations_and_keeps_signs() -> None:
    rng = np.random.default_rng(2)
    for shape in ((4, 4), (3, 5), (5, 3)):
        values = rng.uniform(-1, 1, shape)
        found = match(values)
        wide = values if shape[0] <= shape[1] else values.T
        best = max(
            sum(abs(wide[i, j]) for i, j in enumerate(columns))
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(abs(pair.value) for pair in found) == pytest.approx(best)
        assert all(pair.value == values[pair.a, pair.b] for pair in found)
        sizes = [abs(pair.value) for pair in found]
        assert sizes == sorted(sizes, reverse=True) and len(found) == min(shape)


def test_permuted_and_flipped_directions_are_matched() -> None:
    rng = np.random.default_rng(3)
    a = np.linalg.qr(rng.standard_normal((40, 6)))[0].T
    order, signs = rng.permutation(6), rng.choice([-1, 1], 6)
    found = compare_subspaces(a, signs[:, None] * a[order])
    assert {(pair.a, pair.b) for pair in found.pairs} == {(int(order[j]), j) for j in range(6)}
    assert all(pair.value == pytest.approx(signs[pair.b]) for pair in found.pairs)


def test_the_expected_overlap_is_that_of_random_spans() -> None:
    rng = np.random.default_rng(4)
    found = [compare_subspaces(rng.standard_normal((3, 12)), rng.standard_normal((4, 12))) for _ in range(300)]
    overlaps = np.array([one.overlap for one in found])
    assert found[0].overlap_chance == pytest.approx(4 / 12)
    assert abs(overlaps.mean() - 4 / 12) < 4 * overlaps.std() / np.sqrt(300)


def test_the_level_of_chance_is_exceeded_by_one_random_basis_in_twenty() -> None:
    rng = np.random.default_rng(5)
    a = np.linalg.qr(rng.standard_normal((30, 4)))[0].T
    limits = compare_subspaces(a, a)
    n = 1000
    largest, means = np.empty(n), np.empty(n)
    for i in range(n):
        b = rng.standard_normal((4, 30))
        cosines = [abs(pair.value) for pair in match(a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T)]
        largest[i], means[i] = cosines[0], np.mean(cosines)
    # 200 draws place the limit, so the true level is 5 % with a standard error of 1.5 points, and this mean's is 0.7.
    assert 0.01 < (largest > limits.cosine_null_95).mean() < 0.10
    assert 0.01 < (means > limits.mean_null_95).mean() < 0.10


def test_directions_that_depend_on_each_other_span_fewer_dimensions() -> None:
    a = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    assert span(a).shape == (2, 4)
    found = compare_subspaces(a, np.eye(4)[:2])
    np.testing.assert_allclose(found.angles_degrees, [0, 0], atol=1e-9)
    assert found.overlap == pytest.approx(1) and len(found.pairs) == 2
    many = compare_subspaces(
        np.random.default_rng(6).standard_normal((9, 4)), np.eye(4)
    )  # more directions than features
    np.testing.assert_allclose(many.angles_degrees, [0] * 4, atol=1e-9)


def test_what_has_no_angles() -> None:
    good = np.eye(3)[:2]
    for bad, message in (
        (np.eye(4)[:2], "directions of 3 and of 4 features have no angle between them; compare the scores"),
        (np.array([[1.0, np.nan, 0]]), "directions B hold NaN or infinity; discover them again"),
        (np.array([[1.0, 0, 0], [0, 0, 0]]), "direction 1 of B has length 0; leave it out"),
        (np.ones(3), r"directions B have shape \(3,\); give \(directions, features\)"),
        (np.empty((0, 3)), r"directions B have shape \(0, 3\)"),
    ):
        with pytest.raises(UsageError, match=message):
            compare_subspaces(good, bad)


def bases(make_store: MakeStore) -> tuple[SkillBasis, SkillBasis, SkillBasis]:
    """One PCA basis and two with normalised blocks, of half the rows each and of all."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((600, 2, 10)) * (1 + np.arange(10)) * np.array([0.01, 10.0])[:, None]
    whole = make_store(x, name="whole")
    half = make_store(x[:300], name="half")
    normal = PcaSettings(k=3, normalize_blocks=True)
    return fit_pca(whole, PcaSettings(k=3)), fit_pca(whole, normal), fit_pca(half, normal)


def test_normalised_bases_are_compared_in_their_own_metric(make_store: MakeStore) -> None:
    plain, normalised, half = bases(make_store)
    np.testing.assert_allclose(normalised.frame @ normalised.frame.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(plain.frame, plain.directions.reshape(3, -1), rtol=1e-6)
    flat = normalised.directions.reshape(3, -1)
    assert np.abs(flat @ flat.T - np.eye(3)).max() > 1e-3  # the directions themselves are not orthogonal
    found = compare_bases(normalised, half)
    assert found.scaled and compare_bases(normalised, normalised).angles_degrees[-1] < 1e-4
    raw = compare_subspaces(flat, half.directions.reshape(3, -1))
    assert not raw.scaled and abs(raw.overlap - found.overlap) > 1e-3
    assert not compare_bases(plain, normalised).scaled
    json.dumps(found.to_json(), allow_nan=False)


def test_bases_of_different_shape_have_no_angles(make_store: MakeStore) -> None:
    x = np.random.default_rng(8).standard_normal((50, 2, 6))
    a = fit_pca(make_store(x, name="a"), PcaSettings(k=2))
    b = fit_pca(make_store(x, name="b", block_ids=[2, 3]), PcaSettings(k=2))
    last = fit_pca(make_store(x, name="c", pooling="last"), PcaSettings(k=2))
    assert same_shape(a, last) and not same_shape(a, b)
    assert compare_bases(a, last).overlap == pytest.approx(1)
    with pytest.raises(
        ArtifactError, match=r"different shape \(planted, blocks \[1, 2\], hidden size 6; .*give the sco"
    ):
        compare_bases(a, b)


# --- scores ---


def test_correlations_and_their_intervals_by_hand_and_by_scipy() -> None:
    from scipy.stats import pearsonr

    # x - 2 = (-2, -1, 0, 1, 2) and y - 2.2 = (-1.2, -2.2, .8, -.2, 2.8): products add up to 10, squares to 10 and 14.8
    x, y = np.array([0.0, 1, 2, 3, 4]), np.array([1.0, 0, 3, 2, 5])
    by_hand = 10 / np.sqrt(10 * (1.44 + 4.84 + 0.64 + 0.04 + 7.84))
    found = compare_scores(x[:, None], y[:, None], n_permutations=5).pairs[0]
    assert found.correlation == pytest.approx(by_hand)
    theirs = pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 30, 1))
    ranks = compare_scores(a, b + a, method="spearman", n_permutations=5).pairs[0]
    expected = spearman(a[:, 0], (b + a)[:, 0])
    assert (ranks.correlation, ranks.low, ranks.high) == pytest.approx((expected.mean, expected.low, expected.high))


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_permuted_and_flipped_scores_are_matched(method: Any) -> None:
    rng = np.random.default_rng(10)
    a = rng.standard_normal((200, 5)) * [1, 10, 100, 1e-6, 5]
    order, signs = rng.permutation(5), rng.choice([-1.0, 1.0], 5)
    b = signs * a[:, order] + 0.01 * a.std(axis=0)[order] * rng.standard_normal((200, 5))
    found = compare_scores(a, b, method=method, n_permutations=50)
    assert {(pair.a, pair.b) for pair in found.pairs} == {(int(order[j]), j) for j in range(5)}
    assert all(abs(pair.correlation) > 0.99 and np.sign(pair.correlation) == signs[pair.b] for pair in found.pairs)
    assert all(pair.p_value == pytest.approx(1 / 51) and pair.null_95 < 0.4 for pair in found.pairs)
    assert found.mean_p_value == pytest.approx(1 / 51) and found.mean_correlation > 0.99 > found.mean_null_95
    for side in (found.a_from_b, found.b_from_a):
        assert all(estimate.mean > 0.999 for estimate in (*side.directions, side.total))
    json.dumps(found.to_json(), allow_nan=False)


def test_a_basis_with_itself_is_perfect() -> None:
    a = np.random.default_rng(11).standard_normal((40, 3))
    found = compare_scores(a, a, n_permutations=20)
    for pair in found.pairs:
        assert (pair.a, pair.correlation, pair.low, pair.high) == pytest.approx((pair.b, 1, 1, 1))
    for estimate in (*found.a_from_b.directions, found.a_from_b.total):
        assert (estimate.mean, estimate.low, estimate.high) == (1, 1, 1)
    assert found.canonical == pytest.approx([1, 1, 1])


def test_the_null_is_calibrated() -> None:
    from scipy.stats import kstest

    rng = np.random.default_rng(12)
    p_mean, p_first, canonical = [], [], []
    for seed in range(200):
        found = compare_scores(rng.standard_normal((25, 3)), rng.standard_normal((25, 4)), n_permutations=39, seed=seed)
        p_mean.append(found.mean_p_value)
        p_first.append(found.pairs[0].p_value)
        canonical.append(found.canonical[0] > found.canonical_null_95[0])
    for p_values in (p_mean, p_first):  # uniform on 1/40 ... 40/40
        spread = np.array(p_values) - np.random.default_rng(0).uniform(0, 1 / 40, 200)
        assert kstest(spread, "uniform").pvalue > 0.01
        assert 0.01 <= (np.array(p_values) <= 0.05).mean() <= 0.10
    assert 0.01 <= np.mean(canonical) <= 0.12


def test_the_matching_is_repeated_in_the_null() -> None:
    """Of 100 correlations of 12 unrelated examples the largest are large; only a null with the same search knows it."""
    rng = np.random.default_rng(13)
    found = compare_scores(rng.standard_normal((12, 10)), rng.standard_normal((12, 10)), n_permutations=100)
    best = found.pairs[0]
    assert abs(best.correlation) > 0.6 and best.low * best.high > 0  # the interval alone would believe it
    assert best.p_value > 0.05 and best.null_95 > 0.6


def test_explained_variance_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    rng = np.random.default_rng(14)
    x = rng.standard_normal((90, 3))
    y = np.column_stack([x @ [1, 2, 0] + rng.standard_normal(90), 5 * rng.standard_normal(90), x[:, 0] ** 2])
    fold = rng.permutation(90) % 5
    found = explained(x, y, fold)
    predicted = cross_val_predict(LinearRegression(), x, y, cv=PredefinedSplit(fold))
    means = np.stack([y[fold != part].mean(axis=0) for part in fold])
    errors, totals = ((y - predicted) ** 2).sum(axis=0), ((y - means) ** 2).sum(axis=0)
    np.testing.assert_allclose([estimate.mean for estimate in found.directions], 1 - errors / totals, rtol=1e-9)
    assert found.total.mean == pytest.approx(1 - errors.sum() / totals.sum())
    again = explained(1e-9 * x + 5, 1e-9 * y - 7, fold)
    np.testing.assert_allclose([e.mean for e in again.directions], [e.mean for e in found.directions], rtol=1e-5)
    np.testing.assert_allclose([e.low for e in again.directions], [e.low for e in found.directions], rtol=1e-4)


def test_intervals_of_the_explained_variance_hold_the_truth() -> None:
    rng = np.random.default_rng(15)
    held, estimates = 0, []
    for _ in range(200):
        x = rng.standard_normal((300, 2))
        y = x[:, :1] + rng.standard_normal((300, 1))  # half of the variance
        found = explained(x, y, rng.permutation(300) % 5).directions[0]
        held += found.low <= 0.5 <= found.high
        estimates.append(found.mean)
    assert abs(np.mean(estimates) - 0.5) < 0.02
    assert 0.90 <= held / 200 <= 0.99  # 95 % less what the chance in fitting takes; standard error 1.6 points


def test_directions_that_only_one_side_has_are_not_explained() -> None:
    rng = np.random.default_rng(16)
    a = rng.standard_normal((400, 3)) * [3, 2, 1]
    rotation = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    b = np.column_stack([a[:, :2] @ rotation, rng.standard_normal(400)])
    found = compare_scores(a, b, n_permutations=20)
    r2 = [estimate.mean for estimate in found.a_from_b.directions]
    assert r2[0] > 0.999 and r2[1] > 0.999 and r2[2] < 0.05
    assert found.a_from_b.total.mean == pytest.approx(13 / 14, abs=0.02)  # variances 9, 4, 1
    assert found.canonical[:2] == pytest.approx([1, 1]) and found.canonical[2] < 0.2


def test_canonical_correlations_by_their_definition() -> None:
    rng = np.random.default_rng(17)
    a, b = rng.standard_normal((60, 3)), rng.standard_normal((60, 4))
    b[:, 0] += a[:, 1]
    found = compare_scores(a, b, n_permutations=5).canonical
    aa, bb = np.cov(a.T), np.cov(b.T)
    ab = np.cov(a.T, b.T)[:3, 3:]
    squares = np.linalg.eigvals(np.linalg.solve(aa, ab) @ np.linalg.solve(bb, ab.T)).real
    np.testing.assert_allclose(found, np.sqrt(np.sort(squares)[::-1]), rtol=1e-9)


def test_few_examples_leave_what_cannot_be_known_undefined() -> None:
    rng = np.random.default_rng(18)
    found = compare_scores(rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), n_permutations=5)
    assert np.isnan(found.pairs[0].low) and not np.isnan(found.pairs[0].correlation)
    estimate = found.a_from_b.directions[0]
    assert np.isnan(estimate.mean) and estimate.reason == "2 examples are too few to fit 3 coefficients"
    json.dumps(found.to_json(), allow_nan=False)


def test_tables_are_joined_by_id() -> None:
    rng = np.random.default_rng(19)
    values = rng.standard_normal((30, 2))
    ids = [f"r{i}" for i in range(30)]
    order = rng.permutation(25)
    other = table([ids[i] for i in order] + ["x", "y"], np.vstack([values[order], rng.standard_normal((2, 2))]))
    rows_a, rows_b = shared_rows(ids, other.ids)
    assert rows_a.tolist() == list(range(25)) and [other.ids[row] for row in rows_b] == ids[:25]
    found = compare_score_tables(table(ids, values), other, n_permutations=5)
    assert found.n == 25 and [pair.correlation for pair in found.pairs] == pytest.approx([1, 1])


def test_the_same_seed_gives_the_same_figures() -> None:
    rng = np.random.default_rng(20)
    a, b = rng.standard_normal((2, 50, 3))
    first, again, other = (compare_scores(a, b, n_permutations=30, seed=seed).to_json() for seed in (1, 1, 2))
    assert first == again and first != other and first["correlations"] == other["correlations"]


def test_scores_that_cannot_be_compared() -> None:
    rng = np.random.default_rng(21)
    a = rng.standard_normal((10, 2))
    broken, still = a.copy(), a.copy()
    broken[4, 1], still[:, 0] = np.inf, 7.7
    for bad, message in (
        (broken, r"scores B are not finite \(row 4, direction 1\); extract and score again"),
        (still, "direction 0 of B scores all 10 shared examples the same, so nothing correlates with it"),
        (a[:2], "2 shared examples are too few to correlate scores; give 3 or more"),
    ):
        with pytest.raises(ArtifactError, match=message):
            compare_scores(a, bad)
    for arguments, message in (
        ((a, a[:9]), "A has 10 examples and B 9; give the scores of the same ones"),
        ((a, a[:, 0]), r"scores B have shape \(10,\); give \(examples, directions\)"),
    ):
        with pytest.raises(UsageError, match=message):
            compare_scores(*arguments)
    with pytest.raises(UsageError, match=r"unknown correlation 'spearmann' \(did you mean 'spearman'\?\)"):
        compare_scores(a, a, method="spearmann")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1 permutation and 2 folds, not 0 and 5"):
        compare_scores(a, a, n_permutations=0)
    ids = [str(i) for i in range(10)]
    for others, message in (
        ([f"x{i}" for i in range(10)], r"share no examples by id \(10 and 10 in all\), and 3 are the least"),
        (["0", "1", *[f"x{i}" for i in range(8)]], "share 2 examples by id"),
        ([*ids[:9], "3"], "the scores name '3' more than once; give every example its own id"),
    ):
        with pytest.raises(ArtifactError, match=message):
            compare_score_tables(table(ids, a), table(others, a))


def test_time_and_memory_of_many_examples() -> None:
    rng = np.random.default_rng(22)
    a, b = rng.standard_normal((2, 50_000, 10))
    tracemalloc.start()
    started = time.perf_counter()
    compare_scores(a, b, n_permutations=50)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * a.nbytes  # standardised copies, residuals, a fold; a permutation at a time
    assert seconds < 20
