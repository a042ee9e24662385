"""What the report reads of `skills.json`: how far directions tell the rows of a human label from the others."""

from __future__ import annotations

from dataclasses import dataclass

from .directions import LabelAreas
from .figures import Interval


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area under the curve with its interval; .5 is chance."""

    auc: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval:
        return Interval(mean=self.auc, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """One human label."""

    column: str
    label: str
    directions: tuple[Area, ...]
    n_rows: int | None = None
    n_without: int | None = None
    joint: Area | None = None

    @property
    def areas_of_all(self) -> LabelAreas:
        """The same as the page shows it."""
        return LabelAreas(
            name=f"{self.column}={self.label}",
            areas=tuple(area.interval for area in self.directions),
            n_rows=self.n_rows,
            n_without=self.n_without,
            joint=self.joint.interval if self.joint else None,
        )


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """All labels."""

    labels: tuple[LabelResult, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Skills:
    """The file."""

    taxonomy: Taxonomy
