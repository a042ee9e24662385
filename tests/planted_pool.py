"""Sixty rows of which everything is known that any strategy reads."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from skillbasis.basis import Scores
from skillbasis.corpus import Corpus, SelectedRow, load_corpus
from skillbasis.evaluate.likelihood import Likelihood
from skillbasis.select import Candidates, SelectionSettings
from skillbasis.select.evidence import OwnAnswers, QueryVectors, ValidationAnswers
from skillbasis.select.strategy import Need

N = 60
IDS = [f"r{i}" for i in range(N)]
# Planted: along direction 0 the rows rank r0, r1, ... r59; along 1 the reverse order; 2 is noise.
VALUES = np.column_stack([np.arange(N, 0, -1.0), np.arange(1.0, N + 1), np.random.default_rng(0).normal(size=N)]) - 30.5
# Most likely first: r30, r31, ... r59, r0, ... r29.
NLL = np.roll(np.arange(N) / 10, 30)
LABELS = [["algebra"]] * 40 + [["geometry", "algebra"]] * 15 + [["logic"]] * 3 + [[]] * 2
TOKENS = np.random.default_rng(1).integers(5, 50, size=N)
OWN_TOKENS = 3
DIRECTIONS: dict[str, Any] = {"directions": ((0, "+"), (1, "+")), "top_share": 0.5, "likelihood_share": 0.5}


def scores(ids: list[str] = IDS, values: np.ndarray = VALUES, norm: np.ndarray | None = None) -> Scores:
    norm = np.full(len(ids), 100.0) if norm is None else norm
    return Scores(ids, values, norm, norm)


def likelihood(nll: np.ndarray = NLL, *, alone: bool = False) -> Likelihood:
    return Likelihood(IDS, nll, nll, np.ones(N, dtype=int), nll + 1 if alone else None)


def own_answers() -> OwnAnswers:
    """Every row is solved once in four answers: not enough to count as solved, and a correct answer for each."""
    correct = [[f"my own way to {row_id}"] for row_id in IDS]
    return OwnAnswers(IDS, np.full(N, 4), np.ones(N, dtype=int), correct, [[OWN_TOKENS]] * N)


def validation() -> ValidationAnswers:
    """Answers that are wrong where they lie far along 1+, to problems of two of the labels."""
    values = np.random.default_rng(2).normal(size=(90, 3))
    ids = [f"p{i}/0" for i in range(90)]
    norm = np.full(90, 100.0)
    return ValidationAnswers(values[:, 1] < 0.5, ["algebra", "geometry"] * 45, Scores(ids, values, norm, norm), ids)


@cache
def corpus() -> Corpus:
    """The rows with texts of words of their own."""
    words = np.random.default_rng(3).integers(0, 26**4, size=(N, 12))
    spell = ["".join(chr(97 + word // 26**place % 26) for place in range(4)) for word in words.ravel()]
    rows = [
        {"id": row_id, "problem": f"What of {' '.join(spell[12 * i : 12 * i + 6])}?", "labels": LABELS[i]}
        | {"solution": " ".join(spell[12 * i + 6 : 12 * i + 12]), "source": i % 7}
        for i, row_id in enumerate(IDS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return load_corpus(path)


def candidates(**settings: Any) -> Candidates:
    """Everything is known; a smaller NLL on rereading comes first to the rows that came last."""
    vectors = np.random.default_rng(4).normal(size=(N + 5, 8)).astype(np.float32)
    return Candidates(
        IDS,
        LABELS,
        scores(),
        likelihood(alone=True),
        SelectionSettings(**settings),
        corpus(),
        TOKENS,
        own_answers(),
        validation(),
        np.random.default_rng(5).normal(size=N),
        QueryVectors(IDS, vectors[:N], vectors[N:]),
        {"directions+likelihood": likelihood(NLL[::-1].copy()), "low-nll": likelihood(np.roll(NLL, 7))},
        IDS[:30],
    )


def without(known: Candidates, need: Need) -> Candidates:
    """The same without what serves one need."""
    if need == "directions":
        return known.with_settings(replace(known.settings, directions=(), weights=()))
    if need == "likelihood alone":
        return replace(known, likelihood=likelihood())
    if need.startswith("reread"):
        first = {"reread along directions": "directions+likelihood", "reread by likelihood": "low-nll"}[need]
        return replace(known, reread={name: table for name, table in known.reread.items() if name != first})
    fields = {"tokens": "n_tokens", "own answers": "own_answers", "quality": "given_quality"}
    return replace(known, **{fields.get(need, need): None})


def numbers(rows: list[SelectedRow]) -> list[int]:
    return [int(row.id[1:]) for row in rows]
