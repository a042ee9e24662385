"""Mean and scale of the activations, from the sums of a first pass, and what a basis records of how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..activations import ActivationSource
from ..errors import SkillbasisError
from .sums import CovarianceSums, PassSums

_NO_VARIATION = 1e-6  # of the root-mean-square value: what is left then is float32 rounding
_SHIFT_ROWS = 1024

_IDENTITY = ("model", "model_type", "weights_fingerprint", "tokenizer_fingerprint", "template_fingerprint")
_READING = ("hidden_size", "n_blocks", "block_ids", "pooling", "span", "max_length", "dtype", "corpus")
_CONFIG_KEYS = (*_IDENTITY, *_READING, "corpus_fingerprint")

Tensors = dict[str, np.ndarray]


def reading_of(source: ActivationSource) -> dict[str, Any]:
    """What the configuration of a basis says of its activations: model, blocks, pooling, span, corpus."""
    return {key: source.manifest[key] for key in _CONFIG_KEYS}


def near_mean(rows: np.ndarray) -> np.ndarray:
    """(d,): a value near the mean, from the first rows of a pass."""
    return rows[:_SHIFT_ROWS].mean(axis=0, dtype=np.float64)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Moments:
    """What the first pass measures of the rows."""

    n_rows: int
    mean: np.ndarray
    """(d,) float64."""
    block_rms: np.ndarray
    """(blocks,) float64, root-mean-square deviation of each block."""
    scale: np.ndarray
    """(d,) float64 that the activations are divided by: 1, or each block's root-mean-square deviation."""

    @property
    def total_variance(self) -> float:
        per_block = len(self.mean) // len(self.block_rms)
        return float((self.block_rms**2).sum() * per_block * self.n_rows / (self.n_rows - 1))

    @classmethod
    def of(cls, sums: PassSums | CovarianceSums, source: ActivationSource, *, normalize_blocks: bool) -> Moments:
        """Raises: SkillbasisError: rows that do not vary, or are not finite."""
        mean, blocks = sums.mean, source.block_ids
        block_rms = np.sqrt(sums.variance.reshape(len(blocks), -1).mean(axis=1))
        if not np.isfinite(block_rms).all():
            raise SkillbasisError(
                "the activations are not finite everywhere; extract them again with --on-bad-row skip"
            )
        mean_rms = np.sqrt(np.square(mean).reshape(len(blocks), -1).mean(axis=1))  # (blocks,)
        if (block_rms**2).sum() <= _NO_VARIATION**2 * (mean_rms**2).sum():
            raise SkillbasisError("the activations do not vary over the rows: every text reads the same to the model")
        still = np.flatnonzero(block_rms <= _NO_VARIATION * mean_rms)
        if normalize_blocks and len(still):
            raise SkillbasisError(f"block {blocks[still[0]]} does not vary over the rows; leave it out with --layers")
        scale = np.repeat(block_rms if normalize_blocks else np.ones_like(block_rms), source.hidden_size)
        return cls(sums.n_rows, mean, block_rms, scale)

    def tensors(self) -> Tensors:
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Moments:
        arrays: dict[str, Any] = {name: tensor.copy() for name, tensor in tensors.items()}
        return cls(**arrays | {"n_rows": tensors["n_rows"].item()})
