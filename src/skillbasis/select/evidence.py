"""What a model shows of itself for a selection: its own graded answers, and vectors of what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..basis import Scores
from ..errors import ArtifactError, UsageError


@dataclass(frozen=True)
class OwnAnswers:
    """A model's graded answers to the problems of rows."""

    ids: list[str]
    n_answers: np.ndarray
    """(n,) int64 answers sampled; 0 where the row has no reference answer."""
    n_correct: np.ndarray
    """(n,) int64."""
    correct: list[list[str]]
    """The different correct answers of each row, in the order they were sampled."""
    n_tokens: list[list[int]] | None = None
    """Tokens of the row's prompt with each of these answers, as training reads them; None where not counted."""

    @property
    def accuracy(self) -> np.ndarray:
        """(n,) share of correct answers; NaN where there is none."""
        share = np.full(len(self.ids), np.nan)
        np.divide(self.n_correct, self.n_answers, out=share, where=self.n_answers > 0)
        return share

    def aligned(self, ids: Sequence[str]) -> OwnAnswers:
        """The same in the order of `ids`. Raises: ArtifactError: a row is missing."""
        if self.ids == list(ids):
            return self
        order = _order(self.ids, ids, "answers of the model")
        tokens = None if self.n_tokens is None else [self.n_tokens[i] for i in order]
        correct = [self.correct[i] for i in order]
        return OwnAnswers(list(ids), self.n_answers[order], self.n_correct[order], correct, tokens)

    def tokens_of(self, row: int, answer: str) -> int:
        """Tokens of a row's prompt with one of its correct answers. Raises: UsageError: they are not counted."""
        if self.n_tokens is None:
            raise UsageError(
                "a budget of tokens needs those of the model's own answers; measure them anew with --model"
            )
        return self.n_tokens[row][self.correct[row].index(answer)]


@dataclass(frozen=True)
class ValidationAnswers:
    """A model's graded answers to validation problems, read along the same basis as the rows."""

    correct: np.ndarray
    """(m,) bool."""
    groups: list[str | None]
    """(m,) human label of each answer's problem, where the task has them."""
    scores: Scores | None = None
    """Of each answer behind its problem, m rows; None where no basis is at hand."""
    problems: list[str] | None = None
    """(m,) id of each answer's problem: answers to one problem are not independent. None takes all as different."""


@dataclass(frozen=True)
class QueryVectors:
    """Vectors of the rows and of a query set in one space."""

    ids: list[str]
    rows: np.ndarray
    """(n, d) float32."""
    query: np.ndarray
    """(q, d) float32."""

    def aligned(self, ids: Sequence[str]) -> QueryVectors:
        """The same in the order of `ids`. Raises: ArtifactError: a row is missing."""
        if self.ids == list(ids):
            return self
        return QueryVectors(list(ids), self.rows[_order(self.ids, ids, "vector")], self.query)


def _order(known: Sequence[str], ids: Sequence[str], what: str) -> list[int]:
    position = {row_id: i for i, row_id in enumerate(known)}
    missing = [row_id for row_id in ids if row_id not in position]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(ids)} rows have no {what}, the first is {missing[0]!r}; measure them on the "
            "corpus that you select from"
        )
    return [position[row_id] for row_id in ids]
