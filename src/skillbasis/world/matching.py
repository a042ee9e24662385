"""Draw right and wrong rows with the same lengths, so that length says nothing about which of them are right."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from random import Random


def matched_capacity(right: Sequence[int], wrong: Sequence[int], wrong_share: float) -> dict[int, int]:
    """How many rows of every length can be drawn so that the given share of them is wrong.

    Args:
        right, wrong: lengths of the rows that are there, in tokens, in any order.
        wrong_share: above 0 and below 1.
    Returns: rows by length, in rising order; lengths that only one side has give 0.
    """
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for side, lengths in enumerate((right, wrong)):
        for length in lengths:
            counts[length][side] += 1
    share = _exact(wrong_share)
    return {
        length: math.floor(min(n_right / (1 - share), n_wrong / share))
        for length, (n_right, n_wrong) in sorted(counts.items())
    }


def draw_matched(
    right: Sequence[int], wrong: Sequence[int], n_rows: int, wrong_share: float, rng: Random
) -> tuple[list[int], list[int]]:
    """Draws rows at random so that the share of wrong ones is the same at every length, to within a row.

    The lengths are drawn in proportion to their capacity. What rounding leaves over at one length is carried to the
    next, so the share of all rows is exact to half a row.

    Args:
        right, wrong: lengths of the rows that are there, in tokens.
    Returns: places of the drawn rows in `right` and in `wrong`, without repetition.
    Raises: ValueError: the lengths that both sides have do not give so many rows.
    """
    capacity = matched_capacity(right, wrong, wrong_share)
    total = sum(capacity.values())
    if n_rows > total:
        raise ValueError(f"{n_rows} rows asked for, but {total} can be matched by length")
    by_length = [_places_by_length(lengths, rng) for lengths in (right, wrong)]
    drawn: tuple[list[int], list[int]] = ([], [])
    share, room, n_drawn, n_wrong = _exact(wrong_share), 0, 0, 0
    for length, rows in capacity.items():
        room += rows
        until = _rounded(Fraction(n_rows * room, total)) if total else 0
        wrong_until = _rounded(share * until)
        here, wrong_here = until - n_drawn, wrong_until - n_wrong  # neither exceeds what there is, by the capacity
        drawn[0].extend(by_length[0][length][: here - wrong_here])
        drawn[1].extend(by_length[1][length][:wrong_here])
        n_drawn, n_wrong = until, wrong_until
    assert len(drawn[0]) + len(drawn[1]) == n_rows
    return drawn


def _exact(share: float) -> Fraction:
    """The share as it was written: halves must round the same way everywhere, or a length is asked for too many."""
    return Fraction(share).limit_denominator(10_000)


def _rounded(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def _places_by_length(lengths: Sequence[int], rng: Random) -> dict[int, list[int]]:
    """Places of the rows of each length, shuffled."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, length in enumerate(lengths):
        places[length].append(place)
    for length in sorted(places):
        rng.shuffle(places[length])
    return places


def shared_evenly(n_rows: int, capacity: Mapping[str, int]) -> dict[str, int]:
    """Splits rows among groups as evenly as their capacities let it; what a small group lacks goes to the others.

    Raises: ValueError: the groups together do not hold so many.
    """
    if n_rows > sum(capacity.values()):
        raise ValueError(f"{n_rows} rows asked for, but the groups hold {sum(capacity.values())}")
    left, sizes = n_rows, {}
    for done, (name, room) in enumerate(sorted(capacity.items(), key=lambda item: (item[1], item[0]))):
        sizes[name] = min(room, left // (len(capacity) - done))
        left -= sizes[name]
    return {name: sizes[name] for name in capacity}
