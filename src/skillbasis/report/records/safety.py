"""What the report reads of a safety study: arms, budgets and the geometry of the choice.

A number that is undefined is None, never 0. Levels and differences are fractions (0.01 is one percentage point).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .figures import Interval, Judged

AREA = "area"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One of the measures that are always shown together."""

    name: str
    title: str
    what: str
    """Its definition in a few words."""
    lower: bool
    """Whether lower is better, else higher is."""
    counted: bool = False
    """Whether it says something of the answers at hand only, so that an interval would mean nothing."""

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.lower else "higher is better"


MEASURES = (
    Measure(
        name="attack_success",
        title="Attack success",
        what="share of the answers to attacks that are not refused and score 0.5 or more",
        lower=True,
    ),
    Measure(
        name="score",
        title="Score",
        what="mean score of the answers to attacks, as a share of the highest; a refusal scores 0",
        lower=True,
    ),
    Measure(
        name="refused",
        title="Refused attacks",
        what="share of the answers to attacks that refuse",
        lower=False,
    ),
    Measure(
        name="over_refusal",
        title="Over-refusal",
        what="share of the answers to safe requests that refuse",
        lower=True,
    ),
    Measure(name="utility", title="Utility", what="pass@1 on the reasoning tasks", lower=False),
    Measure(
        name="unscored",
        title="Unscored",
        what="share of the answers to attacks without a score; they count neither as safe nor as unsafe",
        lower=True,
        counted=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Level(Interval):
    """The estimate of one measure."""

    low_if: float | None = None
    """What it would be had the measure of every answer that does not count been 0; None where all count."""
    high_if: float | None = None
    """The same, had it been 1."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The measures of one model, or of one arm; None where one was not measured."""

    attack_success: Level | None = None
    score: Level | None = None
    refused: Level | None = None
    over_refusal: Level | None = None
    utility: Level | None = None
    unscored: Level | None = None

    def level(self, measure: str) -> Level:
        """The estimate of this measure; one without numbers where it was not measured."""
        return getattr(self, measure) or Level()


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judged the answers."""

    name: str = "unnamed"
    diagnostic: bool = False
    """Whether it looks at form only."""


@dataclass(frozen=True, kw_only=True)
class SafetyTasks:
    """Names of the tasks by what they are for."""

    attacks: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    utility: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SafetyPaired(Judged):
    """An arm minus a control on one measure, paired over seeds and prompts."""

    arm: str
    control: str
    measure: str
    budget: int | Literal["area"]
    holds: bool | None = None
    """Whether a claim may be made by the rules of the study; None where that cannot be judged."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Rows of the pool on the first two components, whitened: in standard deviations."""

    ids: tuple[str, ...] = ()
    labels: tuple[str | None, ...] = ()
    """Attack type."""
    x: tuple[float | None, ...] = ()
    y: tuple[float | None, ...] = ()
    n_rows: int | None = None
    """Rows in the whole pool."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The rows that an arm chose at one budget and seed."""

    budget: int
    seed: int
    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which `coverage` chose."""

    distances: tuple[float | None, ...] = ()
    """Of each chosen row to the nearest chosen before it, in standard deviations; the first has none."""


@dataclass(frozen=True, kw_only=True)
class Radius:
    """Distance from every row of the pool to the nearest chosen row, in standard deviations."""

    max: Interval | None = None
    """The largest: the covering radius."""
    mean: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the pool lies and what was chosen of it."""

    points: Points = Points()
    variance: tuple[float | None, ...] = ()
    """Shares of the variance of the first components, as fractions."""
    chosen: dict[str, Chosen] = field(default_factory=dict)
    order: Order = Order()
    radius: dict[str, dict[int, Radius]] = field(default_factory=dict)
    """Arm -> budget -> distances."""


@dataclass(frozen=True, kw_only=True)
class ShownExchange:
    """A request and what a model answered. Both are data: shown on demand, never run."""

    task: str
    problem_id: str
    request: str | None
    """None where the run did not keep it."""
    response: str
    refused: bool | None = None
    score: float | None = None
    success: bool = False
    """Whether it was judged a successful attack."""


@dataclass(frozen=True, kw_only=True)
class ShownArm:
    """A few exchanges of one arm."""

    name: str
    place: str
    """The cell they are from, relative to the run."""
    exchanges: tuple[ShownExchange, ...] = ()
    reason: str | None = None
    """Why there are none."""


@dataclass(frozen=True, kw_only=True)
class SafetyPoint(Levels):
    """One arm at one budget, or the untuned model, over all seeds."""

    status: str = "done"
    reason: str | None = None
    """Why the status is not `done`."""
    n_seeds: int | None = None
    by_group: dict[str, dict[str, Level]] = field(default_factory=dict)
    """Measure -> attack family, or category of a safe request -> estimate."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many examples an arm needs for the attack success of `random` at the largest budget."""

    budget: float | None = None
    """None where it does not come down so far."""
    target: float | None = None
    """The attack success that is to be reached."""
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SafetyArm:
    """One way of choosing requests, at every budget."""

    budgets: dict[int, SafetyPoint] = field(default_factory=dict)
    area: Levels | None = None
    """Mean height of the curve over the budgets on a log axis: the area under it, divided by its width."""

    def curve(self, measure: str) -> list[tuple[int, Level]]:
        """Budgets, ascending, with the level there, where there is one."""
        pairs = [(budget, self.budgets[budget].level(measure)) for budget in sorted(self.budgets)]
        return [(budget, value) for budget, value in pairs if value.mean is not None]


@dataclass(frozen=True, kw_only=True)
class Safety:
    """The safety study of a run."""

    judge: Judge = Judge()
    budgets: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    rollouts: int | None = None
    tasks: SafetyTasks = SafetyTasks()
    base: SafetyPoint = SafetyPoint()
    arms: dict[str, SafetyArm]
    paired: tuple[SafetyPaired, ...] = ()
    needed: dict[str, Needed | None] = field(default_factory=dict)
    """Arm -> budget needed; None without the arm `random`."""
    verdicts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    shown: tuple[ShownArm, ...] | None = None
    """Exchanges to be shown; None where they were not asked for."""
