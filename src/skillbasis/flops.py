"""What a decoder computes and holds, read from its structure, and what that means on a device.

No weights are needed: a model built from its configuration on torch's meta device has all shapes. A multiplication and
an addition are two operations, as in `torch.utils.flop_counter`. Memory and hours are estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import read_json
from .blocks import find_blocks
from .errors import UsageError, nearest
from .lm import resolve
from .world.assets import EMBEDDED

if TYPE_CHECKING:
    from torch import nn

_UNLIMITED_CONTEXT = 1 << 20  # of models without positions to run out of, as in lm.py
ADAM_BYTES = 16
"""Per trained number: a float32 weight, its gradient and two moments."""


@dataclass(frozen=True)
class Gpu:
    """A device as its data sheet describes it."""

    name: str
    tflops: float
    """Dense 16-bit matrix throughput, 10^12 operations a second."""
    memory_gib: float
    bf16: bool = True
    """Whether it computes in bfloat16; older ones only in float16."""


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 65, 16, bf16=False),
        Gpu("V100", 125, 32, bf16=False),
        Gpu("A10G", 70, 24),
        Gpu("L4", 121, 24),
        Gpu("RTX4090", 165, 24),
        Gpu("L40S", 362, 48),
        Gpu("A100-40GB", 312, 40),
        Gpu("A100", 312, 80),
        Gpu("H100", 989, 80),
        Gpu("H200", 989, 141),
        Gpu("B200", 2250, 192),
        Gpu("MI300X", 1307, 192),
    )
}


@dataclass(frozen=True)
class Device:
    """What the run is to be computed on."""

    gpu: str = "H100"
    n_gpus: int = 1
    """Work is taken to divide evenly; memory is that of one, since every one holds the whole model."""
    utilisation: float = 0.4
    """Share of the data sheet's throughput that is reached, from 0 to 1."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            names = list(GPUS)
            hint = nearest(self.gpu, names) or nearest(self.gpu.upper(), names)
            raise UsageError(f"unknown GPU {self.gpu!r}{hint}; known are {', '.join(names)}")
        if self.n_gpus < 1:
            raise UsageError(f"n_gpus must be at least 1, not {self.n_gpus}")
        if not 0 < self.utilisation <= 1:
            raise UsageError(f"utilisation must be above 0 and at most 1, not {self.utilisation}")

    def hours(self, flops: float) -> float:
        return flops / (GPUS[self.gpu].tflops * 1e12 * self.utilisation * self.n_gpus) / 3600


@dataclass(frozen=True)
class DecoderCost:
    """Operations and sizes of one decoder; tuples have an entry per block."""

    model_type: str
    n_blocks: int
    hidden_size: int
    vocab_size: int
    context_length: int
    """Longest input in tokens."""
    n_parameters: int
    """All of them, embeddings and head included, tied ones once."""
    token_flops: tuple[float, ...]
    """Operations per token: 2 x elements of every matrix, of expert matrices only the share that a token is sent to."""
    pair_flops: tuple[float, ...]
    """Operations per pair of tokens of a row: 4 x heads x head size; 0 in blocks without such attention."""
    head_flops: float
    """Operations of the language-modelling head per token."""
    n_heads: int
    cache_values: int
    """Numbers of the key-value cache per token, over all blocks."""
    widest: int
    """Largest side of a block's matrices (the MLP's inner width, mostly), times the experts that a token is sent to."""
    matrix_sides: int
    """Sum of rows and columns over all matrices of the blocks: a low-rank adapter has rank times as many numbers."""
    stores_scores: bool
    """Whether attention writes out its (tokens x tokens) scores, as the eager implementation does."""

    def forward_flops(
        self, n_tokens: float, n_pairs: float, *, last_block: int | None = None, head_tokens: float = 0
    ) -> float:
        """Operations of one forward pass.

        The full square of a row's length is counted, as `torch.utils.flop_counter` counts scaled dot product
        attention, though a causal kernel can skip half of it. The same holds for sliding windows: the counter, and
        the masked kernels it looks at, take the full square; only kernels made for windows compute less.
        Element-wise work (norms, activations, rotary embeddings, softmax), recurrent states of linear attention and
        matrices outside the blocks are not counted.

        Args:
            n_tokens: tokens read, padding left out.
            n_pairs: sum over rows of the squared number of tokens.
            last_block: 0-based block after which the pass ends; None runs all.
            head_tokens: tokens whose logits are computed.
        Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with matrices taken from the model itself.
        """
        stop = self.n_blocks if last_block is None else last_block + 1
        inside = n_tokens * sum(self.token_flops[:stop]) + n_pairs * sum(self.pair_flops[:stop])
        return inside + head_tokens * self.head_flops


