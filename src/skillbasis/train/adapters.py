"""Which matrices LoRA adapters are put on."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..lm import LanguageModel
from .settings import LoraSettings

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven of arXiv 2604.17614: attention and MLP of Llama, Mistral, Qwen, Gemma, OLMo."""
_ROUTERS = ("gate", "router", "shared_expert_gate")  # they choose experts; adapting them is not adapting a projection


def projections(lm: LanguageModel) -> list[str]:
    """Names of the matrices in the decoder blocks that adapters are put on.

    The seven of the paper where the model has them. Architectures that keep several in one matrix (Phi-3: `qkv_proj`,
    `gate_up_proj`; GPT-NeoX: `query_key_value`) get one adapter on that matrix, so all linear maps of attention and MLP
    are covered. Routers are left alone, and so are the experts of a mixture, which are no linear modules.

    Raises: UsageError: the blocks hold no linear module.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = {
        name.rsplit(".", 1)[-1]
        for block in lm.blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if names.issuperset(PROJECTIONS):
        return list(PROJECTIONS)
    found = sorted(names - set(_ROUTERS))
    if not found:
        raise UsageError(
            f"the blocks of model type {lm.model_type!r} hold no linear module to put adapters on; train without LoRA"
        )
    return found


def lora_config(lm: LanguageModel, settings: LoraSettings) -> Any:
    """The PEFT configuration of adapters on a model."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=projections(lm),
        task_type="CAUSAL_LM",
    )
