"""The representation error curriculum: planted weak directions, records worked by hand, rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skillbasis.basis import Scores
from skillbasis.corpus import SelectedRow
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.select.candidates import Candidates, SelectionSettings
from skillbasis.select.evidence import ValidationAnswers
from skillbasis.select.weakness import Weakness, weakest_rows, weakness_round, weaknesses

K = 4


def scored(values: np.ndarray, name: str = "r", basis: str | None = None) -> Scores:
    ids = [f"{name}{i}" for i in range(len(values))]
    norm = np.linalg.norm(values, axis=1)
    return Scores(ids, values, norm, norm, basis)


def answers(wrong: np.ndarray, values: np.ndarray, problems: list[str] | None = None) -> ValidationAnswers:
    return ValidationAnswers(~wrong, [None] * len(wrong), scored(values, "answer"), problems)


def planted(m: int = 600, seed: int = 0) -> ValidationAnswers:
    """Wrong half the time, but 90 % far along 2-, and 65 % far along 0+ (both thirds: more)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(m, K))
    cosine = values / np.linalg.norm(values, axis=1, keepdims=True)
    chance = np.where(cosine[:, 0] > np.quantile(cosine[:, 0], 2 / 3), 0.65, 0.4)
    chance = np.where(cosine[:, 2] < np.quantile(cosine[:, 2], 1 / 3), 0.9, chance)
    return answers(rng.random(m) < chance, values)


def candidates(validation: ValidationAnswers | None, n: int = 2000, **settings: object) -> Candidates:
    scores = scored(np.random.default_rng(7).normal(size=(n, K)))
    return Candidates(
        scores.ids,
        [[]] * n,
        scores,
        settings=SelectionSettings(**settings),
        validation=validation,  # type: ignore[arg-type]
    )


def chosen(validation: ValidationAnswers | None, budget: int = 100, **settings: object) -> list[SelectedRow]:
    return weakest_rows(candidates(validation, **settings), budget, np.random.default_rng(0))


