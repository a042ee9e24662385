"""The report: every section appears and vanishes with its artifact, and no text of a corpus can act on the page."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from skillbasis.errors import ArtifactError, UsageError
from skillbasis.report import terminal_table, write_report
from skillbasis.report.assets import embed_json
from skillbasis.report.collect import collect
from skillbasis.report.kinds import KINDS
from skillbasis.report.records.figures import Difference, Interval, Measured
from skillbasis.report.sampling import N_SCATTER_POINTS
from skillbasis.report.shown import duration, p_text, percent, show
from skillbasis.report.wording import headline, warnings

CHROMIUM = shutil.which("chromium")
EVIL = "<script>alert(1)</script></script><!--<script>&\"'"


def estimate(mean: float, half: float = 0.02, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6)} | more


def difference(mean: float, half: float, p: float | None = None) -> dict[str, Any]:
    return estimate(mean, half) | {"p_value": p, "p_holm": p}


def exemplar(name: str, score: float) -> dict[str, Any]:
    text = "Find the number of integers between 1 and 50 that are divisible by 3.\n\nThey are 3, 6, ..., 48."
    return {"id": name, "score": score, "cosine": score / 9, "prompt": text, "response": f"{text}\nSo there are 16."}


def fake_run() -> dict[str, Any]:
    """One JSON value per artifact of a made-up run whose best arm is separated from random."""
    study = {
        "task": "embedded",
        "n_problems": 200,
        "rollouts": 8,
        "budget": 400,
        "seeds": [0, 1, 2],
        "arms": {
            "base": {"status": "done", "n_rows": 0, "pass@1": estimate(0.301), "pass@4": estimate(0.452)},
            "random": {
                "status": "done",
                "n_rows": 400,
                "mean_tokens": 81.2,
                "pass@1": estimate(0.364, seeds=[0.351, 0.366, 0.375]),
                "pass@4": estimate(0.521, seeds=[0.51, 0.52, 0.533]),
                "cost_seconds": 64.2,
            },
            "directions": {
                "status": "done",
                "n_rows": 400,
                "mean_tokens": 88.0,
                "pass@1": estimate(0.412, seeds=[0.405, 0.41, 0.421]),
                "pass@4": estimate(0.566, seeds=[0.55, 0.57, 0.578]),
                "cost_seconds": 71.9,
            },
            "coverage": {"status": "failed", "reason": "training diverged at step 12", "n_rows": 400},
        },
        "paired": [
            {"a": "directions", "b": "random", "metric": "pass@1", "n_seeds": 3, "minimum_detectable": 0.021}
            | difference(0.048, 0.022, 0.004),
            {"a": "directions", "b": "random", "metric": "pass@4", "n_seeds": 3, "minimum_detectable": 0.031}
            | difference(0.045, 0.05, 0.08),
            {"a": "directions", "b": "base", "metric": "pass@1", "n_seeds": 3, "minimum_detectable": 0.02}
            | difference(0.111, 0.03, 0.0001),
        ],
        "verdicts": {"directions": "Better than random at these seeds.", "coverage": "Failed."},
        "settings": {"temperature": 1.0, "training": {"learning_rate": 0.0003, "epochs": 2}},
        "notes": ["Intervals are over seeds and problems together."],
    }
    points = [
        {
            "vector": vector,
            "kind": "random" if vector.startswith("random") else "direction",
            "scope": scope,
            "alpha": alpha,
            "pass@1": estimate(0.3 + gain * alpha, 0.025),
            "difference": difference(gain * alpha, 0.02, 0.2),
            "mean_tokens": 80.0 + 10 * alpha,
            "truncated_fraction": 0.004,
        }
        for scope in ("last-prompt", "all")
        for vector, gain in (("d3+", 0.12), ("d1-", -0.08), ("random-0", 0.01), ("random-1", -0.012))
        for alpha in (0.1, 0.3, 0.5, 1.0)
    ]
    direction = {
        "direction": 0,
        "explained_variance": 4.2,
        "variance_fraction": 0.182,
        "positive": [exemplar("row-17", 8.1), exemplar("row-4", 7.7)],
        "negative": [exemplar("row-99", -7.9)],
        "keywords": {
            "positive": [{"word": "divisible", "z": 6.1}, {"word": "integers", "z": 4.8}],
            "negative": [{"word": "triangle", "z": 5.2}],
        },
        "attributes": [
            {"name": "n_tokens", "correlation": 0.41, "low": 0.35, "high": 0.47, "p_value": 1e-9, "p_holm": 1e-8},
            {"name": "n_digits", "correlation": 0.03, "low": -0.04, "high": 0.1, "p_value": 0.4, "p_holm": 1.0},
        ],
    }
    pilots = [
        {"name": "3+", "direction": 3, "sign": "+", "status": "done", "reason": None, "pass@1": estimate(0.4),
         "difference_to_random": difference(0.04, 0.02, 0.01), "difference_to_base": difference(0.099, 0.05, 0.001),
         "n_pilots": 5, "n_judged": 2, "verdict": "helps"},
        {"name": "1-", "direction": 1, "sign": "-", "status": "done", "reason": None, "pass@1": estimate(0.3),
         "difference_to_random": difference(-0.06, 0.03, 0.01), "verdict": "hurts"},
        {"name": "0+", "direction": 0, "sign": "+", "status": "done", "reason": None, "pass@1": estimate(0.37),
         "difference_to_random": difference(0.006, 0.02, 0.6), "verdict": "undecided"},
    ]  # fmt: skip
    return {
        "run.json": {
            "title": "Skills of the embedded reasoner",
            "model": "embedded",
            "corpus": "embedded",
            "seed": 0,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "stages": [
                {"name": "extract", "seconds": 12.3, "peak_memory_mb": 812.5, "reused": False, "note": None},
                {"name": "study", "seconds": 251.0, "peak_memory_mb": 1100.0, "reused": True, "note": "12 cells"},
            ],
            "warnings": [],
            "settings": {"basis": {"method": "pca", "k": 10}, "layers": [1, 2, 3]},
        },
        "activations/manifest.json": {
            "kind": "activations", "block_ids": [1, 2, 3], "rows": 4000, "hidden_size": 128, "pooling": "mean",
            "span": "response", "n_truncated": 0, "n_tokens": 512_000, "dtype": "float32",
        },
        "basis/config.json": {
            "n_components": 4, "block_ids": [1, 2, 3], "hidden_size": 128, "residual": [1e-6, 2e-6, 1e-5, 1e-4],
            "explained_variance": [4.2, 2.1, 1.3, 0.9], "explained_variance_ratio": [0.182, 0.091, 0.056, 0.039],
        },
        "interpret/directions.json": {
            "n_examples": 2, "by": "score", "directions": [direction], "n_attributes_tested": 2,
        },
        "probe/probe.json": {
            "kind": "pilot", "strategy": "halving", "seconds": 61.2,
            "saved": {"cells": 12, "cells_of_full": 24, "fraction": 0.5, "seconds_of_full": 122.4},
            "n_rows": 200, "rollouts": 4, "task": "embedded", "base": {"pass@1": estimate(0.301, n=200)},
            "random": {"pass@1": estimate(0.36, n=200), "pilots": [0.35, 0.36, 0.37]}, "directions": pilots,
            "chosen": ["3+"], "notes": ["Three random pilots."],
        },
        "study/summary.json": study,
        "steer/sweep.json": {
            "unit": "std", "task": "embedded", "rollouts": 4, "n_problems": 200,
            "baseline": {"pass@1": estimate(0.3)}, "points": points, "notes": ["Same seeds at every strength."],
        },
    }  # fmt: skip


def write_run(folder: Path, artifacts: dict[str, Any], n_scores: int = 0, ids: str = "row-") -> Path:
    for name, value in artifacts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    if n_scores:
        write_scores(folder / "scores.parquet", n_scores, ids)
    return folder


def write_scores(path: Path, n_rows: int, ids: str = "row-", n_directions: int = 2) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": [f"{ids}{i}" for i in range(n_rows)]}
    columns |= {f"d{k}": rng.normal(size=n_rows) for k in range(n_directions)}
    pq.write_table(pa.table(columns | {"norm": np.ones(n_rows), "raw_norm": np.ones(n_rows)}), path)


class Page(HTMLParser):
    """What a browser would see: text, tags, and the content of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def ids(self) -> set[str]:
        return {attrs["id"] or "" for _, attrs in self.tags if "id" in attrs}

    def words(self) -> str:
        return " ".join(self.text.split())


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


