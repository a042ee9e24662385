"""How human labels and the directions of a basis tell of one another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError
from ..statistics import Difference, Estimate, holm, paired_difference, rate_estimate, relative_change
from ..statistics.auc import Auc, auc
from .crossfit import Probabilities, make_folds, predict_class, predict_label, predict_numbers, shuffled_labels
from .human_labels import LabelColumn, together

MIN_ROWS = 10
"""A label is looked at where at least this many rows carry it and as many do not."""


@dataclass(frozen=True)
class CrossValidation:
    """How rows are held out."""

    groups: Sequence[Any] | None = None
    """(n,) rows of one group (a problem) are held out together and count as one unit; None: rows are independent."""
    n_folds: int = 5
    seed: int = 0
    """Of the folds and of shuffled labels."""
    min_rows: int = MIN_ROWS

    def of(self, rows: NDArray[np.intp]) -> CrossValidation:
        """The same for some of the rows."""
        groups = None if self.groups is None else [self.groups[row] for row in rows.tolist()]
        return dataclasses.replace(self, groups=groups)

    def folds(self, classes: NDArray[Any]) -> NDArray[np.int64]:
        return make_folds(classes, self.groups, self.n_folds, self.seed)

    def reaches(self, known: NDArray[np.bool_]) -> bool:
        """Whether the rows marked are enough for a row or group in every fold."""
        rows = np.flatnonzero(known)
        units = rows.size if self.groups is None else len({self.groups[row] for row in rows.tolist()})
        return units >= self.n_folds

    def obstacle(self, positive: NDArray[np.bool_]) -> str | None:
        """Why nothing can be learned of a label, or None."""
        n, n_rows = positive.size, int(positive.sum())
        if n_rows in (0, n):
            return f"{'all' if n_rows else 'none'} of {n:,} rows carry it: there is nothing to compare with"
        if min(n_rows, n - n_rows) < self.min_rows:
            return f"{n_rows:,} of {n:,} rows carry it; at least {self.min_rows} with and without are needed"
        if self.groups is not None:
            counts = [
                len({g for g, p in zip(self.groups, positive, strict=True) if p == side}) for side in (True, False)
            ]
            if min(counts) < self.n_folds:
                return (
                    f"{counts[0]:,} groups have rows with it and {counts[1]:,} rows without; at least {self.n_folds} "
                    "of either, one per fold, are needed"
                )
        return None


@dataclass(frozen=True)
class Shuffled:
    """What the joint area is when the labels are shuffled: the control of the whole way from folds to areas."""

    mean: float
    """Mean area; near .5, or folds and groups leak."""
    highest: float
    p_value: float
    """(1 + shuffles with an area at least as high) / (1 + shuffles): one-sided, never 0."""
    n: int
    """Shuffles that left a fold with both classes."""


@dataclass(frozen=True)
class LabelResult:
    """What the directions say of one label."""

    column: str
    label: str
    n_rows: int
    """Rows that carry it."""
    n_without: int
    """Rows that have a value in its column and do not carry it."""
    directions: list[Auc]
    """K areas: rows with the label against rows without, by their projection on each direction; below .5 the label lies
    towards the negative end. Nothing is fitted, so nothing is held out."""
    p_holm: list[float]
    """K p-values, corrected over all labels and directions."""
    joint: Auc
    """Of cross-validated predictions from all K projections together."""
    joint_p_holm: float
    """Corrected over all labels."""
    deviance_r2: Estimate
    """Cross-validated McFadden R^2 of that prediction: 1 - deviance / deviance of the label's share."""
    shuffled: Shuffled | None
    """None where it was not asked for, or could not be had."""


@dataclass(frozen=True)
class Accuracy:
    """How often a row's label is told from its K projections, where every row carries one label."""

    model: Estimate
    """Share of held-out rows whose label is predicted by multinomial logistic regression."""
    majority: Estimate
    """Share for which the most frequent label of the rows that were fitted on is right."""
    difference: Difference
    n_labels: int


@dataclass(frozen=True)
class ColumnResult:
    """What the basis says of one column of labels, and the column of the basis."""

    column: str
    n_rows: int
    """Rows that have a value in it."""
    n_labels: int
    """Labels that were looked at."""
    mean_joint_auc: Estimate
    """Plain mean of the labels' joint areas. Labels share rows, so the ends of the interval are the means of the ends
    of theirs: right if their errors go together, and too far apart otherwise."""
    deviance_r2: Estimate
    """1 - sum of deviances over labels and rows / sum of those of the labels' shares."""
    accuracy: Accuracy | None
    """None where rows carry several labels, or there are no two with rows enough."""
    basis_r2: BasisShare


