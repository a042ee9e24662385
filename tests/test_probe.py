"""Probes on the embedded reasoner, by pilots and by steering: controls, records, resuming, and what fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import kill_this_process
from fake_cells import fake_cells
from skillbasis import probe as module
from skillbasis.artifact import read_json
from skillbasis.basis import Scores, SkillBasis
from skillbasis.cells import CellResult, CellSettings
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.evaluate.likelihood import Likelihood
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.evaluate.tasks import Asking
from skillbasis.lm import LanguageModel, load_model
from skillbasis.probe import ProbeSettings, pilot_cells, probe, steered_cells
from skillbasis.select import Candidates, SelectionSettings, SignedDirection
from skillbasis.train.settings import preset

torch.set_num_threads(1)
SIGNED: list[SignedDirection] = [(0, "+"), (0, "-"), (1, "+"), (1, "-")]
CELLS = CellSettings(
    "embedded",
    "auto",
    ("embedded:validation",),
    Asking(),
    4,
    SamplingSettings(rollouts=1, temperature=0.8, max_tokens=16),
    replace(preset("embedded"), epochs=1),
    "lean",
)
SMALL: dict[str, Any] = {"n_rows": 8, "n_seeds": 1, "n_finalists": 1, "n_repeats": 1, "n_random": 2}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("embedded", limit=80)


@pytest.fixture(scope="module")
def candidates(corpus: Corpus) -> Candidates:
    values = np.random.default_rng(0).normal(size=(80, 2))
    norms = np.linalg.norm(values, axis=1) + 1
    return Candidates.of(corpus, Scores(list(corpus.ids), values, norms, norms))


@pytest.fixture(scope="module")
def basis(lm: LanguageModel) -> SkillBasis:
    hidden, blocks = lm.identity["hidden_size"], list(range(1, len(lm.blocks) - 1))
    directions = np.random.default_rng(1).standard_normal((2, len(blocks), hidden)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    config = {**lm.identity, "block_ids": blocks}
    return SkillBasis(directions, np.zeros_like(directions[0]), np.ones(2), np.array([3.0, 2.0]), config)


# What is run


def test_pilots_draw_other_rows_each_time_and_controls_draw_at_random(corpus: Corpus, candidates: Candidates) -> None:
    wide = replace(candidates, settings=SelectionSettings(top_share=0.3))
    make = pilot_cells(corpus, wide, SIGNED, ProbeSettings(n_rows=12, seed=5))
    first, again, other, control = make("0+", 0), make("0+", 0), make("0+", 1), make("random", 1)
    assert first == again
    assert (first.name, other.name, make("base", 0).rows) == ("pilots/0+/0", "pilots/0+/1", None)
    assert (first.training_seed, other.training_seed, first.sampling_seed, other.sampling_seed) == (5, 6, 5, 5)
    assert first.rows != other.rows and {len(c.rows or ()) for c in (first, other, control)} == {12}
    best = np.argsort(-candidates.ranking(0, "+"))[:24]  # 30 % of 80 rows: draws are of these
    texts = {corpus.rows[int(i)]["response"] for i in best}
    assert {response for _, response in (first.rows or []) + (other.rows or [])} <= texts
    assert not {response for _, response in control.rows or ()} <= texts


def test_pilots_are_drawn_by_the_strategy_that_will_select(corpus: Corpus, candidates: Candidates) -> None:
    nll = np.random.default_rng(3).permutation(80) / 10
    likelihood = Likelihood(list(corpus.ids), nll, nll, np.ones(80, dtype=int))
    # Shares of the study's directions say nothing of a pilot, which has one.
    shared = SelectionSettings(directions=((0, "+"), (1, "+")), weights=(3, 1), likelihood_share=0.3)
    known = replace(candidates, likelihood=likelihood, settings=shared)
    make = pilot_cells(corpus, known, SIGNED, ProbeSettings(n_rows=12, along="directions+likelihood", seed=5))
    top = np.argsort(-candidates.ranking(1, "-"))[:24]
    likeliest = top[np.argsort(nll[top])[:12]]
    responses = {corpus.rows[int(i)]["response"] for i in likeliest}
    first, again = make("1-", 0), make("1-", 1)
    assert first.rows == again.rows and {response for _, response in first.rows or []} == responses
    assert (first.training_seed, again.training_seed) == (5, 6)
    assert make("random", 0).rows != make("random", 1).rows
    with pytest.raises(UsageError, match="needs likelihoods"):
        pilot_cells(corpus, candidates, SIGNED, ProbeSettings(n_rows=12, along="directions+likelihood"))("1-", 0)


def test_a_probe_by_likelihood_notes_that_nothing_is_drawn_and_depends_on_it(
    tmp_path: Path, corpus: Corpus, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_cells(monkeypatch, module, {"1+": 0.25})
    tables = [Likelihood(list(corpus.ids), nll, nll, np.ones(80, dtype=int)) for nll in (np.zeros(80), np.arange(80.0))]
    settings = ProbeSettings(n_rows=6, along="directions+likelihood")
    outcome = probe(tmp_path / "p", corpus, replace(candidates, likelihood=tables[0]), CELLS, "w", settings)
    assert any("directions+likelihood draws nothing at random" in note for note in outcome["notes"])
    assert outcome["chosen"] == ["1+"] and outcome["settings"]["settings"]["along"] == "directions+likelihood"
    n_ran = len(ran)
    probe(tmp_path / "p", corpus, replace(candidates, likelihood=tables[0]), CELLS, "w", settings)
    assert len(ran) == n_ran
    probe(tmp_path / "p", corpus, replace(candidates, likelihood=tables[1]), CELLS, "w", settings)
    assert len(ran) > n_ran
    n_ran, plain = len(ran), replace(settings, along="directions")
    outcome = probe(tmp_path / "q", corpus, replace(candidates, likelihood=tables[0]), CELLS, "w", plain)
    assert not any("same rows" in note for note in outcome["notes"]), "6 of the top 12 rows are drawn"
    n_ran = len(ran)
    probe(tmp_path / "q", corpus, replace(candidates, likelihood=tables[1]), CELLS, "w", plain)
    assert len(ran) == n_ran, "a likelihood that is not read changes nothing"


def test_steered_cells_share_the_vector_and_differ_in_samples(basis: SkillBasis) -> None:
    settings = ProbeSettings(kind="steer", unit="std", alpha=0.5, scope="all", blocks=(1,), seed=5)
    make = steered_cells(basis, SIGNED, settings)
    plus, minus, again = make("0+", 0), make("0-", 0), make("0+", 1)
    assert plus.steering is not None and minus.steering is not None and again.steering is not None
    np.testing.assert_array_equal(plus.steering.vector.values, -minus.steering.vector.values)
    assert plus.steering.vector.fingerprint == again.steering.vector.fingerprint
    assert (plus.sampling_seed, again.sampling_seed, plus.rows) == (5, 6, None)
    assert (plus.steering.alpha, plus.steering.scope, plus.steering.vector.block_ids) == (0.5, "all", (1,))
    assert make("base", 0).steering is None
    # The unit std gives direction 0 a longer vector than direction 1: the random ones take both lengths in turn.
    controls = [make("random", number).steering for number in range(4)]
    norms = [control.vector.norms for control in controls if control is not None]
    of = {name: cell.steering.vector.norms for name in ("0+", "1+") if (cell := make(name, 0)) and cell.steering}
    np.testing.assert_allclose(norms, [of["0+"], of["0+"], of["1+"], of["1+"]], rtol=1e-6)
    fingerprints = {control.vector.fingerprint for control in controls if control is not None}
    assert len(fingerprints) == 4


# The record


def test_the_record_of_a_probe(
    tmp_path: Path, corpus: Corpus, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_cells(monkeypatch, module, {"1+": 0.25, "0-": -0.25, "0+": 0.02})
    told: list[tuple[int, int]] = []
    settings = ProbeSettings(n_rows=12, n_finalists=2, n_repeats=3)
    outcome = probe(
        *(tmp_path / "probe", corpus, candidates, CELLS, "w", settings),
        on_cell=lambda _cell, done, n: told.append((done, n)),
    )
    assert any("train on the same rows" in note for note in outcome["notes"])  # 15 % of 80 rows are but 12
    assert outcome["kind"] == "pilot" and outcome["strategy"] == "halving" and outcome["n_rows"] == 12
    assert (
        outcome["chosen"] == ["1+"]
        and outcome["ranking"][0] == "1+"
        and sorted(outcome["ranking"]) == [*("0+", "0-", "1+", "1-")]
    )
    entries = {entry["name"]: entry for entry in outcome["directions"]}
    assert list(entries) == ["0+", "0-", "1+", "1-"]
    assert (entries["1+"]["direction"], entries["1+"]["sign"], entries["1+"]["verdict"]) == (1, "+", "helps")
    assert entries["0-"]["verdict"] == "hurts" and entries["0-"]["rung"] == 0
    winner = entries["1+"]
    assert winner["pass@1"]["mean"] == pytest.approx(np.mean(winner["pilots"][-3:])) and winner["n_judged"] == 3
    for key in ("difference_to_random", "difference_to_base"):
        assert winner[key]["low"] < winner[key]["mean"] < winner[key]["high"] and winner[key]["p_holm"] < 0.05
    saved = outcome["saved"]
    assert saved["cells"] == len(ran) - 1 < saved["cells_of_full"] == 4 * 3 + 2 * 3 + 6
    assert saved["fraction"] == pytest.approx(1 - saved["cells"] / saved["cells_of_full"])
    assert outcome["seconds"] == 2.0 * len(ran) and saved["seconds_of_full"] == 2.0 * (saved["cells_of_full"] + 1)
    assert (
        sum(len(rung["tried"]) * len(rung["numbers"]) for rung in outcome["rungs"]) + len(outcome["random"]["pilots"])
        == len(ran) - 1
    )
    assert told[-1][0] == len(ran) and all(done <= n for done, n in told)
    assert read_json(tmp_path / "probe" / "probe.json") == outcome
    n_ran = len(ran)
    assert probe(tmp_path / "probe", corpus, candidates, CELLS, "w", settings) == outcome and len(ran) == n_ran
    assert probe(tmp_path / "probe", corpus, candidates, CELLS, "w", replace(settings, alpha=9.0)) == outcome
    assert len(ran) == n_ran  # pilots do not steer
    probe(tmp_path / "probe", corpus, candidates, CELLS, "w", replace(settings, n_rows=11))
    assert len(ran) > n_ran


def test_a_probe_by_steering_needs_no_corpus(
    tmp_path: Path, lm: LanguageModel, basis: SkillBasis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_cells(monkeypatch, module, {"1+": 0.3})
    settings = ProbeSettings(kind="steer", strategy="full", n_finalists=1, n_random=6)
    shared = (CELLS, lm.weights_fingerprint, settings)
    outcome = probe(tmp_path / "p", None, None, *shared, basis=basis)
    assert {key: outcome[key] for key in ("kind", "strategy", "alpha", "unit", "scope")} == {
        "kind": "steer",
        "strategy": "full",
        "alpha": 0.3,
        "unit": "relative",
        "scope": "last-prompt",
    }
    assert "n_rows" not in outcome and not any("same rows" in note for note in outcome["notes"])
    assert outcome["saved"]["fraction"] == 0
    assert outcome["chosen"] == ["1+"] and all(cell.rows is None for cell in ran)
    assert "random vectors of the same norm" in outcome["notes"][0]
    n_ran = len(ran)
    other = replace(CELLS, training=replace(CELLS.training, epochs=7))
    assert probe(tmp_path / "p", None, None, other, *shared[1:], basis=basis) == outcome
    assert len(ran) == n_ran  # nothing is trained, so nothing changed
    with pytest.raises(UsageError, match="a probe by steering needs the basis"):
        probe(tmp_path / "q", None, None, *shared)
    with pytest.raises(UsageError, match="pilots need a corpus and its scores"):
        probe(tmp_path / "q", None, None, *shared[:2], ProbeSettings(), basis=basis)
    with pytest.raises(ArtifactError, match="the basis was made on a model with weights_fingerprint"):
        probe(tmp_path / "q", None, None, CELLS, "another", settings, basis=basis)


def test_failed_cells_are_reported_not_dropped(
    tmp_path: Path, corpus: Corpus, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProbeSettings(n_rows=12, n_finalists=1)
    failing = frozenset([("0+", 0), ("base", 0), ("1+", 1)])
    fake_cells(monkeypatch, module, {"1+": 0.1}, failing=failing)
    outcome = probe(tmp_path / "a", corpus, candidates, CELLS, "w", replace(settings, strategy="full", n_seeds=2))
    entries = {entry["name"]: entry for entry in outcome["directions"]}
    assert (entries["0+"]["status"], entries["0+"]["n_pilots"]) == ("done", 1)
    assert entries["0+"]["reason"] == "1 of 2 cells failed: training diverged"
    assert outcome["base"] == {"status": "failed", "reason": "training diverged"}
    assert entries["1+"]["difference_to_base"] is None
    assert "A cell of base failed: training diverged" in outcome["notes"]
    fake_cells(monkeypatch, module, {"1+": 0.1}, failing=frozenset([("0+", 0)]))
    outcome = probe(tmp_path / "b", corpus, candidates, CELLS, "w", settings)
    entries = {entry["name"]: entry for entry in outcome["directions"]}
    assert (entries["0+"]["status"], entries["0+"]["verdict"]) == ("failed", None)
    assert outcome["ranking"][-1] == "0+" and entries["1+"]["status"] == "done"
    fake_cells(monkeypatch, module, {}, failing=frozenset(("random", number) for number in range(9)))
    with pytest.raises(SkillbasisError, match="no direction can be compared with a control; .*: training diverged"):
        probe(tmp_path / "c", corpus, candidates, CELLS, "w", settings)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="1 finalists cannot give 2 chosen"):
        ProbeSettings(n_finalists=1, n_chosen=2)
    with pytest.raises(UsageError, match="pilots are drawn by directions or directions.likelihood, not by 'low-nll'"):
        ProbeSettings(along="low-nll")
    with pytest.raises(UsageError, match="at least one row"):
        ProbeSettings(n_rows=0)
    with pytest.raises(UsageError, match="unknown kind of probe 'steering'; allowed are pilot, steer"):
        ProbeSettings(kind="steering")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unknown unit 'relativ' \(did you mean 'relative'\?\)"):
        ProbeSettings(kind="steer", unit="relativ")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown scope 'last'"):
        ProbeSettings(kind="steer", scope="last")


# On the real thing


def test_a_killed_probe_goes_on_and_ends_as_an_uninterrupted_one(
    tmp_path: Path, lm: LanguageModel, corpus: Corpus, candidates: Candidates, basis: SkillBasis, in_child: Any
) -> None:
    def run(kind: str, name: str, on_cell: Any = None) -> dict[str, Any]:
        settings = ProbeSettings(kind=kind, **SMALL)  # type: ignore[arg-type]
        data = (corpus, candidates) if kind == "pilot" else (None, None)
        shared = (CELLS, lm.weights_fingerprint, settings)
        return probe(tmp_path / name, *data, *shared, basis=basis, directions=SIGNED[:2], n_workers=1, on_cell=on_cell)

    for kind, folder in (("pilot", "pilots"), ("steer", "steered")):

        def die(_cell: CellResult, done: int, _n: int) -> None:
            if done == 4:
                kill_this_process()

        assert in_child(lambda kind=kind, die=die: run(kind, kind, die)) == -9
        told: list[int] = []
        ended = run(kind, kind, lambda _cell, done, _n, told=told: told.append(done))
        assert told[0] == 5  # the four that were finished are not run again
        whole = run(kind, f"{kind}-whole")
        clocks = ("seconds", "saved")
        assert {k: v for k, v in ended.items() if k not in clocks} == {
            k: v for k, v in whole.items() if k not in clocks
        }
        assert (tmp_path / kind / folder / "random" / "1" / "samples.parquet").exists()
        manifest = read_json(tmp_path / kind / folder / "0+" / "0" / "manifest.json")
        assert ("steering" in manifest["inputs"]) == (kind == "steer")
