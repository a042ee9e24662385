"""Read shards of a corpus with a model: in this process, or with workers on a cluster."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

from ..cluster import RayPool
from ..corpus import Corpus
from ..errors import SkillbasisError, UsageError
from ..lm import LanguageModel, load_model
from .pooling import PooledReader, TokenizedRow, token_batches, tokenize_rows
from .settings import ModelFacts, ReadingPlan

OnBadRow = Literal["stop", "skip"]
OnBatch = Callable[[int, int], None]
"""Called with (rows, tokens) of a batch that was read."""
_NAMED = 5  # bad rows named in a message


@dataclass(frozen=True)
class ShardJob:
    """Rows of a corpus that are read together."""

    plan: ReadingPlan
    on_bad_row: OnBadRow
    rows: list[dict[str, Any]]
    """`id`, `prompt` (messages), `response`."""


@dataclass(frozen=True)
class Shard:
    """What was read of one job, in the order of its rows, without the rows that had to be left out."""

    ids: list[str]
    values: np.ndarray
    """(n_rows, blocks, hidden) float32."""
    tokens: list[int]
    truncated: list[bool]
    skipped: list[dict[str, str]]
    """`id` and `reason` of rows left out."""


class BadRowsError(SkillbasisError):
    """Rows that give no activations, where they are not to be skipped."""


def shard_jobs(
    corpus: Corpus, ranges: Iterable[tuple[int, int]], plan: ReadingPlan, on_bad_row: OnBadRow
) -> Iterator[ShardJob]:
    """Cuts a corpus into jobs, read from disk one by one as they are asked for."""
    if on_bad_row not in get_args(OnBadRow):
        raise UsageError(f"on_bad_row is {on_bad_row!r}; give stop or skip")
    texts = corpus.rows.select_columns(["id", "prompt", "response"])
    for start, stop in ranges:
        columns = texts[start:stop]
        rows = [
            {"id": i, "prompt": p, "response": r}
            for i, p, r in zip(columns["id"], columns["prompt"], columns["response"], strict=True)
        ]
        yield ShardJob(plan, on_bad_row, rows)


class LocalReader:
    """Reads shards with a model in this process.

    Attributes:
        batch_tokens: what batches were cut down to when memory ran out; None as long as it did not.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.batch_tokens: int | None = None

    @property
    def facts(self) -> ModelFacts:
        lm = self.lm
        dtype = str(lm.model.dtype).removeprefix("torch.")
        on_accelerator = lm.device.type != "cpu"
        return ModelFacts(lm.identity, len(lm.blocks), lm.hidden_size, lm.context_length, dtype, on_accelerator)

    def read(self, jobs: Iterable[ShardJob], on_batch: OnBatch) -> Iterator[Shard]:
        """Yields: a shard for each job, in order. Raises: BadRowsError: rows that give no activations."""
        tokenized = ((job, tokenize_rows(job.rows, self.lm, job.plan.span, job.plan.max_length)) for job in jobs)
        # While an accelerator is at work, a processor has time for the next shard's tokens; else they would compete.
        for job, rows in _one_ahead(tokenized) if self.facts.on_accelerator else tokenized:
            yield self._read_shard(job, rows, on_batch)

    def _read_shard(self, job: ShardJob, rows: list[TokenizedRow], on_batch: OnBatch) -> Shard:
        bad = {
            i: f"no token to pool within {job.plan.max_length} tokens in the span '{job.plan.span}'"
            for i, row in enumerate(rows)
            if not row.pooled.any()
        }
        _stop_at_bad_rows(bad, rows, job, "drop such rows, raise --max-length or choose another --span")
        kept = [i for i in range(len(rows)) if i not in bad]
        values = self._read_rows([rows[i] for i in kept], job, on_batch)
        finite = np.isfinite(values).all(axis=2)  # (rows, blocks)
        for place in np.flatnonzero(~finite.all(axis=1)):
            first, *more = (job.plan.block_ids[b] for b in np.flatnonzero(~finite[place]))
            others = f" and {len(more)} more" if more else ""
            bad[kept[place]] = f"NaN or infinite activations in block {first}{others}"
        _stop_at_bad_rows(bad, rows, job, "try --dtype float32, or drop the row")
        good = finite.all(axis=1)
        read = [rows[i] for i in kept if i not in bad]
        return Shard(
            ids=[row.id for row in read],
            values=values if good.all() else values[good],
            tokens=[row.n_tokens for row in read],
            truncated=[row.truncated for row in read],
            skipped=[{"id": rows[i].id, "reason": reason} for i, reason in sorted(bad.items())],
        )

    def _read_rows(self, rows: Sequence[TokenizedRow], job: ShardJob, on_batch: OnBatch) -> np.ndarray:
        """(n_rows, blocks, hidden) float32 in the order given; begun again with half the batch when memory runs out."""
        plan = job.plan
        result = np.empty((len(rows), len(plan.block_ids), self.lm.hidden_size), dtype=np.float32)
        lengths = [row.n_tokens for row in rows]
        while True:
            n_rows, n_tokens, indices = 0, 0, []
            try:
                with PooledReader(self.lm, plan.block_ids, plan.pooling) as reader:
                    batch_tokens = self.batch_tokens or plan.batch_tokens
                    for indices in token_batches(lengths, batch_tokens, self.lm.length_switch):
                        result[indices] = reader.read([rows[i] for i in indices])
                        read = sum(lengths[i] for i in indices)
                        n_rows, n_tokens = n_rows + len(indices), n_tokens + read
                        on_batch(len(indices), read)
                return result
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(indices) == 1:
                    raise SkillbasisError(
                        f"row {rows[indices[0]].id!r} of {lengths[indices[0]]} tokens does not fit into memory by "
                        "itself; lower --max-length, or take --dtype bfloat16 or a larger device"
                    ) from error
            # Begun again whole, outside the handler, whose traceback holds the tensors of the failed batch.
            on_batch(-n_rows, -n_tokens)
            self.batch_tokens = len(indices) * max(lengths[i] for i in indices) // 2
            _free_memory()


