"""Steering inside vLLM held against hooks in transformers: greedy tokens and log-probabilities, token by token.

vLLM runs in processes of its own (this file as a script), since it patches transformers where it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import weights_fingerprint
from skillbasis.steer import SteeringVector, steer
from skillbasis.steer.bake import bake
from skillbasis.steer.vllm_plugin import (
    KEY,
    SteeringRequest,
    _add_to_output,
    _fill_before_passes,
    mark_tokens,
    register,
)

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed here; run `make test-vllm`, which makes an environment for it (make vllm-env)",
)
HIDDEN, N_BLOCKS, VOCABULARY, CONTEXT = 128, 4, 384, 128
BLOCKS = (1, 2)
PROMPTS = [[1, 50, 60, 70], [1, 80], [1, *range(90, 126)]]  # one longer than the batches of CHUNKED
N_NEW = 8
CHUNKED = {"max_num_batched_tokens": 16, "max_num_seqs": 4}
ENGINE = {"dtype": "float32", "max_model_len": CONTEXT, "skip_tokenizer_init": True, "enforce_eager": True}
START_TIMEOUT_S = 900
MARGIN = 1e-4  # of log-probabilities: float32, other kernels and orders of sums; measured below 2e-5


def settings(vector: Path | str, alpha: float, scope: str = "all") -> dict[str, Any]:
    """Engine arguments that ask for steering; without prefix caching where the scope needs it."""
    asked = {KEY: {"vector": str(vector), "alpha": alpha, "scope": scope}}
    return {"additional_config": asked, **({} if scope == "all" else {"enable_prefix_caching": False})}


# What runs inside vLLM's processes


def run_engines(specification: Path, results: Path) -> None:
    """Starts the engines of a list one after the other; writes what each generated, or the error it was refused with.

    An engine is its arguments for `LLM`; `prompts` and `n_new` in it replace the usual ones.
    """
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    answers = []
    for arguments in json.loads(specification.read_text()):
        prompts, n_new = arguments.pop("prompts", PROMPTS), arguments.pop("n_new", N_NEW)
        # float16 would keep no digit that tells one engine from another
        sampling = SamplingParams(temperature=0, max_tokens=n_new, ignore_eos=True, detokenize=False, logprobs=1)
        try:
            engine = LLM(**ENGINE | arguments, disable_log_stats=False)
        except SkillbasisError as error:
            answers.append({"error": str(error), "type": type(error).__name__})
            continue
        outputs = [o.outputs[0] for o in engine.generate([{"prompt_token_ids": p} for p in prompts], sampling)]
        answers.append(
            {
                "tokens": [list(o.token_ids) for o in outputs],
                "logprobs": [
                    [step[t].logprob for t, step in zip(o.token_ids, o.logprobs, strict=True)] for o in outputs
                ],
                "preemptions": sum(
                    int(metric.value) for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"
                ),
            }
        )
        engine.llm_engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()
    results.write_text(json.dumps(answers))


if __name__ == "__main__":
    run_engines(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit()


# What is held against it


Engines = Callable[..., list[dict[str, Any]]]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """For a process of vLLM's: no network, nothing outside the folder, engines within the process."""
    paths = {"VLLM_CACHE_ROOT": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    sizes = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **paths, **sizes, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **variables}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Runs engines in a fresh process; returns their answers."""
    folder = tmp_path_factory.mktemp("engines")

    def run(*arguments: dict[str, Any], **variables: str) -> list[dict[str, Any]]:
        specification, results = folder / "engines.json", folder / "answers.json"
        specification.write_text(json.dumps(arguments))
        results.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, __file__, str(specification), str(results)],
            env=environment(folder, **variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-6000:]
        answers: list[dict[str, Any]] = json.loads(results.read_text())
        return [answer | {"log": log} for answer in answers]

    return run


def make_config(family: str) -> Any:
    """Small models with heads of a size that vLLM's attention knows."""
    import transformers as hf

    ids: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    common = ids | {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    grouped = common | {"num_key_value_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 50_000.0}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 64, "rope_theta": 500_000.0}
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaConfig(**grouped, rope_parameters=llama3, rms_norm_eps=1e-4),
        "mistral": lambda: hf.MistralConfig(**grouped, sliding_window=None, head_dim=32, rope_parameters=rope),
        "qwen2": lambda: hf.Qwen2Config(**grouped, rope_parameters=rope, rms_norm_eps=1e-3),
        "qwen3": lambda: hf.Qwen3Config(**grouped, head_dim=32),
        # sdpa leaves out the soft cap of attention that vLLM keeps
        "gemma2": lambda: hf.Gemma2Config(
            **grouped, head_dim=32, query_pre_attn_scalar=32, sliding_window=8, attn_implementation="eager"
        ),
        "phi3": lambda: hf.Phi3Config(**grouped, original_max_position_embeddings=256),
        "granite": lambda: hf.GraniteConfig(
            **grouped, residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=0.5, attention_multiplier=0.3
        ),
        "smollm3": lambda: hf.SmolLM3Config(**grouped),
        "nemotron": lambda: hf.NemotronConfig(**grouped),
        "arcee": lambda: hf.ArceeConfig(**grouped),
        "seed_oss": lambda: hf.SeedOssConfig(**grouped, head_dim=32),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**common),
        "gpt2": lambda: hf.GPT2Config(
            **ids, n_embd=HIDDEN, n_layer=N_BLOCKS, n_head=4, n_positions=256, initializer_range=0.2
        ),
    }
    return makers[family]()


