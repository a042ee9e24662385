"""Right and wrong rows drawn with the same lengths: the share at every length, capacities, and what cannot be drawn."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from skillbasis.world.matching import draw_matched, matched_capacity, shared_evenly


def test_capacity_by_hand() -> None:
    # 13 right and 7 wrong are 20 rows at a share of .35; one wrong row allows two rows; right rows alone allow none.
    right, wrong = [5] * 13 + [6] * 10 + [7] * 4, [5] * 7 + [6] + [8] * 9
    assert matched_capacity(right, wrong, 0.35) == {5: 20, 6: 2, 7: 0, 8: 0}
    assert matched_capacity([], [], 0.35) == {}


@pytest.mark.parametrize("wrong_share", [0.2, 0.35, 0.5, 0.9])
def test_the_share_of_wrong_rows_is_the_same_at_every_length(wrong_share: float) -> None:
    rng = Random("lengths")
    right = [rng.randrange(10, 40) for _ in range(4000)]
    wrong = [rng.randrange(20, 60) for _ in range(4000)]  # wrong solutions are longer, some longer than any right one
    capacity = matched_capacity(right, wrong, wrong_share)
    total = sum(capacity.values())
    for n_rows in (1, 37, total // 2, total):
        places = draw_matched(right, wrong, n_rows, wrong_share, Random(0))
        drawn = [Counter(lengths[i] for i in side) for lengths, side in zip((right, wrong), places, strict=True)]
        assert len(set(places[0])) == len(places[0]) and len(set(places[1])) == len(places[1])
        assert len(places[0]) + len(places[1]) == n_rows
        assert abs(len(places[1]) - wrong_share * n_rows) <= 0.5 + 1e-9
        assert set(drawn[0] | drawn[1]) <= set(range(20, 40))
        for length, rows in (drawn[0] + drawn[1]).items():
            assert rows <= capacity[length]
            assert abs(drawn[1][length] - wrong_share * rows) < 1 + 1e-9


def test_all_that_can_be_matched_is_drawn() -> None:
    # Rounding in floating point (.35 x 70 = 24.499..., .35 x 110 = 38.5) would ask one length for more than it has.
    rng = Random("all")
    for _ in range(300):
        right, wrong = ([rng.randrange(8) for _ in range(rng.randrange(200))] for _ in range(2))
        for wrong_share in (0.35, 0.3, 0.15):
            total = sum(matched_capacity(right, wrong, wrong_share).values())
            places = draw_matched(right, wrong, total, wrong_share, rng)
            assert len(set(places[0])) + len(set(places[1])) == total


def test_rows_of_a_length_are_drawn_at_random_by_the_seed() -> None:
    first, again, other = (draw_matched([5] * 100, [5] * 100, 20, 0.35, Random(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first[0]) != list(range(13))  # not the first ones


def test_too_few_rows_of_the_same_length_are_refused() -> None:
    with pytest.raises(ValueError, match="21 rows asked for, but 20 can be matched by length"):
        draw_matched([5] * 13, [5] * 7 + [6] * 100, 21, 0.35, Random(0))
    assert draw_matched([5], [6], 0, 0.35, Random(0)) == ([], [])


def test_what_small_groups_lack_goes_to_the_others() -> None:
    assert shared_evenly(30, {"a": 100, "b": 4, "c": 100}) == {"a": 13, "b": 4, "c": 13}
    assert shared_evenly(10, {"a": 9, "b": 9, "c": 9}) == {"a": 3, "b": 3, "c": 4}
    assert shared_evenly(0, {"a": 1}) == {"a": 0}
    with pytest.raises(ValueError, match="8 rows asked for, but the groups hold 7"):
        shared_evenly(8, {"a": 3, "b": 4})


def test_every_split_that_fits_is_found_and_even() -> None:
    rng = Random("even")
    for _ in range(500):
        capacity = {name: rng.randrange(6) for name in "abcd"}
        n = rng.randrange(sum(capacity.values()) + 1)
        sizes = shared_evenly(n, capacity)
        assert sum(sizes.values()) == n and all(sizes[name] <= capacity[name] for name in capacity)
        unfilled = [sizes[name] for name in capacity if sizes[name] < capacity[name]]
        assert max(sizes.values()) - min(unfilled, default=max(sizes.values())) <= 1