SECTIONS = {
    "activations/manifest.json": "activations",
    "basis/config.json": "basis",
    "interpret/directions.json": "directions",
    "probe/probe.json": "probe",
    "study/summary.json": "study",
    "steer/sweep.json": "steering",
}


def test_the_whole_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, fake_run(), n_scores=5000)
    path = write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 3_000_000  # of which the library that draws has 1.2
    assert not list(run.glob(".*.tmp"))
    page = Page(path.read_text(encoding="utf-8"))
    assert {*SECTIONS.values(), "making"} <= page.ids()
    figures = {"study-arms", "study-paired-0", "study-paired-1", "probe", "steer-0", "steer-1", "spectrum"}
    assert {(attrs["data-figure"] or "")[5:] for _, attrs in page.tags if "data-figure" in attrs} == figures
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))  # a plot is drawn where its id is
    words = page.words()
    for text in (
        "41.2 [39.2,\N{NO-BREAK SPACE}43.2]",
        "+4.8 [+2.6,\N{NO-BREAK SPACE}+7.0]",
        "18.2 % of the variance",
        "0.41 [0.35, 0.47]",
        "1 of 2 correlations stand",
        "3,000 of 5,000 rows",
        "4 min 23 s",
        "basis.method pca",
        "training.learning_rate 0.0003",
        "torch 2.13.0",
        "reused from an earlier run; 12 cells",
        "study/summary.json",
    ):
        assert text.replace("\N{NO-BREAK SPACE}", " ") in words.replace("\N{NO-BREAK SPACE}", " "), text