def _stop_at_bad_rows(bad: dict[int, str], rows: Sequence[TokenizedRow], job: ShardJob, advice: str) -> None:
    if not bad or job.on_bad_row == "skip":
        return
    named = "; ".join(f"row {rows[i].id!r} has {reason}" for i, reason in sorted(bad.items())[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more rows of this shard" if len(bad) > _NAMED else ""
    raise BadRowsError(f"{named}{more}; {advice}, or pass --on-bad-row skip")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or in the process."""
    import torch

    said = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no class for it
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each made in a thread while the one before is used."""
    from concurrent.futures import ThreadPoolExecutor

    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


# --- on a cluster ---


@dataclass(frozen=True)
class _TellFacts:
    """The job of saying what was loaded."""


def _make_cluster_worker(model: str, options: dict[str, Any]) -> Callable[[ShardJob | _TellFacts], Shard | ModelFacts]:
    reader = LocalReader(load_model(model, **options))

    def work(job: ShardJob | _TellFacts) -> Shard | ModelFacts:
        if isinstance(job, _TellFacts):
            return reader.facts
        return next(reader.read([job], lambda _rows, _tokens: None))

    return work


class RayReader:
    """Reads shards with workers on a Ray cluster, each of which loads the model; a killed one is started again.

    Use as a context manager.

    Args:
        model: directory that every machine sees, hub id, or `embedded`.
        options: further arguments of `load_model`.
        n_workers: see `RayPool`.
    """

    def __init__(self, model: str, *, n_workers: int | None = None, **options: Any) -> None:
        self._model = model
        self._pool = RayPool(_make_cluster_worker, (model, options), n_workers)
        self.facts: ModelFacts
        self.batch_tokens: int | None = None

    def __enter__(self) -> Self:
        self._pool.__enter__()
        try:
            self.facts, *others = self._pool.everywhere(_TellFacts())
            if any(facts != self.facts for facts in others):
                raise SkillbasisError(
                    f"the workers of the cluster do not load the same model under {self._model!r} (weights, tokenizer "
                    "or dtype differ); give a path that is the same everywhere"
                )
        except BaseException:
            self._pool.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def read(self, jobs: Iterable[ShardJob], on_batch: OnBatch) -> Iterator[Shard]:
        """Yields: a shard for each job, in order. Raises: BadRowsError: rows that give no activations."""
        for shard in self._pool.map(jobs):
            on_batch(len(shard.ids), sum(shard.tokens))
            yield shard
