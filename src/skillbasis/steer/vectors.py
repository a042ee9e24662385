"""Steering vectors: what is added to the output of which decoder block at alpha = 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..basis import SkillBasis
from ..errors import UsageError, nearest

Unit = Literal["raw", "std", "relative"]
UNITS: tuple[str, ...] = get_args(Unit)


@dataclass(frozen=True)
class SteeringVector:
    """A vector per decoder block, added to the block's output."""

    name: str
    """What it is, for tables: `d3+`, `random-0`."""
    block_ids: tuple[int, ...]
    values: np.ndarray
    """(blocks, hidden) float32, in the order of `block_ids`; what alpha = 1 adds."""
    unit: Unit
    """`raw`: the unit direction (the paper's); `std`: times the standard deviation of the scores over the corpus;
    `relative`: alpha is a fraction of the norm of the residual stream, measured where it is added."""
    model_fingerprint: str


def direction_vector(
    basis: SkillBasis,
    direction: int,
    sign: Literal["+", "-"] = "+",
    *,
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Literal["accumulate", "exact"] = "accumulate",
) -> SteeringVector:
    """The steering vector of one direction of a basis.

    Args:
        direction: 0-based; sign `-` steers against it.
        unit: of alpha; in the unit `relative` each block's slice is scaled to unit norm.
        blocks: a subset of the basis' blocks; None takes all of them.
        increments: `accumulate` adds the slice v_i at every block, so the stream at block i is moved by v_1 + ... + v_i
            (the paper's); `exact` adds v_i - v_(i-1), so that it is moved by v_i.
    Raises: UsageError: no such direction or block, or an unknown unit, sign or way of increments.
    """
    basis.check_direction(direction)
    if unit not in UNITS:
        raise UsageError(f"unknown unit {unit!r}{nearest(unit, list(UNITS))}; allowed are {', '.join(UNITS)}")
    if sign not in ("+", "-"):
        raise UsageError(f"the sign of a direction is '+' or '-', not {sign!r}")
    if increments not in ("accumulate", "exact"):
        raise UsageError(f"unknown increments {increments!r}; allowed are accumulate, exact")
    if increments == "exact" and unit == "relative":
        raise UsageError("exact increments need one scale for all blocks; use the unit raw or std, or accumulate")
    chosen = sorted(set(basis.block_ids if blocks is None else blocks))
    if not chosen:
        raise UsageError(f"there is no block to steer; choose some of {basis.block_ids}")
    missing = [block for block in chosen if block not in basis.block_ids]
    if missing:
        raise UsageError(f"the basis has no block {missing[0]}; it has {basis.block_ids}")
    slices = np.stack([basis.directions[direction, basis.block_ids.index(block)] for block in chosen])
    values = slices.astype(np.float32) * (1 if sign == "+" else -1)
    if unit == "std":
        values = values * np.float32(basis.score_std[direction])
    elif unit == "relative":
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    if increments == "exact":
        values = np.diff(values, axis=0, prepend=np.zeros_like(values[:1]))
    return SteeringVector(
        f"d{direction}{sign}", tuple(chosen), values.astype(np.float32), unit, basis.config["weights_fingerprint"]
    )


def random_vector(like: SteeringVector, seed: int) -> SteeringVector:
    """A random direction with the same norm in every block: the control of a steering experiment."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(like.values.shape)
    values *= np.linalg.norm(like.values, axis=1, keepdims=True) / np.linalg.norm(values, axis=1, keepdims=True)
    return SteeringVector(
        f"random-{seed}", like.block_ids, values.astype(np.float32), like.unit, like.model_fingerprint
    )
