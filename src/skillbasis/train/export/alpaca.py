"""Alpaca: instruction and output, with earlier turns in `history` and the system prompt in `system`."""

from __future__ import annotations

from typing import Any

from ...corpus_formats import Message, RowError
from .form import ExportFormat

ABOUT = """`instruction`: the last user turn, whole (`input` is empty); `output`: the response; `history`: earlier turns
as pairs of user and assistant text; `system`: the system prompt, empty where there is none."""


def columns(prompt: list[Message], response: str) -> dict[str, Any]:
    system, turns = "", prompt
    if turns and turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
        if not system.strip():
            raise RowError("its system prompt is blank, which Alpaca cannot tell from none")
    expected = ["user" if position % 2 == 0 else "assistant" for position in range(len(turns))]
    if [turn["role"] for turn in turns] != expected or len(turns) % 2 == 0:
        roles = ", ".join(turn["role"] for turn in prompt)
        raise RowError(
            f"Alpaca holds user and assistant turns by turns, ending with a user's, and this prompt is {roles}"
        )
    pairs = [[turns[i]["content"], turns[i + 1]["content"]] for i in range(0, len(turns) - 1, 2)]
    return {
        "instruction": turns[-1]["content"],
        "input": "",
        "output": response,
        "history": pairs,
        "system": system,
    }


ALPACA = ExportFormat("alpaca", columns, "alpaca", ABOUT)
