"""Steering vectors: what is added to the output of which decoder block at alpha = 1, and the file they are kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..artifact import fingerprint, write_tensors
from ..basis import SkillBasis
from ..errors import ArtifactError, UsageError, nearest
from ..lm import LanguageModel

Unit = Literal["raw", "std", "relative"]
UNITS: tuple[str, ...] = get_args(Unit)
Increments = Literal["accumulate", "exact"]
SITE = "block_output"
IDENTITY = ("model", "revision", "model_type", "weights_fingerprint", "hidden_size", "n_blocks")
_FORMAT = "skillbasis.steering/1"
_CANCELLED = 1e-6  # a sum of unit directions this short is rounding
_MUST_AGREE = ("model_type", "hidden_size", "n_blocks", "weights_fingerprint")


@dataclass(frozen=True)
class SteeringVector:
    """A vector per decoder block, added to the block's output (before any final norm)."""

    name: str
    """What it is, for tables: `d3+`, `success`, `random-0`."""
    block_ids: tuple[int, ...]
    """0-based, ascending."""
    values: np.ndarray
    """(blocks, hidden) float32, in the order of `block_ids`; what alpha = 1 adds."""
    unit: Unit
    """What alpha counts. `raw`: this vector (a unit direction: the paper's); `std`: standard deviations of the scores
    over the corpus; `relative`: the norm of each token's own residual stream where it is added."""
    model: Mapping[str, Any]
    """Identity of the model it belongs to (see `IDENTITY`)."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How it was made; JSON-able."""

    @property
    def model_fingerprint(self) -> str:
        return str(self.model["weights_fingerprint"])

    @property
    def fingerprint(self) -> str:
        """Identifies what is added: numbers, blocks, unit and model."""
        return fingerprint([self.values.tobytes().hex(), list(self.block_ids), self.unit, self.model_fingerprint])

    @property
    def norms(self) -> np.ndarray:
        """(blocks,) Euclidean norm of what alpha = 1 adds at each block."""
        return np.asarray(np.linalg.norm(self.values.astype(np.float64), axis=1))

    def check_model(self, lm: LanguageModel) -> None:
        """Refuses a model the vector was not made for. Raises: ArtifactError: naming what differs."""
        for key in _MUST_AGREE:
            if self.model[key] != lm.identity[key]:
                raise ArtifactError(
                    f"the steering vector {self.name} was made for model {self.model['model']!r} "
                    f"({key} {self.model[key]}), not for {lm.name!r} ({key} {lm.identity[key]}); give that model, or "
                    "make the vector anew on this one"
                )

    def scaled(self, alpha: float) -> SteeringVector:
        """The vector with a strength folded in: what alpha added is what 1 adds now.

        Raises: UsageError: alpha is not finite, or nothing that float32 can hold is left (zero, or too large).
        """
        if not math.isfinite(alpha):
            raise UsageError(f"alpha must be a finite number, not {alpha}")
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.values.astype(np.float32) * np.float32(alpha)  # as the hooks add it
        if not np.isfinite(values).all():
            raise UsageError(f"{self.name} at alpha {alpha:g} is too large for float32; use a smaller alpha")
        if not values.any():
            raise UsageError(f"{self.name} at alpha {alpha} adds nothing; give another alpha")
        if alpha == 1:
            return self
        folded = alpha * float(self.origin.get("alpha_folded_in", 1.0))
        return replace(self, values=values, origin={**self.origin, "alpha_folded_in": folded})

    def calibrated(self, residual_norms: Mapping[int, float]) -> SteeringVector:
        """The `relative` vector as a constant one, for carriers that cannot see the stream they add to.

        Args:
            residual_norms: typical norm of the stream at the output of each block, by block id.
        """
        if self.unit != "relative":
            raise UsageError(f"only a vector in the unit relative is calibrated; {self.name} is in {self.unit}")
        scale = np.array([residual_norms[block] for block in self.block_ids], dtype=np.float32)[:, None]
        norms = {str(block): float(residual_norms[block]) for block in self.block_ids}
        return replace(
            self, values=self.values * scale, unit="raw", origin={**self.origin, "calibrated_to_norms": norms}
        )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file: `values`, `block_ids`, and everything else in its header."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UsageError(f"{path} is no .safetensors file; a steering vector is written as one, so change the name")
        header = {
            "format": _FORMAT,
            "name": self.name,
            "site": SITE,
            "unit": self.unit,
            "model": json.dumps({key: self.model.get(key) for key in IDENTITY}),
            "origin": json.dumps(dict(self.origin)),
        }
        blocks = np.array(self.block_ids, dtype=np.int64)
        write_tensors(path, {"values": self.values.astype(np.float32), "block_ids": blocks}, header)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Reads what `save` wrote. Raises: UsageError: no such file. ArtifactError: it is no steering vector."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UsageError(f"there is no steering vector at {path}; make one with skillbasis steer vectors")
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT or header.get("site") != SITE:
                    raise ArtifactError(
                        f"{path} is no steering vector of this version (format {header.get('format')}, site "
                        f"{header.get('site')}); make one with skillbasis steer vectors"
                    )
                values, blocks = file.get_tensor("values"), file.get_tensor("block_ids").tolist()
                model, origin = json.loads(header["model"]), json.loads(header["origin"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); make the steering vector anew") from error
        unit = header.get("unit", "")
        if values.shape != (len(blocks), model["hidden_size"]) or unit not in UNITS or not np.isfinite(values).all():
            raise ArtifactError(f"{path} contradicts itself (shape {values.shape}, unit {unit!r}); make it anew")
        return cls(header["name"], tuple(blocks), values, unit, model, origin)


def make_vector(
    name: str,
    block_ids: Sequence[int],
    slices: np.ndarray,
    std: float,
    model: Mapping[str, Any],
    origin: Mapping[str, Any],
    *,
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Increments = "accumulate",
) -> SteeringVector:
    """Puts slices of a direction into the unit, blocks and increments asked for.

    Args:
        slices: (block_ids, hidden), the direction itself: what the unit `raw` adds at alpha = 1.
        std: standard deviation of the scores along it, for the unit `std`.
        unit: of alpha; in the unit `relative` each block's slice is scaled to unit norm.
        blocks: a subset of `block_ids`; None takes all of them.
        increments: `accumulate` adds the slice v_i at every block, so the stream at block i is moved by v_1 + ... + v_i
            (the paper's); `exact` adds v_i - v_(i-1), so that it is moved by v_i.
    Raises: UsageError: no such block, an unknown unit or way of increments, or nothing that could be added.
    """
    if unit not in UNITS:
        raise UsageError(f"unknown unit {unit!r}{nearest(unit, list(UNITS))}; allowed are {', '.join(UNITS)}")
    if increments not in get_args(Increments):
        raise UsageError(f"unknown increments {increments!r}; allowed are {', '.join(get_args(Increments))}")
    if increments == "exact" and unit == "relative":
        raise UsageError("exact increments need one scale for all blocks; use the unit raw or std, or accumulate")
    chosen = sorted(set(block_ids if blocks is None else blocks))
    if not chosen:
        raise UsageError(f"there is no block to steer; choose some of {list(block_ids)}")
    missing = [block for block in chosen if block not in block_ids]
    if missing:
        raise UsageError(f"{name} has no block {missing[0]}; it has {list(block_ids)}")
    values = np.stack([slices[list(block_ids).index(block)] for block in chosen]).astype(np.float32)
    if not np.isfinite(values).all() or not values.any():
        raise UsageError(f"{name} is zero or not finite at blocks {chosen}, so it cannot steer; choose other blocks")
    if unit == "std":
        if not (np.isfinite(std) and std > 0):
            raise UsageError(f"the scores along {name} do not vary, so there is no unit std; use raw or relative")
        values = values * np.float32(std)
    elif unit == "relative":
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    if increments == "exact":
        values = np.diff(values, axis=0, prepend=np.zeros_like(values[:1]))
    known = {key: model.get(key) for key in IDENTITY}
    made = {**origin, "increments": increments, "std": float(std)}
    return SteeringVector(name, tuple(chosen), values.astype(np.float32), unit, known, made)


def direction_vector(
    basis: SkillBasis,
    direction: int,
    sign: Literal["+", "-"] = "+",
    *,
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Increments = "accumulate",
) -> SteeringVector:
    """The steering vector of one direction of a basis (0-based); sign `-` steers against it. See `make_vector`.

    Raises: UsageError: no such direction or sign; and as `make_vector`.
    """
    if sign not in ("+", "-"):
        raise UsageError(f"the sign of a direction is '+' or '-', not {sign!r}")
    weights = {direction: 1.0 if sign == "+" else -1.0}
    return combined_vector(basis, weights, name=f"d{direction}{sign}", unit=unit, blocks=blocks, increments=increments)


def combined_vector(
    basis: SkillBasis,
    weights: Mapping[int, float],
    *,
    name: str | None = None,
    unit: Unit = "raw",
    blocks: Sequence[int] | None = None,
    increments: Increments = "accumulate",
) -> SteeringVector:
    """The unit direction along a weighted sum of directions of a basis. See `make_vector`.

    Args:
        weights: by 0-based direction; only their ratios and signs count.
    Raises: UsageError: no such direction, or no finite weight but zero; and as `make_vector`.
    """
    for direction in weights:
        basis.check_direction(direction)
    kept = {direction: float(weight) for direction, weight in sorted(weights.items()) if weight}
    if not kept or not np.isfinite(list(kept.values())).all():
        raise UsageError(f"the weights {dict(weights)} of a combination must be finite and not all zero")
    share = np.array(list(kept.values())) / np.linalg.norm(list(kept.values()))
    slices = np.tensordot(share, basis.directions[list(kept)].astype(np.float64), axes=1)
    length = np.linalg.norm(slices)  # 1 for orthogonal directions, up to rounding
    if length < _CANCELLED:
        raise UsageError(f"the weights {dict(weights)} make the directions cancel each other; give others")
    whole = np.zeros(basis.n_components)
    whole[list(kept)] = share
    slices, std = slices / length, basis.combined_std(whole) / float(length)
    name = name or "".join(f"{'+' if w > 0 else '-'}{abs(w):g}*d{k}" for k, w in kept.items()).removeprefix("+")
    origin = {"kind": "direction", "basis": basis.fingerprint, "weights": {str(k): w for k, w in kept.items()}}
    return make_vector(
        name, basis.block_ids, slices, std, basis.config, origin, unit=unit, blocks=blocks, increments=increments
    )


def random_vector(like: SteeringVector, seed: int) -> SteeringVector:
    """A random direction with the same norm in every block: the control of a steering experiment."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(like.values.shape)
    values *= like.norms[:, None] / np.linalg.norm(values, axis=1, keepdims=True)
    origin = {"kind": "random", "seed": seed, "norms_of": like.name}
    return replace(like, name=f"random-{seed}", values=values.astype(np.float32), origin=origin)
