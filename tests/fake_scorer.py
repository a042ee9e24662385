"""A world of directions whose effects are planted: answers what cells would have, by random numbers alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from skillbasis.halving import Asked

BASE = 0.4


class FakeScorer:
    """Problems of different difficulty, effects by direction, luck of each pilot, and binomial answers."""

    def __init__(
        self,
        effects: Mapping[str, float],
        seed: int,
        *,
        pilot_sd: float = 0.02,
        vector_sd: float = 0.0,
        n_problems: int = 160,
        failing: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.effects = dict(effects)
        self.pilot_sd = pilot_sd
        self.vector_sd = vector_sd
        self.ease = 0.2 * np.tanh(self.rng.normal(0, 1.5, n_problems))  # (problems,)
        self.failing = failing
        self.asked: list[tuple[str, int]] = []

    def share(self, effect: float) -> np.ndarray:
        """True pass@1 of every problem."""
        return np.clip(BASE + effect + self.ease, 0.01, 0.99)

    def truth(self, name: str) -> float:
        return float(self.share(self.effects.get(name, 0.0)).mean())

    def cell(self, name: str) -> np.ndarray:
        luck = self.rng.normal(0, self.pilot_sd) + (self.rng.normal(0, self.vector_sd) if name == "random" else 0)
        return self.rng.binomial(4, self.share(self.effects.get(name, 0.0) + luck)) / 4

    def __call__(self, asked: Asked) -> dict[tuple[str, int], np.ndarray | None]:
        self.asked += asked
        return {key: None if key in self.failing else self.cell(key[0]) for key in asked}


class Repeatable(FakeScorer):
    """The same cell gives the same answers whenever it is asked for, as finished cells do."""

    def __call__(self, asked: Asked) -> dict[tuple[str, int], np.ndarray | None]:
        found = {}
        for name, number in asked:
            self.rng = np.random.default_rng([zlib.crc32(name.encode()), number])
            found |= super().__call__([(name, number)])
        return found
