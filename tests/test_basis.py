"""Principal directions against exact decompositions and planted truth; scores by hand; bases on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import HIDDEN, files, make_model, make_tokenizer
from skillbasis.activations import ActivationStore, ExtractionSettings, LiveActivations, extract
from skillbasis.basis import PcaSettings, Scores, SkillBasis, fit_pca, score
from skillbasis.basis.basis import fix_signs
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import wrap

MakeStore = Callable[..., ActivationStore]
SOLVERS = ("exact", "krylov")


def planted(
    rng: np.random.Generator, n: int, d: int, variances: np.ndarray, *, mean: float = 0.0, noise: float = 0.0
) -> np.ndarray:
    """(n, d) float64 whose sample covariance has exactly these variances, along random directions, but for noise."""
    scores = rng.standard_normal((n, len(variances)))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0] * np.sqrt((n - 1) * variances)
    directions = np.linalg.qr(rng.standard_normal((d, len(variances))))[0]
    return scores @ directions.T + mean * rng.standard_normal(d) + noise * rng.standard_normal((n, d))


def svd(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Top k variances (k,) and directions (k, d) by NumPy's full decomposition in float64."""
    centred = x.astype(np.float32).astype(np.float64)
    centred -= centred.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    return (values**2 / (len(x) - 1))[:k], directions[:k]