def load_skeleton(name: str | Path) -> tuple[Any, Any]:
    """Builds a causal language model without weights, on torch's meta device, and loads its tokenizer.

    Args:
        name: a local directory (of a LoRA adapter its base is taken), a hub id, or `embedded`. Only configuration and
            tokenizer are read.
    Returns: the model and the tokenizer.
    Raises: UsageError: either cannot be found or read, the model is no causal language model, or the tokenizer gives
        no character offsets.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = resolve(name)
    adapter = Path(path) / "adapter_config.json"
    if adapter.exists():
        path = resolve(read_json(adapter)["base_model_name_or_path"])
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"model {str(name)!r}{nearest(str(name), [EMBEDDED])} cannot be read as a causal language model: "
            f"{_first_line(error)}; give a model directory, a hub id that can be reached, or 'embedded'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"model {str(name)!r} has no tokenizer that can be read ({_first_line(error)}); put its tokenizer.json "
            "beside config.json"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"the tokenizer of {str(name)!r} is not a fast one and gives no character offsets; convert it with "
            "tokenizers"
        )
    return model, tokenizer


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def decoder_cost(model: Any) -> DecoderCost:
    """Reads the cost of a causal language model, with weights or on the meta device.

    Raises: UsageError: the decoder blocks are not found.
    """
    config = model.config.get_text_config()
    blocks = find_blocks(model)
    matrices = [list(_matrices(block, config)) for block in blocks]
    attention = [_attention(block) for block in blocks]
    if not any(attention):  # an older implementation that does not mark its attention: all blocks are taken to have it
        attention = [(block,) if getattr(config, "num_attention_heads", None) else () for block in blocks]
    n_heads = int(getattr(config, "num_attention_heads", None) or 0)
    sizes = [_head_sizes(found[0], config) if found else (0, 0, 0) for found in attention]
    head = model.get_output_embeddings()
    return DecoderCost(
        model_type=str(model.config.model_type),
        n_blocks=len(blocks),
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        context_length=int(getattr(config, "max_position_embeddings", None) or _UNLIMITED_CONTEXT),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        token_flops=tuple(sum(2 * matrix.elements * matrix.share for matrix in of_block) for of_block in matrices),
        # queries x keys, then weights x values: 2 x size each, so 4 x head size where both are the same
        pair_flops=tuple(2.0 * n_heads * (key + value) for _, key, value in sizes),
        head_flops=2.0 * head.weight.numel() if head is not None else 0.0,
        n_heads=n_heads,
        cache_values=sum(n_kept * (key + value) for n_kept, key, value in sizes),
        widest=max(matrix.width for of_block in matrices for matrix in of_block),
        matrix_sides=sum(matrix.sides for of_block in matrices for matrix in of_block),
        stores_scores=model.config._attn_implementation == "eager",
    )


@dataclass(frozen=True)
class _Matrix:
    elements: int
    share: float
    """Share of the elements that one token meets; below 1 for experts."""
    width: int
    """Larger side, times the experts that a token is sent to."""
    sides: int
    """Rows plus columns where a low-rank adapter is put; 0 for experts and convolutions."""


def _matrices(block: nn.Module, config: Any) -> Iterator[_Matrix]:
    """The weights of a block that are multiplied with each token.

    Two dimensions are a matrix (in either order: GPT-2's Conv1D too), three a stack of experts or a short convolution.
    """
    from torch import nn

    for module in block.modules():
        own = dict(module.named_parameters(recurse=False))
        stacked = any(parameter.dim() == 3 for parameter in own.values())
        for parameter in own.values():
            shape = tuple(parameter.shape)
            if isinstance(module, nn.Conv1d):
                yield _Matrix(parameter.numel() if len(shape) == 3 else 0, 1.0, shape[0], 0)
            elif len(shape) == 3:
                n_active = _experts_per_token(config) or shape[0]
                yield _Matrix(parameter.numel(), n_active / shape[0], n_active * max(shape[1:]), 0)
            elif len(shape) == 2 and not stacked:  # beside a stack, two dimensions are the experts' biases
                yield _Matrix(parameter.numel(), 1.0, max(shape), sum(shape))


def _experts_per_token(config: Any) -> int | None:
    """How many experts each token is sent to; None where the configuration does not say."""
    for name in ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _attention(block: nn.Module) -> tuple[nn.Module, ...]:
    """The block's softmax attention, which transformers marks with `is_causal`; linear attention has no such mark."""
    return tuple(module for module in block.modules() if hasattr(module, "is_causal"))[:1]


def _head_sizes(attention: nn.Module, config: Any) -> tuple[int, int, int]:
    """Number of key-value heads, size of queries and keys, size of values."""
    n_heads = int(config.num_attention_heads)
    size = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    size = int(size or getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    groups = getattr(attention, "num_key_value_groups", None)
    n_kept = n_heads // groups if groups else getattr(attention, "num_kv_heads", None) or n_heads
    if getattr(attention, "new_decoder_architecture", False):  # Falcon-40B repeats its keys for all heads, then caches
        n_kept = n_heads
    key = getattr(attention, "qk_head_dim", None) or size
    value = getattr(attention, "v_head_dim", None) or size
    return int(n_kept), int(key), int(value)


def reading_memory(
    cost: DecoderCost, n_tokens: int, longest: int, value_bytes: int, *, logits: bool = False
) -> dict[str, float]:
    """Estimated bytes of reading one batch without gradients, by what they are for.

    * weights: parameters x bytes of a value.
    * batch: tokens x (4 x hidden + 3 x widest) values that live side by side inside a block, and tokens x hidden in
      float32 for pooling.
    * attention scores, where they are written out: tokens x longest row x heads, once in the dtype, once in float32.
    * logits: tokens x vocabulary, in the dtype, in float32 and as logarithms.

    Args:
        n_tokens: rows x longest row of a batch.
        longest: tokens of its longest row.
        value_bytes: of the dtype.
        logits: whether they are computed, for all tokens.
    """
    parts = {
        "weights": float(cost.n_parameters * value_bytes),
        "batch": float(n_tokens * ((4 * cost.hidden_size + 3 * cost.widest) * value_bytes + 4 * cost.hidden_size)),
        "attention scores": float(n_tokens * longest * cost.n_heads * (value_bytes + 4) * cost.stores_scores),
        "logits": float(n_tokens * cost.vocab_size * (value_bytes + 8) * logits),
    }
    return {name: size for name, size in parts.items() if size}


def answering_memory(
    cost: DecoderCost, n_sequences: int, longest: int, value_bytes: int, *, n_models: int
) -> dict[str, float]:
    """Estimated bytes of decoding sequences together, each up to its longest.

    * weights: models held x parameters x bytes of a value.
    * key-value cache: sequences x longest x numbers per token x bytes of a value.
    * logits: sequences x vocabulary x 12 bytes (float32, probabilities, their sums).
    """
    return {
        "weights": float(n_models * cost.n_parameters * value_bytes),
        "key-value cache": float(n_sequences * longest * cost.cache_values * value_bytes),
        "logits": float(n_sequences * cost.vocab_size * 12),
    }


def training_memory(
    cost: DecoderCost,
    n_tokens: int,
    longest: int,
    value_bytes: int,
    *,
    lora_rank: int | None,
    state_bytes: int,
    checkpointing: bool,
    weight_bytes: int,
    n_held: int,
) -> dict[str, float]:
    """Estimated bytes of fine-tuning with AdamW, by what they are for.

    * base models held beside the one that is trained: models x parameters x bytes of a weight.
    * training state (weights, gradients and two moments): parameters x `state_bytes`, 16 where all are float32. With
      low-rank adapters: frozen weights, and 16 bytes x rank x (rows + columns) of every matrix in the blocks.
    * activations of a block: tokens x (8 x hidden + 4 x widest) values, and attention scores where they are written
      out. All blocks keep theirs; with checkpointing one block at a time does, and the others keep tokens x hidden in
      float32.
    * logits: tokens x vocabulary, as computed, in float32, and their gradient.

    Args:
        n_tokens: rows x longest row of one forward pass.
        value_bytes: of an activation; 2 in mixed precision.
        weight_bytes: of a weight of the base model.
    """
    block = n_tokens * (8 * cost.hidden_size + 4 * cost.widest) * value_bytes
    block += n_tokens * longest * cost.n_heads * (value_bytes + 4) * cost.stores_scores
    between = cost.n_blocks * n_tokens * cost.hidden_size * 4
    if lora_rank is None:
        trained = cost.n_parameters * state_bytes
    else:
        trained = cost.n_parameters * weight_bytes + ADAM_BYTES * lora_rank * cost.matrix_sides
    return {
        "base models held": float(n_held * cost.n_parameters * weight_bytes),
        "training state": float(trained),
        "activations": float(block + between if checkpointing else cost.n_blocks * block),
        "logits": float(n_tokens * cost.vocab_size * (value_bytes + 8)),
    }
