"""What an export format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...corpus_formats import Message


@dataclass(frozen=True)
class ExportFormat:
    """One format of training data."""

    name: str
    columns: Callable[[list[Message], str], dict[str, Any]]
    """From a row's prompt and response to its columns. Raises: RowError: with the reason, where they have no place."""
    read_as: str
    """The format's name in `corpus_formats.FORMATS`; every row is read back so and has to be the same."""
    about: str
    """Markdown for the card: what the columns hold, and how to train on them."""
    tags: tuple[str, ...] = field(default=())
    """Further tags of the card."""


def response_message(response: str) -> Message:
    """The last turn, which is learnt."""
    return {"role": "assistant", "content": response}
