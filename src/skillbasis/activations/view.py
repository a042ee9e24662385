"""Some blocks of activations that are read with more, so that one reading serves several bases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .source import ActivationSource


class BlocksView:
    """An `ActivationSource` of some blocks of another one; what it yields is made from that one's shards.

    Args:
        source: activations with at least these blocks.
        block_ids: which blocks; they keep the order of the source.
    Raises: UsageError: a block that the source does not have, or none at all.
    """

    def __init__(self, source: ActivationSource, block_ids: Sequence[int]) -> None:
        lacking = sorted(set(block_ids) - set(source.block_ids))
        if lacking or not block_ids:
            what = f"block {lacking[0]} is" if lacking else "no block is named"
            raise UsageError(f"{what} not among those that were read, {source.block_ids}; read it too")
        self._source = source
        self._places = [place for place, block in enumerate(source.block_ids) if block in set(block_ids)]

    @property
    def live(self) -> bool:
        return self._source.live

    @property
    def manifest(self) -> dict[str, Any]:
        return self._source.manifest | {"block_ids": self.block_ids}

    @property
    def block_ids(self) -> list[int]:
        return [self._source.block_ids[place] for place in self._places]

    @property
    def hidden_size(self) -> int:
        return self._source.hidden_size

    @property
    def n_features(self) -> int:
        return len(self._places) * self.hidden_size

    def __len__(self) -> int:
        return len(self._source)

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields (rows, blocks * hidden) float32 from shard `start` on, each a copy of what is wanted of it."""
        return map(self._of, self._source.shards(start))

    def shard_ids(self, index: int) -> list[str]:
        """Ids of the rows of a shard that a pass has gone over."""
        return self._source.shard_ids(index)

    def sample(self, n: int) -> np.ndarray:
        """At most `n` rows, (n, blocks * hidden) float32, where they cost no pass; else none."""
        return self._of(self._source.sample(n))

    def _of(self, rows: np.ndarray) -> np.ndarray:
        by_block = rows.reshape(len(rows), -1, self.hidden_size)[:, self._places]
        return np.ascontiguousarray(by_block).reshape(len(rows), -1)
