"""Tokenise rows, mark the tokens that count, and pool hidden states in hooks while the model runs.

Nothing of size tokens x blocks x hidden is ever kept: each hook reduces its block's output to one vector per row, and
the forward pass ends after the last block that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from ..blocks import block_output
from ..corpus import row_text
from ..lm import LanguageModel

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "last", "max", "weighted"]
Span = Literal["all", "prompt", "response"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
SPANS: tuple[str, ...] = get_args(Span)
_TOKENIZED_ROWS = 256  # per call of the tokenizer, whose Python lists take some 150 bytes a token


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model reads it."""

    id: str
    input_ids: np.ndarray
    """(n_tokens,) int64, cut at the maximal length."""
    pooled: np.ndarray
    """(n_tokens,) bool: the tokens that enter the pooled vector; never BOS."""
    truncated: bool
    """Whether tokens were cut off."""

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)


def tokenize_rows(rows: Sequence[dict[str, Any]], lm: LanguageModel, span: Span, max_length: int) -> list[TokenizedRow]:
    """Tokenises rows of a corpus (`id`, `prompt`, `response`) and marks the tokens of the span.

    A token belongs to the response if its first character does; so no token is counted in both spans. Special tokens
    that the tokenizer adds by itself are read in front of the text, never pooled, and dropped behind it (no EOS).
    """
    return [
        row
        for start in range(0, len(rows), _TOKENIZED_ROWS)
        for row in _tokenize(rows[start : start + _TOKENIZED_ROWS], lm, span, max_length)
    ]


def _tokenize(rows: Sequence[dict[str, Any]], lm: LanguageModel, span: Span, max_length: int) -> list[TokenizedRow]:
    texts = [row_text(row["prompt"], row["response"], lm.tokenizer) for row in rows]
    encoded = lm.tokenizer(
        [text.text for text in texts],
        add_special_tokens=texts[0].add_special_tokens,
        return_offsets_mapping=span != "all",
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # what is longer than the model's context is cut below, so there is nothing to warn of
    )
    tokenized = []
    offsets = encoded["offset_mapping"] if span != "all" else [None] * len(rows)
    columns = (encoded["input_ids"], offsets, encoded["special_tokens_mask"])
    for row, text, ids, places, added in zip(rows, texts, *columns, strict=True):
        n_tokens = len(ids)
        while n_tokens and added[n_tokens - 1]:
            n_tokens -= 1
        n_read = min(n_tokens, max_length)
        input_ids = np.asarray(ids[:n_read], dtype=np.int64)
        pooled = np.asarray(added[:n_read], dtype=bool) == 0
        if span != "all":
            starts, ends = np.asarray(places[:n_read], dtype=np.int64).reshape(-1, 2).T
            # A token of nothing but the prompt's last space can be given as the empty stretch behind it.
            in_response = (starts >= text.response_start) & (ends > text.response_start)
            pooled &= in_response if span == "response" else ~in_response
        if n_read and input_ids[0] == lm.tokenizer.bos_token_id:  # written by a chat template
            pooled[0] = False
        tokenized.append(TokenizedRow(row["id"], input_ids, pooled, n_tokens > max_length))
    return tokenized


def token_batches(lengths: Sequence[int], batch_tokens: int, switch: int | None = None) -> Iterator[list[int]]:
    """Groups rows of similar length so that rows x longest stays within a token budget; at least one row each.

    Args:
        lengths: tokens of each row.
        batch_tokens: the budget.
        switch: a length above which the model reads otherwise; no batch has rows on both sides of it.
    Yields: lists of indices into `lengths`, longest rows first, so that memory peaks at once and not after hours.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    n_above = 0 if switch is None else sum(length > switch for length in lengths)
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        stop = min(start + size, n_above) if start < n_above else start + size
        yield order[start:stop]
        start = stop


def pad_batch(rows: Sequence[TokenizedRow], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads rows on the right. Returns: input_ids, attention mask and pooled-token mask, each (n_rows, longest).

    Any id the model has will do for `pad_id`, since nothing looks at it; a tokenizer's own may lie outside the model.
    """
    longest = max(row.n_tokens for row in rows)
    input_ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    attention = np.zeros((len(rows), longest), dtype=np.int64)
    pooled = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        input_ids[i, : row.n_tokens] = row.input_ids
        attention[i, : row.n_tokens] = 1
        pooled[i, : row.n_tokens] = row.pooled
    return input_ids, attention, pooled


class _EnoughBlocks(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass once the last block that is read has run."""


class PooledReader:
    """Runs a model over padded batches and returns the pooled output of chosen blocks.

    Use as a context manager: the hooks live as long as the block.
    """

    def __init__(self, lm: LanguageModel, block_ids: Sequence[int], pooling: Pooling) -> None:
        self.lm = lm
        self.block_ids = list(block_ids)
        self.pooling = pooling
        self._mask: Any = None  # (rows, tokens) bool, the tokens that count in the batch under way
        self._pooled: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for i in self.block_ids:
            self._handles.append(self.lm.blocks[i].register_forward_hook(self._hook(i)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, block: int) -> Any:
        def pool(_module: Any, _args: Any, output: Any) -> None:
            self._pooled[block] = pool_tokens(block_output(output), self._mask, self.pooling)
            if block == max(self.block_ids):
                raise _EnoughBlocks

        return pool

    def read(self, rows: Sequence[TokenizedRow]) -> np.ndarray:
        """Pools one batch.

        Args:
            rows: each with at least one token to pool.
        Returns: (n_rows, n_blocks, hidden) float32; NaN or infinite where the model gave that.
        """
        import torch

        device = self.lm.device
        input_ids, attention, pooled = pad_batch(rows, 0)
        self._mask = torch.from_numpy(pooled).to(device)
        arguments: dict[str, Any] = {"input_ids": torch.from_numpy(input_ids).to(device), "use_cache": False}
        arguments |= self.lm.right_padding(torch.from_numpy(attention).to(device))
        with torch.inference_mode():
            with suppress(_EnoughBlocks):
                self.lm.decoder(**arguments)
            result = torch.stack([self._pooled[i] for i in self.block_ids], dim=1).cpu().numpy()
        self._pooled.clear()
        return result


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Reduces hidden states over the marked tokens.

    Args:
        hidden: (rows, tokens, hidden) in the model's dtype.
        mask: (rows, tokens) bool, at least one token marked in each row.
        pooling: `mean` (accumulated in float32), `last` marked token, `max` over marked tokens, or `weighted`: a mean,
            accumulated likewise, in which the t-th marked token of a row, counted from 1, weighs in proportion to t
            (that of RDS+, arXiv 2503.01807: in a causal model later states have read more).
    Returns: (rows, hidden) float32.
    """
    import torch

    if pooling in ("mean", "weighted"):
        shares = mask * mask.cumsum(dim=1) if pooling == "weighted" else mask.long()
        weights = (shares.float() / shares.sum(dim=1, keepdim=True))[:, None, :]  # (rows, 1, tokens)
        result = torch.bmm(weights, hidden.float()).squeeze(1)
        if not result.isfinite().all():  # a padded position may be infinite, and zero times infinity is NaN
            result = torch.bmm(weights, hidden.masked_fill(~mask[..., None], 0).float()).squeeze(1)
        return result
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).amax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    return hidden.masked_fill(~mask[..., None], float("-inf")).amax(dim=1).float()
