"""RDS+ and CRDS against their definitions, written as plain loops over all similarities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from skillbasis.corpus import SelectedRow
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.select import query as query_module
from skillbasis.select.candidates import Candidates, SelectionSettings
from skillbasis.select.evidence import QueryVectors
from skillbasis.select.query import nearest_rows, nearest_rows_whitened, whitening

Strategy = Callable[[Candidates, int, np.random.Generator], list[SelectedRow]]

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 12)).astype(np.float32)
QUERY = (RNG.normal(size=(7, 12)) + 0.5).astype(np.float32)


def candidates(rows: np.ndarray = ROWS, query: np.ndarray = QUERY, aggregate: str = "round-robin") -> Candidates:
    ids = [f"r{i}" for i in range(len(rows))]
    settings = SelectionSettings(aggregate=aggregate)  # type: ignore[arg-type]
    return Candidates(ids, [[]] * len(ids), settings=settings, query=QueryVectors(ids, rows, query))


def chosen(
    rows: np.ndarray = ROWS,
    query: np.ndarray = QUERY,
    n: int = 50,
    strategy: Strategy = nearest_rows,
    *,
    aggregate: str = "round-robin",
    seed: int = 0,
) -> list[tuple[int, float | None, int]]:
    """(row, cosine, query) of each choice."""
    found = strategy(candidates(rows, query, aggregate), n, np.random.default_rng(seed))
    assert [row.rank for row in found] == list(range(1, n + 1))
    return [(int(row.id[1:]), row.score, int(row.reason.split()[-1])) for row in found]


def cosines(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    return (query @ rows.T / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def plain_round_robin(similarity: np.ndarray, n: int) -> list[tuple[int, float, int]]:
    left, found = similarity.astype(np.float64), []
    for turn in range(n):
        j = turn % len(left)
        i = int(left[j].argmax())
        found.append((i, float(similarity[j, i]), j))
        left[:, i] = -np.inf
    return found


@pytest.mark.parametrize("n", [1, 6, 7, 50, 299, 300])
def test_round_robin_is_that_of_the_plain_loop(n: int) -> None:
    assert chosen(n=n) == plain_round_robin(cosines(ROWS, QUERY), n)


@pytest.mark.parametrize("entries", [1, 7, 30, 200])
@pytest.mark.parametrize("alike", [False, True])
def test_queries_that_lose_their_rows_to_others_look_again(
    entries: int, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to one row kept of each query, and queries that all want the same rows."""
    query = QUERY[[0] * 7] if alike else QUERY
    expected = plain_round_robin(cosines(ROWS, query), 120)
    monkeypatch.setattr(query_module, "_ENTRIES", entries)
    monkeypatch.setattr(query_module, "_ROWS", 11)
    assert chosen(query=query, n=120) == expected


