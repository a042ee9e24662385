"""What a decoder computes and holds, held against torch's own counter, real caches and real adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from conftest import FAMILIES, N_BLOCKS, make_config, make_model
from skillbasis.errors import UsageError
from skillbasis.flops import (
    Device,
    answering_memory,
    decoder_cost,
    load_skeleton,
    reading_memory,
    training_memory,
)

torch.set_num_threads(1)

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}  # the counter knows every product in these
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def counted(model: Any, n_rows: int, n_tokens: int, **mapping: Any) -> int:
    """Operations of a forward pass with logits, by torch's counter; a mask keeps the meta device from being read."""
    ids = torch.zeros((n_rows, n_tokens), dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False, **mapping) as counter, torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return int(counter.get_total_flops())


def on_meta(config: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(config, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_operations_are_those_that_torch_counts(family: str) -> None:
    model = hf.AutoModelForCausalLM.from_config(make_config(family), **EAGER).eval()
    cost = decoder_cost(model)
    assert len(cost.token_flops) == len(cost.pair_flops) == cost.n_blocks == N_BLOCKS
    for n_rows, n_tokens in ((1, 7), (3, 40)):  # windows of 8 tokens are counted as the full square
        read = n_rows * n_tokens
        mine = cost.forward_flops(read, n_rows * n_tokens**2, head_tokens=read)
        assert mine == pytest.approx(counted(model, n_rows, n_tokens), rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_pass_that_ends_early_costs_as_much_as_a_model_of_those_blocks(family: str) -> None:
    config = make_config(family)
    cost = decoder_cost(hf.AutoModelForCausalLM.from_config(config))
    for last in range(N_BLOCKS - 1):
        config.num_hidden_layers = last + 1
        short = hf.AutoModelForCausalLM.from_config(config, **EAGER).eval()
        without_head = counted(short, 1, 20) - 20 * cost.head_flops
        assert cost.forward_flops(20, 400, last_block=last) == pytest.approx(without_head, rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_fused_attention_is_counted_as_the_full_square_too(family: str) -> None:
    def formula(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter has no entry for this kernel
    model = hf.AutoModelForCausalLM.from_config(make_config(family), attn_implementation="sdpa").eval()
    mine = decoder_cost(model).forward_flops(40, 1600, head_tokens=40)
    assert mine == pytest.approx(counted(model, 1, 40, custom_mapping={fused: formula}), rel=1e-9)


def test_a_model_of_eight_billion_parameters_is_counted_without_its_weights() -> None:
    model = on_meta(hf.LlamaConfig(**LLAMA_8B), attn_implementation="eager")
    cost = decoder_cost(model)
    assert cost.n_parameters == 8_030_261_248  # as published
    assert cost.forward_flops(1000, 1000**2, head_tokens=1000) == pytest.approx(counted(model, 1, 1000), rel=1e-9)


def test_of_experts_only_those_that_a_token_is_sent_to_are_counted() -> None:
    config = hf.MixtralConfig(
        **{**LLAMA_8B, "vocab_size": 32000}, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False
    )
    cost = decoder_cost(on_meta(config))
    assert cost.n_parameters == 46_702_792_704  # Mixtral-8x7B as published, 12.9 billion of them active
    active = (sum(cost.token_flops) + cost.head_flops) / 2 + 32000 * 4096
    assert active == pytest.approx(12_879_925_248, rel=1e-4)  # norms are not multiplied with anything


def test_heads_of_different_sizes_and_blocks_without_attention_are_seen() -> None:
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    moe = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1}
    latent = hf.DeepseekV3Config(
        vocab_size=320, num_key_value_heads=4, first_k_dense_replace=1, **shape, **sizes, **moe
    )
    model = hf.AutoModelForCausalLM.from_config(latent, **EAGER).eval()
    assert decoder_cost(model).forward_flops(40, 800, head_tokens=40) == pytest.approx(counted(model, 2, 20), rel=1e-9)
    mixed = hf.Qwen3NextConfig(
        **{**shape, "num_hidden_layers": 4},
        vocab_size=320,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    )
    linear = [kind == "linear_attention" for kind in mixed.layer_types]
    assert linear == [True, True, True, False]
    assert [size == 0 for size in decoder_cost(on_meta(mixed)).pair_flops] == linear


def test_gradients_cost_two_forward_passes() -> None:
    model = hf.AutoModelForCausalLM.from_config(make_config("llama"), **EAGER)
    ids = torch.zeros((2, 30), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    forward = decoder_cost(model).forward_flops(60, 1800, head_tokens=60)
    assert counter.get_total_flops() == pytest.approx(3 * forward, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_holds_as_many_numbers_as_a_real_one(family: str) -> None:
    model = make_model(family)
    with torch.inference_mode():
        cache = model(input_ids=torch.zeros((1, 5), dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert decoder_cost(model).cache_values == held / 5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_adapters_are_as_large_as_real_ones(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = make_model(family)
    sides = decoder_cost(model).matrix_sides
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert 4 * sides == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_memory_follows_its_formulas() -> None:
    cost = decoder_cost(on_meta(hf.LlamaConfig(**LLAMA_8B), attn_implementation="sdpa"))
    assert (cost.widest, cost.cache_values) == (14336, 32 * 2 * 8 * 128)
    assert reading_memory(cost, 8192, 1000, 2) == {
        "weights": 2 * 8_030_261_248,
        "batch": 8192 * (2 * (4 * 4096 + 3 * 14336) + 4 * 4096),
    }
    assert reading_memory(cost, 8192, 1000, 2, logits=True)["logits"] == 8192 * 128256 * 10
    written_out = decoder_cost(on_meta(hf.LlamaConfig(**LLAMA_8B), attn_implementation="eager"))
    assert reading_memory(written_out, 8000, 1000, 2)["attention scores"] == 8000 * 1000 * 32 * 6
    assert answering_memory(cost, 256, 1000, 2, n_models=3) == {
        "weights": 3 * 2 * 8_030_261_248,
        "key-value cache": 256 * 1000 * 65536 * 2,
        "logits": 256 * 128256 * 12,
    }
    how: dict[str, Any] = {"state_bytes": 16, "weight_bytes": 2, "n_held": 1}
    full = training_memory(cost, 2000, 1000, 2, lora_rank=None, checkpointing=True, **how)
    block = 2000 * (8 * 4096 + 4 * 14336) * 2
    assert full == {
        "base models held": 2 * 8_030_261_248,
        "training state": 16 * 8_030_261_248,
        "activations": block + 32 * 2000 * 4096 * 4,
        "logits": 2000 * 128256 * 10,
    }
    lora = training_memory(cost, 2000, 1000, 2, lora_rank=16, checkpointing=False, **how)
    attention, mlp = 2 * (4096 + 4096) + 2 * (4096 + 1024), 3 * (4096 + 14336)
    assert lora["training state"] == 2 * 8_030_261_248 + 16 * 16 * 32 * (attention + mlp)
    assert lora["activations"] == 32 * block


def test_hours_on_a_device() -> None:
    assert Device("H100").hours(989e12 * 0.4 * 3600) == pytest.approx(1)
    assert Device("A100", n_gpus=4, utilisation=0.5).hours(312e12 * 3600) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpu": "H10"}, "unknown GPU 'H10' (did you mean 'H100'?); known are T4, V100, "),
        ({"gpu": "h200"}, "unknown GPU 'h200' (did you mean 'H200'?)"),
        ({"utilisation": 0.0}, "utilisation must be above 0 and at most 1, not 0.0"),
        ({"utilisation": 1.1}, "utilisation must be above 0 and at most 1, not 1.1"),
        ({"utilisation": math.nan}, "utilisation must be above 0 and at most 1, not nan"),
        ({"n_gpus": 0}, "n_gpus must be at least 1, not 0"),
    ],
)
def test_a_device_that_cannot_be_meant_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Device(**arguments)
    assert words in str(caught.value)


def test_a_skeleton_needs_no_weights(model_path: Callable[..., Path], tmp_path: Path) -> None:
    for file in model_path("llama").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model, tokenizer = load_skeleton(tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert tokenizer("2 and 3")["input_ids"]
    assert decoder_cost(model) == decoder_cost(make_model("llama"))


def test_an_adapter_is_planned_by_its_base(model_path: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model_path("gpt2"))}))
    assert load_skeleton(tmp_path)[0].config.model_type == "gpt2"


def test_a_model_that_cannot_be_read_is_one_sentence(model_path: Callable[..., Path], tmp_path: Path) -> None:
    def refusal(name: str | Path) -> str:
        with pytest.raises(UsageError) as caught:
            load_skeleton(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model_path("llama") / "config.json").read_bytes())
    assert "has no tokenizer that can be read (" in refusal(bare)
    assert "put its tokenizer.json beside config.json" in refusal(bare)
    (bare / "config.json").write_text('{"model_type": "nonsense"}')
    assert "cannot be read as a causal language model: " in refusal(bare)
    (bare / "config.json").write_text('{"model_type": "vit"}')
    assert "Unrecognized configuration class" in refusal(bare)
    assert "does not exist; give a local directory" in refusal(tmp_path / "nowhere")
    assert "(did you mean 'embedded'?)" in refusal("embeded")
    assert "a hub id that can be reached" in refusal("meta-llama/Meta-Llama-3-8B-Instruct")
