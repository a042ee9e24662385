"""Take data along the directions where the model is now weakest (the representation error curriculum)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from ..corpus import SelectedRow
from ..errors import ArtifactError, UsageError
from .candidates import Candidates, RankBy, SelectionSettings, Sign
from .directions import along_directions
from .evidence import ValidationAnswers

_TOP = 1 / 3  # of the answers lie "along" a signed direction
_MARGIN = 1.0  # standard errors that the higher error must be above the overall one, to count
_ROUNDING = 1e-9  # what sums of shares differ by where nothing differs


@dataclass(frozen=True)
class Weakness:
    """How much more often the model is wrong along one signed direction."""

    direction: int
    sign: Sign
    error: float
    """Share of wrong answers in the third that lies farthest along the direction."""
    overall: float
    """Share of wrong answers among all."""
    se: float
    """Standard error of `error - overall` if the direction had nothing to do with errors; the problem is the unit."""
    excess: float
    """max(0, error - overall - se): what the direction's share of the budget is proportional to."""
    n: int
    """Answers in the third."""


def weaknesses(
    validation: ValidationAnswers, n_directions: int | None = None, *, rank_by: RankBy = "cosine"
) -> list[Weakness]:
    """Measures where along a basis a model's own answers are wrong more often than elsewhere.

    For each signed direction, the error rate of the third of the answers farthest along it, less the overall one, less
    one standard error. With 200 answers the third has 67 and the standard error is some 0.05, so that a direction on
    which errors do not depend passes one time in six, and then by little. Answers tied at the edge of the third count
    in parts.

    Args:
        validation: graded answers with scores. Where it names `problems`, answers to one problem count as one draw.
        n_directions: the first so many directions; None takes all.
        rank_by: what lies far along a direction; the same as for the rows that will be chosen.
    Returns: two records per direction, `+` and `-`, directions in order.
    Raises: UsageError: the answers have no scores, are to fewer than two problems, or there are no so many directions.
        ArtifactError: a score is not finite.
    """
    scores = validation.scores
    if scores is None:
        raise UsageError("weakness needs the model's answers scored along a basis; give --basis")
    known = scores.values.shape[1]
    n_directions = known if n_directions is None else n_directions
    if not 1 <= n_directions <= known:
        raise UsageError(f"n_directions must be from 1 to the {known} of the scores, not {n_directions}")
    broken = np.flatnonzero(~np.isfinite(scores.values).all(axis=1))
    if len(broken):
        raise ArtifactError(f"answer {scores.ids[broken[0]]!r} has a score that is not finite; answer and score again")
    wrong = 1.0 - validation.correct
    problems = validation.problems or scores.ids
    _, problem = np.unique(np.asarray(problems), return_inverse=True)
    if len(wrong) == 0 or problem.max() == 0:
        raise UsageError("weakness needs answers to at least two validation problems; raise their number")
    answers = Candidates(scores.ids, [()] * len(wrong), scores, settings=SelectionSettings(rank_by=rank_by))
    signed: list[tuple[int, Sign]] = [(k, sign) for k in range(n_directions) for sign in ("+", "-")]
    return [_weakness(k, sign, _membership(answers.ranking(k, sign)), wrong, problem) for k, sign in signed]


def _membership(ranking: np.ndarray) -> np.ndarray:
    """(m,) how far each answer belongs to the top third: 1, 0, or a part for those tied at its edge."""
    n_top = max(1, round(_TOP * len(ranking)))
    edge = np.partition(ranking, -n_top)[-n_top]
    above, tied = ranking > edge, ranking == edge
    return above + tied * ((n_top - above.sum()) / tied.sum())  # type: ignore[no-any-return]


def _weakness(direction: int, sign: Sign, inside: np.ndarray, wrong: np.ndarray, problem: np.ndarray) -> Weakness:
    """One record; the standard error is that of the score test, with sums over problems (cluster-robust)."""
    n_top, overall = inside.sum(), wrong.mean()
    error = float(inside @ wrong / n_top)
    pull = (inside / n_top - 1 / len(wrong)) * (wrong - overall)  # of each answer on the difference, were there none
    by_problem = np.bincount(problem, weights=pull)
    n_problems = len(by_problem)
    se = float(np.sqrt(n_problems / (n_problems - 1) * (by_problem**2).sum()))
    excess = error - float(overall) - _MARGIN * se
    excess = excess if excess > _ROUNDING else 0.0
    return Weakness(direction, sign, error, float(overall), se, excess, round(float(n_top)))


