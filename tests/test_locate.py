"""A text in the coordinates of a basis: read as rows are, measured against the scored corpus."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillbasis.activations import ExtractionSettings, LiveActivations
from skillbasis.basis import PcaSettings, Scores, SkillBasis, fit_pca, score
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.interpret.locate import Location, locate
from skillbasis.lm import LanguageModel
from tiny import TEMPLATE, tiny_lm

WORDS = ("seven", "plus", "is", "answer", "three", "sum", "what", "four", "take", "left")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    import json

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = []
    for i in range(60):
        text = " ".join(rng.choice(WORDS, rng.integers(3, 12)))
        response = "" if i % 2 else " ".join(rng.choice(WORDS, 5))
        lines.append({"id": f"row-{i}", "prompt": f"{text} {i}", "response": response})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_corpus(path)


def fitted(
    lm: LanguageModel, corpus: Corpus, k: int = 4, **settings: Any
) -> tuple[LiveActivations, SkillBasis, Scores]:
    source = LiveActivations(corpus, lm, ExtractionSettings(**settings))
    basis = fit_pca(source, PcaSettings(k=k))
    return source, basis, score(source, basis)


def values_of(location: Location) -> np.ndarray:
    return np.array([coordinate.score for coordinate in location.coordinates])


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_rows_own_text_gives_its_own_scores(corpus: Corpus, pooling: str, template: str | None) -> None:
    model = tiny_lm(template=template)
    _, basis, scores = fitted(model, corpus, pooling=pooling, layers="all")
    for row in (1, 7, 33):  # rows without a response are what a bare text is
        found = locate(corpus.rows[row]["prompt"][0]["content"], basis, model, scores=scores, corpus=corpus)
        # Alone or in a batch of rows padded to one length: rounding of float32 only.
        assert values_of(found) == pytest.approx(scores.values[row], abs=1e-4 * np.abs(scores.values).max())
        assert found.norm == pytest.approx(scores.norm[row], rel=1e-4)
        assert found.nearest[0].id == f"row-{row}" and found.nearest[0].cosine == pytest.approx(1, abs=1e-4)


def test_figures_by_their_definitions(lm: LanguageModel, corpus: Corpus) -> None:
    source, basis, scores = fitted(lm, corpus)
    found = locate("seven plus three", basis, lm, scores=scores, corpus=corpus, n_nearest=3)
    values = values_of(found)
    assert [c.z for c in found.coordinates] == pytest.approx(values / basis.score_std)
    for k, coordinate in enumerate(found.coordinates):
        assert coordinate.percentile == pytest.approx(100 * np.mean(scores.values[:, k] < values[k]))
        assert coordinate.direction == k and not coordinate.unstable
    inside = (scores.values**2).sum(axis=1) / scores.norm**2
    assert found.share_inside == pytest.approx((values**2).sum() / found.norm**2, rel=1e-4)
    assert found.expected_share == pytest.approx(inside.mean(), rel=1e-4)
    assert found.share_percentile == pytest.approx(100 * np.mean(inside < found.share_inside))
    assert found.norm_percentile == pytest.approx(100 * np.mean(scores.norm < found.norm))
    z, others = values / basis.score_std, scores.values / basis.score_std
    cosines = others @ z / np.linalg.norm(others, axis=1) / np.linalg.norm(z)
    order = np.argsort(-cosines)
    assert found.nearest[0].id == f"row-{order[0]}"
    assert [n.cosine for n in found.nearest] == sorted((n.cosine for n in found.nearest), reverse=True)
    assert found.nearest[0].cosine == pytest.approx(cosines[order[0]])
    assert (found.n_scored, found.n_tokens, found.truncated) == (
        60,
        len(lm.tokenizer("seven plus three\n").input_ids),
        False,
    )
    assert source.n_features > basis.n_components


def test_a_basis_of_full_rank_holds_everything(corpus: Corpus) -> None:
    model = tiny_lm(hidden_size=16, intermediate_size=16)
    _, basis, scores = fitted(model, corpus, k=16, layers="1")
    found = locate("something that no row says", basis, model, scores=scores)
    assert found.share_inside == pytest.approx(1, abs=1e-4)
    assert found.expected_share == pytest.approx(1, abs=1e-4)
    _, small, _ = fitted(model, corpus, k=3, layers="1")
    part = locate("something that no row says", small, model)
    assert 0 < part.share_inside < 1
    assert math.isnan(part.expected_share) and part.n_scored == 0 and part.nearest == []
    assert all(math.isnan(c.percentile) for c in part.coordinates)
    assert part.as_json()["expected_share"] is None


def test_directions_that_are_not_orthogonal_count_nothing_twice(lm: LanguageModel, corpus: Corpus) -> None:
    _, basis, _ = fitted(lm, corpus, k=2)
    doubled = dataclasses.replace(
        basis,
        directions=np.concatenate([basis.directions, basis.directions[:1]]),
        explained_variance=np.append(basis.explained_variance, 1.0),
        score_std=np.append(basis.score_std, 0.0),
        config=basis.config | {"orthogonal": False},
    )
    once, twice = locate("seven", basis, lm), locate("seven", doubled, lm)
    assert twice.share_inside == pytest.approx(once.share_inside)
    assert math.isnan(twice.coordinates[2].z)  # a direction that never varied


def test_near_duplicates_are_shown_once(lm: LanguageModel, tmp_path: Path) -> None:
    import json

    texts = ["take three from seven and four are left"] * 3 + [f"{w} is the sum of what" for w in WORDS]
    path = tmp_path / "c.jsonl"
    lines = [{"id": f"r{i}", "prompt": f"{t} now {i}", "response": ""} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = load_corpus(path)
    _, basis, scores = fitted(lm, corpus, k=3)
    found = locate(
        "take three from seven and four are left now 1", basis, lm, scores=scores, corpus=corpus, n_nearest=5
    )
    ids = [neighbour.id for neighbour in found.nearest]
    assert ids[0] == "r1" and not {"r0", "r2"} & set(ids)


def test_a_basis_of_responses_reads_the_texts_own_tokens(lm: LanguageModel, corpus: Corpus) -> None:
    with_responses = corpus.without([f"row-{i}" for i in range(1, 60, 2)])
    _, basis, _ = fitted(lm, with_responses, span="response")
    _, by_prompt, _ = fitted(lm, corpus, span="prompt")
    same = dataclasses.replace(basis, config=basis.config | {"span": "prompt"})
    found = locate("seven plus three", basis, lm)
    assert "where the basis pools those of responses" in found.read_as
    assert values_of(found) == pytest.approx(values_of(locate("seven plus three", same, lm)))
    assert "responses" not in locate("seven plus three", by_prompt, lm).read_as


def test_a_long_text_is_cut_and_says_so(lm: LanguageModel, corpus: Corpus) -> None:
    _, basis, _ = fitted(lm, corpus, max_length=20)
    found = locate("seven plus three is what " * 20, basis, lm)
    assert found.truncated and found.n_tokens == 20


def test_what_does_not_belong_together_is_refused(lm: LanguageModel, corpus: Corpus) -> None:
    _, basis, scores = fitted(lm, corpus)
    with pytest.raises(ArtifactError, match="weights_fingerprint"):
        locate("seven", basis, tiny_lm(seed=1))
    with pytest.raises(UsageError, match="the text is empty"):
        locate(" \n", basis, lm)
    with pytest.raises(UsageError, match="found by their scores; give them too"):
        locate("seven", basis, lm, corpus=corpus)
    with pytest.raises(ArtifactError, match="made with another basis"):
        locate("seven", basis, lm, scores=dataclasses.replace(scores, basis_fingerprint="0" * 16))
    stranger = dataclasses.replace(scores, ids=["nobody", *scores.ids[1:]])
    with pytest.raises(ArtifactError, match="1 of 60 scored examples are not in the corpus, for instance 'nobody'"):
        locate("seven", basis, lm, scores=stranger, corpus=corpus)
    narrow = dataclasses.replace(scores, values=scores.values[:, :2], basis_fingerprint=None)
    with pytest.raises(ArtifactError, match="the scores have 2 directions and the basis 4"):
        locate("seven", basis, lm, scores=narrow)
