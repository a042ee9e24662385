"""What the report says of steering: one frozen dataclass per record of `sweep.json`, older files included."""

from __future__ import annotations

from dataclasses import dataclass, field

from .figures import Difference, Interval, Measured

TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class SweepDifference(Difference):
    """A setting minus the unsteered model on one metric, paired by problem."""

    metric: str
    relative: float | None = None
    """As a share of the unsteered model's mean."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What steering does to the model's reading of held-out text."""

    perplexity: float | None = None
    kl: float | None = None
    """Mean divergence of the steered from the unsteered predictions, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class SweepMeasured(Measured):
    """Answers to a task under one setting, or unsteered; files of earlier versions lack what has a default."""

    mean_tokens: float | None = None
    broken_fraction: float | None = None
    """Share of answers that are cut or end in a loop."""
    target_rate: Interval | None = None
    """Share of answers that match the target's pattern, where it is one."""
    damage: Damage | None = None
    differences: tuple[SweepDifference, ...] = ()

    def metric(self, name: str) -> Interval:
        """The estimate of `pass@K` or `target`; one without numbers where it was not measured."""
        return (self.target_rate or Interval()) if name == TARGET else super().metric(name)


@dataclass(frozen=True, kw_only=True)
class SweepPoint(SweepMeasured):
    """One vector at one strength."""

    vector: str
    kind: str
    """`random` for controls; `direction`, or another origin, for what is tried."""
    scope: str
    alpha: float
    difference: Difference | None = None
    """In pass@1 to the baseline, unsteered."""
    unusable: str | None = None
    """Why the setting is not usable."""
    added_fraction: dict[str, float | None] = field(default_factory=dict)
    """By block: norm of what is added, as a fraction of the residual stream's."""

    @property
    def added(self) -> float | None:
        """The largest of the fractions; None where none was recorded."""
        return max((value for value in self.added_fraction.values() if value is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class UsableRange:
    """The strengths up to which one vector is usable in one scope, in words."""

    sentence: str


@dataclass(frozen=True, kw_only=True)
class SweepTest:
    """The chosen setting on test problems, beside random vectors of its norm."""

    winner: SweepMeasured
    baseline: SweepMeasured
    controls: tuple[SweepPoint, ...] = ()
    task: str | None = None
    n_problems: int | None = None
    p_value: float | None = None
    """Rank of the winner among the random vectors, one-sided."""
    claim: str | None = None

    def levels(self, metric: str) -> list[float]:
        """Means of the random vectors, ascending, without those that failed."""
        return sorted(mean for control in self.controls if (mean := control.metric(metric).mean) is not None)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Steering: what was measured against strength."""

    points: tuple[SweepPoint, ...]
    baseline: SweepMeasured = SweepMeasured()
    unit: str | None = None
    task: str | None = None
    rollouts: int | None = None
    n_problems: int | None = None
    notes: tuple[str, ...] = ()
    finding: str | None = None
    """The result in one or two sentences."""
    n_settings: int | None = None
    """How many settings the winner was chosen from."""
    perplexity_unsteered: float | None = None
    usable: tuple[UsableRange, ...] = ()
    test: SweepTest | None = None

    @property
    def scopes(self) -> list[str]:
        """The scopes swept, in the order of the file."""
        return list(dict.fromkeys(point.scope for point in self.points))

    @property
    def metrics(self) -> list[str]:
        """What the page shows: pass@1, pass@K for the largest K, and the target's share where one was measured."""
        names = sorted(self.baseline.metrics, key=lambda name: (len(name), name))
        shown = list(dict.fromkeys(["pass@1", *names[-1:]]))
        return shown + [TARGET] * (self.baseline.target_rate is not None)
