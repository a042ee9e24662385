from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skillbasis.corpus import SelectedRow
from skillbasis.errors import UsageError
from skillbasis.evaluate.likelihood import Likelihood
from skillbasis.select.baselines import length_matched, longest_rows, random_length_matched, random_rows
from skillbasis.select.candidates import Candidates, SelectionSettings
from skillbasis.select.evidence import OwnAnswers, ValidationAnswers
from skillbasis.select.labelled import human_balanced, human_weakness, s1_like
from skillbasis.select.likelihoods import instruction_difficulty, low_nll, perplexity_band
from skillbasis.select.own import own_correct_answers
from skillbasis.select.shortage import TooFewRows

N = 60
IDS = [f"r{i}" for i in range(N)]
LABELS = [["algebra"]] * 40 + [["geometry", "algebra"]] * 15 + [["logic"]] * 3 + [[]] * 2
TOKENS = np.arange(N) * 10 % 70 + 5  # lengths 5, 15, ... 65, each 8 or 9 times
NLL = np.arange(N) / 10


def likelihood(mean_nll: np.ndarray, alone: np.ndarray | None = None) -> Likelihood:
    ids = [f"r{i}" for i in range(len(mean_nll))]
    return Likelihood(ids, mean_nll, mean_nll, np.isfinite(mean_nll).astype(np.int64), alone)


def own(n_correct: list[int], n_answers: int = 4) -> OwnAnswers:
    """Answers of each row: 4, of which so many are right, the first two of them different; -1 means no answers."""
    asked = np.array(n_correct) >= 0
    texts = [[f"r{i} in one way", f"r{i} in another way"][: max(0, n)] for i, n in enumerate(n_correct)]
    ids = [f"r{i}" for i in range(len(n_correct))]
    return OwnAnswers(ids, np.where(asked, n_answers, 0), np.maximum(n_correct, 0), texts)


def validation(**shares: tuple[int, int]) -> ValidationAnswers:
    """Answers to validation problems: label=(right, of)."""
    groups: list[str | None] = [label for label, (_, of) in shares.items() for _ in range(of)]
    return ValidationAnswers(
        np.array([i < right for right, of in shares.values() for i in range(of)], dtype=bool), groups
    )


def candidates(**changes: Any) -> Candidates:
    given: dict[str, Any] = {
        "ids": IDS,
        "labels": LABELS,
        "likelihood": likelihood(NLL, np.full(N, 5.95)),  # IFD = i / 59.5
        "n_tokens": TOKENS,
        "own_answers": own([0] * 30 + [3] * 28 + [-1] * 2),
        "validation": validation(algebra=(3, 4), geometry=(1, 4), logic=(0, 4)),
        "reference": IDS[:20],
    }
    return Candidates(**given | changes)


def numbers(rows: list[SelectedRow]) -> list[int]:
    return [int(row.id[1:]) for row in rows]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


Choose = Callable[[Candidates, int, np.random.Generator], list[SelectedRow]]
DRAWING: list[Choose] = [
    *(random_rows, random_length_matched, perplexity_band, human_balanced, human_weakness, own_correct_answers),
]
RANKING: list[Choose] = [longest_rows, low_nll, instruction_difficulty, s1_like]
NESTED: list[Choose] = [
    *(random_rows, longest_rows, low_nll, perplexity_band, instruction_difficulty, s1_like, own_correct_answers),
]


@pytest.mark.parametrize("choose", DRAWING + RANKING)
@pytest.mark.parametrize("budget", [1, 7, 20])
def test_the_budget_is_filled_ranked_and_without_duplicates(choose: Choose, budget: int) -> None:
    rows = choose(candidates(), budget, rng())
    assert len({row.id for row in rows}) == len(rows) == budget
    assert [row.rank for row in rows] == list(range(1, budget + 1))
    assert {row.id for row in rows} <= set(IDS) and all(row.reason for row in rows)
    assert all(type(row.score) in (float, type(None)) for row in rows), "NumPy's numbers are no JSON"


@pytest.mark.parametrize("choose", DRAWING + RANKING)
def test_a_seed_gives_the_same_rows_and_another_seed_others_where_rows_are_drawn(choose: Choose) -> None:
    first = choose(candidates(), 18, rng(3))
    assert choose(candidates(), 18, rng(3)) == first
    assert (choose(candidates(), 18, rng(4)) != first) == (choose in DRAWING)


