"""What one pass over the rows gathers: sums that add up over shards and workers.

Dimension names: n rows, d features, b = width of a block of vectors. Vectors are rows: a block is (b, d).

All sums are relative to a fixed shift near the mean, so that a mean thousands of times the deviations does not cancel
them away; what is left of the mean is taken off in float64 at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

# Products with a narrow block are fastest on about 64 long rows: fewer starve the threads, more fall out of the cache.
# Short rows are taken together, as far as float32 can sum them.
_CHUNK_ROWS = 64
_FLOAT32_ROWS = 1024  # after which sums in float32 go into the float64 ones
_MAX_CHUNK_ROWS = 1024
_CHUNK_BYTES = 1 << 23
_MAX_CHUNK_BYTES = 1 << 26


@dataclass
class RowSums(ABC):
    """Number and sum of the rows relative to a shift, and a product that is the subclass's own."""

    dtype: ClassVar[type[np.floating[Any]]] = np.float32
    """In which a chunk of rows is worked on."""
    shift: np.ndarray
    """(d,) float32 taken off every row."""
    n_rows: int
    total: np.ndarray
    """(d,) float64, sum of the shifted rows; known beforehand, and not gathered, where a pass needs no moments."""
    product: np.ndarray
    """(b, d) float64, a product with Xc^T Xc, the scatter matrix of the shifted rows."""
    _buffer: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        row_bytes = len(self.shift) * np.dtype(self.dtype).itemsize
        rows = max(_CHUNK_BYTES // row_bytes, min(_CHUNK_ROWS, _MAX_CHUNK_BYTES // row_bytes), 1)
        rows = min(rows, _MAX_CHUNK_ROWS)
        self._buffer = np.empty((rows, len(self.shift)), dtype=self.dtype)

    def add(self, part: np.ndarray) -> None:
        """Adds rows (n, d). They are only read, once and in order, so a memory map will do.

        Cost: memory of one chunk of rows, 8 to 64 MiB.
        """
        for start in range(0, len(part), len(self._buffer)):
            rows = part[start : start + len(self._buffer)]
            centred = np.subtract(rows, self.shift, out=self._buffer[: len(rows)], dtype=self.dtype)
            self.n_rows += len(rows)
            self._take(centred)

    @abstractmethod
    def _take(self, centred: np.ndarray) -> None:
        """Adds a chunk of shifted rows to what the subclass gathers."""

    def _add_to_total(self, centred: np.ndarray) -> None:
        self.total += np.ones(len(centred), dtype=self.dtype) @ centred

    def __add__(self, other: Self) -> Self:
        """The sums over the rows of both.

        Raises: ValueError: they are relative to other shifts, or of other products.
        """
        if not all(np.array_equal(a, b) for a, b in zip(self._fixed(), other._fixed(), strict=True)):
            raise ValueError("sums over rows add up only for the same shift and the same block")
        mine, theirs = self.tensors(), other.tensors()
        summed = {name: mine[name] + theirs[name] for name in mine if name not in ("shift", "block")}
        return type(self).from_tensors(mine | summed)

    def _fixed(self) -> tuple[np.ndarray, ...]:
        return (self.shift,)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that the sums are, to save them."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.init}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> Self:
        """The sums that `tensors` came from, with arrays of their own."""
        arrays: dict[str, Any] = {name: tensor.copy() for name, tensor in tensors.items()}
        counts = {name: tensors[name].item() for name in ("n_rows", "n_recent") if name in tensors}
        return cls(**arrays | counts)

    @property
    def mean(self) -> np.ndarray:
        """(d,) float64, mean of the rows."""
        return self.shift + self.total / self.n_rows


@dataclass
class PassSums(RowSums):
    """Moments of the rows, and the product of a block with their scatter matrix, in float32 over a thousand rows."""

    block: np.ndarray
    """(b, d) float32 vectors that are multiplied: product + recent = block · Xc^T Xc."""
    squares: np.ndarray
    """(d,) float64, sum of the squared shifted rows; (0,) where a pass does not need them."""
    recent: np.ndarray
    """(b, d) float32, the product over the latest rows: adding every chunk to float64 takes as long as multiplying."""
    n_recent: int = 0
    """Rows in `recent`."""
    _columns: np.ndarray = field(init=False, repr=False, compare=False)
    _scratch: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._columns = np.ascontiguousarray(self.block.T)  # (d, b): twice as fast to multiply by as its transpose
        self._scratch = np.empty_like(self.recent)

    @classmethod
    def empty(cls, shift: np.ndarray, block: np.ndarray, *, squares: bool = False) -> Self:
        """Sums of no rows yet. Args: shift (d,), block (b, d); squares: whether moments are wanted, too."""
        d = len(shift)
        return cls(
            shift=shift.astype(np.float32),
            n_rows=0,
            total=np.zeros(d),
            product=np.zeros(block.shape),
            block=np.ascontiguousarray(block, dtype=np.float32),
            squares=np.zeros(d if squares else 0),
            recent=np.zeros(block.shape, dtype=np.float32),
        )

    def _take(self, centred: np.ndarray) -> None:
        if len(self.squares):
            self._add_to_total(centred)
            self.squares += np.einsum("nd,nd->d", centred, centred)
        np.matmul((centred @ self._columns).T, centred, out=self._scratch)  # (b, n) @ (n, d)
        self.recent += self._scratch
        self.n_recent += len(centred)
        if self.n_recent >= _FLOAT32_ROWS:
            self.product += self.recent
            self.recent[:], self.n_recent = 0, 0

    def _fixed(self) -> tuple[np.ndarray, ...]:
        return (self.shift, self.block)

    @property
    def variance(self) -> np.ndarray:
        """(d,) float64, mean squared deviation of each feature (divided by n)."""
        return np.maximum(self.squares / self.n_rows - (self.total / self.n_rows) ** 2, 0)

    @property
    def image(self) -> np.ndarray:
        """(b, d) float64: block · C, with C the covariance of the rows (divided by n - 1)."""
        rest = self.total / self.n_rows  # (d,), mean less shift
        scatter = self.product + self.recent - np.outer(self.block.astype(np.float64) @ rest, self.total)
        return scatter / (self.n_rows - 1)  # type: ignore[no-any-return]


@dataclass
class CovarianceSums(RowSums):
    """Moments of the rows and their whole scatter matrix (d, d), all in float64."""

    @classmethod
    def empty(cls, shift: np.ndarray) -> Self:
        """Sums of no rows yet, relative to a shift (d,)."""
        d = len(shift)
        return cls(shift=shift.astype(np.float32), n_rows=0, total=np.zeros(d), product=np.zeros((d, d)))

    dtype: ClassVar[type[np.floating[Any]]] = np.float64

    def _take(self, centred: np.ndarray) -> None:
        self._add_to_total(centred)
        self.product += centred.T @ centred

    @property
    def variance(self) -> np.ndarray:
        """(d,) float64, mean squared deviation of each feature (divided by n)."""
        return np.maximum(self.product.diagonal() / self.n_rows - (self.total / self.n_rows) ** 2, 0)

    @property
    def covariance(self) -> np.ndarray:
        """(d, d) float64, covariance of the rows (divided by n - 1)."""
        return (self.product - np.outer(self.total / self.n_rows, self.total)) / (self.n_rows - 1)
