"""Cover the candidates: rows that lie far from each other in the whitened space of their scores (k-centre)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..corpus import SelectedRow
from ..errors import ArtifactError, UsageError
from .candidates import Candidates

_CONTENDERS = 1024  # points looked at one choice after the other, until one outside of them may be farther
_BLOCK = 512  # choices at most before all points hear of them
_PRODUCT = 1 << 19  # entries of one matrix product: 2 MB of float32 stay in the cache
_ROWS = 1 << 14  # rows of float64 differences held at a time
_SMALLEST, _LARGEST = 1e-140, 1e150  # squares of distances in between neither underflow nor overflow


@dataclass(frozen=True)
class FarthestPoints:
    """Points in the order of their choice."""

    indices: np.ndarray
    """(n,) int64, all different."""
    distances: np.ndarray
    """(n,) float64, never increasing: distance of each point to the nearest one chosen before it; infinite for the
    first. What is left after i choices lies within `distances[i]` of one of them (the covering radius)."""


def farthest_points(points: np.ndarray, n: int, *, first: int | None = None) -> FarthestPoints:
    """Chooses points one by one, each the farthest from all those chosen before (greedy k-centre, Euclidean).

    The choice is that of the plain loop `d = minimum(d, ((X - X[c]) ** 2).sum(1)); c = argmax(d)` in float64, to the
    last bit: matrix products only rule out what cannot be nearer, and that formula decides the rest.

    Args:
        points: (n_points, n_features), finite; float64 in C order is used without a copy.
        n: points to choose, 1 to n_points.
        first: index to begin with; None takes the point farthest from the mean.
    Returns: indices and distances. Ties go to the lowest index. Once every point left coincides with a chosen one
        (all distances are 0), the rest is taken in the order of the indices.
    Raises: UsageError: n or first out of range, a point that is not finite, or coordinates whose squares overflow.
    Cost: O(n_points n n_features) in float32 matrix products, with little beside them; one float32 copy of the points
        and three numbers per point.
    Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance.
    """
    points = _checked(points, n, first)
    mean = points.mean(axis=0)
    from_mean = _squared_distances(points, mean)
    nearest = _NearestChosen(points, mean, float(np.sqrt(from_mean.max())))
    chosen = [int(from_mean.argmax()) if first is None else first]
    squared = [np.inf]
    nearest.add(chosen)
    while len(chosen) < n:
        if nearest.squared.max() == 0:
            rest = np.flatnonzero(nearest.squared == 0)[: n - len(chosen)]
            chosen += rest.tolist()
            squared += [0.0] * len(rest)
            break
        new, new_squared = _next_choices(points, nearest.squared, min(_BLOCK, n - len(chosen)))
        chosen += new
        squared += new_squared
        nearest.add(new)
    return FarthestPoints(np.array(chosen, dtype=np.int64), np.sqrt(squared))


def covering_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes rows far from each other, beginning with the one farthest from the mean; the seed changes nothing.

    The scores are whitened: each direction is divided by its standard deviation over the candidates (which are known
    here, other than the corpus of the basis), so that one of large scale does not decide alone. One on which all
    candidates agree is left out. Ties go to the lowest id, so the order of the candidates does not matter. The score
    of a row is its distance to the nearest row chosen before, in standard deviations; the first has none.
    Raises: UsageError: there are no scores. ArtifactError: a row has a score that is not finite.
    """
    return _covering(candidates, np.ones(len(candidates.ids), dtype=bool), budget)


