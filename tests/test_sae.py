"""Directions of a sparse autoencoder: planted ones recovered, figures against NumPy, resuming, what can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from conftest import files, kill_this_process
from skillbasis.activations import ActivationStore
from skillbasis.basis import SaeSettings, SkillBasis, TrainingStep, fit_pca, fit_sae, score
from skillbasis.basis.batches import held_out
from skillbasis.basis.latent_sums import ErrorSums
from skillbasis.basis.pca import PcaSettings
from skillbasis.basis.sae_fit import SaeFit
from skillbasis.errors import SkillbasisError, UsageError
from test_basis import Rows

torch.set_num_threads(1)

MakeStore = Callable[..., ActivationStore]
SMALL = SaeSettings(k=4, dictionary_size=12, active=2, steps=60, batch_size=32, held_out_share=0.2)


def sparse(
    n: int, d: int, m: int, *, active: int = 3, noise: float = 0.1, mean: float = 5.0, seed: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) that are sums of few of many unit directions (m, d) in general position, times 7, plus noise.

    The noise has the given length beside the coefficients of .5 to 1.5; the seed is none of an autoencoder.
    """
    rng = np.random.default_rng([seed, 1])
    directions = rng.standard_normal((m, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = np.zeros((n, m))
    for row in weights:
        row[rng.choice(m, active, replace=False)] = rng.uniform(0.5, 1.5, active)
    x = 7 * (weights @ directions + noise / np.sqrt(d) * rng.standard_normal((n, d)))
    return x + mean * rng.standard_normal(d), directions


def matched(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Signed cosine of each true direction (m, d) with the found one (K, ...) that is matched to it, in order."""
    cosines = truth @ found.reshape(len(found), -1).astype(np.float64).T
    rows, columns = linear_sum_assignment(-cosines)
    return np.sort(cosines[rows, columns])


def flat(basis: SkillBasis) -> np.ndarray:
    return basis.directions.reshape(basis.n_components, -1).astype(np.float64)


# --- what is found ---


@pytest.mark.parametrize(("m", "seed"), [(24, 0), (32, 1)])
def test_planted_directions_are_recovered_with_their_signs(m: int, seed: int, make_store: MakeStore) -> None:
    x, truth = sparse(4000, 64, m)
    store = make_store(x.reshape(4000, 4, 16), shard_rows=700)
    settings = SaeSettings(k=None, dictionary_size=2 * m, active=3, steps=1200, seed=seed)
    basis = fit_sae(store, settings)
    cosines = matched(basis.directions, truth)
    assert (cosines > 0.9).all(), cosines
    assert basis.config["held_out"]["explained_variance"] > 0.97
    # The most important are the planted ones: nothing else of the dictionary matters.
    assert (matched(basis.directions[:m], truth) > 0.9).all()
    assert matched(fit_pca(store, PcaSettings(k=m)).directions, truth).max() < 0.9  # PCA mixes them


def test_figures_are_those_of_numpy(make_store: MakeStore, tmp_path: Path) -> None:
    x = sparse(900, 24, 10)[0].astype(np.float32)
    x[:, 12:] *= 9  # blocks of different scale
    for normalize in (False, True):
        settings = SaeSettings(k=None, dictionary_size=16, active=3, steps=300, seed=4, normalize_blocks=normalize)
        store = make_store(x.reshape(900, 2, 12), shard_rows=130, name=f"n{normalize}")
        trained = tmp_path / f"trained-{normalize}"
        basis = fit_sae(store, settings, checkpoint=trained)
        fit = SaeFit(store, settings, None)  # the same again, for its parameters
        fit.find_moments()
        fit.train(None)
        encoder, decoder, offset = (p.detach().numpy().astype(np.float64) for p in fit.trainer.model.parameters)

        centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
        scale = np.ones(24)
        if normalize:
            rms = np.sqrt((centred**2).reshape(900, 2, 12).mean(axis=(0, 2)))
            scale = np.repeat(rms, 12)
        scale = scale * np.sqrt(((centred / scale) ** 2).sum(axis=1).mean())
        y = centred / scale
        assert (y**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-6)
        np.testing.assert_allclose(fit.scale, scale, rtol=1e-4)
        z = np.zeros((900, 16))
        pre = (y - offset) @ encoder.T
        for row, values in zip(z, pre, strict=True):
            top = np.argsort(-values)[:3]
            row[top] = np.maximum(values[top], 0)
        error = ((y - offset - z @ decoder) ** 2).sum(axis=1)
        held = held_out(4, 0.1, 0, 900)
        for part, rows in (("held_out", held), ("training", ~held)):
            found = basis.config[part]
            assert found["rows"] == rows.sum()
            expected = 1 - error[rows].sum() / (y[rows] ** 2).sum()
            assert found["explained_variance"] == pytest.approx(expected, abs=1e-5)
            assert found["active_per_row"] == pytest.approx((z[rows] > 0).sum(axis=1).mean(), abs=2e-2)

        alive = (z > 0).any(axis=0)
        assert basis.config["dictionary"]["alive"] == alive.sum() == basis.n_components
        np.testing.assert_allclose(
            basis.config["dictionary"]["activation_frequency"], (z > 0).mean(axis=0), atol=2e-3
        )  # a row may have two latents of the same strength
        order = np.argsort(-(z**2).mean(axis=0), kind="stable")[: alive.sum()]
        assert basis.config["latents"] == order.tolist()
        np.testing.assert_allclose(basis.config["importance"], (z**2).mean(axis=0)[order], rtol=1e-3, atol=1e-7)
        assert (np.diff(basis.config["importance"]) <= 0).all()
        vectors = (decoder * scale)[order]
        lengths = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(flat(basis), vectors / lengths[:, None], atol=1e-6)
        scores = centred @ (vectors / lengths[:, None]).T
        np.testing.assert_allclose(basis.score_covariance, np.cov(scores.T), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(basis.explained_variance, scores.var(axis=0, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(basis.score_std, scores.std(axis=0, ddof=1), rtol=1e-4)
        total = centred.var(axis=0, ddof=1).sum()
        assert basis.config["total_variance"] == pytest.approx(total, rel=1e-5)
        np.testing.assert_allclose(
            basis.config["explained_variance_ratio"], basis.explained_variance / total, rtol=1e-5
        )
        for k, tolerance in ((4, 1e-5), (len(order), 2e-3)):  # float32 sums, and directions that are nearly dependent
            few = fit_sae(store, replace(settings, k=k), checkpoint=trained)
            inside = np.linalg.lstsq(vectors[:k].T, centred.T, rcond=None)[0].T @ vectors[:k]
            share = (inside**2).sum() / (centred**2).sum()
            assert few.config["span_variance_ratio"] == pytest.approx(share, abs=tolerance)
        active_means = [lengths[i] * z[z[:, j] > 0, j].mean() for i, j in enumerate(order)]
        np.testing.assert_allclose(basis.config["mean_activation"], active_means, rtol=2e-2)
        correlations = [np.corrcoef(z[:, j], scores[:, i])[0, 1] for i, j in enumerate(order)]
        np.testing.assert_allclose(basis.config["score_activation_correlation"], correlations, atol=1e-2)
        np.testing.assert_allclose(score(store, basis).values, scores, atol=1e-2)  # float32, of scores up to 100
        weights = np.random.default_rng(0).standard_normal(len(order))
        assert basis.combined_std(weights) == pytest.approx((scores @ weights).std(ddof=1), rel=1e-4)


def test_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(5)
    squares = rng.gamma(2, 1, 800)
    errors = squares * rng.uniform(0, 0.3, 800)
    sums = ErrorSums.empty()
    sums.add(errors[:300], squares[:300], 700)
    sums.add(errors[300:], squares[300:], 900)
    report = sums.report()
    resampled = [rng.integers(0, 800, 800) for _ in range(4000)]
    explained = [1 - errors[rows].sum() / squares[rows].sum() for rows in resampled]
    assert report["explained_variance"] == pytest.approx(1 - errors.sum() / squares.sum(), rel=1e-12)
    low, high = np.quantile(explained, [0.025, 0.975])
    width = high - low  # of 4000 resamples a quantile is good to 3 % or so of it
    assert abs(report["low"] - low) < 0.06 * width and abs(report["high"] - high) < 0.06 * width
    assert (report["rows"], report["active_per_row"]) == (800, 2.0)
    one = ErrorSums.empty()
    one.add(np.array([0.1]), np.array([1.0]), 1)
    assert (one.report()["explained_variance"], one.report()["low"]) == (0.9, None)


def test_fewer_directions_are_the_most_important_of_more(make_store: MakeStore) -> None:
    store = make_store(sparse(400, 16, 8)[0].reshape(400, 2, 8))
    every = fit_sae(store, replace(SMALL, k=None))
    few = fit_sae(store, SMALL)
    assert few.n_components == 4 < every.n_components == every.config["dictionary"]["alive"]
    np.testing.assert_array_equal(few.directions, every.directions[:4])
    np.testing.assert_array_equal(few.score_covariance, every.score_covariance[:4, :4])  # type: ignore[index]
    cosines = flat(few) @ flat(few).T - np.eye(4)
    nearest = cosines[np.arange(4), np.abs(cosines).argmax(axis=1)]
    np.testing.assert_allclose(few.config["nearest_cosine"], nearest, atol=1e-6)
    assert fit_sae(store, replace(SMALL, k=1)).config["nearest_cosine"] == [None]


def test_dead_latents_are_counted_and_left_out(make_store: MakeStore) -> None:
    store = make_store(sparse(1500, 24, 6, active=2, noise=0.01)[0].reshape(1500, 2, 12))
    settings = SaeSettings(k=None, dictionary_size=40, active=2, steps=400, batch_size=128)
    basis = fit_sae(store, settings)
    dictionary = basis.config["dictionary"]
    assert dictionary["dead"] > 0 and dictionary["alive"] + dictionary["dead"] == 40
    assert sum(frequency > 0 for frequency in dictionary["activation_frequency"]) == dictionary["alive"]
    assert min(basis.config["activation_frequency"]) > 0
    with pytest.raises(UsageError, match=rf"k = 40 is more than the {dictionary['alive']} latents .* ever active .*"):
        fit_sae(store, replace(settings, k=40))


# --- the same again ---


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(sparse(400, 16, 8)[0].reshape(400, 2, 8), shard_rows=90)
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        fit_sae(store, replace(SMALL, seed=seed)).save(tmp_path / name)
    assert files(tmp_path / "first") == files(tmp_path / "again") != files(tmp_path / "other")
    loaded, made = SkillBasis.load(tmp_path / "first"), fit_sae(store, SMALL)
    assert loaded.fingerprint == made.fingerprint
    np.testing.assert_array_equal(loaded.score_covariance, made.score_covariance)  # type: ignore[arg-type]
    assert SaeSettings(**loaded.config["settings"]) == SMALL


def test_a_live_source_gives_the_basis_of_a_stored_one_where_the_rows_fit(make_store: MakeStore) -> None:
    x = sparse(400, 16, 8)[0]
    live, stored = Rows(x, live=True), Rows(x)
    settings = replace(SMALL, steps=200)
    assert fit_sae(live, settings).fingerprint == fit_sae(stored, settings).fingerprint
    assert live.n_read == 12  # four shards: moments, training rows, measuring
    streamed = Rows(x, live=True)
    basis = fit_sae(streamed, replace(settings, buffer_bytes=100 * 16 * 4, dictionary_size=8))
    assert basis.config["held_out"]["explained_variance"] > 0.5
    epochs = -(-200 // int(200 / basis.config["training"]["epochs"] + 0.5))
    assert 4 * (epochs + 2) >= streamed.n_read > 4 * (epochs + 1)  # a pass for each epoch


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("buffer", [1 << 20, 100 * 16 * 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    buffer: int, live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_SHARE", np.inf)
    x, settings = sparse(350, 16, 8)[0], replace(SMALL, buffer_bytes=buffer, steps=10)
    whole = Rows(x, live=live)
    expected = fit_sae(whole, settings).fingerprint
    n_shards = whole.n_read
    for fail_at in range(n_shards):  # in each phase, at each shard that is read
        checkpoint = tmp_path / f"{fail_at}.safetensors"
        with pytest.raises(InterruptedError):
            fit_sae(Rows(x, live=live, fail_at=fail_at), settings, checkpoint=checkpoint)
        rest = Rows(x, live=live)
        steps: list[int] = []
        again = fit_sae(rest, settings, checkpoint=checkpoint, on_step=lambda step: steps.append(step.done))  # noqa: B023
        assert again.fingerprint == expected
        assert rest.n_read <= n_shards - min(fail_at, 4) + 4  # what the buffer held is read again
        if fail_at >= n_shards - 3:  # while measuring, beyond its first shard
            assert not steps and rest.n_read == n_shards - fail_at


def test_a_run_killed_between_steps_goes_on_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: MakeStore, in_child: Callable[..., int]
) -> None:
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("skillbasis.basis.passes._SAVE_SHARE", np.inf)
    store, checkpoint = make_store(sparse(350, 16, 8)[0].reshape(350, 2, 8)), tmp_path / "checkpoint"
    expected: list[TrainingStep] = []
    fit_sae(store, SMALL, on_step=expected.append).save(tmp_path / "whole")
    assert [step.done for step in expected] == list(range(1, 61)) and {step.total for step in expected} == {60}

    def killed(step: TrainingStep) -> None:
        if step.done == 23:
            kill_this_process()

    assert in_child(lambda: fit_sae(store, SMALL, checkpoint=checkpoint, on_step=killed)) == -9
    rest: list[TrainingStep] = []
    fit_sae(store, SMALL, checkpoint=checkpoint, on_step=rest.append).save(tmp_path / "again")
    assert rest == expected[23:]
    assert files(tmp_path / "again") == files(tmp_path / "whole")
    # Another k needs no training; another seed, or other rows, need it all.
    for settings, n_steps in ((replace(SMALL, k=2), 0), (replace(SMALL, seed=1), 60), (SMALL, 60)):
        steps: list[TrainingStep] = []
        fit_sae(store, settings, checkpoint=checkpoint, on_step=steps.append)
        assert len(steps) == n_steps


def test_checkpoints_are_not_written_without_need(tmp_path: Path, make_store: MakeStore) -> None:
    store = make_store(sparse(350, 16, 8)[0].reshape(350, 2, 8))
    fit_sae(store, SMALL)
    assert not list(tmp_path.glob("*.safetensors"))
    written: list[bool] = []
    checkpoint = tmp_path / "checkpoint"
    fit_sae(store, SMALL, checkpoint=checkpoint, on_step=lambda _: written.append(checkpoint.exists()))
    assert not any(written) and checkpoint.exists()  # half a minute had not gone by; the end of training is kept


# --- what cannot be ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"active": 0}, "active must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"dictionary_size": 1}, "dictionary_size must be at least 2"),
        ({"dead_after": 0}, "dead_after must be at least 1"),
        ({"active": 129}, "active = 129 is more than the 128 latents of the dictionary; choose a smaller active"),
        ({"k": 11, "dictionary_size": 10}, "k = 11 is more than the 10 latents of the dictionary; choose a smaller k"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"held_out_share": 1.0}, "held_out_share must be between 0 and 1, not 1.0"),
        ({"revival_weight": -1.0}, "revival_weight must not be negative"),
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SaeSettings(**change)


def test_settings_that_do_not_fit_the_rows_are_refused_before_any_is_read() -> None:
    x = np.random.default_rng(0).standard_normal((60, 8))
    for change, message in (
        (
            {"dictionary_size": 200},
            r"dictionary of 200 latents needs at least as many rows .* there are 5\d \(\d+ more",
        ),
        ({"active": 8}, "active = 8 is not below the 8 features of the activations"),
        ({"held_out_share": 1e-6}, "0 rows are held out, but .* 2 or more only; choose a larger held_out_share"),
        ({"device": "quantum"}, "device 'quantum' cannot be used: "),
    ):
        source = Rows(x)
        with pytest.raises(UsageError, match=message):
            fit_sae(source, SaeSettings(**{"k": 2, "dictionary_size": 20, "active": 2, "steps": 5} | change))
        assert source.n_read == 0


def test_rows_that_cannot_be_learnt_from(make_store: MakeStore) -> None:
    x = sparse(200, 16, 8)[0]
    with pytest.raises(SkillbasisError, match="do not vary over the rows"):
        fit_sae(Rows(np.full((200, 16), 3.3)), SMALL)
    broken = x.copy()
    broken[150, 3] = np.nan
    with pytest.raises(SkillbasisError, match="not finite everywhere; extract them again with --on-bad-row skip"):
        fit_sae(Rows(broken), SMALL)
    source = Rows(x, live=True)
    source.parts = [part[:0] for part in source.parts]
    with pytest.raises(SkillbasisError, match="there are no activations"):
        fit_sae(source, SMALL)
    source = Rows(x, live=True)
    source.parts[1] = source.parts[1][:0]
    with pytest.raises(UsageError, match="a dictionary of 150 latents needs"):  # known when the rows were counted
        fit_sae(source, replace(SMALL, dictionary_size=150, held_out_share=0.1))
    with pytest.raises(SkillbasisError, match="training diverged at step .*; choose a smaller learning_rate"):
        fit_sae(Rows(x), replace(SMALL, learning_rate=1e30))


def test_rows_that_change_while_they_are_read(make_store: MakeStore) -> None:
    source = Rows(sparse(400, 16, 8)[0], live=True)

    def change(step: TrainingStep) -> None:
        if step.done == 60:
            source.parts[2] = source.parts[2][:-1]

    with pytest.raises(SkillbasisError, match="first pass gave 100 rows of shard 2 and a later one 99; leave corpus"):
        fit_sae(source, SMALL, on_step=change)


# --- as any other basis ---


def test_the_configuration_says_what_it_is(make_store: MakeStore, tmp_path: Path) -> None:
    basis = fit_sae(make_store(sparse(400, 16, 8)[0].reshape(400, 2, 8)), SMALL)
    config = basis.config
    assert (config["method"], config["orthogonal"], config["n_components"]) == ("sae", False, 4)
    assert config["settings"] == asdict(SMALL)
    assert config["training"]["steps"] == 60 and config["training"]["epochs"] == pytest.approx(6, abs=1)
    np.testing.assert_allclose(np.linalg.norm(flat(basis), axis=1), 1, rtol=1e-6)
    assert not np.allclose(flat(basis) @ flat(basis).T, np.eye(4), atol=0.01)
    basis.save(tmp_path / "basis")
    card = (tmp_path / "basis" / "README.md").read_text()
    assert "not orthogonal: their shares overlap and do not add up" in card
    assert f"12 latents of a TopK sparse autoencoder ({config['dictionary']['dead']} dead)" in card
    assert "points to where its latent is active" in card


def test_a_direction_points_to_where_its_latent_is_active(make_store: MakeStore) -> None:
    x, truth = sparse(1500, 24, 6, active=2, noise=0.01)
    for sign in (1, -1):  # whatever the largest coordinate is
        store = make_store(sign * x.reshape(1500, 2, 12), name=f"sign{sign}")
        basis = fit_sae(store, SaeSettings(k=6, dictionary_size=12, active=2, steps=600, batch_size=128))
        assert (matched(basis.directions, sign * truth) > 0.9).all()
        assert min(basis.config["score_activation_correlation"]) > 0.3
