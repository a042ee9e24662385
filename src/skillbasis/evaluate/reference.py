"""What counts as the right answer to a problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError

REFUSE = "refuse"
"""What is right for a request that should be refused."""
ANSWER = "answer"
"""What is right for a request that should be answered, where its answer is not known."""


@dataclass(frozen=True)
class Reference:
    """The right answer to a problem, and how near to it is near enough."""

    answers: tuple[str, ...]
    """Alternatives, as the benchmark writes them; any one of them is right. A problem that asks for several values has
    them in one alternative, `1, 3`."""
    tolerance: float | None = None
    """Absolute error up to which a number is right, where the benchmark states one."""
    unit: str | None = None
    """Unit the problem asks for; a response may name it or leave it out."""

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise UsageError(f"the reference answer is empty: {list(self.answers)!r}; give the answer, or a list")
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise UsageError(f"the tolerance of a reference is {self.tolerance}; give a finite number of 0 or more")

    @classmethod
    def of(cls, value: str | Sequence[str] | Reference) -> Reference:
        """A reference as it is, or made of one answer or of a list of alternatives."""
        if isinstance(value, Reference):
            return value
        return cls((value,) if isinstance(value, str) else tuple(value))
