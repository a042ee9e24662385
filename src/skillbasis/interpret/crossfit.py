"""Cross-fitting: every row is predicted by a model that has seen neither it nor any row of its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

LOGISTIC_C = 1.0
"""Inverse strength of the logistic regression's L2 penalty, on standardised features."""
RIDGE_ALPHA = 1.0
"""L2 penalty of the ridge regression on 0/1 features: a label is drawn to the mean as if by one row there."""
_MAX_ITERATIONS = 1000
_MIN_FOLDS = 2


def make_folds(
    classes: NDArray[Any], groups: Sequence[Any] | None = None, n_folds: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Cuts rows into folds in which every class is as frequent as in all of them, as far as groups allow.

    Args:
        classes: (n,) class of each row.
        groups: (n,) labels; rows of one group are always held out together. None: every row is a group.
        n_folds: number of folds.
        seed: of the shuffling; same seed, same folds.
    Returns: (n,) number of the fold in which each row is held out, 0 to n_folds - 1. Groups are taken by their most
        frequent class, ordered by its share of their rows and by their size, and dealt out in turn, so that folds get
        groups that are alike: as many of each class as any other, but for one, and as many in all, but for one. So rows
        without groups are stratified exactly.
    Raises: UsageError: fewer than 2 folds, or fewer rows or groups than folds.
    Cost: O(n log n).
    """
    unit, labels = ("rows", np.arange(len(classes))) if groups is None else ("groups", np.asarray(groups, dtype=str))
    index = np.unique(labels, return_inverse=True)[1]
    n_groups = int(index.max(initial=-1)) + 1
    if not _MIN_FOLDS <= n_folds <= n_groups:
        raise UsageError(f"{n_folds} folds of {n_groups} {unit}; give 2 or more folds, and not more than {unit}")
    codes = np.unique(classes, return_inverse=True)[1]
    counts = np.zeros((n_groups, int(codes.max()) + 1))  # (groups, classes)
    np.add.at(counts, (index, codes), 1)
    size, main = counts.sum(axis=1), counts.argmax(axis=1)
    rng = np.random.default_rng(seed)
    fold_of, n_dealt = np.empty(n_groups, dtype=np.int64), np.zeros(n_folds, dtype=np.int64)
    for of_class in np.unique(main):
        members = rng.permutation(np.flatnonzero(main == of_class))
        members = members[np.lexsort((size[members], counts[members, of_class] / size[members]))]
        rounds = rng.random((len(members) // n_folds, n_folds)).argsort(axis=1)  # each deals one group to every fold
        fewest = np.lexsort((rng.random(n_folds), n_dealt))[: len(members) % n_folds]
        fold_of[members] = np.concatenate([rounds.ravel(), fewest])
        n_dealt += np.bincount(fold_of[members], minlength=n_folds)
    return fold_of[index]


@dataclass(frozen=True)
class Probabilities:
    """Out-of-fold predictions of a 0/1 outcome."""

    logits: NDArray[np.float64]
    """(n,) log-odds that a row has the label, by the model that has not seen it."""
    deviance: NDArray[np.float64]
    """(n,) -2 log-likelihood of each row's outcome under that model, in nats."""
    null_deviance: NDArray[np.float64]
    """(n,) the same under the share of the label among the rows that model was fitted on."""
    noise: float
    """Estimated share of chance in what the folds' models weigh: 0 where all agree, about 1 where nothing is learned.

    The rows of fold u weigh on the model that is tested on fold v, and the other way round. Of that part of the models
    that is chance, every pair of folds is thus counted twice, and the mean of the folds' areas has 1 + noise times the
    variance that it would have if the folds were independent: twice at chance, where intervals would else hold the
    truth in 83 of 100 cases. Two models of F folds share F - 2 of the F - 1 folds they are fitted on, so the mean
    correlation of their log-odds over all rows is 1 - noise / (F - 1), which is solved for noise. It is held within
    [0, 2], and is 1 where a model is constant.
    """


def predict_label(
    features: NDArray[np.floating], positive: NDArray[np.bool_], folds: NDArray[np.int64]
) -> Probabilities:
    """Predicts a label by L2 logistic regression, each fold by a model of the other folds.

    Args:
        features: (n, F), standardised by the mean and standard deviation of the rows that are fitted on; a feature that
            is constant there is left at 0.
        positive: (n,) which rows have the label.
        folds: (n,) fold of each row.
    Returns: where the other folds have one class only, the log-odds of its share with half a row added to either
        class: no feature matters.
    Cost: as many fits as folds, O(n F) per iteration.
    """
    from sklearn.linear_model import LogisticRegression

    logits, null = np.empty(len(positive)), np.empty(len(positive))
    everywhere = []  # log-odds of all rows by each model
    for fold in np.unique(folds):
        held_out = folds == fold
        fitted_on = positive[~held_out]
        share = (fitted_on.sum() + 0.5) / (fitted_on.size + 1)  # never 0 or 1, where a deviance would be infinite
        null[held_out] = np.log(share / (1 - share))
        if fitted_on.all() or not fitted_on.any():
            everywhere.append(np.full(len(positive), null[held_out][0]))
        else:
            scaled = _standardised(features, held_out)
            model = LogisticRegression(C=LOGISTIC_C, max_iter=_MAX_ITERATIONS).fit(scaled[~held_out], fitted_on)
            everywhere.append(model.decision_function(scaled))
        logits[held_out] = everywhere[-1][held_out]
    return Probabilities(logits, _deviance(logits, positive), _deviance(null, positive), _noise(np.array(everywhere)))


def predict_class(
    features: NDArray[np.floating], classes: NDArray[np.int64], folds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicts which of several classes a row is of by multinomial L2 logistic regression, as `predict_label` does.

    Returns: ((n,) predicted class, (n,) most frequent class among the rows that model was fitted on; of several, the
        lowest).
    """
    from sklearn.linear_model import LogisticRegression

    predicted, majority = np.empty_like(classes), np.empty_like(classes)
    for fold in np.unique(folds):
        held_out = folds == fold
        fitted_on = classes[~held_out]
        majority[held_out] = np.bincount(fitted_on).argmax()
        if np.ptp(fitted_on) == 0:
            predicted[held_out] = majority[held_out]
            continue
        scaled = _standardised(features, held_out)
        model = LogisticRegression(C=LOGISTIC_C, max_iter=_MAX_ITERATIONS).fit(scaled[~held_out], fitted_on)
        predicted[held_out] = model.predict(scaled[held_out])
    return predicted, majority


@dataclass(frozen=True)
class Residuals:
    """Squared errors of out-of-fold predictions of K numbers per row."""

    model: NDArray[np.float64]
    """(n, K) of the model that has not seen the row."""
    mean: NDArray[np.float64]
    """(n, K) of the mean of the rows that model was fitted on."""


def predict_numbers(
    features: NDArray[np.floating], targets: NDArray[np.floating], folds: NDArray[np.int64]
) -> Residuals:
    """Predicts K numbers by ridge regression with a free intercept, each fold by a model of the other folds.

    Args:
        features: (n, F), as they are: not standardised.
        targets: (n, K).
        folds: (n,) fold of each row.
    Cost: O(n F^2 + F^3) per fold.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    model, mean = np.empty(y.shape), np.empty(y.shape)
    for fold in np.unique(folds):
        held_out = folds == fold
        x_mean, y_mean = x[~held_out].mean(axis=0), y[~held_out].mean(axis=0)
        centred = x[~held_out] - x_mean
        penalised = centred.T @ centred + RIDGE_ALPHA * np.eye(x.shape[1])  # (F, F), never singular
        weights = np.linalg.solve(penalised, centred.T @ (y[~held_out] - y_mean))  # (F, K)
        off_mean = y[held_out] - y_mean
        model[held_out] = (off_mean - (x[held_out] - x_mean) @ weights) ** 2
        mean[held_out] = off_mean**2
    return Residuals(model, mean)


def shuffled_labels(
    positive: NDArray[np.bool_], groups: Sequence[Any] | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Shuffles a label over rows; with groups, so that rows of one group stay as alike as they are.

    With groups, every group is given the labels of another, drawn without replacement, in random order and repeated or
    cut to its size; so where sizes differ the number of rows with the label may, too.
    """
    if groups is None:
        return rng.permutation(positive)
    index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    result = np.empty_like(positive)
    for rows, other in zip(members, rng.permutation(len(members)), strict=True):
        result[rows] = np.resize(rng.permutation(positive[members[other]]), len(rows))
    return result


def _standardised(features: NDArray[np.floating], held_out: NDArray[np.bool_]) -> NDArray[np.float64]:
    """All rows by mean and standard deviation of those that are not held out."""
    x = np.asarray(features, dtype=np.float64)
    mean, deviation = x[~held_out].mean(axis=0), x[~held_out].std(axis=0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12 * np.abs(mean))
    return np.asarray((x - mean) * scale, dtype=np.float64)


def _noise(logits: NDArray[np.float64]) -> float:
    """`Probabilities.noise` of (folds, n) log-odds of all rows by the model of each fold."""
    n_folds = len(logits)
    if np.any(np.ptp(logits, axis=1) < 1e-12):
        return 1.0
    correlations = np.corrcoef(logits)
    mean = (correlations.sum() - n_folds) / (n_folds * (n_folds - 1))
    return float(np.clip((n_folds - 1) * (1 - mean), 0.0, 2.0))


def _deviance(logits: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(2 * np.logaddexp(0, np.where(positive, -logits, logits)), dtype=np.float64)
