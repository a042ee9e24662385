"""Fill the budget along signed directions of a basis, alone or together with the likelihood of the responses."""

from __future__ import annotations

import math

import numpy as np

from ..corpus import SelectedRow
from .candidates import Candidates
from .cells import cells_of


def quotas(budget: int, n_parts: int) -> list[int]:
    """Shares a budget equally; the first parts get the remainder."""
    return [budget // n_parts + (part < budget % n_parts) for part in range(n_parts)]


def weighted_quotas(budget: int, weights: np.ndarray, capacity: np.ndarray | None = None) -> np.ndarray:
    """Shares a budget in proportion to weights (largest remainders), nobody above its capacity.

    Args:
        weights: (parts,) not negative, one at least above 0.
        capacity: (parts,) most of each part; what a part cannot take goes to the others.
    Returns: (parts,) int64 that add up to the budget, or to the capacity of all parts of weight where that is less.
    """
    left = budget if capacity is None else min(budget, int(capacity[weights > 0].sum()))
    taken = np.zeros(len(weights), dtype=np.int64)
    while left:
        is_open = weights > 0 if capacity is None else (weights > 0) & (taken < capacity)
        exact = left * np.where(is_open, weights, 0) / weights[is_open].sum()
        part = np.floor(exact).astype(np.int64)
        rest = np.argsort(-(exact - part), kind="stable")[: left - part.sum()]
        part[rest] += 1
        taken += part
        if capacity is not None:
            taken = np.minimum(taken, capacity)
        left = (budget if capacity is None else min(budget, int(capacity[weights > 0].sum()))) - int(taken.sum())
    return taken


def _shares(candidates: Candidates, budget: int) -> list[int]:
    """Rows for each signed direction: equal, or by the weights of the settings."""
    settings = candidates.settings
    pairs = candidates.signed_directions
    if not settings.weights:
        return quotas(budget, len(pairs))
    return [int(quota) for quota in weighted_quotas(budget, np.array(settings.weights))]


def along_directions(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Draws rows from the top share of each signed direction, or from all by a temperature, in the quotas set.

    A row that ranks high on several directions counts for the first that takes it.
    """
    settings = candidates.settings
    chosen: list[SelectedRow] = []
    taken = np.zeros(len(candidates.ids), dtype=bool)
    for (direction, sign), quota in zip(candidates.signed_directions, _shares(candidates, budget), strict=True):
        score = candidates.ranking(direction, sign)
        order = _free(np.argsort(-score, kind="stable"), taken)
        if settings.temperature is not None:
            # The Gumbel trick: the largest of log-probability plus noise are draws without replacement.
            z = (score[order] - score.mean()) / (score.std() or 1.0)
            best = order[np.argsort(-(z / settings.temperature + rng.gumbel(size=len(order))), kind="stable")[:quota]]
            reason = f"drawn along {direction}{sign} at temperature {settings.temperature:g}"
        else:
            share = max(quota, math.ceil(settings.top_share * len(score)))
            best = rng.permutation(order[:share])[:quota] if settings.top_share > 0 else order[:quota]
            reason = f"top {share} rows of {direction}{sign}"
        best = best[np.argsort(-score[best], kind="stable")]
        chosen += _rows(candidates, best, score, direction, sign, reason, len(chosen))
        taken[best] = True
    return chosen


def along_directions_by_likelihood(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes, of the top share of each signed direction, the responses with the lowest mean NLL under the model.

    The direction finds the way of working, the likelihood leaves out what the model thinks wrong. With `cells` above
    1 the top share is cut into so many cells of the whitened space of scores, and each gives its most likely rows in
    proportion to its size: what the model finds easy everywhere does not fill the budget alone.
    """
    settings = candidates.settings
    chosen: list[SelectedRow] = []
    taken = np.zeros(len(candidates.ids), dtype=bool)
    nll = candidates.mean_nll
    for (direction, sign), quota in zip(candidates.signed_directions, _shares(candidates, budget), strict=True):
        score = candidates.ranking(direction, sign)
        order = _free(np.argsort(-score, kind="stable"), taken)
        share = max(quota, math.ceil(settings.likelihood_share * len(score)))
        top = order[:share]
        if settings.cells == 1:
            best = top[np.argsort(nll[top], kind="stable")][:quota]
            reason = f"lowest mean NLL of the top {share} rows of {direction}{sign}"
        else:
            best = _likeliest_of_cells(candidates.whitened[top], nll[top], quota, settings.cells, rng, top)
            reason = f"lowest mean NLL of its cell in the top {share} rows of {direction}{sign}"
        chosen += _rows(candidates, best, score, direction, sign, reason, len(chosen))
        taken[best] = True
    return chosen


def _likeliest_of_cells(
    points: np.ndarray, nll: np.ndarray, quota: int, n_cells: int, rng: np.random.Generator, rows: np.ndarray
) -> np.ndarray:
    """The rows of lowest NLL of every cell, quotas by the sizes of the cells; the most likely row first."""
    cell = cells_of(points, min(n_cells, len(points)), rng)
    sizes = np.bincount(cell)
    wanted = weighted_quotas(quota, sizes.astype(np.float64), sizes)
    by_cell = np.lexsort((nll, cell))  # by cell, then by NLL
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within its cell
    kept = by_cell[rank < wanted[cell[by_cell]]]
    return rows[kept[np.argsort(nll[kept], kind="stable")]]  # type: ignore[no-any-return]


def _free(order: np.ndarray, taken: np.ndarray) -> np.ndarray:
    return order[~taken[order]]  # type: ignore[no-any-return]


def _rows(
    candidates: Candidates, best: np.ndarray, score: np.ndarray, direction: int, sign: str, reason: str, first: int
) -> list[SelectedRow]:
    return [
        SelectedRow(candidates.ids[i], first + rank, float(score[i]), direction, sign, reason)  # type: ignore[arg-type]
        for rank, i in enumerate(best, 1)
    ]
