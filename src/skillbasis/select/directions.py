"""Fill the budget along signed directions of a basis, alone or together with the likelihood of the responses."""

from __future__ import annotations

import math

import numpy as np

from ..corpus import SelectedRow
from .candidates import Candidates


def quotas(budget: int, n_parts: int) -> list[int]:
    """Shares a budget equally; the first parts get the remainder."""
    return [budget // n_parts + (part < budget % n_parts) for part in range(n_parts)]


def along_directions(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Draws rows at random from the top share of each signed direction, in equal quotas.

    A row that ranks high on several directions counts for the first that takes it.
    """
    chosen: list[SelectedRow] = []
    taken = np.zeros(len(candidates.ids), dtype=bool)
    pairs = candidates.signed_directions
    for (direction, sign), quota in zip(pairs, quotas(budget, len(pairs)), strict=True):
        score = candidates.ranking(direction, sign)
        order = _free(np.argsort(-score, kind="stable"), taken)
        share = max(quota, math.ceil(candidates.settings.top_share * len(score)))
        best = rng.permutation(order[:share])[:quota] if candidates.settings.top_share > 0 else order[:quota]
        best = best[np.argsort(-score[best], kind="stable")]
        reason = f"top {share} rows of {direction}{sign}"
        chosen += _rows(candidates, best, score, direction, sign, reason, len(chosen))
        taken[best] = True
    return chosen


def along_directions_by_likelihood(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes, of the top share of each signed direction, the responses with the lowest mean NLL under the model.

    The direction finds the way of working, the likelihood leaves out what the model thinks wrong.
    """
    chosen: list[SelectedRow] = []
    taken = np.zeros(len(candidates.ids), dtype=bool)
    nll, pairs = candidates.mean_nll, candidates.signed_directions
    for (direction, sign), quota in zip(pairs, quotas(budget, len(pairs)), strict=True):
        score = candidates.ranking(direction, sign)
        order = _free(np.argsort(-score, kind="stable"), taken)
        share = max(quota, math.ceil(candidates.settings.likelihood_share * len(score)))
        best = order[:share][np.argsort(nll[order[:share]], kind="stable")][:quota]
        reason = f"lowest mean NLL of the top {share} rows of {direction}{sign}"
        chosen += _rows(candidates, best, score, direction, sign, reason, len(chosen))
        taken[best] = True
    return chosen


def _free(order: np.ndarray, taken: np.ndarray) -> np.ndarray:
    return order[~taken[order]]  # type: ignore[no-any-return]


def _rows(
    candidates: Candidates, best: np.ndarray, score: np.ndarray, direction: int, sign: str, reason: str, first: int
) -> list[SelectedRow]:
    return [
        SelectedRow(candidates.ids[i], first + rank, float(score[i]), direction, sign, reason)  # type: ignore[arg-type]
        for rank, i in enumerate(best, 1)
    ]
