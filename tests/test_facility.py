from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skillbasis.corpus import load_corpus
from skillbasis.errors import UsageError
from skillbasis.select import facility
from skillbasis.select.candidates import Candidates
from skillbasis.select.facility import representatives, representing_rows


def unit(n: int, d: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def shortfall(vectors: np.ndarray, ground: np.ndarray, chosen: np.ndarray) -> tuple[float, list[float]]:
    """How much less than the best row any chosen one added, looking at every row at every choice; and all gains."""
    similarity = np.maximum(vectors.astype(np.float64) @ vectors[ground].T.astype(np.float64), 0)  # (rows, ground)
    nearest, worst, gains = np.zeros(len(ground)), 0.0, list[float]()
    for row in chosen:
        gain = np.maximum(similarity, nearest).sum(axis=1) - nearest.sum()
        worst = max(worst, float(gain.max() - gain[row]))
        gains.append(float(gain[row]))
        nearest = np.maximum(nearest, similarity[row])
    return worst, gains


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_rows", "d"), [(1, 3), (12, 2), (60, 4), (300, 8)])
def test_every_choice_is_the_best_of_all_rows(n_rows: int, d: int, seed: int) -> None:
    vectors = unit(n_rows, d, seed)
    some = np.sort(np.random.default_rng(seed).choice(n_rows, max(1, n_rows // 3), replace=False))
    for ground in (None, some):
        found = representatives(vectors, n_rows, ground)
        assert sorted(found.indices) == list(range(n_rows))
        worst, gains = shortfall(vectors, np.arange(n_rows) if ground is None else ground, found.indices)
        # Rounded to 0.0001, two gains may differ by that much and count as equal; the rest is float32.
        assert worst < 1.2e-4
        np.testing.assert_allclose(found.gains, gains, atol=0.7e-4)
        assert (np.diff(found.gains) <= 1e-9).all()


def test_small_blocks_and_renewals_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(200, 6, seed=9)
    whole = representatives(vectors, 50)
    for name, value in (("_ENTRIES", 700), ("_FEWEST", 1), ("_MOST", 1)):
        monkeypatch.setattr(facility, name, value)
    assert representatives(vectors, 50).indices.tolist() == whole.indices.tolist()


def test_by_hand() -> None:
    # Three rows at 0, 45 and 90 degrees and one at 180: the middle one stands best for the first three.
    angles = np.deg2rad([0, 45, 90, 180])
    found = representatives(np.column_stack([np.cos(angles), np.sin(angles)]), 4)
    half = np.sqrt(0.5)
    assert found.indices.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(found.gains, [1 + 2 * half, 1, 1 - half, 1 - half], atol=0.5001e-4)  # rounded


def test_no_row_is_chosen_twice_where_every_gain_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facility, "_CHEAP", 0)
    vectors = np.repeat(unit(20, 3, seed=2), 3, axis=0)
    found = representatives(vectors, 60)
    assert sorted(found.indices) == list(range(60))
    assert (found.indices[:10] % 3 == 0).all(), "of equal rows the first is chosen"


def test_when_nothing_is_left_to_gain_the_rest_fills_up_in_order() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 3, axis=0)  # three rows thrice
    found = representatives(vectors, 7)
    assert found.indices.tolist() == [0, 3, 6, 1, 2, 4, 5]
    assert found.gains.tolist() == [3, 3, 3, 0, 0, 0, 0]
    assert representatives(np.zeros((3, 2), dtype=np.float32), 2).indices.tolist() == [0, 1]


def test_one_of_each_group_comes_first_the_largest_group_before_all() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(5)[rng.choice(5, size=400, p=[0.1, 0.3, 0.4, 0.15, 0.05])]
    vectors = centres + 0.05 * rng.normal(size=centres.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first = representatives(vectors, 5).indices
    assert centres[first].argmax(axis=1).tolist() == [2, 1, 3, 0, 4]


def test_requests_that_cannot_be_meant() -> None:
    for n in (0, 4):
        with pytest.raises(UsageError, match=f"from 1 to the number of rows, 3, not {n}"):
            representatives(unit(3, 2, 0), n)
    with pytest.raises(UsageError, match="a table .n_rows, d. of finite numbers"):
        representatives(np.array([[1.0, np.nan]]), 1)


# As a strategy


def candidates(tmp_path: Path, n: int) -> Candidates:
    rng = np.random.default_rng(0)
    words = ("river boat sail wind wave", "oven bread flour yeast dough")
    rows = [
        {"id": f"r{i}", "prompt": "Tell.", "response": " ".join(rng.choice(words[i % 2].split(), 6))} for i in range(n)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Candidates.of(load_corpus(path))


def test_a_small_pool_is_represented_whole_whatever_the_seed(tmp_path: Path) -> None:
    given = candidates(tmp_path, 80)
    rows = representing_rows(given, 10, np.random.default_rng(0))
    assert rows == representing_rows(given, 10, np.random.default_rng(1))
    assert [row.rank for row in rows] == list(range(1, 11)) and len({row.id for row in rows}) == 10
    assert {int(row.id[1:]) % 2 for row in rows[:2]} == {0, 1}, "one for each half of the pool first"
    assert {row.reason for row in rows} == {"represents the pool"}
    scores = [row.score or 0.0 for row in rows]
    assert scores == sorted(scores, reverse=True) and 20 < scores[0] < 80


def test_of_a_large_pool_a_seeded_sample_is_represented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facility, "GROUND_ROWS", 16)
    given = candidates(tmp_path, 80)
    rows = representing_rows(given, 4, np.random.default_rng(0))
    assert {row.reason for row in rows} == {"represents a random sample of 16 rows"}
    assert rows == representing_rows(given, 4, np.random.default_rng(0))
    drawn = {tuple(row.id for row in representing_rows(given, 4, np.random.default_rng(seed))) for seed in range(4)}
    assert len(drawn) > 1
    longer = representing_rows(given, 40, np.random.default_rng(0))
    assert longer[:4] == rows, "the first rows do not depend on the budget"
    # Once each text of the sample is chosen nothing is left to gain; then rows are drawn from the whole pool.
    filled = [int(row.id[1:]) for row in longer if row.reason == "filled up: nothing to gain"]
    assert len(filled) > 15 and filled != sorted(filled) and len({row.id for row in longer}) == 40
