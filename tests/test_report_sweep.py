"""Steering in the report: the finding, the test, damage and usable strengths; older files are still read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from skillbasis.errors import ArtifactError, UsageError
from skillbasis.report import write_report, write_sweep_page
from skillbasis.report.charts import GREY, broken_response, damage_response, dose_response
from skillbasis.report.collect import collect, collect_sweep
from skillbasis.report.records.sweep import SweepTest
from skillbasis.report.wording import headline, warnings
from test_report import Page, estimate, fake_run, write_run

OLD: dict[str, Any] = fake_run()["steer/sweep.json"]
FINDING = "d3+ at 0.3 (last-prompt) was chosen as the best of 16 settings. On <test> its pass@1 is 40.0 %."


def difference(metric: str, mean: float) -> dict[str, Any]:
    return {"metric": metric, "relative": 0.25, "p_value": 0.01} | estimate(mean)


def new_sweep() -> dict[str, Any]:
    """The made-up sweep of the report's tests as it is written now."""
    sweep = copy.deepcopy(OLD)
    measured = {"looped_fraction": 0.0, "broken_fraction": 0.125, "n_broken_correct": 1, "statuses": {"ok": 4}}
    sweep["baseline"] |= measured | {"pass@4": estimate(0.5), "target_rate": estimate(0.1), "broken_fraction": 0.02}
    for point in sweep["points"]:
        point |= measured | {"pass@4": estimate(0.6), "target_rate": estimate(0.7), "unusable": None}
        point |= {"damage": {"perplexity": 3.25, "kl": point["alpha"] / 8, "n_tokens": 100}}
        point |= {"added_fraction": {"1": 0.25, "2": 0.5}, "differences": [difference("pass@1", 0.1)]}
    sweep["points"][0] |= {"unusable": "12.5 % of the answers are broken, 2.0 % unsteered"}
    failed = {"vector": "d3+", "kind": "direction", "scope": "all", "alpha": 8.0, "unit": "std", "status": "failed"}
    sweep["points"].append(failed | {"reason": "the model gives NaN", "unusable": "failed: NaN", "added_fraction": {}})
    controls = [
        {"vector": f"random-{i}", "kind": "random", "scope": "all", "alpha": 0.3, "pass@1": estimate(0.3 + i / 100)}
        for i in range(19)
    ]
    winner = {"pass@1": estimate(0.4), "target_rate": estimate(0.8), "differences": [difference("pass@1", 0.1)]}
    test = {"task": "other", "n_problems": 300, "n_controls": 19, "baseline": {"pass@1": estimate(0.3)}}
    test |= {"winner": winner, "controls": controls, "p_value": 0.05, "claim": "holds", "sentence": FINDING}
    usable = [{"vector": "d3+", "scope": "all", "low": 0.0, "high": 0.5, "sentence": "d3+ (all) is usable to 0.5."}]
    facts = {"finding": FINDING, "metric": "target", "target": "pattern:x", "n_settings": 16, "largest_k": "pass@4"}
    return sweep | facts | {"usable": usable, "test": test, "perplexity_unsteered": 2.75, "winner": {"vector": "d3+"}}


def folder_of(tmp_path: Path, sweep: dict[str, Any]) -> Path:
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    return tmp_path


def words(path: Path) -> str:
    return Page(path.read_text(encoding="utf-8")).words().replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_of_a_sweep_shows_all_of_it(tmp_path: Path) -> None:
    path = write_sweep_page(folder_of(tmp_path, new_sweep()))
    assert path == tmp_path / "sweep.html"
    page, text = Page(path.read_text(encoding="utf-8")), words(path)
    assert text.count(FINDING) == 1, "as the headline"
    for shown in (
        "Steering on embedded",
        "Settings tried 16",
        "Rank p 0.050",
        "Gain over random vectors holds",
        "+10.0 [+8.0, +12.0] +25.0 30.0 to 48.0",
        "d3+ (all) is usable to 0.5.",
        "Perplexity KL Added / norm Usable",
        "12.5 % of the answers are broken",
        "The perplexity of held-out text is 2.75 unsteered",
        "failed: the model gives NaN",
    ):
        assert shown in text, shown
    figures = {(attrs["data-figure"] or "")[5:] for _, attrs in page.tags if "data-figure" in attrs}
    kinds = ("steer", "steer-target", "steer-broken", "steer-damage")
    assert figures == {f"{kind}-{i}" for kind in kinds for i in (0, 1)}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and not (attrs["href"] or "").startswith("#")]
    assert links == ["sweep.json"] * 2  # of the section, and of the list of files
    assert "None" not in text