@pytest.mark.parametrize("alone", SECTIONS)
def test_a_section_appears_with_its_artifact_and_no_other(tmp_path: Path, alone: str) -> None:
    ids = page_of(write_run(tmp_path, {alone: fake_run()[alone]})).ids()
    assert ids & set(SECTIONS.values()) == {SECTIONS[alone]}
    assert "making" in ids


@pytest.mark.parametrize("gone", SECTIONS)
def test_a_section_vanishes_with_its_artifact(tmp_path: Path, gone: str) -> None:
    artifacts = fake_run()
    del artifacts[gone]
    page = page_of(write_run(tmp_path, artifacts))
    assert page.ids() & set(SECTIONS.values()) == set(SECTIONS.values()) - {SECTIONS[gone]}
    assert gone not in page.words()


def test_a_page_without_plots_carries_no_script(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path, {"run.json": {}}))
    assert path.stat().st_size < 50_000
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.scripts
    assert tmp_path.name in page.words()


def with_texts(mark: str) -> dict[str, Any]:
    """The made-up run with `mark` added to every free text and name of it."""

    def marked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: marked(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [marked(item, key) for item in value]
        fixed = key in ("status", "kind", "verdict", "metric", "a", "b")
        return value + mark if isinstance(value, str) and not fixed else value

    artifacts = {name: marked(value) for name, value in fake_run().items()}
    study = artifacts["study/summary.json"]
    study["arms"][f"arm{mark}"] = study["arms"]["directions"]
    study["paired"].append(study["paired"][0] | {"a": f"arm{mark}"})
    return artifacts


def test_no_text_of_the_corpus_is_markup_or_script(tmp_path: Path) -> None:
    calm = page_of(write_run(tmp_path / "calm", with_texts("calm"), n_scores=20, ids="calm"))
    html = write_report(write_run(tmp_path / "evil", with_texts(EVIL), n_scores=20, ids=EVIL)).read_text("utf-8")
    evil = Page(html)
    # Hostile texts give the same elements as harmless ones, and are there to be read as they are.
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in calm.tags]
    assert evil.text.count(EVIL) > 20
    assert "<script>alert" not in html
    # Of all scripts two run, and these are the same two.
    kinds = [attrs.get("type") for tag, attrs in evil.tags if tag == "script"]
    running = [text for text, kind in zip(evil.scripts, kinds, strict=True) if kind is None]
    assert len(running) == 2 and running == calm.scripts[-2:]
    # Plotly reads markup in labels, so what it gets from the figures is escaped once more than JSON needs.
    data = [text for text, kind in zip(evil.scripts, kinds, strict=True) if kind == "application/json"]
    assert len(data) == 9 and not re.search("[<>&]", "".join(data))
    figures = [json.loads(text) for text in data]
    (rows,) = [figure for figure in figures if "ids" in figure]  # the page's script escapes these when it draws them
    assert EVIL in rows["ids"][0]
    labels = json.dumps([figure for figure in figures if "ids" not in figure])
    assert "&lt;script&gt;" in labels and "<script" not in labels


def test_no_address_of_the_network_is_loaded(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, fake_run(), n_scores=20))
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert links and all(value and (value.startswith("#") or (tmp_path / value).is_file()) for value in links)
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(re.findall("'sha256-", policy)) == 2


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
def test_a_browser_draws_every_plot_under_the_policy(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", with_texts(EVIL), n_scores=20, ids=EVIL))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [str(CHROMIUM), *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("js-plotly-plot") >= 7 and done.stdout.count('class="xaxislayer-above"') >= 7
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]  # no error, nothing refused


def test_embedded_json_survives_the_round_trip() -> None:
    text = embed_json({"x": [EVIL, None, 1.5, float("nan")]})
    assert not re.search("[<>&]", text)
    assert json.loads(text) == {"x": [EVIL, None, 1.5, None]}


