"""What was looked for, marked in the texts in which it was found."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from .index import TOKENS

START, END = "\x02", "\x03"
"""What stands around a found stretch; see `shown.marked`."""
MAX_MARKS = 1_000
"""Found characters are marked in a text up to so many times."""
LEAD_CHARS = 30
"""How much of a text is shown before the first found characters."""
PROMPT_CHARS, RESPONSE_CHARS = 300, 200

Texts = tuple[str, str]
"""Prompt and response of an example."""


@dataclass(frozen=True)
class Sought:
    """What is marked: a full-text query, or characters as they are written; neither where nothing was asked for."""

    words: str = ""
    characters: str = ""

    def __bool__(self) -> bool:
        return bool(self.words or self.characters)

    def snippets(self, texts: Mapping[int, Texts]) -> dict[int, Texts]:
        """The stretch of each text around what was found first in it, else its beginning."""
        if self.characters:
            return {n: (_around(p, self.characters), _around(r, self.characters)) for n, (p, r) in texts.items()}
        beginnings = {n: (prompt[:PROMPT_CHARS], response[:RESPONSE_CHARS]) for n, (prompt, response) in texts.items()}
        if not self.words:
            return beginnings
        return beginnings | _in_words(texts, self.words, "snippet(words, {}, ?, ?, '…', 40)")

    def whole(self, texts: Texts) -> Texts | None:
        """Both texts with all that was found marked; None where nothing of it is in them."""
        if self.characters:
            marked = tuple(_marked(text, self.characters) for text in texts)
            return None if marked == texts else (marked[0], marked[1])
        return _in_words({0: texts}, self.words, "highlight(words, {}, ?, ?)").get(0) if self.words else None


NOTHING = Sought()


def _pattern(characters: str) -> re.Pattern[str]:
    """Small and capital letters are told apart outside ASCII only, as in SQLite's LIKE."""
    return re.compile(re.escape(characters), re.IGNORECASE | re.ASCII)


def _marked(text: str, characters: str) -> str:
    """The text with the found characters marked, the first MAX_MARKS times."""
    return _pattern(characters).sub(lambda found: f"{START}{found[0]}{END}", text, count=MAX_MARKS)


def _around(text: str, characters: str) -> str:
    """The stretch of a text that begins a little before the first found characters."""
    first = _pattern(characters).search(text)
    if first is None:
        return text[:PROMPT_CHARS]
    start = max(0, first.start() - LEAD_CHARS)
    return ("…" if start else "") + _marked(text[start : first.end() + PROMPT_CHARS], characters)


def _in_words(texts: Mapping[int, Texts], words: str, marking: str) -> dict[int, Texts]:
    """Marks the found words of a few texts; those without them are left out.

    The few are indexed anew, in memory: asked of the whole index, a query like `a*` costs seconds for every row.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE VIRTUAL TABLE words USING fts5(prompt, response, {TOKENS})")
        rows = ((n, prompt, response) for n, (prompt, response) in texts.items())
        connection.executemany("INSERT INTO words (rowid, prompt, response) VALUES (?, ?, ?)", rows)
        sql = f"SELECT rowid, {marking.format(0)}, {marking.format(1)} FROM words WHERE words MATCH ?"
        return {n: (prompt, response) for n, prompt, response in connection.execute(sql, (*[START, END] * 2, words))}
    finally:
        connection.close()
