"""Whether a basis is grounded in what the model can do, and how compact it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..basis import SkillBasis
from ..errors import CorpusError, UsageError
from ..statistics import Difference, Estimate, holm
from ..statistics.auc import Auc, auc, auc_difference
from .crossfit import Probabilities, predict_label
from .taxonomy import CrossValidation, explained

SHARES = (0.5, 0.8, 0.9)
"""Shares of the variance for which the number of directions is given."""
_COMPARED = (
    ("scores", "length"),
    ("scores", "labels"),
    ("scores + length", "length"),
    ("scores + length + labels", "length + labels"),
)


@dataclass(frozen=True)
class Predictor:
    """How well correctness is predicted from one set of features."""

    name: str
    """Parts joined by ` + `: `scores` (K projections), `length` (log of the characters of prompt and of response),
    `labels` (0/1)."""
    n_features: int
    auc: Auc
    """Cross-validated area: a right answer's prediction above a wrong one's."""
    deviance_r2: Estimate
    """Cross-validated McFadden R^2: 1 - deviance / deviance of the share of right answers."""


@dataclass(frozen=True)
class Comparison:
    """What one set of features tells beyond another."""

    a: str
    b: str
    difference: Difference
    """Area of a minus area of b, on the same rows and folds, clustered by group."""
    p_holm: float
    """Corrected over the comparisons made."""


@dataclass(frozen=True)
class Grounding:
    """Whether a model's answers are right, predicted from where they lie in the basis."""

    n_rows: int
    n_correct: int
    n_groups: int | None
    """Problems; None where rows were taken as independent."""
    predictors: list[Predictor]
    comparisons: list[Comparison]


def ground(
    scores: NDArray[np.floating],
    correct: NDArray[np.bool_],
    lengths: NDArray[np.floating],
    labels: NDArray[np.bool_] | None = None,
    validation: CrossValidation | None = None,
) -> Grounding:
    """Predicts whether answers are right from their scores, from length, from human labels, and from these together.

    Args:
        scores: (n, K) projections of the rows that hold the answers.
        correct: (n,) whether each is right.
        lengths: (n, 2) characters of prompt and response; log(1 + characters) enters.
        labels: (n, L) 0/1 of the human labels; None where there are none, and then nothing is compared with them.
        validation: groups (problems), folds and seed; by default rows are independent.
    Returns: cross-validated areas of L2 logistic regression as of `taxonomy.map_labels`, all in the same folds, and
        their paired differences. A basis is grounded, by this measure, where scores tell more than length, and more
        than length and labels when added to them. Between problems scores may tell by difficulty alone; labels of
        level and subject are the control for that.
    Raises: CorpusError: (nearly) all answers are right, or wrong. UsageError: lengths are negative, or shapes differ.
    Cost: six cross-validated fits.
    """
    validation = validation or CrossValidation()
    n = len(correct)
    if scores.shape[0] != n or lengths.shape != (n, 2) or (labels is not None and len(labels) != n):
        raise UsageError(
            f"scores, lengths and labels must be of the same {n} rows as correct, lengths with two columns"
        )
    if np.any(lengths < 0):
        raise UsageError("lengths holds a negative number; give characters, 0 or more")
    obstacle = validation.obstacle(correct)
    if obstacle is not None:
        what = obstacle.replace("carry it", "are right").replace("with and without", "right and wrong")
        raise CorpusError(
            f"whether answers are right cannot be predicted: {what.replace('rows with it', 'right answers')}; "
            "give answers of which some are right and some wrong"
        )
    parts: dict[str, NDArray[np.floating]] = {"scores": scores, "length": np.log1p(lengths)}
    if labels is not None:
        parts["labels"] = labels.astype(np.float64)
    wanted = dict.fromkeys(
        ["scores", *(name for name in parts if name != "scores"), *(n for c in _COMPARED for n in c)]
    )
    names = [name for name in wanted if set(name.split(" + ")) <= parts.keys()]
    folds = validation.folds(correct)
    features = {name: np.hstack([parts[part] for part in name.split(" + ")]) for name in names}
    predicted = {name: predict_label(features[name], correct, folds) for name in names}
    predictors = [
        _predictor(name, features[name].shape[1], predicted[name], correct, folds, validation) for name in names
    ]
    return Grounding(
        n_rows=n,
        n_correct=int(correct.sum()),
        n_groups=None if validation.groups is None else len(set(validation.groups)),
        predictors=predictors,
        comparisons=_comparisons(predicted, correct, folds, validation),
    )


def _predictor(
    name: str,
    n_features: int,
    predicted: Probabilities,
    correct: NDArray[np.bool_],
    folds: NDArray[np.int64],
    validation: CrossValidation,
) -> Predictor:
    groups = validation.groups
    return Predictor(
        name=name,
        n_features=n_features,
        auc=auc(predicted.logits, correct, clusters=groups, folds=folds, noise=predicted.noise),
        deviance_r2=explained(predicted.deviance, predicted.null_deviance, groups),
    )


