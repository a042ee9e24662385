"""The table of selection strategies, and choosing by one of them.

A strategy is a function (candidates, budget, random numbers) -> ranked rows; adding one is one function and one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..corpus import SelectedRow
from ..errors import SkillbasisError, UsageError, nearest
from . import baselines, coverage, directions
from .candidates import Candidates, SelectionSettings

Strategy = Callable[[Candidates, int, np.random.Generator], list[SelectedRow]]

STRATEGIES: dict[str, Strategy] = {
    "directions": directions.along_directions,
    "directions+likelihood": directions.along_directions_by_likelihood,
    "coverage": coverage.covering_rows,
    "low-nll": baselines.low_nll,
    "random": baselines.random_rows,
    "human-balanced": baselines.human_balanced,
}
NEEDS_LIKELIHOOD = frozenset({"low-nll", "directions+likelihood"})
NEEDS_DIRECTIONS = frozenset({"directions", "directions+likelihood"})


def check_strategy(name: str) -> None:
    """Raises: UsageError: an unknown strategy, with the nearest name."""
    if name not in STRATEGIES:
        known = list(STRATEGIES)
        raise UsageError(f"unknown strategy {name!r}{nearest(name, known)}; allowed are {', '.join(known)}")


def select(candidates: Candidates, strategy: str, budget: int, seed: int) -> list[SelectedRow]:
    """Chooses rows by a named strategy.

    Args:
        budget: number of rows.
        seed: the same seed gives the same rows in the same order.
    Returns: `budget` different rows, ranked.
    Raises: UsageError: unknown strategy, a budget below 1 or above the pool, or something the strategy needs is
        missing.
    """
    check_strategy(strategy)
    if budget < 1:
        raise UsageError(f"the budget must be at least 1 row, not {budget}")
    if budget > len(candidates.ids):
        raise UsageError(
            f"the budget of {budget} rows is above the pool of {len(candidates.ids)}; choose a smaller one"
        )
    rows = STRATEGIES[strategy](candidates, budget, np.random.default_rng(seed))
    if len(rows) != budget or len({row.id for row in rows}) != budget:
        raise SkillbasisError(f"strategy {strategy} gave {len(rows)} rows for a budget of {budget}; this is a defect")
    return rows


def describe(settings: SelectionSettings, strategy: str) -> dict[str, Any]:
    """The settings a strategy used, for the record beside a selection."""
    how: dict[str, Any] = {"strategy": strategy}
    if strategy in NEEDS_DIRECTIONS:
        how |= {"directions": [f"{k}{sign}" for k, sign in settings.directions], "rank_by": settings.rank_by}
        share = "top_share" if strategy == "directions" else "likelihood_share"
        how[share] = getattr(settings, share)
    return how
