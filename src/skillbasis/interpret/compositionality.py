"""Whether what two skills do to the scores adds up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics import Estimate, relative_change
from .crossfit import predict_numbers
from .human_labels import LabelColumn, together
from .taxonomy import CrossValidation, explained

MAX_PAIRS = 500
"""Only this many pairs of labels, the most frequent, get a term of their own."""


@dataclass(frozen=True)
class Compositionality:
    """How far rows that carry several labels lie where the sum of the labels' effects would put them."""

    index: Estimate
    """additive / interaction: of what labels and their pairs explain, the share that labels explain one by one. 1 where
    effects add up, 0 where only the pair matters (XOR). NaN with a reason where pairs explain nothing to divide by."""
    additive: Estimate
    """Cross-validated R^2 of the K scores, all directions together, by a sum of effects of single labels."""
    interaction: Estimate
    """The same with a term for every pair besides."""
    gain: Estimate
    """interaction - additive, in R^2; below 0 where the pairs' terms only fit noise."""
    n_rows: int
    """Rows that carry at least two labels: the held-out rows that are judged."""
    n_labels: int
    n_pairs: int
    reason: str | None = None
    """Why nothing could be measured; the figures are then NaN."""


def compositionality(
    scores: NDArray[np.floating], columns: Sequence[LabelColumn], validation: CrossValidation | None = None
) -> Compositionality:
    """Holds an additive model of labels against one with pairwise interactions, on held-out rows of two labels or more.

    Two ridge regressions (penalty 1, free intercept) predict the K scores of a row: from its labels, score = mean + sum
    of effects of the labels it carries; and from labels and pairs of labels it carries together. Both are fitted on all
    rows of the other folds; squared errors of held-out rows with at least two labels, summed over directions, are taken
    relative to those of the mean of the rows fitted on. Labels may come from one column of several labels per row, or
    from several columns; with two columns of one label each this is the two-way decomposition of cell means.

    Limits: this is about the labels given, read off the scores, on combinations that occur in the data; it says nothing
    of combinations never seen, nor of terms of three labels. It is linear in the scores, and large where a direction of
    large variance is. Pairs that occur in fewer than `validation.min_rows` rows have no term of their own, nor have
    those beyond the 500 most frequent. Labels that imply one another make no pairs to tell apart: effects are then
    divided between them at will and the index is near 1 by construction.

    Args:
        scores: (n, K) projections.
        columns: labels of the same rows. Rows with no value in one of them are left out.
        validation: groups, folds, seed and least rows; by default rows are independent.
    Returns: figures with intervals over rows, clustered by group (Fieller's, as of R^2); NaN and a reason where no two
        labels occur together often enough.
    Cost: two ridge regressions per fold, O(n (L + pairs)^2).
    """
    validation = validation or CrossValidation()
    has, known = together(columns)
    rows = np.flatnonzero(known)
    labels = has[rows].astype(np.float64)
    pairs = _pairs(labels, validation.min_rows)
    judged = labels.sum(axis=1) >= 2
    if not pairs or not validation.reaches(known):
        n_rows, n_labels = int(judged.sum()), labels.shape[1]
        reason = (
            f"no two labels occur together in {validation.min_rows} rows or more"
            if not pairs
            else f"only {len(rows):,} rows have a value in every column"
        )
        none = _undefined(n_rows, reason)
        return Compositionality(none, none, none, none, n_rows, n_labels, 0, reason)
    held = validation.of(rows)
    folds = held.folds(np.zeros(len(rows)))
    crossed = np.column_stack([labels[:, a] * labels[:, b] for a, b in pairs])
    single = predict_numbers(labels, scores[rows], folds)
    paired = predict_numbers(np.hstack([labels, crossed]), scores[rows], folds)
    by_sum, by_pair, by_mean = (
        losses.sum(axis=1)[judged] for losses in (single.model, paired.model, single.mean)
    )  # (judged rows,)
    groups = held.of(np.flatnonzero(judged)).groups
    ratio = relative_change(by_mean - by_sum, by_mean - by_pair, groups)  # of what each explains, minus 1
    index = dataclasses.replace(ratio, mean=1 + ratio.mean, low=1 + ratio.low, high=1 + ratio.high)
    if float((by_mean - by_pair).mean()) <= 0:
        index = _undefined(len(by_mean), "labels and pairs explain nothing of held-out rows: there is no share of it")
    elif ratio.reason is not None:
        reason = "what labels and pairs explain is not clearly above 0: the index has no bounded interval"
        index = dataclasses.replace(index, reason=reason)
    gain = relative_change(by_sum - by_pair + by_mean, by_mean, groups)
    return Compositionality(
        index=index,
        additive=explained(by_sum, by_mean, groups),
        interaction=explained(by_pair, by_mean, groups),
        gain=gain,
        n_rows=int(judged.sum()),
        n_labels=labels.shape[1],
        n_pairs=len(pairs),
    )


def _pairs(labels: NDArray[np.float64], min_rows: int) -> list[tuple[int, int]]:
    """Pairs of labels that occur together in at least `min_rows` rows, the most frequent first."""
    counts = np.triu(labels.T @ labels, k=1)
    a, b = np.nonzero(counts >= min_rows)
    order = np.argsort(-counts[a, b], kind="stable")[:MAX_PAIRS]
    return [(int(a[i]), int(b[i])) for i in order]


def _undefined(n: int, reason: str) -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), float("nan"), n, reason)
