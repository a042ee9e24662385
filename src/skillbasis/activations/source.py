"""What principal directions and scores are computed from: stored activations, or a corpus read by a model each pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np

from ..corpus import Corpus
from ..lm import LanguageModel
from .extract import OnProgress, counter, shard_ranges
from .reader import LocalReader, OnBadRow, RayReader, shard_jobs
from .settings import ExtractionSettings, ReadingPlan


class ActivationSource(Protocol):
    """Rows of activations that can be passed over again and again, in the same order and cut into the same shards."""

    @property
    def live(self) -> bool:
        """Whether every pass runs the model; then passes are dear."""

    @property
    def manifest(self) -> dict[str, Any]:
        """How the activations are made: model, blocks, pooling, span, corpus."""

    @property
    def block_ids(self) -> list[int]: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def n_features(self) -> int: ...

    def __len__(self) -> int:
        """Rows to expect; a live source that skips bad rows yields fewer."""

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields (rows, blocks * hidden) float32 from shard `start` on, in corpus order."""

    def shard_ids(self, index: int) -> list[str]:
        """Ids of the rows of a shard that a pass has gone over."""

    def sample(self, n: int) -> np.ndarray:
        """At most `n` rows, (n, blocks * hidden) float32, where they cost no pass; else none."""


class LiveActivations:
    """Activations that are computed in each pass and stored nowhere.

    Args:
        corpus: the rows.
        model: the model that reads them, or workers on a Ray cluster that do.
        settings: blocks, pooling, span, lengths.
        on_bad_row: `stop` at rows that give no activations, or `skip` them.
        on_progress: called within each pass with (rows done, rows in all, tokens done).
    """

    live: ClassVar[bool] = True

    def __init__(
        self,
        corpus: Corpus,
        model: LanguageModel | RayReader,
        settings: ExtractionSettings | None = None,
        *,
        on_bad_row: OnBadRow = "stop",
        on_progress: OnProgress | None = None,
    ) -> None:
        self._corpus = corpus
        self._reader = model if isinstance(model, RayReader) else LocalReader(model)
        self._plan = ReadingPlan.of(settings or ExtractionSettings(), self._reader.facts)
        self._on_bad_row: OnBadRow = on_bad_row
        self._on_progress = on_progress
        self._skipped: dict[str, str] = {}
        self._ranges = shard_ranges(len(corpus), self.n_features * 4)

    @property
    def manifest(self) -> dict[str, Any]:
        record = self._plan.record(self._reader.facts, self._corpus.source, self._corpus.fingerprint)
        return record | {"rows": len(self._corpus)}

    @property
    def block_ids(self) -> list[int]:
        return list(self._plan.block_ids)

    @property
    def hidden_size(self) -> int:
        return self._reader.facts.hidden_size

    @property
    def n_features(self) -> int:
        return len(self._plan.block_ids) * self.hidden_size

    @property
    def skipped(self) -> dict[str, str]:
        """Reason by id of rows left out so far."""
        return dict(self._skipped)

    def shard_ids(self, index: int) -> list[str]:
        """Ids of the rows of a shard, without those that were left out when it was read."""
        start, stop = self._ranges[index]
        return [row_id for row_id in self._corpus.ids[start:stop] if row_id not in self._skipped]

    def __len__(self) -> int:
        return len(self._corpus)

    def sample(self, n: int) -> np.ndarray:
        """No rows: each would have to be read by the model."""
        return np.empty((0, self.n_features), dtype=np.float32)

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields (rows, blocks * hidden) float32 from shard `start` on. Raises: BadRowsError: rows that give none."""
        advance = counter(len(self._corpus), self._on_progress)
        advance(sum(stop - first for first, stop in self._ranges[:start]), 0)
        jobs = shard_jobs(self._corpus, self._ranges[start:], self._plan, self._on_bad_row)
        for shard in self._reader.read(jobs, advance):
            self._skipped |= {row["id"]: row["reason"] for row in shard.skipped}
            advance(len(shard.skipped), 0)
            yield shard.values.reshape(len(shard.values), -1)
