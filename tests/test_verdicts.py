"""Verdicts in null worlds and planted ones, for pilots and for steering; the luck of the choice left out."""

from __future__ import annotations

import numpy as np
import pytest

from fake_scorer import FakeScorer
from skillbasis import statistics
from skillbasis.halving import Race, Schedule, race
from skillbasis.verdicts import cell_variance, judge

NAMES = [f"{k}{sign}" for k in range(6) for sign in "+-"]
N_RUNS = 80


def verdicts(scorer: FakeScorer, schedule: Schedule, *, draws_vary: bool = True) -> dict[str, str]:
    outcome = race(NAMES, schedule, scorer, draws_vary=draws_vary)
    table = judge(outcome, NAMES, scorer.cell("base"), {}, draws_vary=draws_vary)
    return {entry["name"]: entry["verdict"] for entry in table}


@pytest.mark.parametrize("strategy", ["halving", "full"])
def test_a_null_world_gives_hardly_a_verdict(strategy: str) -> None:
    schedule = Schedule(strategy=strategy)  # type: ignore[arg-type]
    found = [verdicts(FakeScorer({}, seed, pilot_sd=0.03), schedule) for seed in range(N_RUNS)]
    n_claims = sum("helps" in world.values() or "hurts" in world.values() for world in found)
    assert n_claims <= 0.05 * N_RUNS + 2 * (0.05 * 0.95 * N_RUNS) ** 0.5


def test_directions_that_are_as_random_vectors_get_no_verdict() -> None:
    """Steering: every vector has an effect of its own, so one that moves the model is nothing special."""
    n_claims = naive = 0
    for seed in range(N_RUNS):
        rng = np.random.default_rng(10_000 + seed)
        effects = {name: float(rng.normal(0, 0.05)) for name in NAMES}
        scorer = FakeScorer(effects, seed, pilot_sd=0.0, vector_sd=0.05)
        outcome = race(NAMES, Schedule(), scorer, draws_vary=False)
        table = judge(outcome, NAMES, scorer.cell("base"), {}, draws_vary=False)
        n_claims += any(entry["verdict"] != "undecided" for entry in table)
        naive += any(entry["difference_to_base"]["p_holm"] < 0.05 for entry in table)
    assert n_claims <= 0.05 * N_RUNS + 2 * (0.05 * 0.95 * N_RUNS) ** 0.5
    assert naive > 0.5 * N_RUNS  # they do move it


def test_planted_effects_are_found_on_both_sides() -> None:
    effects = {"2-": 0.15, "4+": -0.2}
    found = [verdicts(FakeScorer(effects, seed), Schedule(n_repeats=3)) for seed in range(10)]
    assert sum(world["2-"] == "helps" for world in found) >= 9
    assert sum(world["4+"] == "hurts" for world in found) >= 9  # though it was stopped with one cell


def test_steering_must_beat_the_untouched_model_too() -> None:
    """Random vectors harm by 20 points and the direction does nothing: no help, however far it is from them."""
    for effect, verdict in ((0.0, "undecided"), (0.2, "helps"), (-0.2, "undecided")):
        scorer = FakeScorer({"random": -0.2, "2-": effect} | {n: -0.2 for n in NAMES if n != "2-"}, 1, pilot_sd=0.005)
        found = verdicts(scorer, Schedule(n_random=6), draws_vary=False)
        assert found["2-"] == verdict
    # Worse than the untouched model, but not than any vector of its norm: nothing is said against the others.
    assert set(found.values()) == {"undecided"}


def handmade(**judged: tuple[int, ...]) -> Race:
    rng = np.random.default_rng(0)
    draw = lambda share: rng.binomial(4, share, 100) / 4  # noqa: E731
    cells = {"0+": {0: draw(0.9), 3: draw(0.5), 4: draw(0.5)}, "0-": {0: draw(0.3)}, "1+": {}}
    known = {"0+": (3, 4), "0-": (0,), "1+": ()} | judged
    return Race([draw(0.4) for _ in range(3)], cells, known, [], ["0+", "0-", "1+"], ["0+"], 9)


def test_figures_by_hand() -> None:
    outcome = handmade()
    base = np.random.default_rng(1).binomial(4, 0.4, 100) / 4
    rows = judge(outcome, ["0+", "0-", "1+"], base, {"1+": "1 of 1 cells failed: diverged"}, draws_vary=True)
    table = {entry["name"]: entry for entry in rows}
    fresh = (outcome.cells["0+"][3] + outcome.cells["0+"][4]) / 2
    control = np.mean(outcome.controls, axis=0)
    assert table["0+"]["pass@1"]["mean"] == pytest.approx(fresh.mean())  # not the 0.9 that chose it
    assert (table["0+"]["n_pilots"], table["0+"]["n_judged"]) == (3, 2)
    assert table["0+"]["pilots"] == [pytest.approx(outcome.cells["0+"][n].mean()) for n in (0, 3, 4)]
    variance, n_free = cell_variance(outcome, draws_vary=True)
    assert n_free == 2 + 2  # three cells of 0+, three controls
    plain = statistics.paired_difference(fresh, control)
    difference = table["0+"]["difference_to_random"]
    assert difference["mean"] == pytest.approx(plain.mean)
    assert difference["se"] == pytest.approx((plain.se**2 + variance * (1 / 2 + 1 / 3)) ** 0.5)
    to_base = statistics.paired_difference(fresh, base)
    assert table["0+"]["difference_to_base"]["se"] == pytest.approx((to_base.se**2 + variance / 2) ** 0.5)
    assert (table["1+"]["status"], table["1+"]["reason"]) == ("failed", "1 of 1 cells failed: diverged")
    assert table["1+"]["verdict"] is table["1+"]["pass@1"] is table["1+"]["difference_to_random"] is None
    p_values = [table[name]["difference_to_random"]["p_value"] for name in ("0+", "0-")]
    holm = [table[name]["difference_to_random"]["p_holm"] for name in ("0+", "0-")]
    assert holm == pytest.approx(statistics.holm(p_values))  # the failed one is not counted


def test_steering_takes_the_spread_of_random_vectors_by_hand() -> None:
    outcome = handmade()
    variance, n_free = cell_variance(outcome, draws_vary=False)
    assert n_free == 2 and variance == pytest.approx(np.var([c.mean() for c in outcome.controls], ddof=1))
    (entry,) = judge(outcome, ["0+"], outcome.controls[0], {}, draws_vary=False)
    fresh = (outcome.cells["0+"][3] + outcome.cells["0+"][4]) / 2
    plain = statistics.paired_difference(fresh, np.mean(outcome.controls, axis=0))
    # Two cells of one vector are one vector: 1 + 1/3, not 1/2 + 1/3.
    assert entry["difference_to_random"]["se"] == pytest.approx((plain.se**2 + variance * (1 + 1 / 3)) ** 0.5)
    to_base = statistics.paired_difference(fresh, outcome.controls[0])
    assert entry["difference_to_base"]["se"] == pytest.approx(to_base.se)


def test_without_a_cell_to_judge_by_nothing_is_decided() -> None:
    outcome = handmade(**{"0+": ()})
    (entry,) = judge(outcome, ["0+"], None, {"0+": "2 of 3 cells failed: out of memory"}, draws_vary=True)
    assert (entry["status"], entry["verdict"], entry["n_judged"]) == ("done", "undecided", 0)
    assert "out of memory" in entry["reason"]
    assert entry["pass@1"]["mean"] > 0.5 and entry["difference_to_random"]["p_value"] is None
    assert entry["difference_to_base"] is None
