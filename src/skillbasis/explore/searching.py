"""Which examples a person asks for, in which order: texts, a direction with a threshold, labels, columns and tags."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import zip_longest
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ..basis import Scores
from ..errors import UsageError
from .index import LABEL, Index, storable
from .marking import NOTHING, Sought, Texts
from .tags import Tags

PAGE_ROWS = 25
RANKED_ROWS = 10_000
"""Matches up to which words are ranked by relevance (BM25); more of them stand in the order of the run."""
KEPT_RESULTS = 16
MAX_CHARS = 1_000
MAX_FILTERS = 20
MATCHES = {"words": "words", "text": "text as written"}
OPERATORS = {"is": "is", "contains": "contains", "least": "is at least", "most": "is at most"}
MEASURES: dict[str, str] = {"cosine": "cosine", "projection": "projection"}


@dataclass(frozen=True)
class Filter:
    """What is asked of one column; every field is as typed."""

    column: str
    op: str
    value: str

    def __str__(self) -> str:
        return f"{self.column} {OPERATORS.get(self.op, self.op)} {self.value}"


@dataclass(frozen=True)
class Question:
    """What is asked for; every field is as typed, and empty where nothing was."""

    q: str = ""
    match: str = "words"
    direction: str = ""
    sign: str = "+"
    by: str = "cosine"
    least: str = ""
    label: str = ""
    tag: str = ""
    filters: tuple[Filter, ...] = ()
    """All of them have to hold."""

    @classmethod
    def of(cls, typed: Iterable[tuple[str, str]]) -> Question:
        """Takes what belongs to a question from what a form sent; a field that is too long is cut.

        Args:
            typed: names and values in their order; each filter is a `column`, an `op` and a `value`, and one without a
                column or a value is still being typed, so it is left out.
        """
        pairs = [(name, value[:MAX_CHARS]) for name, value in typed]
        parts = ([value for name, value in pairs if name == part] for part in ("column", "op", "value"))
        filters = (Filter(column or "", op or "is", value or "") for column, op, value in zip_longest(*parts))
        simple = {name: value for name, value in pairs if name in _SIMPLE and value}
        return cls(**simple, filters=tuple(f for f in filters if f.column and f.value)[:MAX_FILTERS])

    def pairs(self) -> list[tuple[str, str]]:
        """The fields that differ from an empty question, as a form sends them."""
        changed = [(name, value) for name, default in _SIMPLE.items() if (value := getattr(self, name)) != default]
        return changed + [(name, getattr(f, name)) for f in self.filters for name in ("column", "op", "value")]

    def without(self, place: int) -> Question:
        """The question without the filter at a place."""
        return replace(self, filters=self.filters[:place] + self.filters[place + 1 :])


_SIMPLE: dict[str, str] = {item.name: str(item.default) for item in fields(Question) if item.name != "filters"}
"""Fields that are one text, and what they are where nothing was typed."""


@dataclass(frozen=True)
class Found:
    """Examples in the order asked for."""

    rows: NDArray[np.int64]
    """(n,) their numbers."""
    values: NDArray[np.float64] | None
    """(n,) signed cosine or projection that they are ordered by; None without a direction."""
    order: str
    """The order in words."""
    sought: Sought = NOTHING
    """What can be marked in their texts."""


@dataclass
class Search:
    """Answers questions about the examples of a run."""

    index: Index
    scores: Scores
    tags: Tags
    _kept: OrderedDict[tuple[Question, int], Found] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @cached_property
    def place(self) -> dict[str, int]:
        """Row number of each id."""
        return {row_id: n for n, row_id in enumerate(self.scores.ids)}

    def find(self, question: Question) -> Found:
        """The examples asked for; the last few answers are kept, so that further pages cost nothing.

        Raises: UsageError: a part of the question cannot be meant.
        """
        key = (question, self.tags.version if question.tag else 0)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._find(question)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > KEPT_RESULTS:
                self._kept.popitem(last=False)
        return found

    def _find(self, question: Question) -> Found:
        n_rows = len(self.scores.ids)
        sought = _sought(question)
        rows, order = self._holding(sought, ranked=not question.direction)
        keep = np.ones(n_rows, dtype=bool)
        if question.label:
            keep &= _mask(self._cells(LABEL, "value = ?", question.label), n_rows)
        for wanted in question.filters:
            keep &= _mask(self._column_rows(wanted), n_rows)
        if question.tag:
            tagged = [self.place[row_id] for row_id in self.tags.ids(question.tag) if row_id in self.place]
            keep &= _mask(np.asarray(tagged, dtype=np.int64), n_rows)
        rows = rows[keep[rows]]
        if not question.direction:
            return Found(rows, None, order, sought)
        values = self.along(question)[rows]
        if question.least:
            enough = values >= _number(question.least, "the threshold")
            rows, values = rows[enough], values[enough]
        by_value = np.argsort(-values, kind="stable")
        return Found(rows[by_value], values[by_value], f"the highest {MEASURES[question.by]} first", sought)

    def _holding(self, sought: Sought, *, ranked: bool) -> tuple[NDArray[np.int64], str]:
        """The rows whose prompt or response holds what is sought, and their order in words.

        Cost: words are looked up; characters are looked for in every text, 2 ms per MB of them.
        """
        in_order = "in the order of the run"
        if sought.characters:
            pattern = "%" + re.sub("[%_~]", r"~\g<0>", sought.characters) + "%"
            sql = "SELECT n FROM examples WHERE prompt LIKE ? ESCAPE '~' OR response LIKE ? ESCAPE '~' ORDER BY n"
            return self.index.numbers(sql, (pattern, pattern)), in_order
        if not sought.words:
            return np.arange(len(self.scores.ids)), in_order
        rows = self.index.numbers("SELECT rowid FROM words WHERE words MATCH ?", (sought.words,))
        if not ranked or len(rows) > RANKED_ROWS:
            return rows, in_order
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid"
        return self.index.numbers(sql, (sought.words,)), "the best matches first"

    def along(self, question: Question) -> NDArray[np.float64]:
        """(all rows,) signed cosine or projection along the direction asked for. Raises: UsageError: no such one."""
        k = direction_number(question.direction, self.scores.values.shape[1])
        if question.by not in MEASURES:
            raise UsageError(f"examples are ordered by {' or '.join(MEASURES)}, not {question.by!r}")
        if question.sign not in ("+", "-"):
            raise UsageError(f"the sign of a direction is + or -, not {question.sign!r}")
        column = self.scores.cosine[:, k] if question.by == "cosine" else self.scores.values[:, k]
        return np.asarray(column if question.sign == "+" else -column, dtype=np.float64)

    def _column_rows(self, wanted: Filter) -> NDArray[np.int64]:
        """The rows of which a filter holds. Raises: UsageError: it cannot be meant."""
        name, op, value = wanted.column, wanted.op, wanted.value
        if name not in {column.name for column in self.index.columns}:
            raise UsageError(f"the corpus has no column {name!r} that could be filtered by")
        if op == "is":
            return self._cells(name, "value = ?", value)
        if op == "contains":
            return self._cells(name, "instr(lower(value), lower(?)) > 0", value)
        if op not in OPERATORS:
            raise UsageError(f"a column is compared by {', '.join(OPERATORS)}, not by {op!r}")
        sign = ">=" if op == "least" else "<="
        return self._cells(name, f"number {sign} ?", _number(value, f"the value of {name}"))

    def _cells(self, name: str, condition: str, value: str | float) -> NDArray[np.int64]:
        return self.index.numbers(f"SELECT n FROM cells WHERE name = ? AND {condition}", (name, value))

    def snippets(self, rows: Sequence[int], sought: Sought = NOTHING) -> dict[int, Texts]:
        """Beginning of the prompt and of the response of rows, or the stretch around what was found in them."""
        marks = ",".join("?" * len(rows))
        cut = "prompt, response" if sought else "substr(prompt, 1, 300), substr(response, 1, 200)"
        found = self.index.rows(f"SELECT n, {cut} FROM examples WHERE n IN ({marks})", rows)
        return sought.snippets({n: (prompt, response) for n, prompt, response in found})

    def highlighted(self, n: int, sought: Sought) -> Texts | None:
        """Prompt and response of a row with what was found marked; None where it is not in them."""
        for prompt, response in self.index.rows("SELECT prompt, response FROM examples WHERE n = ?", (n,)):
            return sought.whole((prompt, response))
        return None


def _mask(rows: NDArray[np.int64], n_rows: int) -> NDArray[np.bool_]:
    """(n_rows,) which rows are among the given ones."""
    mask = np.zeros(n_rows, dtype=bool)
    mask[rows] = True
    return mask


def _sought(question: Question) -> Sought:
    """What a question looks for in texts. Raises: UsageError: it cannot be meant."""
    if question.match not in MATCHES:
        raise UsageError(f"texts are searched by {' or '.join(MATCHES)}, not by {question.match!r}")
    if not question.q.strip():
        return NOTHING
    if question.match == "text":
        return Sought(characters=storable(question.q))
    return Sought(words=full_text_query(question.q))


def full_text_query(typed: str) -> str:
    """What a person typed as a query of SQLite's full-text index; empty for nothing.

    All words have to be there. "Words in quotes" have to follow one another, `-word` must not be there, and `begin*`
    stands for every word that begins so. Signs between letters and digits only separate words: `7x+7=49` asks for the
    three words 7x, 7 and 49 in a row.
    Raises: UsageError: there are only signs, or only words that must not be there.
    """
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, quoted, plain in re.findall(r'(-?)(?:"([^"]*)"?|([^\s"]+))', typed):
        text = quoted or plain
        if not re.search(r"\w", text.replace("_", "")):
            continue
        star = "*" if plain.endswith("*") else ""
        phrase = text.replace('"', " ").replace("\0", " ")
        (unwanted if minus else wanted).append(f'"{phrase}"{star}')
    if not wanted and typed.strip():
        what = "words that must not be there" if unwanted else "signs"
        raise UsageError(f"the query has only {what}; add a word to look for")
    return " ".join([" AND ".join(wanted), *(f"NOT {phrase}" for phrase in unwanted)]) if wanted else ""


def direction_number(text: str, n_directions: int) -> int:
    """The 0-based direction that a text names. Raises: UsageError: there is no such direction."""
    digits = text.removeprefix("d")
    if not (digits.isascii() and digits.isdecimal() and int(digits[:9]) < n_directions):
        raise UsageError(f"there is no direction {text!r}; the basis has 0 to {n_directions - 1}")
    return int(digits)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{what} is {text!r}; give a number")
    return value
