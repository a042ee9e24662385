"""Rows of activations in batches of a seeded random order, read shard by shard; some are held out.

The order follows from the seed and the numbers of rows alone, so training goes on at any batch without a record of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..activations import ActivationSource
from ..errors import SkillbasisError

_HELD_OUT, _SHARDS, _ROWS = 1, 2, 3  # streams of random numbers of a seed


def held_out(seed: int, share: float, start: int, n: int) -> np.ndarray:
    """(n,) bool: which of the rows `start` to `start + n` of a source are held out, each with probability `share`.

    A row's lot depends on its place in the corpus only, not on how the rows are cut into shards.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, _HELD_OUT]))
    bits.advance(start)  # a number of float64 takes one step of it
    return np.random.Generator(bits).random(n) < share


class TrainingBatches:
    """The rows that are not held out, epoch after epoch, in random batches of equal size.

    An epoch goes through the shards (stored ones in random order, those that a model makes in that of the corpus) and
    gathers rows in a buffer; a full buffer is shuffled and cut into batches. What is left at the end of an epoch, less
    than a batch, waits for another epoch. Where the buffer holds all training rows they are read once.

    Args:
        shard_rows: rows of each shard of the source.
        buffer_rows: rows that are held at a time, rounded down to whole batches, one at least.
    """

    def __init__(
        self,
        source: ActivationSource,
        shard_rows: Sequence[int],
        *,
        seed: int,
        held_out_share: float,
        batch_rows: int,
        buffer_rows: int,
    ) -> None:
        self._source, self._seed, self._share = source, seed, held_out_share
        self._shard_rows = list(shard_rows)
        self._starts: list[int] = np.concatenate([[0], np.cumsum(self._shard_rows)]).astype(int).tolist()
        places = zip(self._starts, self._shard_rows, strict=False)
        self._kept = [int((~held_out(seed, held_out_share, start, n)).sum()) for start, n in places]
        """Training rows of each shard."""
        self.n_rows = sum(self._kept)
        self.batch_rows = max(1, min(batch_rows, self.n_rows))
        self._block_rows = self.batch_rows * max(1, min(buffer_rows, self.n_rows) // self.batch_rows)
        if self.n_rows <= buffer_rows:
            self._block_rows = self.n_rows
        self._resident: np.ndarray | None = None

    @property
    def n_held_out(self) -> int:
        return self._starts[-1] - self.n_rows

    @property
    def batches_per_epoch(self) -> int:
        return self.n_rows // self.batch_rows

    def batches(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yields batches number `start` to `stop`, counted over all epochs: (batch_rows, d) float32.

        Raises: SkillbasisError: a pass gave other rows than the first one.
        """
        per_block = self._block_rows // self.batch_rows
        number = start
        while number < stop:
            epoch, place = divmod(number, self.batches_per_epoch)
            block, first = divmod(place, per_block)
            for rows in self._blocks(epoch, block):
                order = np.random.default_rng([self._seed, _ROWS, epoch, block]).permutation(len(rows))
                for i in range(first, len(rows) // self.batch_rows):
                    yield rows[order[i * self.batch_rows : (i + 1) * self.batch_rows]]
                    number += 1
                    if number == stop:
                        return
                block, first = block + 1, 0

    def _blocks(self, epoch: int, first: int) -> Iterator[np.ndarray]:
        """Fillings of the buffer from number `first` on; the array is written over when the next is asked for."""
        if self._block_rows == self.n_rows:
            if self._resident is None:
                self._resident = self._filled(self._parts(range(len(self._shard_rows)), 0))
            yield self._resident
            return
        order = self._order(epoch)
        skipped = first * self._block_rows
        before = np.concatenate([[0], np.cumsum([self._kept[i] for i in order])])
        place = int(np.searchsorted(before, skipped, side="right")) - 1  # shard of the epoch that row `skipped` is in
        parts = self._parts(order[place:], skipped - int(before[place]))
        buffer = np.empty((self._block_rows, self._source.n_features), dtype=np.float32)
        n = 0
        for part in parts:
            while len(part):
                taken = part[: self._block_rows - n]
                buffer[n : n + len(taken)] = taken
                n, part = n + len(taken), part[len(taken) :]
                if n == self._block_rows:
                    yield buffer
                    n = 0
        if n >= self.batch_rows:
            yield buffer[:n]

    def _filled(self, parts: Iterator[np.ndarray]) -> np.ndarray:
        buffer = np.empty((self.n_rows, self._source.n_features), dtype=np.float32)
        n = 0
        for part in parts:
            buffer[n : n + len(part)] = part
            n += len(part)
        return buffer

    def _order(self, epoch: int) -> Sequence[int]:
        n = len(self._shard_rows)
        if self._source.live:
            return range(n)
        return np.random.default_rng([self._seed, _SHARDS, epoch]).permutation(n).tolist()  # type: ignore[no-any-return]

    def _parts(self, order: Sequence[int], skip: int) -> Iterator[np.ndarray]:
        """Training rows of the shards in this order, without the first `skip`."""
        for index, shard in self._shards(order):
            check_shard(index, len(shard), self._shard_rows[index])
            kept = np.flatnonzero(~held_out(self._seed, self._share, self._starts[index], len(shard)))
            yield shard[kept[skip:]]
            skip = 0

    def _shards(self, order: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        if self._source.live:  # its shards come in the order of the corpus, and starting anew at each would be dear
            for index, shard in zip(order, self._source.shards(order[0]), strict=False):
                yield index, shard
            return
        for index in order:
            yield index, next(self._source.shards(index))


def check_shard(index: int, n_rows: int, n_before: int) -> None:
    """Raises: SkillbasisError: a pass gave other rows of a shard than the first one."""
    if n_rows != n_before:
        raise SkillbasisError(
            f"the first pass gave {n_before} rows of shard {index} and a later one {n_rows}; leave corpus and model as "
            "they are while the directions are being found, and start again"
        )
