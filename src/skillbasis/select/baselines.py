"""The selections that directions have to beat: chance, human labels, and likelihood alone."""

from __future__ import annotations

import numpy as np

from ..corpus import SelectedRow
from ..errors import UsageError
from .candidates import Candidates
from .directions import quotas


def random_rows(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Draws rows uniformly without replacement."""
    drawn = rng.permutation(len(candidates.ids))[:budget]
    return [
        SelectedRow(candidates.ids[i], rank, None, None, None, "drawn at random") for rank, i in enumerate(drawn, 1)
    ]


def low_nll(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes the responses with the lowest mean negative log-likelihood under the model, ties in corpus order."""
    nll = candidates.mean_nll
    best = np.argsort(nll, kind="stable")[:budget]
    return [
        SelectedRow(candidates.ids[i], rank, float(nll[i]), None, None, "lowest mean NLL")
        for rank, i in enumerate(best, 1)
    ]


def human_balanced(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Gives every human label an equal quota, drawn at random; what a small label cannot fill goes to the others.

    A row with several labels counts for its first one.
    Raises: UsageError: rows have no labels.
    """
    first = [labels[0] if len(labels) else None for labels in candidates.labels]
    names = sorted({label for label in first if label is not None})
    if not names:
        raise UsageError("human-balanced needs labels, and the corpus has none; name a column with --label-column")
    by_label = {name: [i for i, label in enumerate(first) if label == name] for name in names}
    if budget > sum(map(len, by_label.values())):
        raise UsageError(
            f"only {sum(map(len, by_label.values()))} rows have a label, fewer than the budget of {budget}; "
            "choose a smaller one"
        )
    shuffled = {name: list(rng.permutation(rows)) for name, rows in by_label.items()}
    wanted = dict.fromkeys(names, 0)
    left = budget
    while left:
        open_labels = [name for name in names if wanted[name] < len(shuffled[name])]
        for name, quota in zip(open_labels, quotas(left, len(open_labels)), strict=True):
            wanted[name] = min(len(shuffled[name]), wanted[name] + quota)
        left = budget - sum(wanted.values())
    chosen = [(i, name) for name in names for i in shuffled[name][: wanted[name]]]
    return [
        SelectedRow(candidates.ids[i], rank, None, None, None, f"quota of label {name}")
        for rank, (i, name) in enumerate(chosen, 1)
    ]
