"""The figures that all records of a report are made of: estimates, paired differences, what was measured.

A number that is undefined is None, never 0. Differences and metrics are fractions (0.01 is one percentage point).
"""

from __future__ import annotations

from dataclasses import dataclass, field

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its interval; each number is None where it is undefined."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[float | None, ...] = ()
    """One estimate per training seed, where the estimate is a mean over seeds."""

    @property
    def bounded(self) -> bool:
        """Whether the estimate and both ends of its interval are defined."""
        return self.mean is not None and self.low is not None and self.high is not None


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """A paired difference, as a fraction (0.01 is one percentage point)."""

    p_value: float | None = None
    p_holm: float | None = None
    """The p-value after Holm's correction over the comparisons made together."""
    minimum_detectable: float | None = None
    """The smallest true difference that 80 % of such studies would find by the test behind this interval."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is defined and lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero and Holm's correction, where made, leaves p below 0.05."""
        return self.excludes_zero and (self.p_holm is None or self.p_holm < ALPHA)

    def __neg__(self) -> Difference:
        """The same comparison seen from the other side: b - a."""
        mean, low, high = (None if value is None else -value for value in (self.mean, self.high, self.low))
        return Difference(mean=mean, low=low, high=high, p_value=self.p_value, p_holm=self.p_holm)


@dataclass(frozen=True, kw_only=True)
class Judged(Difference):
    """A paired difference over seeds, that over problems beside it, and what a study says of both."""

    problems: Difference | None = None
    """The same difference with its interval over problems (or prompts)."""
    n_seeds: int | None = None
    verdict: str | None = None
    """`better`, `worse` or `not separated`; None where it cannot be judged."""

    @property
    def detectable(self) -> float | None:
        """The larger of the differences that the tests over seeds and over problems would find: a claim needs both."""
        beside = self.problems.minimum_detectable if self.problems else None
        return max((value for value in (self.minimum_detectable, beside) if value is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Something that was evaluated, or that failed."""

    status: str = "done"
    reason: str | None = None
    """Why the status is not `done`."""
    metrics: dict[str, Interval | None] = field(default_factory=dict)
    """`pass@k` -> estimate, a fraction from 0 to 1."""
    n_unscored: int | None = None
    """Responses no grader could score."""
    truncated_fraction: float | None = None
    """Fraction of responses cut at the token limit."""

    def metric(self, name: str) -> Interval:
        """The estimate of this name; one without numbers where it was not measured."""
        return self.metrics.get(name) or Interval()