@pytest.mark.parametrize("choose", NESTED)
def test_a_smaller_budget_gives_the_first_rows_of_a_larger_one(choose: Choose) -> None:
    assert choose(candidates(), 20, rng())[:9] == choose(candidates(), 9, rng())


# length


def test_length_takes_the_longest_first() -> None:
    tokens = np.array([5, 9, 7, 9, 1])
    rows = longest_rows(Candidates(IDS[:5], LABELS[:5], n_tokens=tokens), 4, rng())
    assert [(row.id, row.score) for row in rows] == [("r1", 9.0), ("r3", 9.0), ("r2", 7.0), ("r0", 5.0)]
    with pytest.raises(UsageError, match="tokens of every row"):
        longest_rows(candidates(n_tokens=None), 4, rng())


# random-length-matched


def test_lengths_are_matched_exactly_where_the_target_has_few_lengths() -> None:
    tokens = np.repeat([10, 20, 30, 40], 50)
    target = np.repeat([20, 30], [6, 14])
    for seed in range(20):
        drawn, within = length_matched(tokens, target, 20, rng(seed))
        assert Counter(tokens[drawn].tolist()) == {20: 6, 30: 14} and within.all() and len(set(drawn.tolist())) == 20
        half, _ = length_matched(tokens, target, 10, rng(seed))
        assert Counter(tokens[half].tolist()) == {20: 3, 30: 7}
        double, _ = length_matched(tokens, target, 40, rng(seed))
        assert Counter(tokens[double].tolist()) == {20: 12, 30: 28}


def test_a_budget_below_the_number_of_lengths_takes_none_before_the_others() -> None:
    tokens, target = np.tile(np.arange(1, 41), 10), np.arange(1, 41)
    means = [tokens[length_matched(tokens, target, 4, rng(seed))[0]].mean() for seed in range(200)]
    # One of each quarter of the lengths: the mean of 4 is within 5 of 20.5, and over 200 seeds within 0.8.
    assert max(means) <= 25.5 and min(means) >= 15.5 and abs(np.mean(means) - 20.5) < 0.8


def test_lengths_between_those_of_the_target_are_not_drawn() -> None:
    tokens = np.arange(1, 1001)
    two_humps = np.concatenate([np.arange(100, 300), np.arange(700, 900)])  # 400 lengths: quantiles bound the bins
    drawn, within = length_matched(tokens, two_humps, 150, rng())
    assert within.all() and set(tokens[drawn].tolist()) <= set(two_humps.tolist())
    assert (tokens[drawn] < 500).sum() == 75


