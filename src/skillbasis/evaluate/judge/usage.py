"""What a judge cost: answers, tokens and money, those from the cache apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import UsageError


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in whatever currency they are given in."""

    per_million_in: float
    """Of the prompt."""
    per_million_out: float
    """Of the answer, thoughts included where the endpoint counts them."""

    def __post_init__(self) -> None:
        for price in (self.per_million_in, self.per_million_out):
            if not 0 <= price < math.inf:
                raise UsageError(f"a price per million tokens must be a finite number of 0 or more, not {price}")


@dataclass
class Tally:
    """Answers of one origin."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers for which the endpoint counted no tokens: they are in no sum and no cost."""

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.answers += 1
        if prompt_tokens is None or completion_tokens is None:
            self.uncounted += 1
            return
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def cost(self, prices: Prices | None) -> float | None:
        """In the currency of the prices; None without prices."""
        if prices is None:
            return None
        return (self.prompt_tokens * prices.per_million_in + self.completion_tokens * prices.per_million_out) / 1e6


@dataclass
class Usage:
    """What a judge's work of this process cost; requests that gave no answer are not in it."""

    prices: Prices | None = None
    asked: Tally = field(default_factory=Tally)
    """Answers of the endpoint, those that could not be used included."""
    cached: Tally = field(default_factory=Tally)
    """Answers of an earlier run, which cost nothing again."""

    def as_json(self) -> dict[str, Any]:
        """`asked` and `cached`, each with answers, tokens and cost (null without prices)."""
        tallies: Mapping[str, Tally] = {"asked": self.asked, "cached": self.cached}
        return {name: asdict(tally) | {"cost": tally.cost(self.prices)} for name, tally in tallies.items()}

    def __str__(self) -> str:
        cost = self.asked.cost(self.prices)
        uncounted = f" ({self.asked.uncounted} answers came without a count)" if self.asked.uncounted else ""
        return (
            f"{self.asked.answers:,} answers asked for, {self.cached.answers:,} from the cache; "
            f"{self.asked.prompt_tokens:,} tokens in, {self.asked.completion_tokens:,} out{uncounted}"
            + ("" if cost is None else f", cost {cost:.4g}")
        )
