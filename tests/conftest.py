"""Shared fixtures: tiny random models of the common families on disk, corpora, stores of planted activations."""

from __future__ import annotations

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # read when NumPy and torch are first imported
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillbasis.activations import ActivationStore
from skillbasis.artifact import building, checksum, write_tensors
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.lm import LanguageModel, load_model

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "phi3"),
    *("gpt2", "gpt_neox", "falcon", "falcon_alibi", "falcon_new"),
    *("mixtral", "qwen2_moe", "qwen3_moe"),
)
N_BLOCKS = 4
HIDDEN = 32
CONTEXT = 256
VOCABULARY = 320
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(*, chat: bool = False, adds: str = "<s> $A") -> Any:
    """A byte-level BPE with padding, start and end tokens; `adds` is what it puts around a text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["so the answer is the sum of two and three"] * 3, trainer)
    pairs = [(token, tokenizer.token_to_id(token)) for token in special[:3]]
    tokenizer.post_processor = processors.TemplateProcessing(single=adds, special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHATML if chat else None,
        clean_up_tokenization_spaces=False,
    )


def make_config(family: str) -> Any:
    """A configuration of four blocks; window attention, where there is any, is shorter than the texts.

    Models with experts have four, of which each token takes two.
    """
    import transformers as hf

    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    old = {"vocab_size": VOCABULARY, **ends, "initializer_range": 0.2}
    common = old | {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    grouped = common | {"num_key_value_heads": 2}
    experts = grouped | {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaConfig(**grouped),
        "mistral": lambda: hf.MistralConfig(**grouped, sliding_window=8),
        "qwen2": lambda: hf.Qwen2Config(**grouped),
        "qwen3": lambda: hf.Qwen3Config(**grouped, head_dim=8),
        "gemma2": lambda: hf.Gemma2Config(**grouped, head_dim=8, sliding_window=8),
        "gemma3": lambda: hf.Gemma3TextConfig(
            **grouped, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
        ),
        "olmo2": lambda: hf.Olmo2Config(**grouped),
        "gpt2": lambda: hf.GPT2Config(**old, n_embd=HIDDEN, n_layer=N_BLOCKS, n_head=4, n_positions=CONTEXT),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**common),
        "falcon": lambda: hf.FalconConfig(**common),  # as the 7B: one key head, attention and MLP side by side
        "falcon_alibi": lambda: hf.FalconConfig(
            **common, alibi=True, multi_query=False, parallel_attn=False, bias=True
        ),
        "falcon_new": lambda: hf.FalconConfig(**common, num_kv_heads=2, new_decoder_architecture=True),  # as the 40B
        "mixtral": lambda: hf.MixtralConfig(**grouped, num_local_experts=4, num_experts_per_tok=2),
        "qwen2_moe": lambda: hf.Qwen2MoeConfig(**experts, shared_expert_intermediate_size=24),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(**experts, head_dim=8, mlp_only_layers=[1]),  # block 1 has a plain MLP
        "phi3": lambda: hf.Phi3Config(**grouped, original_max_position_embeddings=CONTEXT),
    }
    return makers[family]()


def make_model(family: str, seed: int = 0) -> Any:
    """A random causal language model in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(make_config(family)).eval()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves the tiny model of a family once, with or without a ChatML template; returns its directory."""
    folder = tmp_path_factory.mktemp("models")

    def path(family: str, *, chat: bool = False) -> Path:
        target = folder / f"{family}-{'chat' if chat else 'plain'}"
        if not target.exists():
            make_model(family).save_pretrained(target)
            make_tokenizer(chat=chat).save_pretrained(target)
        return target

    return path


@pytest.fixture(scope="session")
def loaded(model_path: Callable[..., Path]) -> Callable[..., LanguageModel]:
    """Loads the tiny model of a family once; tests must leave it as it is."""
    models: dict[tuple[str, bool], LanguageModel] = {}

    def load(family: str, *, chat: bool = False) -> LanguageModel:
        if (family, chat) not in models:
            models[family, chat] = load_model(model_path(family, chat=chat))
        return models[family, chat]

    return load


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Reads rows of (prompt, response) as a corpus with ids row-0, row-1, ..."""

    def make(rows: list[tuple[str, str]]) -> Corpus:
        path = tmp_path / "corpus.jsonl"
        lines = [{"id": f"row-{i}", "prompt": p, "response": r} for i, (p, r) in enumerate(rows)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_corpus(path)

    return make


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., ActivationStore]:
    """Writes activations (n_rows, blocks, hidden) as a finished store, as extraction would have."""

    def make(values: np.ndarray, *, shard_rows: int = 1000, name: str = "store", **changes: Any) -> ActivationStore:
        values = values.astype(np.float32)
        ids = [f"row-{i}" for i in range(len(values))]
        manifest: dict[str, Any] = {
            "model": "planted",
            "model_type": "llama",
            "weights_fingerprint": "0123456789abcdef",
            "tokenizer_fingerprint": "aa",
            "template_fingerprint": None,
            "hidden_size": values.shape[2],
            "n_blocks": values.shape[1] + 2,
            "block_ids": list(range(1, values.shape[1] + 1)),
            "pooling": "mean",
            "span": "all",
            "max_length": 100,
            "dtype": "float32",
            "corpus": "planted.jsonl",
            "corpus_fingerprint": "cc",
            "rows": len(values),
            "shards": [],
        }
        with building(tmp_path / name, "activations", {"name": name}, manifest) as work:
            for index, start in enumerate(range(0, len(values), shard_rows)):
                file = work / f"shard-{index:05d}.safetensors"
                part = values[start : start + shard_rows]
                write_tensors(file, {"activations": part})
                shard = {"file": file.name, "corpus_rows": [start, start + len(part)], "rows": len(part)}
                manifest["shards"].append(shard | {"bytes": file.stat().st_size, "checksum": checksum(file)})
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"id": ids}), work / "rows.parquet")
            manifest["rows_checksum"] = checksum(work / "rows.parquet")
            manifest |= changes
        return ActivationStore.open(tmp_path / name)

    return make


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Runs something in a forked process; returns minus the signal that killed it, or its exit code."""

    def run(action: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                action()
            except BaseException:
                os._exit(1)
            os._exit(0)
        deadline = time.monotonic() + 60
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)

    return run


def kill_this_process() -> None:
    """Ends the process as `kill -9` does: nothing of it runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of a directory by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def explored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `explored.make_run` makes it; a test that changes it takes a copy."""
    import torch

    from explored import make_run

    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("explored"))
