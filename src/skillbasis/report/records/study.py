"""What the report reads of a study: arms, paired differences and verdicts, per task.

A number that is undefined is None, never 0. Differences and metrics are fractions (0.01 is one percentage point).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .figures import Difference, Interval, Judged, Measured


@dataclass(frozen=True, kw_only=True)
class Arm(Measured):
    """One way of choosing training rows (or `base`, the model untuned), over all seeds."""

    n_rows: int | float | None = None
    """Mean over seeds, where a budget of tokens gives each another number."""
    training_tokens: float | None = None
    """Tokens of the chosen rows, mean over seeds."""
    mean_tokens: float | None = None
    """Of an answer."""
    cost_seconds: float | None = None
    selection_seconds: float | None = None
    training_seconds: float | None = None
    answering_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Paired(Judged):
    """Arm a minus arm b on one metric, paired over seeds and problems."""

    a: str
    b: str
    metric: str
    control: str | None = None
    """The role of b: `random`, `best-human`, `low-nll` or `rft`."""
    relative: Interval | None = None
    """The change as a fraction of b's level."""

    @property
    def separated(self) -> bool:
        """As the study judged, which also asks for the interval over problems and for more than one seed."""
        return super().separated if self.problems is None else self.verdict in ("better", "worse")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Arms by seeds on one task, compared in pairs."""

    arms: dict[str, Arm]
    paired: tuple[Paired, ...] = ()
    verdicts: dict[str, str] = field(default_factory=dict)
    n_problems: int | None = None
    best_human: str | None = None
    """The human-skill arm with the highest mean, one of the controls."""

    @property
    def metric_names(self) -> list[str]:
        """The metrics any arm was measured on, by k."""
        names = {name for arm in self.arms.values() for name in arm.metrics}
        return sorted(names, key=lambda name: (len(name), name))

    @property
    def controls(self) -> list[str]:
        """The arms that others are compared with, in the order recorded."""
        return list(dict.fromkeys(paired.b for paired in self.paired))

    def difference(self, a: str, b: str, metric: str = "pass@1") -> Difference | None:
        """Arm a minus arm b, whichever way round it was recorded; None where it was not."""
        for paired in self.paired:
            if paired.metric == metric and (paired.a, paired.b) == (a, b):
                return paired
            if paired.metric == metric and (paired.a, paired.b) == (b, a):
                return -paired
        return None

    def verdict_word(self, a: str, b: str, metric: str = "pass@1") -> str | None:
        """`better`, `worse` or `not separated`; None where that was not recorded."""
        words = (row.verdict for row in self.paired if (row.a, row.b, row.metric) == (a, b, metric))
        return next(words, None)


@dataclass(frozen=True, kw_only=True)
class Study(Compared):
    """The study: its first task, and every task under `tasks`."""

    task: str | None = None
    rollouts: int | None = None
    budget: int | None = None
    budget_unit: str = "rows"
    seeds: tuple[int, ...] = ()
    tasks: dict[str, Compared] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: tuple[Study, ...] = ()
    """The same at other budgets."""

    @property
    def parts(self) -> list[tuple[str | None, Compared]]:
        """Every task by name, at every budget; the study itself where it was recorded for one alone."""
        found: list[tuple[str | None, Compared]] = []
        for study in (self, *self.others):
            tasks: list[tuple[str | None, Compared]] = [*study.tasks.items()] or [(study.task, study)]
            size = f" at {study.budget:,} {study.budget_unit}" if self.others and study.budget is not None else ""
            found += [(f"{name}{size}" if name else name, part) for name, part in tasks]
        return found


@dataclass(frozen=True, kw_only=True)
class Contestant(Measured):
    """One way of selecting, as it did on the validation problems."""

    name: str
    native: bool = False
    verdict: str | None = None
    difference_to_random: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Which way of selecting was chosen for the model."""

    sentence: str
    arms: tuple[Contestant, ...]
    budget: int | None = None
    budget_unit: str = "rows"
    ranking: tuple[str, ...] = ()
    finalists: tuple[str, ...] = ()
    task: str | None = None

    @property
    def ranked(self) -> list[Contestant]:
        """Best first."""
        place = {name: i for i, name in enumerate(self.ranking)}
        return sorted(self.arms, key=lambda arm: place.get(arm.name, len(place)))
