"""A tiny random Llama and byte-level tokenizer in memory, for tests that need a model but not a good one."""

from __future__ import annotations

from typing import Any

import torch

from skillbasis.lm import LanguageModel, wrap

torch.set_num_threads(1)

N_BLOCKS, HIDDEN, CONTEXT = 3, 32, 128
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tiny_tokenizer(template: str | None = None) -> Any:
    """Byte-level BPE of 300 entries that adds `<s>` and no `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["what is three plus four so the answer is \\boxed{7}"] * 2, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def tiny_lm(seed: int = 0, template: str | None = None, model_type: str = "llama", **config: Any) -> LanguageModel:
    """A random model with logits peaked enough to be far from a tie: weights have a standard deviation of 0.3."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}
    config_class, model_class = classes[model_type]
    tokenizer = tiny_tokenizer(template)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = model_class(config_class(**settings | config)).float().eval()
    return wrap(model, tokenizer, "tiny")


def user(text: str) -> list[dict[str, str]]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]