def test_long_texts_are_clipped_and_odd_characters_kept_out(tmp_path: Path) -> None:
    artifacts = {"interpret/directions.json": fake_run()["interpret/directions.json"]}
    direction = artifacts["interpret/directions.json"]["directions"][0]
    direction["positive"] = [exemplar(f"r{i}", 1.0) | {"response": "&" * 90_000} for i in range(30)]
    direction["negative"] = [exemplar("odd", -1.0) | {"prompt": "half \ud800 pair", "response": "عدد"}]
    path = write_report(write_run(tmp_path, artifacts))
    assert path.stat().st_size < 8_000_000
    html = path.read_text(encoding="utf-8")
    assert "more characters]" in html
    assert "half ? pair" in html
    assert '<pre dir="auto" tabindex="0">عدد</pre>' in html


def test_a_chat_prompt_is_shown_with_its_roles(tmp_path: Path) -> None:
    artifacts = {"interpret/directions.json": fake_run()["interpret/directions.json"]}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    artifacts["interpret/directions.json"]["directions"][0]["positive"][0]["prompt"] = turns
    assert "system: Be brief. user: 2+2?" in page_of(write_run(tmp_path, artifacts)).words()


def test_labels_and_unstable_directions_are_shown(tmp_path: Path) -> None:
    artifacts = fake_run()
    plain = artifacts["interpret/directions.json"]
    (direction,) = plain["directions"]
    number = direction["direction"]
    other = {"direction": 1, "accuracy": 0.5, "low": 0.3, "high": 0.7, "n": 20, "n_planned": 20, "reason": None}
    label = {"positive": ["long", "worked", EVIL], "negative": ["short", "bare", "sums"], "contrast": "how it is told"}
    label |= {"axes": ["length"], "accuracy": 0.9, "low": 0.7, "high": 0.97, "n": 20, "shuffled": other}
    labelled = plain | {"directions": [direction | {"unstable": True, "label": label}]}
    artifacts["probe/probe.json"]["directions"][0]["name"] = f"{number}+"
    before = page_of(write_run(tmp_path / "plain", artifacts)).words()
    assert "unstable" not in before and "A judge" not in before
    page = page_of(write_run(tmp_path / "labelled", artifacts | {"labels/directions.json": labelled}))
    words = page.words().replace("\N{NO-BREAK SPACE}", " ")
    assert f"long, worked, {EVIL} against short, bare, sums A judge" in words
    assert "sorted 20 held-out examples rightly by that label in 90.0 [70.0, 97.0] %" in words
    assert "by another direction's label in 50.0 [30.0, 70.0] %. how it is told" in words
    assert "unstable: other rows of the corpus may well not give this direction" in words
    assert f"{number}+ unstable" in words
    assert f"Direction {number} is unstable" in words
    label["shuffled"] = {"direction": None, "accuracy": None, "reason": "one label has no other"}
    labelled["directions"][0]["unstable"] = False
    page = page_of(write_run(tmp_path / "alone", artifacts | {"labels/directions.json": labelled}))
    assert (
        "stable under resampling of the rows" in page.words() and "by another direction's label in" not in page.words()
    )


def headline_of(tmp_path: Path, study: dict[str, Any] | None) -> str:
    artifacts = {"run.json": {}} | ({"study/summary.json": study} if study else {})
    return " ".join(headline(collect(write_run(tmp_path, artifacts)))).replace("\N{NO-BREAK SPACE}", " ")


def test_headline_of_a_winner(tmp_path: Path) -> None:
    assert headline_of(tmp_path, fake_run()["study/summary.json"]) == (
        "The best arm by mean pass@1 is directions: 41.2 % [39.2, 43.2]. "
        "Its paired difference to random is +4.8 points [+2.6, +7.0] over 3 seeds, p = 0.004 after Holm: "
        "the interval excludes zero. "
        "The untuned model has 30.1 % [28.1, 32.1]; directions differs from it by +11.1 points [+8.1, +14.1]."
    )


