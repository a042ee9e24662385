"""Studies whose answers are planted: graded tables of arms with known effects, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skillbasis.evaluate.results import TaskResult


def answers(correct: np.ndarray, clusters: list[str | None] | None = None) -> TaskResult:
    """A graded table from (problems, rollouts) bool; every answer has ten tokens."""
    ids = [f"p{i}" for i in range(len(correct))]
    zeros = np.zeros(correct.shape, dtype=bool)
    none: list[str | None] = [None] * len(ids)
    return TaskResult(
        "planted", ids, none, correct.astype(bool), np.full(correct.shape, 10), zeros, {}, none, clusters or none
    )


def planted_runs(
    effects: Mapping[str, float],
    *,
    n_seeds: int = 5,
    n_problems: int = 200,
    rollouts: int = 4,
    seed_sd: float = 0.01,
    seed: int = 0,
) -> dict[str, dict[int, TaskResult]]:
    """Arm -> seed -> answers; problems differ, arms differ by their effects, seeds by luck."""
    rng = np.random.default_rng(seed)
    easy = rng.uniform(0.1, 0.6, n_problems)
    runs: dict[str, dict[int, TaskResult]] = {}
    for arm, effect in effects.items():
        runs[arm] = {}
        for number in range(n_seeds):
            chance = np.clip(easy + effect + rng.normal(0, seed_sd), 0, 1)
            runs[arm][number] = answers(rng.random((n_problems, rollouts)) < chance[:, None])
    return runs


def row_of(paired: list[dict[str, Any]], a: str, control: str, metric: str = "pass@1") -> dict[str, Any]:
    (found,) = [row for row in paired if (row["a"], row["control"], row["metric"]) == (a, control, metric)]
    return found
