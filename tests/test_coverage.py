from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from skillbasis.basis import Scores
from skillbasis.corpus import SelectedRow
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.evaluate.likelihood import Likelihood
from skillbasis.select import Candidates, SelectionSettings, coverage, select
from skillbasis.select.coverage import farthest_points


def plain_loop(points: np.ndarray, n: int, first: int | None = None) -> tuple[list[int], list[float]]:
    """The definition, in float64; with what happens when only copies of chosen points are left."""
    if first is None:
        first = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())
    chosen, distances, d = [first], [np.inf], np.full(len(points), np.inf)
    while len(chosen) < n:
        d = np.minimum(d, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        best = int(d.argmax())
        if d[best] == 0:
            best = min(set(range(len(points))) - set(chosen))
        chosen.append(best)
        distances.append(float(np.sqrt(d[best])))
    return chosen, distances


def made(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points: np.ndarray = rng.normal(size=(n, d))
    if kind == "clustered":
        points = points / 20 + 5 * rng.normal(size=(7, d))[rng.integers(7, size=n)]
    elif kind == "heavy-tailed":  # radii over 28 powers of ten: squares of the small ones underflow in float32
        points = points * 10 ** rng.uniform(-25, 3, size=(n, 1))
    elif kind == "duplicated":
        points = points[rng.integers(max(1, n // 5), size=n)]
    elif kind == "gridded":  # whole numbers: many exact ties
        points = rng.integers(0, 3, size=(n, d)).astype(float)
    elif kind == "far from zero":  # float32 cannot tell these points apart
        points = points + 1e9
    elif kind == "nearly tied":  # corners of a cube, moved in the last bits of float64
        points = np.sign(points) * (1 + rng.integers(0, 3, size=(n, d)) * 2.0**-52)
    elif kind == "tiny":
        points = points * 1e-120
    return points


KINDS = ("random", "clustered", "heavy-tailed", "duplicated", "gridded", "far from zero", "nearly tied", "tiny")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_points", "d", "n"), [(400, 25, 400), (900, 3, 600), (300, 1, 300), (1, 4, 1), (2, 2, 2)])
def test_the_choice_is_that_of_the_plain_loop(kind: str, n_points: int, d: int, n: int) -> None:
    for seed in range(3):
        points = made(kind, n_points, d, seed)
        found = farthest_points(points, n)
        chosen, distances = plain_loop(points, n)
        assert found.indices.tolist() == chosen
        assert found.distances.tolist() == distances, "equal to the last bit, not nearly"
        assert len(set(chosen)) == n and (np.diff(found.distances[1:]) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contenders", [1, 2, 37])
def test_blocks_of_any_size_give_the_same(kind: str, contenders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = made(kind, 500, 4, seed=9)
    whole = farthest_points(points, 200)
    for name, value in {"_CONTENDERS": contenders, "_BLOCK": 5, "_PRODUCT": 60, "_ROWS": 33}.items():
        monkeypatch.setattr(coverage, name, value)
    cut = farthest_points(points, 200)
    assert (cut.indices == whole.indices).all() and (cut.distances == whole.distances).all()
    assert whole.indices.tolist() == plain_loop(points, 200)[0]


def test_most_points_are_not_looked_at_by_the_slow_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    points, n_exact = made("random", 20_000, 8, 0), 0
    decide = coverage._NearestChosen._decide

    def counting(self: coverage._NearestChosen, rows: np.ndarray, centres: np.ndarray) -> None:
        nonlocal n_exact
        n_exact += len(rows)
        decide(self, rows, centres)

    monkeypatch.setattr(coverage._NearestChosen, "_decide", counting)
    farthest_points(points, 500)
    # A point changes its nearest choice about ln(500) = 6 times, of 500 it is held against; each change costs two.
    assert n_exact < 25 * len(points)


def test_points_on_a_line_by_hand() -> None:
    line = np.array([[0.0], [1.0], [2.0], [4.0], [8.0]])  # mean 3
    found = farthest_points(line, 5)
    # 8 is 5 from the mean; 0 is 8 from it; 4 is 4 from both; 2 is 2 from 0 and 4; 1 is 1 from 0 and 2.
    assert found.indices.tolist() == [4, 0, 3, 2, 1]
    assert found.distances.tolist() == [np.inf, 8.0, 4.0, 2.0, 1.0]
    begun = farthest_points(line, 4, first=2)
    assert begun.indices.tolist() == [2, 4, 0, 3]  # 8 is 6 from 2; then 0 and 4 are both 2 from it: the lowest index
    assert begun.distances.tolist() == [np.inf, 6.0, 2.0, 2.0]


def test_the_first_point_is_as_asked() -> None:
    points = made("random", 200, 5, 3)
    for first in (0, 57, np.int64(199)):
        found = farthest_points(points, 40, first=first)
        assert found.indices.tolist() == plain_loop(points, 40, int(first))[0]


def test_copies_of_chosen_points_come_last_in_the_order_of_indices() -> None:
    points = np.array([[1.0, 0.0], [5.0, 5.0], [1.0, 0.0], [5.0, 5.0], [1.0, 0.0]])
    found = farthest_points(points, 5)
    assert found.indices.tolist() == [1, 0, 2, 3, 4]
    assert found.distances.tolist() == [np.inf, np.sqrt(41), 0, 0, 0]
    assert farthest_points(np.ones((4, 3)), 3).indices.tolist() == [0, 1, 2], "all points the same"
    assert farthest_points(np.ones((4, 0)), 4).indices.tolist() == [0, 1, 2, 3], "no features at all"


def test_the_layout_and_type_of_the_points_do_not_matter() -> None:
    points = made("random", 300, 25, 4).astype(np.float32)
    expected = plain_loop(points.astype(np.float64), 100)[0]
    for same in (points, np.asfortranarray(points), points.astype(np.float64).T.copy().T, points.tolist()):
        assert farthest_points(same, 100).indices.tolist() == expected  # type: ignore[arg-type]


def test_requests_that_cannot_be_meant() -> None:
    points = np.arange(6.0).reshape(3, 2)
    for n in (0, -1, 4):
        with pytest.raises(UsageError, match=f"n must be from 1 to the number of points, 3, not {n}"):
            farthest_points(points, n)
    for first in (-1, 3):
        with pytest.raises(UsageError, match=f"first must be an index from 0 to 2, not {first}"):
            farthest_points(points, 1, first=first)
    for value in (np.nan, np.inf):
        points[1, 0] = value
        with pytest.raises(UsageError, match="point 1 is not finite"):
            farthest_points(points, 2)
    with pytest.raises(UsageError, match=r"must be a table .* not of shape \(3,\)"):
        farthest_points(np.ones(3), 2)
    for scale in (1e-150, 1e160, 1e308):
        with pytest.raises(UsageError, match="leave the range of float64; scale them first"):
            farthest_points(np.array([[1.0], [-1.0], [0.5]]) * scale, 2)


# The strategy

IDS = [f"r{i:03}" for i in range(300)]
VALUES = np.random.default_rng(1).normal(size=(300, 4)) * [1000.0, 1.0, 0.01, 0.0] + 7.0


def candidates(ids: list[str] = IDS, values: np.ndarray = VALUES) -> Candidates:
    norm = np.ones(len(ids))
    return Candidates(ids, [[]] * len(ids), Scores(ids, values, norm, norm))


def test_coverage_takes_farthest_points_of_whitened_scores() -> None:
    rows = select(candidates(), "coverage", 20, seed=0)
    whitened = VALUES[:, :3] / VALUES[:, :3].std(axis=0)  # all candidates agree on direction 3
    chosen, distances = plain_loop(whitened, 20)
    assert [row.id for row in rows] == [IDS[i] for i in chosen]
    assert [row.score for row in rows] == [None, *distances[1:]]
    assert Counter(row.reason for row in rows) == {"farthest from the mean": 1, "farthest from the rows before": 19}
    assert {(row.direction, row.sign) for row in rows} == {(None, None)}
    unwhitened = [IDS[i] for i in plain_loop(VALUES, 20)[0]]
    assert [row.id for row in rows] != unwhitened


def test_a_direction_of_large_scale_does_not_decide_alone() -> None:
    # Eight corners of a box that is 1000 long, 1 wide and 0.01 high, and a crowd on its long middle axis.
    corners = np.array([[x, y, z] for x in (-500, 500) for y in (-0.5, 0.5) for z in (-0.005, 0.005)])
    crowd = np.column_stack([np.linspace(-480, 480, 292), *np.zeros((2, 292))])
    values = np.concatenate([crowd, corners])

    def edges(chosen: list[int]) -> set[tuple[float, float]]:
        return {(values[i, 1], values[i, 2]) for i in chosen}

    rows = select(candidates(IDS, values), "coverage", 4, seed=0)
    assert len(edges([IDS.index(row.id) for row in rows]) - {(0, 0)}) == 4, "one corner on every long edge"
    assert len(edges(plain_loop(values, 4)[0]) - {(0, 0)}) == 2, "without whitening both ends, then the middle"


def test_neither_the_order_of_the_candidates_nor_the_seed_matters() -> None:
    values = np.random.default_rng(2).integers(0, 3, size=(300, 4)).astype(float)  # many ties, many copies
    expected = select(candidates(IDS, values), "coverage", 250, seed=0)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(300)
        shuffled = candidates([IDS[i] for i in order], values[order])
        assert select(shuffled, "coverage", 250, seed) == expected


def test_the_budget_is_met_when_rows_coincide() -> None:
    values = np.array([[0.0], [1.0], [1.0], [0.0], [0.5]])
    rows = select(candidates(list("edcba"), values), "coverage", 5, seed=0)
    # By id: a .5, b 0, c 1, d 1, e 0; the mean is .5, b and c are farthest from it and b comes first.
    assert [row.id for row in rows] == list("bcade")
    assert [row.reason.split(":")[0] for row in rows[3:]] == ["filled up", "filled up"] and rows[4].score == 0.0
    same = select(candidates(list("ba"), np.ones((2, 3))), "coverage", 2, seed=0)
    assert [row.id for row in same] == ["a", "b"], "no direction varies"


def test_coverage_needs_finite_scores() -> None:
    with pytest.raises(UsageError, match="needs scores.*--scores"):
        select(Candidates(IDS, [[]] * 300), "coverage", 5, seed=0)
    values = VALUES.copy()
    values[7, 2] = np.nan
    with pytest.raises(ArtifactError, match="row 'r007' has a score that is not finite; score the corpus again"):
        select(candidates(IDS, values), "coverage", 5, seed=0)


# Coverage of the best

QUALITY = np.random.default_rng(4).integers(0, 40, size=300).astype(float)  # ties


def best_covered(
    budget: int, quality: np.ndarray | None = QUALITY, nll: np.ndarray | None = None, share: float = 0.5
) -> list[SelectedRow]:
    known = candidates()
    if nll is not None:
        known = replace(known, likelihood=Likelihood(IDS, nll, nll, np.ones(300, dtype=np.int64)))
    known = replace(known, given_quality=quality, settings=SelectionSettings(quality_share=share))
    return coverage.covering_best_rows(known, budget, np.random.default_rng(0))


def expected_of_best(badness: np.ndarray, n_best: int, budget: int) -> tuple[list[str], list[float]]:
    kept = sorted(sorted(range(300), key=lambda i: (badness[i], IDS[i]))[:n_best])
    whitened = (VALUES[:, :3] / VALUES[:, :3].std(axis=0))[kept]  # standard deviations of all, not of the best
    chosen, distances = plain_loop(whitened, budget)
    return [IDS[kept[i]] for i in chosen], distances


def test_only_the_best_by_given_quality_are_covered() -> None:
    rows = best_covered(20, nll=QUALITY)
    ids, distances = expected_of_best(-QUALITY, 150, 20)
    assert [row.id for row in rows] == ids and [row.rank for row in rows] == list(range(1, 21))
    assert [row.score for row in rows] == [None, *distances[1:]]
    assert rows[0].reason == "farthest from the mean, of the best 150 by quality"
    assert {row.reason for row in rows[1:]} == {"farthest from the rows before, of the best 150 by quality"}
    assert [row.id for row in rows] != [row.id for row in coverage.covering_rows(candidates(), 20, None)]  # type: ignore[arg-type]
    assert [row.id for row in best_covered(20, share=1.0)] == expected_of_best(-QUALITY, 300, 20)[0]


def test_the_best_are_the_likeliest_where_no_quality_is_given() -> None:
    nll = np.random.default_rng(5).random(300)
    nll[np.argsort(nll)[:10]] = np.nan  # nothing read: last, not first
    rows = best_covered(20, None, nll, share=0.1)
    assert [row.id for row in rows] == expected_of_best(np.where(np.isnan(nll), np.inf, nll), 30, 20)[0]
    assert rows[0].reason == "farthest from the mean, of the best 30 by mean NLL"


def test_a_budget_above_the_share_goes_on_with_the_next_best() -> None:
    rows = best_covered(50, share=0.1)
    assert [row.id for row in rows[:30]] == expected_of_best(-QUALITY, 30, 30)[0]
    order = sorted(IDS, key=lambda row_id: (-QUALITY[IDS.index(row_id)], row_id))
    assert [row.id for row in rows[30:]] == order[30:50] and [row.rank for row in rows] == list(range(1, 51))
    assert {(row.score, row.reason) for row in rows[30:]} == {(None, "filled up: next best by quality")}
    assert best_covered(40, share=0.1) == rows[:40], "a smaller budget gives the first rows of a larger one"
    assert [row.id for row in best_covered(5, share=0.0)] == order[:5], "no share: the best alone"
    assert len({row.id for row in best_covered(300)}) == 300


def test_the_best_do_not_depend_on_the_order_of_the_candidates() -> None:
    expected = best_covered(60, share=0.1)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(300)
        shuffled = replace(candidates([IDS[i] for i in order], VALUES[order]), given_quality=QUALITY[order])
        shuffled = shuffled.with_settings(SelectionSettings(quality_share=0.1))
        assert coverage.covering_best_rows(shuffled, 60, np.random.default_rng(seed)) == expected


def test_the_best_need_a_quality_or_likelihoods_and_scores() -> None:
    with pytest.raises(UsageError, match="needs likelihoods"):
        best_covered(5, quality=None)
    with pytest.raises(UsageError, match="needs scores"):
        coverage.covering_best_rows(Candidates(IDS, [[]] * 300, given_quality=QUALITY), 5, np.random.default_rng(0))