@dataclass(frozen=True)
class BasisShare:
    """How much of the basis labels explain: cross-validated R^2 of the scores given 0/1 labels, by ridge regression."""

    directions: list[Estimate]
    """K, one for each direction: 1 - squared error / squared distance from the mean of the rows that were fitted on."""
    total: Estimate
    """The same of all directions together, so weighted by their variances."""
    n_rows: int
    n_labels: int


@dataclass(frozen=True)
class Taxonomy:
    """Labels by directions, and what each side explains of the other."""

    labels: list[LabelResult]
    columns: list[ColumnResult]
    all_columns: BasisShare | None
    """The basis explained by the labels of all columns at once, on the rows that have a value in each; None where there
    is one column only, or fewer such rows or groups than folds."""
    left_out: list[dict[str, str]]
    """`column`, `label` and `reason`."""
    n_tests: int
    """Pairs of label and direction over which p-values are corrected."""
    n_groups: int | None
    """Groups among all rows."""


def map_labels(
    scores: NDArray[np.floating],
    columns: Sequence[LabelColumn],
    validation: CrossValidation | None = None,
    *,
    n_shuffles: int = 0,
) -> Taxonomy:
    """Relates labels to directions, both ways.

    Args:
        scores: (n, K) projections (x - mean)·v_k.
        columns: of the same n rows. Rows without a value in a column take no part in what is said of it.
        validation: groups, folds, seed and least rows; by default rows are independent.
        n_shuffles: how often each label is shuffled for the control of its joint area (0: not).
    Returns: areas of every label from every direction and from all together, with intervals; see the fields. All joint
        figures are cross-validated: L2 logistic regression (C = 1) on features standardised by the rows fitted on, in
        folds that are stratified by the label and never split a group; areas are computed within each fold and
        averaged. Intervals are DeLong's, clustered by group; those of R^2 are Fieller's for a ratio of means over rows,
        clustered by group. They hold for the models as fitted: what other training rows would do is not in them.
    Raises: CorpusError: no label can be looked at; the message says why.
    Cost: (folds x (1 + n_shuffles)) fits and K rankings of the rows per label.
    Source: McFadden 1974 for the R^2 of a likelihood; `statistics.auc` for the areas.
    """
    validation = validation or CrossValidation()
    results: list[LabelResult] = []
    predictions: dict[tuple[str, str], Probabilities] = {}
    left_out: list[dict[str, str]] = []
    for column in columns:
        left_out += [{"column": column.name, "label": k, "reason": v} for k, v in column.left_out.items()]
        rows = np.flatnonzero(column.known)
        held = validation.of(rows)
        for label in column.tested:
            positive = column.has[rows, column.labels.index(label)]
            reason = held.obstacle(positive)
            if reason is not None:
                left_out.append({"column": column.name, "label": label, "reason": reason})
                continue
            result, predicted = _label_result(scores[rows], positive, column.name, label, held, n_shuffles)
            results.append(result)
            predictions[column.name, label] = predicted
    if not results:
        raise CorpusError(
            "no label can be looked at: "
            + "; ".join(f"{e['column']} = {e['label']!r}: {e['reason']}" for e in left_out[:3])
            + (f"; and {len(left_out) - 3} more" if len(left_out) > 3 else "")
            + ("" if left_out else "the columns hold no labels")
            + "; name another --label-column, or score more rows"
        )
    results = _corrected(results)
    found = [_column_result(scores, column, results, predictions, validation) for column in columns]
    all_columns = None
    if len(columns) > 1:
        has, known = together(columns)
        all_columns = _basis_share(scores, has, known, validation) if validation.reaches(known) else None
    groups = validation.groups
    return Taxonomy(
        labels=results,
        columns=[column for column in found if column is not None],
        all_columns=all_columns,
        left_out=left_out,
        n_tests=len(results) * scores.shape[1],
        n_groups=None if groups is None else len(set(groups)),
    )


def explained(model: NDArray[np.float64], baseline: NDArray[np.float64], groups: Sequence[Any] | None) -> Estimate:
    """R^2 of losses: 1 - mean(model) / mean(baseline), with Fieller's interval for a ratio of paired means.

    Args:
        model: (n,) loss of each held-out row (squared error, deviance).
        baseline: (n,) its loss under the baseline.
        groups: (n,) labels of rows that are not independent.
    """
    change = relative_change(model, baseline, groups)
    return dataclasses.replace(change, mean=0.0 - change.mean, low=0.0 - change.high, high=0.0 - change.low)


