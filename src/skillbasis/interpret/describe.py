"""Describes a basis by its corpus: examples, keywords and attributes of each direction, as JSON and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..artifact import write_json, write_text
from ..errors import ArtifactError
from ..statistics import nan_to_none
from .attributes import Correlation, attribute_table, correlate, prompt_text
from .exemplars import Exemplar, RankBy, both_ends, ranking_values, top_examples
from .keywords import Keyword, keywords, token_counts

if TYPE_CHECKING:
    from datasets import Dataset

END_FRACTION, MIN_END_ROWS, MAX_END_ROWS = 0.02, 50, 500
"""Keywords contrast this part of the rows at each end, within these bounds."""
BACKGROUND_ROWS = 20_000
"""Rows whose words are the keywords' background: a seeded sample where the corpus is larger."""
SHOWN_CHARACTERS = 2_000
"""Longer texts are cut."""
N_ATTRIBUTES = 12
"""Attributes shown for each direction, those of the largest correlation."""


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


def describe_basis(
    scores_table: ScoreTable,
    mean_scores: NDArray[np.floating],
    explained_variance: NDArray[np.floating],
    total_variance: float | None,
    corpus: Corpus,
    *,
    by: RankBy = "cosine",
    n_examples: int = 10,
    n_keywords: int = 12,
    seed: int = 0,
) -> dict[str, Any]:
    """Collects what the corpus says about each direction of a basis.

    Args:
        scores_table: scores of examples of the corpus, in any order; examples without a score take no part.
        mean_scores: (K,), mean·v_k, for the uncentred cosine.
        explained_variance: (K,), in squared units of the activations.
        total_variance: variance of the activations in all directions, where it is known.
        corpus: the examples that were scored.
        by: the order of the examples along a direction; examples, keywords and attributes all go by it.
        n_examples: examples shown at each end.
        n_keywords: keywords of each end.
        seed: of the sample that is the keywords' background.
    Returns: JSON-able: `n_examples` (described), `by`, `directions` (each with `direction`, `explained_variance`,
        `variance_fraction`, `positive` and `negative` examples, `keywords`, `attributes`) and `n_attributes_tested`
        (pairs of attribute and direction, over which p_holm is corrected). What is undefined is null or absent.
    Raises: ArtifactError: when scores and corpus do not belong together. UsageError: when `by` is unknown.
    Cost: reads the corpus once, plus the ends of each direction; O(n (A + K)) memory, without the texts.
    """
    order, table_rows = _match(scores_table.ids, corpus.rows["id"])
    rows = corpus.rows.select(order)
    ids = rows["id"][:]
    scores, norm, raw_norm = (
        np.asarray(array)[table_rows] for array in (scores_table.scores, scores_table.norm, scores_table.raw_norm)
    )
    _check_numbers(scores, norm, raw_norm, mean_scores, explained_variance)
    values = ranking_values(scores, norm, raw_norm, mean_scores, by)
    texts = _RowTexts(rows)
    background = token_counts(texts.read(_sample(len(rows), seed)))
    correlations = correlate(attribute_table(rows), values)

    directions = []
    for k in range(scores.shape[1]):
        positive, negative = top_examples(scores, norm, raw_norm, mean_scores, texts, k, n_examples, by, ids=ids)
        upper, lower = both_ends(values[:, k])
        n_end = min(max(MIN_END_ROWS, round(END_FRACTION * len(rows))), MAX_END_ROWS)
        of_upper, of_lower = keywords(texts.read(upper[:n_end]), texts.read(lower[:n_end]), background, n_keywords)
        strongest = sorted((c for c in correlations if c.direction == k), key=lambda c: -abs(c.correlation))
        directions.append(
            {
                "direction": k,
                "explained_variance": float(explained_variance[k]),
                "variance_fraction": float(explained_variance[k]) / total_variance if total_variance else None,
                "positive": [_example(exemplar, rows) for exemplar in positive],
                "negative": [_example(exemplar, rows) for exemplar in negative],
                "keywords": {"positive": _words(of_upper), "negative": _words(of_lower)},
                "attributes": [_attribute(c) for c in strongest[:N_ATTRIBUTES]],
            }
        )
    description: dict[str, Any] = nan_to_none(
        {"n_examples": len(rows), "by": by, "directions": directions, "n_attributes_tested": len(correlations)}
    )
    return description


def write_description(out: Path, description: Mapping[str, Any]) -> None:
    """Writes a description to `directions.json` and, for reading, `directions.md` in a directory.

    Args:
        out: the directory, made where it is missing.
        description: what `describe_basis` returned.
    """
    write_json(out / "directions.json", description)
    write_text(out / "directions.md", to_markdown(description))