def weakest_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Fills the budget along the signed directions where the model's own answers are wrong more often than elsewhere.

    Shares of the budget are proportional to the excess error of `weaknesses`; within a direction rows are taken as by
    `directions`, the weakest direction first. If no direction has an excess, all of them share equally, both ways.
    Raises: UsageError: there are no scores, or no answers to validation problems, or these have no scores.
        ArtifactError: rows and answers were scored along different bases.
    """
    return weakness_round(candidates, budget, rng, ())


def needs_training(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """The curriculum in rounds trains between them, which a selection cannot. Raises: UsageError: always."""
    raise UsageError("weakness-rounds trains between its rounds: run it as an arm of a study; weakness takes one round")


def weakness_round(
    candidates: Candidates, budget: int, rng: np.random.Generator, taken_ids: Collection[str]
) -> list[SelectedRow]:
    """One round of the curriculum: measures where the model is weak now, and takes rows there that were not taken yet.

    For rounds, split the budget. Each round is: this function, with `validation` of the model as it is now; training
    on what it gives (or on all taken so far); answers of the new model to the same validation problems; and the next
    call, whose candidates have these answers, whose budget is the next part, and whose `taken_ids` are the ids of all
    rounds before. The basis and the scores of the rows stay those of the base model, so that a direction means the same
    in every round; so answers of a trained model are scored by the base model reading them.

    Args:
        budget: rows of this round.
        taken_ids: ids of rows taken before; they are left out, and shares and ranks are among the others.
    Returns: `budget` rows, ranked from 1 within the round.
    Raises: as `weakest_rows`; UsageError: fewer rows are left than the budget.
    """
    validation = candidates.known_validation
    found = weaknesses(validation, rank_by=candidates.settings.rank_by)
    assert validation.scores is not None
    _check_same_basis(candidates, validation)
    left = _without(candidates, taken_ids)
    if budget > len(left.ids):
        raise UsageError(f"the round wants {budget} rows, but {len(left.ids)} are left; lower the budget or the rounds")
    weak = sorted((w for w in found if w.excess > 0), key=lambda w: -w.excess)
    settings = replace(
        left.settings,
        directions=tuple((w.direction, w.sign) for w in weak or found),
        weights=tuple(w.excess for w in weak),
    )
    rows = along_directions(left.with_settings(settings), budget, rng)
    if not weak:
        return [replace(row, reason=f"{row.reason}, the model being nowhere weaker") for row in rows]
    reasons = {
        (w.direction, w.sign): f"where {w.error:.0%} of answers are wrong against {w.overall:.0%} of all" for w in weak
    }
    return [replace(row, reason=f"{row.reason}, {reasons[row.direction, row.sign]}") for row in rows]  # type: ignore[index]


def _check_same_basis(candidates: Candidates, validation: ValidationAnswers) -> None:
    assert validation.scores is not None
    rows, answers = candidates.known_scores, validation.scores
    if rows.values.shape[1] != answers.values.shape[1]:
        raise ArtifactError(
            f"the rows are scored along {rows.values.shape[1]} directions and the answers along "
            f"{answers.values.shape[1]}; score both with one basis"
        )
    if None not in (prints := (rows.basis_fingerprint, answers.basis_fingerprint)) and len(set(prints)) > 1:
        raise ArtifactError(f"rows and answers were scored along different bases ({prints[0]} and {prints[1]})")


def _without(candidates: Candidates, taken_ids: Collection[str]) -> Candidates:
    """What `along_directions` reads, of the candidates that are not taken."""
    taken = set(taken_ids)
    ids = [row_id for row_id in candidates.ids if row_id not in taken]
    if len(ids) == len(candidates.ids):
        return candidates
    return Candidates(ids, [()] * len(ids), candidates.known_scores.aligned(ids), settings=candidates.settings)
