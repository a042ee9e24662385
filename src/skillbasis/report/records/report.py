"""What a report is made of: one frozen dataclass per record of the run directory's artifacts.

A number that is undefined is None, never 0. Differences and metrics are fractions (0.01 is one percentage point).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .basis import BasisFacts, ComparisonFile, ScoreSample
from .directions import Direction, Interpretation, LabelAreas
from .figures import Difference, Measured
from .safety import Safety
from .study import Contest, Study
from .sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the run."""

    name: str
    seconds: float | None = None
    peak_memory_mb: float | None = None
    reused: bool = False
    """Whether an earlier result with the same inputs was taken."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What run.json says of the whole run."""

    title: str | None = None
    model: str | None = None
    corpus: str | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Time of all stages together; None where none was recorded."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known else None


@dataclass(frozen=True, kw_only=True)
class ActivationFacts:
    """What was extracted."""

    block_ids: tuple[int, ...]
    rows: int
    hidden_size: int
    pooling: str | None = None
    span: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    n_truncated: int | None = None
    """Rows cut at the maximum length."""
    n_tokens: int | None = None
    n_skipped: int | None = None
    """Rows of the corpus that could not be read by the model."""
    model: str | None = None
    revision: str | None = None
    weights_fingerprint: str | None = None
    corpus_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage on the way of the data: what came of it and what it cost."""

    name: str
    what: str
    """What came out, in words; '' where no file tells."""
    rows: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    disk_bytes: int | None = None
    """What it takes on the disk."""
    reused: bool = False
    note: str | None = None
    file: str | None = None
    """The file that says so."""
    section: str | None = None
    """Where the page says more."""


@dataclass(frozen=True, kw_only=True)
class RandomPilots(Measured):
    """The pilots on randomly chosen rows, or random vectors, which the directions are compared with."""

    pilots: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pilot(Measured):
    """One end of one direction, tried by pilots or steering."""

    name: str
    difference_to_random: Difference | None = None
    difference_to_base: Difference | None = None
    n_pilots: int | None = None
    """Cells that succeeded."""
    n_judged: int | None = None
    """Those of them that the figures are from."""
    verdict: str | None = None
    """`helps`, `hurts` or `undecided`."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What stopping early saved."""

    cells: int
    cells_of_full: int
    seconds_of_full: float | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Which directions matter for this model."""

    directions: tuple[Pilot, ...]
    base: Measured = field(default_factory=Measured)
    random: RandomPilots = RandomPilots()
    kind: str = "pilot"
    """`pilot` or `steer`."""
    strategy: str | None = None
    saved: Saved | None = None
    seconds: float | None = None
    n_rows: int | None = None
    alpha: float | None = None
    unit: str | None = None
    scope: str | None = None
    rollouts: int | None = None
    task: str | None = None
    chosen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def effort(self) -> str | None:
        """Cells and seconds spent, beside those of trying everything as often as possible."""
        if self.saved is None:
            return None
        cells = f"{self.saved.cells} cells"
        if self.saved.cells < self.saved.cells_of_full:
            cells += f" of {self.saved.cells_of_full}"
        if self.seconds is None:
            return cells
        return f"{cells}, {self.seconds:.0f} s" + (
            f" of about {self.saved.seconds_of_full:.0f}"
            if self.saved.seconds_of_full and self.saved.cells < self.saved.cells_of_full
            else ""
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a run directory holds."""

    name: str
    """The directory's name."""
    run: RunFacts
    activations: ActivationFacts | None = None
    basis: BasisFacts | None = None
    scores: ScoreSample | None = None
    way: tuple[Step, ...] = ()
    comparisons: tuple[ComparisonFile, ...] = ()
    label_areas: tuple[LabelAreas, ...] = ()
    """How far each direction tells the rows of each human label from the others."""
    label_areas_file: str | None = None
    interpretation: Interpretation | None = None
    probe: Probe | None = None
    study: Study | None = None
    contests: tuple[Contest, ...] = ()
    """One per budget of the study, where it has the arm `native`."""
    safety: Safety | None = None
    sweep: Sweep | None = None
    files: tuple[str, ...]
    """The artifacts read, relative to the directory."""
    unfinished: tuple[str, ...] = ()
    """Stages whose work directory was left behind by a run that did not end."""
    n_rejected: int | None = None
    """Rows of the corpus that could not be read and were left out; None where no row was to be left out."""

    def is_unstable(self, signed: str) -> bool:
        """Whether a signed direction, such as `3+`, was found to be unstable."""
        name = signed[:-1]
        found = self.interpretation.directions if self.interpretation else ()
        if any(entry.unstable and name == str(entry.direction) for entry in found):
            return True
        return self.basis is not None and any(name == str(k) for k in self.basis.unstable)

    def card(self, signed: str) -> str | None:
        """The anchor of the card of a direction, such as `3+` or `d3`; None where the page has no such card."""
        name = signed.rstrip("+-").removeprefix("d")
        found = self.direction(int(name)) if name.isascii() and name.isdigit() else None
        return f"direction-{found.direction}" if found is not None else None

    def direction(self, number: int) -> Direction | None:
        """What is said of one direction; None where it was not interpreted."""
        found = self.interpretation.directions if self.interpretation else ()
        return next((entry for entry in found if entry.direction == number), None)

    def pilots_of(self, number: int) -> list[Pilot]:
        """What the probe measured of the two ends of a direction."""
        return [pilot for pilot in (self.probe.directions if self.probe else ()) if pilot.name[:-1] == str(number)]
