"""Is a proxy any good? Its ranking of signed directions held against what the full budget gives.

Pure NumPy and SciPy. Every figure has a yardstick: a correlation that noise of this size would allow, and the regret of
choosing a direction at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import statistics
from .errors import UsageError

Draws = list[np.ndarray]
"""Of each direction (seeds, problems); problems are the same ones for all, seeds are each direction's own."""


def proxy_quality(
    proxy: Mapping[str, ArrayLike],
    full: Mapping[str, ArrayLike],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compares the ranking of directions by a proxy with the one at full budget, and what choosing by the proxy costs.

    Two kinds of interval, both percentile bootstraps. `over_directions` resamples directions: would the proxy rank
    other directions as well? `over_runs` keeps the directions and resamples the seeds of each (and problems, where
    they are given, the same ones for all): would the same directions come out so again? It repeats the whole
    procedure: in every resample the proxy chooses anew, and so does the full budget its best.

    Args:
        proxy: of each signed direction its results: (seeds,), or (seeds, problems) on problems common to all.
        full: the same at full budget; directions that are not in both are left out and named.
    Returns: n_directions, left_out, ranking by each, `spearman` (value and intervals), `chosen` and `best` with their
        means at full budget, `regret` (best minus chosen), `regret_of_random` (best minus the mean of all directions:
        what choosing blindly costs) and `gain_over_random` (chosen minus that mean). The best of many noisy means is
        flattered, so both regrets are rather too large; the gain does not contain it. An interval is None where
        nothing varies or the correlation is undefined, with a reason.
    Raises: UsageError: fewer than 3 common directions, or results that are no such arrays.
    Cost: O(n_resamples * all values).
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    names = [name for name in proxy if name in full]
    if len(names) < 3:
        raise UsageError(f"{len(names)} directions have both a proxy and a full result; a ranking needs at least 3")
    if n_resamples < 1:
        raise UsageError(f"n_resamples is {n_resamples}; give at least 1 (2000 is usual)")
    cheap, dear = (_draws(source, names, what) for source, what in ((proxy, "proxy"), (full, "full")))
    a, b = _means(cheap), _means(dear)
    chosen, best = int(a.argmax()), int(b.argmax())  # of equal ones the first
    rng = np.random.default_rng(seed)
    others = rng.integers(0, len(names), size=(n_resamples, len(names)))
    again = [[_means(_resample(draws, rng)) for draws in (cheap, dear)] for _ in range(n_resamples)]
    runs = _figures(*np.array(again).transpose(1, 0, 2))  # two of (resamples, directions)
    varied = any(values.size > 1 for values in cheap + dear)
    value, regret, regret_of_random, gain = (float(figure[0]) for figure in _figures(a[None], b[None]))
    why_not = None if varied else "one seed and no problems: nothing to resample"
    intervals = [_interval(figure, level) if varied else None for figure in runs]
    correlation = statistics.spearman(a, b)
    found = {
        "n_directions": len(names),
        "left_out": sorted((proxy.keys() | full.keys()) - set(names)),
        "ranking_by_proxy": [names[i] for i in np.argsort(-a, kind="stable")],
        "ranking_by_full": [names[i] for i in np.argsort(-b, kind="stable")],
        "spearman": {
            "value": value,
            "over_directions": _interval(_correlations(a[others], b[others]), level),
            "over_runs": intervals[0],
            "reason": correlation.reason if math.isnan(value) else why_not,
        },
        "chosen": {"name": names[chosen], "proxy": float(a[chosen]), "full": float(b[chosen])},
        "best": {"name": names[best], "proxy": float(a[best]), "full": float(b[best])},
    }
    for name, figure, interval in (
        ("regret", regret, intervals[1]),
        ("regret_of_random", regret_of_random, intervals[2]),
        ("gain_over_random", gain, intervals[3]),
    ):
        found[name] = {"value": figure, "over_runs": interval, "reason": why_not}
    settings = {"n_resamples": n_resamples, "seed": seed, "level": level}
    return dict(statistics.nan_to_none(found | settings))


def _draws(source: Mapping[str, ArrayLike], names: list[str], what: str) -> Draws:
    """The results as (seeds, problems). Raises: UsageError: naming the direction that is no such array."""
    draws = []
    for name in names:
        values = np.asarray(source[name], dtype=np.float64)
        if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
            raise UsageError(
                f"the {what} results of {name} have shape {values.shape} or hold NaN; give (seeds,) or (seeds, "
                "problems) of numbers"
            )
        draws.append(values if values.ndim == 2 else values[:, None])
    widths = {values.shape[1] for values in draws}
    if len(widths) > 1:
        raise UsageError(f"the {what} results are on {sorted(widths)} problems; all directions need the same problems")
    return draws


def _means(draws: Draws) -> np.ndarray:
    """(directions,)"""
    return np.array([values.mean() for values in draws])


def _resample(draws: Draws, rng: np.random.Generator) -> Draws:
    """Draws seeds of each direction by itself, and problems once for all directions."""
    problems = rng.integers(0, draws[0].shape[1], size=draws[0].shape[1])
    return [values[rng.integers(0, len(values), size=len(values))][:, problems] for values in draws]


def _figures(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(resamples, directions) each -> correlation, regret, that of choosing at random, and the gain over it."""
    chosen = b[np.arange(len(b)), a.argmax(axis=1)]
    best, middle = b.max(axis=1), b.mean(axis=1)
    return _correlations(a, b), best - chosen, best - middle, chosen - middle


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's, row by row: (resamples, directions) each -> (resamples,); NaN where one side is constant."""
    from scipy.stats import rankdata

    first, second = (rankdata(side, axis=1) for side in (a, b))
    first, second = (side - side.mean(axis=1, keepdims=True) for side in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.asarray((first * second).sum(axis=1) / np.where(scale > 0, scale, np.nan))


def _interval(values: np.ndarray, level: float) -> list[float] | None:
    """Percentile interval of the resamples where the figure is defined; None where it never is."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    return [float(end) for end in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])]
