"""ShareGPT: conversations of `{from, value}`."""

from __future__ import annotations

from ...corpus_formats import Message
from .form import ExportFormat, response_message

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

ABOUT = """`conversations`: the turns, `{"from": ..., "value": ...}`, from `system`, `human`, `gpt` or `observation` (a
tool's result); the last one is the response."""


def columns(prompt: list[Message], response: str) -> dict[str, list[Message]]:
    turns = [*prompt, response_message(response)]
    return {"conversations": [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]}


SHAREGPT = ExportFormat("sharegpt", columns, "sharegpt", ABOUT)
