"""Filling a budget along signed directions: shares, temperatures, centred ranks, and cells."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planted_pool import DIRECTIONS, IDS, N, candidates, likelihood, numbers, scores
from skillbasis.errors import UsageError
from skillbasis.select import Candidates, SelectionSettings, select
from skillbasis.select.directions import quotas, weighted_quotas

# Shares


@pytest.mark.parametrize(
    ("budget", "weights", "capacity", "shares"),
    [
        (10, [1, 1, 2], None, [3, 2, 5]),  # 2.5, 2.5, 5: the rest goes to the first of equal remainders
        (7, [0.1, 0.3, 0.3], None, [1, 3, 3]),
        (3, [5, 0], None, [3, 0]),
        (1, [1, 2], None, [0, 1]),
        (0, [1, 2], None, [0, 0]),
        (10, [1, 1, 2], [1, 9, 9], [1, 3, 6]),  # what the first cannot take goes to the others, one to two
        (10, [1, 1, 2], [1, 2, 3], [1, 2, 3]),  # and no more than there is
        (4, [1, 0], [3, 9], [3, 0]),  # a part without weight takes nothing, whatever is left
        (6, [1000, 1, 1], [2, 9, 9], [2, 2, 2]),
    ],
)
def test_weighted_shares_by_hand(
    budget: int, weights: list[float], capacity: list[int] | None, shares: list[int]
) -> None:
    found = weighted_quotas(budget, np.array(weights), None if capacity is None else np.array(capacity))
    assert found.tolist() == shares and found.dtype == np.int64


PARTS = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), st.integers(0, 40)), min_size=1, max_size=12
).filter(lambda parts: any(weight > 0 for weight, _ in parts))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), PARTS)
def test_weighted_shares_add_up_and_stay_in_proportion(budget: int, parts: list[tuple[float, int]]) -> None:
    weights, capacity = (np.array(column) for column in zip(*parts, strict=True))
    free = weighted_quotas(budget, weights)
    assert free.sum() == budget and (free[weights == 0] == 0).all()
    assert (np.abs(free - budget * weights / weights.sum()) < 1 + 1e-6).all(), "largest remainders: within one row"
    held = weighted_quotas(budget, weights, capacity)
    assert held.sum() == min(budget, capacity[weights > 0].sum())
    assert (held <= capacity).all() and (held >= 0).all() and (held[weights == 0] == 0).all()
    if (free <= capacity).all():
        np.testing.assert_array_equal(held, free)


def test_equal_weights_share_as_equal_quotas_do() -> None:
    for budget in range(12):
        for parts in range(1, 5):
            assert weighted_quotas(budget, np.ones(parts)).tolist() == quotas(budget, parts)


@pytest.mark.parametrize("strategy", ["directions", "directions+likelihood"])
def test_weights_share_the_budget_between_directions(strategy: str) -> None:
    directions = ((0, "+"), (2, "-"), (1, "+"))
    rows = select(candidates(**DIRECTIONS | {"directions": directions, "weights": (0.5, 3, 1.5)}), strategy, 20, 0)
    assert Counter((row.direction, row.sign) for row in rows) == {(0, "+"): 2, (2, "-"): 12, (1, "+"): 6}
    equal = select(candidates(**DIRECTIONS | {"directions": directions}), strategy, 20, 0)
    assert Counter(row.direction for row in equal) == {0: 7, 2: 7, 1: 6}


# Temperature


def few(values: list[float], **changes: Any) -> Candidates:
    ids = list("abcdef")[: len(values)]
    table = scores(ids, np.array(values)[:, None])
    given = SelectionSettings(directions=((0, "+"),), rank_by="projection", **changes)
    return Candidates(ids, [()] * len(ids), table, settings=given)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_exponential_of_standard_scores(temperature: float) -> None:
    values = np.array([0.0, 1.0, 2.0, 4.0])
    known = few(values.tolist(), temperature=temperature)
    n = 4000
    drawn = Counter(select(known, "directions", 1, seed)[0].id for seed in range(n))
    chances = np.exp((values - values.mean()) / values.std() / temperature)
    chances /= chances.sum()
    for row_id, chance in zip("abcd", chances, strict=True):
        # Five standard deviations of a binomial: one false alarm in two million.
        assert abs(drawn[row_id] - n * chance) < 5 * np.sqrt(n * chance * (1 - chance)) + 1


def test_the_second_of_two_draws_follows_from_what_the_first_left() -> None:
    values = np.array([0.0, 1.0, 2.0])
    known, n = few(values.tolist(), temperature=1.0), 4000
    w = np.exp((values - 1) / values.std())
    w /= w.sum()
    pairs = Counter(frozenset(row.id for row in select(known, "directions", 2, seed)) for seed in range(n))
    for left_out, row_id in enumerate("abc"):
        one, other = (i for i in range(3) if i != left_out)
        chance = w[one] * w[other] * (1 / (1 - w[one]) + 1 / (1 - w[other]))  # in either order
        assert abs(pairs[frozenset("abc") - {row_id}] - n * chance) < 5 * np.sqrt(n * chance * (1 - chance))


def test_cold_is_the_very_top_and_hot_reaches_the_whole_pool() -> None:
    cold = select(candidates(directions=((0, "+"),), temperature=1e-4), "directions", 8, seed=0)
    assert numbers(cold) == list(range(8))
    assert {row.reason for row in cold} == {"drawn along 0+ at temperature 0.0001"}
    hot = candidates(directions=((0, "+"),), temperature=1e6)
    drawn = Counter(i for seed in range(400) for i in numbers(select(hot, "directions", 15, seed)))
    assert len(drawn) == N and all(55 < count < 155 for count in drawn.values())  # 100, standard deviation 8.7
    one = select(hot, "directions", 15, seed=0)
    assert numbers(one) == sorted(numbers(one)), "the best first"


def test_a_temperature_takes_no_row_twice_and_rows_of_one_score_as_they_come() -> None:
    rows = select(candidates(**DIRECTIONS | {"temperature": 1.0}), "directions", N, seed=0)
    assert sorted(numbers(rows)) == list(range(N))
    level = few([3.0, 3.0, 3.0, 3.0], temperature=0.5)
    drawn = Counter(select(level, "directions", 1, seed)[0].id for seed in range(1000))
    assert set(drawn) == set("abcd") and all(180 < count < 320 for count in drawn.values())


# Centred ranks


def test_centred_ranks_by_hand() -> None:
    ids = ["a", "b", "c"]
    table = scores(ids, np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]))
    known = Candidates(ids, [()] * 3, table, settings=SelectionSettings(rank_by="centred-rank"))
    # Places in thirds: along 0 they are 1, 2, 3, along 1 they are 1, 3, 2; their means 1, 2.5, 2.5.
    np.testing.assert_allclose(known.ranking(0, "+"), np.array([0.0, -0.5, 0.5]) / 3, atol=1e-12)
    np.testing.assert_allclose(known.ranking(1, "+"), np.array([0.0, 0.5, -0.5]) / 3, atol=1e-12)
    np.testing.assert_array_equal(known.ranking(0, "-"), -known.ranking(0, "+"))


def test_a_row_far_out_everywhere_does_not_lead_by_centred_rank() -> None:
    values = np.random.default_rng(0).normal(size=(40, 6))
    values[7] = 50.0  # far along every direction
    values[8, 3] = 5.0  # far along one
    ids = [f"r{i}" for i in range(40)]
    settings = SelectionSettings(directions=((3, "+"),), top_share=0.0)
    known = Candidates(ids, [()] * 40, scores(ids, values), settings=settings)
    assert [row.id for row in select(known, "directions", 2, 0)] == ["r7", "r8"]
    centred = known.with_settings(replace(settings, rank_by="centred-rank"))
    assert select(centred, "directions", 1, 0)[0].id != "r7"
    place = np.argsort(-centred.ranking(3, "+")).tolist()
    assert place.index(8) < place.index(7)
    ties = Candidates(
        ids, [()] * 40, scores(ids, np.zeros((40, 2))), settings=SelectionSettings(rank_by="centred-rank")
    )
    assert (ties.ranking(0, "+") == 0).all()


# Cells


def test_each_cell_gives_its_likeliest_rows_in_proportion_to_its_size() -> None:
    """Three far clusters of 30, 20 and 10 rows; the likelihood alone would fill the budget from the first."""
    cluster = np.repeat([0, 1, 2], [30, 20, 10])
    values = np.column_stack([np.eye(3)[cluster] * 100, np.zeros(N)]) + np.random.default_rng(0).normal(size=(N, 4))
    nll = cluster * 10.0 + np.random.default_rng(1).random(N)
    settings = SelectionSettings(directions=((3, "+"),), likelihood_share=1.0, cells=3)
    known = Candidates(IDS, [()] * N, scores(values=values), likelihood(nll), settings)
    for seed in range(3):
        rows = select(known, "directions+likelihood", 12, seed)
        chosen = np.array(numbers(rows))
        for number, quota in enumerate((6, 4, 2)):
            best = np.flatnonzero(cluster == number)[np.argsort(nll[cluster == number])[:quota]]
            assert set(chosen[cluster[chosen] == number]) == set(best)
        assert (np.diff(nll[chosen]) >= 0).all(), "the most likely first"
        assert {row.reason for row in rows} == {"lowest mean NLL of its cell in the top 60 rows of 3+"}
    plain = known.with_settings(replace(settings, cells=1))
    assert set(cluster[numbers(select(plain, "directions+likelihood", 12, 0))]) == {0}


def test_one_cell_is_the_plain_strategy_and_more_cells_than_rows_take_all_alike() -> None:
    known = candidates(**DIRECTIONS)
    assert select(candidates(**DIRECTIONS | {"cells": 1}), "directions+likelihood", 20, 0) == select(
        known, "directions+likelihood", 20, 0
    )
    many = candidates(directions=((0, "+"),), likelihood_share=0.2, cells=500)
    rows = select(many, "directions+likelihood", 12, 0)
    assert sorted(numbers(rows)) == list(range(12)), "the top share is the budget"
    fewer = select(candidates(directions=((0, "+"), (1, "+")), cells=4), "directions+likelihood", 59, 1)
    assert len(set(numbers(fewer))) == 59, "cells of what the first direction has left"


def test_cells_need_finite_scores() -> None:
    known = candidates(**DIRECTIONS | {"cells": 2})
    assert known.scores is not None
    values = known.scores.values.copy()
    values[4, 2] = np.nan
    broken = replace(known, scores=replace(known.scores, values=values))
    with pytest.raises(Exception, match="row 'r4' has a score that is not finite; score the corpus again"):
        select(broken, "directions+likelihood", 5, 0)


def test_directions_that_do_not_exist() -> None:
    for strategy in ("directions", "directions+likelihood"):
        with pytest.raises(UsageError, match="direction 3 does not exist; the scores have 0 to 2"):
            select(candidates(directions=((3, "-"),)), strategy, 5, 0)