def test_one_look_at_the_rows_is_enough_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    best = query_module._Similarities.best

    def counting(self: query_module._Similarities, n: int, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        looks.append((n, int(free.sum())))
        return best(self, n, free)

    monkeypatch.setattr(query_module._Similarities, "best", counting)
    chosen(query=QUERY[[0] * 7], n=120)
    assert looks == [(120, 300)]
    monkeypatch.setattr(query_module, "_ENTRIES", 7 * 50)
    chosen(query=QUERY[[0] * 7], n=120)
    # All want the same: 50 rows are gone after 50 choices, and of the last 20 no more are kept than needed.
    assert looks[1:] == [(50, 300), (50, 250), (20, 200)]


def test_max_takes_the_rows_nearest_to_any_query(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = cosines(ROWS, QUERY)
    best = np.argsort(-similarity.max(axis=0), kind="stable")[:50]
    expected = [(int(i), float(similarity[:, i].max()), int(similarity[:, i].argmax())) for i in best]
    assert chosen(aggregate="max") == expected
    monkeypatch.setattr(query_module, "_ROWS", 11)
    assert chosen(aggregate="max") == expected
    assert chosen() != expected


def test_by_hand() -> None:
    rows = np.array([[5.0, 0.0], [1.0, 0.1], [3.0, 3.0], [0.0, -1.0], [0.0, 0.0]], dtype=np.float32)
    query = np.array([[2.0, 0.0], [9.0, 1.0]], dtype=np.float32)
    # Both want rows 0 and 1 first: query 0 takes 0 (cosine 1), query 1 takes 1, then 2 goes to 0, then 4 (cosine 0)
    # before 3 (cosine below 0) to query 1.
    found = chosen(rows, query, 5)
    assert [(i, j) for i, _, j in found] == [(0, 0), (1, 1), (2, 0), (4, 1), (3, 0)]
    assert [round(cosine, 4) for _, cosine, _ in found] == [1.0, 0.9999, 0.7071, 0.0, 0.0]


def test_length_does_not_matter_and_ties_go_to_the_earlier_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS[RNG.integers(20, size=200)]  # ten copies of each
    similarity = cosines(rows, QUERY)
    expected = plain_round_robin(similarity, 120)
    assert chosen(rows, n=120) == expected
    assert chosen(rows * 2.0 ** RNG.integers(-3, 3, size=(200, 1)), n=120) == expected
    monkeypatch.setattr(query_module, "_ROWS", 13)
    assert chosen(rows, n=120) == expected
    order = np.lexsort((np.arange(200), -similarity.max(axis=0)))
    assert [i for i, _, _ in chosen(rows, n=200, aggregate="max")] == order.tolist()


def test_keys_order_as_cosines_do_and_give_them_back() -> None:
    values = np.array([[-1.0, 1.0, -0.0, 0.0, 1e-30, -1e-30, 0.5, np.nextafter(np.float32(0.5), 1)]], dtype=np.float32)
    keys = query_module._keys(values, 100)
    assert query_module._rows_of(keys).tolist() == [list(range(100, 108))]
    np.testing.assert_array_equal(query_module._cosines_of(keys), values)
    order = np.argsort(-keys[0])
    assert order.tolist() == [1, 7, 6, 4, 2, 3, 5, 0], "0 and -0 are the same, the earlier row first"


def test_a_smaller_budget_gives_the_first_rows_of_a_larger_one() -> None:
    for aggregate in ("round-robin", "max"):
        for strategy in (nearest_rows, nearest_rows_whitened):
            few, many = (chosen(n=n, strategy=strategy, aggregate=aggregate) for n in (30, 90))
            assert few == many[:30]


# Whitening

SKEWED = ROWS * np.array([100.0, *[1.0] * 11], dtype=np.float32) + np.float32(50)


def test_whitened_rows_have_unit_covariance() -> None:
    white = whitening(SKEWED, np.random.default_rng(0))(SKEWED)
    assert white.shape == (300, 12)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(white.T @ white / 300, np.eye(12), atol=1e-8)


def test_crds_is_the_cosine_of_mahalanobis() -> None:
    """With all components kept, whitened products are (x - m) C^-1 (y - m), without any eigenvector."""
    query = QUERY * np.array([100.0, *[1.0] * 11], dtype=np.float32) + np.float32(50)
    mean = SKEWED.mean(axis=0, dtype=np.float64)
    precision = np.linalg.inv(np.cov(SKEWED.astype(np.float64).T, bias=True))
    x, y = SKEWED - mean, query - mean
    lengths = [np.sqrt(np.einsum("ij,jk,ik->i", v, precision, v)) for v in (x, y)]
    similarity = y @ precision @ x.T / lengths[0] / lengths[1][:, None]
    found = chosen(SKEWED, query, 60, nearest_rows_whitened)
    expected = plain_round_robin(similarity, 60)
    assert [(i, j) for i, _, j in found] == [(i, j) for i, _, j in expected]
    np.testing.assert_allclose([c for _, c, _ in found], [c for _, c, _ in expected], atol=1e-6)  # float32
    assert [i for i, _, _ in found] != [i for i, _, _ in chosen(SKEWED, query, 60)]


def test_one_large_component_does_not_hide_the_others() -> None:
    """Every vector shares a large component that varies; what tells the queries' kind is small beside it."""
    rng = np.random.default_rng(2)
    kind = rng.integers(2, size=400) * 2 - 1
    rows = np.column_stack([1000 + 100 * rng.normal(size=400), kind + 0.1 * rng.normal(size=400)]).astype(np.float32)
    query = np.array([[1000.0, 1.0]], dtype=np.float32)
    plain, whitened = (chosen(rows, query, 100, strategy) for strategy in (nearest_rows, nearest_rows_whitened))
    assert all(kind[i] == 1 for i, _, _ in whitened)
    assert min(c or 0 for _, c, _ in plain) > 0.99999, "nearly the same to the plain cosine"


def test_fewer_components_where_rows_are_few_or_dependent(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    assert whitening(ROWS[:59], rng)(ROWS).shape == (300, 5), "one for ten rows"
    assert whitening(ROWS[:5], rng)(ROWS).shape == (300, 1)
    dependent = np.column_stack([ROWS, ROWS[:, :4]])
    assert whitening(dependent, rng)(dependent).shape == (300, 12)
    assert whitening(np.ones((30, 4)), rng)(ROWS[:, :4]).shape == (300, 0), "all rows the same"
    assert len(chosen(np.ones((30, 4)), QUERY[:, :4], 10, nearest_rows_whitened)) == 10
    monkeypatch.setattr(query_module, "_DIMENSIONS", 3)
    leading = whitening(SKEWED, rng)(SKEWED)
    assert leading.shape == (300, 3)
    assert max(abs(np.corrcoef(leading[:, k], SKEWED[:, 0])[0, 1]) for k in range(3)) > 0.999


def test_whitening_is_fitted_on_a_sample_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whitening(SKEWED, np.random.default_rng(0))(SKEWED)
    monkeypatch.setattr(query_module, "_PRODUCT", 12 * 17)
    np.testing.assert_allclose(np.abs(whitening(SKEWED, np.random.default_rng(0))(SKEWED)), np.abs(whole), atol=1e-7)
    monkeypatch.setattr(query_module, "_FITTED", 150)
    sampled = whitening(SKEWED, np.random.default_rng(3))
    drawn = np.sort(np.random.default_rng(3).choice(300, 150, replace=False))
    white = sampled(SKEWED[drawn])
    np.testing.assert_allclose(white.T @ white / 150, np.eye(12), atol=1e-8)
    first, again = (chosen(SKEWED, QUERY, 40, nearest_rows_whitened, seed=4) for _ in range(2))
    assert first == again


def test_what_is_missing_or_broken() -> None:
    rng = np.random.default_rng(0)
    for strategy in (nearest_rows, nearest_rows_whitened):
        with pytest.raises(UsageError, match="needs vectors of a query set"):
            strategy(Candidates(["a"], [[]]), 1, rng)
        with pytest.raises(UsageError, match="the query set is empty"):
            strategy(candidates(query=QUERY[:0]), 5, rng)
        broken = QUERY.copy()
        broken[3, 2] = np.inf
        with pytest.raises(ArtifactError, match="the vector of query 3 is not finite"):
            strategy(candidates(query=broken), 5, rng)
    broken = ROWS.copy()
    broken[271, 2] = np.nan
    with pytest.raises(ArtifactError, match="the vector of row 'r271' is not finite; read the row again"):
        nearest_rows(candidates(broken), 5, rng)
    with pytest.raises(ArtifactError, match="the vector of row number 271 is not finite; read the row again"):
        nearest_rows_whitened(candidates(broken), 5, rng)
