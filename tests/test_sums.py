"""Sums of one pass over the rows: against formulas by hand, in any cut of the rows, from rows that are only read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillbasis.basis import sums as module
from skillbasis.basis.sums import CovarianceSums, PassSums, RowSums

N, D, WIDTH = 500, 60, 5


@pytest.fixture
def rows() -> np.ndarray:
    """(N, D) float32 with a mean a thousand times the deviations, and one feature that varies a thousand times more."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) + 1000 * rng.standard_normal(D)
    x[:, 7] += 1000 * rng.standard_normal(N)
    return x.astype(np.float32)


def block() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((WIDTH, D)).astype(np.float32)


def empty(kind: type[RowSums], shift: np.ndarray) -> Any:
    return PassSums.empty(shift, block(), squares=True) if kind is PassSums else CovarianceSums.empty(shift)


def test_sums_of_three_rows_by_hand() -> None:
    part = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 13.0]], dtype=np.float32)
    shift = np.array([3.0, 10.0])  # shifted rows: (-2, 0), (0, 0), (2, 3)
    sums = PassSums.empty(shift, np.array([[1.0, 0.0], [1.0, 2.0]]), squares=True)
    sums.add(part)
    assert sums.n_rows == 3
    np.testing.assert_array_equal(sums.total, [0, 3])
    np.testing.assert_array_equal(sums.squares, [8, 9])
    # Scatter of the shifted rows: [[8, 6], [6, 9]].
    np.testing.assert_array_equal(sums.product + sums.recent, [[8, 6], [20, 24]])
    np.testing.assert_allclose(sums.mean, [3, 11])
    np.testing.assert_allclose(sums.variance, [8 / 3, 2])
    # Covariance: [[4, 3], [3, 3]].
    np.testing.assert_allclose(sums.image, [[4, 3], [10, 9]])
    whole = CovarianceSums.empty(shift)
    whole.add(part)
    np.testing.assert_allclose(whole.covariance, [[4, 3], [3, 3]])
    np.testing.assert_allclose(whole.variance, [8 / 3, 2])
    np.testing.assert_allclose(whole.mean, [3, 11])


@pytest.mark.parametrize("far", [0.0, 3.0])
def test_mean_variance_and_products_are_those_of_float64(rows: np.ndarray, far: float) -> None:
    """Also where the shift is off the mean by some standard deviations, as with first rows unlike the others."""
    x = rows.astype(np.float64)
    shift = (x.mean(axis=0) + far * x.std(axis=0)).astype(np.float32)
    sums, whole = (empty(kind, shift) for kind in (PassSums, CovarianceSums))
    for part in (rows[:123], rows[123:]):
        sums.add(part)
        whole.add(part)
    covariance = np.cov(x.T)
    for found in (sums, whole):
        np.testing.assert_allclose((found.mean - x.mean(axis=0)) / x.std(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(found.variance, x.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole.covariance, covariance, rtol=1e-9, atol=1e-9)
    image = block().astype(np.float64) @ covariance
    # Sums in float32, of which a shift far off cancels the better part.
    assert np.abs(sums.image - image).max() < (1e-6 + 1e-6 * far**2) * np.abs(image).max()


@pytest.mark.parametrize("kind", [PassSums, CovarianceSums])
@pytest.mark.parametrize("cuts", [[], [1, 2], [200, 201, 350], [100, 100, 499]])
def test_sums_of_parts_add_up(
    kind: type[RowSums], cuts: list[int], rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers' sums, shards of any size (also none) and chunks of any size give the sums of all rows at once."""
    shift = rows[:50].mean(axis=0)
    whole = empty(kind, shift)
    whole.add(rows)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 7 * D * 8)
    monkeypatch.setattr(module, "_CHUNK_ROWS", 7)
    parts = np.split(rows, cuts)
    together, workers = empty(kind, shift), [empty(kind, shift) for _ in parts]
    for part, worker in zip(parts, workers, strict=True):
        together.add(part)
        worker.add(part)
    added = empty(kind, shift)
    for worker in workers:
        added = added + worker
    for found in (together, added):
        assert type(found) is kind
        assert found.n_rows == N
        for name, tensor in whole.tensors().items():
            scale = max(1.0, float(np.abs(tensor).max()))
            np.testing.assert_allclose(found.tensors()[name], tensor, rtol=1e-6, atol=1e-6 * scale)


def test_sums_of_different_things_do_not_add_up(rows: np.ndarray) -> None:
    shift = rows.mean(axis=0)
    for other in (PassSums.empty(shift + 1, block()), PassSums.empty(shift, block() + 1)):
        with pytest.raises(ValueError, match="only for the same shift and the same block"):
            PassSums.empty(shift, block()) + other
    with pytest.raises(ValueError, match="only for the same shift"):
        CovarianceSums.empty(shift) + CovarianceSums.empty(shift + 1)


@pytest.mark.parametrize("kind", [PassSums, CovarianceSums])
def test_sums_go_on_from_their_tensors(kind: type[RowSums], rows: np.ndarray) -> None:
    whole, first = empty(kind, rows[0]), empty(kind, rows[0])
    for part in (rows[:200], rows[200:]):
        whole.add(part)
    first.add(rows[:200])
    saved = first.tensors()
    again = kind.from_tensors(saved)
    again.add(rows[200:])
    for name, tensor in whole.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor)
    assert saved["n_rows"] == 200
    assert not np.shares_memory(again.total, first.total)


def test_rows_are_read_in_place_within_a_fixed_memory(tmp_path: Path) -> None:
    d, n = 4096, 4000  # 64 MB of rows
    file = tmp_path / "rows.npy"
    x = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(n, d))
    x[:] = np.random.default_rng(2).standard_normal((1, d))
    x.flush()
    mapped = np.load(file, mmap_mode="r")
    sums = PassSums.empty(mapped[0], np.ones((4, d), dtype=np.float32))
    tracemalloc.start()
    sums.add(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # a chunk's buffer is there from the beginning
    np.testing.assert_array_equal(sums.total, 0)
    assert sums._buffer.nbytes <= 1 << 26
    assert PassSums.empty(np.zeros(122_880), np.zeros((1, 122_880)))._buffer.nbytes <= 1 << 26
