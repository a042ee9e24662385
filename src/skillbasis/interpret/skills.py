"""Human skills and a basis: every figure that relates them, as one JSON-able record."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import write_json, write_text
from ..basis import Scores, SkillBasis
from ..corpus import Corpus
from ..errors import UsageError
from ..statistics import nan_to_none
from .compositionality import compositionality
from .grounding import Grounding, compactness, ground
from .human_labels import LABELS, LabelColumn, RowColumns, together
from .scored import ScoredRows, scored_rows
from .skills_text import to_markdown
from .taxonomy import CrossValidation, map_labels


def describe_skills(
    basis: SkillBasis,
    scores: Scores,
    corpus: Corpus,
    *,
    label_columns: Sequence[str] = (),
    group_column: str | None = None,
    correct_column: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
    min_rows: int = 10,
    n_shuffles: int = 0,
) -> dict[str, Any]:
    """Relates a basis to human labels and to correctness on the scored rows of a corpus.

    Args:
        basis: what the rows were scored with.
        scores: of rows of the corpus; its other rows take no part.
        corpus: the rows that were scored.
        label_columns: `labels`, or columns of `extra`; none given means `labels`.
        group_column: rows with one value here are one problem: never on both sides of a fold, and one unit of every
            interval. None: rows with the same prompt are one problem.
        correct_column: whether the answer in a row is right; None leaves out grounding.
        n_folds, seed, min_rows: see `CrossValidation`.
        n_shuffles: how often each label is shuffled for the control of its joint area.
    Returns: JSON-able: `n_rows`, `n_directions`, `unstable` (directions), `settings`, `taxonomy` (see `map_labels`),
        `compositionality`, `compactness` and `grounding` (null without a correct column; see `ground`), with
        `label_columns` in it: those it compares with, the column of correctness itself left out. Undefined figures are
        null.
    Raises: ArtifactError: basis, scores and corpus do not belong together. UsageError: no such column, or more folds
        than problems. CorpusError: no label has rows with and without it, or all answers are right, or wrong.
    Cost: folds x (labels (1 + n_shuffles) + 6) fits of a logistic regression.
    """
    scores.check_basis(basis)
    scored = scored_rows(scores, basis.mean_scores, corpus)
    read = RowColumns(scored.rows)
    validation = CrossValidation(read.groups(group_column), n_folds, seed, min_rows)
    n_groups = len(set(validation.groups or ()))
    if not 2 <= n_folds <= n_groups:
        raise UsageError(
            f"{n_folds} folds of {n_groups} problems; give 2 or more, and not more than there are problems"
        )
    columns = [read.label_column(name) for name in dict.fromkeys(label_columns or [LABELS])]
    taxonomy = map_labels(scored.scores, columns, validation, n_shuffles=n_shuffles)
    grounding = None
    if correct_column is not None:
        others = [column for column in columns if column.name != correct_column]
        grounding = dataclasses.asdict(_grounding(scored, read, others, correct_column, validation))
        grounding |= {"correct_column": correct_column, "label_columns": [column.name for column in others]}
    found: dict[str, Any] = nan_to_none(
        {
            "n_rows": len(scored.ids),
            "n_directions": basis.n_components,
            "unstable": list(basis.unstable),
            "settings": {
                "label_columns": [column.name for column in columns],
                "group_column": group_column,
                "n_folds": n_folds,
                "seed": seed,
                "min_rows": min_rows,
                "n_shuffles": n_shuffles,
            },
            "taxonomy": dataclasses.asdict(taxonomy),
            "compositionality": dataclasses.asdict(compositionality(scored.scores, columns, validation)),
            "compactness": dataclasses.asdict(compactness(basis, scored.scores, scored.norm)),
            "grounding": grounding,
        }
    )
    return found


def write_skills(out: Path, found: dict[str, Any]) -> None:
    """Writes what `describe_skills` returned to `skills.json` and, for reading, `skills.md` in a directory."""
    write_json(out / "skills.json", found)
    write_text(out / "skills.md", to_markdown(found))


def _grounding(
    scored: ScoredRows,
    read: RowColumns,
    columns: Sequence[LabelColumn],
    correct_column: str,
    validation: CrossValidation,
) -> Grounding:
    """On the rows whose correctness is known, and that have a value in every column of labels."""
    correct, known = read.correct(correct_column)
    labels = None
    if columns:
        labels, labelled = together(columns)
        known = known & labelled
    lengths = np.array([[len(p), len(r)] for p, r in zip(read.prompts, read.responses, strict=True)], dtype=np.float64)
    rows = np.flatnonzero(known)
    return ground(
        np.asarray(scored.scores)[rows],
        correct[rows],
        lengths[rows],
        None if labels is None else labels[rows],
        validation.of(rows),
    )
