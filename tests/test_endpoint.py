"""The endpoint backend held against small servers of the tests, and (slow) against servers of real engines."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from endpoint_server import Behaviour, Reply, chat, serving
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.evaluate.backends import http_json, openai_api
from skillbasis.evaluate.backends.endpoint import EndpointSampler
from skillbasis.evaluate.grading.answers import read_answer
from skillbasis.evaluate.run import evaluate
from skillbasis.evaluate.sampler import Completion, Prompt, SamplingSettings
from skillbasis.evaluate.tasks import load_task

KEY = "sk-test-0123456789"
PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": f"question {i}"}]) for i in range(3)]


def echo(body: dict[str, Any], _attempt: int) -> Reply:
    return chat(f"{body['messages'][0]['content']} seed {body['seed']}")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(openai_api, "MAX_WAIT_S", 0.01)


def answers(sampler: EndpointSampler, prompts: list[Prompt] = PROMPTS, **settings: Any) -> list[Completion]:
    found = [c for batch in sampler.sample(prompts, SamplingSettings(**settings)) for c in batch]
    return sorted(found, key=lambda completion: (completion.prompt_id, completion.sample))


def one(behaviour: Behaviour, **settings: Any) -> Completion:
    with serving(behaviour) as server:
        (completion,) = answers(EndpointSampler(server.url, "m"), PROMPTS[:1], rollouts=1, **settings)
    return completion


def failure(behaviour: Behaviour, *, check: bool = False, options: dict[str, Any] | None = None, **server: Any) -> str:
    """The message of the error that a run, or its check, ends with; with its traceback's chain for secrets."""
    with serving(behaviour, **server) as there:
        sampler = EndpointSampler(there.url, "m", **options or {})
        settings = SamplingSettings(rollouts=1, max_tokens=100)
        with pytest.raises(SkillbasisError) as caught:
            sampler.check(PROMPTS, settings) if check else list(sampler.sample(PROMPTS[:1], settings))
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and KEY not in json.dumps([sampler.identity, sampler.description])
    return str(caught.value)


def test_a_request_per_rollout_with_a_seed_of_its_own() -> None:
    with serving(echo) as server:
        sampler = EndpointSampler(server.url + "/", "m")
        asked: dict[str, Any] = {"rollouts": 4, "max_tokens": 30, "temperature": 0.7, "top_p": 0.9}
        whole = answers(sampler, **asked)
        bodies = [body for _, body in server.requests]
        assert answers(sampler, **asked, batch_size=1) == whole
        missing = answers(sampler, [Prompt("p1", PROMPTS[1].messages, (3, 1))], **asked)
        other = answers(sampler, **asked, seed=1)
    assert [(c.prompt_id, c.sample) for c in whole] == [(f"p{i}", n) for i in range(3) for n in range(4)]
    assert missing == [c for c in whole if c.prompt_id == "p1" and c.sample in (1, 3)]
    assert all(a.text != b.text for a, b in zip(whole, other, strict=True))
    assert len({body["seed"] for body in bodies}) == 12 and all(0 <= body["seed"] < 2**31 for body in bodies)
    assert {path for path, _ in server.requests} == {"/v1/chat/completions"}
    del bodies[0]["seed"], bodies[0]["messages"]
    assert bodies[0] == {"model": "m", "max_tokens": 30, "temperature": 0.7, "top_p": 0.9}
    assert (whole[0].n_tokens, whole[0].truncated) == (5, False)
    assert sampler.identity == {"backend": "openai", "base_url": server.url, "model": "m", "mode": "chat"}
    assert sampler.description["served"] == ["served-name fp1"]
    assert set(sampler.description) >= {"model", "engine", "versions", "template_fingerprint"}


def test_the_mode_completions_sends_plain_text() -> None:
    def complete(body: dict[str, Any], _attempt: int) -> Reply:
        choice = {"text": f"after {body['prompt']!r}", "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 7}}, {}

    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "one?"}]
    with serving(complete) as server:
        sampler = EndpointSampler(server.url, "m", mode="completions")
        (completion,) = answers(sampler, [Prompt("p", messages)], rollouts=1)
    assert server.requests[0][0] == "/v1/completions"
    assert completion == Completion("p", 0, "after 'be short\\none?\\n'", 7, True)