def test_headline_when_nothing_is_separated(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    study["paired"] = [study["paired"][0] | difference(0.048, 0.06, 0.3)]
    text = headline_of(tmp_path, study)
    assert "+4.8 points [−1.2, +10.8]" in text
    assert "the interval includes zero; no arm is separated from random at these seeds." in text


def test_headline_respects_the_correction(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    study["paired"] = [study["paired"][0] | {"p_holm": 0.09}]
    text = headline_of(tmp_path, study)
    assert "excludes zero, but not after the correction" in text
    assert "no arm is separated from random at these seeds." in text


def test_headline_asks_for_problems_and_seeds_too(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    row = study["paired"][0] | {"verdict": "not separated", "problems": difference(0.048, 0.06)}
    study["paired"] = [row]
    text = headline_of(tmp_path, study)
    assert "the interval over seeds excludes zero, but that over problems does not; no arm is separated" in text
    study["seeds"], study["paired"] = [0], [row | {"verdict": None, "problems": difference(0.048, 0.022)}]
    assert "but the variance between seeds is unknown; no arm is separated" in headline_of(tmp_path, study)
    study["seeds"], study["paired"] = [0, 1], [row | {"verdict": "better", "problems": difference(0.048, 0.022)}]
    assert "p = 0.004 after Holm: the interval excludes zero." in headline_of(tmp_path, study)


def test_headline_reads_a_pair_recorded_the_other_way_round(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    study["paired"] = [study["paired"][0] | {"a": "random", "b": "directions"} | difference(-0.048, 0.022, 0.004)]
    assert "+4.8 points [+2.6, +7.0]" in headline_of(tmp_path, study)


def test_headline_when_random_is_best(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    study["arms"]["random"]["pass@1"] = estimate(0.5)
    study["paired"] = [study["paired"][0] | difference(-0.09, 0.2, 0.3)]
    text = headline_of(tmp_path, study)
    assert "is random: 50.0 %" in text
    assert "no other arm has a higher mean, and no arm is separated from random at these seeds." in text
    study["paired"] = [study["paired"][0] | difference(-0.09, 0.02, 0.001)]
    assert "Separated from random: directions (−9.0 points [−11.0, −7.0])." in headline_of(tmp_path, study)


def test_headline_without_an_interval_claims_nothing(tmp_path: Path) -> None:
    study = fake_run()["study/summary.json"]
    study["seeds"] = [0]
    study["paired"] = [study["paired"][0] | {"low": None, "high": None, "p_value": None, "p_holm": None}]
    text = headline_of(tmp_path, study)
    assert "+4.8 points [–] over 1 seed: without an interval it is not separated from random" in text
    study["paired"] = []
    assert "was not measured, so no gain can be claimed." in headline_of(tmp_path, study)


def test_headline_without_a_study_or_a_result(tmp_path: Path) -> None:
    assert "no study" in headline_of(tmp_path, None)
    study = fake_run()["study/summary.json"]
    study["arms"] = {"base": study["arms"]["base"], "coverage": study["arms"]["coverage"]}
    assert "No arm of the study has a pass@1" in headline_of(tmp_path, study)


def test_undefined_numbers_are_dashes_with_a_reason(tmp_path: Path) -> None:
    artifacts = fake_run()
    arms = artifacts["study/summary.json"]["arms"]
    arms["directions"]["pass@1"] = {"mean": 0.4, "low": None, "high": None, "seeds": [0.4]}
    arms["random"]["pass@4"] = {"mean": None, "low": None, "high": None, "seeds": []}
    arms["random"]["cost_seconds"] = None
    pilot = {"name": "2-", "status": "failed", "reason": "too few rows", "pass@1": None, "difference_to_random": None}
    artifacts["probe/probe.json"]["directions"].append(pilot | {"verdict": None})
    words = page_of(write_run(tmp_path, artifacts)).words()
    assert "40.0 [–] one seed gives no interval" in words
    assert "– not measured" in words
    assert "coverage failed: training diverged at step 12 400 – – – – –" in words
    assert "2- – – – – – – failed: too few rows" in words
    assert "None" not in words and "nan" not in words.lower().split()


def test_warnings_say_what_failed_was_cut_or_not_scored(tmp_path: Path) -> None:
    artifacts = fake_run()
    assert warnings(collect(write_run(tmp_path, artifacts))) == (
        "Study, arm coverage: failed: training diverged at step 12.",
    )
    artifacts["run.json"]["warnings"] = ["The corpus has 3 rejected rows."]
    artifacts["activations/manifest.json"]["n_truncated"] = 41
    artifacts["study/summary.json"]["arms"]["random"]["n_unscored"] = 7
    artifacts["steer/sweep.json"]["points"][3]["truncated_fraction"] = 0.25
    (tmp_path / "probe.partial").mkdir()
    found = warnings(collect(write_run(tmp_path, artifacts)))
    assert found == (
        "The corpus has 3 rejected rows.",
        "probe: not finished; run the same command again to finish it.",
        "Activations: 41 of 4,000 rows (1.0 %) were truncated.",
        "Study, arm random: 7 responses could not be scored.",
        "Study, arm coverage: failed: training diverged at step 12.",
        "Steering points: 1 of 32 had more than 1 % of responses cut at the token limit (at most 25.0 %).",
    )
    page = page_of(tmp_path)
    assert "warnings" in page.ids() and all(warning in page.words() for warning in found)


def test_no_warnings_no_box(tmp_path: Path) -> None:
    artifacts = fake_run()
    del artifacts["study/summary.json"]["arms"]["coverage"]
    assert "warnings" not in page_of(write_run(tmp_path, artifacts)).ids()


def test_forest_plot_holds_the_numbers_of_the_study(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    from skillbasis.report.charts import study_forest

    study = collect(write_run(tmp_path, fake_run())).study
    assert study is not None
    figure = study_forest(study)
    assert isinstance(figure, go.Figure)
    line, *marks = figure.data
    assert list(line.x) == pytest.approx([30.1, 30.1])  # the untuned model
    means = {trace.hovertext[0].split("<br>")[0]: trace for trace in marks if trace.error_x.array is not None}
    assert set(means) == {"base", "random", "directions"}  # the failed arm has nothing to draw
    arm = means["directions"]
    assert (arm.x[0], arm.error_x.array[0], arm.error_x.arrayminus[0]) == pytest.approx((41.2, 2.0, 2.0))
    dots = [trace for trace in marks if trace.error_x.array is None]
    assert list(dots[-1].x) == pytest.approx([40.5, 41.0, 42.1])


def test_paired_forest_draws_both_intervals_and_the_verdict_of_each_arm(tmp_path: Path) -> None:
    from skillbasis.report.charts import BLUE, MUTED, paired_forest

    artifacts = fake_run()
    study = artifacts["study/summary.json"]
    study["paired"] = [
        {"a": "directions", "b": "random", "metric": "pass@1", "verdict": "better", "problems": difference(0.048, 0.03)}
        | difference(0.048, 0.022, 0.004),
        {"a": "length", "b": "random", "metric": "pass@1", "verdict": "not separated"}  # its interval excludes zero
        | {"problems": difference(0.048, 0.06)}
        | difference(0.048, 0.022, 0.004),
    ]
    found = collect(write_run(tmp_path, artifacts)).study
    assert found is not None and found.controls == ["random"]
    figure = paired_forest(found, "random")
    assert figure is not None
    thin = [list(trace.x) for trace in figure.data if trace.mode == "lines" and trace.line.width == 1][1:]
    assert thin == [pytest.approx([1.8, 7.8]), pytest.approx([-1.2, 10.8])]
    marks = [trace for trace in figure.data if trace.error_x.array is not None]
    assert [mark.error_x.array[0] for mark in marks] == pytest.approx([2.2, 2.2])
    assert [mark.marker.color for mark in marks] == [BLUE, MUTED]
    assert paired_forest(found, "low-nll") is None


def test_a_study_of_several_tasks_shows_each(tmp_path: Path) -> None:
    artifacts = fake_run()
    study = artifacts["study/summary.json"]
    second = copy.deepcopy({key: study[key] for key in ("arms", "paired", "verdicts", "n_problems")})
    second["verdicts"] = {"directions": "Worse on the second task."}
    second["arms"]["directions"]["pass@1"] = estimate(0.123)
    second["arms"]["directions"] |= {"training_tokens": 51234.0, "selection_seconds": 1.0, "training_seconds": 2.0}
    second |= {"best_human": "base"}
    first = {key: study[key] for key in second if key != "best_human"}
    study |= {"tasks": {"embedded": first, "olympiad": second}, "budget_unit": "tokens"}
    page = page_of(write_run(tmp_path, artifacts))
    words = page.words().replace("\N{NO-BREAK SPACE}", " ")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"plot-study-arms", "plot-study-1-arms", "plot-study-1-paired-0", "plot-study-1-paired-1"} <= set(ids)
    for text in ("Tasks embedded, olympiad", "Budget, tokens 400", "Verdicts on olympiad", "Worse on the second task.",
                 "12.3 [10.3, 14.3]", "51,234", "selection 1.0 s training 2.0 s answering –"):  # fmt: skip
        assert text in words, text
    assert "Against base, the best human-skill arm" in words
    assert "400 tokens each" in printed(tmp_path)


def test_what_failed_of_another_task_or_in_the_contest_is_a_warning(tmp_path: Path) -> None:
    artifacts = fake_run()
    study = artifacts["study/summary.json"]
    second = copy.deepcopy({key: study[key] for key in ("arms", "paired", "verdicts", "n_problems")})
    second["arms"]["directions"] = {"status": "failed", "reason": "out of memory"}
    study["tasks"] = {"embedded": {key: study[key] for key in second}, "olympiad": second}
    way = {"status": "failed", "reason": "too few rows"}
    arms = [{"name": "low-nll", "native": False} | way, {"name": "random", "native": False, "pass@1": estimate(0.3)}]
    artifacts["contest/contest.json"] = {"sentence": "random is taken.", "arms": arms, "budget": 400}
    found = warnings(collect(write_run(tmp_path, artifacts)))
    assert "Study (olympiad), arm directions: failed: out of memory." in found
    assert "Contest, low-nll: failed: too few rows." in found
    assert not any("Study (embedded), arm directions" in warning for warning in found)


def test_a_contest_without_its_study_is_shown(tmp_path: Path) -> None:
    arms = [{"name": "random", "native": False, "pass@1": estimate(0.3)}]
    contest = {"sentence": "random is taken.", "arms": arms, "budget": 400}
    run = {"run.json": fake_run()["run.json"], "contest/contest.json": contest}
    page = page_of(write_run(tmp_path, run))
    assert "random is taken." in page.words() and "The contest is finished, the study is not." in page.words()
    assert ("a", {"href": "contest/contest.json"}) in page.tags


def test_every_section_leads_to_its_files_and_to_how_its_numbers_are_made(tmp_path: Path) -> None:
    run = write_run(tmp_path, fake_run(), n_scores=30)
    html = write_report(run).read_text("utf-8")
    made = html[html.index('<section id="making"') :]
    for section in re.findall(r'<section id="(\w+)".*?</section>', html, re.DOTALL)[:-1]:
        text = html[html.index(f'<section id="{section}"') :].split("</section>")[0]
        files = re.findall(r'<a href="([^#"]+)">', text)
        assert files and all((run / name).is_file() for name in files), section
        kinds = set(re.findall(r'href="#(made-[\w-]+)"', text))
        assert kinds or section == "activations", section
        assert all(f'id="{kind}"' in made for kind in kinds), section
    assert {f"made-{kind}" for kind in ("pass", "intervals", "paired", "probe", "steering", "costs")} <= set(
        re.findall(r'<dt id="([\w-]+)"', made)
    )
    assert "made-safety" not in made and "made-label" not in made  # of what the run does not hold
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_what_is_detectable_is_by_both_tests(tmp_path: Path) -> None:
    """A claim needs the interval over seeds and that over problems; the larger of the two is what could be seen."""
    artifacts = fake_run()
    row = artifacts["study/summary.json"]["paired"][0]
    row |= {"minimum_detectable": 0.021, "problems": difference(0.048, 0.03, 0.01) | {"minimum_detectable": 0.037}}
    words = page_of(write_run(tmp_path, artifacts)).words().replace("\N{NO-BREAK SPACE}", " ")
    cells = words.split("directions − random pass@1", 1)[1].split("directions − ")[0].split()
    assert cells[-2] == "3.7"  # before the verdict
    row["problems"]["minimum_detectable"] = None
    (first, *_) = collect(write_run(tmp_path, artifacts)).study.paired  # type: ignore[union-attr]
    assert first.detectable == 0.021


def test_code_in_notes_is_code_and_all_else_is_text(tmp_path: Path) -> None:
    artifacts = fake_run()
    artifacts["study/summary.json"]["notes"] = ["`needed` is <b>rough</b>, `<i>`"]
    html = write_report(write_run(tmp_path, artifacts)).read_text("utf-8")
    assert "<code>needed</code> is &lt;b&gt;rough&lt;/b&gt;, <code>&lt;i&gt;</code>" in html


def test_the_terminal_takes_the_verdict_against_random(tmp_path: Path) -> None:
    """The sentence also speaks of the best human-skill arm; the word in the table does not."""
    artifacts = fake_run()
    study = artifacts["study/summary.json"]
    sentence = (
        "directions is not separated from random selection: +0.1. It is better than the best human-skill arm, x: +9."
    )
    study["verdicts"] = {"directions": sentence}
    study["paired"][0]["verdict"] = "not separated"
    row = printed(write_run(tmp_path, artifacts), width=200).split("directions", 1)[1].split("\n")[0]
    assert row.strip().endswith("not separated")
    study["paired"][0]["verdict"] = None
    row = printed(write_run(tmp_path, artifacts), width=200).split("directions", 1)[1].split("\n")[0]
    assert row.strip().endswith("directions is not separated from random selection")


def test_dose_response_has_one_colour_per_direction_in_all_scopes(tmp_path: Path) -> None:
    from skillbasis.report.charts import GREY, dose_response

    artifacts = fake_run()
    points = artifacts["steer/sweep.json"]["points"]
    artifacts["steer/sweep.json"]["points"] = [p for p in points if (p["scope"], p["vector"]) != ("all", "d3+")]
    sweep = collect(write_run(tmp_path, artifacts)).sweep
    assert sweep is not None and sweep.scopes == ["last-prompt", "all"]
    colours = []
    for scope in sweep.scopes:
        figure = dose_response(sweep, scope)
        assert figure is not None
        colours.append({trace.name: trace.line.color for trace in figure.data if trace.name})
    assert colours[0]["d1-"] == colours[1]["d1-"] != colours[0]["d3+"]
    assert colours[0]["random vectors"] == GREY
    assert "d3+" not in colours[1]


def test_every_colour_of_a_figure_has_a_dark_one(tmp_path: Path) -> None:
    from skillbasis.report.charts import CLEAR, dark_palette

    page = page_of(write_run(tmp_path, fake_run(), n_scores=20))
    figures = "".join(text for text in page.scripts if '"layout"' in text and "Plotly" not in text)
    used = set(re.findall(r'"(#[0-9a-f]{6}|rgba\([^)]*\))"', figures)) - {CLEAR}
    assert len(used) > 6
    assert used <= {light for light, _ in dark_palette()}


def test_scores_are_sampled_the_same_way_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"run.json": {"seed": 3}}, n_scores=N_SCATTER_POINTS + 500)
    first, second = collect(run).scores, collect(run).scores
    assert first == second and first is not None
    assert (len(first.ids), len(set(first.ids)), first.n_rows) == (3000, 3000, 3500)
    import pyarrow.parquet as pq

    truth = {row["id"]: (row["d0"], row["d1"]) for row in pq.read_table(run / "scores.parquet").to_pylist()}
    assert all(truth[name] == pair for name, pair in zip(first.ids, zip(*first.scores, strict=True), strict=True))


def test_scores_on_one_direction_give_no_scatter(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", 10, n_directions=1)
    assert "basis" not in page_of(tmp_path).ids()


def test_a_directory_without_artifacts_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds nothing to report"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="there is no run directory"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_artifact_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"study/summary.json": {"arms": {"base": {"n_rows": "many"}}}})
    with pytest.raises(ArtifactError, match=r"study/summary\.json cannot be reported: arms\.base\.n_rows"):
        write_report(run)
    (run / "study/summary.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"summary\.json is damaged"):
        write_report(run)
    (run / "study/summary.json").unlink()
    (run / "scores.parquet").write_bytes(b"not parquet")
    with pytest.raises(ArtifactError, match=r"scores\.parquet is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_failed_rewrite_leaves_the_old_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"run.json": {"title": "first"}})
    before = write_report(run).read_bytes()
    (run / "run.json").write_text("{")
    with pytest.raises(ArtifactError):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def printed(run: Path, width: int = 140) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(run))
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


def test_terminal_table(tmp_path: Path) -> None:
    artifacts = fake_run()
    arms = artifacts["study/summary.json"]["arms"]
    arms["[red]odd[/red]"] = copy.deepcopy(arms["directions"])
    run = write_run(tmp_path, artifacts)
    wide, narrow = printed(run), printed(run, width=80)
    row = wide.split("directions", 1)[1].split("coverage")[0]
    first = " ".join(row.split("\n")[0].split())
    assert first == "41.2 56.6 +4.8 0.004 Better than random at these seeds."
    assert re.findall(r"\[.*?\]", row) == ["[39.2, 43.2]", "[54.6, 58.6]", "[+2.6, +7.0]"]
    assert re.search(r"coverage +– +– +– +– +failed: training diverged", wide)
    assert "[red]odd[/red]" in wide  # a name, not markup
    assert "difference: not measured" in wide
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "[39.2, 43.2]" in narrow and "[+2.6, +7.0]" in narrow


def test_terminal_table_needs_a_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study/summary\.json"):
        terminal_table(write_run(tmp_path, {"run.json": {}}))


def test_numbers_are_written_the_same_everywhere() -> None:
    assert [percent(x) for x in (0.4125, 0.0, -0.0001, None)] == ["41.2", "0.0", "0.0", "–"]
    assert percent(-0.012, signed=True) == "−1.2"
    assert [p_text(x) for x in (0.0004, 0.04, None)] == ["< 0.001", "0.040", "–"]
    assert [duration(x) for x in (4.21, 59.97, 200, 3720, None)] == [
        "4.2 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 02 min",
        "–",
    ]
    assert str(show(Difference(mean=0.03, low=-0.004, high=0.066))) == "+3.0 [−0.4,\N{NO-BREAK SPACE}+6.6]"
    assert str(show(Interval(), Measured(status="partial"))) == "– (partial, no reason recorded)"


def test_a_probe_says_what_was_tried_and_what_stopping_early_saved(tmp_path: Path) -> None:
    artifacts = fake_run()
    words = page_of(write_run(tmp_path / "pilots", artifacts)).words()
    assert "Schedule halving Effort 12 cells of 24, 61 s of about 122" in words
    assert "A small fine-tune on the rows" in words and "random rows" in words
    assert "+9.9 [+4.9, +14.9] 2 of 5 helps, chosen" in words
    probe = artifacts["probe/probe.json"]
    del probe["n_rows"]
    probe |= {"kind": "steer", "strategy": "full", "alpha": 0.3, "unit": "relative", "scope": "last-prompt"}
    probe["saved"] |= {"cells": 24, "fraction": 0.0}
    probe["base"] = {"status": "failed", "reason": "out of memory"}
    words = page_of(write_run(tmp_path / "steered", artifacts)).words()
    assert "Strength 0.3 (relative), last-prompt" in words and "Effort 24 cells, 61 s Chosen" in words
    assert "random vectors of the same norm" in words and "A small fine-tune" not in words
    assert "Rows per pilot" not in words