def test_within_a_length_every_row_is_as_likely() -> None:
    tokens = np.repeat([10, 20], 30)
    drawn = Counter(
        i for seed in range(600) for i in length_matched(tokens, np.array([20] * 10), 10, rng(seed))[0].tolist()
    )
    # Each of 30 comes with chance 1/3: 200 of 600, with a standard deviation of 11.5.
    assert set(drawn) == set(range(30, 60)) and all(150 < count < 250 for count in drawn.values())
    first = {int(length_matched(tokens, np.repeat([10, 20], 5), 10, rng(seed))[0][0]) // 30 for seed in range(20)}
    assert first == {0, 1}, "the order is random, not by length"


def test_quantiles_bound_the_bins_where_lengths_are_many() -> None:
    tokens = rng(0).gamma(2, 300, 20_000).astype(np.int64) + 10
    target = rng(1).choice(tokens, 1000, replace=False, p=tokens**2.0 / (tokens**2.0).sum())
    drawn, within = length_matched(tokens, target, 1000, rng(2))
    assert within.all() and len(set(drawn.tolist())) == 1000
    # A bin is a hundredth of the target, so the shares below its own quantiles come out to a hundredth.
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert (tokens[drawn] <= np.quantile(target, share)).mean() == pytest.approx(share, abs=0.011)
    assert tokens[drawn].mean() == pytest.approx(target.mean(), rel=0.01)
    assert tokens.mean() < 0.7 * target.mean(), "a plain draw would not match"
    narrow, within = length_matched(tokens, target[(target > 500) & (target < 600)], 40, rng(3))
    assert within.all() and tokens[narrow].min() > 500 and tokens[narrow].max() < 600, "nothing beyond the target"


def test_what_a_length_cannot_give_is_taken_nearest_to_it() -> None:
    tokens = np.array([10] * 3 + [12] * 2 + [9] * 2 + [30] * 50)
    drawn, within = length_matched(tokens, np.array([10] * 6), 6, rng())
    assert Counter(tokens[drawn].tolist()) == {10: 3, 9: 2, 12: 1}
    assert Counter(tokens[drawn[within]].tolist()) == {10: 3}
    drawn, within = length_matched(tokens, np.array([10] * 5 + [30] * 5), 10, rng())
    assert Counter(tokens[drawn].tolist()) == {10: 3, 9: 2, 30: 5}, "it does not take from what another length needs"
    everything, _ = length_matched(tokens, np.array([1000]), len(tokens), rng())
    assert sorted(everything.tolist()) == list(range(len(tokens)))
    # 8 and 12 lie as far from the 10 that is missing: which is taken is drawn.
    tokens = np.array([8, 8, 10, 12, 12])
    taken = [tokens[length_matched(tokens, np.array([8, 10, 10, 12]), 4, rng(seed))[0]].sum() for seed in range(20)]
    assert set(taken) == {38, 42}


def test_requests_that_cannot_be_matched() -> None:
    with pytest.raises(UsageError, match="has no rows"):
        length_matched(TOKENS, TOKENS[:0], 5, rng())
    with pytest.raises(UsageError, match="budget of 61 rows is above the pool of 60"):
        length_matched(TOKENS, TOKENS, 61, rng())


def test_a_named_selection_is_matched() -> None:
    reference = [IDS[i] for i in np.flatnonzero(TOKENS == 5)[:4]] + [IDS[i] for i in np.flatnonzero(TOKENS == 65)[:2]]
    rows = random_length_matched(candidates(reference=reference), 6, rng())
    assert Counter(row.score for row in rows) == {5.0: 4, 65.0: 2}
    assert {row.reason for row in rows} == {"drawn at random among rows of matching length"}
    rows = random_length_matched(candidates(reference=reference), 20, rng())  # wants 13 of length 5, and there are 9
    assert Counter(row.reason for row in rows) == {
        "drawn at random among rows of matching length": 16,
        "nearest in length to what was left to match": 4,
    }
    assert Counter(row.score for row in rows) == {5.0: 9, 15.0: 4, 65.0: 7}
    with pytest.raises(UsageError, match=r"1 of 2 rows of the selection to match are not in the pool.*'other'"):
        random_length_matched(candidates(reference=["r0", "other"]), 6, rng())
    with pytest.raises(UsageError, match="the lengths of another selection"):
        random_length_matched(candidates(reference=None), 6, rng())


# perplexity


@pytest.mark.parametrize(("band", "third"), [("low", range(20)), ("middle", range(20, 40)), ("high", range(40, 60))])
def test_perplexity_draws_from_its_third(band: Any, third: range) -> None:
    given = candidates(settings=SelectionSettings(band=band))
    drawn = Counter(i for seed in range(300) for i in numbers(perplexity_band(given, 10, rng(seed))))
    # Each of 20 comes with chance 1/2: 150 of 300, with a standard deviation of 8.7.
    assert set(drawn) == set(third) and all(110 < count < 190 for count in drawn.values())
    row = perplexity_band(given, 1, rng())[0]
    assert row.score == pytest.approx(np.exp(NLL[int(row.id[1:])])) and row.reason == (
        f"drawn from the {band} third by perplexity"
    )


def test_rows_without_a_response_read_are_in_no_third() -> None:
    nll = np.where(np.arange(N) % 2 == 0, NLL, np.nan)  # 30 rows: thirds of 10
    thirds = []
    for band in ("low", "middle", "high"):
        given = candidates(likelihood=likelihood(nll), settings=SelectionSettings(band=band))
        thirds.append(set(numbers(perplexity_band(given, 10, rng()))))
        with pytest.raises(TooFewRows, match=f"the {band} third by perplexity holds 10 rows.* budget of 11") as error:
            perplexity_band(given, 11, rng())
        assert error.value.available == 10
    assert thirds == [set(range(0, 20, 2)), set(range(20, 40, 2)), set(range(40, 60, 2))]
    sizes = [33, 33, 34]  # of 100 rows, each in one third
    for size, band in zip(sizes, ("low", "middle", "high"), strict=True):
        hundred = Candidates([f"r{i}" for i in range(100)], [[]] * 100, likelihood=likelihood(np.arange(100.0)))
        with pytest.raises(TooFewRows, match=f"holds {size} rows"):
            perplexity_band(hundred.with_settings(SelectionSettings(band=band)), 50, rng())


# ifd


def test_ifd_takes_the_highest_ratio_up_to_one() -> None:
    nll = np.array([1.0, 2.0, 3.0, 1.0, np.nan, 2.0, 0.0])
    alone = np.array([2.0, 2.0, 2.0, 4.0, 2.0, np.nan, 0.0])  # 0.5, 1, 1.5, 0.25, unread, unread, undefined
    given = Candidates(IDS[:7], [[]] * 7, likelihood=likelihood(nll, alone))
    rows = instruction_difficulty(given, 3, rng())
    assert [(row.id, row.score) for row in rows] == [("r1", 1.0), ("r0", 0.5), ("r3", 0.25)]
    with pytest.raises(TooFewRows, match=r"3 of 7 rows .*fewer than the budget of 4; choose a smaller one") as error:
        instruction_difficulty(given, 4, rng())
    assert error.value.available == 3
    ties = Candidates(IDS, [[]] * N, likelihood=likelihood(np.ones(N), np.full(N, 2.0)))
    assert numbers(instruction_difficulty(ties, 3, rng(9))) == [0, 1, 2]


def test_ifd_needs_the_response_alone() -> None:
    with pytest.raises(UsageError, match=r"without its prompt too.*--alone"):
        instruction_difficulty(candidates(likelihood=likelihood(NLL)), 3, rng())
    with pytest.raises(UsageError, match="needs likelihoods"):
        instruction_difficulty(candidates(likelihood=None), 3, rng())


# labels


def counts(rows: list[SelectedRow]) -> dict[str, int]:
    """Chosen rows of each first label."""
    return dict(Counter(LABELS[i][0] for i in numbers(rows)))


def test_human_balanced_shuffles_each_label_by_name() -> None:
    drawn = rng(5)
    expected = [int(i) for rows in (range(40), range(40, 55), range(55, 58)) for i in drawn.permutation(rows)[:3]]
    assert numbers(human_balanced(candidates(), 9, rng(5))) == expected
    assert counts(human_balanced(candidates(), 40, rng())) == {"algebra": 22, "geometry": 15, "logic": 3}
    with pytest.raises(TooFewRows, match="only 58 rows have a label") as error:
        human_balanced(candidates(), 59, rng())
    assert error.value.available == 58


def test_human_weakness_weighs_labels_by_one_over_accuracy() -> None:
    labels = [[name] for name in ("algebra", "geometry", "logic") for _ in range(20)]
    # Accuracies 3/4, 1/4, 0: weights 4/3, 4, 10; of 46 rows 4, 12, 30, and logic has 20.
    given = candidates(labels=labels)
    assert _first(labels, human_weakness(given, 23, rng())) == {"algebra": 2, "geometry": 6, "logic": 15}
    # 10 are left over, 2.5 and 7.5 by weight; of equal remainders the first gets the row.
    assert _first(labels, human_weakness(given, 46, rng())) == {"algebra": 7, "geometry": 19, "logic": 20}
    rows = human_weakness(given, 23, rng())
    assert [(row.reason, row.score) for row in (rows[0], rows[2], rows[8])] == [
        ("label algebra of accuracy 0.750", pytest.approx(4 / 3)),
        ("label geometry of accuracy 0.250", 4.0),
        ("label logic of accuracy 0.000", 10.0),
    ]
    # At most 4: 4/3, 4, 4.
    capped = given.with_settings(SelectionSettings(max_weight=4))
    assert _first(labels, human_weakness(capped, 28, rng())) == {"algebra": 4, "geometry": 12, "logic": 12}
    drawn = Counter(i for seed in range(300) for i in numbers(human_weakness(given, 23, rng(seed))) if i >= 40)
    # Each of 20 comes with chance 3/4: 225 of 300, with a standard deviation of 7.5.
    assert set(drawn) == set(range(40, 60)) and all(190 < count < 260 for count in drawn.values())


def _first(labels: list[list[str]], rows: list[SelectedRow]) -> dict[str, int]:
    return dict(Counter(labels[i][0] for i in numbers(rows)))


def test_a_label_without_validation_problems_gets_the_mean_weight() -> None:
    labels = [[name] for name in ("algebra", "geometry", "logic") for _ in range(20)]
    # 4/3 and 4 are measured, so logic weighs 8/3; answers to problems of other labels, or of none, say nothing.
    measured = validation(algebra=(3, 4), geometry=(1, 4), botany=(1, 9))
    measured = ValidationAnswers(np.append(measured.correct, True), [*measured.groups, None])
    rows = human_weakness(candidates(labels=labels, validation=measured), 12, rng())
    assert _first(labels, rows) == {"algebra": 2, "geometry": 6, "logic": 4}
    assert rows[-1].reason == "label logic of unknown accuracy" and rows[-1].score == pytest.approx(8 / 3)


def test_human_weakness_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="human-weakness needs labels"):
        human_weakness(candidates(labels=[[]] * N), 5, rng())
    with pytest.raises(UsageError, match="needs the model's answers to validation problems"):
        human_weakness(candidates(validation=None), 5, rng())
    other = candidates(validation=validation(botany=(1, 2)))
    with pytest.raises(UsageError, match=r"label of the rows \(algebra, geometry, logic\): their labels are botany;"):
        human_weakness(other, 5, rng())
    unlabelled = candidates(validation=ValidationAnswers(np.array([True]), [None]))
    with pytest.raises(UsageError, match="their labels are not given"):
        human_weakness(unlabelled, 5, rng())
    with pytest.raises(TooFewRows, match="only 58 rows have a label"):
        human_weakness(candidates(), 59, rng())


