"""The table of selection strategies, and choosing by one of them.

A strategy is a function (candidates, budget, random numbers) -> ranked rows; adding one is one file and one line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from ..corpus import SelectedRow
from ..errors import SkillbasisError, UsageError, nearest
from . import (
    baselines,
    coverage,
    deita,
    directions,
    facility,
    labelled,
    likelihoods,
    own,
    query,
    reread,
    texts,
    weakness,
)
from .candidates import Candidates, SelectionSettings
from .shortage import TooFewRows

Choose = Callable[[Candidates, int, np.random.Generator], list[SelectedRow]]
Unit = Literal["rows", "tokens"]
Need = Literal[
    "scores",
    "directions",
    "likelihood",
    "likelihood alone",
    "reread along directions",
    "reread by likelihood",
    "tokens",
    "own answers",
    "validation",
    "quality",
    "query",
]
"""What a strategy reads beside ids, labels and texts. `likelihood alone` is that of the response without its prompt;
`reread`, that under the model which a first selection made; `validation`, the model's graded answers to validation
problems."""


@dataclass(frozen=True)
class Strategy:
    """A way to choose rows."""

    choose: Choose
    needs: tuple[Need, ...] = ()
    settings: tuple[str, ...] = ()
    """The selection settings it heeds."""
    nested: bool = False
    """Whether a smaller budget gives the first rows of a larger one (with the same seed)."""
    native: bool = False
    """Whether it reads the directions of the basis."""


_ALONG = ("directions", "weights", "rank_by", "top_share", "temperature")
_LIKELY_ALONG = ("directions", "weights", "rank_by", "likelihood_share", "cells")
STRATEGIES: dict[str, Strategy] = {
    # along the directions of the basis
    "directions": Strategy(directions.along_directions, ("scores", "directions"), _ALONG, native=True),
    "directions+likelihood": Strategy(
        directions.along_directions_by_likelihood,
        ("scores", "directions", "likelihood"),
        _LIKELY_ALONG,
        native=True,
    ),
    "directions+reread": Strategy(
        reread.directions_reread, ("reread along directions",), _LIKELY_ALONG, nested=True, native=True
    ),
    "weakness": Strategy(weakness.weakest_rows, ("scores", "validation"), _ALONG[2:], native=True),
    "weakness-rounds": Strategy(
        weakness.needs_training, ("scores", "validation"), (*_ALONG[2:], "rounds"), native=True
    ),
    "coverage": Strategy(coverage.covering_rows, ("scores",), nested=True, native=True),
    "coverage+quality": Strategy(
        coverage.covering_best_rows, ("scores", "likelihood"), ("quality_share",), nested=True, native=True
    ),
    # what they have to beat
    "random": Strategy(baselines.random_rows, nested=True),
    "random-length-matched": Strategy(baselines.random_length_matched, ("tokens",)),
    "length": Strategy(baselines.longest_rows, ("tokens",), nested=True),
    "low-nll": Strategy(likelihoods.low_nll, ("likelihood",), nested=True),
    "low-nll+reread": Strategy(reread.low_nll_reread, ("reread by likelihood",), nested=True),
    "perplexity": Strategy(likelihoods.perplexity_band, ("likelihood",), ("band",), nested=True),
    "ifd": Strategy(likelihoods.instruction_difficulty, ("likelihood", "likelihood alone"), nested=True),
    "rft": Strategy(own.own_correct_answers, ("own answers",), nested=True),
    "s1-like": Strategy(labelled.s1_like, ("own answers", "tokens"), nested=True),
    "human-balanced": Strategy(labelled.human_balanced),
    "human-weakness": Strategy(labelled.human_weakness, ("validation",), ("max_weight",)),
    "text-diversity": Strategy(texts.diverse_texts, (), ("text_encoder",), nested=True),
    "facility-location": Strategy(facility.representing_rows, (), ("text_encoder",), nested=True),
    "deita": Strategy(deita.good_and_unlike_rows, ("quality",), ("max_similarity", "text_encoder"), nested=True),
    "rds+": Strategy(query.nearest_rows, ("query",), ("aggregate",), nested=True),
    "crds": Strategy(query.nearest_rows_whitened, ("query",), ("aggregate",), nested=True),
}


@dataclass(frozen=True)
class Arm:
    """A named way to choose rows: a strategy, and the selection settings in which it departs from the others."""

    name: str
    strategy: str
    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        known = [field.name for field in fields(SelectionSettings)]
        for key, _ in self.changes:
            if key not in known:
                raise UsageError(f"arm {self.name} changes {key!r}, which is no setting{nearest(key, known)}")
        if not self.name or self.name != self.name.strip() or "/" in self.name:
            raise UsageError(f"{self.name!r} is no name for an arm; it becomes a folder, so use no slash")

    @classmethod
    def of(cls, value: str | Arm) -> Arm:
        """An arm as it is, or a strategy with the settings of all."""
        return cls(value, value) if isinstance(value, str) else value

    def choose(self, candidates: Candidates, budget: int, seed: int, unit: Unit = "rows") -> list[SelectedRow]:
        """Its rows; see `select`."""
        known = candidates.with_settings(self.settings(candidates.settings))
        return select(known, self.strategy, budget, seed, unit=unit)

    def settings(self, given: SelectionSettings) -> SelectionSettings:
        """What is given, with its changes; the shares of other directions than its own do not count."""
        changes = dict(self.changes)
        return replace(given, **({"weights": ()} if "directions" in changes else {}) | changes)

    @property
    def needs_directions(self) -> bool:
        """Whether directions must come from elsewhere."""
        return "directions" in STRATEGIES[self.strategy].needs and "directions" not in dict(self.changes)


ChooseRows = Callable[[Arm, Candidates, int, int, Unit], list[SelectedRow]]
"""(arm, candidates, budget, seed, unit) -> rows: `Arm.choose`, or what trains in between."""


def check_strategy(name: str) -> None:
    """Raises: UsageError: an unknown strategy, with the nearest name."""
    if name not in STRATEGIES:
        known = list(STRATEGIES)
        raise UsageError(f"unknown strategy {name!r}{nearest(name, known)}; allowed are {', '.join(known)}")


def check_budget(budget: int, unit: Unit, n_all: int | None = None) -> None:
    """Raises: UsageError: an unknown unit, or a budget below 1 or above the `n_all` rows or tokens of the pool."""
    if unit not in get_args(Unit):
        raise UsageError(f"unknown unit {unit!r} of the budget; allowed are {', '.join(get_args(Unit))}")
    if budget < 1:
        raise UsageError(f"the budget must be at least 1 {unit[:-1]}, not {budget}")
    if n_all is not None and budget > n_all:
        raise UsageError(f"the budget of {budget} {unit} is above the pool of {n_all}; choose a smaller one")


def needs_of(names: Collection[str]) -> set[Need]:
    """What any of the strategies reads. Raises: UsageError: an unknown one."""
    for name in names:
        check_strategy(name)
    return {need for name in names for need in STRATEGIES[name].needs}


def select(candidates: Candidates, strategy: str, budget: int, seed: int, *, unit: Unit = "rows") -> list[SelectedRow]:
    """Chooses rows by a named strategy.

    Args:
        budget: number of rows, or of tokens of prompt and response.
        seed: the same seed gives the same rows in the same order.
        unit: what the budget counts. A budget of tokens takes the most rows that the strategy gives without
            exceeding it; what is left is less than the next row.
    Returns: different rows, ranked; `budget` many where rows are counted.
    Raises: UsageError: unknown strategy, a budget below 1 or above the pool, or something the strategy needs is
        missing.
    """
    check_strategy(strategy)
    check_budget(budget, unit, int(candidates.tokens.sum()) if unit == "tokens" else len(candidates.ids))
    if unit == "tokens":
        return _within_tokens(candidates, strategy, budget, seed)
    rows = STRATEGIES[strategy].choose(candidates, budget, np.random.default_rng(seed))
    if len(rows) != budget or len({row.id for row in rows}) != budget:
        raise SkillbasisError(f"strategy {strategy} gave {len(rows)} rows for a budget of {budget}; this is a defect")
    return rows


def _within_tokens(candidates: Candidates, strategy: str, budget: int, seed: int) -> list[SelectedRow]:
    """The most rows whose tokens stay within the budget, found by bisection over the number of rows.

    A ranking that does not depend on the budget is made once, at the largest number of rows that may be needed.
    """
    most = len(candidates.ids)
    # Doubling from what rows of mean length would give: most strategies take about that many.
    low, high, best = 0, min(most, max(1, int(budget / candidates.tokens.mean()))), list[SelectedRow]()
    while True:
        try:
            rows = select(candidates, strategy, high, seed)
        except TooFewRows as few:
            if few.available == 0:
                raise
            most = high = few.available
            continue
        cost = np.cumsum(candidates.tokens_of(rows))
        if cost[-1] > budget:
            break
        low, best = high, rows
        if cost[-1] == budget:
            return best
        if high == most:
            raise UsageError(
                f"{strategy} gives {len(best)} rows of {cost[-1]} tokens in all, below the budget of {budget} tokens; "
                "lower it"
            )
        high = min(most, 2 * high)
    if STRATEGIES[strategy].nested:
        best = rows[: int(np.searchsorted(cost, budget, side="right"))]
    else:
        while high - low > 1:
            middle = (low + high) // 2
            rows = select(candidates, strategy, middle, seed)
            if candidates.tokens_of(rows).sum() <= budget:
                low, best = middle, rows
            else:
                high = middle
    if not best:
        raise UsageError(f"{strategy} takes a row longer than the budget of {budget} tokens first; raise it")
    return best


def describe(settings: SelectionSettings, strategy: str) -> dict[str, Any]:
    """The settings a strategy heeds, for the record beside a selection."""
    how: dict[str, Any] = {"strategy": strategy}
    for name in STRATEGIES[strategy].settings:
        value = getattr(settings, name)
        how[name] = [f"{k}{sign}" for k, sign in value] if name == "directions" else value
    return how
