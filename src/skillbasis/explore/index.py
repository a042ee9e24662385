"""The examples of a run in one SQLite file with a full-text index: built once, then only read.

Row n of the file is row n of the run's scores. The file holds all that is shown, so a run can be explored when its
corpus has moved away since.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import atomic_path
from ..errors import ArtifactError
from ..interpret.attributes import prompt_text

if TYPE_CHECKING:
    from ..corpus import Corpus

LABEL = "label"
"""Name under which the labels of a row are found beside its other columns."""
CELL_CHARS = 500
"""Characters of a column's value that a filter compares; what is longer is read in the opened example."""
MAX_CHOICES = 200
_VERSION = 1
TOKENS = "tokenize='unicode61 remove_diacritics 2'"
"""How texts are cut into words: letters and digits of any script, without accents, small."""
_SCHEMA = f"""
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE examples (
    n INTEGER PRIMARY KEY, id TEXT, prompt TEXT, response TEXT, messages TEXT, answer TEXT, labels TEXT, extra TEXT,
    source_row TEXT
);
CREATE TABLE cells (name TEXT, value TEXT, number REAL, n INTEGER);
CREATE VIRTUAL TABLE words USING fts5(
    prompt, response, content='examples', content_rowid='n', {TOKENS}
);
"""
_FINISH = """
INSERT INTO words (words) VALUES ('rebuild');
CREATE INDEX by_id ON examples (id);
CREATE INDEX by_value ON cells (name, value);
CREATE INDEX by_number ON cells (name, number);
"""


@dataclass(frozen=True)
class Example:
    """One row of the corpus as it is shown."""

    n: int
    id: str
    messages: list[dict[str, str]]
    response: str
    answer: str | None
    labels: list[str]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column that can be filtered by."""

    name: str
    n_rows: int
    numeric: bool
    """Whether every value is a number."""
    values: list[tuple[str, int]]
    """The values with their counts, most frequent first; empty where there are more than MAX_CHOICES."""


def build_index(path: Path, corpus: Corpus, ids: Sequence[str], key: str, *, responses: bool) -> None:
    """Writes the examples into a new file, which stands, complete, at the end.

    Args:
        ids: the scored rows, in the order of the scores; all of them are in the corpus.
        key: what the file is made from.
        responses: whether responses are held; else only prompts are searched and shown.
    Cost: one pass over the corpus; about three times its text on the disk, 4 s for 100,000 short rows.
    """
    place = {row_id: n for n, row_id in enumerate(ids)}
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)
        connection = sqlite3.connect(temporary)
        try:
            connection.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_SCHEMA}")
            for row in corpus.rows:
                n = place.get(row["id"])
                if n is None:  # held out or skipped by the run
                    continue
                response = (row["response"] or "") if responses else ""
                extra = json.loads(row["extra"] or "{}")
                connection.execute(
                    "INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        n,
                        row["id"],
                        storable(prompt_text(row["prompt"])),
                        storable(response),
                        json.dumps(row["prompt"]),
                        row["answer"],
                        json.dumps(row["labels"]),
                        json.dumps(extra),
                        row["source_row"],
                    ),
                )
                connection.executemany(
                    "INSERT INTO cells VALUES (?, ?, ?, ?)", list(_cells(n, row["labels"], row["answer"], extra))
                )
            connection.executescript(_FINISH)
            facts = {"key": key, "version": str(_VERSION), "corpus_fingerprint": corpus.fingerprint}
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            connection.commit()
        finally:
            connection.close()


def storable(text: str) -> str:
    """A text that SQLite can hold and search to its end: without NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _cells(
    n: int, labels: Sequence[str], answer: str | None, extra: Mapping[str, Any]
) -> Iterator[tuple[str, str, float | None, int]]:
    """The values of a row that can be filtered by; lists and objects are not."""
    for label in labels:
        yield LABEL, storable(label)[:CELL_CHARS], None, n
    columns = dict(extra) if answer is None else {"answer": answer, **extra}
    for name, value in columns.items():
        if isinstance(value, bool):
            yield storable(name), "true" if value else "false", None, n
        elif isinstance(value, int | float):
            yield storable(name), f"{value:.12g}", float(value), n
        elif isinstance(value, str):
            yield storable(name), storable(value)[:CELL_CHARS], None, n


@dataclass(frozen=True)
class Index:
    """An index that is read, by any number of threads."""

    path: Path
    _local: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path, key: str) -> Index | None:
        """The index at `path` if it was made from `key` by this version, else None."""
        if not path.is_file():
            return None
        index = cls(path)
        try:
            facts = dict(index.rows("SELECT key, value FROM facts"))
        except sqlite3.DatabaseError:
            return None  # damaged, so it is built anew
        return index if (facts.get("key"), facts.get("version")) == (key, str(_VERSION)) else None

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs one query on this thread's own connection, which cannot write."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            uri = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = self._local.connection = sqlite3.connect(uri, uri=True)
        return connection.execute(sql, values).fetchall()

    def numbers(self, sql: str, values: Sequence[Any] = ()) -> NDArray[np.int64]:
        """(n,) first column of a query, whole numbers."""
        return np.fromiter((row[0] for row in self.rows(sql, values)), dtype=np.int64)

    @cached_property
    def columns(self) -> list[Column]:
        """The columns of the corpus that can be filtered by, labels first. Cost: one pass over their values."""
        found = []
        for name, n_rows, n_numbers, n_values in self.rows(
            "SELECT name, count(*), count(number), count(DISTINCT value) FROM cells GROUP BY name ORDER BY name"
        ):
            counted = "SELECT value, count(*) FROM cells WHERE name = ? GROUP BY value ORDER BY 2 DESC, 1"
            values = self.rows(counted, (name,)) if n_values <= MAX_CHOICES else []
            found.append(Column(name, n_rows, n_numbers == n_rows, values))
        return sorted(found, key=lambda column: column.name != LABEL)

    @property
    def corpus_fingerprint(self) -> str:
        return str(self.rows("SELECT value FROM facts WHERE key = 'corpus_fingerprint'")[0][0])

    def example(self, n: int) -> Example | None:
        """Row n, or None where there is none."""
        sql = "SELECT n, id, messages, response, answer, labels, extra FROM examples WHERE n = ?"
        for number, row_id, messages, response, answer, labels, extra in self.rows(sql, (n,)):
            return Example(
                number, row_id, json.loads(messages), response, answer, json.loads(labels), json.loads(extra)
            )
        return None

    def source_rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and source row of examples, in the order given."""
        for start in range(0, len(numbers), 500):
            part = numbers[start : start + 500]
            marks = ",".join("?" * len(part))
            sql = f"SELECT n, id, source_row FROM examples WHERE n IN ({marks})"
            found = {n: (row_id, text) for n, row_id, text in self.rows(sql, part)}
            for n in part:
                yield found[n][0], json.loads(found[n][1])

    def check(self, n_rows: int) -> None:
        """Raises: ArtifactError: the file holds other rows than it should."""
        if self.rows("SELECT count(*) FROM examples")[0][0] != n_rows:
            raise ArtifactError(f"{self.path} does not hold every scored row; delete it, and it is built again")