def test_the_record_by_hand() -> None:
    # Six answers; the third farthest along 0+ is the last two, along 0- the first two.
    values = np.array([[-3.0, 1.0], [-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    wrong = np.array([False, False, True, False, True, True])
    plus, minus, *others = weaknesses(answers(wrong, values), rank_by="projection")
    # Each answer pulls (1/2 - 1/6) (1 - 1/2) = 1/6 inside and 1/6 * 1/2 = 1/12 outside: 2/36 + 4/144 = 1/12, times 6/5.
    se = np.sqrt(0.1)
    assert (plus.direction, plus.sign, plus.error, plus.overall, plus.n) == (0, "+", 1.0, 0.5, 2)
    assert plus.se == pytest.approx(se) and plus.excess == pytest.approx(0.5 - se)
    assert (minus.direction, minus.sign, minus.error, minus.excess, minus.n) == (0, "-", 0.0, 0.0, 2)
    # All are tied along 1: each belongs to the third by a third, and nothing is known.
    assert [(w.direction, w.sign, w.excess) for w in others] == [(1, "+", 0.0), (1, "-", 0.0)]
    assert all(w.error == pytest.approx(0.5) and w.se < 1e-15 for w in others)


def test_the_problem_is_the_unit() -> None:
    """Eight answers to each problem, all alike, tell no more than one: the standard error must not fall."""
    rng = np.random.default_rng(1)
    values, wrong = rng.normal(size=(60, K)), rng.random(60) < 0.5
    once = weaknesses(answers(wrong, values))
    copies = np.repeat(np.arange(60), 8)
    names = [f"p{i}" for i in copies]
    eight = weaknesses(answers(wrong[copies], values[copies], names))
    blind = weaknesses(answers(wrong[copies], values[copies]))
    for one, clustered, naive in zip(once, eight, blind, strict=True):
        assert clustered.error == pytest.approx(one.error) and clustered.se == pytest.approx(one.se)
        assert clustered.n == 8 * one.n
        # 8 times the answers: sqrt(8) smaller, but for 60/59 against 480/479
        assert naive.se == pytest.approx(one.se / np.sqrt(8), rel=0.01)


def test_the_standard_error_is_that_of_chance() -> None:
    """Where errors do not depend on the direction, error - overall scatters as `se` says."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(200, 1))
    found = [weaknesses(answers(rng.random(200) < 0.3, values), rank_by="projection")[0] for _ in range(2000)]
    assert {w.n for w in found} == {67}
    scatter = np.std([w.error - w.overall for w in found])
    # 2,000 draws: 1.6 % of standard error
    assert np.mean([w.se for w in found]) == pytest.approx(scatter, rel=0.06)
    assert 0.1 < np.mean([w.excess > 0 for w in found]) < 0.22, "one in six passes by chance"


def test_planted_weaknesses_are_found_and_get_the_budget() -> None:
    found = {(w.direction, w.sign): w for w in weaknesses(planted())}
    assert list(found) == [(k, sign) for k in range(K) for sign in "+-"]
    weak = {key for key, w in found.items() if w.excess > 0.05}
    assert weak == {(2, "-"), (0, "+")}
    assert found[2, "-"].excess > found[0, "+"].excess
    rows = chosen(planted(), 200, top_share=0.1)
    assert [row.rank for row in rows] == list(range(1, 201)) and len({row.id for row in rows}) == 200
    total = sum(w.excess for w in found.values())
    for key, w in found.items():
        share = [row for row in rows if (row.direction, row.sign) == key]
        assert abs(len(share) - 200 * w.excess / total) <= 1
        # The budget lies in the top tenth of its direction, by the ranking of the settings.
        ranking = candidates(None).ranking(*key)
        assert all(ranking[int(row.id[1:])] >= np.sort(ranking)[-300] for row in share)
    assert (rows[0].direction, rows[0].sign) == (2, "-"), "the weakest first"
    weakest = found[2, "-"]
    where = f"where {weakest.error:.0%} of answers are wrong against {weakest.overall:.0%} of all"
    assert rows[0].reason == f"top 200 rows of 2-, {where}"


def test_without_a_weakness_all_directions_share_and_the_reason_says_so() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(90, K))
    for wrong in (np.zeros(90, dtype=bool), np.ones(90, dtype=bool)):
        rows = chosen(answers(wrong, values), 80)
        counts = {
            (k, sign): sum((row.direction, row.sign) == (k, sign) for row in rows) for k in range(K) for sign in "+-"
        }
        assert set(counts.values()) == {10}
        assert rows[0].reason == "top 300 rows of 0+, the model being nowhere weaker"


def test_the_ranking_of_answers_is_that_of_rows() -> None:
    """A long answer has large scores everywhere; by cosine it does not lie along everything."""
    values = np.random.default_rng(0).normal(size=(300, K)) * np.random.default_rng(1).choice([1, 50], size=(300, 1))
    wrong = values[:, 0] / np.linalg.norm(values, axis=1) > 0.3
    by = {
        rank_by: weaknesses(answers(wrong, values), rank_by=rank_by)[0]
        for rank_by in ("cosine", "projection", "centred-rank")
    }  # type: ignore[arg-type]
    assert by["cosine"].error > by["projection"].error > by["cosine"].overall
    settings = {"rank_by": "projection"}
    first = chosen(answers(wrong, values), 10, **settings)[0]
    assert f"where {by['projection'].error:.0%} of answers" in first.reason
    assert len({w.error for w in by.values()}) == 3


def test_only_the_first_directions_are_looked_at_where_asked() -> None:
    whole = weaknesses(planted())
    assert weaknesses(planted(), 2) == whole[:4]
    for n in (0, K + 1):
        with pytest.raises(UsageError, match=f"n_directions must be from 1 to the 4 of the scores, not {n}"):
            weaknesses(planted(), n)


def test_rounds_take_other_rows_where_the_model_is_weak_by_then() -> None:
    first = weakness_round(candidates(planted()), 150, np.random.default_rng(0), ())
    assert first == chosen(planted(), 150)
    taken = {row.id for row in first}
    # After training the model is wrong along 1+ only.
    values = np.random.default_rng(9).normal(size=(300, K))
    improved = answers(values[:, 1] / np.linalg.norm(values, axis=1) > 0.4, values)
    second = weakness_round(candidates(improved), 100, np.random.default_rng(0), taken)
    assert [row.rank for row in second] == list(range(1, 101))
    assert not taken & {row.id for row in second} and len({row.id for row in second}) == 100
    assert (second[0].direction, second[0].sign) == (1, "+")
    # The same weakness again: the next best rows, top shares being of what is left.
    again = weakness_round(candidates(planted(), top_share=0.0), 50, np.random.default_rng(0), taken)
    ranking = candidates(None).ranking(2, "-")
    left = [f"r{i}" for i in np.argsort(-ranking) if f"r{i}" not in taken]
    n = sum((row.direction, row.sign) == (2, "-") for row in again)
    assert [row.id for row in again[:n]] == left[:n] and n > 25
    with pytest.raises(UsageError, match="wants 1851 rows, but 1850 are left"):
        weakness_round(candidates(planted()), 1851, np.random.default_rng(0), taken)
    rest = weakness_round(candidates(planted()), 1850, np.random.default_rng(0), taken)
    assert {row.id for row in rest} | taken == set(candidates(None).ids)


def test_the_seed_decides() -> None:
    pool = candidates(planted())
    first, again, other = (weakest_rows(pool, 60, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again and first != other


def test_what_is_missing_or_does_not_fit() -> None:
    good = planted()
    assert good.scores is not None
    with pytest.raises(UsageError, match="needs the model's answers to validation problems"):
        chosen(None)
    with pytest.raises(UsageError, match="needs the model's answers scored along a basis"):
        chosen(replace(good, scores=None))
    with pytest.raises(UsageError, match="at least two validation problems"):
        weaknesses(answers(np.array([True]), np.ones((1, K))))
    with pytest.raises(UsageError, match="at least two validation problems"):
        weaknesses(answers(np.array([True, False]), np.ones((2, K)), ["same", "same"]))
    with pytest.raises(UsageError, match="at least two validation problems"):
        weaknesses(answers(np.zeros(0, dtype=bool), np.ones((0, K))))
    values = good.scores.values.copy()
    values[17, 1] = np.nan
    with pytest.raises(ArtifactError, match="answer 'answer17' has a score that is not finite"):
        chosen(replace(good, scores=scored(values, "answer")))
    with pytest.raises(ArtifactError, match="rows are scored along 4 directions and the answers along 3"):
        chosen(replace(good, scores=scored(values[:, [0, 2, 3]], "answer")))
    pool = candidates(replace(good, scores=scored(good.scores.values, "answer", "one")))
    weakest_rows(pool, 5, np.random.default_rng(0))
    pool = replace(pool, scores=replace(pool.known_scores, basis_fingerprint="other"))
    with pytest.raises(ArtifactError, match=r"along different bases \(other and one\)"):
        weakest_rows(pool, 5, np.random.default_rng(0))
    with pytest.raises(UsageError, match="needs scores"):
        weakest_rows(replace(pool, scores=None), 5, np.random.default_rng(0))


def test_records_are_plain() -> None:
    from dataclasses import asdict

    record = asdict(weaknesses(planted())[0])
    assert list(record) == ["direction", "sign", "error", "overall", "se", "excess", "n"]
    assert {type(value) for value in record.values()} == {int, str, float}
    assert Weakness(**record) == weaknesses(planted())[0]
