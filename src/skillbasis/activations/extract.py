"""Extract pooled activations of a corpus, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import atomic_path, building, file_sha256, is_current, read_json, write_json, write_tensors
from ..corpus import Corpus
from ..errors import SkillbasisError, UsageError, nearest
from ..lm import LanguageModel, parse_layers
from .pooling import POOLINGS, SPANS, PooledReader, Pooling, Span, TokenizedRow, token_batches, tokenize_rows
from .store import KIND, ActivationStore

_SHARD_BYTES = 1 << 27  # 128 MiB: seconds to redo after a kill, and few files at ten million rows
_MAX_SHARD_ROWS = 8192

OnProgress = Callable[[int, int, int], None]
"""Called with (rows done, rows in all, tokens done in this process)."""


@dataclass(frozen=True)
class ExtractionSettings:
    """How texts become vectors; all of it is recorded, and a basis remembers it."""

    layers: str = "inner"
    """`inner` (all blocks but the first and the last, the paper's choice), `all`, or a list such as `2,5,8-11`."""
    pooling: Pooling = "mean"
    span: Span = "all"
    max_length: int = 8000
    """Tokens after which a row is cut (the paper's 8,000); never more than the model's context."""
    batch_tokens: int = 8192
    """Rows x longest row of one forward pass; more needs more memory and is not faster beyond some point."""

    def __post_init__(self) -> None:
        for name, value, allowed in (("pooling", self.pooling, POOLINGS), ("span", self.span, SPANS)):
            if value not in allowed:
                hint = nearest(value, list(allowed))
                raise UsageError(f"unknown {name} {value!r}{hint}; allowed are {', '.join(allowed)}")
        for name, number in (("max_length", self.max_length), ("batch_tokens", self.batch_tokens)):
            if number < 1:
                raise UsageError(f"{name} must be at least 1, not {number}")


def read_activations(
    rows: Sequence[TokenizedRow], reader: PooledReader, batch_tokens: int, on_batch: Callable[[int, int], None]
) -> np.ndarray:
    """Pools rows in length-sorted batches. Returns: (n_rows, blocks, hidden) float32 in the order given."""
    result = np.empty((len(rows), len(reader.block_ids), reader.lm.hidden_size), dtype=np.float32)
    for indices in token_batches([row.n_tokens for row in rows], batch_tokens):
        batch = [rows[i] for i in indices]
        result[indices] = reader.read(batch)
        on_batch(len(batch), sum(row.n_tokens for row in batch))
    return result


def extract(
    corpus: Corpus,
    lm: LanguageModel,
    out: str | Path,
    settings: ExtractionSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> ActivationStore:
    """Extracts one pooled vector per row and block into a directory (format: docs/architecture.md).

    Args:
        corpus: rows in a fixed order; the output keeps it.
        lm: the model that reads them.
        out: the directory; complete or absent. A killed call is continued by the same call, shard by shard, and ends
            with the same bytes.
        settings: blocks, pooling, span, lengths.
    Returns: the opened store.
    Raises: SkillbasisError: a row without a token in the span, or with non-finite activations.
    Cost: one forward pass up to the last block read; memory of one shard (at most 128 MiB) plus one batch.
    """
    settings = settings or ExtractionSettings()
    out = Path(out)
    block_ids = parse_layers(settings.layers, len(lm.blocks))
    max_length = min(settings.max_length, lm.context_length)
    inputs = lm.identity | asdict(settings)
    inputs |= {
        "layers": block_ids,
        "max_length": max_length,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "corpus_fingerprint": corpus.fingerprint,
    }
    del inputs["model"]  # the same weights under another path give the same activations
    if is_current(out, KIND, inputs):
        return _opened(out)
    row_bytes = len(block_ids) * lm.hidden_size * 4
    shard_rows = max(1, min(_MAX_SHARD_ROWS, _SHARD_BYTES // row_bytes))
    manifest: dict[str, Any] = {}
    with building(out, KIND, inputs, manifest) as work:
        shards = list(_make_shards(corpus, lm, work, settings, block_ids, max_length, shard_rows, on_progress))
        _write_rows(work, shards)
        manifest |= lm.identity | {
            "block_ids": block_ids,
            "pooling": settings.pooling,
            "span": settings.span,
            "max_length": max_length,
            "dtype": inputs["dtype"],
            "corpus": corpus.source,
            "corpus_fingerprint": corpus.fingerprint,
            "rows": sum(shard["rows"] for shard in shards),
            "n_tokens": sum(sum(shard["tokens"]) for shard in shards),
            "n_truncated": sum(sum(shard["truncated"]) for shard in shards),
            "shards": [{key: shard[key] for key in ("file", "rows", "bytes", "sha256")} for shard in shards],
        }
    return _opened(out)


def _opened(out: Path) -> ActivationStore:
    """Opens what is finished and removes the records of progress; earlier, a kill would have cost the whole run."""
    for record in out.glob("shard-*.json"):
        record.unlink()
    return ActivationStore.open(out)


def _make_shards(
    corpus: Corpus,
    lm: LanguageModel,
    work: Path,
    settings: ExtractionSettings,
    block_ids: list[int],
    max_length: int,
    shard_rows: int,
    on_progress: OnProgress | None,
) -> Iterator[dict[str, Any]]:
    """Makes the shards that are not there yet; yields the record of each, in order."""
    texts = corpus.rows.select_columns(["id", "prompt", "response"])
    n_done, n_tokens = 0, 0

    def advance(rows: int, tokens: int) -> None:
        nonlocal n_done, n_tokens
        n_done, n_tokens = n_done + rows, n_tokens + tokens
        if on_progress:
            on_progress(n_done, len(corpus), n_tokens)

    with PooledReader(lm, block_ids, settings.pooling) as reader:
        for index, start in enumerate(range(0, len(corpus), shard_rows)):
            file = work / f"shard-{index:05d}.safetensors"
            record = work / f"{file.name}.json"  # written after its shard: a shard without one is made again
            stop = min(start + shard_rows, len(corpus))
            done = read_json(record) if record.exists() and file.exists() else None
            # The ids are compared too: another version may cut shards elsewhere.
            if done and done["ids"] == corpus.ids[start:stop] and done["sha256"] == file_sha256(file):
                advance(done["rows"], 0)
                yield done
                continue
            columns = texts[start:stop]
            rows = [
                {"id": i, "prompt": p, "response": r}
                for i, p, r in zip(columns["id"], columns["prompt"], columns["response"], strict=True)
            ]
            tokenized = tokenize_rows(rows, lm, settings.span, max_length)
            values = read_activations(tokenized, reader, settings.batch_tokens, advance)
            write_tensors(file, {"activations": values})
            shard = {
                "file": file.name,
                "rows": len(values),
                "bytes": file.stat().st_size,
                "sha256": file_sha256(file),
                "ids": [row.id for row in tokenized],
                "tokens": [row.n_tokens for row in tokenized],
                "truncated": [row.truncated for row in tokenized],
            }
            write_json(record, shard)
            yield shard


def _write_rows(work: Path, shards: list[dict[str, Any]]) -> None:
    """Writes rows.parquet: id, shard, offset within it, tokens read, whether the row was cut."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not shards:
        raise SkillbasisError("the corpus has no rows; nothing was extracted")
    table = pa.table(
        {
            "id": pa.array([i for shard in shards for i in shard["ids"]], pa.string()),
            "shard": pa.array([n for n, shard in enumerate(shards) for _ in shard["ids"]], pa.int32()),
            "offset": pa.array([n for shard in shards for n in range(shard["rows"])], pa.int32()),
            "tokens": pa.array([n for shard in shards for n in shard["tokens"]], pa.int32()),
            "truncated": pa.array([t for shard in shards for t in shard["truncated"]], pa.bool_()),
        }
    )
    with atomic_path(work / "rows.parquet") as temporary:
        pq.write_table(table, temporary)
