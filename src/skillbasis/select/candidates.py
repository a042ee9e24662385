"""What a selection strategy gets: the rows to choose from, what is known of them, and which directions are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ..basis import Scores
from ..corpus import Corpus
from ..errors import UsageError
from ..evaluate.likelihood import Likelihood

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

    @property
    def known_scores(self) -> Scores:
        """Raises: UsageError: there are none."""
        if self.scores is None:
            raise UsageError("this strategy needs scores; make them with skillbasis score and give --scores")
        return self.scores

    def ranking(self, direction: int, sign: Sign) -> np.ndarray:
        """How far each row lies along a signed direction, (n,), larger is further.

        Raises: UsageError: there are no scores, or no such direction.
        """
        scores = self.known_scores
        if not 0 <= direction < scores.values.shape[1]:
            raise UsageError(f"direction {direction} does not exist; the scores have 0 to {scores.values.shape[1] - 1}")
        table = scores.cosine if self.settings.rank_by == "cosine" else scores.values
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


def parse_direction(text: str) -> SignedDirection:
    """Reads a signed direction such as `3+` or `0-`; a bare number is positive.

    Raises: UsageError: not of that form.
    """
    match = re.fullmatch(r"d?(\d+)([+-]?)", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no signed direction; write a number and a sign, such as 3+ or 0-")
    return int(match[1]), "-" if match[2] == "-" else "+"
