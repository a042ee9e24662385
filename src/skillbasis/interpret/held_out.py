"""Examples of a direction's ends that its label was not made from, unlike the exemplars and unlike each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attributes import prompt_text
from .describe import end_size
from .exemplars import CANDIDATES_PER_EXAMPLE, DUPLICATE_JACCARD, both_ends, shingles
from .label_test import HeldOut
from .labels import CHARACTERS, shown_text
from .scored import ScoredRows

MAX_FRACTION = 0.25
"""Only rows among the first or the last quarter are of an end, but where fewer than the exemplars and n are left."""


def held_out_examples(
    scored: ScoredRows,
    values: NDArray[np.floating],
    direction: int,
    exemplars: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    characters: int = CHARACTERS,
) -> list[HeldOut]:
    """Draws examples of both ends of a direction for the test of its label.

    Args:
        values: (n_rows,), what the direction's exemplars are ordered by; NaN where a row has no value.
        exemplars: ids of the direction's exemplars at both ends.
        n: how many of each end.
        seed: of the draw.
        characters: of each text so many are shown.
    Returns: at most n of each end, and equally many, so that guessing is right half the time. They are drawn at random
        from as many rows of each end as its keywords are (2 %, 50 at least and 500 at most); where too few of those
        are unlike the exemplars, the rows that follow are taken in their order, to a quarter of all rows and 50 n of
        them at most. None is an exemplar, nearly repeats one (see `exemplars.DUPLICATE_JACCARD`), or answers the same
        prompt as one; nor does one do so to another, or they would count as several and be one.
    Cost: the texts of the exemplars and of the rows that are looked at.
    """
    out = set(exemplars)
    taken = [_Seen(scored.rows[scored.position[row_id]]) for row_id in exemplars]
    found: list[list[HeldOut]] = [[], []]
    rng = np.random.default_rng([seed, direction])
    n_end = end_size(len(values))
    n_looked_at = min(max(n_end, CANDIDATES_PER_EXAMPLE * n), round(MAX_FRACTION * len(values)))
    n_looked_at = max(n_looked_at, n + len(exemplars))
    candidates = []
    for order in both_ends(values):
        order = order[:n_looked_at]
        candidates.append(np.concatenate([rng.permutation(order[:n_end]), order[n_end:]]))
    for side, rows in enumerate(candidates):
        for row_number in rows.tolist():
            if len(found[side]) == n:
                break
            row, row_id = scored.rows[row_number], scored.ids[row_number]
            seen = _Seen(row)
            if row_id in out or any(seen.is_like(other) for other in taken):
                continue
            taken.append(seen)
            text = shown_text(prompt_text(row["prompt"]), row["response"] or "", characters)
            found[side].append(HeldOut(row_id, text, positive=side == 0))
    n_each = min(map(len, found))
    return [example for end in found for example in end[:n_each]]


class _Seen:
    """A row that others may not repeat."""

    def __init__(self, row: Any) -> None:
        self._prompt = " ".join(prompt_text(row["prompt"]).split())
        self._shingles = shingles(f"{self._prompt}\n{row['response'] or ''}")

    def is_like(self, other: _Seen) -> bool:
        if self._prompt and self._prompt == other._prompt:
            return True
        shared = len(self._shingles & other._shingles)
        return shared > DUPLICATE_JACCARD * (len(self._shingles) + len(other._shingles) - shared)
