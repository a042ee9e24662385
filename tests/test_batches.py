"""Batches of training rows: every row once an epoch, in an order that follows from the seed, wherever one begins."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from skillbasis.basis.batches import TrainingBatches, check_shard, held_out
from skillbasis.errors import SkillbasisError
from test_basis import Rows


def numbered(n: int, d: int = 4) -> np.ndarray:
    """(n, d) rows that say their own number in every feature."""
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], d, axis=1)


def make(source: Rows, *, batch: int = 8, buffer: int = 40, seed: int = 3, share: float = 0.2) -> TrainingBatches:
    rows = [len(part) for part in source.parts]
    return TrainingBatches(source, rows, seed=seed, held_out_share=share, batch_rows=batch, buffer_rows=buffer)


def order(batches: TrainingBatches, start: int, stop: int) -> list[list[int]]:
    return [rows[:, 0].astype(int).tolist() for rows in batches.batches(start, stop)]


def test_what_is_held_out_does_not_depend_on_where_one_begins() -> None:
    whole = held_out(5, 0.3, 0, 1000)
    for start, stop in ((0, 1), (17, 400), (400, 1000), (999, 1000)):
        np.testing.assert_array_equal(held_out(5, 0.3, start, stop - start), whole[start:stop])
    assert abs(whole.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)  # four standard errors
    assert not np.array_equal(whole, held_out(6, 0.3, 0, 1000))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("shard_rows", "buffer"), [(25, 40), (7, 40), (300, 40), (25, 8), (25, 3), (25, 10_000)])
def test_an_epoch_has_every_training_row_once_but_for_less_than_a_batch(
    shard_rows: int, buffer: int, live: bool
) -> None:
    batches = make(Rows(numbered(300), shard_rows=shard_rows, live=live), buffer=buffer)
    training = set(np.flatnonzero(~held_out(3, 0.2, 0, 300)).tolist())
    assert (batches.n_rows, batches.n_held_out) == (len(training), 300 - len(training))
    epochs = [order(batches, e * batches.batches_per_epoch, (e + 1) * batches.batches_per_epoch) for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(training) // 8
        rows = [row for batch in epoch for row in batch]
        assert len(set(rows)) == len(rows) == 8 * len(epoch)
        assert set(rows) <= training
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("buffer", [40, 10_000])
@pytest.mark.parametrize("live", [False, True])
def test_streaming_gives_the_order_of_rows_in_memory(buffer: int, live: bool) -> None:
    # Written down again, with all rows in memory: shards in random order (those of a live source as they come), blocks
    # of whole batches, each shuffled.
    n, seed = 500, 11
    source = Rows(numbered(n), shard_rows=30, live=live)
    batches = make(source, seed=seed, buffer=buffer)
    kept = np.flatnonzero(~held_out(seed, 0.2, 0, n))
    expected = []
    for epoch in range(2):
        shards = np.arange(17) if live else np.random.default_rng([seed, 2, epoch]).permutation(17)
        rows = np.concatenate([kept[kept // 30 == shard] for shard in shards])
        if buffer >= len(kept):
            rows = kept
        size = len(kept) if buffer >= len(kept) else 40
        for block in range(len(rows) // size + 1):
            part = rows[block * size : (block + 1) * size]
            part = part[np.random.default_rng([seed, 3, epoch, block]).permutation(len(part))]
            expected += [part[i : i + 8].tolist() for i in range(0, len(part) - 7, 8)]
    assert order(batches, 0, len(expected)) == expected
    assert len(expected) == 2 * batches.batches_per_epoch


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("buffer", [40, 10_000])
def test_going_on_at_any_batch_gives_the_same_batches(buffer: int, live: bool) -> None:
    source = Rows(numbered(300), shard_rows=25, live=live)
    whole = order(make(source, buffer=buffer), 0, 70)
    for start in (1, 4, 5, 6, 28, 29, 30, 31, 59, 69):
        assert order(make(source, buffer=buffer), start, 70) == whole[start:]


def test_the_cut_into_shards_does_not_matter_where_the_order_is_that_of_the_corpus() -> None:
    orders = [order(make(Rows(numbered(300), shard_rows=size, live=True)), 0, 60) for size in (300, 25, 7)]
    assert orders[0] == orders[1] == orders[2]


def test_rows_that_fit_the_buffer_are_read_once_and_empty_shards_do_no_harm() -> None:
    source = Rows(numbered(100), shard_rows=10, live=True)
    source.parts[0] = source.parts[0][:0]
    source.parts[4] = source.parts[4][:0]
    batches = make(source, buffer=100)
    order(batches, 0, 10 * batches.batches_per_epoch)
    assert source.n_read == 10
    streamed = make(source, buffer=16)
    assert sorted(row for batch in order(streamed, 0, streamed.batches_per_epoch) for row in batch) != []


def test_a_batch_is_never_larger_than_the_training_rows() -> None:
    batches = make(Rows(numbered(50)), batch=1000, buffer=10)
    assert batches.batch_rows == batches.n_rows == len(order(batches, 0, 1)[0])


def test_rows_that_change_between_passes_are_an_error() -> None:
    source = Rows(numbered(300), shard_rows=30)
    batches = make(source)
    source.parts[4] = source.parts[4][:-1]
    with pytest.raises(
        SkillbasisError, match="first pass gave 30 rows of shard 4 and a later one 29; leave corpus and"
    ):
        order(batches, 0, 60)
    check_shard(0, 3, 3)


class Made:
    """Activations that exist only while they are read."""

    live = True
    n_features = 64

    def __init__(self, n_shards: int) -> None:
        self.n_shards = n_shards

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        for index in range(start, self.n_shards):
            yield np.full((500, 64), index, dtype=np.float32)


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(n_shards: int) -> int:
        batches = TrainingBatches(
            Made(n_shards),  # type: ignore[arg-type]
            [500] * n_shards,
            seed=0,
            held_out_share=0.1,
            batch_rows=64,
            buffer_rows=1024,
        )
        tracemalloc.start()
        for _ in batches.batches(0, batches.batches_per_epoch):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(4), peak(32)
    assert many < 1.2 * few  # the shard, the buffer and a batch; the rows themselves are eight times as many
    assert many < 32 * 500 * 64 * 4 / 4
