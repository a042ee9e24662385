"""Directions, likelihood and the plainest baselines on planted rows, wrong requests, and selections on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planted_pool import DIRECTIONS, IDS, LABELS, NLL, VALUES, N, numbers, scores
from planted_pool import candidates as everything_known
from planted_pool import corpus as planted_corpus
from skillbasis.corpus import Corpus, load_corpus, write_selection
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.evaluate.likelihood import Likelihood
from skillbasis.select import STRATEGIES, Candidates, SelectionSettings, parse_direction, select
from skillbasis.select.directions import quotas
from skillbasis.select.strategy import describe


def candidates(**settings: Any) -> Candidates:
    """Scores and likelihoods only."""
    likelihood = Likelihood(IDS, NLL, NLL, np.ones(N, dtype=int))
    return Candidates(IDS, LABELS, scores(), likelihood, SelectionSettings(**settings))


def test_quotas_share_equally_and_the_first_get_the_rest() -> None:
    assert quotas(10, 4) == [3, 3, 2, 2]
    assert quotas(2, 3) == [1, 1, 0]
    assert all(sum(quotas(budget, parts)) == budget for budget in range(12) for parts in range(1, 5))


# directions


def test_the_very_top_of_a_direction() -> None:
    rows = select(candidates(directions=((0, "+"),), top_share=0.0), "directions", 5, seed=0)
    assert numbers(rows) == [0, 1, 2, 3, 4]
    assert [(row.direction, row.sign, row.score) for row in rows[:2]] == [(0, "+", 29.5 / 100), (0, "+", 28.5 / 100)]
    rows = select(candidates(directions=((0, "-"),), top_share=0.0), "directions", 5, seed=0)
    assert numbers(rows) == [59, 58, 57, 56, 55]
    assert [(row.sign, row.score) for row in rows[:1]] == [("-", 29.5 / 100)]


def test_rows_are_drawn_from_the_top_share_only_and_cover_it() -> None:
    top = candidates(directions=((0, "+"),), top_share=0.2)  # of 60: r0 to r11
    drawn = Counter(i for seed in range(200) for i in numbers(select(top, "directions", 6, seed)))
    assert set(drawn) == set(range(12))
    # Each row comes with chance 1/2: 100 of 200, with a standard deviation of 7.
    assert all(65 < count < 135 for count in drawn.values())
    assert numbers(select(top, "directions", 6, 0)) == sorted(numbers(select(top, "directions", 6, 0))), "best first"


def test_a_share_smaller_than_the_budget_is_widened_to_it() -> None:
    rows = select(candidates(directions=((0, "+"),), top_share=0.05), "directions", 10, seed=0)
    assert numbers(rows) == list(range(10))


def test_the_budget_is_shared_between_directions_and_no_row_comes_twice() -> None:
    rows = select(candidates(directions=((0, "+"), (1, "+"), (0, "-")), top_share=0.0), "directions", 8, seed=0)
    assert [(row.direction, row.sign) for row in rows] == [(0, "+")] * 3 + [(1, "+")] * 3 + [(0, "-")] * 2
    # 1+ and 0- rank the same rows highest: the second of them takes what the first has left.
    assert numbers(rows) == [0, 1, 2, 59, 58, 57, 56, 55]
    everything = select(candidates(directions=((0, "+"), (0, "+"), (1, "+"))), "directions", N, seed=0)
    assert sorted(numbers(everything)) == list(range(N))


def test_rank_by_cosine_or_projection() -> None:
    values = np.array([[4.0], [3.0], [2.0], [1.0]])
    table = scores(list("abcd"), values, norm=np.array([8.0, 4.0, 2.5, 1.0]))  # cosines 0.5, 0.75, 0.8, 1

    def chosen(rank_by: Any, sign: Any) -> str:
        settings = SelectionSettings(directions=((0, sign),), rank_by=rank_by, top_share=0.0)
        return "".join(
            row.id for row in select(Candidates(list("abcd"), [[]] * 4, table, None, settings), "directions", 4, 0)
        )

    assert (chosen("projection", "+"), chosen("projection", "-")) == ("abcd", "dcba")
    assert (chosen("cosine", "+"), chosen("cosine", "-")) == ("dcba", "abcd")


# directions+likelihood


def test_directions_and_likelihood_take_the_likeliest_of_the_top_share() -> None:
    given = candidates(directions=((0, "+"),), likelihood_share=0.75)  # r0 to r44, of which r30 to r44 are likeliest
    rows = select(given, "directions+likelihood", 17, seed=0)
    assert numbers(rows) == [*range(30, 45), 0, 1]
    assert rows[0].score == pytest.approx(VALUES[30, 0] / 100) and rows[0].reason.startswith(
        "lowest mean NLL of the top 45"
    )
    small = candidates(directions=((0, "+"),), likelihood_share=0.05)
    assert sorted(numbers(select(small, "directions+likelihood", 10, seed=0))) == list(range(10)), (
        "widened to the budget"
    )


def test_directions_and_likelihood_take_each_row_once() -> None:
    given = candidates(directions=((0, "+"), (0, "+")), likelihood_share=0.75)
    rows = select(given, "directions+likelihood", 20, seed=0)
    assert numbers(rows) == [*range(30, 45), 45, 46, 47, 48, 49], "the second share is the top 45 of what is left"


# baselines


def test_low_nll_takes_the_likeliest() -> None:
    rows = select(candidates(), "low-nll", 4, seed=0)
    assert numbers(rows) == [30, 31, 32, 33]
    assert [row.score for row in rows] == [0.0, 0.1, 0.2, 0.3]
    ties = Likelihood(IDS, np.zeros(N), np.zeros(N), np.ones(N, dtype=int))
    assert numbers(select(Candidates(IDS, LABELS, None, ties), "low-nll", 3, seed=9)) == [0, 1, 2]


def test_random_is_uniform_and_in_random_order() -> None:
    drawn, first = Counter[int](), Counter[int]()
    for seed in range(600):
        rows = numbers(select(candidates(), "random", 20, seed))
        drawn.update(rows)
        first[rows[0]] += 1
    # Each row comes with chance 1/3: 200 of 600, with a standard deviation of 11.5.
    assert len(drawn) == N and all(150 < count < 250 for count in drawn.values())
    assert len(first) == N, "the order is random too"


def test_human_balanced_gives_every_label_its_quota() -> None:
    rows = select(candidates(), "human-balanced", 9, seed=0)
    assert Counter(row.reason for row in rows) == {
        f"quota of label {name}": 3 for name in ("algebra", "geometry", "logic")
    }
    by_first_label = {"algebra": range(40), "geometry": range(40, 55), "logic": range(55, 58)}
    for row in rows:
        assert int(row.id[1:]) in by_first_label[row.reason.removeprefix("quota of label ")]


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (10, {"algebra": 4, "geometry": 3, "logic": 3}),
        (12, {"algebra": 5, "geometry": 4, "logic": 3}),  # logic lacks 1, which goes to the first of the others
        (33, {"algebra": 15, "geometry": 15, "logic": 3}),
        (40, {"algebra": 22, "geometry": 15, "logic": 3}),  # geometry is used up as well
        (58, {"algebra": 40, "geometry": 15, "logic": 3}),
        (2, {"algebra": 1, "geometry": 1}),
    ],
)
def test_human_balanced_gives_to_others_what_a_small_label_cannot_fill(budget: int, counts: dict[str, int]) -> None:
    rows = select(candidates(), "human-balanced", budget, seed=0)
    assert Counter(row.reason.removeprefix("quota of label ") for row in rows) == counts


def test_human_balanced_needs_enough_labelled_rows() -> None:
    with pytest.raises(UsageError, match="only 58 rows have a label, fewer than the budget of 59"):
        select(candidates(), "human-balanced", 59, seed=0)
    with pytest.raises(UsageError, match="needs labels.*--label-column"):
        select(Candidates(IDS, [[]] * N), "human-balanced", 5, seed=0)


# Requests that cannot be meant


def test_what_a_strategy_needs_and_lacks() -> None:
    bare = Candidates(IDS, LABELS, settings=SelectionSettings(directions=((0, "+"),)))
    with pytest.raises(UsageError, match="needs scores.*--scores"):
        select(bare, "directions", 5, seed=0)
    with pytest.raises(UsageError, match="needs likelihoods.*--likelihood"):
        select(bare, "low-nll", 5, seed=0)
    with pytest.raises(UsageError, match="needs likelihoods"):
        select(Candidates(IDS, LABELS, scores(), None, bare.settings), "directions+likelihood", 5, seed=0)
    for strategy in ("directions", "directions+likelihood"):
        with pytest.raises(UsageError, match=r"needs directions.*--direction 3\+"):
            select(candidates(), strategy, 5, seed=0)
        with pytest.raises(UsageError, match="direction 3 does not exist; the scores have 0 to 2"):
            select(candidates(directions=((3, "+"),)), strategy, 5, seed=0)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="rank_by 'cos'.*cosine, projection, centred-rank"):
        SelectionSettings(rank_by="cos")  # type: ignore[arg-type]
    for name in ("top_share", "likelihood_share", "quality_share"):
        with pytest.raises(UsageError, match=f"{name} must be from 0 to 1, not 1.5"):
            SelectionSettings(**{name: 1.5})
    for settings, message in (
        ({"band": "mid"}, "unknown band 'mid'; allowed are low, middle, high"),
        ({"aggregate": "mean"}, "unknown aggregate 'mean'; allowed are round-robin, max"),
        ({"weights": (1.0,)}, "1 weights were given for 0 directions"),
        ({"directions": ((0, "+"),), "weights": (0.0,)}, "weights of directions must be numbers above 0"),
        ({"directions": ((0, "+"),), "weights": (np.inf,)}, "weights of directions must be numbers above 0"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0; top_share 0 takes the very top"),
        ({"temperature": np.nan}, "temperature must be above 0, not nan"),
        ({"max_weight": 0.0}, "max_weight must be above 0, not 0.0"),
        ({"cells": 0}, "cells and rounds must be at least 1, not 0 and 3"),
        ({"rounds": 0}, "cells and rounds must be at least 1, not 1 and 0"),
    ):
        with pytest.raises(UsageError, match=message):
            SelectionSettings(**settings)


def test_signed_directions_are_read() -> None:
    assert [parse_direction(text) for text in ("3+", "0-", "d12-", " 7 ")] == [(3, "+"), (0, "-"), (12, "-"), (7, "+")]
    for text in ("", "+3", "3*", "x", "-1", "3+-"):
        with pytest.raises(UsageError, match="no signed direction.*3\\+ or 0-"):
            parse_direction(text)


def test_the_record_names_the_settings_a_strategy_used() -> None:
    settings = SelectionSettings(directions=((3, "+"), (0, "-")))
    assert describe(settings, "random") == {"strategy": "random"}
    expected = {"strategy": "directions", "directions": ["3+", "0-"], "weights": (), "rank_by": "cosine"}
    assert describe(settings, "directions") == expected | {"top_share": 0.15, "temperature": None}
    assert describe(settings, "directions+likelihood")["likelihood_share"] == 0.25


# With a corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    rows = [
        {"id": row_id, "problem": f"What is {i}?", "solution": f"It is {i}.", "labels": LABELS[i], "source": i % 7}
        for i, row_id in enumerate(IDS)
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_corpus(tmp_path / "pool.jsonl")


def test_scores_and_likelihoods_are_brought_into_corpus_order(corpus: Corpus) -> None:
    shuffled = np.random.default_rng(5).permutation(N)
    ids = [IDS[i] for i in shuffled]
    table = scores(ids, VALUES[shuffled])
    likelihood = Likelihood(ids, NLL[shuffled], NLL[shuffled], np.ones(N, dtype=int))
    settings = SelectionSettings(directions=((0, "+"),), top_share=0.0)
    given = Candidates.of(corpus, table, likelihood, settings)
    assert numbers(select(given, "directions", 3, seed=0)) == [0, 1, 2]
    assert numbers(select(given, "low-nll", 3, seed=0)) == [30, 31, 32]
    assert len(select(given, "human-balanced", 9, seed=0)) == 9
    with pytest.raises(ArtifactError, match="1 of 60 rows have no score, the first is 'r59'"):
        Candidates.of(corpus, scores(IDS[:59], VALUES[:59]))
    with pytest.raises(ArtifactError, match="1 of 60 rows have no likelihood, the first is 'r0'"):
        Candidates.of(corpus, None, Likelihood(IDS[1:], NLL[1:], NLL[1:], np.ones(59, dtype=int)))


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "weakness-rounds"])
def test_a_written_selection_is_a_corpus_again(tmp_path: Path, strategy: str) -> None:
    corpus, known = planted_corpus(), everything_known(**DIRECTIONS)
    chosen = select(known, strategy, 10, seed=1)
    path = tmp_path / "chosen.jsonl"
    how = describe(known.settings, strategy) | {"seed": 1}
    write_selection(path, corpus, chosen, how)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in chosen]
    assert [line["_selection"]["rank"] for line in lines] == list(range(1, 11))
    assert all(line["_selection"]["strategy"] == strategy for line in lines)
    if strategy != "rft":  # an answer of the model's own is another row
        assert all(line["source"] == int(line["id"][1:]) % 7 for line in lines), "all columns of the row are kept"
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["n_rows"] == sum(record["reasons"].values()) == 10 and record["seed"] == 1
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    again = load_corpus(path)
    assert again.ids == [row.id for row in chosen]
    source = [corpus.rows[corpus.positions[row.id]]["response"] for row in chosen]
    assert list(again.rows["response"]) == ([row.response for row in chosen] if strategy == "rft" else source)
    first = path.read_bytes()
    write_selection(path, corpus, select(known, strategy, 10, 1), how)
    assert path.read_bytes() == first, "same seed, same file"
