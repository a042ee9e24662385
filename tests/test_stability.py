"""Stability against planted spectra, brute-force bootstraps and fresh samples; the record in a basis."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import files
from skillbasis.activations import ActivationSource, ActivationStore
from skillbasis.basis import PcaSettings, SaeSettings, SkillBasis, fit_pca, score
from skillbasis.basis.bootstrap_pca import LeadingScores, bootstrap, default_space, gaps, leading_scores, outside_loss
from skillbasis.basis.compare import match
from skillbasis.basis.stability import STABLE, Stability, StabilitySettings, measure_stability
from skillbasis.basis.subset import RowSubset
from skillbasis.errors import ArtifactError, UsageError
from test_basis import Rows

MakeStore = Callable[..., ActivationStore]
QUICK = StabilitySettings(n_repeats=2, n_bootstrap=60)


def rows(n: int, variances: Any, d: int = 24, *, seed: int = 0) -> np.ndarray:
    """(n, d) normal rows whose population variances along the axes are these, and 0.01 along the others."""
    scale = np.full(d, 0.1)
    scale[: len(variances)] = np.sqrt(variances)
    return 3 + np.random.default_rng(seed).standard_normal((n, d)) * scale


# --- some of the rows ---


def test_a_subset_is_the_source_without_the_other_rows(make_store: MakeStore) -> None:
    x = rows(50, [9, 4, 1], 8).astype(np.float32)
    store = make_store(x.reshape(50, 2, 4), shard_rows=7)
    keep = np.random.default_rng(1).random(50) < 0.4
    keep[:8] = False  # nothing of the first shard
    part = RowSubset(store, keep)
    assert (len(part), part.n_features, part.block_ids, part.hidden_size) == (keep.sum(), 8, [1, 2], 4)
    np.testing.assert_array_equal(np.concatenate(list(part.shards())), x[keep])
    np.testing.assert_array_equal(np.concatenate(list(part.shards(start=3))), x[21:][keep[21:]])
    assert [i for shard in range(8) for i in part.shard_ids(shard)] == [f"row-{i}" for i in np.flatnonzero(keep)]
    np.testing.assert_array_equal(part.sample(99), x[keep])
    np.testing.assert_array_equal(part.sample(2), x[keep][[0, keep.sum() // 2]])
    assert part.manifest["rows"] == keep.sum()
    assert part.manifest["kept_rows"] != RowSubset(store, ~keep).manifest["kept_rows"]
    live = RowSubset(Rows(x, shard_rows=9, live=True), keep)
    assert live.live and live.sample(5).shape == (0, 8)
    np.testing.assert_array_equal(np.concatenate(list(live.shards())), x[keep])


@pytest.mark.parametrize("method", ["exact", "krylov"])
def test_directions_of_a_subset_are_those_of_its_rows(method: Any, make_store: MakeStore) -> None:
    x = rows(300, [9, 6, 4, 2.5], 40).reshape(300, 2, 20)
    keep = np.random.default_rng(2).random(300) < 0.5
    settings = PcaSettings(k=3, method=method)
    found = fit_pca(RowSubset(make_store(x, shard_rows=70, name="all"), keep), settings)
    expected = fit_pca(make_store(x[keep], name="kept"), settings)
    np.testing.assert_allclose(found.directions, expected.directions, atol=1e-3)
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-4)
    assert found.config["rows"] == keep.sum()


# --- bootstrap ---


def brute_force(x: np.ndarray, frame: np.ndarray, n_resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """The same resamples, each decomposed as a whole: (B, k) cosines, cosines with the span, eigenvalues."""
    rng, n, k = np.random.default_rng(seed), len(x), len(frame)
    shape = (n_resamples, k)
    cosines, spans, values = np.empty(shape), np.empty(shape), np.empty(shape)
    for b in range(n_resamples):
        drawn = np.repeat(x, np.bincount(rng.integers(0, n, n), minlength=n), axis=0)
        _, sizes, vectors = np.linalg.svd(drawn - drawn.mean(axis=0), full_matrices=False)
        spans[b] = np.linalg.norm(frame @ vectors[:k].T, axis=1)
        for pair in match(frame @ vectors[:k].T):
            cosines[b, pair.a], values[b, pair.a] = abs(pair.value), sizes[pair.b] ** 2 / (n - 1)
    return cosines, spans, values


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("n", "d"), [(60, 12), (40, 90)])
def test_the_fast_bootstrap_is_the_plain_one_where_the_space_holds_all(
    n: int, d: int, normalize: bool, make_store: MakeStore
) -> None:
    x = rows(n, [9, 5, 2, 1.5], d).astype(np.float32).reshape(n, 2, d // 2)
    x[:, 1] *= 50
    basis = fit_pca(make_store(x, shard_rows=17), PcaSettings(k=3, normalize_blocks=normalize))
    store = make_store(x, shard_rows=17)
    m = default_space(3, n, d)
    assert m == min(d, n - 1)
    scores = leading_scores(store, basis, m)
    found = bootstrap(scores, 30, seed=5)
    scale = np.ones(d) if basis.block_scale is None else basis.block_scale
    flat = x.reshape(n, d).astype(np.float64) / scale
    cosines, spans, values = brute_force(flat, basis.frame, 30, 5)
    # What is left is float32: of the activations' scores, and of directions found from them.
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-4)
    np.testing.assert_allclose(found.span_cosines, spans, atol=1e-4)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-4)
    assert scores.total_variance == pytest.approx(flat.var(axis=0, ddof=1).sum(), rel=1e-4)
    variances = np.linalg.eigvalsh(scores.covariance())[::-1]
    np.testing.assert_allclose(variances[:3], basis.config["eigenvalues"], rtol=1e-4)
    np.testing.assert_array_equal(outside_loss(scores, variances), [0, 0, 0])


def test_a_small_space_holds_the_largest_variances_and_loses_no_more_than_it_says(make_store: MakeStore) -> None:
    n, d, k = 400, 120, 3
    x = rows(n, 30 / (1.0 + np.arange(d)) ** 1.2, d).astype(np.float32)
    store = make_store(x.reshape(n, 2, d // 2), shard_rows=150)
    basis = fit_pca(store, PcaSettings(k=k))
    truth = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:44] ** 2 / (n - 1)
    scores = leading_scores(store, basis, 44)
    variances = np.linalg.eigvalsh(scores.covariance())[::-1]
    assert variances.sum() > 0.985 * truth.sum()  # two passes of subspace iteration; the best 44 hold all of it
    np.testing.assert_allclose(variances[:10], truth[:10], rtol=2e-3)
    cosines = brute_force(x.astype(np.float64), basis.frame, 100, 3)[0]
    for m in (k + 3, 44):
        scores = leading_scores(store, basis, m)
        small = bootstrap(scores, 100, seed=3).cosines
        loss = outside_loss(scores, np.linalg.eigvalsh(scores.covariance())[::-1])
        missing = (small**2).mean(axis=0) - (cosines**2).mean(axis=0)
        assert (missing > -1e-3).all() and (missing < loss + 1e-3).all()
    assert (np.abs(np.median(small, axis=0) - np.median(cosines, axis=0)) < 0.01).all()
    assert (loss < 0.05).all()


def test_the_bootstrap_says_what_fresh_samples_do(make_store: MakeStore) -> None:
    """The median cosine of resamples with the sample is about that of samples with the truth."""
    n, variances = 400, [8, 5, 3, 2, 1.4]
    truth, fresh = np.eye(24)[:4], []
    for seed in range(100, 160):
        x = rows(n, variances, seed=seed)
        vectors = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:4]
        by_direction = {pair.a: abs(pair.value) for pair in match(truth @ vectors.T)}
        fresh.append([by_direction[k] for k in range(4)])
    store = make_store(rows(n, variances).reshape(n, 2, 12))
    measured = measure_stability(store, fit_pca(store, PcaSettings(k=4)), QUICK)
    for entry, expected in zip(measured.directions, np.median(fresh, axis=0), strict=True):
        assert entry.cosine is not None
        assert entry.cosine.median == pytest.approx(expected, abs=0.03)


def test_gaps_by_hand() -> None:
    np.testing.assert_allclose(gaps(np.array([10.0, 8, 7.6, 1]), 3), [0.2, 0.05, 0.4 / 7.6])


# --- what is said of a direction ---


def test_a_spectrum_with_gaps_is_stable(make_store: MakeStore) -> None:
    store = make_store(rows(400, [27, 9, 3]).reshape(400, 2, 12), shard_rows=90)
    steps: list[tuple[int, int, str]] = []
    measured = measure_stability(
        store, fit_pca(store, PcaSettings(k=3)), QUICK, on_step=lambda *step: steps.append(step)
    )
    assert measured.unstable == () and measured.threshold == 0.9
    for entry, variance, gap in zip(measured.directions, (27, 9, 3), (2 / 3, 2 / 3, 1), strict=True):
        assert entry.cosine is not None and entry.span_cosine is not None and entry.eigenvalue is not None
        assert entry.cosine.low > 0.98 and entry.span_cosine.low > 0.99 and entry.half_cosine.low > 0.98
        assert entry.between_halves.low > 0.97 and entry.half_span_cosine.low > 0.98
        assert entry.cosine.low < entry.cosine.median < entry.cosine.high <= 1
        assert entry.eigenvalue.low < variance < entry.eigenvalue.high
        assert entry.gap == pytest.approx(gap, abs=0.1)
    assert (measured.space, measured.n_rows, measured.n_bootstrap) == (24, 400, 60)
    assert measured.space_share == pytest.approx(1)
    assert steps == [(0, 3, ""), (1, 3, "split halves"), (2, 3, "split halves"), (3, 3, "bootstrap")]


def test_equal_variances_turn_within_their_span(make_store: MakeStore) -> None:
    store = make_store(rows(400, [30, 6, 6, 0.5]).reshape(400, 2, 12))
    measured = measure_stability(store, fit_pca(store, PcaSettings(k=3)), QUICK)
    assert measured.unstable == (1, 2)
    first, *equal = measured.directions
    assert first.cosine is not None and first.cosine.low > 0.98
    for entry in equal:
        assert entry.cosine is not None and entry.span_cosine is not None and entry.gap is not None
        assert entry.cosine.low < 0.85 and entry.span_cosine.low > 0.98  # turned, not lost
        assert entry.cosine.median > 0.9  # which is why the lower end decides
        assert entry.between_halves.median < 0.9 and entry.half_span_cosine.low > 0.98
        assert entry.gap < 0.2


def test_a_direction_cut_off_among_equals_is_lost(make_store: MakeStore) -> None:
    store = make_store(rows(300, [30, 6, 6, 6, 6]).reshape(300, 2, 12))
    measured = measure_stability(store, fit_pca(store, PcaSettings(k=2)), QUICK)
    assert measured.unstable == (1,)
    lost = measured.directions[1]
    assert lost.cosine is not None and lost.span_cosine is not None
    assert lost.span_cosine.low < 0.8  # it left the span, too
    assert lost.span_cosine.low == pytest.approx(lost.cosine.low, abs=0.02)


def test_the_threshold_decides(make_store: MakeStore) -> None:
    store = make_store(rows(300, [9, 4, 2, 1.6]).reshape(300, 2, 12))
    basis = fit_pca(store, PcaSettings(k=3))
    measured = measure_stability(store, basis, QUICK)
    ends = np.array([entry.cosine.low for entry in measured.directions if entry.cosine])
    for threshold in (ends.min() - 1e-6, ends.min() + 1e-6, 0.9999):
        again = measure_stability(store, basis, replace(QUICK, threshold=float(threshold)))
        assert again.unstable == tuple(np.flatnonzero(ends < threshold))
    halves = measure_stability(store, basis, replace(QUICK, n_bootstrap=0, threshold=0.9999))
    assert halves.unstable == tuple(k for k in range(3) if halves.directions[k].half_cosine.low < 0.9999) != ()
    assert halves.directions[0].cosine is None and halves.space is None and halves.n_bootstrap == 0


def test_the_same_seed_gives_the_same_record(make_store: MakeStore) -> None:
    store = make_store(rows(200, [9, 4, 2]).reshape(200, 2, 12), shard_rows=33)
    basis = fit_pca(store, PcaSettings(k=2))
    first, again, other = (measure_stability(store, basis, replace(QUICK, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_normalised_blocks_are_measured_in_their_metric(make_store: MakeStore) -> None:
    x = np.concatenate([0.01 * rows(400, [30, 3], 12), 100 * rows(400, [3, 1.6], 12, seed=9)], axis=1)
    store = make_store(x.reshape(400, 2, 12))
    basis = fit_pca(store, PcaSettings(k=2, normalize_blocks=True))
    measured = measure_stability(store, basis, QUICK)
    eigenvalues = [entry.eigenvalue.median for entry in measured.directions if entry.eigenvalue]
    np.testing.assert_allclose(eigenvalues, basis.config["eigenvalues"], rtol=0.1)  # not the scores' variances
    assert measured.directions[0].cosine is not None and measured.directions[0].cosine.low > 0.9


def test_another_method_is_refitted_by_the_caller(make_store: MakeStore) -> None:
    store = make_store(rows(200, [9, 4, 2]).reshape(200, 2, 12))

    def other(basis: SkillBasis) -> SkillBasis:
        return replace(basis, config=basis.config | {"method": "ica", "settings": {}})

    basis = other(fit_pca(store, PcaSettings(k=3)))
    with pytest.raises(
        UsageError, match="how a basis of method 'ica' is found in other rows is not known here; give refit="
    ):
        measure_stability(store, basis, QUICK)
    sizes: list[int] = []

    def refit(part: ActivationSource) -> SkillBasis:
        sizes.append(len(part))
        fewer = fit_pca(part, PcaSettings(k=2))
        return other(replace(fewer, directions=-fewer.directions[::-1]))

    measured = measure_stability(store, basis, QUICK, refit=refit)
    assert sizes == [100] * 4 and measured.method == "ica"
    assert [entry.half_cosine.median > 0.95 for entry in measured.directions] == [True, True, False]
    lost = measured.directions[2]
    assert (lost.half_cosine.high, lost.between_halves.high, lost.unstable, lost.cosine) == (0, 0, True, None)
    assert measured.unstable == (2,)


def test_a_sparse_autoencoder_is_trained_again_on_halves(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(rows(200, [9, 4, 2]).reshape(200, 2, 12))
    seen: list[tuple[int, SaeSettings]] = []

    def trained(part: ActivationSource, settings: SaeSettings) -> SkillBasis:
        seen.append((len(part), settings))
        of_pca = fit_pca(part, PcaSettings(k=3))
        return replace(of_pca, config=of_pca.config | {"method": "sae", "settings": asdict(settings)})

    monkeypatch.setattr("skillbasis.basis.stability.fit_sae", trained)
    settings = SaeSettings(k=2, dictionary_size=8, active=2, seed=7)
    whole = trained(store, settings)
    basis = replace(whole, directions=whole.directions[1:], config=whole.config | {"n_components": 2})
    measured = measure_stability(store, basis, QUICK)
    assert seen[1:] == [(100, replace(settings, k=None, seed=seed)) for seed in (8, 9, 10, 11)]
    assert (measured.method, measured.n_bootstrap, measured.space) == ("sae", 0, None)
    assert all(entry.half_cosine.low > 0.9 and entry.cosine is None for entry in measured.directions)
    assert measured.unstable == ()


# --- the record ---


def measured_basis(make_store: MakeStore) -> tuple[SkillBasis, Stability]:
    store = make_store(rows(300, [30, 6, 6, 0.5]).reshape(300, 2, 12))
    basis = fit_pca(store, PcaSettings(k=3))
    return basis, measure_stability(store, basis, QUICK)


def test_a_record_survives_json(make_store: MakeStore) -> None:
    basis, measured = measured_basis(make_store)
    assert Stability.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False))) == measured
    without = replace(measured, space=None, directions=tuple(replace(e, cosine=None) for e in measured.directions))
    assert Stability.from_json(json.loads(json.dumps(without.to_json()))) == without
    assert measured.basis == basis.fingerprint


def test_a_basis_keeps_its_stability_and_stays_the_same_basis(make_store: MakeStore, tmp_path: Path) -> None:
    basis, measured = measured_basis(make_store)
    assert basis.stability is None and basis.unstable == ()
    scores = score(make_store(rows(20, [3]).reshape(20, 2, 12), name="other"), basis)
    basis.save(tmp_path / "basis")
    before = files(tmp_path / "basis")
    known = basis.with_stability(measured.to_json())
    assert known.fingerprint == basis.fingerprint
    known.save(tmp_path / "basis")
    after = files(tmp_path / "basis")
    assert {name for name in after if after[name] != before[name]} == {"config.json", "README.md"}
    loaded = SkillBasis.load(tmp_path / "basis")
    assert loaded.unstable == measured.unstable == (1, 2) and loaded.fingerprint == basis.fingerprint
    assert loaded.stability == measured.to_json()
    scores.check_basis(loaded)  # scored before the stability was known
    card = after["README.md"].decode()
    assert "| direction | variance | share | stability |\n|---|---|---|---|\n| 0 |" in card
    assert card.count(", unstable |") == 2 and "in 60 bootstrap resamples of the rows" in card
    assert "stability" not in before["README.md"].decode().lower()
    assert before["README.md"].decode().count("\n|---|---|---|\n") == 1


def test_a_record_of_other_directions_does_not_count(make_store: MakeStore) -> None:
    basis, measured = measured_basis(make_store)
    turned = replace(basis.with_stability(measured.to_json()), directions=-basis.directions)
    assert turned.stability is None and turned.unstable == ()


# --- what cannot be measured ---


def test_activations_that_do_not_belong_to_the_basis(make_store: MakeStore) -> None:
    x = rows(100, [9, 4, 2]).reshape(100, 2, 12)
    basis = fit_pca(make_store(x), PcaSettings(k=2))
    for name, changes, message in (
        ("pooling", {"pooling": "last"}, "do not belong together: pooling is last of the activations and mean"),
        ("model", {"weights_fingerprint": "ff"}, "the basis was found on model 'planted'"),
        ("corpus", {"corpus_fingerprint": "dd", "corpus": "b.jsonl"}, "on another corpus .*are of .*b.jsonl"),
    ):
        with pytest.raises(ArtifactError, match=message):
            measure_stability(make_store(x, name=name, **changes), basis, QUICK)


def test_too_few_rows_and_settings_that_mean_nothing(make_store: MakeStore) -> None:
    store = make_store(rows(20, [9, 4, 2]).reshape(20, 2, 12))
    with pytest.raises(UsageError, match="half of 20 rows are too few to find 10 directions in; extract more rows"):
        measure_stability(store, fit_pca(store, PcaSettings(k=10)), QUICK)
    assert len(measure_stability(store, fit_pca(store, PcaSettings(k=9)), QUICK).directions) == 9
    for space in (1, 25):
        with pytest.raises(UsageError, match=f"at least 2 and at most 24 dimensions, not {space}"):
            measure_stability(store, fit_pca(store, PcaSettings(k=2)), replace(QUICK, space=space))
    for change, message in (
        ({"n_repeats": 0}, "at least 1 split in halves is needed, not 0"),
        ({"n_bootstrap": 5}, "5 resamples are too few for an interval; give 20 or more, or 0"),
        ({"threshold": 1.0}, "the threshold is a cosine between 0 and 1, not 1.0"),
    ):
        with pytest.raises(UsageError, match=message):
            StabilitySettings(**change)


def test_as_many_directions_as_features_and_rows_of_low_rank(make_store: MakeStore) -> None:
    store = make_store(rows(80, [9, 6, 4, 3], 4).reshape(80, 2, 2), name="full")
    full = measure_stability(store, fit_pca(store, PcaSettings(k=4)), QUICK)
    assert [entry.span_cosine.low for entry in full.directions if entry.span_cosine] == pytest.approx([1] * 4)
    x = rows(120, [9, 4], 30)
    x[:, 2:] = 0
    low = make_store(x.reshape(120, 2, 15), name="low")
    measured = measure_stability(low, fit_pca(low, PcaSettings(k=2)), QUICK)
    assert measured.unstable == () and measured.space_share == pytest.approx(1)


def test_memory_holds_the_scores_and_not_the_rows(make_store: MakeStore) -> None:
    d, m, peaks = 200, 40, {}
    for n in (4000, 10_000):
        store = make_store(rows(n, [9, 4, 2], d).reshape(n, 2, d // 2), shard_rows=500, name=f"rows-{n}")
        basis = fit_pca(store, PcaSettings(k=2))
        tracemalloc.start()
        measure_stability(store, basis, StabilitySettings(n_repeats=1, n_bootstrap=20, space=m))
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Scores and their concatenation in float32, and the numbers of the drawn rows; the rows would be 800 bytes each.
    assert (peaks[10_000] - peaks[4000]) / 6000 < m * 4 * 2 + 40


def test_equal_variances_are_found_out_and_different_ones_left_alone() -> None:
    """The rule, over simulated samples: the variances are equal, or four standard errors (2 / sqrt(n)) apart."""
    n, found = 400, {}
    for name, second in (("equal", 6.0), ("apart", 6.0 * (1 - 4 * 2 / np.sqrt(n)))):
        ends, medians = [], []
        for seed in range(30):
            x = rows(n, [30, 6, second, 0.5], 8, seed=seed)
            axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]
            values = ((x - x.mean(axis=0)) @ axes.T).astype(np.float32)
            cosines = bootstrap(LeadingScores(values, 3, 1.0), 100, seed=seed).cosines[:, 1]
            ends.append(np.quantile(cosines, 0.025))
            medians.append(np.median(cosines))
        found[name] = np.mean(np.array(ends) < STABLE), np.mean(np.array(medians) < STABLE)
    assert found["equal"][0] >= 0.9 and found["equal"][1] <= 0.1  # the median hardly sees it
    assert found["apart"][0] <= 0.1
