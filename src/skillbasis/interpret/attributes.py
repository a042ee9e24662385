"""Attributes of every example as numbers, and how they go with each direction."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError
from ..statistics import correlation_interval, holm

MAX_CATEGORIES = 20
"""A text column with more different values than this is not a category."""
MAX_LABELS = 100
"""Only this many labels, the most frequent, become attributes."""
MIN_ROWS = 4
"""With fewer rows a correlation has no interval."""
PERFECT = 1e-12
"""A correlation nearer to 1 than this (rounding) is perfect."""
NAME_CHARACTERS = 80
"""Longer attribute names (text values of a column) are cut."""
ANSWER_TYPES = ("integer", "fraction", "expression", "text", "none")

_DIGITS = b"0123456789"
_OPERATORS = b"+-*/=<>^%|&~"
_LATEX = re.compile(r"\\[A-Za-z]+")
_SENTENCE_ENDS = (". ", ".\n", "! ", "!\n", "? ", "?\n", "\u3002", "\uff01", "\uff1f")
_BOXED = re.compile(r"\\f?boxed\b")
_BACKTRACK = re.compile(
    r"\b(?:wait|actually|hmm+|hold on|on second thought|scratch that|that(?:'s| is) (?:wrong|not right)"
    r"|i made (?:a|an) (?:mistake|error)|let me (?:re\w+|try again|start over)|alternatively)\b"
)
_VERIFY = re.compile(
    r"\b(?:(?:double[- ])?check(?:s|ed|ing)?|verif(?:y|ies|ied|ying|ication)"
    r"|substitut(?:e|ing) (?:it |this |them )?back"
    r"|plug(?:ging)? (?:it |this |them )?(?:back )?in|sanity|confirm(?:s|ed|ing)?|make sure)\b"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_INTEGER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)")
_FRACTION = re.compile(
    r"[-+]?(?:\d+\s*/\s*\d+|\\[dt]?frac\s*(?:\{\s*-?\d+\s*\}\s*\{\s*-?\d+\s*\}|\d\s*\d)|(?:\d+|\d{1,3}(?:,\d{3})+)?\.\d+)"
)
_MATHEMATICS = re.compile(r"\\[A-Za-z]+|\d|[=^_+*/<>|]")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class AttributeTable:
    """Attributes of n examples, one column each."""

    names: tuple[str, ...]
    """(A,), each name once; one-hot columns are called `column=value`."""
    values: NDArray[np.float64]
    """(n, A); NaN where an example has no value, which is not zero."""


@dataclass(frozen=True)
class Correlation:
    """How an attribute goes with a direction over the examples that have it."""

    name: str
    """The attribute."""
    direction: int
    """The direction, 0-based."""
    correlation: float
    """Spearman rank correlation, ties at their mean rank."""
    low: float
    """Lower end of the 95 % interval; NaN where the ranks agree perfectly."""
    high: float
    """Upper end of the 95 % interval; NaN like `low`."""
    p_value: float
    """Two-sided, uncorrected."""
    p_holm: float
    """Corrected over all attributes and directions of the table (Holm)."""
    n: int
    """Number of examples behind it."""


def answer_type(answer: str | None) -> str:
    """Says what kind of thing a reference answer is: one of `ANSWER_TYPES`; a decimal number is a `fraction`."""
    text = _TEXT_COMMAND.sub(r"\1", answer or "").strip().strip("$").strip().rstrip(".").removesuffix("\\")
    text = text.removesuffix("%").removesuffix("\\").strip()
    if not text:
        return "none"
    if _INTEGER.fullmatch(text):
        return "integer"
    if _FRACTION.fullmatch(text):
        return "fraction"
    words = _WORD.findall(re.sub(r"\\[A-Za-z]+", " ", text))
    return "expression" if len(words) < 2 and _MATHEMATICS.search(text) else "text"


def text_attributes(prompt: str, response: str, answer: str | None) -> dict[str, float]:
    """Measures one example.

    Args:
        prompt: text of the prompt's messages.
        response: text of the response; empty where the example has none.
        answer: reference answer, if any.
    Returns: name -> value. Counts are plain counts; `_share` is a fraction of the characters, `_per_100_words` a count
        per hundred words, both NaN for an empty text. Backtracking and verification are English phrases.
    """
    found: dict[str, float] = {}
    for part, text in (("prompt", prompt), ("response", response)):
        encoded = text.encode("utf-8", "replace")
        n_words = len(text.split())
        found |= {
            f"{part}_characters": len(text),
            f"{part}_words": n_words,
            f"{part}_lines": text.count("\n") + 1 if text else 0,
            f"{part}_sentences": sum((text + "\n").count(end) for end in _SENTENCE_ENDS),
            f"{part}_digit_share": _ratio(len(encoded) - len(encoded.translate(None, _DIGITS)), len(text)),
            f"{part}_operator_share": _ratio(len(encoded) - len(encoded.translate(None, _OPERATORS)), len(text)),
            f"{part}_latex_per_100_words": _ratio(100 * len(_LATEX.findall(text)), n_words),
        }
    lowered = response.lower().replace("\u2019", "'")
    n_words = len(response.split())
    kind = answer_type(answer)
    return found | {
        "response_share": _ratio(len(response), len(prompt) + len(response)),
        "response_boxed": float(_BOXED.search(response) is not None) if response else float("nan"),
        "response_backtracking_per_100_words": _ratio(100 * len(_BACKTRACK.findall(lowered)), n_words),
        "response_verification_per_100_words": _ratio(100 * len(_VERIFY.findall(lowered)), n_words),
        **{f"answer_type={name}": float(name == kind) for name in ANSWER_TYPES},
    }


def attribute_table(
    rows: Iterable[Mapping[str, Any]], known: Mapping[str, NDArray[np.floating]] | None = None
) -> AttributeTable:
    """Measures every example and takes over what the corpus says about it.

    Args:
        rows: examples with `id`, `prompt` (list of messages), `response`, `answer`, `labels` (list) and `extra`
            (a JSON object as text), read once.
        known: attributes that were measured elsewhere, such as the number of tokens: (n,) by name.
    Returns: the measured attributes of `text_attributes`; every column of `extra` that is a number or a boolean (0/1)
        in all rows that have it; text columns of 2 to 20 different values one-hot; lists, objects and columns of mixed
        kinds are skipped; the 100 most frequent labels one-hot. A row without a value, or without any label, is NaN.
    Raises: CorpusError: when the `extra` of a row is not a JSON object.
    Cost: time linear in the text, about 10 s per 100 MB on one core; memory 8 bytes per row and attribute.
    """
    measured: list[list[float]] = []
    measured_names: tuple[str, ...] = ()
    extras: dict[str, dict[int, Any]] = {}
    labels: dict[int, frozenset[str]] = {}
    for row_number, row in enumerate(rows):
        values = text_attributes(prompt_text(row["prompt"]), row["response"] or "", row["answer"])
        measured_names = tuple(values)
        measured.append(list(values.values()))
        for column, value in _extra(row).items():
            if value is not None:
                extras.setdefault(column, {})[row_number] = value
        if row["labels"]:
            labels[row_number] = frozenset(row["labels"])

    n = len(measured)
    by_name = zip(measured_names, np.array(measured, dtype=np.float64).T, strict=True)
    columns: dict[str, NDArray[np.float64]] = dict(by_name)
    columns |= {name: np.asarray(values, dtype=np.float64) for name, values in (known or {}).items()}
    for column in sorted(extras):
        for name, cells in _numeric_columns(column, extras[column]):
            columns[_free_name(name, columns)] = _filled(cells, n)
    frequency = Counter(label for row_labels in labels.values() for label in row_labels)
    for label, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:MAX_LABELS]:
        cells = {row_number: float(label in row_labels) for row_number, row_labels in labels.items()}
        columns[_free_name(f"label={label}", columns)] = _filled(cells, n)
    if not columns:
        return AttributeTable((), np.empty((n, 0)))
    return AttributeTable(tuple(columns), np.column_stack(list(columns.values())))


def correlate(table: AttributeTable, values: NDArray[np.floating]) -> list[Correlation]:
    """Correlates every attribute with every direction.

    Args:
        table: attributes of n examples.
        values: (n, K), what the examples are ordered by along each direction; NaN where it is undefined.
    Returns: all pairs that have a correlation, by direction and then attribute. Left out is what has none: an attribute
        or direction that is constant over the examples both have, or has fewer than four of them. p-values come from
        the t distribution with n - 2 degrees of freedom, intervals from the Fisher transform.
    Cost: O(n log n) for each column, ranked once, and one (A x n)(n x K) product; once more for each different pattern
        of missing values.
    Source: Bonett & Wright 2000, Psychometrika 65, for the interval's standard error sqrt((1 + r^2/2) / (n - 3)).
    """
    from scipy.stats import t as student

    names, directions, correlations, sizes = [], [], [], []
    for attribute_ids, direction_ids, present in _blocks(~np.isnan(table.values), ~np.isnan(values)):
        n = int(present.sum())
        if n < MIN_ROWS:
            continue
        left = _standard_ranks(table.values[np.ix_(present, attribute_ids)])
        right = _standard_ranks(np.asarray(values)[np.ix_(present, direction_ids)])
        product = np.clip(left.T @ right, -1.0, 1.0)  # (attributes, directions); NaN rows and columns: constant
        for i, k in np.argwhere(~np.isnan(product)):
            names.append(int(attribute_ids[i]))
            directions.append(int(direction_ids[k]))
            correlations.append(float(product[i, k]))
            sizes.append(n)
    if not names:
        return []
    r, count = np.array(correlations), np.array(sizes, dtype=np.float64)
    perfect = 1 - np.abs(r) < PERFECT
    with np.errstate(divide="ignore"):  # r = 1: an infinite statistic and p = 0
        tails = student.sf(np.abs(r) * np.sqrt((count - 2) / ((1 - r) * (1 + r))), count - 2)
    p_values = 2 * np.asarray(tails, dtype=np.float64)
    low, high = correlation_interval(np.where(perfect, np.nan, r), count, ranks=True)
    corrected = holm(p_values)
    order = np.lexsort((names, directions))
    return [
        Correlation(
            name=table.names[names[i]],
            direction=directions[i],
            correlation=correlations[i],
            low=float(low[i]),
            high=float(high[i]),
            p_value=float(p_values[i]),
            p_holm=float(corrected[i]),
            n=sizes[i],
        )
        for i in order
    ]


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Joins the contents of a prompt's messages, without their roles."""
    return "\n".join(message["content"] for message in messages)