def to_markdown(description: Mapping[str, Any]) -> str:
    """Renders a description as Markdown in which no text from the corpus can act as Markdown or HTML."""
    head = (
        f"{description['n_examples']:,} examples, ordered by {description['by']}. Near-duplicates are left out. "
        "Keywords: z of the log-odds ratio between the two ends, uncorrected. Attributes: Spearman correlation with "
        f"95 % interval; p corrected (Holm) over {description['n_attributes_tested']:,} tests."
    )
    lines = ["# Directions", "", head]
    for direction in description["directions"]:
        fraction = direction["variance_fraction"]
        share = "" if fraction is None else f" ({100 * fraction:.3g} % of the variance)"
        lines += ["", f"## Direction {direction['direction']}", ""]
        lines += [f"Explained variance {direction['explained_variance']:.4g}{share}.", ""]
        for end in ("positive", "negative"):
            words = ", ".join(f"{_code(word['word'])} ({word['z']:.1f})" for word in direction["keywords"][end])
            lines.append(f"* Keywords, {end} end: {words or 'none'}")
        lines += ["", "Attributes:" if direction["attributes"] else "Attributes: none that varies.", ""]
        lines += [_attribute_line(attribute) for attribute in direction["attributes"]]
        for end in ("positive", "negative"):
            lines += ["", f"### Direction {direction['direction']}, {end} end"]
            for rank, example in enumerate(direction[end], start=1):
                cosine = "undefined" if example["cosine"] is None else f"{example['cosine']:+.3f}"
                lines += ["", f"{rank}. {_code(example['id'])}, cosine {cosine}, score {example['score']:+.4g}"]
                for part in ("prompt", "response"):
                    if example[part]:
                        lines += ["", f"{part.capitalize()}:", "", _fenced(example[part])]
            if not direction[end]:
                lines += ["", "None: all examples score the same."]
    return "\n".join(lines) + "\n"


class _RowTexts(Sequence[str]):
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


def _check_numbers(
    scores: NDArray[np.floating],
    norm: NDArray[np.floating],
    raw_norm: NDArray[np.floating],
    mean_scores: NDArray[np.floating],
    explained_variance: NDArray[np.floating],
) -> None:
    n_directions = scores.shape[1]
    if len(mean_scores) != n_directions or len(explained_variance) != n_directions:
        raise ArtifactError(
            f"the scores have {n_directions} directions and the basis {len(explained_variance)}; "
            "score the corpus with this basis"
        )
    if not all(np.isfinite(array).all() for array in (scores, norm, raw_norm, mean_scores)):
        raise ArtifactError("the scores are not all finite; look for rows that overflow, and extract and score again")


def _sample(n_rows: int, seed: int) -> NDArray[np.intp]:
    if n_rows <= BACKGROUND_ROWS:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, BACKGROUND_ROWS, replace=False))


def _example(exemplar: Exemplar, rows: Dataset) -> dict[str, Any]:
    row = rows[exemplar.row]
    messages = row["prompt"]
    prompt = (
        messages[0]["content"] if len(messages) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
    )
    return {
        "id": exemplar.id,
        "score": exemplar.score,
        "cosine": exemplar.cosine,
        "prompt": _cut(prompt),
        "response": _cut(row["response"] or ""),
    }


def _words(found: list[Keyword]) -> list[dict[str, Any]]:
    return [{"word": keyword.word, "z": keyword.z} for keyword in found]


def _attribute(correlation: Correlation) -> dict[str, Any]:
    return {
        "name": correlation.name,
        "correlation": correlation.correlation,
        "low": correlation.low,
        "high": correlation.high,
        "p_value": correlation.p_value,
        "p_holm": correlation.p_holm,
    }


def _attribute_line(attribute: Mapping[str, Any]) -> str:
    low, high, p = attribute["low"], attribute["high"], attribute["p_holm"]
    interval = "no interval" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    p_text = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"* {_code(attribute['name'])} {attribute['correlation']:+.2f} {interval}, {p_text}"


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]} [... cut; {len(text):,} characters in all]"


def _backticks(text: str, at_least: int) -> str:
    """A run of backticks longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(longest + 1, at_least)


def _visible(text: str) -> str:
    """Shows control characters (but not tab and newline), which can end a line or hide text, as a replacement mark."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


def _code(text: str) -> str:
    """An inline code span on one line; the inner spaces keep a backtick at its edge apart from the marks."""
    line = _visible(" ".join(text.split()))
    marks = _backticks(line, 1)
    return f"{marks} {line} {marks}" if "`" in line else f"{marks}{line}{marks}"


def _fenced(text: str) -> str:
    text = _visible(text.replace("\r\n", "\n").replace("\r", "\n"))
    marks = _backticks(text, 3)
    return f"{marks}text\n{text}\n{marks}"
