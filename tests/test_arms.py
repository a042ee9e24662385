"""Arms of a study: planted effects are found, figures are those worked by hand, and verdicts say what was tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from planted_arms import answers, planted_runs, row_of
from skillbasis import statistics
from skillbasis.arms import arm_figures, best_human, controls_of, detectable, paired_differences, verdict_of

EFFECTS = {"base": -0.1, "random": 0.0, "human-balanced": 0.0, "s1-like": 0.06, "low-nll": 0.1, "directions": 0.2}
ARMS = [arm for arm in EFFECTS if arm != "base"]
DONE = {"status": "done", "reason": None}


def verdict(arm: str, paired: list[dict[str, Any]], human: str | None = "s1-like", **status: Any) -> str:
    return verdict_of(arm, DONE | status, paired, human)


def test_planted_effects_are_found_against_every_control() -> None:
    runs = planted_runs(EFFECTS, seed_sd=0.005)
    assert controls_of(runs) == {"random": "random", "best-human": "s1-like", "low-nll": "low-nll"}
    paired = paired_differences(runs, ARMS)
    for control, other in (("random", "random"), ("best-human", "s1-like"), ("low-nll", "low-nll")):
        row = row_of(paired, "directions", control)
        assert row["b"] == other and row["verdict"] == "better" and row["holds"]
        assert row["mean"] == pytest.approx(EFFECTS["directions"] - EFFECTS[other], abs=0.04)
    assert row_of(paired, "human-balanced", "random")["verdict"] == "not separated"
    assert row_of(paired, "base", "random")["verdict"] == "worse"
    assert {row["metric"] for row in paired} == {"pass@1", "pass@4"}
    assert not [row for row in paired if row["a"] == row["b"]]


def test_figures_of_a_difference_by_hand() -> None:
    """Two problems, one answer each, three seeds: arm a solves 2, 1 and 2 of them, b solves 1, 0 and 0."""
    a = [answers(np.array(solved)) for solved in ([[1], [1]], [[1], [0]], [[1], [1]])]
    b = [answers(np.array(solved)) for solved in ([[1], [0]], [[0], [0]], [[0], [0]])]
    runs = {"a": dict(enumerate(a)), "random": dict(enumerate(b))}
    row = row_of(paired_differences(runs, ["random", "a"]), "a", "random")
    seeds = np.array([0.5, 0.5, 1.0])
    test = stats.ttest_1samp(seeds, 0)
    interval = test.confidence_interval()
    assert row["mean"] == pytest.approx(2 / 3) and row["seed_differences"] == pytest.approx(seeds)
    assert (row["low"], row["high"], row["p_value"]) == pytest.approx((*interval, test.pvalue))
    assert row["problems"]["mean"] == pytest.approx(2 / 3)  # problem means 2/3 and 2/3
    relative = statistics.relative_change([1, 0.5, 1], [0.5, 0, 0])
    assert row["relative"]["mean"] == pytest.approx(relative.mean) == pytest.approx(4.0)
    assert row["n_seeds"] == 3 and row["interval"] == "seeds"
    figures = arm_figures(a)
    assert figures["pass@1"]["seeds"] == [1.0, 0.5, 1.0] and figures["pass@1"]["mean"] == pytest.approx(5 / 6)
    assert figures["mean_tokens"] == 10 and figures["truncated_fraction"] == 0


def test_holm_is_over_the_arms_of_one_control_and_metric() -> None:
    paired = paired_differences(planted_runs(EFFECTS), ARMS)
    for control in ("random", "best-human", "low-nll"):
        for metric in ("pass@1", "pass@4"):
            family = [row for row in paired if (row["control"], row["metric"]) == (control, metric)]
            assert len(family) == 5  # six arms with the base, less the control
            expected = statistics.holm([row["p_value"] for row in family])
            np.testing.assert_allclose([row["p_holm"] for row in family], expected)


def test_a_difference_that_only_one_test_sees_is_not_separated() -> None:
    """One seed in three is lucky on all problems; then one problem of forty gains at every seed."""
    rng = np.random.default_rng(0)
    base = rng.random((3, 40, 8)) < 0.3

    def compared(changed: np.ndarray) -> dict[str, Any]:
        runs = {"a": {s: answers(changed[s]) for s in range(3)}, "random": {s: answers(base[s]) for s in range(3)}}
        return row_of(paired_differences(runs, ["random", "a"]), "a", "random")

    lucky = base.copy()
    lucky[0] = True
    row = compared(lucky)
    assert row["problems"]["low"] > 0 > row["low"] and row["verdict"] == "not separated"
    one = base.copy()
    one[:, 0], base[:, 0], one[1, 0, 0] = True, False, False
    row = compared(one)
    assert row["low"] > 0 > row["problems"]["low"] and row["verdict"] == "not separated" and row["p_holm"] < 0.05
    assert row["minimum_detectable"] < row["problems"]["minimum_detectable"] == detectable(row)
    assert "the interval over problems does not exclude zero on that side" in verdict("a", [row], None)


def test_the_best_human_arm_is_the_one_of_the_highest_mean_among_the_complete() -> None:
    runs = planted_runs({"human-balanced": 0.0, "human-weakness": 0.1, "s1-like": 0.2, "random": 0.3})
    assert best_human(runs) == "s1-like"
    assert best_human({**runs, "s1-like": {0: runs["s1-like"][0]}}) == "human-weakness"
    assert best_human({"random": runs["random"], "s1-like": {}}) is None
    assert "best-human" not in controls_of({"random": runs["random"], "s1-like": {}})


def test_arms_are_paired_on_the_seeds_that_both_have() -> None:
    runs = planted_runs({"random": 0.0, "a": 0.2}, seed_sd=0.0)
    del runs["random"][1], runs["a"][3]
    row = row_of(paired_differences(runs, ["random", "a"]), "a", "random")
    expected = [runs["a"][s].pass_at_k(1).mean() - runs["random"][s].pass_at_k(1).mean() for s in (0, 2, 4)]
    assert row["n_seeds"] == 3 and row["seed_differences"] == pytest.approx(expected)
    assert "over 3 seeds" in verdict("a", [row], None)


def test_problems_that_share_a_source_widen_the_interval_over_problems() -> None:
    """Twenty sources of ten problems that rise or fall together."""
    rng = np.random.default_rng(1)
    gains = np.repeat(rng.normal(0.1, 0.2, 20), 10)
    sources: list[str | None] = [f"s{i // 10}" for i in range(200)]

    def drawn(shift: np.ndarray, clusters: list[str | None] | None) -> dict[int, Any]:
        random = np.random.default_rng(2)
        chance = np.clip(0.4 + shift, 0, 1)[:, None]
        return {seed: answers(random.random((200, 8)) < chance, clusters) for seed in range(3)}

    widths = []
    for clusters in (None, sources):
        runs = {"a": drawn(gains, clusters), "random": drawn(np.zeros(200), clusters)}
        problems = row_of(paired_differences(runs, ["random", "a"]), "a", "random")["problems"]
        estimate = arm_figures(list(runs["a"].values()))["pass@1"]["problems"]
        widths.append((problems["high"] - problems["low"], estimate["high"] - estimate["low"]))
    assert widths[1][0] > 2 * widths[0][0] and widths[1][1] > 1.5 * widths[0][1]


def test_a_verdict_says_all_of_it() -> None:
    paired = paired_differences(planted_runs(EFFECTS, seed_sd=0.005), ARMS)
    text, random, human = (
        verdict("directions", paired),
        *(row_of(paired, "directions", control) for control in ("random", "best-human")),
    )
    first, second = text.split(" It ")
    assert first.startswith(f"directions is better than random selection: {100 * random['mean']:+.1f} points of pass@1")
    assert f"over 5 seeds {100 * random['low']:+.1f} to {100 * random['high']:+.1f}" in first
    problems = random["problems"]
    assert f"over 200 problems {100 * problems['low']:+.1f} to {100 * problems['high']:+.1f})" in first
    assert f"{100 * random['relative']['mean']:+.1f} % relative" in first
    least = max(random["minimum_detectable"], problems["minimum_detectable"])
    assert f"a true difference of {100 * least:.1f} points would be seen in 80 % of studies" in first
    assert second.startswith(f"is better than the best human-skill arm, s1-like: {100 * human['mean']:+.1f} points")
    assert "is worse than random selection" in verdict("base", paired)
    assert "is not separated from random selection" in verdict("human-balanced", paired)
    assert verdict("s1-like", paired).endswith("It is the best human-skill arm itself.")


def test_verdicts_where_little_is_known() -> None:
    runs = planted_runs(EFFECTS, n_seeds=1)
    paired = paired_differences(runs, ARMS)
    row = row_of(paired, "directions", "random")
    assert (row["interval"], row["verdict"], row["holds"]) == ("problems", None, False)
    assert (row["low"], row["high"]) == (row["problems"]["low"], row["problems"]["high"])
    text = verdict("directions", paired)
    assert text.startswith("directions cannot be judged from one seed against random selection: ")
    assert "better" not in text
    assert verdict("directions", [], None) == (
        "directions cannot be compared with random selection: no seed of both is finished."
    )
    assert verdict("x", paired, None, status="failed", reason="training diverged") == "x failed: training diverged."
    text = verdict("directions", paired, None, status="partial", reason="out of memory")
    assert text.endswith("Some of its cells failed: out of memory.")
    assert paired_differences({"a": {}, "random": {}}, ["a", "random"]) == []


def test_equal_seeds_give_no_interval_and_no_claim() -> None:
    """Differences without any spread between seeds: the standard error is unknown, not 0."""
    solved = np.array([[True], [False], [True]])
    runs = {"a": {s: answers(solved) for s in range(3)}, "random": {s: answers(~solved) for s in range(3)}}
    row = row_of(paired_differences(runs, ["random", "a"]), "a", "random")
    assert row["low"] is None and row["verdict"] is None and row["p_holm"] is None
    assert "cannot be judged against random selection: +33.3 points of pass@1, but no spread" in verdict(
        "a", [row], None
    )
    nothing = {s: answers(np.zeros((3, 1))) for s in range(3)}
    lively = {s: answers(np.array([[s > 0], [True], [s > 1]])) for s in range(3)}
    row = row_of(paired_differences({"a": lively, "random": nothing}, ["random", "a"]), "a", "random")
    assert row["relative"]["mean"] is None
    assert "no relative change, since the other solves nothing" in verdict("a", [row], None)