def _ratio(count: float, total: float) -> float:
    return count / total if total else float("nan")


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    if not row["extra"]:
        return {}
    try:
        extra = json.loads(row["extra"])
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"the extra columns of row {row['id']!r} are not JSON ({error}); read the corpus again"
        ) from None
    if not isinstance(extra, dict):
        raise CorpusError(f"the extra columns of row {row['id']!r} are not a JSON object; read the corpus again")
    return extra


def _numeric_columns(column: str, cells: Mapping[int, Any]) -> list[tuple[str, dict[int, float]]]:
    """Turns a column of `extra` (row number -> value) into named numeric columns, none where it cannot be."""
    if all(isinstance(value, (bool, int, float)) for value in cells.values()):
        # JSON integers have no largest value, floats do.
        limit = sys.float_info.max
        return [(column, {row: float(value) for row, value in cells.items() if abs(value) <= limit})]
    if not all(isinstance(value, str) for value in cells.values()):
        return []
    categories = sorted(set(cells.values()))
    if not 2 <= len(categories) <= MAX_CATEGORIES:
        return []
    return [(f"{column}={c}", {row: float(value == c) for row, value in cells.items()}) for c in categories]


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Makes a name that fits on a line, can be written as UTF-8 and is not taken yet."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    name = name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
    free, number = name, 2
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _filled(cells: Mapping[int, float], n: int) -> NDArray[np.float64]:
    column = np.full(n, np.nan)
    column[list(cells.keys())] = list(cells.values())
    return column


def _blocks(
    attribute_present: NDArray[np.bool_], direction_present: NDArray[np.bool_]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]]:
    """Groups attributes and directions by which rows they have: (attribute ids, direction ids, rows both have)."""
    return [
        (attribute_ids, direction_ids, attribute_rows & direction_rows)
        for attribute_ids, attribute_rows in _patterns(attribute_present)
        for direction_ids, direction_rows in _patterns(direction_present)
    ]


def _patterns(present: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    groups: dict[bytes, list[int]] = {}
    for column in range(present.shape[1]):
        groups.setdefault(np.packbits(present[:, column]).tobytes(), []).append(column)
    return [(np.array(columns, dtype=np.intp), present[:, columns[0]]) for columns in groups.values()]


def _standard_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks each column, ties at their mean, and scales it to mean 0 and length 1; a constant column is NaN."""
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(values, axis=0), dtype=np.float64)
    ranks -= ranks.mean(axis=0)
    constant = np.ptp(values, axis=0) == 0
    length = np.where(constant, np.nan, np.linalg.norm(ranks, axis=0))
    return np.asarray(ranks / length, dtype=np.float64)
