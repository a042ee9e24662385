"""What steering costs on given texts: how far it moves the predictions, and how likely the texts still are.

Teacher forcing: the responses are read, not generated, so the figures are paired token by token with the unsteered
model's and need no sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..activations.pooling import TokenizedRow, pad_batch, token_batches, tokenize_rows
from ..errors import ArtifactError, SkillbasisError
from ..lm import LanguageModel
from .hooks import Scope, steer
from .norms import Rows, as_corpus_rows, n_prompt_tokens
from .vectors import SteeringVector

if TYPE_CHECKING:
    import torch

_KEPT_BYTES = 1 << 28  # of unsteered logits; more are made anew for every point
_CHUNK_VALUES = 1 << 24  # token x vocabulary of one step, float32, of which a handful are held


@dataclass(frozen=True)
class Baseline:
    """What all points of a sweep share: texts in batches, and what the unsteered model says of them."""

    weights_fingerprint: str
    batches: list[list[TokenizedRow]]
    """Rows by length, their places in the given order as ids; the marks are the response tokens."""
    logits: list[torch.Tensor] | None
    """Per batch (response tokens, vocabulary), unsteered; None where they are made anew for every point."""


def prepare(
    lm: LanguageModel, rows: Rows, *, max_length: int = 8000, batch_tokens: int = 2048, kept_bytes: int = _KEPT_BYTES
) -> Baseline:
    """Reads texts once for all points that `text_damage` measures on them.

    Args:
        rows: (prompt messages, response) pairs; those without a response within max_length are left out.
        max_length: tokens after which a row is cut; never more than the model's context.
        batch_tokens: rows x longest row of one forward pass.
        kept_bytes: unsteered logits of no more bytes than that are kept; it saves every point a forward pass.
    Raises: SkillbasisError: no row has a response within max_length.
    """
    max_length = min(max_length, lm.context_length)
    tokenized = tokenize_rows(as_corpus_rows(rows), lm, "response", max_length)
    answered = [row for row in tokenized if row.pooled[1:].any()]  # nothing predicts the first token
    if not answered:
        raise SkillbasisError(
            f"no row has a response within {max_length} tokens; give rows that have, or raise max_length"
        )
    lengths = [row.n_tokens for row in answered]
    batches = [[answered[i] for i in batch] for batch in token_batches(lengths, batch_tokens, lm.length_switch)]
    token_bytes = int(lm.model.config.get_text_config().vocab_size) * lm.model.dtype.itemsize
    fits = sum(int(row.pooled[1:].sum()) for row in answered) * token_bytes <= kept_bytes
    return Baseline(lm.weights_fingerprint, batches, [_read(lm, batch).logits for batch in batches] if fits else None)


def text_damage(
    lm: LanguageModel,
    rows: Rows | Baseline,
    vector: SteeringVector,
    alpha: float,
    scope: Scope = "all",
    *,
    max_length: int = 8000,
    batch_tokens: int = 2048,
) -> dict[str, Any]:
    """Measures how far steering moves a model's predictions of given responses.

    Tokens are moved as in generation: the scope `generated` leaves the prediction of the first response token as it is,
    and `last-prompt` moves only the token that predicts it.

    Args:
        rows: (prompt messages, response) pairs, or what `prepare` made of them (then the lengths are not looked at).
        alpha: strength in the vector's unit.
        scope: which tokens are moved, as `steer` takes it.
        max_length: as for `prepare`.
        batch_tokens: as for `prepare`.
    Returns: `perplexity` (exp of the mean negative log-likelihood per response token) under steering and
        `perplexity_base` without; `kl`, the mean over response tokens of KL(unsteered || steered) in nats; `n_tokens`
        response tokens; `n_rows`; `n_broken_rows`, those for which the steered model gives NaN or infinity. Where a
        row is broken, `perplexity` and `kl` are None, since a mean over the others would flatter; a perplexity that no
        float can hold is None too.
    Raises: SkillbasisError: as `prepare`, or the unsteered model gives no finite number for a row. ArtifactError,
        UsageError: as `steer`, or the baseline is another model's.
    Cost: a forward pass over the rows, and one without steering unless the baseline kept its logits; memory
        of the logits of a batch, twice.
    """
    if not isinstance(rows, Baseline):
        rows = prepare(lm, rows, max_length=max_length, batch_tokens=batch_tokens, kept_bytes=0)
    elif rows.weights_fingerprint != lm.weights_fingerprint:
        raise ArtifactError(f"the baseline was made with other weights than those of {lm.name!r}; prepare it anew")
    sums, n_tokens, n_broken = np.zeros(3), 0, 0  # sums: negative log-likelihood, that of the base, divergence
    for number, batch in enumerate(rows.batches):
        base = _read(lm, batch).logits if rows.logits is None else rows.logits[number]
        lengths = [n_prompt_tokens(row) for row in batch]
        with steer(lm, vector, alpha, scope=scope, prompt_lengths=lengths):
            steered = _read(lm, batch)
        figures = _compare(steered, base)
        broken = ~np.isfinite(figures)
        if broken[1].any():
            row = batch[int(steered.rows[broken[1].argmax()])]
            raise SkillbasisError(
                f"the model gives NaN or infinity for row {row.id} (0-based) without steering; try --dtype float32, or "
                "drop the row"
            )
        n_broken += len(np.unique(steered.rows[broken.any(axis=0)]))
        n_tokens += figures.shape[1]
        sums += figures.sum(axis=1)
    nll, nll_base, kl = (sums / n_tokens).tolist()
    return {
        "perplexity": None if n_broken else _perplexity(nll),
        "perplexity_base": _perplexity(nll_base),
        "kl": None if n_broken else max(0.0, kl),  # below zero by rounding only
        "n_tokens": n_tokens,
        "n_rows": sum(map(len, rows.batches)),
        "n_broken_rows": n_broken,
    }


@dataclass(frozen=True)
class _Predictions:
    """What a model says of the response tokens of a batch, row by row."""

    logits: torch.Tensor
    """(tokens, vocabulary) in the model's dtype: what predicts each."""
    targets: torch.Tensor
    """(tokens,) the tokens themselves."""
    rows: np.ndarray
    """(tokens,) the row of each."""


