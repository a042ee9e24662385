"""`discover --method sae` as typed, and every later command on what it makes, with the embedded reasoner."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import skillbasis as package
from shell import done, skillbasis
from skillbasis.activations import ActivationStore
from skillbasis.basis import Scores, SkillBasis

torch.set_num_threads(1)

SAE = ("--method", "sae", "--dictionary-size", "24", "--active", "3", "--steps", "150", "--batch-size", "32")
READ = ("--span", "response", "--max-length", "256")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations of 150 rows of the embedded pool, four directions of them, and the scores of all rows."""
    folder = tmp_path_factory.mktemp("sae")
    done("extract", "embedded", "--model", "embedded", "--out", folder / "acts", "--limit", "150", *READ)
    shown = done("discover", folder / "acts", "--out", folder / "basis", "--k", "4", *SAE)
    assert re.search(
        r"basis: 4 of \d+ live latents, spanning \d+\.\d% of the variance \(\d+ of 24 are dead\); the autoencoder "
        r"explains \d+\.\d% \[\d+\.\d%, \d+\.\d%\] of the variance of \d+ held-out rows with \d\.\d latents a row, "
        r"after 3\d\.\d epochs\n",
        shown,
    )
    done("score", folder / "acts", "--basis", folder / "basis", "--out", folder / "scores.parquet")
    return folder


def test_discover_makes_a_basis_and_leaves_nothing_else(work: Path) -> None:
    basis, store = SkillBasis.load(work / "basis"), ActivationStore.open(work / "acts")
    assert (basis.n_components, basis.config["method"], basis.config["orthogonal"]) == (4, "sae", False)
    assert basis.config["settings"]["dictionary_size"] == 24 and basis.config["settings"]["active"] == 3
    assert not list(work.glob(".basis.progress.safetensors"))
    scores = Scores.load(work / "scores.parquet")
    assert scores.basis_fingerprint == basis.fingerprint
    activations = store.to_numpy().astype(np.float64)
    by_hand = np.einsum("nbh,kbh->nk", activations - activations.mean(axis=0), basis.directions)
    np.testing.assert_allclose(scores.values, by_hand, atol=1e-3)  # float32 activations and directions
    np.testing.assert_allclose(scores.values.std(axis=0, ddof=1), basis.score_std, rtol=1e-4)
    np.testing.assert_allclose(np.cov(scores.values.T), basis.score_covariance, rtol=1e-3, atol=0.1)


def test_a_corpus_is_read_without_storing_to_the_same_basis(work: Path, tmp_path: Path) -> None:
    corpus = ("embedded", "--model", "embedded", "--limit", "150", *READ)
    done("discover", *corpus, "--out", tmp_path / "streamed", "--k", "4", *SAE)
    stored = (work / "basis" / "basis.safetensors").read_bytes()
    assert (tmp_path / "streamed" / "basis.safetensors").read_bytes() == stored


def test_every_later_command_takes_the_basis(work: Path, tmp_path: Path) -> None:
    basis, scores = ("--basis", work / "basis"), ("--scores", work / "scores.parquet")
    corpus = ("embedded", "--limit", "150")
    done("interpret", *basis, *scores, "--corpus", "embedded", "--out", tmp_path / "meaning")
    assert len(json.loads((tmp_path / "meaning" / "directions.json").read_text())["directions"]) == 4
    for name, strategy in (("directions", ("--direction", "3+")), ("coverage", ())):
        out = tmp_path / f"{name}.jsonl"
        chosen = skillbasis(
            "select", *corpus, *scores, *basis, "--strategy", name, *strategy, "--budget", "9", "--out", out
        )
        assert chosen.code == 0, chosen.err
        assert len(out.read_text().splitlines()) == 9
    vector = tmp_path / "vector.safetensors"
    done("steer", "vectors", *basis, "--direction", "2-", "--unit", "std", "--out", vector)
    baked = done(
        "steer", "bake", "--model", "embedded", *basis, "--direction", "1", "--alpha", "0.5", "--out", tmp_path / "b"
    )
    assert "same first choice" in baked
    answered = skillbasis(
        *("evaluate", "--model", "embedded", "--task", "embedded", "--limit", "4", "--rollouts", "1"),
        *("--max-tokens", "8", "--steer", f"{work / 'basis'}:3:0.5", "--out", tmp_path / "eval"),
    )
    assert answered.code == 0, answered.err


def test_the_latents_of_a_vector_have_the_natural_sign(work: Path) -> None:
    basis = SkillBasis.load(work / "basis")
    vector = package.direction_vector(basis, 0, "+")
    np.testing.assert_allclose(vector.values, basis.directions[0], rtol=1e-6)
    assert min(basis.config["score_activation_correlation"]) > 0


REFUSED = {
    "--method sea": r"unknown method 'sea' \(did you mean 'sae'\?\); allowed are pca, sae",
    "--method nmf": r"unknown method 'nmf'; allowed are pca, sae",
    "--method sae --k 25 --dictionary-size 24": r"k = 25 is more than the 24 latents of the dictionary; choose a",
    "--method sae --active 30 --dictionary-size 24": r"active = 30 is more than the 24 latents of the dictionary",
    "--method sae --dictionary-size 149": r"a dictionary of 149 latents needs at least as many rows to train on, but",
    "--method sae --dictionary-size 24 --steps 0": r"steps must be at least 1, not 0",
    "--method sae --learning-rate 0": r"learning_rate must be above 0, not 0.0",
    "--method sae --tol 0.5": r"--tol says nothing to --method sae; leave it out",
    "--active 3": r"--active says nothing to --method pca; leave it out",
    "--dictionary-size 30": r"--dictionary-size says nothing to --method pca; leave it out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_command_that_cannot_be_meant_is_refused(words: str, work: Path, tmp_path: Path) -> None:
    result = skillbasis("discover", work / "acts", "--out", tmp_path / "new", *words.split())
    assert result.code == 2
    assert re.search(REFUSED[words], result.err) and "Traceback" not in result.err
    assert not (tmp_path / "new").exists()


def test_too_many_directions_are_told_after_training_and_nothing_is_trained_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = ("--method", "sae", "--dictionary-size", "100", "--active", "2", "--steps", "120", "--batch-size", "32")
    refused = skillbasis("discover", work / "acts", "--out", tmp_path / "new", "--k", "100", *wide)
    found = re.search(r"k = 100 is more than the (\d+) latents that are ever active", refused.err)
    assert refused.code == 2 and found, refused.err
    assert (tmp_path / ".new.progress.safetensors").exists()
    monkeypatch.delattr("skillbasis.basis.autoencoder.Trainer.take")
    shown = done("discover", work / "acts", "--out", tmp_path / "new", "--k", found[1], *wide)
    assert f"{found[1]} of {found[1]} live latents" in shown
    assert not (tmp_path / ".new.progress.safetensors").exists()


def test_broken_rows_stop_the_work(work: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from skillbasis.artifact import checksum, write_tensors

    store = tmp_path / "broken"
    store.mkdir()
    for file in (work / "acts").iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    shard = store / "shard-00000.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(shard).items()}
    tensors["activations"][7, 0, 3] = np.nan
    write_tensors(shard, tensors)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["shards"][0] |= {"bytes": shard.stat().st_size, "checksum": checksum(shard)}
    (store / "manifest.json").write_text(json.dumps(manifest))
    result = skillbasis("discover", store, "--out", tmp_path / "new", "--k", "4", *SAE)
    assert result.code == 1 and "not finite everywhere; extract them again with --on-bad-row skip" in result.err
