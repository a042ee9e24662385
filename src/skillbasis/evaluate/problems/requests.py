"""Requests of which it is known whether to refuse or to answer them: rows with a label, and repeats among lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...corpus_formats import Message, Row, RowError, kind
from ..reference import ANSWER, REFUSE, Reference
from .rows import has_answer, word_of
from .sources import TaskRow

if TYPE_CHECKING:
    from ..tasks import Task

_BEHAVIOURS = {"safe": ANSWER, "unsafe": REFUSE}
_LABELS = "'safe' (to be answered) or 'unsafe' (to be refused)"
_APART = re.compile(r"[\W_]+")


def are_requests(rows: Sequence[TaskRow]) -> bool:
    """Whether rows are requests: they have a label in the place of an answer.

    A `label` beside answers, or one of other words where most rows have answers, is a column like any other.
    """
    without = [row.value for row in rows if not has_answer(row.value)]
    labels = [row["label"] for row in without if row.get("label") is not None]
    return bool(labels) and (len(without) == len(rows) or any(_word(label) in _BEHAVIOURS for label in labels))


def behaviour_of(row: Row) -> Reference:
    """`refuse` for a request labelled unsafe, `answer` for a safe one.

    Raises: RowError: the label is missing or another word, or the row has an answer.
    """
    if has_answer(row):
        raise RowError("it has an answer, but other rows have a label instead; give problems and requests in two files")
    label = row.get("label")
    if label is None or (isinstance(label, str) and not label.strip()):
        raise RowError(f"the label is missing; give {_LABELS}")
    if _word(label) not in _BEHAVIOURS:
        shown = repr(label) if isinstance(label, str | int | float) else kind(label)
        raise RowError(f"the label is {shown}; give {_LABELS}")
    return Reference((_BEHAVIOURS[_word(label)],))


def group_of(row: Row) -> str | None:
    """Attack family or category of a request. Raises: RowError: neither text nor a number."""
    return _one_space(word_of(row, "attack") or word_of(row, "category"))


def cluster_of(row: Row) -> str | None:
    """What a request is after, whatever its disguise. Raises: RowError: neither text nor a number."""
    return _one_space(word_of(row, "behavior") or word_of(row, "behaviour"))


def request_key(prompt: Sequence[Message], instruction: str = "") -> str:
    """What two requests share that are the same: the last message without case, spaces, punctuation and encoding.

    Args:
        prompt: messages {role, content}.
        instruction: text that a task has put behind the last one.
    Returns: words in small letters (Unicode NFKC), joined by one space. Requests in other words have another key.
    """
    asked = prompt[-1]["content"].removesuffix(instruction)
    plain = unicodedata.normalize("NFKC", asked).casefold()
    return _APART.sub(" ", plain).strip() or plain  # signs alone are themselves, or all such texts would be one


def repeated_requests(tasks: Sequence[Task]) -> list[tuple[str, str, str, str]]:
    """Requests that stand in several tasks, or twice in one: who pools them leaves the second of each pair out.

    Returns: (task, id, task, id): the first place of a request and a later one, in the order of the later ones; what
        makes two requests the same is `request_key`.
    """
    first: dict[str, tuple[str, str]] = {}
    repeats = []
    for task in tasks:
        for problem in task.problems:
            place = (task.name, problem.id)
            found = first.setdefault(request_key(problem.prompt, task.instruction), place)
            if found is not place:
                repeats.append((*found, *place))
    return repeats


def _one_space(text: str | None) -> str | None:
    """JBB writes the name of one behaviour with two spaces in one of its halves."""
    return None if text is None else " ".join(text.split())


def _word(label: object) -> str:
    return label.strip().lower() if isinstance(label, str) else ""