class Planted:
    """A model on disk and in memory, and a vector on two of its four blocks."""

    def __init__(self, family: str, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        from conftest import make_tokenizer

        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(make_config(family)).float().eval()
        if self.model.config.tie_word_embeddings:  # smaller, or the model says its last token again and again
            self.model.get_input_embeddings().weight.data *= 0.3
        for name, parameter in self.model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        self.path = folder / family
        self.model.save_pretrained(self.path)
        make_tokenizer().save_pretrained(self.path)
        identity = {
            "model": family,
            "revision": None,
            "model_type": self.model.config.model_type,
            "weights_fingerprint": weights_fingerprint(self.model),
            "hidden_size": HIDDEN,
            "n_blocks": N_BLOCKS,
        }
        values = np.random.default_rng(1).standard_normal((len(BLOCKS), HIDDEN)).astype(np.float32)
        self.vector = SteeringVector("d0+", BLOCKS, values, "raw", identity)
        self.file = folder / f"{family}.safetensors"
        self.vector.save(self.file)
        self.folder = folder

    def saved(self, name: str, **changes: Any) -> Path:
        """The file of a vector that differs from the planted one."""
        path = self.folder / f"{name}.safetensors"
        replace(self.vector, **changes).save(path)
        return path

    def greedy(
        self, alpha: float, scope: str = "all", prompts: list[list[int]] = PROMPTS, n_new: int = N_NEW
    ) -> dict[str, Any]:
        """Greedy tokens and their log-probabilities by hooks, each step a whole pass without a cache."""
        tokens, logprobs = [], []
        for prompt in prompts:
            text, values = list(prompt), []
            for _ in range(n_new):
                with (
                    torch.inference_mode(),
                    steer(self.model, self.vector, alpha, scope=scope, prompt_lengths=[len(prompt)]),
                ):
                    last = self.model(input_ids=torch.tensor([text])).logits[0, -1].log_softmax(-1)
                text.append(int(last.argmax()))
                values.append(float(last.max()))
            tokens.append(text[len(prompt) :])
            logprobs.append(values)
        return {"tokens": tokens, "logprobs": logprobs}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Planted]:
    folder = tmp_path_factory.mktemp("planted")
    return cache(lambda family: Planted(family, folder))


def assert_same(found: dict[str, Any], expected: dict[str, Any], what: str = "") -> None:
    assert found.get("tokens") == expected["tokens"], (what, found.get("error"))
    np.testing.assert_allclose(found["logprobs"], expected["logprobs"], atol=MARGIN, rtol=0, err_msg=what)


def differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the answers to all prompts differ by far more than rounding: then one is not taken for the other."""
    pairs = zip(one["logprobs"], other["logprobs"], strict=True)
    return all(np.abs(np.subtract(a, b)).max() > 200 * MARGIN for a, b in pairs)


ALPHA = 3.0
FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "gpt_neox")  # the last one through vLLM's transformers backend


@pytest.mark.slow
@needs_vllm
def test_vllm_with_the_plugin_is_the_hooked_model(engines: Engines, planted: Callable[[str], Planted]) -> None:
    """Blocks 1 and 2 of 4, all tokens, five architectures; last an engine that is not asked to steer."""
    models = [planted(family) for family in FAMILIES]
    answers = engines(
        *({"model": str(model.path)} | settings(model.file, ALPHA) for model in models), {"model": str(models[0].path)}
    )
    for answer, model, family in zip(answers, models, FAMILIES, strict=False):
        steered, plain = model.greedy(ALPHA), model.greedy(0.0)
        assert all(a != b for a, b in zip(steered["tokens"], plain["tokens"], strict=True)), family
        assert_same(answer, steered, family)
    assert_same(answers[-1], models[0].greedy(0.0), "unsteered")


@pytest.mark.slow
@needs_vllm
def test_scopes_in_batches_of_prompts_in_pieces(engines: Engines, planted: Callable[[str], Planted]) -> None:
    """Prompts of three lengths at once, the longest read in three pieces; both ways in which blocks give back."""
    cases = [("llama", scope) for scope in ("prompt", "last-prompt", "generated", "from:3")]
    cases += [("gpt_neox", "last-prompt"), ("gpt_neox", "generated")]
    answers = engines(
        *({"model": str(planted(f).path)} | CHUNKED | settings(planted(f).file, ALPHA, s) for f, s in cases),
        # without pieces, and with prefix caching, which a scope by place alone allows
        {"model": str(planted("llama").path)} | settings(planted("llama").file, ALPHA, "last-prompt"),
        {"model": str(planted("llama").path)}
        | settings(planted("llama").file, ALPHA, "from:3")
        | {"enable_prefix_caching": True},
    )
    cases += [("llama", "last-prompt"), ("llama", "from:3")]
    for answer, (family, scope) in zip(answers, cases, strict=True):
        expected = planted(family).greedy(ALPHA, scope)
        assert differ(expected, planted(family).greedy(ALPHA)) and differ(expected, planted(family).greedy(0.0))
        assert_same(answer, expected, f"{family} {scope}")


@pytest.mark.slow
@needs_vllm
def test_requests_that_are_interrupted_and_computed_again(engines: Engines, planted: Callable[[str], Planted]) -> None:
    """A cache too small for all of them: what was generated is read again as a prompt is, and stays generated."""
    model = planted("llama")
    prompts, n_new = [[1, *range(10 * i, 10 * i + 20)] for i in range(2, 6)], 60
    small = {
        "model": str(model.path),
        "prompts": prompts,
        "n_new": n_new,
        "block_size": 32,
        "num_gpu_blocks_override": 8,
    }
    scopes = ("last-prompt", "generated")
    for answer, scope in zip(engines(*(small | settings(model.file, ALPHA, s) for s in scopes)), scopes, strict=True):
        assert answer["preemptions"] > 0, answer
        assert_same(answer, model.greedy(ALPHA, scope, prompts, n_new), scope)


@pytest.mark.slow
@needs_vllm
def test_engines_in_processes_of_their_own(engines: Engines, planted: Callable[[str], Planted]) -> None:
    model = planted("llama")
    (answer,) = engines(
        {"model": str(model.path)} | settings(model.file, ALPHA, "last-prompt"), VLLM_ENABLE_V1_MULTIPROCESSING="1"
    )
    assert "EngineCore" in answer["log"] and "at blocks [1, 2]" in answer["log"]
    assert_same(answer, model.greedy(ALPHA, "last-prompt"))


@pytest.mark.slow
@needs_vllm
def test_compiled_engines(engines: Engines, planted: Callable[[str], Planted]) -> None:
    """The vector is traced into the graph; another one under the same path is not served from the compile cache."""
    model = planted("llama")
    path = model.saved("compiled")
    arguments = {"model": str(model.path), "enforce_eager": False} | settings(path, ALPHA, "last-prompt")
    (answer,) = engines(arguments)
    assert "Warming up model for the compilation" in answer["log"]
    assert_same(answer, model.greedy(ALPHA, "last-prompt"))
    other = replace(model.vector, block_ids=(0,), values=model.vector.values[1:])
    other.save(path)
    (answer,) = engines(arguments)
    before, model.vector = model.vector, other
    expected = model.greedy(ALPHA, "last-prompt")
    model.vector = before
    assert differ(expected, model.greedy(ALPHA, "last-prompt"))
    assert_same(answer, expected)


@pytest.mark.slow
@needs_vllm
def test_refusals_when_an_engine_is_configured(engines: Engines, planted: Callable[[str], Planted]) -> None:
    llama = planted("llama")
    wide = {**llama.vector.model, "hidden_size": 64}
    cases: dict[str, dict[str, Any]] = {
        "there is no steering vector at": settings("nowhere.safetensors", 1.0),
        "hidden_size 64.*hidden_size 128": settings(
            llama.saved("wide", values=llama.vector.values[:, :64], model=wide), 1.0
        ),
        "names block 4, and .* has blocks 0 to 3": settings(llama.saved("deep", block_ids=(1, 4)), 1.0),
        "model_type qwen3.*model_type llama": settings(planted("qwen3").file, 1.0),
        "unknown scope 'promt'": settings(llama.file, 1.0, "promt"),
        "unit relative.*calibrate": settings(llama.saved("relative", unit="relative"), 1.0),
        "enable_prefix_caching=False": settings(llama.file, 1.0, "last-prompt") | {"enable_prefix_caching": True},
        "no key 'alfa'": {"additional_config": {KEY: {"vector": str(llama.file), "alfa": 1.0}}},
    }
    answers = engines(*({"model": str(llama.path)} | arguments for arguments in cases.values()))
    for answer, pattern in zip(answers, cases, strict=True):
        with pytest.raises(AssertionError, match=pattern):
            raise AssertionError(answer.get("error", "it was not refused"))


BAKED = ("llama", "granite", "smollm3", "nemotron", "arcee", "seed_oss", "qwen2", "mistral", "gpt_neox", "gpt2")


@pytest.mark.slow
@needs_vllm
def test_baked_checkpoints_run_steered_in_vllm_as_it_is(
    engines: Engines, planted: Callable[[str], Planted], tmp_path: Path
) -> None:
    """All ways of baking; and what they avoid: a bias that the architecture has no place for is dropped in silence."""
    models = [planted(family) for family in BAKED]
    for family, model in zip(BAKED, models, strict=True):
        bake(model.path, model.vector, ALPHA, tmp_path / family)
    qwen2 = planted("qwen2")
    shutil.copytree(qwen2.path, tmp_path / "naive")
    weights = load_file(qwen2.path / "model.safetensors")
    for block, values in zip(qwen2.vector.block_ids, qwen2.vector.values, strict=True):
        weights[f"model.layers.{block}.mlp.down_proj.bias"] = ALPHA * torch.from_numpy(values)
    save_file(weights, tmp_path / "naive" / "model.safetensors", metadata={"format": "pt"})
    answers = engines(
        *({"model": str(tmp_path / family)} for family in BAKED), {"model": str(tmp_path / "naive")}, VLLM_PLUGINS=""
    )
    for answer, model, family in zip(answers, models, BAKED, strict=False):
        expected = model.greedy(ALPHA)
        assert differ(expected, model.greedy(0.0)), family
        assert_same(answer, expected, family)
    assert_same(answers[-1], qwen2.greedy(0.0), "qwen2 with biases it has no place for")


@pytest.mark.slow
@needs_vllm
def test_the_server(planted: Callable[[str], Planted], tmp_path: Path) -> None:
    model = planted("llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "--model",
        str(model.path),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--max-model-len",
        str(CONTEXT),
    ]
    arguments += ["--dtype", "float32", "--enforce-eager", "--served-model-name", "m"]
    arguments += ["--no-enable-prefix-caching", "--additional-config"]
    arguments += [json.dumps(settings(model.file, ALPHA, "last-prompt")["additional_config"])]
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            env=environment(tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="1"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not responds(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-6000:]
            time.sleep(1)
        body = {"model": "m", "prompt": PROMPTS, "temperature": 0, "max_tokens": N_NEW, "ignore_eos": True}
        request = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps(body | {"logprobs": 0, "return_token_ids": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            choices = sorted(json.load(response)["choices"], key=lambda choice: choice["index"])
    finally:
        server.terminate()
        server.wait(60)
    found = {
        "tokens": [choice["token_ids"] for choice in choices],
        "logprobs": [choice["logprobs"]["token_logprobs"] for choice in choices],
    }
    assert_same(found, model.greedy(ALPHA, "last-prompt"))


def responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


# Without vLLM


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    identity = {"model": "m", "revision": None, "model_type": "llama", "weights_fingerprint": "abc"}
    shape = {"hidden_size": 4, "n_blocks": 3}
    path = tmp_path / "v.safetensors"
    SteeringVector("d0+", (0, 2), np.ones((2, 4), dtype=np.float32), "raw", identity | shape).save(path)
    return path


def test_a_request_is_passed_on_whole(vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vector.parent)
    request = SteeringRequest.read({"vector": "v.safetensors", "alpha": 2})
    assert request.settings() == {
        "vector": str(vector.resolve()),
        "alpha": 2.0,
        "scope": "all",
        "fingerprint": request.vector.fingerprint,
    }
    assert SteeringRequest.read(request.settings()).settings() == request.settings()
    with pytest.raises(ArtifactError, match=r"is [0-9a-f]+, not 0123 as the engine was configured with"):
        SteeringRequest.read(request.settings() | {"fingerprint": "0123"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": None}, "finite number, not None"),
        ({"alpha": "2"}, "finite number, not '2'"),
        ({"alpha": float("nan")}, "finite number, not nan"),
        ({"alpha": True}, "finite number, not True"),
        ({"scope": "last"}, "unknown scope 'last'"),
        ({"scop": "all"}, r"no key 'scop' \(did you mean 'scope'\?\); allowed are vector, alpha and scope"),
        ({"vector": "missing.safetensors"}, "there is no steering vector at"),
    ],
)
def test_settings_that_cannot_be_meant(vector: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SteeringRequest.read({"vector": str(vector), "alpha": 1.0} | changes)


def test_settings_that_are_none() -> None:
    with pytest.raises(UsageError, match=f"{KEY} is 'v.safetensors'; write"):
        SteeringRequest.read("v.safetensors")
    with pytest.raises(UsageError, match="needs the key 'alpha'"):
        SteeringRequest.read({"vector": "v.safetensors"})


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("cache_config", "enable_prefix_caching", True, "--no-enable-prefix-caching"),
        ("cache_config", "kv_sharing_fast_prefill", True, "key-value sharing fast prefill"),
        ("parallel_config", "use_ubatching", True, "micro-batches"),
        ("parallel_config", "prefill_context_parallel_size", 2, "prefill context parallelism"),
        ("", "speculative_config", "a draft", "speculative decoding"),
        ("", "kv_transfer_config", "a store", "key-value connector"),
    ],
)
def test_engines_that_cannot_keep_a_scope(vector: Path, part: str, name: str, value: Any, message: str) -> None:
    config = SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        parallel_config=SimpleNamespace(),
        speculative_config=None,
        kv_transfer_config=None,
    )
    asked = {"vector": str(vector), "alpha": 1.0}
    SteeringRequest.read(asked | {"scope": "last-prompt"}).check_engine(config)
    setattr(getattr(config, part) if part else config, name, value)
    with pytest.raises(UsageError, match=f"the scope last-prompt .*{message}"):
        SteeringRequest.read(asked | {"scope": "last-prompt"}).check_engine(config)
    SteeringRequest.read(asked).check_engine(config)  # all tokens are steered whatever else is on
    config.parallel_config.enable_elastic_ep = True
    with pytest.raises(UsageError, match="elastic"):
        SteeringRequest.read(asked).check_engine(config)


def test_which_tokens_of_a_batch_a_scope_names() -> None:
    """Three requests: a prompt of 5 read to its end, the middle of a prompt of 9, and one that generates after 2."""
    positions = torch.tensor([2, 3, 4, 3, 4, 6, 77, 77])  # what lies behind the batch is left from before
    lengths, counts = np.array([5, 9, 2], dtype=np.int32), np.array([3, 2, 1], dtype=np.int32)
    expected = {
        "prompt": [1, 1, 1, 1, 1, 0],
        "last-prompt": [0, 0, 1, 0, 0, 0],
        "generated": [0, 0, 0, 0, 0, 1],
        "from:4": [0, 0, 1, 0, 1, 1],
        "from:0": [1, 1, 1, 1, 1, 1],
    }

    class First:  # what the two model runners of vLLM have that is read
        def __init__(self) -> None:
            self.input_batch = SimpleNamespace(num_prompt_tokens=np.array([0, 0, 0, 88], dtype=np.int32))
            self.positions = torch.full((8,), 77)

        def _prepare_inputs(self, scheduler_output: Any, counts: np.ndarray) -> str:
            self.positions[:] = positions
            self.input_batch.num_prompt_tokens[:3] = lengths
            return scheduler_output  # type: ignore[no-any-return]

    class Second:
        def __init__(self) -> None:
            by_state = np.array([9, 88, 5, 2], dtype=np.int32)
            self.req_states = SimpleNamespace(prompt_len=SimpleNamespace(np=by_state))

        def prepare_inputs(self, *_args: Any) -> Any:
            places = np.array([2, 0, 3])
            return SimpleNamespace(positions=positions, idx_mapping_np=places, num_scheduled_tokens=counts)

    for scope, marked in expected.items():
        mask = torch.ones(8, 1, dtype=torch.bfloat16)
        mark_tokens(mask, scope, positions, lengths, counts)
        assert mask[:, 0].tolist() == [*marked, 0, 0], scope
        first, second = First(), Second()
        _fill_before_passes(first, mask.fill_(1), scope)
        assert first._prepare_inputs("batch", counts) == "batch"
        assert mask[:, 0].tolist() == [*marked, 0, 0], scope
        _fill_before_passes(second, mask.fill_(1), scope)
        assert second.prepare_inputs("batch").positions is positions
        assert mask[:, 0].tolist() == [*marked, 0, 0], scope
    with pytest.raises(UsageError, match="the scope prompt is not known how to keep in a SimpleNamespace"):
        _fill_before_passes(SimpleNamespace(), torch.ones(8, 1), "prompt")


def test_what_a_block_gives_back_is_moved() -> None:
    class Block(nn.Module):
        def forward(self, hidden: torch.Tensor, *rest: Any) -> Any:
            return (hidden, *rest) if rest else hidden

    shift, mask = torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    moved = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    block, residual, zeros = Block(), torch.ones(3, 2), torch.zeros(3, 2)
    _add_to_output(block, shift, mask)
    assert torch.equal(block(zeros), moved)
    assert torch.equal(block(zeros[None]), moved[None])
    hidden, rest = block(zeros, residual)
    assert torch.equal(hidden, moved) and rest is residual
    assert not block.state_dict(), "or the weights of the block could not be saved and loaded as before"
    for strange in (torch.zeros(3, 4), torch.zeros(2, 3, 2), torch.zeros(2)):
        with pytest.raises(UsageError, match="a Block of vLLM gives back hidden states of shape"):
            block(strange)


def test_registering_does_nothing_where_there_is_no_engine() -> None:
    code = (
        "import sys\nfrom skillbasis.steer.vllm_plugin import register\nregister()\nregister()\n"
        "sys.exit(any(name in sys.modules for name in ('vllm', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    register()
