"""Some of the rows of a source of activations, as a source of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..activations import ActivationSource
from ..artifact import array_fingerprint


class RowSubset:
    """The chosen rows of another source, in its order and cut into its shards.

    Args:
        source: stored activations, or a corpus that a model reads.
        keep: (rows,) bool, which of the rows that the source yields; rows that a live source leaves out have no place.
    """

    def __init__(self, source: ActivationSource, keep: NDArray[np.bool_]) -> None:
        self._source, self._keep = source, keep

    @property
    def live(self) -> bool:
        return self._source.live

    @property
    def manifest(self) -> dict[str, Any]:
        """That of the source, with the rows that are kept."""
        return self._source.manifest | {"rows": len(self), "kept_rows": array_fingerprint(self._keep)}

    @property
    def block_ids(self) -> list[int]:
        return self._source.block_ids

    @property
    def hidden_size(self) -> int:
        return self._source.hidden_size

    @property
    def n_features(self) -> int:
        return self._source.n_features

    def __len__(self) -> int:
        return int(self._keep.sum())

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields what is kept of each shard from number `start` on, (rows, blocks * hidden) float32."""
        first = sum(len(self._source.shard_ids(index)) for index in range(start))
        for part in self._source.shards(start):
            yield part[self._keep[first : first + len(part)]]
            first += len(part)

    def shard_ids(self, index: int) -> list[str]:
        """Ids of the kept rows of a shard."""
        first = sum(len(self._source.shard_ids(before)) for before in range(index))
        ids = self._source.shard_ids(index)
        return [row_id for row_id, kept in zip(ids, self._keep[first:], strict=False) if kept]

    def sample(self, n: int) -> np.ndarray:
        """At most `n` rows spread evenly over those that are kept, where they cost no pass; else none."""
        if self.live:
            return self._source.sample(0)
        kept = np.flatnonzero(self._keep)
        wanted = kept[np.linspace(0, len(kept), min(n, len(kept)), endpoint=False).astype(np.int64)]
        parts, first = [], 0
        for part in self._source.shards():
            parts.append(part[wanted[(wanted >= first) & (wanted < first + len(part))] - first])
            first += len(part)
        return np.concatenate(parts)
