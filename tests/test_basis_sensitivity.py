"""What moves the directions: one change at a time, against directions found and scored one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skillbasis.activations import ActivationStore, ExtractionSettings, extract
from skillbasis.activations.view import BlocksView
from skillbasis.basis import PcaSettings, fit_pca, score
from skillbasis.basis import sensitivity as module
from skillbasis.basis.agreement import compare_score_tables
from skillbasis.basis.compare import compare_bases
from skillbasis.basis.sensitivity import drawn_rows, measure_sensitivity, one_at_a_time, sensitivity_markdown
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.lm import LanguageModel, load_model

torch.set_num_threads(1)
EXTRACTION = ExtractionSettings(max_length=128)
PCA = PcaSettings(k=4)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("embedded", limit=240, shuffle_seed=0)


@pytest.fixture(scope="module")
def shared(corpus: Corpus) -> Corpus:
    drawn = drawn_rows(corpus, 120, 0)
    assert drawn is not None
    return drawn


@pytest.fixture(scope="module")
def record(lm: LanguageModel, corpus: Corpus, shared: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Any:
    others = drawn_rows(corpus, 120, 1, but=shared)
    assert others is not None
    variants = one_at_a_time(
        EXTRACTION,
        PCA,
        layers=["inner", "early", "3"],
        pooling=["mean", "last"],
        span=["response"],
        k=[2, 4, 200],
        rows={"other": others},
    )
    ticks: list[tuple[str, int, int]] = []
    work = tmp_path_factory.mktemp("work")
    found = measure_sensitivity(
        lm, shared, EXTRACTION, PCA, variants, work, n_permutations=20, on_variant=lambda *tick: ticks.append(tick)
    )
    assert [done for _, done, _ in ticks] == list(range(1, 8)) and ticks[0] == ("blocks: early", 1, 7)
    assert len(list(work.glob("[!.]*"))) == 4  # mean, last, response, and the other rows: each read once
    return found


def entry(record: Any, question: str, name: str) -> dict[str, Any]:
    (found,) = [e for e in record["variants"] if (e["question"], e["name"]) == (question, name)]
    return found  # type: ignore[no-any-return]


def test_what_changes_nothing_is_left_out(record: Any) -> None:
    names = [(e["question"], e["name"]) for e in record["variants"]]
    assert names == [
        ("blocks", "early"),
        ("blocks", "3"),
        ("pooling", "last"),
        ("span", "response"),
        ("k", "2"),
        ("k", "200"),
        ("rows", "other"),
    ]


@pytest.mark.parametrize(
    ("question", "name", "changed"),
    [
        ("blocks", "early", {"layers": "early"}),
        ("pooling", "last", {"pooling": "last"}),
        ("span", "response", {"span": "response"}),
    ],
)
def test_a_variant_is_what_one_finds_by_hand(
    record: Any, lm: LanguageModel, shared: Corpus, tmp_path: Path, question: str, name: str, changed: Any
) -> None:
    first = extract(shared, lm, tmp_path / "a", EXTRACTION)
    second = extract(shared, lm, tmp_path / "b", replace(EXTRACTION, **changed))
    a, b = fit_pca(first, PCA), fit_pca(second, PCA)
    expected = compare_score_tables(score(first, a), score(second, b), n_permutations=20)
    found = entry(record, question, name)
    assert found["mean_correlation"] == pytest.approx(expected.mean_correlation, abs=1e-6)
    assert found["null_95"] == pytest.approx(expected.mean_null_95, abs=1e-6)
    assert found["explained"]["mean"] == pytest.approx(expected.a_from_b.total.mean, abs=1e-5)
    if question != "blocks":
        assert found["overlap"] == pytest.approx(compare_bases(a, b).overlap, abs=1e-6)
    else:
        assert "overlap" not in found  # no common coordinates


def test_other_rows_find_directions_that_score_the_shared_ones(
    record: Any, lm: LanguageModel, corpus: Corpus, shared: Corpus, tmp_path: Path
) -> None:
    others = drawn_rows(corpus, 120, 1, but=shared)
    assert others is not None and not set(others.ids) & set(shared.ids) and len(others) == 120
    first, second = extract(shared, lm, tmp_path / "a", EXTRACTION), extract(others, lm, tmp_path / "b", EXTRACTION)
    a, b = fit_pca(first, PCA), fit_pca(second, PCA)
    expected = compare_score_tables(score(first, a), score(first, b), n_permutations=20)
    found = entry(record, "rows", "other")
    assert found["mean_correlation"] == pytest.approx(expected.mean_correlation, abs=1e-6) and found["n"] == 120
    assert found["overlap"] > 10 * found["overlap_chance"]


def test_fewer_directions_are_the_first_of_more(record: Any) -> None:
    found = entry(record, "k", "2")
    assert np.abs(found["correlations"][:2]) == pytest.approx([1, 1], abs=1e-4)
    assert found["correlations"][2:] == [None, None] and found["overlap"] == pytest.approx(1, abs=1e-6)
    assert 0.3 < found["explained"]["mean"] < 1


def test_what_cannot_be_is_a_hole_with_its_reason(record: Any) -> None:
    hole = entry(record, "k", "200")
    assert "k = 200" in hole["reason"] and "mean_correlation" not in hole
    assert "| k | 200 | not measured: k = 200" in sensitivity_markdown(record)
    json.dumps(record, allow_nan=False)


def test_the_table_shows_every_variant(record: Any) -> None:
    table = sensitivity_markdown(record)
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(record["variants"]) and "| pooling | last | 0." in table
    assert "4 directions of embedded, blocks [1, 2]" in table
    hostile = record | {"variants": [entry(record, "k", "200") | {"name": "a|b\n<i>"}]}
    assert "a\\|b &lt;i>" in sensitivity_markdown(hostile)


def test_a_killed_call_goes_on(lm: LanguageModel, shared: Corpus, tmp_path: Path, monkeypatch: Any) -> None:
    variants = one_at_a_time(EXTRACTION, PCA, layers=["early"])
    first = measure_sensitivity(lm, shared, EXTRACTION, PCA, variants, tmp_path, n_permutations=5)

    def again(*args: Any, **options: Any) -> ActivationStore:
        store = extract(*args, **options)
        assert store.manifest["rows"] == 120
        return store

    monkeypatch.setattr(module, "extract", again)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert measure_sensitivity(lm, shared, EXTRACTION, PCA, variants, tmp_path, n_permutations=5) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_blocks_of_a_source(lm: LanguageModel, shared: Corpus, tmp_path: Path) -> None:
    store = extract(shared, lm, tmp_path / "all", replace(EXTRACTION, layers="all"))
    view, alone = BlocksView(store, [2, 1]), extract(shared, lm, tmp_path / "two", EXTRACTION)
    assert view.block_ids == [1, 2] == view.manifest["block_ids"] and view.n_features == alone.n_features
    np.testing.assert_allclose(np.concatenate(list(view.shards())), alone.to_numpy().reshape(120, -1), atol=1e-5)
    np.testing.assert_array_equal(view.sample(7), store.sample(7).reshape(7, 4, -1)[:, 1:3].reshape(7, -1))
    assert view.shard_ids(0) == store.shard_ids(0) and len(view) == 120 and not view.live
    with pytest.raises(UsageError, match=r"block 3 is not among those that were read, \[1, 2\]"):
        BlocksView(alone, [1, 3])
    with pytest.raises(UsageError, match="no block is named"):
        BlocksView(alone, [])


def test_rows_are_drawn_without_those_that_are_held(corpus: Corpus) -> None:
    drawn = drawn_rows(corpus, 1000, 3)
    assert drawn is not None and drawn.ids == corpus.ids
    assert drawn_rows(corpus, 5, 0, but=corpus) is None
    few = drawn_rows(corpus, 5, 0)
    assert few is not None and len(few) == 5 and few.fingerprint != corpus.fingerprint


def test_a_reference_that_cannot_be_found_stops(lm: LanguageModel, shared: Corpus, tmp_path: Path) -> None:
    with pytest.raises(SkillbasisError, match="k = 500"):
        measure_sensitivity(lm, shared, EXTRACTION, PcaSettings(k=500), [], tmp_path)
