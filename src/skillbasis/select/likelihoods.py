"""Selections by how likely the model finds a response: given its prompt, or compared with the response alone."""

from __future__ import annotations

import numpy as np

from ..corpus import SelectedRow
from ..errors import UsageError
from .candidates import Candidates
from .shortage import TooFewRows

_THIRDS = ("low", "middle", "high")


def low_nll(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes the responses with the lowest mean negative log-likelihood under the model, ties in corpus order."""
    nll = candidates.mean_nll
    best = np.argsort(nll, kind="stable")[:budget]
    return [
        SelectedRow(candidates.ids[i], rank, float(nll[i]), None, None, "lowest mean NLL")
        for rank, i in enumerate(best, 1)
    ]


def perplexity_band(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Draws rows at random from the low, middle or high third by perplexity, exp(mean NLL given the prompt).

    The thirds are of the rows whose response was read, ties in corpus order; the score is the perplexity.

    Raises: UsageError: not measured. TooFewRows: the third is smaller than the budget.
    """
    band = candidates.settings.band
    nll = candidates.mean_nll
    order = np.argsort(nll, kind="stable")[: np.isfinite(nll).sum()]
    third = _THIRDS.index(band)
    rows = order[third * len(order) // 3 : (third + 1) * len(order) // 3]
    if budget > len(rows):
        raise TooFewRows(
            f"the {band} third by perplexity holds {len(rows)} rows, fewer than the budget of {budget}; choose a "
            "smaller one",
            len(rows),
        )
    reason = f"drawn from the {band} third by perplexity"
    return [
        SelectedRow(candidates.ids[i], rank, float(np.exp(nll[i])), None, None, reason)
        for rank, i in enumerate(rng.permutation(rows)[:budget], 1)
    ]


def instruction_difficulty(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes the highest instruction-following difficulty up to 1: the mean NLL of the response given the prompt over
    that of the response alone, ties in corpus order.

    Above 1 the prompt makes the response less likely: the two do not belong together, and the row is left out.

    Raises: UsageError: the likelihood, or that of the response alone, is not measured. TooFewRows: fewer rows than the
        budget are at 1 or below.
    Source: Li et al., From Quantity to Quality, arXiv 2308.12032, whose script takes the ratio of mean losses.
    """
    alone = candidates.known_likelihood.alone_nll
    if alone is None:
        raise UsageError(
            "this strategy needs the likelihood of each response without its prompt too, and the table has none; give "
            "--model, or measure the table again with skillbasis likelihood --alone"
        )
    ratio = np.full(len(alone), np.inf)
    np.divide(candidates.mean_nll, alone, out=ratio, where=alone > 0)  # NaN where nothing was read: not above 0
    kept = int((ratio <= 1).sum())
    if budget > kept:
        raise TooFewRows(
            f"{kept} of {len(alone)} rows have a response that is likelier with its prompt than without (IFD of at "
            f"most 1), fewer than the budget of {budget}; choose a smaller one",
            kept,
        )
    best = np.argsort(np.where(ratio <= 1, -ratio, np.inf), kind="stable")[:budget]
    return [
        SelectedRow(candidates.ids[i], rank, float(ratio[i]), None, None, "highest IFD up to 1")
        for rank, i in enumerate(best, 1)
    ]
