"""Conversations as one list of `{role, content}`, as OpenAI's fine-tuning files and most chat data sets hold them."""

from __future__ import annotations

from ...corpus_formats import Message
from .form import ExportFormat, response_message

ABOUT = """`messages`: the turns of the conversation, `{"role": ..., "content": ...}`; the last one is the response.

**TRL puts the loss on the whole sequence of such rows, prompts included**, unless `SFTConfig(assistant_only_loss=True)`
is set, which needs a chat template that marks the assistant's turns and then learns all of them. To learn the responses
only, export to `trl`."""


def columns(prompt: list[Message], response: str) -> dict[str, list[Message]]:
    return {"messages": [*prompt, response_message(response)]}


MESSAGES = ExportFormat("messages", columns, "messages", ABOUT)