# s1-like


def test_s1_like_takes_the_longest_unsolved_rows_of_labels_in_turn() -> None:
    labels = [["b"], ["b"], ["a", "b"], ["a"], ["a"], [], ["a"], ["b"]]
    tokens = np.array([10, 50, 20, 30, 30, 99, 90, 40])
    answers = own([1, 0, 0, -1, 1, 0, 2, 4])  # r6 (half right) and r7 are solved; r3 was not asked
    given = Candidates([f"r{i}" for i in range(8)], labels, n_tokens=tokens, own_answers=answers)
    rows = s1_like(given, 5, rng())
    assert [(row.id, row.score) for row in rows] == [("r3", 30), ("r1", 50), ("r4", 30), ("r0", 10), ("r2", 20)]
    assert rows[1].reason == "longest unsolved rows of label b"
    with pytest.raises(
        TooFewRows, match=r"5 rows with a label are left when the 2 that the model solves .* budget of 6"
    ) as error:
        s1_like(given, 6, rng())
    assert error.value.available == 5


def test_s1_like_gives_to_others_what_a_small_label_lacks() -> None:
    given = candidates(own_answers=own([0] * N))
    assert counts(s1_like(given, 12, rng())) == {"algebra": 5, "geometry": 4, "logic": 3}
    assert counts(s1_like(given, 40, rng())) == {"algebra": 22, "geometry": 15, "logic": 3}


