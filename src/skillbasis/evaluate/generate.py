"""Sample answers with transformers: one prefill per prompt, a shared KV cache for its rollouts, finished rows leave.

Each (problem, sample) draws from a random stream of its own, so a sample does not depend on the batch it is made in
(but for the last bits of the logits, which may differ between batch shapes).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..corpus import row_text
from ..errors import SkillbasisError, UsageError
from ..lm import LanguageModel

if TYPE_CHECKING:
    import torch

Intervention = Callable[[LanguageModel], AbstractContextManager[Any]]
"""Opens a context in which the model is changed (steered, say) and which undoes the change when it ends."""


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are drawn."""

    rollouts: int = 8
    """Answers per problem."""
    temperature: float = 1.0
    """0 takes the most likely token (then one rollout is enough)."""
    max_tokens: int = 2048
    """New tokens after which an answer is cut and counted as truncated."""
    seed: int = 0
    batch_size: int = 256
    """Sequences decoded together, but at least all rollouts of one problem; results do not depend on it."""

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.max_tokens < 1 or self.batch_size < 1:
            raise UsageError("rollouts, max_tokens and batch_size must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be a finite number of 0 or more, not {self.temperature}")


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer."""

    id: str
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    prompt_id: str
    sample: int
    """0-based number of the rollout."""
    text: str
    n_tokens: int
    """New tokens, the end token not counted."""
    truncated: bool
    """Whether the answer was cut at `max_tokens`."""


def generate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    intervention: Intervention | None = None,
) -> Iterator[list[Completion]]:
    """Samples `rollouts` answers for every prompt.

    Yields: the completions of a group of prompts, whole problems at a time, longest prompts first.
    Raises: UsageError: no end token is known, or a prompt with its answer does not fit the context.
        SkillbasisError: the model gives NaN for a prompt.
    Cost: one prefill per prompt, then one token per step and unfinished sequence.
    """
    end_ids = end_token_ids(lm)
    encoded = [_encode(lm, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + settings.max_tokens > lm.context_length:
            raise UsageError(
                f"problem {prompt.id!r} has {len(ids)} tokens; with --max-tokens {settings.max_tokens} it exceeds "
                f"the context of {lm.context_length} tokens; lower --max-tokens"
            )
    order = sorted(range(len(prompts)), key=lambda i: (-len(encoded[i]), i))
    per_group = max(1, settings.batch_size // settings.rollouts)
    opened = intervention(lm) if intervention else nullcontext()
    with opened:
        for start in range(0, len(order), per_group):
            group = order[start : start + per_group]
            yield _complete(lm, [prompts[i] for i in group], [encoded[i] for i in group], settings, end_ids)


def end_token_ids(lm: LanguageModel) -> list[int]:
    """The tokens that end an answer: those of the generation config, and the tokenizer's, which training teaches.

    Raises: UsageError: neither the generation config nor the tokenizer names one.
    """
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    if lm.tokenizer.eos_token_id is not None and lm.tokenizer.eos_token_id not in ids:
        ids.append(lm.tokenizer.eos_token_id)
    if not ids:
        raise UsageError(f"model {lm.name!r} has no end token, so answers would never end; set eos_token_id")
    return ids


def _encode(lm: LanguageModel, prompt: Prompt) -> list[int]:
    text = row_text(prompt.messages, "", lm.tokenizer)
    return list(lm.tokenizer(text.text, add_special_tokens=text.add_special_tokens, verbose=False)["input_ids"])


def _uniforms(prompt_ids: Sequence[str], settings: SamplingSettings) -> np.ndarray:
    """Random float32 numbers (prompts * rollouts, max_tokens) in [0, 1), a stream per (seed, problem, sample)."""
    streams = []
    for prompt_id in prompt_ids:
        for sample in range(settings.rollouts):
            digest = hashlib.blake2b(f"{settings.seed}:{sample}:{prompt_id}".encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
            streams.append(generator.random(settings.max_tokens).astype(np.float32))
    # Rounding to float32 can give 1, which would pick the last token of the vocabulary however unlikely it is.
    return np.minimum(np.stack(streams), np.float32(1 - 2**-24))


def _pick(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Samples one token per row by inverting the cumulative distribution. (rows, vocabulary), (rows,) -> (rows,)."""
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    target = uniform.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _complete(
    lm: LanguageModel,
    prompts: list[Prompt],
    encoded: list[list[int]],
    settings: SamplingSettings,
    end_ids: list[int],
) -> list[Completion]:
    """Prefills a group of prompts once, then decodes all rollouts of all of them together."""
    import torch
    from transformers import DynamicCache

    device, rollouts, longest = lm.device, settings.rollouts, max(map(len, encoded))
    input_ids = torch.full((len(prompts), longest), lm.tokenizer.pad_token_id, device=device)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long, device=device)
    for i, ids in enumerate(encoded):  # padding on the left: every row's next token is at the same place
        input_ids[i, longest - len(ids) :] = torch.tensor(ids, device=device)
        mask[i, longest - len(ids) :] = 1
    padded = bool((mask == 0).any())
    ends = torch.tensor(end_ids, device=device)
    uniforms = torch.from_numpy(_uniforms([prompt.id for prompt in prompts], settings)).to(device)
    n_rows = len(prompts) * rollouts
    tokens = torch.full((n_rows, settings.max_tokens), end_ids[0], device=device)
    n_tokens = torch.full((n_rows,), settings.max_tokens, device=device)
    with torch.inference_mode():
        cache = DynamicCache(config=lm.model.config)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        padding: dict[str, Any] = {"attention_mask": mask, "position_ids": positions} if padded else {}
        logits = lm.model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **padding
        ).logits[:, -1]
        broken = logits.isnan().any(dim=1).tolist()
        if any(broken):
            raise SkillbasisError(
                f"the model gives NaN for problem {prompts[broken.index(True)].id!r}; try --dtype float32, or "
                "steer less"
            )
        cache.batch_repeat_interleave(rollouts)
        logits = logits.repeat_interleave(rollouts, dim=0)
        mask = mask.repeat_interleave(rollouts, dim=0)
        next_position = mask.sum(dim=1, keepdim=True)
        active = torch.arange(n_rows, device=device)  # rows still in the batch
        alive = torch.ones(n_rows, dtype=torch.bool, device=device)  # of those, the unfinished ones
        for step in range(settings.max_tokens):
            picked = _pick(logits, uniforms[active, step], settings.temperature)
            finished = torch.isin(picked, ends) & alive
            n_tokens[active[finished]] = step
            alive &= ~finished
            tokens[active[alive], step] = picked[alive]
            n_alive = int(alive.sum())
            if n_alive == 0 or step + 1 == settings.max_tokens:
                break
            if n_alive < 0.8 * len(active):  # dropping rows copies the cache, so not at every end
                keep = alive.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                active, picked, alive = active[keep], picked[keep], alive[keep]
                mask, next_position = mask[keep], next_position[keep]
            if padded:
                mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
                padding = {"attention_mask": mask, "position_ids": next_position + step}
            logits = lm.model(
                input_ids=picked[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1, **padding
            ).logits[:, -1]
    lengths, rows = n_tokens.tolist(), tokens.tolist()
    texts = lm.tokenizer.batch_decode(
        [row[:length] for row, length in zip(rows, lengths, strict=True)], skip_special_tokens=True
    )
    return [
        Completion(prompt.id, sample, texts[n], lengths[n], lengths[n] == settings.max_tokens)
        for i, prompt in enumerate(prompts)
        for sample in range(rollouts)
        for n in (i * rollouts + sample,)
    ]
