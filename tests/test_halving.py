"""Successive halving against planted truth: it finds the best about as often as trying all, and flatters nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fake_scorer import FakeScorer, Repeatable
from skillbasis import statistics
from skillbasis.errors import UsageError
from skillbasis.halving import CONTROL, Race, Schedule, between_pilots, race, stop, with_pilot_variance

NAMES = [f"{k}{sign}" for k in range(6) for sign in "+-"]
PLANTED = dict.fromkeys(NAMES, 0.0) | {"2-": 0.07, "4+": 0.03, "1+": -0.08}


def flat(value: float, n_problems: int = 8) -> np.ndarray:
    """Answers around a mean whose spread is the same for all values, so differences between them have none."""
    return value + np.linspace(-0.1, 0.1, n_problems)


# The variance between pilots


def test_variance_between_pilots_is_pooled_by_hand() -> None:
    # Squares about the means: (0.01^2 + 0.01^2) + (0.02^2 + 0 + 0.02^2) = 0.001; degrees of freedom 1 + 2.
    variance, n_free = between_pilots([[0.30, 0.32], [0.40, 0.42, 0.44], [0.9]])
    assert (variance, n_free) == (pytest.approx(0.001 / 3), 3)
    of_problems = between_pilots([[flat(0.30), flat(0.32)], [flat(0.40), flat(0.42), flat(0.44)]])
    assert of_problems == (pytest.approx(0.001 / 3), 3)
    assert between_pilots([[0.3], []]) == (0.0, 0)


def test_the_interval_holds_both_variances_by_hand() -> None:
    over_problems = statistics.Difference(0.05, 0.03, 0.07, 0.01, 0.001, 201, 0.03)
    wide = with_pilot_variance(over_problems, (0.0004, 4), 1.0)
    total = 0.0001 + 0.0004
    n = total**2 / (0.0001**2 / 200 + 0.0004**2 / 4)  # Satterthwaite: 6.24
    assert wide.se == pytest.approx(math.sqrt(total))
    assert n == pytest.approx(6.242, abs=0.001)
    assert wide.high - wide.mean == pytest.approx(2.4245 * wide.se, rel=1e-3)  # t quantile at 6.24
    assert wide.p_value > over_problems.p_value
    assert with_pilot_variance(over_problems, (0.0, 0), 1.0) == over_problems


def test_pilots_that_differ_only_by_luck_are_undecided() -> None:
    """Simulates pilots whose true quality varies; claims at 5 % must stay rare, as they do not over problems alone."""
    rng = np.random.default_rng(1)
    false_claims, naive_claims, n_runs = 0, 0, 150
    for _ in range(n_runs):
        luck = rng.normal(0.4, 0.03, 4)  # one pilot and three controls: a spread of 3 points between equals
        a, *controls = [rng.binomial(4, share, 200) / 4 for share in luck]
        over_problems = statistics.paired_difference(a, np.mean(controls, axis=0))
        spread = between_pilots([list(luck[1:])])
        false_claims += with_pilot_variance(over_problems, spread, 1 + 1 / 3).p_value < 0.05
        naive_claims += over_problems.p_value < 0.05
    assert false_claims <= 0.08 * n_runs
    assert naive_claims > 0.2 * n_runs


# Who is stopped


def test_who_is_stopped_by_hand() -> None:
    """The standard error of every difference is 0.1 x sqrt(2 / 99) = 0.0142: 1.6 points are a one-sided p of .13."""
    normal = np.random.default_rng(1).normal(size=(100, 4))
    x, y, z, w = np.sqrt(100) * 0.1 * np.linalg.qr(normal - normal.mean(axis=0))[0].T  # uncorrelated, sd 0.1, mean 0
    cells = {"best": {0: 0.5 + x}, "near": {0: 0.49 + y}, "low": {0: 0.484 + z}, "lowest": {0: 0.3 + w}}
    stopped = stop(cells, (0.0, 0), Schedule())
    assert [(entry["name"], entry["why"]) for entry in stopped] == [
        ("low", "worse half"),
        ("lowest", "clearly worse than the best"),
    ]
    assert stopped[0]["p_worse"] == pytest.approx(0.13, abs=0.005)
    # Of the worse half, one who may still be the best goes on.
    cells["low"] = {0: 0.489 + z}
    assert [entry["name"] for entry in stop(cells, (0.0, 0), Schedule())] == ["lowest"]
    # Of the better half, one who is clearly worse is stopped.
    cells["near"], cells["low"] = {0: 0.40 + y}, {0: 0.39 + z}
    assert [entry["name"] for entry in stop(cells, (0.0, 0), Schedule())] == ["near", "low", "lowest"]
    # With luck of 8 points between pilots, 10 points are not clear; with two to choose, two are safe.
    assert [entry["name"] for entry in stop(cells, (0.0064, 50), Schedule())] == ["low", "lowest"]
    assert [entry["name"] for entry in stop(cells, (0.0, 0), Schedule(n_chosen=2, n_finalists=2))] == ["lowest"]


def test_directions_that_answer_alike_all_go_on() -> None:
    cells = {name: {0: flat(0.5)} for name in "abcd"}
    assert stop(cells, (0.0, 0), Schedule()) == []


# The schedule


def test_full_gives_everybody_everything() -> None:
    schedule = Schedule(strategy="full", n_seeds=3, n_finalists=2, n_repeats=2)
    scorer = FakeScorer(PLANTED, 0)
    outcome = race(NAMES, schedule, scorer)
    assert len(scorer.asked) == len(set(scorer.asked)) == outcome.n_cells == schedule.n_cells(12)
    assert outcome.n_cells == 12 * 3 + 2 * 2 + 5  # five controls, as many cells as a finalist has
    assert len(outcome.controls) == 5
    for name in NAMES:
        fresh = name in outcome.finalists
        assert sorted(outcome.cells[name]) == ([0, 1, 2, 3, 4] if fresh else [0, 1, 2])
        assert outcome.judged[name] == ((3, 4) if fresh else (0, 1, 2))


def test_halving_when_all_is_clear_takes_as_many_cells_as_are_planned() -> None:
    """Each rung shows half of the directions to be hopeless and the others to be alike."""
    names = list("abcdefgh")
    n_good = {0: 4, 1: 2, 2: 1}
    calls: list[list[tuple[str, int]]] = []
    noise = np.random.default_rng(0).normal(0, 0.1, (9, 5, 60))
    noise -= noise.mean(axis=2, keepdims=True)

    def answer(asked: list[tuple[str, int]]) -> dict[tuple[str, int], np.ndarray | None]:
        calls.append(list(asked))
        places = {name: i for i, name in enumerate([*names, CONTROL])}
        good = {key: places[key[0]] < n_good.get(key[1], 1) for key in asked}
        return {key: 0.2 + 0.5 * good[key] + noise[places[key[0]], key[1]] for key in asked}

    schedule = Schedule(n_seeds=3, n_finalists=1, n_repeats=2, n_random=3)
    outcome = race(names, schedule, answer, draws_vary=False)
    assert outcome.ranking[0] == "a" and outcome.finalists == ["a"]
    assert [rung["tried"] for rung in outcome.rungs] == [names, list("abcd"), list("ab"), ["a"]]
    assert outcome.n_cells == schedule.n_cells(8) == 8 + 4 + 2 + 2 + 5
    assert calls[0] == [(CONTROL, 0), (CONTROL, 1), (CONTROL, 2)] + [(name, 0) for name in names]
    assert outcome.judged["a"] == (3, 4)
    assert Schedule(strategy="full", n_seeds=3, n_finalists=1).n_cells(8) == schedule.n_cells(8, "full") == 24 + 2 + 5


def test_one_clear_winner_ends_the_race_at_once() -> None:
    scorer = FakeScorer({"0+": 0.5} | dict.fromkeys(NAMES[1:], -0.2), 0)
    outcome = race(NAMES, Schedule(n_finalists=1), scorer)
    assert [rung["rung"] for rung in outcome.rungs] == [0, "repeats"]
    assert outcome.n_cells == 12 + 2 + 3  # three controls: the winner has three cells
    assert outcome.finalists == ["0+"] and outcome.judged["0+"] == (3, 4)
    assert {entry["why"] for entry in outcome.rungs[0]["stopped"]} == {"clearly worse than the best"}


def test_a_cell_that_sent_a_direction_on_does_not_judge_it() -> None:
    outcome = race(NAMES, Schedule(n_finalists=2), FakeScorer(PLANTED, 3))
    for name in NAMES:
        rungs = [rung for rung in outcome.rungs if name in rung["tried"]]
        assert list(outcome.judged[name]) == rungs[-1]["numbers"]
        passed = {number for rung in rungs[:-1] for number in rung["numbers"]}
        assert passed.isdisjoint(outcome.judged[name])
    assert len(outcome.controls) == max(len(cells) for cells in outcome.cells.values())


def test_the_same_answers_give_the_same_race() -> None:
    """Finished cells answer at once when a killed probe is started again: it must then ask for the same cells."""
    first, second = (Repeatable(PLANTED, 5) for _ in range(2))
    a, b = (race(NAMES, Schedule(), scorer) for scorer in (first, second))
    assert first.asked == second.asked
    assert (a.rungs, a.ranking, a.judged) == (b.rungs, b.ranking, b.judged)


def test_failed_cells() -> None:
    gone = frozenset([("0+", 0), ("2-", 1), ("2-", 3), (CONTROL, 1)])
    outcome = race(NAMES, Schedule(n_finalists=1), FakeScorer({"2-": 0.3}, 0, failing=gone))
    assert outcome.ranking[0] == "2-" and outcome.ranking[-1] == "0+"
    assert outcome.cells["0+"] == {} and outcome.judged["0+"] == ()
    assert all("0+" not in rung["tried"] for rung in outcome.rungs[1:])
    assert outcome.judged["2-"] == (4,)  # of its fresh cells one failed
    everything = frozenset((name, number) for name in [CONTROL, *NAMES] for number in range(9))
    scorer = FakeScorer({}, 0, failing=everything)
    assert race(NAMES, Schedule(), scorer).finalists == []
    assert len(scorer.asked) == 3 + 12  # nothing further is tried in vain
    scorer = FakeScorer({}, 0, failing=frozenset((CONTROL, number) for number in range(9)))
    assert race(NAMES, Schedule(), scorer).controls == [] and len(scorer.asked) == 15


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="1 finalists cannot give 2 chosen"):
        Schedule(n_finalists=1, n_chosen=2)
    with pytest.raises(UsageError, match="at least one seed"):
        Schedule(n_repeats=0)
    with pytest.raises(UsageError, match="unknown strategy 'half'; allowed are halving, full"):
        Schedule(strategy="half")  # type: ignore[arg-type]


# Against planted truth

N_RUNS = 80


def worlds(schedule: Schedule, effects: dict[str, float]) -> list[tuple[FakeScorer, Race]]:
    scorers = [FakeScorer(effects, seed) for seed in range(N_RUNS)]
    return [(scorer, race(NAMES, schedule, scorer)) for scorer in scorers]


def test_the_best_is_found_about_as_often_as_by_trying_all_with_fewer_cells() -> None:
    found, cells = {}, {}
    for strategy in ("halving", "full"):
        schedule = Schedule(strategy=strategy, n_finalists=1)  # type: ignore[arg-type]
        runs = worlds(schedule, PLANTED)
        found[strategy] = np.mean([outcome.finalists[0] == "2-" for _, outcome in runs])
        cells[strategy] = np.mean([outcome.n_cells for _, outcome in runs])
    assert found["full"] > 0.85
    assert found["halving"] >= found["full"] - 0.08  # the standard error of a share of 80 is 0.04
    assert cells["halving"] < 0.72 * cells["full"]


def test_nobody_is_flattered() -> None:
    """In a null world the chosen direction's figure is true; the cells that chose it would say 3 points more."""
    fresh, naive, others = [], [], []
    for scorer, outcome in worlds(Schedule(n_finalists=2), {}):
        winner = outcome.finalists[0]
        cells = outcome.cells[winner]
        fresh.append(np.mean([cells[number] for number in outcome.judged[winner]]) - scorer.truth(winner))
        naive.append(np.mean([cell for number, cell in cells.items() if number < 3]) - scorer.truth(winner))
        others += [
            float(np.mean([outcome.cells[name][number] for number in outcome.judged[name]])) - scorer.truth(name)
            for name in NAMES
            if name not in outcome.finalists
        ]
    se = np.std(fresh) / N_RUNS**0.5
    assert abs(np.mean(fresh)) < 3 * se < 0.008
    assert np.mean(naive) > 5 * se
    assert np.mean(others) < 0  # rather too low than too high
