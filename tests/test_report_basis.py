"""Cards, spectrum, scatter, labels, other bases and the way of the data: what the page shows against the artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillbasis.errors import ArtifactError
from skillbasis.interpret.attributes import AttributeTable
from skillbasis.interpret.columns import label_areas, sampled_columns
from skillbasis.interpret.scored import ScoredRows
from skillbasis.report.basis_charts import NONE_GIVEN, scatter_data, spectrum
from skillbasis.report.collect import collect
from skillbasis.report.records.basis import BasisFacts, ScoreSample
from skillbasis.report.sampling import MAX_SCATTER_DIRECTIONS, MAX_SCATTER_SCORES
from skillbasis.report.shown import area_style, size
from skillbasis.report.wording import warnings
from test_report import EVIL, fake_run, page_of, write_run, write_scores


def middle(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def basis_run() -> dict[str, Any]:
    """The made-up run with a measured stability, columns of rows, label areas and another basis beside it."""
    artifacts = fake_run()
    stable = {"half_cosine": middle(0.9, 0.8, 0.95), "cosine": middle(0.97, 0.95, 0.99)}
    turning = {"half_cosine": middle(0.5, 0.2, 0.7), "cosine": middle(0.71, 0.42, 0.88)}
    artifacts["basis/config.json"]["stability"] = {
        "n_repeats": 5,
        "n_bootstrap": 200,
        "threshold": 0.9,
        "directions": [{"direction": 0, "unstable": False} | stable, {"direction": 3, "unstable": True} | turning],
    }
    described = artifacts["interpret/directions.json"]
    described["directions"].append(described["directions"][0] | {"direction": 3, "positive": [], "negative": []})
    described["labels"] = [
        {"name": "label=algebra", "n_rows": 30, "n_without": 70,
         "areas": [{"mean": 0.81, "low": 0.77, "high": 0.84}, {"mean": 0.0, "low": None, "high": None}]},
    ]  # fmt: skip
    described["sample"] = {"ids": ["row-1", "row-3", "row-8"], "columns": {"correct": [True, False, None]}}
    match = {"a": 0, "b": 1, "correlation": -0.93, "low": -0.95, "high": -0.91, "null_95": 0.2, "p_value": 0.005}
    scores = {"n": 500, "mean_correlation": 0.66, "mean_null_95": 0.12, "mean_p_value": 0.005, "pairs": [match]}
    spans = {"overlap": 0.912, "overlap_chance": 0.04, "mean_cosine": 0.88, "mean_null_95": 0.31, "pairs": []}
    pair = {"a": "this", "b": f"other {EVIL}", "unstable_a": [], "unstable_b": [1], "spans": spans, "scores": scores}
    artifacts["compare-other/comparison.json"] = {"pairs": [pair | {"two_models": None}]}
    return artifacts


def words_of(run: Path) -> str:
    return page_of(run).words().replace("\N{NO-BREAK SPACE}", " ")


def test_cards_hold_stability_verdict_and_tokens(tmp_path: Path) -> None:
    run = write_run(tmp_path, basis_run(), n_scores=20)
    counts = pa.table({"id": ["row-17", "row-99"], "shard": [0, 0], "offset": [0, 1], "tokens": [61, 1204]})
    pq.write_table(counts, run / "activations" / "rows.parquet")
    page = page_of(run)
    words = page.words().replace("\N{NO-BREAK SPACE}", " ")
    assert {"direction-0", "direction-3"} <= page.ids()
    assert "Stability, |cosine| 0.970 [0.950, 0.990]" in words
    assert "Direction 3 unstable" in words and "Stability, |cosine| 0.710 [0.420, 0.880]" in words
    assert "200 bootstrap resamples of the rows (95 % interval)" in words
    assert "Probe, end + helps +4.0 [+2.0, +6.0] points" in words
    assert "score 8.10, cosine 0.90, 61 tokens" in words and "1,204 tokens" in words
    assert "row-4 score 7.70, cosine 0.86 Find" in words  # no count where the activations have none
    # The table of the probe leads to the card, and says there too that the direction is unstable.
    assert ("a", {"href": "#direction-3"}) in page.tags and "3+ unstable" in words
    assert any(
        warning.startswith("Direction 3 is unstable") and warning.endswith("The probe chose 3+ all the same.")
        for warning in warnings(collect(run))
    )


def test_labels_against_directions_and_another_basis(tmp_path: Path) -> None:
    run = write_run(tmp_path, basis_run(), n_scores=20)
    words = words_of(run)
    assert "label=algebra 30 .81 .77–.84 .00 no interval" in words
    assert "0.912 (random 0.040)" in words and "d0 d1 unstable −0.93 [−0.95, −0.91] 0.20 0.005" in words
    assert f"other {EVIL}" in words
    assert {"compare-other/comparison.json", "interpret/directions.json"} <= set(collect(run).files)
    # `skills.json` has the joint area too, and is taken where it is there.
    area = {"auc": 0.7, "low": 0.6, "high": 0.8}
    label = {"column": "labels", "label": "geometry", "n_rows": 9, "n_without": 11, "directions": [area], "joint": area}
    words = words_of(write_run(run, {"skills/skills.json": {"taxonomy": {"labels": [label]}}}))
    assert "labels=geometry 9 .70 .60–.80 .70 .60–.80" in words and "label=algebra" not in words


def test_the_scatter_shows_the_rows_whose_columns_are_known(tmp_path: Path) -> None:
    run = write_run(tmp_path, basis_run())
    write_scores(run / "scores.parquet", 20, n_directions=4)
    report = collect(run)
    assert report.scores is not None
    assert report.scores.ids == ("row-1", "row-3", "row-8") and report.scores.columns == {
        "correct": (True, False, None)
    }
    truth = pq.read_table(run / "scores.parquet").to_pydict()
    assert report.scores.scores[2] == tuple(truth["d2"][i] for i in (1, 3, 8))
    page = page_of(run)
    options = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    assert options == ["0", "1", "2", "3"] * 2 + ["-1", "0"]
    (data,) = [json.loads(text) for text in page.scripts if text.startswith('{"names"')]
    assert data["columns"] == [{"name": "correct", "categories": ["false", NONE_GIVEN, "true"], "codes": [2, 0, 1]}]


def test_many_directions_keep_the_page_small(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", 2_500, n_directions=100)
    sample = collect(tmp_path).scores
    assert sample is not None and (len(sample.names), sample.n_directions) == (MAX_SCATTER_DIRECTIONS, 100)
    assert len(sample.ids) == MAX_SCATTER_SCORES // MAX_SCATTER_DIRECTIONS
    assert "The first 64 of 100 directions" in words_of(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 4_000_000


def test_columns_become_numbers_or_few_kinds() -> None:
    sample = ScoreSample(
        names=("d0", "d1"), ids=("a",) * 40, scores=((1.23456789,) * 40, (None,) * 40), n_rows=40, n_directions=2,
        columns={"length": tuple(range(40)), "level": tuple(i % 3 for i in range(40))},
    )  # fmt: skip
    data = scatter_data(sample, None)
    assert data["scores"] == [[1.2346] * 40, [None] * 40]
    length, level = data["columns"]
    assert length == {"name": "length", "numbers": [float(i) for i in range(40)]}
    assert level["categories"] == ["0", "1", "2"] and level["codes"][:4] == [0, 1, 2, 0]


def test_the_spectrum_adds_up_only_what_can_be_added() -> None:
    plain = BasisFacts(n_components=2, explained_variance_ratio=(0.5, 0.25))
    assert plain.cumulative == (0.5, 0.75)
    # Two blocks of four coordinates of unit deviation hold a variance of 8.
    scaled = BasisFacts(
        n_components=2, method="pca", orthogonal=False, hidden_size=4, block_rms=(2.0, 3.0),
        eigenvalues=(4.0, 2.0), explained_variance_ratio=(0.6, 0.3),
    )  # fmt: skip
    assert scaled.cumulative == (0.5, 0.75)
    figure = spectrum(scaled)
    assert figure is not None and list(figure.data[0].y) == [60.0, 30.0] and list(figure.data[1].y) == [50.0, 75.0]
    latents = BasisFacts(n_components=2, method="sae", orthogonal=False, explained_variance_ratio=(0.6, 0.3))
    figure = spectrum(latents)
    assert latents.cumulative == () and figure is not None and len(figure.data) == 1


def test_the_way_of_the_data_has_counts_and_costs(tmp_path: Path) -> None:
    artifacts = fake_run()
    artifacts["activations/manifest.json"]["n_skipped"] = 7
    artifacts["run.json"]["stages"] = [
        {"name": "corpus", "seconds": 1.5, "peak_memory_mb": 100.0},
        {"name": "activations", "seconds": 12.3, "peak_memory_mb": 2500.0, "note": "again"},
        {"name": "overlap", "seconds": 0.5},
        {"name": "own-answers", "seconds": 3.0},
    ]
    artifacts["overlap/overlap.json"] = {"n_rows": 4000, "n_overlapping_rows": 21}
    run = write_run(tmp_path, artifacts)
    (run / "activations" / "shard-00000.safetensors").write_bytes(b"x" * 2_000_000)
    steps = {step.name: step for step in collect(run).way}
    assert list(steps)[:4] == ["corpus", "activations", "overlap", "own-answers"]  # in the order in which they ran
    assert {"basis", "interpret", "probe", "study", "steer"} <= steps.keys()  # their artifacts stand without a record
    assert (steps["corpus"].rows, steps["activations"].rows, steps["activations"].tokens) == (4007, 4000, 512_000)
    assert steps["activations"].disk_bytes is not None and 2_000_000 < steps["activations"].disk_bytes < 2_001_000
    words = words_of(run)
    assert "7 left out" in words and "21 left out that hold a problem of the tasks" in words
    assert "12.3 s 2.5 GB 2.0 MB" in words and "own-answers – – – 3.0 s" in words


def test_rows_that_were_left_out_are_counted_and_a_warning(tmp_path: Path) -> None:
    artifacts = fake_run()
    artifacts["activations/manifest.json"]["n_skipped"] = 7
    artifacts["run.json"] |= {"stages": [{"name": "corpus", "seconds": 1.5}], "warnings": []}
    artifacts["run.json"]["settings"] = {"corpus": {"on_bad_row": "skip"}}
    run = write_run(tmp_path, artifacts)
    (run / "rejected.jsonl").write_text('{"line": 3, "reason": "no response"}\n{"line": 9, "reason": "no JSON"}\n')
    (step,) = (step for step in collect(run).way if step.name == "corpus")
    assert (step.rows, step.file) == (4009, "rejected.jsonl")
    assert step.what == "4,007 usable; 2 rejected: they could not be read"
    said = (
        "2 rows of the corpus could not be read; see rejected.jsonl",
        "7 rows gave no activations; see activations/skipped.jsonl",
    )
    assert set(said) <= set(warnings(collect(run))) and "rejected.jsonl" in collect(run).files
    # The run itself says it in the same words: told once.
    artifacts["run.json"]["warnings"] = list(said)
    assert sum("could not be read" in warning for warning in warnings(collect(write_run(run, artifacts)))) == 1
    # Without a record of the run, as `skillbasis extract` leaves it, the corpus stands first all the same.
    (run / "run.json").unlink()
    assert collect(run).way[0].name == "corpus" and collect(run).n_rejected == 2
    # A run that stops at such rows has none; the file is an earlier run's.
    artifacts["run.json"]["settings"]["corpus"]["on_bad_row"] = "stop"
    assert collect(write_run(run, artifacts)).n_rejected is None


def test_unstable_directions_are_told_in_ranges(tmp_path: Path) -> None:
    artifacts = basis_run()
    measured = [{"direction": k, "unstable": k in (1, 2, 3, 5, 7, 8)} for k in range(9)]
    artifacts["basis/config.json"] |= {"n_components": 9}
    artifacts["basis/config.json"]["stability"]["directions"] = measured
    artifacts["interpret/directions.json"]["directions"] = []
    found = warnings(collect(write_run(tmp_path, artifacts)))
    assert any(text.startswith("Directions 1 to 3, 5, 7, 8 are unstable (6 of 9): other rows") for text in found)


def test_a_damaged_file_on_the_way_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"run.json": {}, "overlap/overlap.json": [1]})
    with pytest.raises(ArtifactError, match="overlap.json is no JSON object"):
        collect(run)
    (run / "overlap" / "overlap.json").unlink()
    (run / "likelihood").mkdir()
    (run / "likelihood" / "likelihood.parquet").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="likelihood.parquet is damaged"):
        collect(run)


def test_sizes_and_shades_are_written_plainly() -> None:
    assert [size(n) for n in (None, 812, 20_695_246, 123_000, 2.4e12)] == ["–", "812 B", "20.7 MB", "123 kB", "2.4 TB"]
    from skillbasis.report.records.figures import Interval

    assert area_style(Interval()) == "" and "0%" in area_style(Interval(mean=0.5))
    assert "blue) 36%" in area_style(Interval(mean=0.9)) and "orange) 45%" in area_style(Interval(mean=0.0))


def test_label_areas_are_those_of_the_planted_label() -> None:
    from datasets import Dataset

    n = 200
    rng = np.random.default_rng(0)
    has = np.arange(n) % 2 == 0
    scores = np.column_stack([np.where(has, 1.0, -1.0) + rng.normal(0, 0.01, n), rng.normal(size=n)])
    rows = Dataset.from_dict(
        {
            "id": [f"r{i}" for i in range(n)],
            "prompt": [[{"role": "user", "content": f"p{i}"}] for i in range(n)],
            "response": ["x" * i for i in range(n)],
            "labels": [["even"] if even else [] for even in has],
            "extra": [
                json.dumps({"kind": "a" if i % 3 else "b", "id_text": f"t{i}", "huge": 10**400}) for i in range(n)
            ],
        }
    )
    ones = np.ones(n)
    scored = ScoredRows(rows, rows["id"][:], scores, ones, ones, np.zeros(2))
    table = AttributeTable(("length", "even", "level"), np.column_stack([ones, has, np.arange(n)]).astype(float))
    (label,) = label_areas(scored, table, measured=1, seed=0)  # a level of many values is no label
    assert (label["name"], label["n_rows"], label["n_without"]) == ("even", 100, 100)
    assert label["areas"][0]["mean"] == 1.0 and 0.35 < label["areas"][1]["low"] < 0.5 < label["areas"][1]["high"] < 0.65
    found = sampled_columns(scored, 0, {"r0": 9})
    assert found["ids"] == rows["id"][:]
    columns = found["columns"]
    assert columns.keys() == {
        "kind",
        "response characters",
        "tokens",
    }  # one label alone, ids and huge numbers colour nothing
    assert columns["kind"][:3] == ["b", "a", "a"] and columns["tokens"][:2] == [9, None]
