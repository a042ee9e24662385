"""How good a proxy is, worked by hand, and with planted truth and noise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from skillbasis.errors import UsageError
from skillbasis.proxy import proxy_quality


def test_figures_by_hand() -> None:
    # Ranks of the proxy a < b < c < d, of the full budget a < c < b < d with d second: differences 0, 2, 1, 1.
    proxy = {"a": [0.1], "b": [0.2], "c": [0.3], "d": [0.4]}
    full = {"a": [0.10, 0.20], "b": [0.45, 0.55], "c": [0.20, 0.30], "d": [0.40, 0.40]}
    found = proxy_quality(proxy, full, n_resamples=50)
    assert found["spearman"]["value"] == pytest.approx(1 - 6 * (0 + 4 + 1 + 1) / (4 * 15))  # 0.4
    assert found["ranking_by_proxy"] == ["d", "c", "b", "a"]
    assert found["ranking_by_full"] == ["b", "d", "c", "a"]
    assert found["chosen"] == {"name": "d", "proxy": 0.4, "full": pytest.approx(0.4)}
    assert found["best"]["name"] == "b"
    assert found["regret"]["value"] == pytest.approx(0.5 - 0.4)
    mean = (0.15 + 0.5 + 0.25 + 0.4) / 4
    assert found["regret_of_random"]["value"] == pytest.approx(0.5 - mean)
    assert found["gain_over_random"]["value"] == pytest.approx(0.4 - mean)


def test_the_interval_over_runs_is_the_bootstrap_by_hand() -> None:
    """Only b varies, between 0.5 and 0.9: its mean of two is 0.5, 0.7 or 0.9 with chances 1/4, 1/2, 1/4."""
    proxy = {"a": [0.3], "b": [0.2], "c": [0.1]}
    full = {"a": [0.6, 0.6], "b": [0.5, 0.9], "c": [0.0, 0.0]}
    found = proxy_quality(proxy, full, n_resamples=400)
    assert found["regret"]["value"] == pytest.approx(0.1)  # b at 0.7 against the chosen a at 0.6
    assert found["regret"]["over_runs"] == pytest.approx([0.0, 0.3])  # b at 0.5: a itself is the best
    assert found["spearman"]["over_runs"] == pytest.approx([0.5, 1.0])


def test_problems_are_resampled_together() -> None:
    """A problem's difficulty moves all directions alike, so it cannot widen what is said of their differences."""
    rng = np.random.default_rng(0)
    hard = rng.random(40)
    full = {name: np.stack([hard + shift]) for name, shift in (("a", 0.0), ("b", 0.1), ("c", 0.3))}
    found = proxy_quality({"a": [3.0], "b": [2.0], "c": [1.0]}, full, n_resamples=100)
    assert found["regret"]["over_runs"] == pytest.approx([0.3, 0.3])
    assert found["spearman"]["value"] == pytest.approx(-1)


def planted(rng: np.random.Generator, noise: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    truth = {str(i): i / 100 for i in range(20)}
    proxy = {name: value + rng.normal(0, noise, 3) for name, value in truth.items()}
    return proxy, {name: value + rng.normal(0, 0.005, 5) for name, value in truth.items()}


def test_a_good_proxy_is_told_from_a_useless_one() -> None:
    good = proxy_quality(*planted(np.random.default_rng(1), 0.01), n_resamples=300)
    assert good["spearman"]["value"] > 0.9 and good["spearman"]["over_directions"][0] > 0.8
    assert good["gain_over_random"]["over_runs"][0] > 0.05
    assert good["regret"]["value"] < 0.03 < good["regret_of_random"]["value"]
    values = [proxy_quality(*planted(np.random.default_rng(s), 10.0), n_resamples=200) for s in range(30)]
    covered = sum(v["spearman"]["over_directions"][0] <= 0 <= v["spearman"]["over_directions"][1] for v in values)
    assert covered >= 25  # 95 % but for the bootstrap's small sample
    assert abs(np.mean([v["gain_over_random"]["value"] for v in values])) < 0.03


def test_what_is_undefined_is_none_with_a_reason() -> None:
    single = proxy_quality({"a": [1], "b": [2], "c": [3]}, {"a": [1], "b": [2], "c": [4]}, n_resamples=20)
    assert single["regret"]["over_runs"] is None and "one seed" in single["regret"]["reason"]
    assert single["spearman"]["over_directions"] is not None
    flat = proxy_quality({"a": [1], "b": [1], "c": [1]}, {"a": [1], "b": [2], "c": [4]}, n_resamples=20)
    assert flat["spearman"]["value"] is None and "one side is constant" in flat["spearman"]["reason"]
    json.dumps(flat, allow_nan=False)


def test_directions_without_both_results_are_named() -> None:
    values = {name: [float(i)] for i, name in enumerate("abcd")}
    found = proxy_quality(values, {k: v for k, v in values.items() if k != "b"} | {"e": [1.0]}, n_resamples=5)
    assert (found["n_directions"], found["left_out"]) == (3, ["b", "e"])
    with pytest.raises(UsageError, match="2 directions have both .* needs at least 3"):
        proxy_quality({"a": [1], "b": [2]}, values)
    with pytest.raises(UsageError, match=r"the full results of b have shape \(2,\) or hold NaN"):
        proxy_quality(values, values | {"b": [1.0, float("nan")]})
    with pytest.raises(UsageError, match=r"the proxy results are on \[1, 2\] problems"):
        proxy_quality(values | {"b": [[1.0, 2.0]]}, values)
