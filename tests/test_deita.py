from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillbasis.basis import Scores
from skillbasis.corpus import load_corpus
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.select import deita
from skillbasis.select.candidates import Candidates, SelectionSettings
from skillbasis.select.deita import good_and_unlike, good_and_unlike_rows

TEXTS = [
    "river boat sail",
    "oven bread flour",
    "boat sail river",
    "star moon comet",
    "bread flour oven",
    "star moon sun",
]


def plainly(vectors: np.ndarray, quality: np.ndarray, n: int, limit: float) -> list[int]:
    """The definition, one row after the other."""
    kept: list[int] = []
    for i in sorted(range(len(quality)), key=lambda i: (-quality[i], i)):
        if len(kept) < n and all(vectors[i] @ vectors[j] <= limit for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("limit", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("block", [1, 7, 256])
def test_rows_are_kept_as_one_by_one(limit: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deita, "_BLOCK", block)
    monkeypatch.setattr(deita, "_KEPT", 5)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) * (1 + 1e-6)  # a row is not above 1 to its like
    quality = rng.integers(5, size=200).astype(float)  # many ties
    for n in (1, 20, 200):
        expected = plainly(vectors, quality, n, limit)
        assert good_and_unlike(vectors, quality, n, limit).tolist() == expected
    assert len(plainly(vectors, quality, 200, 0.3)) < 30 and len(plainly(vectors, quality, 200, 1.0)) == 200


def test_a_row_of_exactly_the_limit_is_kept() -> None:
    vectors = np.array([[1, 0], [0.5, np.sqrt(0.75)], [1, 0]], dtype=np.float32)
    quality = np.array([3.0, 2.0, 1.0])
    assert good_and_unlike(vectors, quality, 3, 0.5).tolist() == [0, 1]
    assert good_and_unlike(vectors, quality, 3, 0.49).tolist() == [0]
    assert good_and_unlike(vectors, quality, 3, 1.0).tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="max_similarity must be above -1 and at most 1, not 1.5"):
        good_and_unlike(vectors, quality, 1, 1.5)


# As a strategy


def candidates(tmp_path: Path, quality: list[float] | None, **settings: Any) -> Candidates:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{i}", "prompt": "Tell.", "response": text} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(path)
    values = np.column_stack([np.arange(6.0), np.zeros(6)])  # whitened: three rows on one side, three on the other
    given = None if quality is None else dict(zip(corpus.ids, quality, strict=True))
    scores = Scores(corpus.ids, values, values[:, 0], values[:, 0])
    return Candidates.of(corpus, scores, None, SelectionSettings(**settings), quality=given)


def test_the_best_row_of_each_text_is_taken(tmp_path: Path) -> None:
    rows = good_and_unlike_rows(candidates(tmp_path, [1, 5, 9, 2, 8, 2]), 4, np.random.default_rng(0))
    assert [(row.id, row.rank, row.score) for row in rows] == [("r2", 1, 9), ("r4", 2, 8), ("r3", 3, 2), ("r5", 4, 2)]
    assert {row.reason for row in rows} == {"best quality, cosine at most 0.9 to the rows before"}


def test_fewer_unlike_rows_than_the_budget(tmp_path: Path) -> None:
    given = candidates(tmp_path, [1, 5, 9, 2, 8, 2])
    with pytest.raises(UsageError, match="only 4 rows have no cosine above 0.9.*budget of 5; raise max_similarity"):
        good_and_unlike_rows(given, 5, np.random.default_rng(0))
    given = candidates(tmp_path, [1, 5, 9, 2, 8, 2], text_encoder="native")
    rows = good_and_unlike_rows(given, 2, np.random.default_rng(0))
    assert [row.id for row in rows] == ["r2", "r4"], "one of either side"
    with pytest.raises(UsageError, match="only 2 rows"):
        good_and_unlike_rows(given, 3, np.random.default_rng(0))


def test_quality_that_is_absent_or_undefined(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a quality of every row"):
        good_and_unlike_rows(candidates(tmp_path, None), 2, np.random.default_rng(0))
    with pytest.raises(ArtifactError, match="row 'r3' has a quality that is not finite"):
        good_and_unlike_rows(candidates(tmp_path, [1, 2, 3, np.nan, 5, 6]), 2, np.random.default_rng(0))
