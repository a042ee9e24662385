"""How many tokens a corpus has, counted as extraction reads them, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..activations.pooling import tokenize_rows
from ..activations.settings import ReadingPlan
from ..corpus import Corpus

if TYPE_CHECKING:
    from ..lm import LanguageModel

COUNTED_ROWS = 100_000
"""Up to so many rows all are counted; of a larger corpus, a random sample of this size."""
_CHUNK_ROWS = 1000

OnRows = Callable[[int, int, int], None]
"""Called with (rows counted, rows to count, tokens counted)."""


@dataclass(frozen=True)
class TokenCount:
    """Rows and tokens as extraction reads them: cut at its maximal length and the model's context, special tokens in.

    Where only a sample was counted (`n_counted` below `n_rows`), sums are the sample's, scaled to all rows.
    """

    n_rows: int
    n_counted: int
    n_tokens: float
    low: float
    """Lower end of the 95 % interval of `n_tokens`; equal to it where all rows were counted."""
    high: float
    n_pairs: float
    """Sum over rows of the squared number of tokens."""
    longest: int
    n_truncated: float
    n_without_span: float
    """Rows of which no token lies in the span; extraction stops at them."""
    first_without_span: str | None
    """Id of one."""
    training_tokens: float
    """Mean tokens of a row as training reads it (one end token more, cut at its own length)."""
    training_pairs: float
    """Mean of their squares."""
    longest_training: int
    table_bytes: float
    """Size of rows.parquet."""


@dataclass(frozen=True)
class _Tokenizer:
    """All of a language model that tokenising rows needs."""

    tokenizer: Any


def count_tokens(
    corpus: Corpus,
    tokenizer: Any,
    reading: ReadingPlan,
    *,
    training_length: int | None = None,
    seed: int = 0,
    on_rows: OnRows | None = None,
) -> TokenCount:
    """Counts tokens with extraction's own tokenising; of a corpus above `COUNTED_ROWS` rows, on a random sample.

    Args:
        reading: span and maximal length.
        training_length: tokens after which training cuts a row; None where nothing is trained.
        seed: of the sample.
    Returns: counts; with a sample, the interval is Student's t on the mean with the finite population correction.
    Cost: one tokenising of the rows counted.
    """
    n_rows, n_counted = len(corpus), min(len(corpus), COUNTED_ROWS)
    texts = corpus.rows.select_columns(["id", "prompt", "response"])
    if n_counted < n_rows:
        texts = texts.select(np.sort(np.random.default_rng(seed).choice(n_rows, n_counted, replace=False)))
    trained = training_length or 0
    ids: list[str] = []
    lengths, whole, cut, empty = (np.zeros(n_counted, dtype=kind) for kind in (np.int64, np.int64, bool, bool))
    reader = cast("LanguageModel", _Tokenizer(tokenizer))
    for start in range(0, n_counted, _CHUNK_ROWS):
        columns = texts[start : start + _CHUNK_ROWS]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for i, row in enumerate(tokenize_rows(rows, reader, reading.span, max(reading.max_length, trained)), start):
            ids.append(row.id)
            lengths[i], whole[i] = min(row.n_tokens, reading.max_length), row.n_tokens
            cut[i] = row.truncated or row.n_tokens > reading.max_length
            empty[i] = not row.pooled[: reading.max_length].any()
        if on_rows:
            on_rows(len(ids), n_counted, int(lengths.sum()))
    scale = n_rows / n_counted
    in_training = np.minimum(whole + 1, trained).astype(np.float64)
    low, high = _interval_of_total(lengths, n_rows)
    return TokenCount(
        n_rows=n_rows,
        n_counted=n_counted,
        n_tokens=float(lengths.sum()) * scale,
        low=low,
        high=high,
        n_pairs=float(np.square(lengths.astype(np.float64)).sum()) * scale,
        longest=int(lengths.max()),
        n_truncated=float(cut.sum()) * scale,
        n_without_span=float(empty.sum()) * scale,
        first_without_span=ids[int(empty.argmax())] if empty.any() else None,
        training_tokens=float(in_training.mean()),
        training_pairs=float(np.square(in_training).mean()),
        longest_training=int(in_training.max()),
        table_bytes=_table_bytes(ids, lengths, cut) * scale,
    )


def _interval_of_total(values: np.ndarray, n_rows: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a sum over `n_rows` rows of which some were drawn without replacement; a point when all were.

    Source: Cochran, Sampling Techniques (1977), sections 2.5-2.8.
    """
    total = float(values.mean()) * n_rows
    if len(values) == n_rows:
        return total, total
    from scipy.stats import t

    se = n_rows * float(values.std(ddof=1)) * ((1 - len(values) / n_rows) / len(values)) ** 0.5
    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return total - quantile * se, total + quantile * se


def _table_bytes(ids: Sequence[str], lengths: np.ndarray, cut: np.ndarray) -> float:
    """Size of rows.parquet, by writing one of the same columns into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = pa.array(np.arange(len(ids), dtype=np.int32))
    columns = {"id": list(ids), "offset": places, "tokens": lengths.astype(np.int32), "truncated": cut}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    return float(buffer.getvalue().size)