def test_thoughts_refusals_and_truncation_are_kept_apart() -> None:
    for name in ("reasoning_content", "reasoning"):
        thought = {name: "it may be \\boxed{4}, so"}
        done = one(lambda _b, _a, t=thought: chat("It is \\boxed{5}.", **t))
        assert done.text == "<think>\nit may be \\boxed{4}, so\n</think>\n\nIt is \\boxed{5}."
        assert read_answer(done.text, done.truncated) == ("5", "ok")
        cut = one(lambda _b, _a, t=thought: chat(None, "length", **t))
        assert cut.text == "<think>\nit may be \\boxed{4}, so" and cut.truncated
        assert read_answer(cut.text, cut.truncated) == (None, "truncated")
        silent = one(lambda _b, _a, t=thought: chat("", **t))
        assert read_answer(silent.text, silent.truncated) == (None, "no_answer")
    cut = one(lambda _b, _a: chat("so we", "length", 64))
    assert cut == Completion("p0", 0, "so we", 64, True)
    filtered = one(lambda _b, _a: chat("half an answ", "content_filter", 3))
    assert filtered == Completion("p0", 0, "", 3, False)
    assert one(lambda _b, _a: chat(None, refusal="I cannot help")).text == ""
    assert one(lambda _b, _a: chat(None, "tool_calls", tool_calls=[])).text == ""
    assert one(lambda _b, _a: chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).text == "ab"  # type: ignore[arg-type]


def test_answers_come_as_they_finish() -> None:
    first_read = threading.Event()

    def behaviour(body: dict[str, Any], _attempt: int) -> Reply:
        if body["messages"][0]["content"] == "question 0":
            assert first_read.wait(30)
        return chat("done")

    with serving(behaviour) as server:
        batches = EndpointSampler(server.url, "m").sample(PROMPTS, SamplingSettings(rollouts=1, batch_size=2))
        early = [completion.prompt_id for completion in next(batches) + next(batches)]
        assert early == ["p1", "p2"], "the first prompt holds up one place of two, not the others"
        first_read.set()
        assert [c.prompt_id for batch in batches for c in batch] == ["p0"]


def test_no_more_requests_are_open_than_the_batch_size() -> None:
    lock, n_open, most = threading.Lock(), 0, 0

    def behaviour(_body: dict[str, Any], _attempt: int) -> Reply:
        nonlocal n_open, most
        with lock:
            n_open += 1
            most = max(most, n_open)
        time.sleep(0.02)
        with lock:
            n_open -= 1
        return chat("done")

    with serving(behaviour) as server:
        assert len(answers(EndpointSampler(server.url, "m"), rollouts=8, batch_size=5)) == 24
    assert 2 <= most <= 5


def test_closing_ends_what_is_open() -> None:
    release = threading.Event()

    def behaviour(body: dict[str, Any], _attempt: int) -> Reply:
        if body["messages"][0]["content"] == "question 0":
            return chat("done")
        if body["messages"][0]["content"] == "question 1":
            return 503, {}, {"Retry-After": "300"}  # pauses
        release.wait(60)
        return chat("late")

    with serving(behaviour) as server:
        batches = EndpointSampler(server.url, "m").sample(PROMPTS, SamplingSettings(rollouts=4))
        next(batches)
        while len(server.requests) < 12:
            time.sleep(0.005)
        started = time.monotonic()
        batches.close()
        assert time.monotonic() - started < 5
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]
        release.set()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_refusal_for_now_is_asked_again(status: int) -> None:
    with serving(
        lambda body, attempt: (status, {"error": "busy"}, {}) if attempt < 3 else echo(body, attempt)
    ) as server:
        found = answers(EndpointSampler(server.url, "m"), rollouts=2)
    assert len(found) == 6 and len(server.requests) == 18
    by_seed = {body["seed"] for _, body in server.requests}
    assert len(by_seed) == 6, "each attempt has the same seed"