def degrees(directions: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angle (k,) between corresponding directions, up to sign."""
    flat = directions.reshape(len(directions), -1).astype(np.float64)
    truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    rest = flat - (flat * truth).sum(axis=1, keepdims=True) * truth  # the sine is accurate where the cosine is not
    return np.degrees(np.arcsin(np.clip(np.linalg.norm(rest, axis=1), 0, 1)))


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize(("n", "d"), [(400, 240), (60, 240)])
def test_directions_and_variances_are_those_of_the_svd(method: Any, n: int, d: int, make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    x = planted(rng, n, d, 50 * 0.7 ** np.arange(30), mean=20, noise=0.05)
    basis = fit_pca(make_store(x.reshape(n, 4, d // 4), shard_rows=70), PcaSettings(k=8, method=method))
    variances, directions = svd(x, 8)
    assert degrees(basis.directions, directions).max() < 0.1
    np.testing.assert_allclose(basis.explained_variance, variances, rtol=1e-4)
    np.testing.assert_allclose(basis.config["eigenvalues"], variances, rtol=1e-4)
    np.testing.assert_allclose(basis.score_std, np.sqrt(variances), rtol=1e-4)
    np.testing.assert_allclose(basis.mean.reshape(-1), x.mean(axis=0), rtol=1e-5, atol=1e-4)
    total = x.var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(basis.config["total_variance"], total, rtol=1e-4)
    np.testing.assert_allclose(basis.config["explained_variance_ratio"], variances / total, rtol=1e-4)
    assert basis.config["solver"] == method
    assert basis.config["passes"] == 1  # the sample that Krylov starts from has all rows
    assert basis.config["orthogonal"] is True


def test_krylov_on_a_large_mean_outlier_dimensions_and_a_long_tail(make_store: MakeStore) -> None:
    from scipy.sparse.linalg import svds

    rng = np.random.default_rng(1)
    n, d, k = 3000, 3000, 10
    x = planted(rng, n, d, 200 * 0.75 ** np.arange(40), mean=30, noise=0.3).astype(np.float32)
    x[:, [5, 1700]] += 3000.0  # two dimensions at a hundred times the others, and varying, as in real models
    x[:, 5] += 100 * rng.standard_normal(n).astype(np.float32)
    x[:, 1700] += 40 * rng.standard_normal(n).astype(np.float32)
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    values, directions = svds(centred, k=k, return_singular_vectors="vh", rng=np.random.default_rng(0))[1:]
    variances, directions = values[::-1] ** 2 / (n - 1), directions[::-1]
    basis = fit_pca(make_store(x.reshape(n, 30, 100)), PcaSettings(k=k))
    assert basis.config["solver"] == "krylov"
    assert degrees(basis.directions, directions).max() < 0.1
    np.testing.assert_allclose(basis.explained_variance, variances, rtol=1e-4)
    assert basis.config["angle_degrees"] < 0.1
    assert basis.config["passes"] <= 8
    gram = basis.directions.reshape(k, -1) @ basis.directions.reshape(k, -1).T
    np.testing.assert_allclose(gram, np.eye(k), atol=1e-5)


@pytest.mark.parametrize("decay", ["geometric", "power law", "steps", "white"])
def test_krylov_and_exact_agree(decay: str, make_store: MakeStore) -> None:
    rng = np.random.default_rng(2)
    n, d, k = 800, 400, 10
    place = np.arange(d)
    variances = {
        "geometric": 1e4 * 0.5**place + 1e-3,
        "power law": 100 / (1.0 + place),
        "steps": np.where(place < k, 10.0 - 0.5 * place, 1.0),
        "white": None,
    }[decay]
    x = rng.standard_normal((n, d)) if variances is None else planted(rng, n, d, variances, mean=5)
    store = make_store(x.reshape(n, 4, 100), shard_rows=300)
    exact, krylov = (fit_pca(store, PcaSettings(k=k, method=method)) for method in SOLVERS)
    assert degrees(krylov.directions, exact.directions.reshape(k, -1).astype(np.float64)).max() < 0.1
    np.testing.assert_allclose(krylov.explained_variance, exact.explained_variance, rtol=1e-4)


@pytest.mark.parametrize(("d", "k"), [(8, 8), (24, 10), (40, 10), (60, 50)])
def test_krylov_is_exact_where_its_space_fills_up(d: int, k: int, make_store: MakeStore) -> None:
    rng = np.random.default_rng(3)
    x = planted(rng, 300, d, 2.0 + np.arange(d)[::-1], mean=1)
    basis = fit_pca(make_store(x.reshape(300, 2, d // 2)), PcaSettings(k=k, method="krylov"))
    variances, directions = svd(x, k)
    assert degrees(basis.directions, directions).max() < 0.1
    np.testing.assert_allclose(basis.config["eigenvalues"], variances, rtol=1e-4)


def test_few_rows_of_many_features(make_store: MakeStore) -> None:
    rng = np.random.default_rng(4)
    x = planted(rng, 12, 3000, 2.0 + np.arange(11)[::-1], mean=1)
    basis = fit_pca(make_store(x.reshape(12, 30, 100)), PcaSettings(k=11))
    assert basis.config["solver"] == "krylov"
    assert degrees(basis.directions, svd(x, 11)[1]).max() < 0.1


@pytest.mark.parametrize("method", SOLVERS)
def test_sharded_is_whole(method: Any, make_store: MakeStore) -> None:
    x = planted(np.random.default_rng(5), 500, 120, 50 * 0.7 ** np.arange(60), mean=100).reshape(500, 3, 40)
    whole, *sharded = (
        fit_pca(make_store(x, shard_rows=rows, name=f"by-{rows}"), PcaSettings(k=6, method=method))
        for rows in (500, 499, 7)
    )
    for basis in sharded:
        np.testing.assert_allclose(basis.directions, whole.directions, atol=1e-6)
        np.testing.assert_allclose(basis.mean, whole.mean, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(basis.explained_variance, whole.explained_variance, rtol=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_one_the_same_directions(
    make_store: MakeStore, tmp_path: Path
) -> None:
    x = planted(np.random.default_rng(6), 300, 200, 50 * 0.7 ** np.arange(60)).reshape(300, 2, 100)
    store = make_store(x)
    first, again, other = (fit_pca(store, PcaSettings(k=5, method="krylov", seed=seed)) for seed in (0, 0, 1))
    first.save(tmp_path / "first")
    again.save(tmp_path / "again")
    assert files(tmp_path / "first") == files(tmp_path / "again")
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not np.array_equal(first.directions, other.directions)
    assert degrees(other.directions, first.directions.reshape(5, -1).astype(np.float64)).max() < 0.1


def test_signs_are_fixed_by_the_largest_coordinate() -> None:
    directions = np.array([[0.1, -0.9, 0.3], [0.5, 0.2, -0.1], [0.0, 0.0, 0.0]])
    expected = np.array([[-0.1, 0.9, -0.3], [0.5, 0.2, -0.1], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(fix_signs(directions), expected)


@pytest.mark.parametrize("method", SOLVERS)
def test_signs_do_not_depend_on_the_data_s(method: Any, make_store: MakeStore) -> None:
    x = planted(np.random.default_rng(7), 200, 60, 50 * 0.6 ** np.arange(30)).reshape(200, 2, 30)
    for name, values in (("plus", x), ("minus", -x)):
        basis = fit_pca(make_store(values, name=name), PcaSettings(k=6, method=method))
        flat = basis.directions.reshape(6, -1)
        assert (flat[np.arange(6), np.abs(flat).argmax(axis=1)] > 0).all()
        np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, rtol=1e-6)


def test_normalised_blocks_recover_a_direction_of_a_small_block(make_store: MakeStore) -> None:
    rng = np.random.default_rng(8)
    n, hidden = 1000, 20
    small, large = rng.standard_normal((n, hidden)), rng.standard_normal((n, hidden))
    direction = np.linalg.qr(rng.standard_normal((hidden, 1)))[0][:, 0]
    signal = rng.standard_normal(n)
    x = np.stack([0.01 * (small + 5 * signal[:, None] * direction), 100 * large], axis=1)  # (n, 2, hidden)
    found = {}
    for normalize in (False, True):
        for method in SOLVERS:
            settings = PcaSettings(k=3, normalize_blocks=normalize, method=method)  # type: ignore[arg-type]
            basis = fit_pca(make_store(x), settings)
            found[normalize, method] = basis
            flat = basis.directions.reshape(3, -1).astype(np.float64)
            np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, rtol=1e-6)
            np.testing.assert_allclose(
                basis.explained_variance, (x.reshape(n, -1) @ flat.T).var(axis=0, ddof=1), rtol=1e-4
            )
    # Without, the first directions lie in the large block. With, the signal is the first; in the large block's
    # coordinates it shows as chance correlations over 1000 rows, blown up by the ratio of the scales.
    for method in SOLVERS:
        assert np.abs(found[False, method].directions[:, 0]).max() < 1e-3
        part = found[True, method].directions[0, 0]
        assert abs(part @ direction) / np.linalg.norm(part) > 0.98
        first = score(make_store(x), found[True, method]).values[:, 0]
        assert abs(np.corrcoef(first, signal)[0, 1]) > 0.95
        assert found[True, method].config["orthogonal"] is False
    # The others have next to no gap between their eigenvalues, so they may differ.
    exact, krylov = (found[True, method].directions[:1] for method in SOLVERS)
    assert degrees(krylov, exact.reshape(1, -1).astype(np.float64)).max() < 0.1


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("mean", [0, 100])
def test_k_beyond_the_rank_is_refused(method: Any, mean: float, make_store: MakeStore) -> None:
    x = planted(np.random.default_rng(9), 200, 400, np.array([9.0, 4.0, 1.0]), mean=mean).reshape(200, 4, 100)
    store = make_store(x)
    with pytest.raises(UsageError, match="k = 5 is more than the 3 directions along which .* vary; choose 3"):
        fit_pca(store, PcaSettings(k=5, method=method))
    assert fit_pca(store, PcaSettings(k=3, method=method)).n_components == 3


@pytest.mark.parametrize("method", SOLVERS)
def test_what_cannot_be_decomposed(method: Any, make_store: MakeStore) -> None:
    settings = PcaSettings(k=3, method=method)
    x = np.random.default_rng(10).standard_normal((20, 2, 10))
    with pytest.raises(UsageError, match="k = 3 needs more than 3 rows, but the activations have 3"):
        fit_pca(make_store(x[:3], name="few"), settings)
    with pytest.raises(UsageError, match="k = 1 needs more than 1 rows, but the activations have 1"):
        fit_pca(make_store(x[:1], name="one"), replace(settings, k=1))
    with pytest.raises(UsageError, match="k = 30 is more than the 20 features"):
        fit_pca(make_store(x, name="wide"), replace(settings, k=30))
    for name, value in (("constant", 3.3), ("zero", 0.0)):
        with pytest.raises(SkillbasisError, match="do not vary over the rows: every text reads the same"):
            fit_pca(make_store(np.full((20, 2, 10), value), name=name), settings)
    for name, block in (("still", np.full((20, 10), 0.1)), ("rounding", 100 + 1e-5 * x[:, 0])):
        half = np.stack([x[:, 0], block], axis=1)
        with pytest.raises(SkillbasisError, match="block 2 does not vary over the rows; leave it out with --layers"):
            fit_pca(make_store(half, name=name), replace(settings, normalize_blocks=True))
        assert fit_pca(make_store(half, name=name), settings).n_components == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"method": "exakt"}, r"unknown method 'exakt' \(did you mean 'exact'\?\); allowed are auto, exact, krylov"),
        ({"tol_degrees": 0.0}, "tol_degrees must be above 0"),
        ({"tol_degrees": float("nan")}, "tol_degrees must be above 0"),
        ({"k": 5, "width": 4}, "width must be at least k = 5, not 4"),
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PcaSettings(**change)


@pytest.mark.parametrize("live", [False, True])
def test_directions_that_do_not_settle_are_an_error(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillbasis.basis.pca._MAX_PASSES", 4)
    rng = np.random.default_rng(11)
    expected = (
        "had not settled to 0.1 degrees after 4 passes .*directions 10 and 11 have nearly the same variance.*smaller k"
    )
    white = rng.standard_normal((1000, 900))
    variances = np.array([*np.linspace(9, 2, 9), 1.0, 1.0 - 1e-6, *np.linspace(0.1, 0.01, 400)])
    equal = planted(rng, 1000, 900, variances)
    for x in (white, equal):
        source = Rows(x, shard_rows=300, live=live)
        with pytest.raises(SkillbasisError, match=expected):
            fit_pca(source, PcaSettings(k=10, method="krylov", width=20))
    assert fit_pca(source, PcaSettings(k=11, method="krylov", width=20)).config["passes"] <= 4


# --- passes ---


class Rows:
    """Activations in memory, that fail on demand and count what is read of them."""

    def __init__(
        self, x: np.ndarray, *, shard_rows: int = 100, blocks: int = 4, live: bool = False, fail_at: int | None = None
    ) -> None:
        x = x.astype(np.float32)
        x.flags.writeable = False
        self.parts = [x[i : i + shard_rows] for i in range(0, len(x), shard_rows)]
        self.live, self.fail_at, self.n_read = live, fail_at, 0
        self.block_ids, self.n_features = list(range(1, blocks + 1)), x.shape[1]
        self.hidden_size = self.n_features // blocks
        same: dict[str, Any] = dict.fromkeys(("model", "model_type", "tokenizer_fingerprint", "span"), "planted")
        same |= {"weights_fingerprint": "aa", "template_fingerprint": None, "n_blocks": blocks + 2, "dtype": "float32"}
        same |= {"pooling": "mean", "max_length": 100, "corpus": "planted", "corpus_fingerprint": "cc"}
        self.manifest = same | {"hidden_size": self.hidden_size, "block_ids": self.block_ids}
        self.n_expected = len(x)

    def __len__(self) -> int:
        return self.n_expected

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        for part in self.parts[start:]:
            if self.n_read == self.fail_at:
                raise InterruptedError
            self.n_read += 1
            yield part

    def shard_ids(self, index: int) -> list[str]:
        return [f"{index}-{i}" for i in range(len(self.parts[index]))]

    def sample(self, n: int) -> np.ndarray:
        """Few rows, so that there is something left to find."""
        return np.concatenate(self.parts)[:: 1 if self.live else 45][: 0 if self.live else n]


def outliers(n: int = 900, d: int = 1200, *, mean: float = 1e4) -> np.ndarray:
    """Activations as of large models: a power law, three features with 1000x the deviation, a mean far off."""
    rng = np.random.default_rng(20)
    x = planted(rng, n, d, 30 / (1.0 + np.arange(200)) ** 1.5, noise=0.02)
    x[:, [7, 99, 640]] += np.array([1000, 600, 300]) * x.std() * rng.standard_normal((n, 3))
    return x + mean * x[:, 0].std() * rng.standard_normal(d)


def largest_degrees(basis: SkillBasis, truth: np.ndarray) -> float:
    """Largest principal angle between a basis and orthonormal rows (k, d)."""
    flat = np.linalg.qr(basis.directions.reshape(len(truth), -1).T.astype(np.float64))[0].T
    return float(np.degrees(np.arcsin(min(1.0, np.linalg.norm(truth - truth @ flat.T @ flat, ord=2)))))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
def test_outlier_features_and_a_mean_far_off(mean: float, live: bool) -> None:
    x = outliers(mean=mean)
    basis = fit_pca(Rows(x, live=live), PcaSettings(k=10, method="krylov"))
    variances, directions = svd(x, 10)
    assert variances[0] > 1e4 * variances[9]
    assert largest_degrees(basis, directions) < basis.config["angle_degrees"] + 1e-3 < 0.1
    np.testing.assert_allclose(basis.explained_variance, variances, rtol=1e-5)
    assert basis.config["passes"] <= (2 if live else 5)


@pytest.mark.parametrize("normalize", [False, True])
def test_directions_of_the_embedded_reasoner(normalize: bool, tmp_path: Path) -> None:
    from skillbasis.corpus import load_corpus
    from skillbasis.lm import load_model

    corpus, lm = load_corpus("embedded", limit=400), load_model("embedded")
    store = extract(corpus, lm, tmp_path / "acts", ExtractionSettings(layers="all"))
    x = store.to_numpy().reshape(400, -1)
    if normalize:
        centred = (x - x.mean(axis=0, dtype=np.float64)).reshape(400, 4, -1)
        rms = np.sqrt(np.square(centred).mean(axis=(0, 2)))
        x = (centred / rms[:, None]).reshape(400, -1)
    variances, truth = svd(x, 10)
    settings = PcaSettings(k=10, method="krylov", normalize_blocks=normalize)
    for source in (store, LiveActivations(corpus, lm, ExtractionSettings(layers="all"))):
        basis = fit_pca(source, settings)
        assert basis.config["solver"] == "krylov"
        found = basis.directions.reshape(10, -1).astype(np.float64)
        if normalize:
            found = found * np.repeat(rms, store.hidden_size)
            found /= np.linalg.norm(found, axis=1, keepdims=True)
        assert largest_degrees(replace(basis, directions=found), truth) < 0.1
        np.testing.assert_allclose(basis.config["eigenvalues"], variances, rtol=1e-4)
    assert basis.config["passes"] <= 2


def test_a_wide_block_and_the_first_rows_save_passes() -> None:
    x = planted(np.random.default_rng(21), 900, 1000, 30 / (1.0 + np.arange(300)) ** 1.5, noise=0.01)
    passes = {}
    for live, width in ((False, None), (False, 90), (True, 20), (True, None)):
        numbers: list[int] = []
        source = Rows(x, live=live, shard_rows=300)
        settings = PcaSettings(k=10, method="krylov", width=width)
        basis = fit_pca(source, settings, on_pass=numbers.append)
        passes[live, width] = basis.config["passes"]
        assert numbers == list(range(1, basis.config["passes"] + 1))
        assert source.n_read == 3 * basis.config["passes"]
        assert largest_degrees(basis, svd(x, 10)[1]) < 0.1
    assert passes[True, None] == 2 < passes[False, 90] < passes[False, None] <= passes[True, 20]


def test_first_rows_unlike_the_others_do_no_harm() -> None:
    rng = np.random.default_rng(22)
    x = planted(rng, 1000, 1200, 30 / (1.0 + np.arange(200)) ** 1.5, noise=0.01)
    first = np.zeros((100, 1200))
    first[:, :20] = rng.standard_normal((100, 20))  # they lack what makes the others differ
    x = np.vstack([first, x])
    basis = fit_pca(Rows(x, live=True), PcaSettings(k=10, method="krylov"))
    assert largest_degrees(basis, svd(x, 10)[1]) < 0.1
    assert basis.config["passes"] <= 4


def test_a_direction_that_the_sampled_rows_lack_is_found() -> None:
    rng = np.random.default_rng(25)
    x = planted(rng, 1100, 1200, 30 / (1.0 + np.arange(200)) ** 1.5, noise=0.01)
    rare = rng.choice(np.delete(np.arange(1100), np.arange(0, 1100, 45)), 40, replace=False)
    lacking = np.linalg.qr(rng.standard_normal((1200, 1)))[0][:, 0]
    x[rare] += rng.standard_normal((40, 1)) * 15 * lacking
    truth = svd(x, 10)[1]
    basis = fit_pca(Rows(x), PcaSettings(k=10, method="krylov"))
    assert largest_degrees(basis, truth) < 0.1
    assert np.linalg.norm(truth @ lacking) > 0.9


def test_a_sample_of_stored_rows_is_spread_over_all_of_them(make_store: MakeStore) -> None:
    x = np.arange(2 * 30, dtype=np.float32).reshape(30, 2, 1)
    for shard_rows in (30, 7, 1):
        store = make_store(x, shard_rows=shard_rows, name=f"by-{shard_rows}")
        np.testing.assert_array_equal(store.sample(4), x.reshape(30, 2)[[0, 7, 15, 22]])
        np.testing.assert_array_equal(store.sample(99), x.reshape(30, 2))


def test_small_but_real_variances_are_not_taken_for_noise() -> None:
    variances = np.array([1e6, 1e5, 1.0, 0.5, 0.1])
    x = planted(np.random.default_rng(23), 400, 600, variances)
    basis = fit_pca(Rows(x), PcaSettings(k=4, method="krylov"))
    np.testing.assert_allclose(basis.explained_variance, variances[:4], rtol=1e-3)
    with pytest.raises(UsageError, match="k = 7 is more than the 5 directions"):
        fit_pca(Rows(x), PcaSettings(k=7, method="krylov"))


@pytest.mark.parametrize("method", SOLVERS)
def test_rows_that_a_live_source_leaves_out(method: Any) -> None:
    x = planted(np.random.default_rng(24), 300, 200, 50 * 0.7 ** np.arange(60), mean=3)
    source, whole = Rows(x, live=True), Rows(np.delete(x, np.r_[0:100, 150:160], axis=0), live=True)
    source.parts = [part[:0] if i == 0 else part for i, part in enumerate(source.parts)]
    source.parts[1] = np.delete(source.parts[1], np.r_[50:60], axis=0)
    settings = PcaSettings(k=5, method=method)
    found, expected = fit_pca(source, settings), fit_pca(whole, settings)
    assert found.config["rows"] == 190
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert largest_degrees(found, expected.directions.reshape(5, -1).astype(np.float64)) < 0.1
    source.parts = [part[:2] for part in source.parts]
    with pytest.raises(UsageError, match="k = 5 needs more than 5 rows, but the activations have 4"):
        fit_pca(source, settings)
    source.parts = [part[:0] for part in source.parts]
    with pytest.raises(SkillbasisError, match="there are no activations: every row was left out"):
        fit_pca(source, settings)


def test_rows_that_change_between_passes_are_an_error() -> None:
    x = planted(np.random.default_rng(25), 300, 400, 50 / (1.0 + np.arange(200)))
    source = Rows(x)

    def lose_a_row(number: int) -> None:
        if number == 2:
            source.parts[1] = source.parts[1][1:]

    with pytest.raises(SkillbasisError, match="the first pass gave 300 rows and a later one 299; leave corpus and"):
        fit_pca(source, PcaSettings(k=5, method="krylov"), on_pass=lose_a_row)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_activations_that_are_not_finite_are_an_error() -> None:
    x = planted(np.random.default_rng(26), 50, 40, 2.0 + np.arange(30))
    for method in SOLVERS:
        for value in (np.nan, np.inf):
            x[30, 7] = value
            with pytest.raises(SkillbasisError, match="the activations are not finite everywhere"):
                fit_pca(Rows(x), PcaSettings(k=3, method=method))  # type: ignore[arg-type]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stored": ({}, {}),
    "live": ({"live": True}, {}),
    "exact": ({}, {"method": "exact"}),
    "normalised": ({}, {"normalize_blocks": True}),
    "measured": ({}, {"k": 4}),  # with a pass over the directions themselves
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bytes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_SHARE", np.inf)
    rng = np.random.default_rng(27)
    how, changes = CASES[case]
    if case == "measured":
        x = planted(rng, 350, 300, np.array([1e6, 1e5, 1.0, 0.5, 0.1]))
    else:
        x = planted(rng, 350, 300, 50 / (1.0 + np.arange(200)), mean=5)
    settings = PcaSettings(**{"k": 5, "method": "krylov"} | changes)
    whole = Rows(x, **how)
    fit_pca(whole, settings).save(tmp_path / "whole")
    n_shards = whole.n_read
    assert n_shards >= (4 if case == "exact" else 8)
    for fail_at in {*range(0, n_shards, 3), n_shards - 1}:  # passes have four shards: each of them, in turn
        checkpoint = tmp_path / f"{fail_at}.safetensors"
        with pytest.raises(InterruptedError):
            fit_pca(Rows(x, **how, fail_at=fail_at), settings, checkpoint=checkpoint)
        assert checkpoint.exists() is (fail_at > 0)
        rest = Rows(x, **how)
        fit_pca(rest, settings, checkpoint=checkpoint).save(tmp_path / f"again-{fail_at}")
        assert rest.n_read == n_shards - fail_at
        assert files(tmp_path / f"again-{fail_at}") == files(tmp_path / "whole")


def test_a_run_may_be_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_SHARE", np.inf)
    x = planted(np.random.default_rng(28), 350, 300, 50 / (1.0 + np.arange(200)), mean=5)
    settings, checkpoint = PcaSettings(k=5, method="krylov"), tmp_path / "checkpoint"
    whole = fit_pca(Rows(x), settings)
    numbers: list[int] = []
    found = None
    for _ in range(100):
        try:
            found = fit_pca(Rows(x, fail_at=1), settings, checkpoint=checkpoint, on_pass=numbers.append)
        except InterruptedError:
            continue
        break
    assert found is not None
    assert found.fingerprint == whole.fingerprint
    assert set(numbers) == set(range(1, whole.config["passes"] + 1))


def test_a_checkpoint_of_something_else_is_ignored_and_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_SHARE", np.inf)
    x = planted(np.random.default_rng(29), 350, 300, 50 / (1.0 + np.arange(200)), mean=5)
    checkpoint, settings = tmp_path / "checkpoint", PcaSettings(k=5, method="krylov")

    def interrupted(source: Rows, settings: PcaSettings) -> bytes:
        source.fail_at = 6
        with pytest.raises(InterruptedError):
            fit_pca(source, settings, checkpoint=checkpoint)
        return checkpoint.read_bytes()

    mine = interrupted(Rows(x), settings)
    expected = fit_pca(Rows(x), settings).fingerprint
    other = Rows(x + 1)
    other.manifest = other.manifest | {"corpus_fingerprint": "other"}
    for source, changed in ((Rows(x), replace(settings, seed=1)), (other, settings)):
        assert interrupted(source, changed) != mine
        again = Rows(x)
        assert fit_pca(again, settings, checkpoint=checkpoint).fingerprint == expected
        assert again.n_read % 4 == 0
    for damage in (mine[: len(mine) // 2], b"", b"nothing of the kind"):
        checkpoint.write_bytes(damage)
        assert fit_pca(Rows(x), settings, checkpoint=checkpoint).fingerprint == expected


def test_checkpoints_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 30 seconds, less often where writing takes more than a twentieth of the time."""
    now, written = [0.0], []
    monkeypatch.setattr("skillbasis.basis.passes.time.monotonic", lambda: now[0])

    def write(_path: Path, _tensors: dict[str, np.ndarray]) -> None:
        written.append(now[0])
        now[0] += 3.0 if len(written) > 1 else 0.0

    monkeypatch.setattr("skillbasis.basis.passes.write_tensors", write)
    source = Rows(planted(np.random.default_rng(30), 350, 100, 2.0 + np.arange(90)), shard_rows=10)
    slow = source.shards

    def shards(start: int = 0) -> Iterator[np.ndarray]:
        for part in slow(start):
            now[0] += 10.0
            yield part

    monkeypatch.setattr(source, "shards", shards)
    fit_pca(source, PcaSettings(k=5, method="exact"), checkpoint=tmp_path / "checkpoint")
    assert written == [30, 60, 123, 186, 249, 312]


# --- scores ---


@pytest.fixture
def hand_made(make_store: MakeStore) -> tuple[ActivationStore, SkillBasis]:
    """Three rows of two blocks of one feature, and two directions that are not axes."""
    store = make_store(np.array([[[4.0], [2.0]], [[1.0], [6.0]], [[1.0], [2.0]]]), shard_rows=2)
    config = store.manifest | {"method": "by hand", "explained_variance_ratio": [0.5, 0.5]}
    basis = SkillBasis(
        directions=np.array([[[0.6], [0.8]], [[0.8], [-0.6]]], dtype=np.float32),
        mean=np.array([[1.0], [2.0]], dtype=np.float32),
        explained_variance=np.array([2.0, 1.0]),
        score_std=np.array([1.5, 1.0]),
        config=config,
    )
    return store, basis


def test_scores_by_hand(hand_made: tuple[ActivationStore, SkillBasis]) -> None:
    store, basis = hand_made
    scores = score(store, basis)
    assert scores.ids == ["row-0", "row-1", "row-2"]
    # Rows less the mean: (3, 0), (0, 4), (0, 0).
    np.testing.assert_allclose(scores.values, [[1.8, 2.4], [3.2, -2.4], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.norm, [3, 4, 0])
    np.testing.assert_allclose(scores.raw_norm, np.sqrt([20, 37, 5]))
    np.testing.assert_allclose(scores.cosine, [[0.6, 0.8], [0.8, -0.6], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(basis.mean_scores, [2.2, -0.4], rtol=1e-6)
    # Rows times directions: (4, 2) -> 4.0, 2.0; (1, 6) -> 5.4, -2.8; (1, 2) -> 2.2, -0.4.
    expected = np.array([[4.0, 2.0], [5.4, -2.8], [2.2, -0.4]]) / np.sqrt([[20], [37], [5]])
    np.testing.assert_allclose(scores.raw_cosine(basis.mean_scores), expected, rtol=1e-6)
    assert scores.values.dtype == scores.norm.dtype == scores.raw_norm.dtype == np.float64
    assert scores.scores is scores.values
    np.testing.assert_allclose(basis.transform(store.to_numpy()), scores.values)


def test_scores_of_the_fitted_rows_have_the_variance_of_the_basis(make_store: MakeStore) -> None:
    x = planted(np.random.default_rng(12), 300, 80, 50 * 0.7 ** np.arange(40), mean=30).reshape(300, 2, 40)
    store = make_store(x, shard_rows=90)
    basis = fit_pca(store, PcaSettings(k=5))
    scores = score(store, basis)
    np.testing.assert_allclose(scores.values.var(axis=0, ddof=1), basis.explained_variance, rtol=1e-4)
    np.testing.assert_allclose(scores.values.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.corrcoef(scores.values.T), np.eye(5), atol=1e-3)


def test_scores_survive_their_file(hand_made: tuple[ActivationStore, SkillBasis], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    scores = score(*hand_made)
    scores.save(tmp_path / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").column_names == ["id", "d0", "d1", "norm", "raw_norm"]
    read = Scores.load(tmp_path / "scores.parquet")
    assert read.ids == scores.ids
    for name in ("values", "norm", "raw_norm"):
        np.testing.assert_array_equal(getattr(read, name), getattr(scores, name))


def test_more_than_ten_directions_come_back_in_their_order(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(2, 12)
    Scores(["a", "b"], values, np.ones(2), np.ones(2)).save(tmp_path / "scores.parquet")
    np.testing.assert_array_equal(Scores.load(tmp_path / "scores.parquet").values, values)


def test_scores_are_aligned_by_id(hand_made: tuple[ActivationStore, SkillBasis]) -> None:
    scores = score(*hand_made)
    some = scores.aligned(["row-2", "row-0"])
    assert some.ids == ["row-2", "row-0"]
    np.testing.assert_array_equal(some.values, scores.values[[2, 0]])
    np.testing.assert_array_equal(some.norm, scores.norm[[2, 0]])
    np.testing.assert_array_equal(some.raw_norm, scores.raw_norm[[2, 0]])
    with pytest.raises(ArtifactError, match="2 of 3 rows have no score, the first is 'x'; score the same corpus"):
        scores.aligned(["row-0", "x", "y"])


def test_what_is_no_table_of_scores(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "scores.parquet"
    with pytest.raises(UsageError, match="there is no score file at .*; make it with skillbasis score"):
        Scores.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="is no readable Parquet file .*; score again"):
        Scores.load(path)
    for columns in ({"id": ["a"], "norm": [1.0], "raw_norm": [1.0]}, {"id": ["a"], "d0": [1.0], "norm": [1.0]}):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UsageError, match=r"is no table of scores: columns id, d0 \.\.\., norm and raw_norm"):
            Scores.load(path)
    pq.write_table(pa.table({"id": ["a"], "d0": [1.0], "d2": [1.0], "norm": [1.0], "raw_norm": [1.0]}), path)
    with pytest.raises(UsageError, match="is no table of scores"):
        Scores.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pooling", "last"),
        ("span", "response"),
        ("block_ids", [1, 3]),
        ("weights_fingerprint", "other"),
        ("template_fingerprint", "chat"),
    ],
)
def test_activations_made_otherwise_are_refused(
    key: str, value: Any, hand_made: tuple[ActivationStore, SkillBasis], make_store: MakeStore
) -> None:
    _, basis = hand_made
    store = make_store(np.ones((3, 2, 1)), name="otherwise", **{key: value})
    with pytest.raises(ArtifactError, match=f"{key} .* (extract again with the settings|give that model)"):
        score(store, basis)


# --- bases on disk ---


def test_a_basis_survives_its_directory(make_store: MakeStore, tmp_path: Path) -> None:
    x = planted(np.random.default_rng(13), 100, 60, 50 * 0.7 ** np.arange(30), mean=3).reshape(100, 3, 20)
    for method in SOLVERS:
        basis = fit_pca(make_store(x, name=f"for-{method}"), PcaSettings(k=4, method=method))  # type: ignore[arg-type]
        # As an implementation might return it: the same numbers, laid out in memory the other way.
        for name, laid_out in (("c", np.ascontiguousarray), ("f", np.asfortranarray)):
            path = tmp_path / f"{method}-{name}"
            replace(basis, directions=laid_out(basis.directions), mean=laid_out(basis.mean)).save(path)
            read = SkillBasis.load(path)
            for field in ("directions", "mean", "explained_variance", "score_std"):
                np.testing.assert_array_equal(getattr(read, field), getattr(basis, field))
            np.testing.assert_allclose(read.mean_scores, basis.mean_scores, rtol=1e-12)
            assert (read.config, read.fingerprint) == (basis.config, basis.fingerprint)
            assert (read.directions.dtype, read.explained_variance.dtype) == (np.float32, np.float64)
            assert sorted(files(path)) == ["README.md", "basis.safetensors", "config.json", "manifest.json"]
            card = (path / "README.md").read_text()
            assert "4 unit directions" in card
            assert basis.config["weights_fingerprint"] in card
            assert f"| 0 | {basis.explained_variance[0]:.4g} |" in card


def test_a_basis_is_known_by_all_its_numbers(hand_made: tuple[ActivationStore, SkillBasis]) -> None:
    _, basis = hand_made
    bumped = [replace(basis, config=basis.config | {"pooling": "max"})]
    for name in ("directions", "mean", "explained_variance", "score_std"):
        array = getattr(basis, name).copy()
        array.flat[-1] *= 1 + 1e-6
        bumped.append(replace(basis, **{name: array}))
    # The same numbers in other places have the same sum.
    bumped.append(replace(basis, directions=basis.directions[:, ::-1].copy()))
    assert len({b.fingerprint for b in [basis, *bumped]}) == 7


def test_a_saved_basis_replaces_an_older_one_and_nothing_else(
    hand_made: tuple[ActivationStore, SkillBasis], tmp_path: Path
) -> None:
    _, basis = hand_made
    basis.save(tmp_path / "basis")
    newer = replace(basis, mean=basis.mean + 1)
    newer.save(tmp_path / "basis")
    np.testing.assert_array_equal(SkillBasis.load(tmp_path / "basis").mean, newer.mean)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is no basis directory, so it is left as it is"):
        basis.save(tmp_path / "mine")
    assert files(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_a_basis_that_is_not_there_or_damaged(
    hand_made: tuple[ActivationStore, SkillBasis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, basis = hand_made
    with pytest.raises(UsageError, match="there is no basis at .*; make one with skillbasis discover"):
        SkillBasis.load(tmp_path / "basis")
    monkeypatch.chdir(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for name in ("owner/name", "runs/my basis"):
        with pytest.raises(UsageError, match=f"there is no directory {name} here, and it could not be fetched"):
            SkillBasis.load(name)
    basis.save(tmp_path / "basis")
    data = (tmp_path / "basis" / "basis.safetensors").read_bytes()
    (tmp_path / "basis" / "basis.safetensors").write_bytes(data[:-8])
    with pytest.raises(ArtifactError, match=r"basis\.safetensors is damaged .*; discover it again"):
        SkillBasis.load(tmp_path / "basis")
    (tmp_path / "basis" / "basis.safetensors").write_bytes(data)
    (tmp_path / "basis" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json does not exist"):
        SkillBasis.load(tmp_path / "basis")


def test_tensors_of_something_else_are_no_basis(tmp_path: Path) -> None:
    from skillbasis.artifact import write_json, write_tensors

    write_tensors(tmp_path / "basis.safetensors", {"directions": np.ones((1, 1, 2))})
    write_json(tmp_path / "config.json", {})
    with pytest.raises(ArtifactError, match=r"basis\.safetensors lacks explained_variance, mean, score_std"):
        SkillBasis.load(tmp_path)


def test_directions_are_checked_by_number(hand_made: tuple[ActivationStore, SkillBasis]) -> None:
    _, basis = hand_made
    for direction in (0, 1):
        basis.check_direction(direction)
    for direction in (-1, 2):
        with pytest.raises(UsageError, match=f"direction {direction} does not exist; the basis has 0 to 1"):
            basis.check_direction(direction)


def test_a_basis_works_on_its_own_model_only(
    loaded: Callable[..., Any], make_corpus: Callable[..., Any], tmp_path: Path
) -> None:
    lm = loaded("llama")
    corpus = make_corpus([("So", "the answer is " + word * n) for n in range(1, 7) for word in ("two ", "sum ")])
    store = extract(corpus, lm, tmp_path / "acts")
    fit_pca(store, PcaSettings(k=3)).save(tmp_path / "basis")
    basis = SkillBasis.load(tmp_path / "basis")
    assert basis.directions.shape == (3, 2, HIDDEN)
    assert basis.block_ids == [1, 2]
    basis.check_model(lm)
    assert score(store, basis).values.shape == (12, 3)
    other = wrap(make_model("llama", seed=1), make_tokenizer(), "other")
    with pytest.raises(ArtifactError, match=r"found on model .*llama-plain' \(weights_fingerprint .*not on 'other'"):
        basis.check_model(other)
    with pytest.raises(ArtifactError, match=r"\(model_type llama\), not on .*\(model_type gpt2\)"):
        basis.check_model(loaded("gpt2"))
    last = extract(corpus, lm, tmp_path / "last", ExtractionSettings(pooling="last"))
    with pytest.raises(ArtifactError, match="pooling is last of the activations and mean in the basis"):
        score(last, basis)
