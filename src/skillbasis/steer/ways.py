"""How a checkpoint can carry a vector in the bias that ends its MLPs, so that transformers and vLLM read it unchanged.

Where the architecture has no such bias, its configuration turns it on, or it runs as the Llama that it equals. Where
neither holds it is refused: engines drop weights that they do not expect without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .checkpoint import Checkpoint

# Of these both transformers and vLLM (by itself, or through transformers) read `mlp_bias`. Exaone and Apertus are read
# so by vLLM only.
MLP_BIAS = ("arcee", "cwm", "granite", "llama", "nemotron", "seed_oss", "smollm3")
AS_LLAMA = ("qwen2", "mistral")
_SCALED = ("granite",)  # the block multiplies its MLP's output by `residual_multiplier`
_KEPT_BY_LLAMA = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "attention_dropout"),
)
_ROPE_BEFORE = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


@dataclass(frozen=True)
class Way:
    """What has to be written for a checkpoint to carry a vector."""

    name: str
    """`mlp_bias`: turned on in the configuration; `as llama`: relabelled; `own bias`: added to the one there is."""
    config: Mapping[str, Any]
    """The new `config.json`."""
    down: Mapping[int, str]
    """Name of the last matrix of each block's MLP."""
    dtype: str
    """Of the MLPs' weights, and so of the biases."""
    scale: float
    """What the vector is multiplied by, since the block multiplies its MLP's output by the inverse."""
    zeros: Mapping[str, int]
    """Further biases that must be there, as zeros, and their lengths: engines leave memory that is not written as it
    is."""


def choose_way(checkpoint: Checkpoint) -> Way:
    """Finds how a checkpoint can carry a vector.

    Raises: UsageError: it cannot in a form that engines read; the message names other ways to steer the model.
    """
    kind = checkpoint.config["model_type"]
    down = _down_projections(checkpoint)
    own = all(f"{module}.bias" in checkpoint.files for module in down.values())
    numbers = [f"{module}.{part}" for module in down.values() for part in (("weight", "bias") if own else ("weight",))]
    dtypes = {checkpoint.dtype(name) for name in numbers}
    if len(dtypes) != 1 or not dtypes <= {"float32", "bfloat16", "float16"}:
        raise UsageError(
            f"the MLPs of {checkpoint.name!r} are saved in {', '.join(sorted(dtypes))}; a bias is baked beside weights "
            "in one of float32, bfloat16 and float16"
        )
    (dtype,) = dtypes
    scale = 1 / float(checkpoint.config.get("residual_multiplier", 1.0)) if kind in _SCALED else 1.0
    if own:
        return Way("own bias", _with_rope(checkpoint.config), down, dtype, scale, {})
    if kind not in MLP_BIAS + AS_LLAMA:
        raise refused(checkpoint, f"model type {kind!r} has no bias there that engines read")
    zeros: dict[str, int] = {}
    for module in down.values():
        mlp = module.rpartition(".")[0]
        for name in ("gate_proj", "up_proj"):
            if f"{mlp}.{name}.weight" in checkpoint.files:
                zeros[f"{mlp}.{name}.bias"] = checkpoint.shape(f"{mlp}.{name}.weight")[0]
    if kind in AS_LLAMA:
        config = _llama_config(checkpoint)
        if config["attention_bias"]:
            for block, module in down.items():
                attention = module.removesuffix(f"{block}.mlp.down_proj") + f"{block}.self_attn.o_proj"
                zeros[f"{attention}.bias"] = checkpoint.shape(f"{attention}.weight")[0]
        way = Way("as llama", config, down, dtype, scale, zeros)
    else:
        way = Way("mlp_bias", {**_with_rope(checkpoint.config), "mlp_bias": True}, down, dtype, scale, zeros)
    written = [*zeros, *(f"{module}.bias" for module in down.values())]
    if strays := [name for name in written if name in checkpoint.files]:
        raise refused(checkpoint, f"its files have biases that its architecture does not read ({strays[0]})")
    return way


def refused(checkpoint: Checkpoint, reason: str) -> UsageError:
    return UsageError(
        f"{checkpoint.name!r} cannot carry a vector in the bias that ends its MLPs: {reason}; steer it with hooks "
        "(skillbasis evaluate --steer, skillbasis.steer), in llama.cpp (skillbasis steer gguf), or in vLLM with the "
        "plugin and a file of skillbasis steer vectors"
    )


def _down_projections(checkpoint: Checkpoint) -> dict[int, str]:
    try:
        return checkpoint.down_projections()
    except UsageError as error:
        raise refused(checkpoint, str(error)) from error


def _with_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its rotary embedding also under the names that readers before transformers 5 know.

    They would take a base of 10,000 without a word. `rope_scaling` holds everything, since newer readers that find it
    take it for the whole.
    """
    result = dict(config)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:  # written before, or several by kind of block
        return result
    result.setdefault("rope_theta", rope["rope_theta"])
    result.setdefault("rope_scaling", None if rope.get("rope_type", "default") == "default" else dict(rope))
    for key, before in _ROPE_BEFORE.get(config["model_type"], {}).items():
        if key in rope:
            result.setdefault(before, rope[key])
    if "partial_rotary_factor" in rope:
        result.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
    return result


def _llama_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of a Qwen2 or Mistral as a Llama; everything explicit, because defaults differ.

    Raises: UsageError: it attends to a window of the last tokens, which Llama does not know.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path)
    window = config.sliding_window  # None for a Qwen2 that does not use it
    slides = config.model_type == "mistral" or "sliding_attention" in config.layer_types
    if window is not None and slides and window < config.max_position_embeddings:
        raise refused(
            checkpoint,
            f"it attends to a window of {window} of {config.max_position_embeddings} tokens, which is lost where it "
            "runs as a Llama",
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    result: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    result |= {key: getattr(config, key) for key in _KEPT_BY_LLAMA}
    result |= {"head_dim": head, "attention_bias": config.model_type == "qwen2", "mlp_bias": True}
    result |= {"rope_parameters": dict(config.rope_parameters)}
    kept = ("dtype", "torch_dtype", "transformers_version")
    return _with_rope(result) | {key: checkpoint.config[key] for key in kept if key in checkpoint.config}
