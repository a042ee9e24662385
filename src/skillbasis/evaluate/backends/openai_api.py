"""What speaks to an OpenAI-compatible endpoint: its URL and key, attempts and pauses, the reading of an answer.

The API key is read from the environment and goes into one header: it stands in no record and no message.
Source: OpenAI's API reference (chat completions, completions, models); RFC 9110 for Retry-After.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ...errors import SkillbasisError, UsageError, nearest
from .http_json import Client, HttpError

CHAT_PATH, COMPLETIONS_PATH = "/chat/completions", "/completions"
MAX_CONCURRENCY = 256
"""Most requests that are open together, whatever is asked for: each has a thread and a connection."""
MAX_WAIT_S = 60.0
"""Longest pause between two attempts, unless the server asks for a longer one."""
MAX_RETRY_AFTER_S = 600.0
"""A server that asks for more is not waited for."""
SEED_BITS = 31
"""Some servers keep a seed in 32 bits, signed or not."""
KEEPS_ANSWERS = "the same command goes on with the answers still missing"
"""What is true of every run that asks an endpoint."""
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_FAILED = ("abort", "error")  # ends of an answer that are the server's fault
_N_NAMED = 5  # models named in a message


class Endpoint:
    """An endpoint that is asked with one key, and asked again where its refusal is temporary."""

    def __init__(
        self, base_url: str, *, api_key_env: str = "OPENAI_API_KEY", timeout_s: float = 1800.0, retries: int = 6
    ) -> None:
        """Sends nothing yet.

        Args:
            base_url: what comes before /chat/completions; it mostly ends in /v1.
            api_key_env: environment variable that holds the key; where it is not set, none is sent.
            timeout_s: how long one answer may take.
            retries: further attempts after a temporary refusal (429, 5xx) or a broken connection, after 1, 2, 4, ... s.
        Raises: UsageError: no such URL can be meant, or the key cannot be sent.
        """
        self.base_url = _checked_url(base_url, api_key_env)
        if not timeout_s > 0 or retries < 0:
            raise UsageError(f"timeout_s must be above 0 and retries 0 or more, not {timeout_s} and {retries}")
        self.timeout_s, self.retries = timeout_s, retries
        self._key_env = api_key_env
        self._key = os.environ.get(api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError(f"the key in {api_key_env} has characters that no header can carry; set it anew")

    def client(self, timeout_s: float | None = None) -> Client:
        """A client whose requests end together; `timeout_s` is the endpoint's own where none is given."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return Client(self.base_url, headers, secret=self._key, timeout_s=timeout_s or self.timeout_s)

    def ask(self, client: Client, path: str, body: Mapping[str, Any], retries: int | None = None) -> dict[str, Any]:
        """One answer as the endpoint gives it, after as many attempts as it takes and may take.

        Args:
            retries: further attempts; the endpoint's own where none is given.
        Raises: HttpError: the last attempt's.
        """
        retries = self.retries if retries is None else retries
        for attempt in range(retries + 1):
            try:
                answer = client.request(path, body)
                text_of(choice_of(answer), truncated=False)  # or there is none to read
                return answer
            except HttpError as error:
                # A second time-out says that answers take that long, not that this one was lost.
                last = attempt == retries or (error.timed_out and attempt > 0)
                asked_for = error.retry_after_s or 0.0
                if last or not is_transient(error) or asked_for > MAX_RETRY_AFTER_S:
                    error.n_attempts = attempt + 1
                    raise
                pause_s = min(MAX_WAIT_S, 2.0**attempt) * random.uniform(0.75, 1.25)  # not all at the same moment
                client.pause(max(asked_for, pause_s))
        raise AssertionError("the last attempt returns or raises")

    def models(self, client: Client) -> dict[str, int | None]:
        """The models that the endpoint lists, with their contexts where it tells them (vLLM); empty where it does not.

        A list only helps to say what is wrong: not every endpoint has one, and it need not name all it would take.
        """
        try:
            listed = client.request("/models").get("data")
        except HttpError:
            return {}
        models = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        contexts = {str(model.get("id")): model.get("max_model_len") for model in models}
        return {name: context if isinstance(context, int) else None for name, context in contexts.items()}

    def no_such_model(self, client: Client, error: HttpError, model: str) -> UsageError | None:
        """What to tell of a refusal whose cause is the name of the model, by the endpoint's list; else None."""
        served = list(self.models(client)) if error.status in (400, 404) else []
        if not served or model in served:
            return None
        some = ", ".join(served[:_N_NAMED]) + (", ..." if len(served) > _N_NAMED else "")
        return UsageError(f"{self.base_url} serves no model {model!r}{nearest(model, served)}; it serves {some}")

    def failure(self, error: HttpError, path: str, *, has: str, slow: str, hint: str = "") -> SkillbasisError:
        """What to tell of a request that failed for good.

        Args:
            path: what was asked for, behind the base URL.
            has: what the endpoint must have, such as `the model 'm'`.
            slow: what to change where it gave no answer in time.
            hint: what else to say where it refuses the request.
        """
        where, said = f"{self.base_url}{path}", f": {error.said}" if error.said else ""
        if error.status in (401, 403):  # what such an answer says may hold the key, or half of it
            key = f"refuses the key in {self._key_env}" if self._key else f"wants a key, and {self._key_env} is not set"
            return UsageError(f"{where} {key} (status {error.status}); export {self._key_env} with a valid key")
        if error.status == 404:
            return UsageError(
                f"{where} is not there (status 404{said}); look whether the base URL ends in /v1 and the endpoint has "
                f"{has}"
            )
        if error.status in (400, 413, 422):
            return UsageError(f"{where} refuses the request (status {error.status}){said}{hint}")
        if error.timed_out:
            return SkillbasisError(
                f"{where} gave no answer within {error.timeout_s:g} s; {slow}, and start again: {KEEPS_ANSWERS}"
            )
        if 300 <= (error.status or 0) < 400:
            return UsageError(f"{where} is elsewhere (status {error.status}): {error.said}; give the right base URL")
        what = f"failed with status {error.status}" if error.status else "cannot be reached"
        what = "gave no answer that can be read" if error.status == 200 else what
        attempts = f" after {error.n_attempts} attempts" if error.n_attempts > 1 else ""
        return SkillbasisError(
            f"{where} {what}{attempts}{said}; look after the server and start again: {KEEPS_ANSWERS}"
        )


