"""What a sweep tries: every vector at every scope and strength, and random vectors of the same norms beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ..hooks import Scope, check_scope
from ..vectors import SteeringVector, random_vector
from .dose import RANDOM
from .measure import ACCURACY, TARGET, parse_target


@dataclass(frozen=True)
class SweepSettings:
    """Where and how strongly, what counts, and how many random vectors."""

    alphas: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Strengths, in the unit of each vector; negative ones steer against it."""
    scopes: tuple[Scope, ...] = ("last-prompt", "all")
    target: str = ACCURACY
    """`accuracy`, or `pattern:REGEX`: the share of answers that match, measured beside accuracy."""
    metric: str | None = None
    """What the winner is chosen by: `pass@K` or `target`; None takes the target where it is a pattern, else pass@1."""
    n_random: int = 3
    """Random vectors of the same norm per block, at every strength and scope of the validation problems."""
    n_controls: int = 19
    """Random vectors at the winner's setting on the test problems; 19 make a rank p of 0.05 possible."""
    max_broken_rise: float = 0.05
    """A setting is usable where the share of broken answers is above the unsteered model's by no more than this."""
    seed: int = 0
    """Of the random vectors."""

    def __post_init__(self) -> None:
        if not self.alphas or not self.scopes:
            raise UsageError("a sweep needs at least one alpha and one scope")
        for scope in self.scopes:
            check_scope(scope)
        for alpha in self.alphas:
            if not math.isfinite(alpha) or alpha == 0:
                raise UsageError(f"alpha {alpha:g} steers nothing; give finite strengths other than 0")
        for name, values in (("alpha", self.alphas), ("scope", self.scopes)):
            if len(set(values)) < len(values):
                raise UsageError(f"a sweep was given one {name} twice ({', '.join(map(str, values))}); give each once")
        if self.n_random < 0 or self.n_controls < 0 or not 0 <= self.max_broken_rise <= 1:
            raise UsageError("n_random and n_controls must be 0 or more, and max_broken_rise a share from 0 to 1")
        if parse_target(self.target) is None and self.metric == TARGET:
            raise UsageError(
                "the metric target needs a target that is a pattern; give pattern:REGEX, or another metric"
            )

    @property
    def chosen_by(self) -> str:
        """The metric that ranks."""
        return self.metric or ("pass@1" if self.target == ACCURACY else TARGET)


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    vector: SteeringVector | None
    """None is the unsteered model."""
    kind: str
    scope: Scope = "all"
    alpha: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        name = "none" if self.vector is None else self.vector.name
        return {"vector": name, "kind": self.kind, "scope": self.scope, "alpha": self.alpha}


UNSTEERED = Setting(None, "base")


def plan_points(vectors: Sequence[SteeringVector], settings: SweepSettings) -> list[Setting]:
    """Every vector at every scope and strength, and beside them random vectors of every norm there is."""
    named = [(vector, _kind(vector)) for vector in vectors]
    for number, like in enumerate(_of_different_norms(vectors)):
        seeds = range(number * settings.n_random, (number + 1) * settings.n_random)
        named += [(_random(like, settings.seed + seed, vectors), RANDOM) for seed in seeds]
    return [
        Setting(vector, kind, scope, alpha)
        for scope in settings.scopes
        for alpha in settings.alphas
        for vector, kind in named
    ]


def _kind(vector: SteeringVector) -> str:
    """Where a vector comes from; a random one that is swept like any other is a `vector`, not a control."""
    kind = str(vector.origin.get("kind", "vector"))
    return "vector" if kind == RANDOM else kind


def _of_different_norms(vectors: Sequence[SteeringVector]) -> list[SteeringVector]:
    """The first of all vectors that add as much, in one unit, to the same blocks: they share random controls."""
    found: list[SteeringVector] = []
    for vector in vectors:
        alike = (v for v in found if (v.unit, v.block_ids) == (vector.unit, vector.block_ids))
        if not any(np.allclose(v.norms, vector.norms, rtol=1e-4) for v in alike):
            found.append(vector)
    return found


def _random(like: SteeringVector, seed: int, vectors: Sequence[SteeringVector]) -> SteeringVector:
    """A random vector whose name no given vector has."""
    control = random_vector(like, seed)
    names = {vector.name for vector in vectors}
    return replace(control, name=f"control-{seed}") if control.name in names else control


def plan_controls(winner: Setting, vectors: Sequence[SteeringVector], settings: SweepSettings) -> list[Setting]:
    """Random vectors at the winner's setting, none of which was seen on the validation problems."""
    assert winner.vector is not None
    first = settings.seed + len(_of_different_norms(vectors)) * settings.n_random
    seeds = range(first, first + settings.n_controls)
    return [replace(winner, vector=_random(winner.vector, seed, vectors), kind=RANDOM) for seed in seeds]


def steered_blocks(settings: Sequence[Setting]) -> tuple[int, ...]:
    return tuple(sorted({block for setting in settings if setting.vector for block in setting.vector.block_ids}))