def _comparisons(
    predicted: Mapping[str, Probabilities],
    correct: NDArray[np.bool_],
    folds: NDArray[np.int64],
    validation: CrossValidation,
) -> list[Comparison]:
    found = []
    for a, b in _COMPARED:
        if a not in predicted or b not in predicted:
            continue
        difference = auc_difference(
            predicted[a].logits,
            predicted[b].logits,
            correct,
            clusters=validation.groups,
            folds=folds,
            noise=max(predicted[a].noise, predicted[b].noise),
        )
        found.append(Comparison(a, b, difference, difference.p_value))
    corrected = holm([comparison.p_holm for comparison in found])
    return [dataclasses.replace(c, p_holm=float(p)) for c, p in zip(found, corrected, strict=True)]


# --- compactness ---


@dataclass(frozen=True)
class Compactness:
    """How few directions hold how much of the variance; undefined figures are NaN or None."""

    cumulative: list[float]
    """K: share of the total variance in the span of the first k directions, k = 1 to K."""
    measured_on: str
    """`fit`: the spectrum that the basis was found with. `scores`: the scored rows, about the basis' mean."""
    needed: dict[str, int | None]
    """By share (`50 %`): the fewest directions, in their order, that hold it; None where all K hold less."""
    participation_known: float
    """(sum l)^2 / sum l^2 over the K variances that are known: at most K, and at most that of the whole spectrum."""
    participation_low: float
    """Least and largest (sum l)^2 / sum l^2 of the whole spectrum that the K largest variances and the total allow:
    none of the others is larger than the K-th, and none is negative. NaN where the spectrum is unknown."""
    participation_high: float


def compactness(
    basis: SkillBasis, scores: NDArray[np.floating] | None = None, norm: NDArray[np.floating] | None = None
) -> Compactness:
    """Cumulative explained variance against k, and participation ratios.

    Args:
        basis: where it is orthogonal and knows its `total_variance`, its own spectrum is used.
        scores: (n, K), used otherwise: of n rows, with
        norm: (n,) |x - mean|. The share of k directions is sum |P_k (x - mean)|^2 / sum |x - mean|^2 over the rows, P_k
            the projection on the span of the first k; so directions that are not orthogonal count nothing twice.
    Raises: UsageError: neither the basis nor scores tell the total variance.
    Source: participation ratio: Gao et al. 2017 (bioRxiv 214262); bounds: sums of squares under these constraints.
    """
    total = basis.config.get("total_variance")
    variances = np.asarray(basis.explained_variance, dtype=np.float64)
    ratio = float(variances.sum() ** 2 / (variances**2).sum()) if variances.any() else float("nan")
    low = high = float("nan")
    if total and basis.config.get("orthogonal", True):
        cumulative, measured_on = np.cumsum(variances) / total, "fit"
        rest = max(float(total) - float(variances.sum()), 0.0)
        rank = min(basis.directions[0].size, int(basis.config["rows"]) - 1)
        n_others = max(rank - len(variances), 0)
        known = float((variances**2).sum())
        low = float(total) ** 2 / (known + rest * float(variances.min()))
        high = float(total) ** 2 / (known + (rest**2 / n_others if n_others else 0.0))
    elif scores is not None and norm is not None and np.any(norm):
        inside = orthogonal_coordinates(basis, scores) ** 2
        cumulative, measured_on = np.cumsum(inside.sum(axis=0)) / float((np.asarray(norm) ** 2).sum()), "scores"
    else:
        raise UsageError(
            "the basis does not know the total variance of its corpus, or its directions are not orthogonal; "
            "give scores of a corpus too"
        )
    needed = {f"{share:.0%}".replace("%", " %"): _first_reaching(cumulative, share) for share in SHARES}
    return Compactness(cumulative.tolist(), measured_on, needed, ratio, low, high)


def orthogonal_coordinates(basis: SkillBasis, scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores along directions made orthogonal one after the other (Gram-Schmidt, in the order of the basis).

    Args:
        scores: (n, K) projections (x - mean)·v_k.
    Returns: (n, K); the sum of squares of the first k is |P_k (x - mean)|^2, also for directions that are not
        orthogonal. A direction within the span of those before it gets 0. Of an orthogonal basis these are the scores.
    Cost: O(n K^2).
    """
    flat = basis.directions.reshape(basis.n_components, -1).astype(np.float64)
    gram = flat @ flat.T
    values = np.asarray(scores, dtype=np.float64)
    lower, result = np.zeros_like(gram), np.zeros_like(values)  # gram = lower lower'
    for k in range(len(gram)):
        left = gram[k, k] - lower[k, :k] @ lower[k, :k]  # squared length of what is new in direction k
        if left <= 1e-6 * gram[k, k]:  # float32 directions: less is rounding
            continue
        lower[k, k] = np.sqrt(left)
        lower[k + 1 :, k] = (gram[k + 1 :, k] - lower[k + 1 :, :k] @ lower[k, :k]) / lower[k, k]
        result[:, k] = (values[:, k] - result[:, :k] @ lower[k, :k]) / lower[k, k]
    return result


def _first_reaching(cumulative: NDArray[np.float64], share: float) -> int | None:
    reached = np.flatnonzero(cumulative >= share - 1e-12)
    return int(reached[0]) + 1 if len(reached) else None
