"""The package as a user of Python meets it: the names of `skillbasis`, on the embedded reasoner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import skillbasis
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm() -> skillbasis.LanguageModel:
    return skillbasis.load_model("embedded")


@pytest.fixture(scope="module")
def corpus() -> skillbasis.Corpus:
    return skillbasis.load_corpus("embedded", limit=150)


@pytest.fixture(scope="module")
def store(
    lm: skillbasis.LanguageModel, corpus: skillbasis.Corpus, tmp_path_factory: pytest.TempPathFactory
) -> skillbasis.ActivationStore:
    folder = tmp_path_factory.mktemp("api") / "acts"
    return skillbasis.extract(corpus, lm, folder, skillbasis.ExtractionSettings(span="response"))


@pytest.fixture(scope="module")
def basis(store: skillbasis.ActivationStore) -> skillbasis.SkillBasis:
    return skillbasis.fit_pca(store, skillbasis.PcaSettings(k=3))


def next_token_logits(lm: skillbasis.LanguageModel, text: str = "What is 17 plus 25?\n") -> torch.Tensor:
    with torch.no_grad():
        return lm.model(**lm.tokenizer(text, return_tensors="pt")).logits[0, -1]  # type: ignore[no-any-return]


def test_from_a_corpus_to_a_selection(lm: skillbasis.LanguageModel, tmp_path: Path) -> None:
    corpus = skillbasis.load_corpus("embedded", limit=100, shuffle_seed=0)
    store = skillbasis.extract(corpus, lm, tmp_path / "acts", skillbasis.ExtractionSettings(span="response"))
    basis = skillbasis.fit_pca(store, skillbasis.PcaSettings(k=3))
    scores = skillbasis.score(store, basis)
    settings = skillbasis.SelectionSettings(directions=((0, "+"),), top_share=0)
    chosen = skillbasis.select(skillbasis.Candidates.of(corpus, scores, settings=settings), "directions", 10, seed=0)

    best = np.argsort(-scores.cosine[:, 0])[:10]
    assert [row.id for row in chosen] == [corpus.ids[i] for i in best]
    assert [row.score for row in chosen] == pytest.approx(scores.cosine[best, 0].tolist())


def test_activations_and_basis_come_back_from_disk(
    store: skillbasis.ActivationStore, basis: skillbasis.SkillBasis, tmp_path: Path
) -> None:
    basis.save(tmp_path / "basis")
    skillbasis.score(store, basis).save(tmp_path / "scores.parquet")
    again = skillbasis.SkillBasis.load(str(tmp_path / "basis"))
    opened = skillbasis.ActivationStore.open(str(store.path))
    scores = skillbasis.score(opened, again)

    assert again.fingerprint == basis.fingerprint
    np.testing.assert_array_equal(scores.values, skillbasis.Scores.load(tmp_path / "scores.parquet").values)
    # By definition: centred scores, whose variances are the explained ones; float32 sums differ in the last digits.
    np.testing.assert_allclose(scores.values.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(scores.values.var(axis=0, ddof=1), basis.explained_variance, rtol=1e-4)


def test_steer_lasts_as_long_as_the_block(lm: skillbasis.LanguageModel, basis: skillbasis.SkillBasis) -> None:
    vector = skillbasis.direction_vector(basis, 0, "+", unit="relative")
    before = next_token_logits(lm)
    with skillbasis.steer(lm, vector, 0.5):
        during = next_token_logits(lm)
    after = next_token_logits(lm)
    with pytest.raises(KeyError), skillbasis.steer(lm, vector, 0.5):
        raise KeyError("a user's own error")

    assert not torch.allclose(before, during, atol=0.1)
    assert torch.equal(before, after) and torch.equal(before, next_token_logits(lm))


def test_steer_adds_alpha_times_the_direction(lm: skillbasis.LanguageModel, basis: skillbasis.SkillBasis) -> None:
    vector = skillbasis.direction_vector(basis, 1, "-", blocks=[1])
    streams: list[torch.Tensor] = []  # what enters block 2; `output_hidden_states` is recorded before hooks change it
    handle = lm.blocks[2].register_forward_pre_hook(lambda _block, inputs: streams.append(inputs[0][0]))
    next_token_logits(lm)
    with skillbasis.steer(lm, vector, alpha=4.0):
        next_token_logits(lm)
    handle.remove()

    plain, moved = streams
    by_hand = plain - 4.0 * torch.from_numpy(basis.directions[1, basis.block_ids.index(1)])
    torch.testing.assert_close(moved, by_hand)


def test_evaluate_plain_and_steered(lm: skillbasis.LanguageModel, basis: skillbasis.SkillBasis, tmp_path: Path) -> None:
    task = skillbasis.load_task("embedded:validation", limit=6)
    settings = skillbasis.SamplingSettings(rollouts=2, temperature=0.8, max_tokens=40)
    plain = skillbasis.evaluate(lm, [task], settings, tmp_path / "plain")["embedded:validation"]
    vector = skillbasis.direction_vector(basis, 0, "-", unit="relative")
    steered = skillbasis.evaluate(
        lm,
        [task],
        settings,
        tmp_path / "steered",
        intervention=lambda lm: skillbasis.steer(lm, vector, 0.8, scope="last-prompt"),
        intervention_settings={"direction": vector.name, "alpha": 0.8},
    )["embedded:validation"]

    assert plain.correct.shape == steered.correct.shape == (6, 2)
    assert plain.pass_at_k(1).tolist() == plain.correct.mean(axis=1).tolist()
    assert plain.summary()["pass@2"]["mean"] == plain.correct.any(axis=1).mean()
    assert not np.array_equal(plain.n_tokens, steered.n_tokens)


def test_fine_tune_on_what_was_selected(
    lm: skillbasis.LanguageModel, corpus: skillbasis.Corpus, tmp_path: Path
) -> None:
    chosen = skillbasis.select(skillbasis.Candidates.of(corpus), "random", 24, seed=0)
    rows = [(corpus.rows[corpus.positions[row.id]]["prompt"], corpus.source_row(row.id)["solution"]) for row in chosen]
    settings = skillbasis.TrainingSettings(learning_rate=1e-3, batch_size=8, micro_batch_size=8, epochs=2)
    path = skillbasis.fine_tune(lm, rows, settings, tmp_path / "tuned", trainer="lean")
    tuned = skillbasis.load_model(path)

    assert tuned.weights_fingerprint != lm.weights_fingerprint
    assert not torch.equal(next_token_logits(tuned), next_token_logits(lm))


def test_a_random_vector_is_as_long_as_the_one_it_controls_for(basis: skillbasis.SkillBasis) -> None:
    vector = skillbasis.direction_vector(basis, 2, unit="std")
    control = skillbasis.random_vector(vector, seed=0)
    lengths = np.linalg.norm(vector.values, axis=1)
    np.testing.assert_allclose(np.linalg.norm(control.values, axis=1), lengths, rtol=1e-5)
    cosine = (vector.values * control.values).sum() / (lengths**2).sum()
    assert abs(cosine) < 0.4  # of 256 random coordinates: 6 standard deviations


def test_faults_are_errors_of_one_family(
    lm: skillbasis.LanguageModel, basis: skillbasis.SkillBasis, corpus: skillbasis.Corpus, tmp_path: Path
) -> None:
    cases: list[tuple[type[Exception], str, Any]] = [
        (UsageError, "there is no corpus at nowhere.jsonl", lambda: skillbasis.load_corpus("nowhere.jsonl")),
        (UsageError, "limit is 0; give 1 or more", lambda: skillbasis.load_task("embedded", limit=0)),
        (UsageError, "shuffle_seed is -1", lambda: skillbasis.load_corpus("embedded", limit=1, shuffle_seed=-1)),
        (UsageError, "direction 3 does not exist", lambda: skillbasis.direction_vector(basis, 3)),
        (
            UsageError,
            "budget of 151 rows is above the pool",
            lambda: skillbasis.select(skillbasis.Candidates.of(corpus), "random", 151, 0),
        ),
        (ArtifactError, "there is no activations directory", lambda: skillbasis.ActivationStore.open(tmp_path / "x")),
    ]
    for family, message, fault in cases:
        with pytest.raises(family, match=message) as caught:
            fault()
        assert isinstance(caught.value, SkillbasisError)
        assert isinstance(caught.value, ValueError) == (family is UsageError)


def test_every_public_name_is_there_and_explains_itself() -> None:
    for name in skillbasis.__all__:
        assert getattr(skillbasis, name).__doc__, name
        assert name in dir(skillbasis)
    assert all(callable(getattr(skillbasis, name)) for name in skillbasis.__all__)
    with pytest.raises(AttributeError, match="module 'skillbasis' has no attribute 'fit_nothing'"):
        skillbasis.fit_nothing  # noqa: B018


@pytest.mark.parametrize(
    "first", ["import skillbasis.evaluate.run", "import skillbasis.steer.hooks", "from skillbasis import select, steer"]
)
def test_names_work_in_whatever_order_modules_are_imported(first: str) -> None:
    """`steer`, `select` and `evaluate` are packages and functions at once."""
    code = f"{first}\nimport skillbasis, sys\nassert 'torch' not in sys.modules\n"
    code += "for name in ('steer', 'select', 'evaluate'): assert callable(getattr(skillbasis, name)), name\n"
    code += "from skillbasis.steer import direction_vector\nassert direction_vector is skillbasis.direction_vector"
    subprocess.run([sys.executable, "-c", code], check=True)
