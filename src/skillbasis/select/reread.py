"""The pool read again: likelihood under the model that a first selection made.

A base model finds likely what it has the habit of writing. Fine-tuned on a first selection (a way of working that it
had given up, say), it finds likely what is right in that way, over the whole pool. So the second reading ranks better.
"""

from __future__ import annotations

import numpy as np

from ..corpus import SelectedRow
from .candidates import Candidates

ALONG_DIRECTIONS = "directions+likelihood"
BY_LIKELIHOOD = "low-nll"
"""Strategies of the first selection."""
FIRST = {"reread along directions": ALONG_DIRECTIONS, "reread by likelihood": BY_LIKELIHOOD}
"""By what a strategy needs."""


def directions_reread(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes the lowest mean NLL under the model that a selection along directions made, of the whole pool."""
    return _lowest(candidates, ALONG_DIRECTIONS, budget)


def low_nll_reread(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """The same behind a first selection by likelihood alone: the control that tells what the direction adds."""
    return _lowest(candidates, BY_LIKELIHOOD, budget)


def _lowest(candidates: Candidates, first: str, budget: int) -> list[SelectedRow]:
    nll = candidates.reread_nll(first)
    best = np.argsort(nll, kind="stable")[:budget]
    reason = f"lowest mean NLL under the model made by {first}"
    return [SelectedRow(candidates.ids[i], rank, float(nll[i]), reason=reason) for rank, i in enumerate(best, 1)]