class Served:
    """What an endpoint called itself in its answers: model and system fingerprint, the first few of them."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, answer: Mapping[str, Any]) -> None:
        """Takes down the names in an answer."""
        if len(self._names) < _N_NAMED:
            names = (answer.get("model"), answer.get("system_fingerprint"))
            self._names.add(" ".join(str(name) for name in names if name))

    @property
    def names(self) -> list[str]:
        """In alphabetical order."""
        return sorted(self._names)


def is_transient(error: HttpError) -> bool:
    """Whether another attempt may succeed."""
    return error.retry or error.status in _RETRIED


def choice_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The one choice of an answer. Raises: HttpError: there is none, or the server gave it up."""
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise HttpError(200, f"the answer has no choices but {', '.join(map(str, answer)) or 'nothing'}", retry=True)
    choice: dict[str, Any] = choices[0]
    if choice.get("finish_reason") in _FAILED:
        raise HttpError(200, f"the answer ended with finish_reason {choice['finish_reason']!r}", retry=True)
    return choice


def text_of(choice: Mapping[str, Any], truncated: bool) -> str:
    """What was written: the text, and in think tags before it what the server took out of it as reasoning.

    A thought that was cut stays open, so that nothing in it passes for an answer.

    Raises: HttpError: the choice holds no text.
    """
    if isinstance(choice.get("text"), str):
        return str(choice["text"])
    message = choice.get("message")
    if not isinstance(message, dict):
        raise HttpError(200, "the answer has neither a message nor a text", retry=True)
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, as some servers give them
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str) or not thought.strip():
        return str(content)
    return f"<think>\n{thought}" if truncated and not content else f"<think>\n{thought}\n</think>\n\n{content}"


def tokens_of(answer: Mapping[str, Any], kind: str) -> int | None:
    """How many tokens an answer's `usage` counts (`prompt_tokens`, `completion_tokens`); None where it does not."""
    usage = answer.get("usage")
    n_tokens = usage.get(kind) if isinstance(usage, dict) else None
    return n_tokens if isinstance(n_tokens, int) and n_tokens >= 0 else None


def _checked_url(base_url: str, api_key_env: str) -> str:
    """The base URL without a slash at its end. Raises: UsageError."""
    example = "give one such as http://localhost:8000/v1"
    try:
        url = urlsplit(base_url)
        hostname, _ = url.hostname, url.port
    except ValueError as error:
        raise UsageError(f"the base URL cannot be read ({error}); {example}") from None
    if url.username or url.password or url.query or url.fragment:
        raise UsageError(
            f"the base URL of {hostname} carries a password or a query, which would be written into the record; put "
            f"the key into the environment variable {api_key_env}"
        )
    if url.scheme not in ("http", "https") or not hostname or not (base_url.isascii() and base_url.isprintable()):
        raise UsageError(f"{base_url!r} is no URL of an endpoint; {example}")
    if " " in base_url:
        raise UsageError(f"the base URL {base_url!r} has a space in it; {example}")
    plain = base_url.rstrip("/")
    for path in (CHAT_PATH, COMPLETIONS_PATH, "/models"):
        if plain.endswith(path):
            raise UsageError(f"the base URL is what stands before {path}; give {plain.removesuffix(path)}")
    return plain
