"""Correctness predicted from scores, how compact a basis is, and whether what two skills do adds up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from skillbasis.basis import SkillBasis
from skillbasis.errors import CorpusError, UsageError
from skillbasis.interpret.compositionality import compositionality
from skillbasis.interpret.grounding import compactness, ground, orthogonal_coordinates
from skillbasis.interpret.human_labels import LabelColumn
from skillbasis.interpret.taxonomy import CrossValidation


def one_hot(name: str, values: NDArray[Any]) -> LabelColumn:
    labels = tuple(str(v) for v in np.unique(values))
    has = np.column_stack([values.astype(str) == label for label in labels])
    return LabelColumn(name, labels, has, np.ones(len(values), dtype=bool), {})


def basis_of(directions: NDArray[Any], **config: Any) -> SkillBasis:
    k = len(directions)
    variances = np.asarray(config.pop("explained_variance", np.ones(k)), dtype=np.float64)
    return SkillBasis(
        directions=directions.reshape(k, 1, -1).astype(np.float32),
        mean=np.zeros((1, directions.shape[1]), dtype=np.float32),
        explained_variance=variances,
        score_std=np.sqrt(variances),
        config={"rows": 1000} | config,
    )


# --- is it grounded? ---


def answers(n_problems: int, seed: int, *, told_by: str) -> dict[str, Any]:
    """Five answers to each problem; what makes them right is named, all else is noise."""
    rng = np.random.default_rng(seed)
    problems = np.repeat(np.arange(n_problems), 5)
    n = len(problems)
    scores = rng.normal(size=(n, 3)) + rng.normal(size=(n_problems, 3))[problems]
    lengths = np.exp(rng.normal(5, 1, size=(n, 2)))
    labels = np.eye(4, dtype=bool)[rng.integers(0, 4, n_problems)[problems]]
    cause = {"scores": scores[:, 0], "length": -np.log(lengths[:, 1]) + 5, "labels": 3.0 * labels[:, 0] - 1}[told_by]
    correct = rng.random(n) < 1 / (1 + np.exp(-1.5 * cause))
    return {
        "scores": scores,
        "correct": correct,
        "lengths": lengths,
        "labels": labels,
        "validation": CrossValidation(problems.tolist()),
    }


@pytest.mark.parametrize("told_by", ["scores", "length", "labels"])
def test_the_cause_of_correctness_is_the_best_predictor(told_by: str) -> None:
    found = ground(**answers(80, 1, told_by=told_by))
    by_name = {predictor.name: predictor for predictor in found.predictors}
    assert list(by_name) == [
        *("scores", "length", "labels"),
        *("scores + length", "scores + length + labels", "length + labels"),
    ]
    assert [by_name[name].n_features for name in by_name] == [3, 2, 4, 5, 9, 6]
    for name, predictor in by_name.items():
        if told_by in name.split(" + "):
            assert predictor.auc.low > 0.6 and predictor.deviance_r2.low > 0
        else:
            assert predictor.auc.low < 0.55  # 80 problems: chance alone moves it by some hundredths
    differences = {(c.a, c.b): c for c in found.comparisons}
    assert len(differences) == 4
    beyond_length = differences["scores", "length"]
    if told_by == "scores":
        assert beyond_length.difference.low > 0 and beyond_length.p_holm < 0.01
        assert differences["scores + length + labels", "length + labels"].difference.low > 0
    elif told_by == "length":
        assert beyond_length.difference.high < 0
        assert abs(differences["scores + length", "length"].difference.mean) < 0.03
    assert beyond_length.difference.mean == pytest.approx(by_name["scores"].auc.auc - by_name["length"].auc.auc)
    assert all(c.p_holm >= c.difference.p_value for c in found.comparisons)
    assert (found.n_rows, found.n_groups) == (400, 80)


def test_without_labels_nothing_is_compared_with_them() -> None:
    found = ground(**answers(40, 2, told_by="scores") | {"labels": None})
    assert [predictor.name for predictor in found.predictors] == ["scores", "length", "scores + length"]
    assert [(c.a, c.b) for c in found.comparisons] == [("scores", "length"), ("scores + length", "length")]


def test_answers_of_one_class_are_refused() -> None:
    given = answers(40, 3, told_by="scores")
    with pytest.raises(
        CorpusError, match=r"cannot be predicted: all of 200 rows are right: there is nothing to compare"
    ):
        ground(**given | {"correct": np.ones(200, dtype=bool)})
    with pytest.raises(CorpusError, match="3 of 200 rows are right; at least 10 right and wrong are needed"):
        ground(**given | {"correct": np.arange(200) < 3})
    with pytest.raises(CorpusError, match="3 groups have right answers and 37"):
        ground(**given | {"correct": np.arange(200) < 15})
    with pytest.raises(UsageError, match="must be of the same 200 rows"):
        ground(**given | {"lengths": np.ones((200, 1))})
    with pytest.raises(UsageError, match="negative"):
        ground(**given | {"lengths": -np.ones((200, 2))})


# --- compactness ---


def test_compactness_of_a_known_spectrum() -> None:
    basis = basis_of(np.eye(6)[:3], explained_variance=[5.0, 3.0, 1.0], total_variance=10.0, rows=100)
    found = compactness(basis)
    assert found.cumulative == pytest.approx([0.5, 0.8, 0.9]) and found.measured_on == "fit"
    assert found.needed == {"50 %": 1, "80 %": 2, "90 %": 3}
    assert found.participation_known == pytest.approx(81 / 35)
    assert found.participation_low == pytest.approx(
        100 / (35 + 1)
    )  # the rest all in one direction, as large as the last
    assert found.participation_high == pytest.approx(100 / (35 + 1 / 3))  # the rest even over the three that are left
    whole = compactness(basis_of(np.eye(3), explained_variance=[5.0, 3.0, 1.0], total_variance=9.0))
    assert whole.participation_low == pytest.approx(81 / 35) == whole.participation_high
    few = compactness(basis_of(np.eye(6)[:3], explained_variance=[2.0, 1.0, 1.0], total_variance=10.0))
    assert few.needed == {"50 %": None, "80 %": None, "90 %": None}


def test_the_true_participation_ratio_lies_within_its_bounds() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        spectrum = np.sort(rng.exponential(size=12) ** 2)[::-1]
        basis = basis_of(np.eye(12)[:4], explained_variance=spectrum[:4], total_variance=spectrum.sum())
        found = compactness(basis)
        truth = spectrum.sum() ** 2 / (spectrum**2).sum()
        assert found.participation_low <= truth * (1 + 1e-9) and truth <= found.participation_high * (1 + 1e-9)
        assert found.participation_known <= truth * (1 + 1e-9)


def test_directions_that_are_not_orthogonal_count_nothing_twice() -> None:
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(4, 5))
    directions[3] = directions[0] + 0.5 * directions[1]  # adds nothing
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = rng.normal(size=(50, 5))
    basis = basis_of(directions, orthogonal=False, total_variance=5.0)
    inside = orthogonal_coordinates(basis, rows @ directions.T) ** 2
    for k in range(1, 5):
        span = np.linalg.qr(directions[: min(k, 3)].T)[0]
        assert inside[:, :k].sum(axis=1) == pytest.approx(((rows @ span) ** 2).sum(axis=1), rel=1e-4)
    assert np.all(inside[:, 3] == 0)
    found = compactness(basis, rows @ directions.T, np.linalg.norm(rows, axis=1))
    assert found.measured_on == "scores" and math.isnan(found.participation_low)
    assert found.cumulative[-1] == pytest.approx(inside.sum() / (rows**2).sum())
    with pytest.raises(UsageError, match="give scores of a corpus too"):
        compactness(basis)


# --- compositionality ---


def world(kind: str, seed: int, n: int = 800) -> tuple[NDArray[Any], list[LabelColumn]]:
    """Scores of rows with one of four skills and one of two styles: their effects add up, or only the pair matters."""
    rng = np.random.default_rng(seed)
    skill, style = rng.integers(0, 4, n), rng.integers(0, 2, n)
    noise = rng.normal(size=(n, 3))
    if kind == "additive":
        effect = np.column_stack([skill, 2 * style, skill - style])
    elif kind == "xor":
        effect = 3.0 * np.repeat(((skill % 2) ^ style)[:, None], 3, axis=1)
    else:
        effect = np.zeros((n, 3))
    return effect + noise, [one_hot("skill", skill), one_hot("style", style)]


def test_an_additive_world_adds_up() -> None:
    scores, columns = world("additive", 6)
    found = compositionality(scores, columns)
    assert found.index.mean == pytest.approx(1, abs=0.02)
    assert found.gain.low < 0.005 and abs(found.gain.mean) < 0.01
    labels = np.hstack([column.has for column in columns])
    in_sample = LinearRegression().fit(labels, scores)
    residual = scores - in_sample.predict(labels)
    truth = 1 - (residual**2).sum() / ((scores - scores.mean(axis=0)) ** 2).sum()
    assert found.additive.mean == pytest.approx(truth, abs=0.02)
    assert found.additive.low < truth < found.additive.high + 0.02
    assert (found.n_rows, found.n_labels, found.n_pairs, found.reason) == (800, 6, 8, None)


def test_an_xor_world_does_not() -> None:
    found = compositionality(*world("xor", 7))
    assert abs(found.additive.mean) < 0.03
    assert found.interaction.mean == pytest.approx(2.25 / 3.25, abs=0.04)  # 9/4 of XOR, 1 of noise
    assert abs(found.index.mean) < 0.05 and found.index.high < 0.1
    assert found.gain.low > 0.6


def test_labels_of_one_column_and_several_per_row() -> None:
    rng = np.random.default_rng(8)
    has = rng.random((700, 3)) < 0.5
    columns = [LabelColumn("labels", ("a", "b", "c"), has, has.any(axis=1), {})]
    scores = has @ rng.normal(size=(3, 2)) * 3 + 0.3 * rng.normal(size=(700, 2))
    added = compositionality(scores, columns)
    assert added.n_rows == int((has.sum(axis=1) >= 2).sum()) and added.n_pairs == 3
    assert added.index.mean == pytest.approx(1, abs=0.01)
    scores[has[:, 0] & has[:, 1]] += 5  # together they do more
    assert compositionality(scores, columns).index.high < 0.95


def test_what_nothing_explains_has_no_index() -> None:
    found = compositionality(*world("none", 9))
    assert math.isnan(found.index.mean) or math.isnan(found.index.low)
    assert found.index.reason is not None and abs(found.additive.mean) < 0.03
    assert found.reason is None


def test_groups_are_held_out_together() -> None:
    rng = np.random.default_rng(10)
    scores, columns = world("additive", 10, n=200)
    problems = np.repeat(np.arange(20), 10)
    scores = scores + 5 * rng.normal(size=(20, 3))[problems]
    alone = compositionality(scores, columns)
    held = compositionality(scores, columns, CrossValidation(problems.tolist()))
    assert held.additive.high - held.additive.low > alone.additive.high - alone.additive.low


def test_one_label_a_row_cannot_be_composed() -> None:
    scores, (skill, style) = world("additive", 11)
    found = compositionality(scores, [skill])
    assert found.reason == "no two labels occur together in 10 rows or more"
    assert math.isnan(found.index.mean) and found.n_rows == 0
    apart = [
        LabelColumn(c.name, c.labels, c.has, (np.arange(800) < 400) == first, {})
        for c, first in ((skill, True), (style, False))
    ]
    assert compositionality(scores, apart).reason is not None