def test_pauses_grow_and_retry_after_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(http_json.Client, "pause", lambda _self, seconds: waits.append(seconds))
    monkeypatch.setattr(openai_api, "MAX_WAIT_S", 10.0)
    failure(lambda _b, _a: (500, {}, {}))
    assert [0.75 * s <= w <= 1.25 * s for w, s in zip(waits, (1, 2, 4, 8, 10, 10), strict=True)] == [True] * 6
    waits.clear()
    later = formatdate(time.time() + 120, usegmt=True)

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        return {1: (429, {}, {"Retry-After": "77"}), 2: (503, {}, {"Retry-After": later})}.get(attempt, echo(body, 3))

    with serving(behaviour) as server:
        answers(EndpointSampler(server.url, "m"), PROMPTS[:1], rollouts=1)
    assert waits[0] == 77 and 110 < waits[1] <= 120
    waits.clear()
    assert "failed with status 429" in failure(lambda _b, _a: (429, {}, {"Retry-After": "3600"}))
    assert waits == [], "an hour is not waited"


def test_a_server_that_fails_for_good() -> None:
    message = failure(lambda _b, _a: (500, {"error": {"message": "out of\nmemory"}}, {}), options={"retries": 2})
    assert (
        "/v1/chat/completions failed with status 500 after 3 attempts: out of memory; look after the server" in message
    )
    assert "the same command goes on with the answers still missing" in message
    for content in (b"<html>gateway</html>", b'{"choices": [', b"[1]", b"\xff\xfe"):
        message = failure(lambda _b, _a, c=content: (200, c, {}), options={"retries": 1})
        assert "gave no answer that can be read after 2 attempts: it answered with no JSON object but" in message
    message = failure(lambda _b, _a: (200, {"object": "list"}, {}), options={"retries": 0})
    assert "gave no answer that can be read: the answer has no choices but object" in message
    message = failure(lambda _b, _a: (200, {"choices": [{}]}, {}), options={"retries": 0})
    assert "neither a message nor a text" in message
    assert "finish_reason 'abort'" in failure(lambda _b, _a: chat("", "abort"), options={"retries": 1})
    message = failure(lambda _b, _a: (307, {}, {"Location": "http://elsewhere.example/v1"}))
    assert "is elsewhere (status 307): it points to 'http://elsewhere.example/v1'" in message


def test_what_was_finished_comes_before_the_failure() -> None:
    def behaviour(body: dict[str, Any], _attempt: int) -> Reply:
        return chat("done") if body["messages"][0]["content"] == "question 0" else (400, {"error": "no"}, {})

    with serving(behaviour) as server:
        batches = EndpointSampler(server.url, "m").sample(PROMPTS, SamplingSettings(rollouts=1, batch_size=1))
        assert [completion.prompt_id for completion in next(batches)] == ["p0"]
        with pytest.raises(UsageError, match=r"refuses the request \(status 400\): no"):
            next(batches)


def test_an_evaluation_that_the_server_broke_off_goes_on(tmp_path: Path) -> None:
    task = load_task("embedded", limit=4)
    right = {problem.prompt[0]["content"]: problem.reference.answers[0] for problem in task.problems}
    broken = True

    def behaviour(body: dict[str, Any], _attempt: int) -> Reply:
        if broken and len(server.requests) > 6:  # one of them is the check's
            return 400, {"error": "no"}, {}
        return chat(f"\\boxed{{{right[body['messages'][0]['content']]}}}")

    settings = SamplingSettings(rollouts=3, batch_size=1)
    with serving(behaviour) as server:
        with pytest.raises(UsageError, match=r"refuses the request \(status 400\): no"):
            evaluate(EndpointSampler(server.url, "m"), [task], settings, tmp_path / "out")
        assert len(server.requests) == 7
        broken = False
        result = evaluate(EndpointSampler(server.url, "m"), [task], settings, tmp_path / "out")[task.name]
        assert len(server.requests) == 7 + 1 + 12 - 5, "what was answered is not asked again"
    assert result.correct.all() and result.correct.shape == (4, 3)


def test_a_broken_connection_is_tried_again() -> None:
    with serving(lambda _b, _a: chat("whole")) as server:
        plain, broken = server.behaviour, 0

        def behaviour(body: dict[str, Any], attempt: int) -> Reply:
            nonlocal broken
            if attempt == 1:
                broken += 1
                return 200, b'{"choi', {"Content-Length": "500"}  # and the connection ends
            return plain(body, attempt)

        server.behaviour = behaviour
        assert len(answers(EndpointSampler(server.url, "m"), rollouts=2)) == 6
    assert broken == 6
    message = "127.0.0.1:1/v1/chat/completions cannot be reached after 3 attempts"
    with pytest.raises(SkillbasisError, match=message):
        answers(EndpointSampler("http://127.0.0.1:1/v1", "m", retries=2), PROMPTS[:1], rollouts=1)
    with pytest.raises(SkillbasisError, match="127.0.0.1:1/v1/chat/completions cannot be reached after 3 .*refused"):
        EndpointSampler("http://127.0.0.1:1/v1", "m").check(PROMPTS, SamplingSettings())


