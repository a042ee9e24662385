"""A comparison of two answers as a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .answers import SIDES, Answering
from .shown import environment


async def events(answering: Answering, closing: Callable[[], bool]) -> AsyncIterator[str]:
    """The messages of a comparison; one that nobody listens to any more is stopped.

    Args:
        closing: whether the server is about to end, which must not wait for an answer.
    """
    version, sent = -1, dict.fromkeys(SIDES, "")
    template = environment().get_template("side.html.j2")
    try:
        while True:
            version = await asyncio.to_thread(answering.wait, version, 1.0)
            over = answering.over
            for name in SIDES:
                text = template.render(side=answering.sides[name])
                if text != sent[name]:
                    sent[name] = text
                    yield _message(name, text)
            if over or closing():
                break
        words = "Stopped." if answering.stopping or not over else "Both answers are there."
        if answering.failure:
            words = environment().get_template("problem.html.j2").render(sentence=answering.failure)
        yield _message("state", words)
        yield _message("over", "over")
    finally:
        if not answering.over:
            answering.stopping = True


def _message(event: str, text: str) -> str:
    """One message of a stream; each line of its text is a line of data."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join([f"event: {event}\n", *(f"data: {line}\n" for line in lines), "\n"])
