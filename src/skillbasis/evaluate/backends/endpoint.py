"""Answers from any OpenAI-compatible endpoint, over HTTP with the standard library: a seeded request per rollout."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal, get_args

from ...errors import SkillbasisError, UsageError
from ..sampler import Completion, Prompt, SamplingSettings, sample_seed
from .http_json import Client, HttpError
from .openai_api import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    MAX_CONCURRENCY,
    SEED_BITS,
    Endpoint,
    Served,
    choice_of,
    text_of,
    tokens_of,
)

Mode = Literal["chat", "completions"]
_CHECK_TIMEOUT_S = 300.0  # some servers load the model with the first request
_CHECK_RETRIES = 2
_CHECK_TOKENS = 16  # some reasoning models refuse fewer


class EndpointSampler:
    """A backend behind a URL; see `Sampler`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        mode: Mode = "chat",
        api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 1800.0,
        retries: int = 6,
    ) -> None:
        """Sends nothing yet.

        Args:
            base_url: what comes before /chat/completions; it mostly ends in /v1.
            model: the name under which the endpoint serves it.
            mode: `chat` sends messages and the server applies its chat template; `completions` sends the contents and
                a newline as plain text, for models without a template.
            api_key_env: environment variable that holds the key; where it is not set, none is sent.
            timeout_s: how long one answer may take.
            retries: further attempts after a temporary refusal (429, 5xx) or a broken connection, after 1, 2, 4, ... s.
        Raises: UsageError: no such URL or mode can be meant, or the key cannot be sent.
        """
        self._endpoint = Endpoint(base_url, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries)
        self.base_url = self._endpoint.base_url
        if mode not in get_args(Mode):
            raise UsageError(f"unknown mode {mode!r}; allowed are {', '.join(get_args(Mode))}")
        self.model, self.mode = model, mode
        self._length_field = "max_tokens"
        self._served = Served()

    @property
    def identity(self) -> dict[str, Any]:
        """See `Sampler`. The weights are not known: the endpoint can change them under the name."""
        return {"backend": "openai", "base_url": self.base_url, "model": self.model, "mode": self.mode}

    @property
    def description(self) -> dict[str, Any]:
        """See `Sampler`; `served` is what the endpoint called itself in this process: model, system fingerprint."""
        return {
            "model": self.model,
            "engine": f"endpoint {self.base_url}",
            "versions": {"skillbasis": version("skillbasis")},
            "template_fingerprint": None,
            "served": self._served.names,
            "weights": "not known: an endpoint can change what it serves under a name",
        }

    def check(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """See `Sampler`: asks for one short answer to the longest prompt, then for the list of models.

        Raises: UsageError: no such model, a key that is wrong or missing, a mode the endpoint has not, a context too
            short. SkillbasisError: it cannot be reached, or counts no tokens.
        """
        if not prompts:
            return
        client = self._endpoint.client(min(self._endpoint.timeout_s, _CHECK_TIMEOUT_S))
        longest = max(prompts, key=lambda prompt: sum(len(message["content"]) for message in prompt.messages))
        short = replace(settings, max_tokens=min(_CHECK_TOKENS, settings.max_tokens))
        retries = min(self._endpoint.retries, _CHECK_RETRIES)
        try:
            try:
                answer = self._endpoint.ask(client, self._path, self._body(longest, short, 0), retries)
            except HttpError as error:
                if "max_completion_tokens" not in error.said:
                    raise
                self._length_field = "max_completion_tokens"  # the newer name, which some models insist on
                answer = self._endpoint.ask(client, self._path, self._body(longest, short, 0), retries)
        except HttpError as error:
            raise self._endpoint.no_such_model(client, error, self.model) or self._failure(error) from error
        self._completion(answer, longest, 0)
        n_prompt, context = tokens_of(answer, "prompt_tokens"), self._endpoint.models(client).get(self.model)
        if context is not None and n_prompt is not None and n_prompt + settings.max_tokens > context:
            raise UsageError(
                f"problem {longest.id!r} has {n_prompt} tokens; with --max-tokens {settings.max_tokens} it exceeds the "
                f"context of {context} tokens that {self.base_url} serves; lower --max-tokens"
            )

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Generator[list[Completion]]:
        """See `Sampler`. Keeps `batch_size` requests open, `MAX_CONCURRENCY` at most.

        Raises: SkillbasisError: the endpoint failed for good; what was finished by then is yielded first.
        """
        client = self._endpoint.client()
        waiting = ((prompt, number) for prompt in prompts for number in prompt.numbers(settings))
        concurrency = min(settings.batch_size, MAX_CONCURRENCY)
        threads = ThreadPoolExecutor(concurrency, thread_name_prefix="endpoint")
        is_open: set[Future[Completion]] = set()
        try:
            while True:
                for prompt, number in islice(waiting, concurrency - len(is_open)):
                    is_open.add(threads.submit(self._answer, client, prompt, settings, number))
                if not is_open:
                    return
                done, is_open = wait(is_open, return_when=FIRST_COMPLETED)
                failed = [error for future in done if (error := future.exception()) is not None]
                if completions := [future.result() for future in done if future.exception() is None]:
                    yield completions
                if failed:
                    raise failed[0]
        finally:
            client.close()  # ends what is open: threads that read, and those that pause
            threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Nothing stays open between calls of `sample`."""

    @property
    def _path(self) -> str:
        return CHAT_PATH if self.mode == "chat" else COMPLETIONS_PATH

    def _body(self, prompt: Prompt, settings: SamplingSettings, number: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"messages": prompt.messages}
        if self.mode == "completions":
            asked = {"prompt": "\n".join(message["content"] for message in prompt.messages) + "\n"}
        return {
            "model": self.model,
            **asked,
            self._length_field: settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": sample_seed(settings, prompt.id, number) >> (128 - SEED_BITS),
        }

    def _answer(self, client: Client, prompt: Prompt, settings: SamplingSettings, number: int) -> Completion:
        try:
            answer = self._endpoint.ask(client, self._path, self._body(prompt, settings, number))
        except HttpError as error:
            raise self._failure(error) from error
        return self._completion(answer, prompt, number)

    def _completion(self, answer: dict[str, Any], prompt: Prompt, number: int) -> Completion:
        """Reads an answer. A filtered or refused one is an empty text; a thought stands before it in think tags."""
        choice, n_tokens = choice_of(answer), tokens_of(answer, "completion_tokens")
        if n_tokens is None:
            usage = answer.get("usage")
            given = usage.get("completion_tokens") if isinstance(usage, dict) else None
            raise SkillbasisError(
                f"{self.base_url} counts no tokens (usage.completion_tokens is {given!r}), so lengths would be made "
                "up; use a server that does, as vLLM, SGLang and llama.cpp do"
            )
        self._served.note(answer)
        truncated = choice.get("finish_reason") == "length"
        text = "" if choice.get("finish_reason") == "content_filter" else text_of(choice, truncated)
        return Completion(prompt.id, number, text, n_tokens, truncated)

    def _failure(self, error: HttpError) -> SkillbasisError:
        """What to tell of a request that failed for good."""
        return self._endpoint.failure(
            error,
            self._path,
            has=f"the mode {self.mode} and the model {self.model!r}",
            slow="give it longer, lower --max-tokens or --batch-size",
            hint="; a model without a chat template needs the mode completions" if "template" in error.said else "",
        )