def test_a_server_that_is_too_slow_is_tried_twice() -> None:
    release = threading.Event()
    with serving(lambda _b, _a: chat("late") if release.wait(30) else chat("")) as server:
        with pytest.raises(SkillbasisError, match="gave no answer within 0.5 s; give it longer, lower --max-tokens"):
            answers(EndpointSampler(server.url, "m", timeout_s=0.5), PROMPTS[:1], rollouts=1)
        assert len(server.requests) == 2
        release.set()


def test_the_key_is_sent_and_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with serving(echo, key=KEY, models=[{"id": "m"}]) as server:
        sampler = EndpointSampler(server.url, "m")
        sampler.check(PROMPTS, SamplingSettings())
        assert len(answers(sampler, rollouts=1)) == 3
        assert KEY not in json.dumps([sampler.identity, sampler.description])
        monkeypatch.setenv("OTHER_KEY", KEY)
        monkeypatch.delenv("OPENAI_API_KEY")
        EndpointSampler(server.url, "m", api_key_env="OTHER_KEY").check(PROMPTS, SamplingSettings())
    wanted = failure(echo, check=True, key=KEY)
    assert "/chat/completions wants a key, and OPENAI_API_KEY is not set (status 401); export OPENAI_API_KEY" in wanted
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert "refuses the key in OPENAI_API_KEY (status 401)" in failure(echo, check=True, key="another")
    assert "refuses the key in OPENAI_API_KEY (status 401)" in failure(echo, key="another")
    said = failure(lambda _b, _a: (500, {"error": f"request with Bearer {KEY} failed"}, {}), options={"retries": 0})
    assert "request with Bearer [key] failed" in said
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2011dash")
    with pytest.raises(UsageError, match="the key in OPENAI_API_KEY has characters that no header can carry"):
        EndpointSampler("http://localhost/v1", "m")


def test_what_the_check_finds() -> None:
    models = [{"id": "small"}, {"id": "m", "max_model_len": 109}]
    absent: Reply = 404, {"error": {"message": "The model does not exist"}}, {}
    with serving(
        lambda body, n: echo(body, n) if body["model"] in ("m", "unlisted") else absent, models=models
    ) as server:
        with pytest.raises(UsageError, match=r"serves no model 'smal' \(did you mean 'small'\?\); it serves small, m"):
            EndpointSampler(server.url, "smal").check(PROMPTS, SamplingSettings())
        EndpointSampler(server.url, "m").check(PROMPTS, SamplingSettings(max_tokens=99))
        assert server.requests[-1][1]["max_tokens"] == 16, "one short answer"
        EndpointSampler(server.url, "unlisted").check(PROMPTS, SamplingSettings())  # a list need not be whole
    message = failure(echo, check=True, models=models)
    assert "has 10 tokens; with --max-tokens 100 it exceeds the context of 109 tokens" in message
    message = failure(lambda _b, _a: (404, {"detail": "Not Found"}, {}), check=True)
    assert "is not there (status 404: Not Found); look whether the base URL ends in /v1" in message
    template = {"message": "default chat template is no longer allowed, so you must provide a chat template"}
    message = failure(lambda _b, _a: (400, {"error": template}, {}), check=True)
    assert "must provide a chat template; a model without a chat template needs the mode completions" in message
    message = failure(lambda _b, _a: chat("text", tokens=None), check=True)
    assert "counts no tokens (usage.completion_tokens is None)" in message
    with serving(echo) as server:
        EndpointSampler(server.url, "m").check([], SamplingSettings())
        assert server.requests == []


