"""Hand-worked oracles, edges, and coverage and size of the intervals and tests by simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from skillbasis import statistics as st
from skillbasis.errors import UsageError


def test_pass_at_k_by_hand() -> None:
    # n=4, c=2: k=1 gives 2/4; k=2 gives 1 - C(2,2)/C(4,2) = 1 - 1/6; k=3 must hit, since only 2 are wrong.
    assert st.pass_at_k(4, [2], 1) == pytest.approx([0.5])
    assert st.pass_at_k(4, [2], 2) == pytest.approx([5 / 6])
    assert st.pass_at_k(4, [2], 3) == pytest.approx([1.0])
    assert st.pass_at_k([4, 8], [0, 8], 4).tolist() == [0.0, 1.0]


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one() -> None:
    outcomes = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        subsets = list(combinations(outcomes, k))
        assert float(st.pass_at_k(7, 2, k)) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples() -> None:
    # C(10000, 256) overflows a float; the exact value comes from integers.
    exact = 1 - math.comb(9990, 256) / math.comb(10_000, 256)
    assert float(st.pass_at_k(10_000, 10, 256)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (4, 1.5, 1), (4, math.nan, 1)])
def test_pass_at_k_refuses_the_impossible(n: int, c: float, k: int) -> None:
    with pytest.raises(UsageError):
        st.pass_at_k(n, [c], k)


def test_pass_at_k_names_the_smallest_sample_count() -> None:
    with pytest.raises(ValueError, match="some problem has 2 samples; ask for 1 <= k <= 2"):
        st.pass_at_k([8, 2], [1, 1], 4)


def test_mean_estimate_by_hand() -> None:
    # 0, 1, 2, 3: mean 1.5, squared deviations 2.25+.25+.25+2.25 = 5, sd = sqrt(5/3), se = sqrt(5/12) = .645497.
    # t(.975, 3) = 3.182446: half width 2.054260.
    e = st.mean_estimate([0, 1, 2, 3])
    assert (e.mean, e.n, e.reason) == (1.5, 4, None)
    assert e.se == pytest.approx(0.645497, abs=1e-6)
    assert (e.low, e.high) == pytest.approx((-0.554260, 3.554260), abs=1e-5)


def test_clustered_error_by_hand() -> None:
    # Mean 1.5; residuals -1.5, -.5 | .5, 1.5; cluster sums -2, 2; variance (4+4) * 2/(2-1) / 4^2 = 1.
    e = st.mean_estimate([0, 1, 2, 3], clusters=["a", "a", "b", "b"])
    assert e.se == pytest.approx(1.0)
    assert e.high - e.mean == pytest.approx(12.706205, abs=1e-5)  # t(.975, 1)
    singletons = st.mean_estimate([0, 1, 2, 3], clusters=[7, 8, 9, 10])
    assert singletons == st.mean_estimate([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("values", "clusters", "reason"),
    [
        ([], None, "0 problems"),
        ([0.3], None, "1 problem: "),
        ([0.1, 0.9], ["a", "a"], "1 cluster: "),
        ([0.1 + 0.2, 0.3], None, "no spread"),
    ],
)
def test_undefined_errors_are_nan_with_a_reason(values: list[float], clusters: list[str] | None, reason: str) -> None:
    for e in (st.mean_estimate(values, clusters), st.paired_difference(values, [0.0] * len(values), clusters)):
        assert all(math.isnan(number) for number in (e.se, e.low, e.high))
        assert e.reason is not None and e.reason.startswith(reason)


def test_all_or_none_correct_has_a_wilson_interval() -> None:
    e = st.mean_estimate([1.0] * 10)
    assert (e.mean, e.low, e.high) == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)  # 10 / (10 + 1.96^2)
    assert e.se > 0 and e.reason is not None and "Wilson" in e.reason
    # Ten problems from two sources say no more than two trials: 2 / (2 + 1.96^2).
    assert st.mean_estimate([1.0] * 10, clusters=[0] * 5 + [1] * 5).low == pytest.approx(0.342380, abs=1e-6)


def test_bad_input_is_refused() -> None:
    for call in (
        lambda: st.mean_estimate([1.0, math.nan]),
        lambda: st.mean_estimate([[1.0, 2.0]]),
        lambda: st.mean_estimate([1.0, 2.0], clusters=["a"]),
        lambda: st.paired_difference([1.0, 2.0], [1.0]),
        lambda: st.spearman([1.0, 2.0], [1.0]),
        lambda: st.wilson(3, 2),
        lambda: st.holm([0.5, 1.5]),
        lambda: st.mcnemar_exact(-1, 2),
        lambda: st.aggregate_over_seeds([0.5, 0.5]),
        lambda: st.aggregate_over_seeds(np.empty((3, 0))),
        lambda: st.aggregate_over_seeds([[0.5, 2.0]], n_samples=4),
        lambda: st.paired_over_seeds(np.ones((2, 3)), np.ones((3, 2))),
        lambda: st.paired_bootstrap([1, 2], [0, 0], n_resamples=0),
    ):
        with pytest.raises(UsageError):
            call()


def test_wilson_by_hand() -> None:
    # 5 of 10, z = 1.959964, z^2 = 3.841459: half = z/(1+.3841459) * sqrt(.025 + 3.841459/400) = .263406 about 1/2.
    e = st.wilson(5, 10)
    assert (e.mean, e.low, e.high) == pytest.approx((0.5, 0.236594, 0.763406), abs=1e-5)
    none = st.wilson(0, 10)
    assert (none.low, none.high) == pytest.approx((0.0, 0.277533), abs=1e-6)  # 3.841459 / 13.841459
    assert math.isnan(st.wilson(0, 0).mean) and st.wilson(0, 0).reason == "no trials"


def test_paired_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, se 1/sqrt 3, t = 3.4641, 2 degrees of freedom: p = 1 - t/sqrt(2+t^2) = .074180.
    d = st.paired_difference([2, 4, 6], [1, 2, 3])
    assert d.mean == pytest.approx(2.0)
    assert d.p_value == pytest.approx(0.074180, abs=1e-6)
    assert (d.low, d.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
    # t(.975, 2) + t(.8, 2) = 4.302653 + 1.060660, times 1/sqrt 3.
    assert d.minimum_detectable == pytest.approx(3.096505, abs=1e-5)
    assert d.minimum_detectable == pytest.approx(st.minimum_detectable_effect(1.0, 3))
    assert st.paired_difference([1, 2, 3], [2, 4, 6]).mean == pytest.approx(-2.0)


def test_clusters_widen_a_paired_difference() -> None:
    a, b = [1, 1, 0, 0, 1, 1, 0, 0], [0.0] * 8
    assert st.paired_difference(a, b, clusters=[1, 1, 2, 2, 3, 3, 4, 4]).se > st.paired_difference(a, b).se


def test_minimum_detectable_effect_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    effect = st.minimum_detectable_effect(1.0, 20)
    x = rng.normal(effect, 1.0, size=(4000, 20))
    t = x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(20))
    assert abs((np.abs(t) > 2.093024).mean() - 0.8) < 0.03  # t(.975, 19); simulation error .006, approximation .01
    assert math.isnan(st.minimum_detectable_effect(1.0, 1))


def test_bootstrap_by_enumeration() -> None:
    # Two problems, differences 0 and 1: resampled means 0, 1/2, 1 with chances 1/4, 1/2, 1/4; sd = sqrt(1/8).
    d = st.paired_bootstrap([0, 1], [0, 0], n_resamples=20_000, seed=1)
    assert (d.mean, d.low, d.high) == (0.5, 0.0, 1.0)
    assert d.se == pytest.approx(math.sqrt(1 / 8), rel=0.02)
    assert d.p_value == pytest.approx(0.5, abs=0.02)  # twice the quarter at 0
    assert d == st.paired_bootstrap([0, 1], [0, 0], n_resamples=20_000, seed=1)
    assert d != st.paired_bootstrap([0, 1], [0, 0], n_resamples=20_000, seed=2)
    far = st.paired_bootstrap([1, 2, 3, 4], [0, 0, 0, 0], n_resamples=99)
    assert far.p_value == pytest.approx(2 / 100)  # never 0
    assert math.isnan(st.paired_bootstrap([1], [0]).low)


def test_bootstrap_in_blocks_uses_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st, "_BOOTSTRAP_BLOCK", 7)
    d = st.paired_bootstrap([1, 2, 3], [0, 0, 0], n_resamples=99)
    assert d.p_value == pytest.approx(2 / 100)


def test_mcnemar_by_hand() -> None:
    assert st.mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)  # 2 * P(X <= 1), X ~ B(6, 1/2)
    assert st.mcnemar_exact(5, 1) == st.mcnemar_exact(1, 5)
    assert st.mcnemar_exact(3, 3) == 1.0
    assert st.mcnemar_exact(0, 0) == 1.0


def test_holm_by_hand() -> None:
    # Sorted .01, .03, .04 times 3, 2, 1 = .03, .06, .04; the running maximum gives .03, .06, .06.
    assert st.holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    with_nan = st.holm([0.04, math.nan, 0.01, 0.03])
    assert math.isnan(with_nan[1]) and with_nan[[0, 2, 3]].tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert st.holm([0.9, 0.9]).tolist() == [1.0, 1.0]
    assert st.holm([]).size == 0


def test_spearman_by_hand() -> None:
    # Ranks 1..5 against 2 1 4 3 5: sum d^2 = 4, rho = 1 - 6*4/(5*24) = .8.
    e = st.spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 500])
    assert e.mean == pytest.approx(0.8)
    # z = atanh .8 = 1.098612, se = sqrt((1+.32)/2) = .812404, half = 1.592283.
    assert (e.low, e.high) == pytest.approx((math.tanh(-0.493671), math.tanh(2.690895)), abs=1e-5)
    # Ties take mean ranks: 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert st.spearman([1, 2, 2, 3], [1, 2, 3, 4]).mean == pytest.approx(4.5 / math.sqrt(22.5))


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], "constant"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], "perfectly"),
        ([1, 2, 3], [1, 3, 2], "at least 4"),
        ([1], [1], "at least 2"),
    ],
)
def test_spearman_without_an_interval(x: list[float], y: list[float], reason: str) -> None:
    e = st.spearman(x, y)
    assert math.isnan(e.low) and math.isnan(e.se) and e.reason is not None and reason in e.reason


def test_seeds_and_problems_are_kept_apart() -> None:
    # Seed means .25, .75 (sd = .353553, se = .25); problem means .5, .5, .25, .75 (squares .125, se = .102062).
    values = np.array([[0.5, 0.0, 0.0, 0.5], [0.5, 1.0, 0.5, 1.0]])
    e = st.aggregate_over_seeds(values, n_samples=2)
    assert (e.mean, e.interval, e.n, e.seed_means, e.reason) == (0.5, "seeds", 2, (0.25, 0.75), None)
    assert (e.sd_seeds, e.se, e.problems.se) == pytest.approx((0.353553, 0.25, 0.102062), abs=1e-6)
    assert e.high == pytest.approx(0.5 + 12.706205 * 0.25, abs=1e-4)
    # p(1-p)/(2-1) is 1/4 in four cells: sqrt(4 * 1/4) / 8.
    assert e.se_decoding == pytest.approx(1 / 8)
    assert math.isnan(st.aggregate_over_seeds(values).se_decoding)


def test_one_seed_falls_back_to_problems_and_says_so() -> None:
    one = np.array([[0.0, 1.0, 1.0, 0.0]])
    e = st.aggregate_over_seeds(one)
    assert (e.interval, e.n) == ("problems", 4)
    assert (e.low, e.high) == (e.problems.low, e.problems.high)
    assert math.isnan(e.sd_seeds) and e.reason is not None and "variance between seeds is unknown" in e.reason
    d = st.paired_over_seeds(one + 10, one + np.array([[0.0, 0.1, 0.2, 0.3]]))
    assert d.interval == "problems" and d.problems.low > 0 and not d.holds
    assert d.reason is not None and "variance between seeds is unknown" in d.reason


def test_paired_over_seeds_uses_the_seed_differences() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((5, 200))
    better = base + 0.1 + rng.normal(0, 0.02, base.shape)
    d = st.paired_over_seeds(better, base)
    by_seed = st.paired_difference(better.mean(axis=1), base.mean(axis=1))
    assert (d.mean, d.low, d.high, d.p_value) == pytest.approx(
        (by_seed.mean, by_seed.low, by_seed.high, by_seed.p_value)
    )
    assert d.seed_differences == pytest.approx((better - base).mean(axis=1))
    assert d.problems.n == 200 and d.problems.mean == pytest.approx(d.mean)
    assert d.holds and not st.paired_over_seeds(base, base + rng.normal(0, 0.3, base.shape)).holds
    assert st.paired_over_seeds(base, better).holds


def test_many_problems_do_not_hide_a_large_variance_between_seeds() -> None:
    # Each seed moves all problems together by +.3, -.1, +.1: over problems it looks certain, over seeds it is not.
    base = np.random.default_rng(0).random((3, 500))
    d = st.paired_over_seeds(base + np.array([[0.3], [-0.1], [0.1]]) + 1e-6 * base, base)
    assert d.problems.low > 0 and d.low < 0 and not d.holds


def test_json_has_none_for_undefined_numbers() -> None:
    text = json.dumps(st.as_json(st.paired_over_seeds([[0.5, 1.0]], [[0.5, 0.0]])), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["sd_seeds"] is None and loaded["seed_differences"] == [0.5] and loaded["problems"]["n"] == 2
    mixed = {"a": (np.float64("nan"), 1), "b": [float("inf")], "c": np.array([1.0, np.nan]), "d": "text", "e": None}
    expected = {"a": [None, 1], "b": [None], "c": [1.0, None], "d": "text", "e": None}
    assert st.nan_to_none(mixed) == expected


def _covers(interval: st.Estimate | st.Difference, truth: float) -> bool:
    return interval.low <= truth <= interval.high


SIMULATIONS: dict[str, Callable[[np.random.Generator], bool]] = {
    "mean": lambda rng: _covers(st.mean_estimate(rng.normal(0.4, 1, 12)), 0.4),
    "wilson": lambda rng: _covers(st.wilson(int(rng.binomial(60, 0.3)), 60), 0.3),
    "clusters": lambda rng: _covers(
        st.mean_estimate(np.repeat(rng.normal(0, 1, 30), 4) + rng.normal(0, 1, 120), clusters=np.repeat(range(30), 4)),
        0.0,
    ),
    "paired": lambda rng: _covers(st.paired_difference(rng.normal(1, 1, 15), rng.normal(0.5, 1, 15)), 0.5),
    "bootstrap": lambda rng: _covers(
        st.paired_bootstrap(rng.normal(1, 1, 80), rng.normal(0.5, 1, 80), n_resamples=400, seed=int(rng.integers(1e9))),
        0.5,
    ),
    "seeds": lambda rng: _covers(
        st.aggregate_over_seeds(0.5 + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (5, 20))), 0.5
    ),
    "paired seeds": lambda rng: _covers(
        st.paired_over_seeds(rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (5, 20)), np.zeros((5, 20))), 0.0
    ),
    "spearman": lambda rng: _covers(st.spearman(rng.normal(size=30), rng.normal(size=30)), 0.0),
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_intervals_cover_the_truth(name: str) -> None:
    # 1500 repetitions: the simulation error of a true 95 % is .56 %, so 93-97 % is 3.6 of it.
    rng = np.random.default_rng(2024)
    coverage = np.mean([SIMULATIONS[name](rng) for _ in range(1500)])
    assert 0.93 <= coverage <= 0.97


def test_null_tests_reject_at_most_six_percent() -> None:
    rng = np.random.default_rng(7)
    rejected = {"t": 0, "bootstrap": 0, "mcnemar": 0, "holm": 0, "seeds": 0}
    runs = 1500  # simulation error of a true 5 % is .56 %
    for _ in range(runs):
        a, b = rng.normal(size=(2, 60))
        rejected["t"] += st.paired_difference(a, b).p_value < 0.05
        rejected["bootstrap"] += st.paired_bootstrap(a, b, n_resamples=300).p_value < 0.05
        rejected["mcnemar"] += st.mcnemar_exact(*np.bincount(rng.integers(0, 2, 25), minlength=2).tolist()) < 0.05
        rejected["holm"] += bool(st.holm(rng.random(4)).min() < 0.05)
        rejected["seeds"] += st.paired_over_seeds(a.reshape(5, 12), b.reshape(5, 12)).p_value < 0.05
    assert {name: count / runs for name, count in rejected.items() if count / runs > 0.06} == {}
    assert rejected["t"] / runs > 0.04 and rejected["seeds"] / runs > 0.04  # and they are not asleep
