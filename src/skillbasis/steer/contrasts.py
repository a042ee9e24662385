"""Steering vectors from differences of means: between sets of rows, and between a model's right and wrong answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..activations import ActivationStore, ExtractionSettings, extract
from ..activations.pooling import Pooling, Span
from ..artifact import fingerprint
from ..corpus import load_corpus
from ..errors import UsageError, nearest
from ..lm import LanguageModel
from .own_answers import Answer, OwnAnswers, read_own_answers
from .vectors import Increments, SteeringVector, Unit, make_vector

Against = Literal["incorrect", "all", "none"]
_CHUNK_ROWS = 128  # in float64 at a time
_ROUNDING = 1e-6  # a difference smaller than this share of the activations is rounding of float32


def mean_difference(
    store: ActivationStore,
    plus: Collection[str],
    minus: Collection[str] | None = None,
    *,
    name: str = "difference",
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Increments = "accumulate",
) -> SteeringVector:
    """The unit direction from the mean of some rows to the mean of others.

    Args:
        plus: ids of the rows that the direction leads to.
        minus: ids of the rows it leads away from; None takes all rows of the store, those of `plus` too.
        name: of the vector.
        unit, blocks, increments: as for `make_vector`; `std` counts standard deviations of the projections of all
            rows of the store.
    Returns: the direction over all blocks of the store together has norm 1, whichever of them are chosen.
    Raises: UsageError: a set is empty, has ids that the store does not have, or shares some with the other; or the two
        means are the same; and as `make_vector`.
    Cost: two passes over the store; memory of one shard.
    """
    ids = store.ids
    plus, minus = set(plus), None if minus is None else set(minus)
    for what, chosen in (("plus", plus), ("minus", minus)):
        if chosen is not None:
            _check_ids(store, what, chosen, set(ids))
    shared = plus & (minus or set())
    if shared:
        raise UsageError(f"{len(shared)} rows are in both sets, {min(shared)!r} for one; give each to one side")
    weights = dict.fromkeys(plus, 1 / len(plus))
    for row_id in ids if minus is None else minus:
        weights[row_id] = weights.get(row_id, 0.0) - 1 / len(ids if minus is None else minus)
    (difference,) = _weighted_sums(store, [weights])
    origin = {
        "kind": "mean-difference",
        "activations": store.manifest["inputs_fingerprint"],
        **_reading(store),
        "corpus_fingerprint": store.manifest["corpus_fingerprint"],
        "n_plus": len(plus),
        "n_minus": len(ids if minus is None else minus),
        "ids_fingerprint": fingerprint([sorted(plus), None if minus is None else sorted(minus)]),
    }
    return _as_vector(name, store, difference, origin, unit, blocks, increments)


def success_vector(
    lm: LanguageModel,
    evaluation: str | Path,
    *,
    against: Against = "incorrect",
    task: str | None = None,
    pooling: Pooling = "mean",
    span: Span = "response",
    layers: str = "inner",
    per_problem: bool = True,
    shuffle_seed: int | None = None,
    name: str = "success",
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Increments = "accumulate",
) -> SteeringVector:
    """The unit direction from the mean activation of a model's own incorrect answers to that of its correct ones.

    Args:
        evaluation: directory of an evaluation of this model without steering.
        against: `incorrect` answers, `all` answers, or `none`: the mean of the correct answers itself.
        task: one of the evaluation's; None takes all.
        pooling, span, layers: how an answer becomes a vector; see `ExtractionSettings`.
        per_problem: take the difference within each problem that has both kinds of answers and average over problems,
            each counting the same; else pool all answers, which also tells easy problems from hard ones.
        shuffle_seed: deals out the grades of each problem anew among its answers, for the control of an experiment.
        unit, blocks, increments: as for `make_vector`; `std` counts standard deviations of the projections of the
            answers that were read.
    Returns: the vector; its origin holds the counts, and as `split_half_cosine` the cosine between the differences of
        every other problem and of the rest: far below 1 where the direction is noise.
    Raises: UsageError: unknown task or `against`, or a span that right and wrong answers of one problem share.
        ArtifactError: an evaluation of another model or a steered one, or without the answers that are needed.
    Cost: one forward pass over the answers; their activations lie in TMPDIR meanwhile.
    Source: mean of successful outputs as a "zero-token system prompt", arXiv 2604.17614.
    """
    if against not in get_args(Against):
        allowed = list(get_args(Against))
        raise UsageError(f"unknown against {against!r}{nearest(against, allowed)}; allowed are {', '.join(allowed)}")
    if span == "prompt" and per_problem and against != "none":
        raise UsageError(
            "within one problem, right and wrong answers have the same prompt and so the same activations in the span "
            "prompt; take the span response or all, or per_problem=False"
        )
    own = read_own_answers(lm, evaluation, task)
    own = own if shuffle_seed is None else own.shuffled(shuffle_seed)
    problems = _wanted(own, against, per_problem)
    settings = ExtractionSettings(layers, pooling, span, max_length=lm.context_length)
    with tempfile.TemporaryDirectory(prefix="skillbasis-") as folder:
        answers = [answer for problem in problems for answer in problem]
        store = _extract(lm, answers, Path(folder), settings)
        problems = _wanted(own.only(set(store.ids)), against, per_problem)
        parts = (problems, problems[::2], problems[1::2])
        weights = [_contrast(part, against, per_problem) for part in parts]
        difference, *halves = _weighted_sums(store, weights)
        used = [answer for problem in problems for answer in problem]
        origin = {
            "kind": "success",
            **own.origin,
            "against": against,
            "per_problem": per_problem,
            **_reading(store),
            "n_problems": len(problems),
            "n_correct": sum(answer.correct for answer in used),
            "n_incorrect": sum(not answer.correct for answer in used),
            "n_skipped": len(store.skipped()),
            "split_half_cosine": cosine(*halves),
        }
        return _as_vector(name, store, difference, origin, unit, blocks, increments)


def cosine(one: np.ndarray, two: np.ndarray) -> float | None:
    """Cosine between two vectors, of any same shape; None where one is zero."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float((one * two).sum() / norms) if norms > 0 else None


