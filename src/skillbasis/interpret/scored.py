"""The rows of a corpus together with their scores: matched by id, checked, and read as text when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from .attributes import prompt_text
from .exemplars import RankBy, ranking_values

if TYPE_CHECKING:
    from datasets import Dataset


class ScoreTable(Protocol):
    """What is read from a table of scores of n examples along K directions."""

    @property
    def ids(self) -> Sequence[str]:
        """(n,) ids of the examples."""

    @property
    def scores(self) -> NDArray[np.floating]:
        """(n, K) projections (x - mean)·v_k."""

    @property
    def norm(self) -> NDArray[np.floating]:
        """(n,) |x - mean|."""

    @property
    def raw_norm(self) -> NDArray[np.floating]:
        """(n,) |x|."""


class Corpus(Protocol):
    """What is read from a corpus."""

    @property
    def rows(self) -> Dataset:
        """Columns id, prompt (list of messages), response, answer, labels (list), extra (JSON)."""


@dataclass(frozen=True)
class ScoredRows:
    """The n rows of a corpus that have scores, in its order, along K directions."""

    rows: Dataset
    ids: list[str]
    scores: NDArray[np.floating]
    """(n, K) projections (x - mean)·v_k."""
    norm: NDArray[np.floating]
    """(n,) |x - mean|."""
    raw_norm: NDArray[np.floating]
    """(n,) |x|."""
    mean_scores: NDArray[np.floating]
    """(K,) mean·v_k."""

    def values(self, by: RankBy) -> NDArray[np.float64]:
        """(n, K) what rows are ordered by; see `ranking_values`."""
        return ranking_values(self.scores, self.norm, self.raw_norm, self.mean_scores, by)

    @cached_property
    def position(self) -> dict[str, int]:
        """Row number of each id."""
        return {row_id: row for row, row_id in enumerate(self.ids)}

    @property
    def texts(self) -> RowTexts:
        """(n,) prompt and response of each row."""
        return RowTexts(self.rows)


def scored_rows(scores_table: ScoreTable, mean_scores: NDArray[np.floating], corpus: Corpus) -> ScoredRows:
    """Finds the scored rows of a corpus.

    Args:
        scores_table: scores of examples of the corpus, in any order; examples without a score take no part.
        mean_scores: (K,), mean·v_k.
        corpus: the examples that were scored.
    Raises: ArtifactError: when scores, basis and corpus do not belong together, or a score is not finite.
    """
    n_directions = scores_table.scores.shape[1]
    if len(mean_scores) != n_directions:
        raise ArtifactError(
            f"the scores have {n_directions} directions and the basis {len(mean_scores)}; "
            "score the corpus with this basis"
        )
    order, table_rows = _match(scores_table.ids, corpus.rows["id"])
    rows = corpus.rows.select(order)
    scores, norm, raw_norm = (
        np.asarray(array)[table_rows] for array in (scores_table.scores, scores_table.norm, scores_table.raw_norm)
    )
    if not all(np.isfinite(array).all() for array in (scores, norm, raw_norm, mean_scores)):
        raise ArtifactError("the scores are not all finite; look for rows that overflow, and extract and score again")
    return ScoredRows(rows, rows["id"][:], scores, norm, raw_norm, mean_scores)


class RowTexts(Sequence[str]):
    """Prompt and response of each row as one text, read when asked for."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _row_text(self._rows[index])

    def read(self, row_numbers: NDArray[np.intp]) -> Iterable[str]:
        """Reads many rows one after the other."""
        return map(_row_text, self._rows.select(row_numbers))


def _row_text(row: Mapping[str, Any]) -> str:
    return f"{prompt_text(row['prompt'])}\n{row['response'] or ''}"


def _match(score_ids: Sequence[str], corpus_ids: Iterable[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Finds the scored rows of the corpus, in its order, and for each of them its row in the score table."""
    if len(score_ids) == 0:
        raise ArtifactError("the score table has no rows; score the corpus again")
    row_of = {example_id: row for row, example_id in enumerate(score_ids)}
    if len(row_of) < len(score_ids):
        twice = next(example_id for row, example_id in enumerate(score_ids) if row_of[example_id] != row)
        raise ArtifactError(f"the scores name {twice!r} more than once; score the corpus again")
    pairs = [(place, row_of[example_id]) for place, example_id in enumerate(corpus_ids) if example_id in row_of]
    order, table_rows = (np.array(column, dtype=np.intp) for column in zip(*pairs, strict=True)) if pairs else ((), ())
    missing = np.setdiff1d(np.arange(len(score_ids)), table_rows)
    if len(missing):
        raise ArtifactError(
            f"{len(missing):,} of {len(score_ids):,} scored examples are not in the corpus, for instance "
            f"{score_ids[int(missing[0])]!r}; give the corpus that was scored"
        )
    if len(pairs) > len(row_of):
        raise ArtifactError("ids of scored examples occur more than once in the corpus; give every row its own id")
    return np.asarray(order), np.asarray(table_rows)
