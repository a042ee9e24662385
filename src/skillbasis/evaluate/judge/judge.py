"""A judge behind any OpenAI-compatible endpoint: many questions at once, validated answers, none paid twice."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..backends.http_json import Client, HttpError
from ..backends.openai_api import MAX_CONCURRENCY, Endpoint, is_transient
from .cache import Reply, ReplyCache, key_of
from .chat import Chat
from .question import Askable, Message, UnusableError, Value, Verdict
from .usage import Prices, Usage

N_ANSWERS = 3
"""So many answers are looked at before a question counts as unusable."""
N_FAILED = 3
"""So many questions in a row whose requests fail end the run: the endpoint is taken to be down."""
_OF_THE_QUESTION = (400, 413, 422)  # refusals that may be due to one text


class Judge:
    """A model that answers questions about texts: at temperature 0, with a seed, in JSON or in text.

    A server that refuses a JSON schema, a seed or a temperature (status 400 or 422) is asked without; the schema
    stands in the system message in any case.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 6,
        max_tokens: int = 1024,
        seed: int = 0,
        cache: Path | None = None,
        again: bool = False,
        prices: Prices | None = None,
        discreet: bool = False,
    ) -> None:
        """Sends nothing yet.

        Args:
            base_url: what comes before /chat/completions; it mostly ends in /v1.
            model: the name under which the endpoint serves it.
            api_key_env: environment variable that holds the key; where it is not set, none is sent.
            concurrency: requests that are open together.
            timeout_s: how long one answer may take.
            retries: further attempts after a temporary refusal (429, 5xx) or a broken connection.
            max_tokens: after which an answer is cut, thoughts included; a cut answer is not used.
            seed: sent with every request.
            cache: file that keeps every answer as it comes; only in memory where none is given.
            again: asks anew, once, what the cache holds no usable answer to.
            prices: for the cost.
            discreet: no error and no reason repeats what the server said, which may hold the texts it was asked about.
        Raises: UsageError: no such URL or number can be meant. ArtifactError: `cache` is something else.
        """
        if not 1 <= concurrency <= MAX_CONCURRENCY:
            raise UsageError(f"a judge takes 1 to {MAX_CONCURRENCY} requests at once, not {concurrency}")
        endpoint = Endpoint(base_url, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries)
        self._chat = Chat(endpoint, model, max_tokens=max_tokens, seed=seed)
        self._concurrency, self._again, self._discreet = concurrency, again, discreet
        self._cache = ReplyCache(cache)
        self._lock = threading.Lock()
        self.usage = Usage(prices)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able: all that the answers depend on besides the questions."""
        return self._chat.identity

    @property
    def description(self) -> dict[str, Any]:
        """JSON-able: what is worth knowing beside it. `served` is what the endpoint called itself, `left_out` the
        fields that it refuses; both empty where everything came from the cache."""
        return {"served": self._chat.served, "left_out": self._chat.left_out, "usage": self.usage.as_json()}

    def ask(self, questions: Sequence[Askable[Value]]) -> Generator[tuple[int, Verdict[Value]]]:
        """Asks many questions; yields (number of the question, verdict) as they are answered, in any order.

        What the cache answers comes first and needs no endpoint. Until the endpoint has answered once it is asked one
        question at a time. A question whose request fails has a verdict without a value, and is not kept in the cache.
        Closing the generator ends what is under way.

        Raises: SkillbasisError: the endpoint cannot be reached, wants another key, or failed `N_FAILED` questions in a
            row or the last ones; what was answered by then is yielded first, and stays in the cache.
        """
        numbers: dict[str, list[int]] = {}
        for number, question in enumerate(questions):  # the same question is asked once
            numbers.setdefault(self._key(question, question.messages()), []).append(number)
        waiting: deque[_Job] = deque()
        for same in numbers.values():
            verdict = self._from_cache(questions[same[0]])
            if verdict is None:
                waiting.append(_Job(same, anew=False))
            elif verdict.value is None and self._again:
                waiting.append(_Job(same, anew=True))
            else:
                yield from ((number, verdict) for number in same)
        if waiting:
            yield from self._from_endpoint(questions, waiting)

    def _from_cache(self, question: Askable[Value]) -> Verdict[Value] | None:
        """The verdict, where the cache holds every answer that leads to it."""
        seen: list[Reply] = []

        def kept(messages: list[Message]) -> Reply:
            reply = self._cache.get(self._key(question, messages))
            if reply is None:
                raise LookupError
            seen.append(reply)
            return reply

        try:
            verdict = _verdict(question, kept)
        except LookupError:
            return None
        if verdict.value is not None or not self._again:
            for reply in seen:
                self.usage.cached.add(reply.prompt_tokens, reply.completion_tokens)
        return verdict

    def _from_endpoint(
        self, questions: Sequence[Askable[Value]], waiting: deque[_Job]
    ) -> Generator[tuple[int, Verdict[Value]]]:
        client = self._chat.client()
        threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        is_open: dict[Future[Verdict[Value]], list[int]] = {}
        n_failed, last = 0, None
        try:
            while waiting or is_open:
                concurrency = self._concurrency if self.usage.asked.answers else 1
                while waiting and len(is_open) < concurrency:
                    job = waiting.popleft()
                    question = questions[job.numbers[0]]
                    is_open[threads.submit(_verdict, question, self._replies(client, question, job.anew))] = job.numbers
                done, _ = wait(is_open, return_when=FIRST_COMPLETED)
                failures: list[tuple[HttpError, list[int]]] = []
                for future in done:
                    same, error = is_open.pop(future), future.exception()
                    if isinstance(error, HttpError):
                        if self._discreet and error.status is not None:
                            error.said, error.args = "", ()
                        failures.append((error, same))
                        continue
                    verdict, n_failed = future.result(), 0
                    yield from ((number, verdict) for number in same)
                for error, same in failures:
                    n_failed, last = n_failed + self._is_telling(error), error
                    if n_failed == N_FAILED or self._ends_the_run(error):
                        raise self._chat.failure(client, error) from error
                    why = "no answer" if error.status is None else f"status {error.status}"
                    why += f": {error.said}" if error.said else ""
                    refused: Verdict[Value] = Verdict(None, f"the request failed ({why})", 0)
                    yield from ((number, refused) for number in same)
            if n_failed and last is not None:
                raise self._chat.failure(client, last) from last
        finally:
            client.close()  # ends what is open: threads that read, and those that pause
            threads.shutdown(cancel_futures=True)

    def _is_telling(self, error: HttpError) -> bool:
        """Whether a failed request may be the endpoint's fault, and not that of its one question."""
        answers = self.usage.asked.answers + self.usage.cached.answers
        return error.status not in _OF_THE_QUESTION or answers == 0

    def _ends_the_run(self, error: HttpError) -> bool:
        """Whether a failed request says by itself that all others will fail."""
        if error.status in _OF_THE_QUESTION:
            return False
        return not is_transient(error) or self.usage.asked.answers == 0

    def _replies(self, client: Client, question: Askable[Value], anew: bool) -> Callable[[list[Message]], Reply]:
        """What answers the messages of a question: the cache, unless they are to be asked anew, then the endpoint."""

        def reply_to(messages: list[Message]) -> Reply:
            key = self._key(question, messages)
            reply = None if anew else self._cache.get(key)
            if reply is not None:
                with self._lock:
                    self.usage.cached.add(reply.prompt_tokens, reply.completion_tokens)
                return reply
            reply = self._chat.reply(client, messages, question.form)
            self._cache.put(key, reply)
            with self._lock:
                self.usage.asked.add(reply.prompt_tokens, reply.completion_tokens)
            return reply

        return reply_to

    def _key(self, question: Askable[Value], messages: list[Message]) -> str:
        """What an answer is kept under: all that was asked, whichever fields the server then took."""
        schema = None if question.form is None else question.form.schema
        return key_of(self.identity | {"messages": messages, "schema": schema})


@dataclass(frozen=True)
class _Job:
    """A question to be asked."""

    numbers: list[int]
    """Where it stands among the questions: more than once where it was put more than once."""
    anew: bool
    """Whether the cached answers are passed over."""


def _verdict(question: Askable[Value], reply_to: Callable[[list[Message]], Reply]) -> Verdict[Value]:
    """Looks at answers until one can be used, telling the judge each time what was wrong."""
    problems: list[str] = []
    while len(problems) < N_ANSWERS:
        reply = reply_to(question.messages(problems))
        try:
            return Verdict(_value(question, reply), None, len(problems) + 1)
        except UnusableError as error:
            problems.append(str(error))
    return Verdict(None, f"none of {N_ANSWERS} answers could be used, the last because {problems[-1]}", N_ANSWERS)


def _value(question: Askable[Value], reply: Reply) -> Value:
    """The value of a whole answer. Raises: UnusableError."""
    if reply.end == "length":
        raise UnusableError("it was cut before its end; it must be shorter")
    if reply.end == "content_filter":
        raise UnusableError("the endpoint filtered it")
    return question.read(reply.text)