def test_models_that_want_the_newer_name_for_the_length() -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        return (400, {"error": {"message": said}}, {}) if "max_tokens" in body else echo(body, attempt)

    with serving(behaviour) as server:
        sampler = EndpointSampler(server.url, "m")
        sampler.check(PROMPTS, SamplingSettings(max_tokens=50))
        answers(sampler, max_tokens=50, rollouts=1)
        assert server.requests[-1][1]["max_completion_tokens"] == 50
    assert "Use 'max_completion_tokens' instead" in failure(lambda _b, _a: (400, {"error": said}, {}), check=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "is no URL of an endpoint; give one such as http://localhost:8000/v1"),
        ("file:///etc/passwd", "is no URL of an endpoint"),
        ("http://", "is no URL of an endpoint"),
        ("http://h:port/v1", "cannot be read .*; give one such as"),
        ("http://a b/v1", "has a space in it"),
        (f"http://user:{KEY}@h/v1", "base URL of h carries a password or a query"),
        (f"http://h/v1?api_key={KEY}", "base URL of h carries a password or a query"),
        ("http://h/v1/chat/completions/", "is what stands before /chat/completions; give http://h/v1"),
    ],
)
def test_urls_that_cannot_be_meant(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        EndpointSampler(url, "m")
    assert KEY not in str(caught.value)


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="unknown mode 'text'; allowed are chat, completions"):
        EndpointSampler("http://h/v1", "m", mode="text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="timeout_s must be above 0 and retries 0 or more, not 0 and 6"):
        EndpointSampler("http://h/v1", "m", timeout_s=0)


VLLM_SERVER = (
    "-m vllm.entrypoints.openai.api_server --model {model} --dtype float32 --enforce-eager --max-model-len 1024"
)
SERVERS = {
    "vllm": f"{VLLM_SERVER} --generation-config vllm",
    "transformers": "-m transformers.cli.transformers serve {model} --device cpu --dtype float32",
}
NEEDED = {"vllm": ("vllm",), "transformers": ("fastapi", "uvicorn", "openai", "accelerate")}


def listens(port: int) -> bool:
    with closing(socket.socket()) as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(SERVERS))
def test_a_real_server_gives_the_answers_of_transformers(engine: str, tmp_path: Path) -> None:
    """The embedded reasoner, greedy; what is drawn repeats (with vLLM, whose seeds are a request's own)."""
    if lacking := [name for name in NEEDED[engine] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(lacking)} not installed here")
    from skillbasis.evaluate.generate import generate
    from skillbasis.lm import load_model, resolve

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = resolve("embedded")
    variables = {"VLLM_CACHE_ROOT": str(tmp_path), "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [*SERVERS[engine].format(model=model).split(), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)},
        )
    try:
        sampler = EndpointSampler(f"http://127.0.0.1:{port}/v1", model, mode="completions")
        prompts, deadline = load_task("embedded:validation", limit=8).prompts, time.monotonic() + 300
        greedy = SamplingSettings(rollouts=1, temperature=0, max_tokens=128, batch_size=4)
        while not listens(port):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.5)
        sampler.check(prompts, greedy)
        expected = {c.prompt_id: c for batch in generate(load_model("embedded"), prompts, greedy) for c in batch}
        found = answers(sampler, prompts, rollouts=1, temperature=0, max_tokens=128, batch_size=4)
        assert {c.prompt_id: c.text for c in found} == {i: c.text for i, c in expected.items()}
        assert {c.truncated for c in found} == {False}
        # The end token is among those that a server counts.
        assert {c.n_tokens - expected[c.prompt_id].n_tokens for c in found} <= {0, 1}
        cut = answers(sampler, prompts, rollouts=1, temperature=0, max_tokens=3)
        assert {(c.n_tokens, c.truncated) for c in cut} == {(3, True)}
        if engine == "vllm":
            drawn = answers(sampler, prompts, rollouts=3, max_tokens=64)
            assert answers(sampler, prompts, rollouts=3, max_tokens=64, batch_size=2) == drawn
            assert len({c.text for c in drawn}) > 12
            with pytest.raises(UsageError, match="exceeds the context of 1024 tokens"):
                sampler.check(prompts, SamplingSettings(max_tokens=1020))
            with pytest.raises(UsageError, match="chat template.*needs the mode completions"):
                EndpointSampler(sampler.base_url, model).check(prompts, greedy)
    finally:
        server.terminate()
        server.wait(60)