def test_s1_like_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="s1-like needs labels"):
        s1_like(candidates(labels=[[]] * N), 5, rng())
    with pytest.raises(UsageError, match="needs the model's own answers"):
        s1_like(candidates(own_answers=None), 5, rng())
    with pytest.raises(UsageError, match="tokens of every row"):
        s1_like(candidates(n_tokens=None), 5, rng())


# rft


def test_rft_draws_solved_rows_and_one_of_their_different_answers() -> None:
    answers = own([0, 1, 2, -1, 4])
    given = Candidates(IDS[:5], [[]] * 5, own_answers=answers)
    drawn: Counter[tuple[str, str | None]] = Counter()
    for seed in range(600):
        rows = own_correct_answers(given, 2, rng(seed))
        assert len({row.id for row in rows}) == 2
        drawn.update((row.id, row.response) for row in rows)
    # Each of 3 rows comes with chance 2/3: 400 of 600, deviation 11.5; of two answers each half of that.
    assert {i for i, _ in drawn} == {"r1", "r2", "r4"} and 350 < drawn["r1", "r1 in one way"] < 450
    for i in ("r2", "r4"):
        assert 150 < drawn[i, f"{i} in one way"] < 250 and 150 < drawn[i, f"{i} in another way"] < 250
    assert len(drawn) == 5


def test_rft_says_how_many_rows_were_solved() -> None:
    given = Candidates(IDS[:5], [[]] * 5, own_answers=own([0, 1, 2, -1, 4]))
    with pytest.raises(
        TooFewRows, match=r"solved 3 of the 4 rows that have a reference answer, .* of 4; sample more answers"
    ) as error:
        own_correct_answers(given, 4, rng())
    assert error.value.available == 3
    with pytest.raises(UsageError, match="needs the model's own answers"):
        own_correct_answers(candidates(own_answers=None), 1, rng())
