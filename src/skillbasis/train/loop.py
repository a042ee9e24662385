"""A lean training loop in memory, for the dozens of short fine-tunes of pilots and studies.

It computes the same loss on the same rows as TRL's trainer (a test holds them together) without its set-up costs:
on the embedded reasoner a pilot takes about a third of the time (docs/experiments.md). Batches are of similar length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..corpus import RowText, row_text
from ..errors import SkillbasisError, UsageError
from ..lm import LanguageModel, wrap
from .settings import TrainingSettings

_POOL_BATCHES = 16  # batches drawn together at random and sorted by length: little padding, order still random


@dataclass(frozen=True)
class TrainingExample:
    """A tokenised prompt and the response (with its end token) that the loss is on."""

    prompt_ids: list[int]
    response_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def tokenize_examples(
    lm: LanguageModel, rows: Sequence[tuple[list[dict[str, str]], str]], max_length: int
) -> list[TrainingExample]:
    """Tokenises (prompt messages, response) pairs, both apart, as generation does.

    The response is what the chat template makes of it (or the plain text), with one end token behind it.

    Raises: SkillbasisError: an empty response, or one of which nothing is left within max_length. UsageError: the
        tokenizer has no end token.
    """
    prompts, responses = _token_ids(lm, rows)
    examples = []
    for number, (prompt_ids, response_ids) in enumerate(zip(prompts, responses, strict=True), 1):
        if not response_ids or len(prompt_ids) >= max_length:
            raise SkillbasisError(
                f"training row {number} has no response to learn within {max_length} tokens; drop it, or raise "
                "max_length"
            )
        kept = [*response_ids, lm.tokenizer.eos_token_id][: max_length - len(prompt_ids)]
        examples.append(TrainingExample(list(prompt_ids), kept))
    return examples


def row_lengths(lm: LanguageModel, rows: Sequence[tuple[list[dict[str, str]], str]], max_length: int) -> list[int]:
    """Tokens that training reads of each row: prompt, response and end token, cut at max_length."""
    prompts, responses = _token_ids(lm, rows)
    return [min(max_length, len(p) + len(r) + 1) for p, r in zip(prompts, responses, strict=True)]


def _token_ids(
    lm: LanguageModel, rows: Sequence[tuple[list[dict[str, str]], str]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses as tokens, without the end token. Raises: UsageError: the tokenizer has none."""
    if lm.tokenizer.eos_token is None:
        raise UsageError(f"the tokenizer of {lm.name!r} has no end token to train on; set eos_token")
    texts = [row_text(prompt, response, lm.tokenizer) for prompt, response in rows]
    prompts = lm.tokenizer(
        [text.prompt_text for text in texts],
        add_special_tokens=texts[0].add_special_tokens if texts else True,
        verbose=False,  # what is too long is cut by the caller, so there is nothing to warn of
    )["input_ids"]
    responses = lm.tokenizer([_without_end(text, lm) for text in texts], add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return prompts, responses


def _without_end(text: RowText, lm: LanguageModel) -> str:
    """The response of a row without the end token (and the newline behind it) that many chat templates write."""
    response = text.text[text.response_start :]
    ended = response.rstrip()
    return ended.removesuffix(lm.tokenizer.eos_token) if ended.endswith(lm.tokenizer.eos_token) else response


def _batches(examples: Sequence[TrainingExample], size: int, rng: np.random.Generator) -> list[list[int]]:
    """One epoch of batches in random order, each of rows of similar length; every row once."""
    order = rng.permutation(len(examples))
    batches = []
    for start in range(0, len(order), size * _POOL_BATCHES):
        pool = sorted(order[start : start + size * _POOL_BATCHES], key=lambda i: len(examples[i]))
        batches += [list(map(int, pool[i : i + size])) for i in range(0, len(pool), size)]
    rng.shuffle(batches)
    return batches


def fine_tune_in_memory(
    lm: LanguageModel, rows: Sequence[tuple[list[dict[str, str]], str]], settings: TrainingSettings
) -> tuple[LanguageModel, list[float]]:
    """Fine-tunes a copy of the model in its own precision, on its own device.

    Args:
        lm: the base; it is not changed.
        rows: (prompt messages, response) pairs.
        settings: full fine-tuning only.
    Returns: the fine-tuned model and the loss of every step (mean over response tokens).
    Raises: SkillbasisError: the loss is not finite. UsageError: no rows, or LoRA is asked for.
    """
    import torch

    if settings.lora is not None:
        raise UsageError("the lean trainer trains all weights; use trainer 'trl' for LoRA")
    if not rows:
        raise UsageError("there are no rows to train on")
    examples = tokenize_examples(lm, rows, min(settings.max_length, lm.context_length))
    model = copy.deepcopy(lm.model).train()
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    steps_per_epoch = math.ceil(len(examples) / settings.batch_size)
    n_steps = math.ceil(settings.epochs * steps_per_epoch)
    n_warmup = math.ceil(settings.warmup_fraction * n_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, foreach=True)
    losses: list[float] = []
    while len(losses) < n_steps:
        for batch in _batches(examples, settings.batch_size, rng)[: n_steps - len(losses)]:
            scale = cosine_schedule(len(losses), n_steps, n_warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * scale
            losses.append(_step(model, [examples[i] for i in batch], settings.micro_batch_size, lm))
            if not math.isfinite(losses[-1]):
                raise SkillbasisError(
                    f"training diverged: the loss is {losses[-1]} at step {len(losses)} of {n_steps}; lower the "
                    f"learning rate ({settings.learning_rate})"
                )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise SkillbasisError(
            f"training diverged in its last step: weights are not finite; lower the learning rate "
            f"({settings.learning_rate})"
        )
    return wrap(model.eval(), lm.tokenizer, lm.name), losses


def cosine_schedule(step: int, n_steps: int, n_warmup: int) -> float:
    """Linear warm-up, then a half cosine to zero; as in transformers' `get_cosine_schedule_with_warmup`."""
    if step < n_warmup:
        return step / max(1, n_warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup))))


def _step(model: Any, batch: Sequence[TrainingExample], micro_batch_size: int, lm: LanguageModel) -> float:
    """Accumulates the gradient of one batch; returns its loss, the mean over all response tokens of the batch."""
    import torch

    n_targets = sum(len(example.response_ids) for example in batch)
    total = 0.0
    for start in range(0, len(batch), micro_batch_size):
        part = batch[start : start + micro_batch_size]
        longest = max(map(len, part))
        input_ids = torch.full((len(part), longest), lm.tokenizer.pad_token_id)
        labels = torch.full((len(part), longest), -100)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for i, example in enumerate(part):
            ids = torch.tensor(example.prompt_ids + example.response_ids)
            input_ids[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
            labels[i, len(example.prompt_ids) : len(ids)] = ids[len(example.prompt_ids) :]
        padding = lm.right_padding(mask.to(lm.device))
        logits = model(input_ids=input_ids.to(lm.device), use_cache=False, **padding).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, 1:].flatten().to(lm.device), ignore_index=-100, reduction="sum"
        )
        (loss / n_targets).backward()
        total += loss.item() / n_targets
    return total
