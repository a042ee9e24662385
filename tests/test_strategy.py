"""The table of strategies: what holds for all of them, what each needs, budgets in tokens, and arms."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from planted_pool import DIRECTIONS, IDS, LABELS, NLL, OWN_TOKENS, N, candidates, corpus, own_answers, without
from skillbasis.errors import UsageError
from skillbasis.select import STRATEGIES, Candidates, SelectionSettings, select
from skillbasis.select.shortage import TooFewRows
from skillbasis.select.strategy import Arm, Need, check_budget, describe, needs_of

CHOOSING = [name for name in STRATEGIES if name != "weakness-rounds"]
DRAWN = {"directions", "weakness", "random", "random-length-matched", "perplexity", "rft"}
DRAWN |= {"human-balanced", "human-weakness"}
LABELLED = ("human-balanced", "human-weakness", "s1-like")
READS_TEXT = ("text-diversity", "facility-location", "deita")


@pytest.fixture(scope="module")
def known() -> Candidates:
    return candidates(**DIRECTIONS)


# What holds for all


@pytest.mark.parametrize("strategy", CHOOSING)
@pytest.mark.parametrize("budget", [1, 7, 20, 58])
def test_the_budget_is_filled_exactly_ranked_without_duplicates_and_with_reasons(
    strategy: str, budget: int, known: Candidates
) -> None:
    if strategy == "perplexity" and budget > N // 3:
        with pytest.raises(TooFewRows, match="the middle third by perplexity holds 20 rows") as few:
            select(known, strategy, budget, 0)
        assert few.value.available == N // 3
        return
    rows = select(known, strategy, budget, seed=0)
    assert len({row.id for row in rows}) == len(rows) == budget
    assert [row.rank for row in rows] == list(range(1, budget + 1))
    assert {row.id for row in rows} <= set(IDS)
    assert all(row.reason for row in rows)


@pytest.mark.parametrize("strategy", CHOOSING)
def test_the_same_seed_gives_the_same_rows(strategy: str, known: Candidates) -> None:
    first = select(known, strategy, 15, seed=3)
    assert select(known, strategy, 15, seed=3) == first
    assert (select(known, strategy, 15, seed=4) != first) == (strategy in DRAWN)


@pytest.mark.parametrize("strategy", [name for name in CHOOSING if STRATEGIES[name].nested])
def test_a_smaller_budget_of_a_nested_strategy_gives_the_first_rows_of_a_larger_one(
    strategy: str, known: Candidates
) -> None:
    larger = select(known, strategy, 20, seed=5)
    for budget in (1, 6, 19):
        assert select(known, strategy, budget, seed=5) == larger[:budget]


@pytest.mark.parametrize("strategy", CHOOSING)
def test_budgets_outside_the_pool(strategy: str, known: Candidates) -> None:
    with pytest.raises(UsageError, match="budget of 61 rows is above the pool of 60; choose a smaller one"):
        select(known, strategy, 61, seed=0)
    with pytest.raises(UsageError, match="at least 1 row, not 0"):
        select(known, strategy, 0, seed=0)


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'direction' \(did you mean 'directions'\?\); allowed are directions, "):
        select(candidates(), "direction", 5, seed=0)
    with pytest.raises(UsageError, match=r"unknown strategy 'ift'"):
        needs_of(["random", "ift"])


def test_the_curriculum_in_rounds_is_no_single_selection(known: Candidates) -> None:
    with pytest.raises(UsageError, match="trains between its rounds: run it as an arm of a study; weakness takes one"):
        select(known, "weakness-rounds", 5, seed=0)


# What each needs

NAMES_OF_WHAT_TO_GIVE = {
    "scores": "--scores",
    "directions": r"--direction 3\+",
    "likelihood": "--likelihood",
    "likelihood alone": "--alone",
    "reread along directions": "fine-tuned on a selection by directions",
    "reread by likelihood": "fine-tuned on a selection by low-nll",
    "tokens": "--model",
    "own answers": "--model",
    "validation": "--validation TASK",
    "quality": "--quality-column",
    "query": "--query",
}


@pytest.mark.parametrize(
    ("strategy", "need"), [(name, need) for name in CHOOSING for need in STRATEGIES[name].needs], ids=str
)
def test_what_a_strategy_lacks_is_named_with_what_to_give(strategy: str, need: Need, known: Candidates) -> None:
    lacking = without(known, need)
    if strategy == "coverage+quality":  # a given quality stands in place of the likelihood
        lacking = replace(lacking, given_quality=None)
    with pytest.raises(UsageError, match=NAMES_OF_WHAT_TO_GIVE[need]):
        select(lacking, strategy, 5, seed=0)


@pytest.mark.parametrize("strategy", CHOOSING)
def test_a_strategy_needs_nothing_beside_what_the_table_says(strategy: str, known: Candidates) -> None:
    only = known
    for need in set(get_args(Need)) - set(STRATEGIES[strategy].needs):
        if not (need == "likelihood" and "likelihood alone" in STRATEGIES[strategy].needs):
            only = without(only, need)
    assert select(only, strategy, 5, seed=1) == select(replace(known, given_quality=only.given_quality), strategy, 5, 1)


def test_bare_candidates_give_what_needs_nothing_and_refuse_the_rest() -> None:
    bare = Candidates(IDS, LABELS)
    for strategy in STRATEGIES:
        if STRATEGIES[strategy].needs or strategy in READS_TEXT:
            with pytest.raises(UsageError):
                select(bare, strategy, 5, seed=0)
        else:
            assert len(select(bare, strategy, 5, seed=0)) == 5
    with pytest.raises(UsageError, match="reads the text of the rows; give the corpus"):
        select(bare, "text-diversity", 5, seed=0)


@pytest.mark.parametrize("strategy", LABELLED)
def test_labels_are_asked_for_by_name(strategy: str, known: Candidates) -> None:
    with pytest.raises(UsageError, match=f"{strategy} needs labels, and the corpus has none; .*--label-column"):
        select(replace(known, labels=[[]] * N), strategy, 5, seed=0)


def test_a_match_is_asked_for(known: Candidates) -> None:
    with pytest.raises(UsageError, match="matches the lengths of another selection; name it with --match"):
        select(replace(known, reference=None), "random-length-matched", 5, seed=0)


def test_all_settings_that_a_strategy_heeds_exist_and_are_recorded() -> None:
    settings = SelectionSettings(**DIRECTIONS)
    for name, strategy in STRATEGIES.items():
        how = describe(settings, name)
        assert list(how) == ["strategy", *strategy.settings] and how["strategy"] == name
        assert how.get("directions", ["0+", "1+"]) == ["0+", "1+"]


# Budgets in tokens


def spent(known: Candidates, rows: list) -> int:  # type: ignore[type-arg]
    return int(known.tokens_of(rows).sum())


@pytest.mark.parametrize("strategy", CHOOSING)
@pytest.mark.parametrize("budget", [90, 160])
def test_a_budget_of_tokens_holds_and_one_row_more_would_not(strategy: str, budget: int, known: Candidates) -> None:
    rows = select(known, strategy, budget, seed=2, unit="tokens")
    assert 0 < spent(known, rows) <= budget
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1)) and len({row.id for row in rows}) == len(rows)
    assert rows == select(known, strategy, len(rows), seed=2), "what a budget of as many rows gives"
    assert spent(known, select(known, strategy, len(rows) + 1, seed=2)) > budget


def test_own_answers_count_with_their_own_tokens(known: Candidates) -> None:
    assert len(select(known, "rft", 10 * OWN_TOKENS + 2, seed=0, unit="tokens")) == 10
    # As long as the rows are much longer than the answers, more answers fit than rows.
    long = replace(known, n_tokens=np.full(N, 100))
    assert len(select(long, "rft", 50 * OWN_TOKENS, seed=0, unit="tokens")) == 50
    assert len(select(long, "rft", OWN_TOKENS, seed=0, unit="tokens")) == 1
    uncounted = replace(known, own_answers=replace(own_answers(), n_tokens=None))
    with pytest.raises(UsageError, match="needs those of the model's own answers; measure them anew with --model"):
        select(uncounted, "rft", 30, seed=0, unit="tokens")


@pytest.mark.parametrize("strategy", ["random", "length", "directions", "human-balanced"])
def test_rows_of_one_length_and_budgets_between(strategy: str, known: Candidates) -> None:
    alike = replace(known, n_tokens=np.full(N, 10))
    for budget, n in ((10, 1), (25, 2), (29, 2), (30, 3), (580, 58)):
        assert len(select(alike, strategy, budget, seed=0, unit="tokens")) == n


def test_a_budget_of_all_tokens_takes_all_rows(known: Candidates) -> None:
    total = int(known.tokens.sum())
    assert len(select(known, "low-nll", total, seed=0, unit="tokens")) == N
    assert len(select(known, "low-nll", total - 1, seed=0, unit="tokens")) == N - 1
    with pytest.raises(UsageError, match=f"budget of {total + 1} tokens is above the pool of {total}"):
        select(known, "low-nll", total + 1, seed=0, unit="tokens")


def test_token_budgets_that_a_strategy_cannot_meet(known: Candidates) -> None:
    with pytest.raises(UsageError, match="length takes a row longer than the budget of 4 tokens first; raise it"):
        select(known, "length", 4, seed=0, unit="tokens")
    with pytest.raises(UsageError, match="directions takes a row longer than the budget of 4 tokens first; raise it"):
        select(known, "directions", 4, seed=0, unit="tokens")
    in_all = N * OWN_TOKENS
    with pytest.raises(UsageError, match=f"rft gives 60 rows of {in_all} tokens in all, below the budget of 200 token"):
        select(known, "rft", 200, seed=0, unit="tokens")
    third = int(known.tokens[np.argsort(NLL)[20:40]].sum())
    with pytest.raises(UsageError, match=f"perplexity gives 20 rows of {third} tokens in all, below the budget"):
        select(known, "perplexity", third + 1, seed=0, unit="tokens")
    assert len(select(known, "perplexity", third, seed=0, unit="tokens")) == 20
    nothing = replace(own_answers(), correct=[[]] * N, n_tokens=[[]] * N, n_correct=np.zeros(N, dtype=int))
    with pytest.raises(TooFewRows, match="the model solved 0 of the 60 rows"):
        select(replace(known, own_answers=nothing), "rft", 30, seed=0, unit="tokens")


def test_requests_in_units_that_cannot_be_meant(known: Candidates) -> None:
    with pytest.raises(UsageError, match="unknown unit 'token' of the budget; allowed are rows, tokens"):
        select(known, "random", 5, seed=0, unit="token")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1 token, not 0"):
        select(known, "random", 0, seed=0, unit="tokens")
    with pytest.raises(UsageError, match="needs the tokens of every row; give --model"):
        select(replace(known, n_tokens=None), "random", 5, seed=0, unit="tokens")
    check_budget(10**9, "tokens")  # where the pool is not counted yet
    with pytest.raises(UsageError, match="budget of 6 rows is above the pool of 5"):
        check_budget(6, "rows", 5)


# Arms


def test_an_arm_departs_in_its_own_settings_only(known: Candidates) -> None:
    arm = Arm("top", "directions", (("top_share", 0.0),))
    assert arm.settings(known.settings) == replace(known.settings, top_share=0.0)
    top = known.with_settings(replace(known.settings, top_share=0.0))
    assert arm.choose(known, 10, 3) == select(top, "directions", 10, 3) != select(known, "directions", 10, 3)
    assert Arm.of("random") == Arm("random", "random") and Arm.of(arm) is arm
    assert Arm.of("random").choose(known, 90, 3, "tokens") == select(known, "random", 90, 3, unit="tokens")


def test_directions_of_an_arms_own_leave_the_shares_of_others_behind(known: Candidates) -> None:
    weighted = known.with_settings(replace(known.settings, weights=(3.0, 1.0)))
    arm = Arm("one", "directions", (("directions", ((2, "-"),)),))
    assert arm.settings(weighted.settings).weights == ()
    assert {(row.direction, row.sign) for row in arm.choose(weighted, 8, 0)} == {(2, "-")}
    both = Arm("both", "directions", (("directions", ((2, "-"), (0, "+"))), ("weights", (1.0, 3.0))))
    assert [row.direction for row in both.choose(weighted, 8, 0)] == [2] * 2 + [0] * 6


def test_arms_that_need_directions_from_elsewhere() -> None:
    assert Arm.of("directions").needs_directions and Arm.of("directions+likelihood").needs_directions
    assert not Arm("own", "directions", (("directions", ((0, "+"),)),)).needs_directions
    assert not any(Arm.of(name).needs_directions for name in ("random", "weakness", "coverage"))


def test_arms_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match=r"unknown strategy 'randon' \(did you mean 'random'\?\)"):
        Arm.of("randon")
    with pytest.raises(
        UsageError, match=r"arm x changes 'top_shar', which is no setting \(did you mean 'top_share'\?\)"
    ):
        Arm("x", "directions", (("top_shar", 0.1),))
    for name in ("a/b", "", " a"):
        with pytest.raises(UsageError, match="is no name for an arm; it becomes a folder, so use no slash"):
            Arm(name, "random")


def test_what_is_known_has_fingerprints_of_its_own(known: Candidates) -> None:
    prints = known.fingerprints
    assert {"scores", "likelihood", "own_answers", "validation", "query", "reread", "reference"} <= set(prints)
    assert all(value is not None for value in prints.values())
    assert Candidates(IDS, LABELS).fingerprints["scores"] is None
    other = replace(known, reread={"low-nll": known.reread["low-nll"]})
    assert {key for key, value in other.fingerprints.items() if value != prints[key]} == {"reread"}
    assert known.with_settings(SelectionSettings()).fingerprints == prints
    assert Candidates.of(corpus()).fingerprints["n_tokens"] is None
