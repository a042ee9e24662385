"""What every selection strategy gets and returns, and the table of strategies.

A strategy is a function (candidates, budget, seed) -> ranked rows. Adding one is one function and one line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from ..basis import Scores
from ..corpus import Corpus, SelectedRow
from ..errors import SkillbasisError, UsageError, nearest
from ..evaluate.likelihood import Likelihood
from . import baselines, directions

Sign = Literal["+", "-"]
RankBy = Literal["cosine", "projection"]
SignedDirection = tuple[int, Sign]


@dataclass(frozen=True)
class SelectionSettings:
    """What strategies along directions need to know."""

    directions: tuple[SignedDirection, ...] = ()
    """Signed directions, such as ((3, "+"), (0, "-")); the budget is shared equally."""
    rank_by: RankBy = "cosine"
    top_share: float = 0.15
    """`directions` draws at random from this share of the corpus that ranks highest, so that a direction is covered
    and not only its extreme; 0 takes the very top. A share smaller than the budget is widened to it."""
    likelihood_share: float = 0.25
    """`directions+likelihood` takes the most likely rows of this share of the corpus that ranks highest."""

    def __post_init__(self) -> None:
        if self.rank_by not in get_args(RankBy):
            raise UsageError(f"unknown rank_by {self.rank_by!r}; allowed are {', '.join(get_args(RankBy))}")
        for name in ("top_share", "likelihood_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from and what is known of them; arrays are in corpus order."""

    ids: Sequence[str]
    labels: Sequence[Sequence[str]]
    """Human labels of each row."""
    scores: Scores | None = None
    likelihood: Likelihood | None = None
    settings: SelectionSettings = field(default_factory=SelectionSettings)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        scores: Scores | None = None,
        likelihood: Likelihood | None = None,
        settings: SelectionSettings | None = None,
    ) -> Candidates:
        """Brings scores and likelihoods into corpus order.

        Raises: ArtifactError: a row has no score or likelihood.
        """
        ids = corpus.ids
        return cls(
            ids,
            corpus.rows["labels"],
            scores.aligned(ids) if scores else None,
            likelihood.aligned(ids) if likelihood else None,
            settings or SelectionSettings(),
        )

    def ranking(self, direction: int, sign: Sign) -> np.ndarray:
        """How far each row lies along a signed direction, (n,), larger is further.

        Raises: UsageError: there are no scores, or no such direction.
        """
        if self.scores is None:
            raise UsageError("this strategy needs scores; make them with skillbasis score and give --scores")
        if not 0 <= direction < self.scores.values.shape[1]:
            raise UsageError(
                f"direction {direction} does not exist; the scores have 0 to {self.scores.values.shape[1] - 1}"
            )
        table = self.scores.cosine if self.settings.rank_by == "cosine" else self.scores.values
        return table[:, direction] * (1.0 if sign == "+" else -1.0)

    @property
    def signed_directions(self) -> tuple[SignedDirection, ...]:
        """Raises: UsageError: none were chosen."""
        if not self.settings.directions:
            raise UsageError("this strategy needs directions; give --direction 3+ (skillbasis probe finds good ones)")
        return self.settings.directions

    @property
    def mean_nll(self) -> np.ndarray:
        """(n,) mean negative log-likelihood of each response; infinite where none was read, so ranked last.

        Raises: UsageError: not measured.
        """
        if self.likelihood is None:
            raise UsageError("this strategy needs likelihoods; give --model, or --likelihood with a measured table")
        return np.nan_to_num(self.likelihood.mean_nll, nan=np.inf)  # type: ignore[no-any-return]


Strategy = Callable[[Candidates, int, np.random.Generator], list[SelectedRow]]

STRATEGIES: dict[str, Strategy] = {
    "directions": directions.along_directions,
    "directions+likelihood": directions.along_directions_by_likelihood,
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


def parse_direction(text: str) -> SignedDirection:
    """Reads a signed direction such as `3+` or `0-`; a bare number is positive.

    Raises: UsageError: not of that form.
    """
    match = re.fullmatch(r"d?(\d+)([+-]?)", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no signed direction; write a number and a sign, such as 3+ or 0-")
    return int(match[1]), "-" if match[2] == "-" else "+"


def describe(settings: SelectionSettings, strategy: str) -> dict[str, Any]:
    """The settings a strategy used, for the record beside a selection."""
    how: dict[str, Any] = {"strategy": strategy}
    if strategy in NEEDS_DIRECTIONS:
        how |= {"directions": [f"{k}{sign}" for k, sign in settings.directions], "rank_by": settings.rank_by}
        share = "top_share" if strategy == "directions" else "likelihood_share"
        how[share] = getattr(settings, share)
    return how