def _wanted(own: OwnAnswers, against: Against, per_problem: bool) -> list[list[Answer]]:
    """The answers that are read, by problem."""
    if against == "none":
        return [[answer for answer in answers if answer.correct] for answers in own.having(True)]
    if per_problem:
        return own.having(True, False)
    own.having(True), own.having(False)
    return own.problems


def _contrast(problems: Sequence[Sequence[Answer]], against: Against, per_problem: bool) -> dict[str, float]:
    """The weight of each answer in the difference; none where one side has no answers."""
    groups = problems if per_problem else [[answer for answers in problems for answer in answers]]
    weights: dict[str, float] = {}
    for group in groups:
        correct = [answer for answer in group if answer.correct]
        others = {"incorrect": [answer for answer in group if not answer.correct], "all": group, "none": []}[against]
        if not correct or not (others or against == "none"):
            return {}
        for side, sign in ((correct, 1), (others, -1)):
            for answer in side:
                weights[answer.id] = weights.get(answer.id, 0.0) + sign / len(side) / len(groups)
    return weights


def _extract(
    lm: LanguageModel, answers: Sequence[Answer], folder: Path, settings: ExtractionSettings
) -> ActivationStore:
    """Activations of answers; those without a token in the span are left out, which the store tells."""
    rows = folder / "answers.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for answer in answers:
            row = {"id": answer.id, "prompt": answer.prompt, "response": answer.response}
            file.write(json.dumps(row) + "\n")
    return extract(load_corpus(rows), lm, folder / "activations", settings, on_bad_row="skip")


def _check_ids(store: ActivationStore, what: str, chosen: set[str], known: set[str]) -> None:
    if not chosen:
        raise UsageError(f"the set {what} has no rows; give at least one id")
    unknown = chosen - known
    if unknown:
        skipped = " (it was skipped in extraction)" if min(unknown) in {row["id"] for row in store.skipped()} else ""
        raise UsageError(
            f"{len(unknown)} ids of the set {what} are not in {store.path}, {min(unknown)!r} for one{skipped}; give "
            "ids of the corpus that was extracted"
        )


def _reading(store: ActivationStore) -> dict[str, Any]:
    """How the rows were read, for the record."""
    return {key: store.manifest[key] for key in ("pooling", "span", "max_length", "rows")}


def _chunks(store: ActivationStore) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of the first row and (rows, blocks * hidden) float64, a few rows at a time."""
    start = 0
    for shard in store.shards():
        for first in range(0, len(shard), _CHUNK_ROWS):
            rows = shard[first : first + _CHUNK_ROWS].astype(np.float64)
            yield start, rows
            start += len(rows)


def _weighted_sums(store: ActivationStore, weights: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The sum of all rows by each set of weights, (sets, blocks * hidden) float64; rows without a weight have 0."""
    table = np.array([[part.get(row_id, 0.0) for row_id in store.ids] for part in weights])  # (sets, rows)
    total = np.zeros((len(weights), store.n_features))
    for start, rows in _chunks(store):
        part = table[:, start : start + len(rows)]
        if part.any():
            total += part @ rows
    return total


def _as_vector(
    name: str,
    store: ActivationStore,
    difference: np.ndarray,
    origin: dict[str, Any],
    unit: Unit,
    blocks: Sequence[int] | None,
    increments: Increments,
) -> SteeringVector:
    """The unit direction along a difference (blocks * hidden,), with the spread of all rows along it."""
    measured = [(rows @ difference, np.linalg.norm(rows, axis=1)) for _, rows in _chunks(store)]
    projections, row_norms = (np.concatenate(part) for part in zip(*measured, strict=True))
    norm = float(np.linalg.norm(difference))
    if norm <= _ROUNDING * row_norms.mean():
        raise UsageError(
            f"{name} has no direction: the two means are the same but for rounding; give sets of rows that differ"
        )
    slices = (difference / norm).reshape(len(store.block_ids), store.hidden_size)
    return make_vector(
        name,
        store.block_ids,
        slices,
        float(projections.std() / norm),
        store.manifest,
        origin | {"norm": norm},
        unit=unit,
        blocks=blocks,
        increments=increments,
    )
