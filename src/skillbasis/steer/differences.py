"""How the weights of two checkpoints differ: constants, matrices with the rank of their change, additions, losses.

Tensors are mapped from their files one at a time and gone through in pieces, so memory does not grow with the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_CHUNK_VALUES = 1 << 24  # of a tensor in float32 at a time: 64 MB
_HELD_FRACTION = 0.9  # of the squared change: rounding to two bytes takes up to some percent of a LoRA's
_MAX_RANK, _OVERSAMPLING = 64, 8
_BLOCK = re.compile(r"^(?:.*?\.)?(\d+)\.")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass
class Differences:
    """What differs between a checkpoint and its base, as far as `compare` was called."""

    new: Checkpoint
    old: Checkpoint
    """The base."""
    offsets: dict[int, np.ndarray] = field(default_factory=dict)
    """(hidden,) float64 of the blocks whose offset is not zero, in units of the stream."""
    constants: list[dict[str, Any]] = field(default_factory=list)
    matrices: list[dict[str, Any]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    added_zeros: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    tolerance: str | None = None
    """How far numbers of different types may be apart; None where all types are the same."""
    n_weights: int = 0
    n_retyped: int = 0

    def compare(self, name: str, offset_block: int | None) -> None:
        """Compares one weight; `offset_block` is the block whose offset it is, if it is one."""
        import torch

        self.n_weights += 1
        new, old = self._of(self.new, name), self._of(self.old, name)
        if new is not None and old is not None and new.shape != old.shape:
            self.reshaped.append(f"{name} {tuple(old.shape)} to {tuple(new.shape)}")
            return
        status = "added" if old is None else "missing" if new is None else "changed"
        if status != "changed":
            there = new if new is not None else old
            assert there is not None
            if not name.endswith(".bias"):  # an absent bias is zero; of other weights nothing can be said
                (self.added if status == "added" else self.missing).append(name)
                return
            if not there.any():
                if status == "added":
                    self.added_zeros.append(name)
                return
            zeros = torch.zeros_like(there)
            new, old = (new, zeros) if old is None else (zeros, old)
        assert new is not None and old is not None
        self._record(name, new, old, status, offset_block)

    def _record(self, name: str, new: torch.Tensor, old: torch.Tensor, status: str, offset_block: int | None) -> None:
        """Records a weight that both sides have, if it differs."""
        import torch

        if new.dtype == old.dtype and torch.equal(_bytes(new), _bytes(old)):
            return
        relative, absolute = self._allowed(new, old)
        change = size = 0.0
        changed = False
        for a, b in _chunks(new, old):
            difference = a - b
            if not changed:
                outside = difference.abs() > relative * b.abs() + absolute if relative else difference
                changed = bool(outside.any())
            change += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
            size += float(torch.linalg.vector_norm(b, dtype=torch.float64)) ** 2
        if not np.isfinite(change):
            self.not_finite.append(name)
            return
        if not changed:
            return
        block = _BLOCK.match(name)
        entry = {
            "name": name,
            "block": int(block.group(1)) if block else None,
            "relative_change": float(np.sqrt(change / size)) if size else None,
        }
        if offset_block is not None:
            scaled = _stream_scale(self.new) * new.double() - _stream_scale(self.old) * old.double()
            self.offsets[offset_block] = scaled.numpy()
        elif new.ndim < 2:
            self.constants.append(entry | {"status": status, "norm": float(np.sqrt(change))})
        else:
            rank, limit = _rank(new, old, change)
            self.matrices.append(entry | {"rank": rank, "rank_limit": limit})

    def _of(self, checkpoint: Checkpoint, name: str) -> torch.Tensor | None:
        """A weight by name; the embedding for a head that is tied to it; None where there is none."""
        source = source_of(checkpoint, name)
        return None if source is None else checkpoint.tensor(source)

    def _allowed(self, new: torch.Tensor, old: torch.Tensor) -> tuple[float, float]:
        """How far numbers may be apart, relative and absolute: one rounding to the coarser of two types."""
        import torch

        if new.dtype == old.dtype or not (new.is_floating_point() and old.is_floating_point()):
            return 0.0, 0.0
        self.n_retyped += 1
        coarse = max(torch.finfo(new.dtype), torch.finfo(old.dtype), key=lambda info: info.eps)
        self.tolerance = f"one rounding to {coarse.dtype} ({coarse.eps / 2:.1e} of each number)"
        return coarse.eps / 2, coarse.smallest_normal * coarse.eps / 2


def source_of(checkpoint: Checkpoint, name: str) -> str | None:
    """The weight in the files that a name stands for: itself; for a head also one of another name, or the embedding
    it is tied to. None where there is none."""
    if name in checkpoint.files or not name.endswith(_HEADS):
        return name if name in checkpoint.files else None
    heads = [other for other in checkpoint.names if other.endswith(_HEADS)]
    if not heads and checkpoint.text_config.get("tie_word_embeddings", True):
        heads = [other for other in checkpoint.names if other.endswith(_EMBEDDINGS)]
    return heads[0] if heads else None


def _stream_scale(checkpoint: Checkpoint) -> float:
    """What the MLP's output is multiplied with before it is added to the stream (Granite)."""
    return float(checkpoint.text_config.get("residual_multiplier", 1.0))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, in which a NaN equals itself."""
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _chunks(new: torch.Tensor, old: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of (rows, columns) float32 that make up two tensors; one row for vectors."""
    shape = (-1, new.shape[-1]) if new.ndim > 1 else (1, -1)
    new, old = new.reshape(shape), old.reshape(shape)
    n_rows = max(1, _CHUNK_VALUES // max(1, new.shape[1]))
    for start in range(0, len(new), n_rows):
        yield new[start : start + n_rows].float(), old[start : start + n_rows].float()


def _rank(new: torch.Tensor, old: torch.Tensor, energy: float) -> tuple[int | None, int]:
    """How many singular directions hold nine tenths of a change, and up to how many were looked for.

    None: more than that, or the tensor is no matrix.

    Args:
        energy: squared Frobenius norm of new - old.
    Source: the range finder of Halko, Martinsson and Tropp (2011, algorithm 4.1), without power iterations.
    """
    import torch

    limit = min(_MAX_RANK, min(new.shape) // 4) if new.ndim == 2 else 0
    if limit == 0:
        return None, limit
    width = min(limit + _OVERSAMPLING, *new.shape)
    probe = torch.randn(new.shape[1], width, generator=torch.Generator().manual_seed(0))  # (columns, width)
    range_basis = torch.linalg.qr(torch.cat([(a - b) @ probe for a, b in _chunks(new, old)]))[0]  # (rows, width)
    inside = torch.zeros(width, new.shape[1])
    start = 0
    for a, b in _chunks(new, old):
        inside += range_basis[start : start + len(a)].T @ (a - b)
        start += len(a)
    held = torch.linalg.svdvals(inside).double().square().cumsum(0) / energy
    rank = int((held < _HELD_FRACTION).sum()) + 1
    return (rank if rank <= limit else None), limit