def test_the_page_of_an_older_file_is_as_it_was(tmp_path: Path) -> None:
    path = write_sweep_page(folder_of(tmp_path, OLD))
    page = Page(path.read_text(encoding="utf-8"))
    assert {(a["data-figure"] or "")[5:] for _, a in page.tags if "data-figure" in a} == {"steer-0", "steer-1"}
    text = words(path)
    assert "Usable strengths" not in text and "Perplexity" not in text and "None" not in text
    assert "This run holds no study" in text


def test_a_run_with_a_study_keeps_its_headline_and_shows_the_finding_in_the_section(tmp_path: Path) -> None:
    run = write_run(tmp_path, fake_run() | {"steer/sweep.json": new_sweep()})
    report = collect(run)
    assert headline(report)[0].startswith("The best arm")
    assert words(write_report(run)).count(FINDING) == 1
    assert "Steering, d3+ at 8 (all): failed: the model gives NaN." in warnings(report)


def test_charts_of_broken_answers_and_damage(tmp_path: Path) -> None:
    sweep = collect_sweep(folder_of(tmp_path, new_sweep())).sweep
    assert sweep is not None
    damage = damage_response(sweep, "all")
    assert damage is not None
    by_name = {trace.name: trace for trace in damage.data if trace.name}
    assert list(by_name["d3+"].y) == pytest.approx([0.0125, 0.0375, 0.0625, 0.125])
    assert by_name["random vectors"].line.color == GREY
    assert "baseline, unsteered" not in by_name
    broken = broken_response(sweep, "all")
    assert broken is not None and list(broken.data[-1].y) == pytest.approx([2.0, 2.0]), "the unsteered model's share"
    target = dose_response(sweep, "all", "target")
    assert target is not None and target.layout.yaxis.title.text == "answers that match, %"
    assert list(next(t for t in target.data if t.name == "d3+").y) == pytest.approx([70.0] * 4)


def test_charts_that_were_not_measured_are_not_drawn(tmp_path: Path) -> None:
    sweep = collect_sweep(folder_of(tmp_path, OLD)).sweep
    assert sweep is not None
    assert damage_response(sweep, "all") is None
    assert broken_response(sweep, "all") is None
    assert dose_response(sweep, "all", "target") is None
    assert dose_response(sweep, "all") is not None
    assert (sweep.metrics, sweep.points[0].added) == (["pass@1"], None)


def test_levels_of_random_vectors_leave_out_what_failed(tmp_path: Path) -> None:
    written = new_sweep()
    written["test"]["controls"][3] = {"vector": "r", "kind": "random", "scope": "all", "alpha": 1, "status": "failed"}
    sweep = collect_sweep(folder_of(tmp_path, written)).sweep
    assert sweep is not None and isinstance(sweep.test, SweepTest)
    assert sweep.test.levels("pass@1") == pytest.approx([0.3 + i / 100 for i in range(19) if i != 3])
    assert sweep.test.levels("pass@8") == []


def test_no_text_of_a_sweep_is_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    written = new_sweep()
    written["points"][0]["vector"] = written["points"][0]["unusable"] = evil
    written |= {"finding": evil, "task": evil, "usable": [{"sentence": evil}], "notes": [evil]}
    html = write_sweep_page(folder_of(tmp_path, written)).read_text(encoding="utf-8")
    assert "<script>alert" not in html and Page(html).text.count(evil) > 5


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no sweep.json; give the output directory"):
        write_sweep_page(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be reported: points: field required"):
        write_sweep_page(folder_of(tmp_path, {}))
