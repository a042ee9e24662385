"""What the report reads of the basis: its spectrum, its stability, scores along it, and other bases beside it.

A number that is undefined is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The median of repeated measurements with two ends."""

    median: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class DirectionStability:
    """The absolute cosine of one direction with its match on other rows."""

    direction: int
    unstable: bool = False
    half_cosine: Middle | None = None
    cosine: Middle | None = None
    """In bootstrap resamples; None without a bootstrap."""

    @property
    def middle(self) -> Middle:
        """What is shown: of the bootstrap where there was one, else of the halves."""
        return self.cosine or self.half_cosine or Middle()


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far the directions depend on which rows of the corpus there were."""

    directions: tuple[DirectionStability, ...]
    n_repeats: int | None = None
    n_bootstrap: int = 0
    threshold: float | None = None

    @property
    def how(self) -> str:
        """What the median and its ends are of."""
        if self.n_bootstrap:
            return f"{self.n_bootstrap} bootstrap resamples of the rows (95 % interval)"
        return f"{2 * self.n_repeats} halves of the rows (range)" if self.n_repeats else "halves of the rows (range)"


@dataclass(frozen=True, kw_only=True)
class BasisFacts:
    """The basis: its size and how much variance each direction explains."""

    n_components: int
    block_ids: tuple[int, ...] = ()
    hidden_size: int | None = None
    method: str | None = None
    explained_variance: tuple[float | None, ...] = ()
    orthogonal: bool = True
    """Where not, the shares of the directions overlap."""
    explained_variance_ratio: tuple[float | None, ...] = ()
    """Fractions of the total variance, one per direction."""
    eigenvalues: tuple[float | None, ...] = ()
    """Variances in the space in which the directions are orthogonal."""
    block_rms: tuple[float, ...] | None = None
    """Deviation of a coordinate of each block, by which that space is scaled; None where it is not."""
    total_variance: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    solver: str | None = None
    stability: Stability | None = None

    @property
    def unstable(self) -> tuple[int, ...]:
        """Directions found to be unstable; none where that was not measured."""
        return tuple(entry.direction for entry in self.stability.directions if entry.unstable) if self.stability else ()

    def stability_of(self, direction: int) -> DirectionStability | None:
        """What was measured of one direction; None where it was not."""
        found = self.stability.directions if self.stability else ()
        return next((entry for entry in found if entry.direction == direction), None)

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Share of the variance that the first directions explain together, in the space in which they are orthogonal.

        Blocks scaled to unit deviation hold one unit of variance per coordinate. Empty where the shares cannot be
        added up: latents of a sparse autoencoder, or a variance that was not recorded.
        """
        shares: list[float | None] = list(self.explained_variance_ratio) if self.orthogonal else []
        if not self.orthogonal and self.method == "pca" and self.block_rms and self.hidden_size:
            total = len(self.block_rms) * self.hidden_size
            shares = [None if value is None else value / total for value in self.eigenvalues]
        sums: list[float] = []
        for share in shares:
            if share is None:
                return ()
            sums.append(share + (sums[-1] if sums else 0.0))
        return tuple(sums)


@dataclass(frozen=True, kw_only=True)
class ScoreSample:
    """A random sample of rows on several directions, with columns of the corpus by which they can be told apart."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]
    """One tuple of scores per direction, as `names`."""
    n_rows: int
    """Rows in the whole file."""
    n_directions: int
    """Directions in the whole file."""
    columns: dict[str, tuple[bool | int | float | str | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A direction of one basis and its match in the other."""

    a: int
    b: int
    value: float | None = None
    """Cosine of the two directions."""
    correlation: float | None = None
    """Of their scores on shared examples."""
    low: float | None = None
    high: float | None = None
    null_95: float | None = None
    """What chance reaches at this rank."""
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Two sets of directions in one space of activations."""

    pairs: tuple[Pair, ...] = ()
    overlap: float | None = None
    overlap_chance: float | None = None
    mean_cosine: float | None = None
    mean_null_95: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresCompared:
    """Two bases on the same examples."""

    pairs: tuple[Pair, ...] = ()
    n: int | None = None
    mean_correlation: float | None = None
    mean_null_95: float | None = None
    mean_p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two bases side by side."""

    a: str
    b: str
    unstable_a: tuple[int, ...] = ()
    unstable_b: tuple[int, ...] = ()
    spans: Spans | None = None
    scores: ScoresCompared | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonFile:
    """One `comparison.json`: bases compared in pairs."""

    pairs: tuple[Compared, ...]
    file: str = ""
