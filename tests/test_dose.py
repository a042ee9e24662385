"""The judging of a sweep: ranks, usable strengths, winner and claims, against oracles worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from skillbasis.errors import UsageError
from skillbasis.steer.sweep.dose import (
    check_metric,
    choose_winner,
    compared_metrics,
    difference,
    figures,
    judge_test,
    rank_p_value,
    usable_ranges,
    why_unusable,
)
from skillbasis.steer.sweep.measure import Measurement


def measured(*n_correct: int, rollouts: int = 4, broken: float = 0.0, **more: Any) -> Measurement:
    return Measurement(rollouts, n_correct, broken_fraction=broken, **more)


BASE = measured(*[1, 2, 0, 1, 2, 1, 0, 1] * 4)
BETTER = measured(*[3, 3, 2, 4, 3, 2, 1, 3] * 4)
NAN = Measurement(4, reason="the model gives NaN for problem 'a'")


@pytest.mark.parametrize(
    ("value", "controls", "p"),
    [
        (0.5, [0.1] * 19, 0.05),  # 1 / 20: the smallest that 19 allow
        (0.5, [0.1] * 18 + [0.5], 0.1),  # a tie counts against the winner
        (0.5, [0.6, 0.7, 0.1], 0.75),
        (0.5, [], 1.0),
        (0.5, [0.1] * 3, 0.25),
        (0.5, [float("-inf")], 0.5),  # a random vector that broke the model did not do as well
    ],
)
def test_rank_p_by_hand(value: float, controls: list[float], p: float) -> None:
    assert rank_p_value(value, controls) == pytest.approx(p)


def test_metrics() -> None:
    check_metric("pass@4", 4, has_pattern=False)
    check_metric("target", 4, has_pattern=True)
    with pytest.raises(UsageError, match=r"metric 'pass@8' is not measured with 4 rollouts.*pass@1, pass@2, pass@4"):
        check_metric("pass@8", 4, has_pattern=False)
    with pytest.raises(UsageError, match="target needs a pattern"):
        check_metric("target", 4, has_pattern=False)
    assert compared_metrics(BASE) == ["pass@1", "pass@4"]
    assert compared_metrics(measured(1, 0, rollouts=1, n_matching=(0, 1))) == ["pass@1", "target"]


def test_figures_and_differences_by_hand() -> None:
    ours, plain = measured(4, 2, rollouts=4), measured(2, 2, rollouts=4)
    found = figures(ours, plain)
    assert found["pass@1"]["mean"] == 0.75
    assert found["pass@4"]["mean"] == 1.0
    first, second = found["differences"]
    assert (first["metric"], first["mean"], first["relative"]) == ("pass@1", 0.25, pytest.approx(0.5))
    assert (second["metric"], second["mean"]) == ("pass@4", 0.0)
    assert found["difference"] == {k: v for k, v in first.items() if k not in ("metric", "relative")}
    assert "differences" not in figures(plain)
    nothing = measured(0, 0)
    assert difference(ours, nothing, "pass@1")["relative"] is None, "a share of nothing is undefined"
    assert figures(NAN, plain) == {"status": "failed", "reason": NAN.reason}


def test_what_is_not_usable() -> None:
    def why(of: Measurement) -> str | None:
        return why_unusable(of, BASE, "pass@1", 0.05)

    assert why(BETTER) is None and why(BASE) is None
    assert why(measured(*BETTER.n_correct, broken=0.05)) is None
    broken = why(measured(*BETTER.n_correct, broken=0.06))
    assert broken == "6.0 % of the answers are broken, 0.0 % unsteered"
    worse = why_unusable(BASE, BETTER, "pass@1", 0.05)
    assert worse is not None and worse.startswith("pass@1 is below unsteered (-40.6 points [")
    assert why(NAN) == "failed: the model gives NaN for problem 'a'"
    slightly = list(BASE.n_correct)
    slightly[0] -= 1
    assert why(measured(*slightly)) is None, "one answer less of 128 is noise"
    all_lost = why_unusable(measured(0, 0), measured(4, 4), "pass@1", 0.05)
    assert all_lost is not None and "-100.0 points (no interval" in all_lost


def point(alpha: float, unusable: str | None = None, **more: Any) -> dict[str, Any]:
    return {"vector": "d0+", "kind": "direction", "scope": "all", "alpha": alpha, "unusable": unusable} | more


def test_usable_ranges_by_hand() -> None:
    points = [point(0.4), point(0.1), point(0.8, "7.0 % are broken"), point(1.6), point(-0.1), point(-0.4, "failed: x")]
    (found,) = usable_ranges(points)
    assert (found["low"], found["high"]) == (-0.1, 0.4), "1.6 lies beyond a strength that breaks"
    assert found["sentence"] == ("d0+ (all) is usable from -0.1 to 0.4: at -0.4 failed: x; at 0.8 7.0 % are broken.")
    none, whole = usable_ranges([point(0.1, "it is worse"), point(0.2), point(0.2, scope="prompt")])
    assert (none["low"], none["high"]) == (0.0, 0.0)
    assert none["sentence"] == "d0+ (all) is usable at no strength tried: at 0.1 it is worse."
    assert whole["sentence"] == "d0+ (prompt) is usable from 0 to 0.2: the strongest tried."


def test_the_winner() -> None:
    def at(alpha: float, mean: float, **more: Any) -> dict[str, Any]:
        return point(alpha, **{"pass@1": {"mean": mean}} | more)

    base = {"pass@1": {"mean": 0.3}}
    best = at(0.2, 0.5)
    rest = [at(0.1, 0.4), at(0.4, 0.5), at(0.8, 0.9, unusable="broken"), at(0.1, 0.8, kind="random")]
    assert choose_winner([*rest, best], base, "pass@1") is best, "of equals the weaker one"
    assert choose_winner([at(0.1, 0.3)], base, "pass@1") is None, "as good as unsteered is no gain"
    assert choose_winner([at(0.8, 0.9, unusable="broken")], base, "pass@1") is None
    assert choose_winner([], base, "pass@1") is None
    matching = at(0.3, 0.1, target_rate={"mean": 0.9})
    assert choose_winner([matching], base | {"target_rate": {"mean": 0.2}}, "target") is matching


def test_claims() -> None:
    def judge(winner: Measurement, controls: list[Measurement]) -> dict[str, Any]:
        return judge_test(winner, BASE, controls, "pass@1", "d0+ was chosen. On test")

    holds = judge(BETTER, [BASE] * 18 + [NAN])
    assert (holds["p_value"], holds["claim"]) == (0.05, "holds")
    for words in (
        "d0+ was chosen. On test its pass@1 is 65.6 %, unsteered 25.0 %: +40.6 points [",
        "], +162.5 % of it; pass@4 is 100.0 %, unsteered 75.0 %: +25.0 points [",
        "0 of 19 random vectors of its norm reach it (rank p = 0.050), and the interval excludes zero.",
    ):
        assert words in holds["sentence"]
    tie = judge(BETTER, [BASE] * 18 + [BETTER])
    assert (tie["p_value"], tie["claim"]) == (0.1, "not separated")
    assert "no gain of this vector over random ones can be claimed" in tie["sentence"]
    few = judge(BETTER, [BASE] * 3)
    assert (few["p_value"], few["claim"]) == (0.25, "not possible")
    assert "no claim is possible at this number: it takes 19" in few["sentence"]
    assert judge(BETTER, [])["p_value"] == 1.0
    noise = measured(2, *BASE.n_correct[1:])  # above all controls, but within noise of the unsteered model
    assert judge(noise, [BASE] * 19)["claim"] == "not separated"
    broke = judge(NAN, [BASE] * 19)
    assert broke["claim"] == "not separated" and "failed: the model gives NaN" in broke["sentence"]


def test_a_test_is_judged_by_the_metric_that_chose() -> None:
    ours = measured(*BASE.n_correct, n_matching=tuple([4] * 31 + [3]))
    plain = measured(*BASE.n_correct, n_matching=tuple([0] * 32))
    found = judge_test(ours, plain, [plain] * 19, "target", "Chosen. On test")
    assert found["claim"] == "holds"
    assert "its share of answers that match is 99.2 %, unsteered 0.0 %" in found["sentence"]
    assert [entry["metric"] for entry in found["winner"]["differences"]] == ["target", "pass@1", "pass@4"]