def _read(lm: LanguageModel, batch: list[TokenizedRow]) -> _Predictions:
    import torch

    input_ids, attention, response = (torch.from_numpy(array).to(lm.device) for array in pad_batch(batch, 0))
    predicted = response[:, 1:]  # (rows, tokens - 1): the token at t is predicted at t - 1
    first = int(predicted.any(dim=0).nonzero()[0])  # logits of what no row answers are not needed
    with torch.inference_mode():
        logits = lm.model(
            input_ids=input_ids,
            use_cache=False,
            logits_to_keep=input_ids.shape[1] - first,
            **lm.right_padding(attention),
        ).logits[:, :-1]
        kept = predicted[:, first:]
        return _Predictions(logits[kept], input_ids[:, 1 + first :][kept], kept.nonzero()[:, 0].cpu().numpy())


def _compare(steered: _Predictions, base: torch.Tensor) -> np.ndarray:
    """Holds predictions against the unsteered logits `base`.

    Returns: (3, tokens) float64: negative log-likelihood under steering and without, KL(unsteered || steered).
    """
    import torch

    size = max(1, _CHUNK_VALUES // base.shape[1])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(base), size):
            chunk = slice(start, start + size)
            ours, plain = (logits[chunk].float().log_softmax(dim=-1) for logits in (steered.logits, base))
            targets = steered.targets[chunk, None]
            kl = (plain.exp() * (plain - ours)).sum(dim=-1)
            figures = torch.stack([-ours.gather(1, targets)[:, 0], -plain.gather(1, targets)[:, 0], kl])
            parts.append(figures.cpu().double().numpy())
    return np.concatenate(parts, axis=1)


def _perplexity(mean_nll: float) -> float | None:
    try:
        return math.exp(mean_nll)
    except OverflowError:
        return None