def _label_result(
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
    column: str,
    label: str,
    validation: CrossValidation,
    n_shuffles: int,
) -> tuple[LabelResult, Probabilities]:
    groups = validation.groups
    folds = validation.folds(positive)
    predicted = predict_label(scores, positive, folds)
    joint = auc(predicted.logits, positive, clusters=groups, folds=folds, noise=predicted.noise)
    singles = [auc(scores[:, k], positive, clusters=groups) for k in range(scores.shape[1])]
    result = LabelResult(
        column=column,
        label=label,
        n_rows=int(positive.sum()),
        n_without=int((~positive).sum()),
        directions=singles,
        p_holm=[],
        joint=joint,
        joint_p_holm=math.nan,
        deviance_r2=explained(predicted.deviance, predicted.null_deviance, groups),
        shuffled=_shuffled(scores, positive, joint.auc, validation, n_shuffles) if n_shuffles else None,
    )
    return result, predicted


def _shuffled(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], observed: float, validation: CrossValidation, n: int
) -> Shuffled | None:
    """None where no shuffle left a fold with both classes."""
    rng = np.random.default_rng(validation.seed)
    areas: list[float] = []
    for _ in range(n):
        labels = shuffled_labels(positive, validation.groups, rng)
        folds = validation.folds(labels)
        held_out = [labels[folds == fold] for fold in range(validation.n_folds)]
        if any(part.any() and not part.all() for part in held_out):
            areas.append(auc(predict_label(scores, labels, folds).logits, labels, folds=folds).auc)
    if not areas:
        return None
    reached = sum(area >= observed for area in areas)
    return Shuffled(float(np.mean(areas)), max(areas), (1 + reached) / (1 + len(areas)), len(areas))


def _corrected(results: list[LabelResult]) -> list[LabelResult]:
    """The same with p-values corrected over all pairs of label and direction, and joint ones over all labels."""
    p_values = np.array([[single.p_value for single in result.directions] for result in results])  # (labels, K)
    singles = holm(p_values.ravel()).reshape(p_values.shape)
    joint = holm([result.joint.p_value for result in results])
    return [
        dataclasses.replace(result, p_holm=of_single.tolist(), joint_p_holm=float(of_joint))
        for result, of_single, of_joint in zip(results, singles, joint, strict=True)
    ]


def _column_result(
    scores: NDArray[np.floating],
    column: LabelColumn,
    results: Sequence[LabelResult],
    predictions: dict[tuple[str, str], Probabilities],
    validation: CrossValidation,
) -> ColumnResult | None:
    mine = [result for result in results if result.column == column.name]
    if not mine:
        return None
    rows = np.flatnonzero(column.known)
    held = validation.of(rows)
    areas = np.array([[r.joint.auc, r.joint.low, r.joint.high, r.joint.se] for r in mine])
    mean, low, high, se = areas.mean(axis=0).tolist()
    losses = [predictions[column.name, result.label] for result in mine]
    return ColumnResult(
        column=column.name,
        n_rows=len(rows),
        n_labels=len(mine),
        mean_joint_auc=Estimate(mean, low, high, se, len(mine)),
        deviance_r2=explained(
            np.sum([loss.deviance for loss in losses], axis=0),
            np.sum([loss.null_deviance for loss in losses], axis=0),
            held.groups,
        ),
        accuracy=_accuracy(scores, column, [result.label for result in mine], validation),
        basis_r2=_basis_share(scores, column.has, column.known, validation),
    )


def _accuracy(
    scores: NDArray[np.floating], column: LabelColumn, labels: Sequence[str], validation: CrossValidation
) -> Accuracy | None:
    """Of the rows that carry one of the labels that were looked at, or the opposite of one."""
    named = [*labels, *([column.opposite] if column.opposite else [])]
    chosen = np.array([column.labels.index(label) for label in named])
    if len(chosen) < 2 or not column.single:
        return None
    rows = np.flatnonzero(column.has[:, chosen].any(axis=1))
    classes = column.has[np.ix_(rows, chosen)].argmax(axis=1)
    held = validation.of(rows)
    predicted, majority = predict_class(scores[rows], classes, held.folds(classes))
    right, by_majority = (predicted == classes).astype(float), (majority == classes).astype(float)
    return Accuracy(
        model=rate_estimate(right, held.groups),
        majority=rate_estimate(by_majority, held.groups),
        difference=paired_difference(right, by_majority, held.groups),
        n_labels=len(chosen),
    )


def _basis_share(
    scores: NDArray[np.floating], has: NDArray[np.bool_], known: NDArray[np.bool_], validation: CrossValidation
) -> BasisShare:
    rows = np.flatnonzero(known)
    held = validation.of(rows)
    folds = held.folds(np.zeros(len(rows)))
    losses = predict_numbers(has[rows].astype(np.float64), scores[rows], folds)
    return BasisShare(
        directions=[explained(losses.model[:, k], losses.mean[:, k], held.groups) for k in range(scores.shape[1])],
        total=explained(losses.model.sum(axis=1), losses.mean.sum(axis=1), held.groups),
        n_rows=len(rows),
        n_labels=has.shape[1],
    )
