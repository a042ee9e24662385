"""Tiny random checkpoints on the disk with settings that differ from their classes' defaults, and vectors for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conftest import CONTEXT, HIDDEN, N_BLOCKS, VOCABULARY, make_tokenizer
from skillbasis.lm import load_model
from skillbasis.steer.vectors import SteeringVector, make_vector

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 50_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}
BLOCKS = (1, 2)


def make_config(family: str) -> Any:
    import transformers as hf

    ids: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    common = {
        **ids,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
    }
    grouped = common | {"num_key_value_heads": 2}
    theta = {"rope_type": "default", "rope_theta": 1e6}
    makers = {
        "llama": lambda: hf.LlamaConfig(**grouped, rope_parameters=LLAMA3, rms_norm_eps=1e-4),
        "granite": lambda: hf.GraniteConfig(
            **grouped, residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=2.0, attention_multiplier=0.3
        ),
        "smollm3": lambda: hf.SmolLM3Config(**grouped),
        "nemotron": lambda: hf.NemotronConfig(**grouped),
        "arcee": lambda: hf.ArceeConfig(**grouped),
        "cwm": lambda: hf.CwmConfig(**grouped, head_dim=8, rope_parameters=LLAMA3),
        "seed_oss": lambda: hf.SeedOssConfig(**grouped, head_dim=8),
        "qwen2": lambda: hf.Qwen2Config(**grouped, rope_parameters=YARN, rms_norm_eps=1e-3),
        "qwen2_tied": lambda: hf.Qwen2Config(**grouped, rope_parameters=theta, tie_word_embeddings=True),
        "mistral": lambda: hf.MistralConfig(**grouped, sliding_window=None, head_dim=16, rope_parameters=theta),
        "gpt_neox": lambda: hf.GPTNeoXConfig(
            **common, rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
        ),
        "gpt2": lambda: hf.GPT2Config(
            **ids, n_embd=HIDDEN, n_layer=N_BLOCKS, n_head=4, n_positions=CONTEXT, initializer_range=0.2
        ),
    }
    return makers[family]()


def save_checkpoint(
    folder: Path, config: Any, *, dtype: str = "float32", shard_size: str = "5GB", template: bool = True, seed: int = 0
) -> Path:
    """Saves a random model with biases that are not zero, a tokenizer with a template, and generation settings."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer(chat=template).save_pretrained(folder)
    return folder


def random_steering(path: Path, *, dtype: str = "auto", seed: int = 1) -> SteeringVector:
    """A random vector at two blocks of a model, about as long as a residual stream of its size."""
    lm = load_model(path, dtype=dtype)
    slices = np.random.default_rng(seed).standard_normal((len(BLOCKS), lm.hidden_size))
    return make_vector("planted", BLOCKS, slices, 1.0, lm.identity, {"kind": "planted"})