def covering_best_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes rows far from each other as `covering_rows` does, but only among the best `quality_share` of all.

    The best are those of the highest given quality where there is one, else of the lowest mean NLL under the model;
    ties go to the lowest id, and a row of which that is not known comes last. Distances are in standard deviations over
    all candidates; the first row is the one farthest from the mean of the best. A budget above the share takes all of
    it and then the next best rows, which have no distance and so no score.
    Raises: UsageError: there are no scores, or neither qualities nor likelihoods. ArtifactError: a row has a score
        that is not finite.
    """
    quality = candidates.given_quality
    what = "mean NLL" if quality is None else "quality"
    badness = candidates.mean_nll if quality is None else np.nan_to_num(-quality.astype(np.float64), nan=np.inf)
    place = np.argsort(_by_id(candidates))  # of each row in the order of ids
    best = np.lexsort((place, badness))
    n_best = max(1, math.ceil(candidates.settings.quality_share * len(best)))
    kept = np.zeros(len(best), dtype=bool)
    kept[best[:n_best]] = True
    covering = _covering(candidates, kept, min(budget, n_best))
    rows = [replace(row, reason=f"{row.reason}, of the best {n_best} by {what}") for row in covering]
    for rank, i in enumerate(best[n_best:budget], n_best + 1):
        rows.append(SelectedRow(candidates.ids[i], rank, reason=f"filled up: next best by {what}"))
    return rows


def _by_id(candidates: Candidates) -> np.ndarray:
    """Indices of the candidates in the order of their ids."""
    return np.array(sorted(range(len(candidates.ids)), key=lambda i: candidates.ids[i]))


def _covering(candidates: Candidates, kept: np.ndarray, budget: int) -> list[SelectedRow]:
    """Rows far from each other among the `kept` ones (a mask), in the space whitened over all candidates."""
    order = _by_id(candidates)
    values = candidates.known_scores.values[order]
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise ArtifactError(
            f"row {candidates.ids[order[broken[0]]]!r} has a score that is not finite; score the corpus again"
        )
    varying = values.min(axis=0) < values.max(axis=0)
    scale = values[:, varying].std(axis=0)
    order, values = order[kept[order]], values[kept[order]]
    found = farthest_points(values[:, varying] / scale, budget)
    return [
        SelectedRow(candidates.ids[order[i]], rank, float(d) if rank > 1 else None, reason=_reason(d))
        for rank, (i, d) in enumerate(zip(found.indices, found.distances, strict=True), 1)
    ]


def _reason(distance: float) -> str:
    if distance == np.inf:
        return "farthest from the mean"
    return "farthest from the rows before" if distance > 0 else "filled up: same scores as a row before"


def _checked(points: np.ndarray, n: int, first: int | None) -> np.ndarray:
    """The points as (n_points, n_features) float64 in C order, or a UsageError."""
    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise UsageError(f"points must be a table (n_points, n_features), not of shape {points.shape}")
    if not 1 <= n <= len(points):
        raise UsageError(f"n must be from 1 to the number of points, {len(points)}, not {n}")
    if first is not None and not 0 <= first < len(points):
        raise UsageError(f"first must be an index from 0 to {len(points) - 1}, not {first}")
    for part in _parts(len(points), _ROWS):
        broken = np.flatnonzero(~np.isfinite(points[part]).all(axis=1))
        if len(broken):
            raise UsageError(f"point {part.start + broken[0]} is not finite; drop it or mend it first")
    return points


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _squared_distances(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(n,) by the formula that decides, a few rows at a time; too large ones are infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([((points[part] - centre) ** 2).sum(axis=1) for part in _parts(len(points), _ROWS)])


class _NearestChosen:
    """The squared distance of every point to the nearest chosen one, -1 for those that are chosen.

    A matrix product gives |x|^2 + |c|^2 - 2 x·c of all points and new choices, in float32 and with an error. It is
    lowered by more than that error, so that it is below the true distance: only pairs for which it is not above what
    the point has already can change anything, and these get the exact formula. They are few, since a point changes its
    nearest choice about as often as the logarithm of their number.

    The error: with coordinates shifted to the mean and rounded to float32 (unit u = 2^-24), a product of d + 2 terms
    whose absolute values add up to at most 2 s, s = |x|^2 + |c|^2, is wrong by at most 2 (d + 2) u s, and the rounding
    of its factors adds 3 u s (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """

    def __init__(self, points: np.ndarray, mean: np.ndarray, radius: float) -> None:
        """Args: radius: largest distance from the mean, by which all is scaled so that float32 holds it."""
        if not (radius == 0 or _SMALLEST < radius < _LARGEST):
            raise UsageError(
                f"the points lie up to {radius:g} from their mean, so that squares of distances leave the range of "
                "float64; scale them first"
            )
        n_points, d = points.shape
        self.squared = np.full(n_points, np.inf)
        self._points = points
        self._scale = radius or 1.0
        self._slack = (2 * d + 12) * 2.0**-24
        self._factors = np.ones((n_points, d + 2), dtype=np.float32)  # x, lowered |x|^2, 1
        for part in _parts(n_points, _ROWS):
            x = (points[part] - mean) / self._scale
            self._factors[part, :d] = x
            self._factors[part, d] = (x**2).sum(axis=1) * (1 - self._slack)

    def add(self, chosen: list[int]) -> None:
        """Takes new choices into account."""
        if np.isinf(self.squared[0]):  # the very first: every point is nearest to it
            self.squared = _squared_distances(self._points, self._points[chosen[0]])
        centres = np.array(chosen)
        factors = np.ones((len(centres), self._factors.shape[1]), dtype=np.float32)  # -2 c, 1, lowered |c|^2
        factors[:, :-2] = -2 * self._factors[centres, :-2]
        factors[:, -1] = self._factors[centres, -2]
        for part in _parts(len(self.squared), min(_ROWS, max(1, _PRODUCT // len(centres)))):
            self._update(part, centres, factors)
        self.squared[centres] = -1

    def _update(self, part: slice, centres: np.ndarray, factors: np.ndarray) -> None:
        below = factors @ self._factors[part].T  # (choices, rows): below the true squared distances
        near = np.flatnonzero(below.min(axis=0) <= self._ceiling(part))
        below, rows = below[:, near], near + part.start
        # The likely nearest of the new choices comes first: after it, hardly another one is left to try.
        self._decide(rows, centres[below.argmin(axis=0)])
        choice, column = np.nonzero(below <= self._ceiling(rows))
        self._decide(rows[column], centres[choice])

    def _ceiling(self, rows: slice | np.ndarray) -> np.ndarray:
        """What the lowered product may at most be, for a choice to come nearer: the rows' distances, rounded up."""
        scaled: np.ndarray = np.maximum(self.squared[rows], 0) / self._scale / self._scale
        scaled = scaled * (1 + self._slack) + 1e-30  # as much again, since products in float32 may underflow
        return scaled.astype(np.float32)

    def _decide(self, rows: np.ndarray, centres: np.ndarray) -> None:
        for part in _parts(len(rows), _ROWS):
            exact = ((self._points[rows[part]] - self._points[centres[part]]) ** 2).sum(axis=1)
            np.minimum.at(self.squared, rows[part], exact)


def _next_choices(points: np.ndarray, squared: np.ndarray, n: int) -> tuple[list[int], list[float]]:
    """The next choices, by the plain loop over the points that are farthest now.

    Distances only fall, so the loop is right as long as the farthest contender is farther than the farthest point left
    out was at the start; then all points must hear of the choices.

    Returns: 1 to n indices, and the squared distance each had when it was chosen.
    """
    n_contenders = min(_CONTENDERS, len(squared))
    least = np.partition(squared, -n_contenders)[-n_contenders]
    farther, tied = np.flatnonzero(squared > least), np.flatnonzero(squared == least)
    n_tied = n_contenders - len(farther)
    contenders = np.sort(np.concatenate([farther, tied[:n_tied]]))
    first_left_out = tied[n_tied] if n_tied < len(tied) else len(squared)
    near, left = points[contenders], squared[contenders]
    chosen: list[int] = []
    at: list[float] = []
    while len(chosen) < n:
        best = int(left.argmax())
        index, distance = int(contenders[best]), float(left[best])
        if distance < max(least, 0) or (distance == least and index > first_left_out):
            break
        chosen.append(index)
        at.append(distance)
        np.minimum(left, ((near - near[best]) ** 2).sum(axis=1), out=left)
        left[best] = -1
    return chosen, at
