"""Labels and directions: planted labels, null labels, groups that are never split, and what is left out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from skillbasis.errors import CorpusError, UsageError
from skillbasis.interpret.crossfit import (
    make_folds,
    predict_class,
    predict_label,
    predict_numbers,
    shuffled_labels,
)
from skillbasis.interpret.human_labels import LabelColumn, RowColumns
from skillbasis.interpret.taxonomy import CrossValidation, explained, map_labels
from skillbasis.statistics import holm
from skillbasis.statistics.auc import auc


def column(name: str, **labels: NDArray[Any]) -> LabelColumn:
    has = np.column_stack(list(labels.values())).astype(bool)
    return LabelColumn(name, tuple(labels), has, np.ones(len(has), dtype=bool), {})


def rows_of(extras: list[dict[str, Any]], labels: list[list[str]] | None = None) -> Any:
    from datasets import Dataset

    n = len(extras)
    return Dataset.from_dict(
        {
            "id": [f"row-{i}" for i in range(n)],
            "prompt": [[{"role": "user", "content": f"question {i // 2}"}] for i in range(n)],
            "response": ["yes"] * n,
            "labels": labels or [[] for _ in range(n)],
            "extra": [json.dumps(extra) for extra in extras],
        }
    )


# --- folds and predictions ---


def test_folds_are_stratified_and_seeded_and_never_split_a_group() -> None:
    rng = np.random.default_rng(0)
    classes = rng.random(300) < 0.2
    groups = [f"p{g}" for g in rng.integers(0, 70, 300)]
    folds = make_folds(classes, groups, 5, seed=4)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    for group in set(groups):
        assert len({fold for fold, g in zip(folds, groups, strict=True) if g == group}) == 1
    for fold in range(5):
        assert 0.1 < classes[folds == fold].mean() < 0.3
    assert np.array_equal(folds, make_folds(classes, groups, 5, seed=4))
    assert not np.array_equal(folds, make_folds(classes, groups, 5, seed=5))
    alone = make_folds(classes, None, 5)
    per_fold = [int(classes[alone == fold].sum()) for fold in range(5)]
    assert max(per_fold) - min(per_fold) <= 1 and sum(per_fold) == classes.sum()
    assert set(np.bincount(alone)) == {60}
    of_groups = [len({g for f, g in zip(folds, groups, strict=True) if f == fold}) for fold in range(5)]
    assert max(of_groups) - min(of_groups) <= 1
    many_classes = make_folds(np.arange(7), None, 5)  # none of which fills a round
    assert sorted(np.bincount(many_classes)) == [1, 1, 1, 2, 2]
    with pytest.raises(UsageError, match="5 folds of 3 groups"):
        make_folds(classes[:6], ["a", "b", "c"] * 2, 5)


def test_predictions_are_those_of_scikit_learn_fitted_on_the_other_folds() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(5, 3, size=(120, 4))
    y = rng.random(120) < 1 / (1 + np.exp(-(x[:, 0] - 5)))
    folds = make_folds(y, None, 4)
    found = predict_label(x, y, folds)
    numbers = predict_numbers(x, x[:, :2] @ [[1.0, 0], [0, 2.0]] + 1, folds)
    for fold in range(4):
        out = folds == fold
        scaler = StandardScaler().fit(x[~out])
        model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(x[~out]), y[~out])
        assert found.logits[out] == pytest.approx(model.decision_function(scaler.transform(x[out])), abs=1e-6)
        ridge = Ridge(alpha=1.0).fit(x[~out], x[~out, 1] * 2 + 1)
        assert numbers.model[out, 1] == pytest.approx((x[out, 1] * 2 + 1 - ridge.predict(x[out])) ** 2, abs=1e-8)
    p = 1 / (1 + np.exp(-found.logits))
    assert found.deviance == pytest.approx(-2 * np.log(np.where(y, p, 1 - p)))
    assert found.deviance.mean() < found.null_deviance.mean()


def test_the_share_of_chance_is_small_for_a_clear_label_and_near_one_for_none() -> None:
    rng = np.random.default_rng(2)
    clear, none = [], []
    for _ in range(40):
        x = rng.normal(size=(200, 6))
        for into, y in ((clear, x[:, 0] + 0.3 * rng.normal(size=200) > 0), (none, rng.random(200) < 0.5)):
            into.append(predict_label(x, y, make_folds(y, None, 5)).noise)
    assert np.mean(clear) < 0.1
    assert 0.75 < np.mean(none) < 1.25  # each within [0, 2], with a standard deviation of .6
    y = np.arange(40) < 20
    assert predict_label(np.zeros((40, 3)), y, make_folds(y, None, 5)).noise == 1.0  # nothing but intercepts


def test_several_classes_are_predicted_and_the_majority_stands_beside() -> None:
    rng = np.random.default_rng(3)
    classes = rng.choice(3, 150, p=[0.5, 0.3, 0.2])
    x = np.eye(3)[classes] * 4 + rng.normal(size=(150, 3))
    predicted, majority = predict_class(x, classes, make_folds(classes, None, 5))
    assert (predicted == classes).mean() > 0.9
    assert set(majority) == {0}


def test_shuffled_labels_keep_groups_alike() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), 4)
    pure = (rng.random(30) < 0.5)[groups]
    shuffled = shuffled_labels(pure, groups.tolist(), rng)
    assert shuffled.sum() == pure.sum() and not np.array_equal(shuffled, pure)
    assert all(np.ptp(shuffled[groups == g].astype(int)) == 0 for g in range(30))
    assert shuffled_labels(pure, None, rng).sum() == pure.sum()


# --- labels of a corpus ---


def test_columns_of_every_kind_become_labels() -> None:
    extras = [
        {"model": "b", "level": 1, "right": True, "tags": ["x", "y"], "group": 1.0},
        {"model": "a", "level": 2, "right": False, "tags": [], "group": 2.0},
        {"model": "c", "level": 2, "right": True, "tags": ["y", "y"], "group": 1.0},
        {"level": None, "right": None},
    ]
    read = RowColumns(rows_of(extras, [["one"], ["one", "two"], [], ["two"]]))
    assert read.names == ["labels", "group", "level", "model", "right", "tags"]
    model = read.label_column("model")
    assert (model.labels, model.single, model.opposite) == (("a", "b", "c"), True, None)
    assert model.known.tolist() == [True, True, True, False]
    assert model.has.tolist() == [[False, True, False], [True, False, False], [False, False, True], [False] * 3]
    right = read.label_column("right")
    assert (right.labels, right.tested, right.left_out) == (
        ("false", "true"),
        ["true"],
        {"false": "the opposite of 'true'"},
    )
    tags = read.label_column("tags")
    assert (tags.labels, tags.single, tags.known.tolist()) == (("x", "y"), False, [True, False, True, False])
    assert read.label_column("labels").known.tolist() == [True, True, False, True]
    assert read.label_column("level").labels == ("1", "2")
    assert read.groups(None) == ["question 0", "question 0", "question 1", "question 1"]
    with pytest.raises(CorpusError, match="1 of 4 scored rows have no value in 'group'"):
        read.groups("group")
    correct, known = read.correct("right")
    assert (correct.tolist(), known.tolist()) == ([True, False, True, False], [True, True, True, False])


def test_columns_that_are_no_labels_are_refused() -> None:
    read = RowColumns(rows_of([{"loss": 0.5, "model": "a", "nested": {"a": 1}}] * 3))
    with pytest.raises(CorpusError, match="column 'loss' holds 0.5, which is no label"):
        read.label_column("loss")
    with pytest.raises(CorpusError, match="holds {'a': 1}, which is no label"):
        read.label_column("nested")
    with pytest.raises(
        UsageError, match=r"no column 'modle' \(did you mean 'model'\?\); there are loss, model, nested"
    ):
        read.label_column("modle")
    with pytest.raises(UsageError, match="no scored row of the corpus has labels; name a column"):
        read.label_column("labels")
    with pytest.raises(CorpusError, match="'loss' holds 0.5, which is neither true nor false"):
        read.correct("loss")


def test_only_the_most_frequent_labels_are_looked_at() -> None:
    extras = [{"model": f"m{i:03d}"} for i in range(150)] + [{"model": "m149"}]
    found = RowColumns(rows_of(extras)).label_column("model")
    assert len(found.labels) == 100 and "m149" in found.labels
    assert len(found.left_out) == 50 and set(found.left_out.values()) == {"beyond the 100 most frequent labels"}


# --- labels by directions ---


def test_a_label_that_two_directions_carry_together_is_found_by_all_and_weakly_by_each() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(600, 4))
    scores[:, 1] += 3 * scores[:, 0]  # so that d1 - 3 d0 is what is left
    label = scores[:, 1] - 3 * scores[:, 0] > 0.7
    found = map_labels(scores, [column("skill", hidden=label)])
    (result,) = found.labels
    assert result.joint.auc > 0.99 and result.joint_p_holm < 1e-6
    assert all(0.35 < single.auc < 0.68 for single in result.directions)
    assert [single.auc for single in result.directions] == [auc(scores[:, k], label).auc for k in range(4)]
    assert result.p_holm == holm([single.p_value for single in result.directions]).tolist()
    assert result.deviance_r2.low > 0.5
    assert (result.n_rows, result.n_without, found.n_tests, found.n_groups) == (label.sum(), 600 - label.sum(), 4, None)


def test_null_labels_have_areas_near_a_half_and_intervals_that_hold_it() -> None:
    rng = np.random.default_rng(6)
    areas, covered, naive, rejected = [], 0, 0, 0
    n = 150
    for seed in range(n):
        scores, label = rng.normal(size=(150, 5)), rng.random(150) < 0.3
        folds = make_folds(label, None, 5, seed)
        predicted = predict_label(scores, label, folds)
        found = auc(predicted.logits, label, folds=folds, noise=predicted.noise)
        independent = auc(predicted.logits, label, folds=folds)
        areas.append(found.auc)
        covered += found.low <= 0.5 <= found.high
        naive += independent.low <= 0.5 <= independent.high
        rejected += found.p_value < 0.05
    assert abs(np.mean(areas) - 0.5) < 0.02  # a standard deviation of .07 over 150 areas gives .006
    assert covered >= 0.91 * n and rejected <= 0.09 * n  # 95 %: standard deviation 2.7 of 150
    assert naive < covered - 5  # folds are not independent at chance


def test_null_labels_of_whole_problems_stay_null() -> None:
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(50), 5)
    rejected_singly = rejected_jointly = 0
    for seed in range(40):
        scores = rng.normal(size=(50, 3))[groups] + 0.5 * rng.normal(size=(250, 3))
        label = (rng.random(50) < 0.5)[groups]  # problems carry it, traces of them do not choose
        found = map_labels(scores, [column("c", label=label)], CrossValidation(groups.tolist(), seed=seed))
        rejected_singly += found.labels[0].directions[0].p_value < 0.05
        rejected_jointly += found.labels[0].joint.p_value < 0.05
    assert rejected_singly <= 6 and rejected_jointly <= 6  # 2 expected; taking rows as independent gives over 13


def test_traces_of_one_problem_tell_nothing_of_each_other() -> None:
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(40), 6)
    scores = np.eye(40)[groups] + 0.01 * rng.normal(size=(240, 40))  # scores name the problem
    label = (rng.random(40) < 0.5)[groups]
    leaking = map_labels(scores, [column("c", label=label)])
    held = map_labels(scores, [column("c", label=label)], CrossValidation(groups.tolist()))
    assert leaking.labels[0].joint.auc > 0.99
    assert held.labels[0].joint.low < 0.5


def test_shuffled_labels_are_the_control() -> None:
    rng = np.random.default_rng(19)
    scores = rng.normal(size=(200, 3))
    label = scores[:, 0] + 0.5 * rng.normal(size=200) > 0
    columns = [column("c", real=label, none=rng.random(200) < 0.5)]
    found = map_labels(scores, columns, n_shuffles=9)
    real, none = (result.shuffled for result in found.labels)
    assert real is not None and none is not None
    assert abs(real.mean - 0.5) < 0.08 and real.highest < found.labels[0].joint.auc
    assert real.p_value == pytest.approx(0.1) and none.p_value > 0.1
    assert map_labels(scores, columns, n_shuffles=9) == found  # seeded
    assert map_labels(scores, columns).labels[0].shuffled is None


def test_what_each_side_explains_of_the_other() -> None:
    rng = np.random.default_rng(10)
    family, style = rng.integers(0, 3, 900), rng.integers(0, 2, 900)
    scores = np.column_stack([3.0 * np.eye(3)[family][:, 0] + 0.1 * rng.normal(size=900), 10 * rng.normal(size=900)])
    scores[:, 0] += style
    families = column("family", **{f"f{i}": family == i for i in range(3)})
    styles = column("style", **{f"s{i}": style == i for i in range(2)})
    found = map_labels(scores, [families, styles])
    by_family, by_style = found.columns
    # d0 has variance 9 (1/3)(2/3) = 2 by family, 1/4 by style and .01; d1 has 100 of nobody's.
    assert by_family.basis_r2.directions[0].mean == pytest.approx(2 / 2.26, abs=0.03)
    assert by_style.basis_r2.directions[0].mean == pytest.approx(0.25 / 2.26, abs=0.03)
    assert by_family.basis_r2.directions[1].mean == pytest.approx(0, abs=0.02)
    assert by_family.basis_r2.total.mean == pytest.approx(2 / 102.26, abs=0.01)  # weighted by variance
    assert found.all_columns is not None
    assert found.all_columns.directions[0].mean == pytest.approx(2.25 / 2.26, abs=0.01)
    assert by_family.accuracy is not None and by_family.accuracy.n_labels == 3
    assert by_family.accuracy.majority.mean == pytest.approx(max(np.mean(families.has, axis=0)), abs=0.05)
    assert by_family.accuracy.model.mean > by_family.accuracy.majority.mean + 0.2
    assert by_family.accuracy.difference.low > 0
    mean = np.mean([result.joint.auc for result in found.labels if result.column == "family"])
    assert by_family.mean_joint_auc.mean == pytest.approx(mean)
    assert map_labels(scores, [families]).all_columns is None


def test_explained_is_one_less_the_ratio_of_losses() -> None:
    rng = np.random.default_rng(11)
    losses = rng.random((80, 2)) * [1, 4]
    found = explained(losses[:, 0], losses[:, 1], None)
    assert found.mean == pytest.approx(1 - losses[:, 0].mean() / losses[:, 1].mean())
    assert found.low < found.mean < found.high


def test_labels_that_cannot_be_tested_are_named_with_their_reason() -> None:
    rng = np.random.default_rng(12)
    rows = np.arange(100)
    labels = column("c", good=rng.random(100) < 0.5, rare=rows < 4, everyone=rows >= 0, clumped=rows < 30)
    groups = (rows // 10).tolist()
    found = map_labels(rng.normal(size=(100, 2)), [labels], CrossValidation(groups))
    assert [result.label for result in found.labels] == ["good"]
    reasons = {entry["label"]: entry["reason"] for entry in found.left_out}
    assert reasons == {
        "rare": "4 of 100 rows carry it; at least 10 with and without are needed",
        "everyone": "all of 100 rows carry it: there is nothing to compare with",
        "clumped": "3 groups have rows with it and 7 rows without; at least 5 of either, one per fold, are needed",
    }


def test_one_class_is_refused_with_a_clear_message() -> None:
    with pytest.raises(
        CorpusError, match=r"no label can be looked at: c = 'all': all of 30 rows carry it: there is nothing to compare"
    ):
        map_labels(np.zeros((30, 2)), [column("c", all=np.ones(30))])


def test_rows_without_a_value_are_no_counterexamples() -> None:
    rng = np.random.default_rng(13)
    scores, label = rng.normal(size=(120, 2)), np.arange(120) < 40
    known = np.arange(120) < 80
    scores[~known] = 100.0  # would change every area
    labels = LabelColumn("c", ("a",), label[:, None], known, {})
    found = map_labels(scores, [labels]).labels[0]
    assert (found.n_rows, found.n_without) == (40, 40)
    assert found.directions[0].auc == auc(scores[:80, 0], label[:80]).auc


def test_columns_known_on_different_rows_are_not_put_together() -> None:
    rng = np.random.default_rng(14)
    scores, label = rng.normal(size=(80, 2)), rng.random(80) < 0.5
    sides = [
        LabelColumn(name, ("a",), label[:, None], known, {})
        for name, known in (("left", np.arange(80) < 40), ("right", np.arange(80) >= 40))
    ]
    assert map_labels(scores, sides).all_columns is None


def test_a_constant_direction_has_no_interval_and_breaks_nothing() -> None:
    rng = np.random.default_rng(15)
    scores = np.column_stack([rng.normal(size=60), np.zeros(60)])
    found = map_labels(scores, [column("c", a=rng.random(60) < 0.5)])
    constant = found.labels[0].directions[1]
    assert constant.auc == 0.5 and math.isnan(constant.p_value) and constant.reason is not None
    assert math.isnan(found.labels[0].p_holm[1]) and not math.isnan(found.labels[0].p_holm[0])
    assert math.isnan(found.columns[0].basis_r2.directions[1].mean)


def test_extra_that_is_no_json_is_refused() -> None:
    from datasets import Dataset

    broken = Dataset.from_dict(
        {
            "id": ["x"],
            "prompt": [[{"role": "user", "content": "q"}]],
            "response": [""],
            "labels": [["a"]],
            "extra": ["{"],
        }
    )
    with pytest.raises(CorpusError, match="the extra columns of row 'x' are not JSON"):
        RowColumns(broken)
