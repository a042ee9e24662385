"""The figures of docs/findings.md and docs/speed.md are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_committed_result() -> None:
    study = json.loads((ROOT / "docs/results/demo/study.json").read_text(encoding="utf-8"))
    for arm, entry in study["arms"].items():
        cells = [
            f"{100 * e['mean']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"
            for e in (entry["pass@1"], entry["pass@4"])
        ]
        assert f"| {arm} | {cells[0]} | {cells[1]} |" in FINDINGS
    for row in study["paired"]:
        if row["b"] == "random" and row["metric"] == "pass@1":
            shown = f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            assert re.search(rf"^\| {re.escape(row['a'])} .*{re.escape(shown)} \|$", FINDINGS, re.MULTILINE)
    run = json.loads((ROOT / "docs/results/demo/run.json").read_text(encoding="utf-8"))
    for stage in run["stages"]:
        if stage["seconds"] >= 1:
            line = f"| {stage['name']} | {stage['seconds']:.0f} | {stage['peak_memory_mb'] / 1000:.1f} |"
            assert line in SPEED


@pytest.mark.parametrize(
    ("base", "budget", "gained"), [("shipped", 500, 0), ("shipped", 1000, 8), ("hard-1", 500, 0), ("hard-1", 1000, 27)]
)
def test_the_selection_table_is_that_of_the_committed_results(base: str, budget: int, gained: int) -> None:
    record = json.loads((ROOT / f"docs/results/selection/{base}-{budget}.json").read_text(encoding="utf-8"))
    study = record["study"]
    arms = ("native", "random", study["best_human"], "low-nll", "low-nll+reread", "rft")
    percent = {arm: f"{100 * of['pass@1']['mean']:.1f}" for arm, of in study["arms"].items()}
    shown = " | ".join(percent[arm] for arm in arms)
    assert f"| {base} | {budget:,} | `{record['contest']['chosen']['name']}` | {shown} |" in FINDINGS
    verdicts = {row["a"]: row["verdict"] for row in study["paired"] if row["b"] == "random" and row["verdict"]}
    none_better = {"coverage", "facility-location", "rds+", "crds"} & set(verdicts)
    assert {verdicts[arm] for arm in none_better} <= {"not separated", "worse"}
    added = [row for row in study["paired"] if (row["a"], row["b"]) == ("native", "low-nll+reread")]
    (gain,) = [row["mean"] for row in added if row["metric"] == "pass@1"]
    assert round(100 * gain) == gained
    if base == "hard-1" and budget == 1000:
        words = " ".join(FINDINGS.split())
        means = {arm: of["pass@1"]["mean"] for arm, of in study["arms"].items()}
        above = {arm: round(100 * (means[arm] - means["random"])) for arm in ("directions", "random-length-matched")}
        assert f"on the hard one {above['directions']} points over random selection at 1,000 rows" in words
        assert f"of which {above['random-length-matched']} are the length" in words
        assert f"(random rows as long: {percent['random-length-matched']})" in words


def test_the_committed_result_is_of_the_shipped_recipe_and_reasoner() -> None:
    from skillbasis.artifact import read_json
    from skillbasis.recipe import load_recipe, parse_recipe
    from skillbasis.world.assets import demo_recipe_path, record_path

    results = ROOT / "docs/results/demo"
    assert parse_recipe(read_json(results / "run.json")["settings"], "run.json") == load_recipe(demo_recipe_path())
    fingerprint = read_json(record_path())["weights_fingerprint"]
    assert read_json(results / "study.json")["settings"]["weights_fingerprint"] == fingerprint


def test_the_speed_table_is_that_of_the_committed_result() -> None:
    threads = json.loads((ROOT / "docs/results/embedded-speed.json").read_text(encoding="utf-8"))["threads"]
    seconds = {n: {step["name"]: step["seconds"] for step in threads[n]["steps"]} for n in ("1", "2")}
    lines = {
        "extraction": "extraction of the pool, 20,000 rows",
        "likelihood": "likelihood of the pool",
        "fine-tune, lean": "fine-tune on 1,000 rows, 2 epochs: lean loop",
        "fine-tune, TRL": "the same with TRL",
        "evaluation": "400 problems x 4 answers",
        "answers, model.generate": "the same with `model.generate`, prompts repeated",
    }
    for step, words in lines.items():
        assert f"| {words} | {seconds['1'][step]:.1f} | {seconds['2'][step]:.1f} |" in SPEED


def points(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['mean']:+.1f} [{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"


def test_the_figures_of_steering_are_those_of_the_committed_results() -> None:
    words = " ".join(FINDINGS.split())
    demo = json.loads((ROOT / "docs/results/demo/steer.json").read_text(encoding="utf-8"))
    study = json.loads((ROOT / "docs/results/steering-study.json").read_text(encoding="utf-8"))
    for difference in demo["test"]["winner"]["differences"]:
        assert points(difference) in words
    for base in study["bases"]:
        by_metric = {entry["metric"]: entry for entry in base["test"]["winner"]["differences"]}
        assert points(by_metric["pass@8"]) in words
        assert base["winner"]["vector"] == "gradient block 3"
        assert base["n_settings"] == 174
    controls = [control["difference"]["mean"] for base in study["bases"] for control in base["test"]["controls"]]
    assert f"{100 * min(controls):+.1f} to {100 * max(controls):+.1f} points of pass@1" in words


def test_the_figures_of_the_proxies_are_those_of_the_committed_result() -> None:
    words = " ".join(FINDINGS.split())
    proxies = json.loads((ROOT / "docs/results/proxy-quality.json").read_text(encoding="utf-8"))["proxies"]
    for proxy in proxies.values():
        spearman = proxy["quality"]["spearman"]
        low, high = spearman["over_directions"]
        assert f"{spearman['value']:.2f} [{low:.2f}, {high:.2f}]".replace("0.", ".") in words
        low, high = proxy["quality"]["gain_over_random"]["over_runs"]
        assert f"[{100 * low:+.1f}, {100 * high:+.1f}] by" in words
    saved = json.loads((ROOT / "docs/results/demo/probe.json").read_text(encoding="utf-8"))["saved"]
    assert f"{saved['cells']} of the {saved['cells_of_full']} cells" in words


def test_the_figures_of_measuring_are_those_of_the_committed_results() -> None:
    words = " ".join(FINDINGS.split())

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8")))

    coverage = read("coverage")
    held = [100 * row["coverage"] for row in coverage["intervals"] if not row["note"]]
    rejected = [100 * row["rejected"] for row in coverage["tests"] if not row["note"]]
    assert f"cover {min(held):.1f} to {max(held):.1f} %" in words
    assert f"reject {min(rejected):.1f} to {max(rejected):.1f} %" in words
    assert sum(row["note"] == "limit" for row in coverage["intervals"]) == 10 and "ten cases marked as limits" in words

    rows = read("grading")["results"]
    n = sum(row["responses"] for row in rows)
    assert f"{n:,} labelled responses" in words

    def share(grader: str, figure: str) -> str:
        return f"{sum(100 * row[grader][figure] * row['responses'] for row in rows) / n:.2f}"

    plain, ours = ((share(g, "agreement"), share(g, "agreement_corrected")) for g in ("plain", "ours"))
    assert f"agrees with the labels on {plain[0]} %, ours on {ours[0]} %" in words
    assert f"turned round it is {plain[1]} and {ours[1]} %" in words
    read_by_eye = json.loads((ROOT / "docs/results/grading-disagreements.json").read_text(encoding="utf-8"))
    wrong = sum(row["class"] == "label wrong" for row in read_by_eye["disagreements"])
    assert f"the {wrong} labels that are wrong" in words
    late = {g: sum(row[g]["statuses"].get("timeout", 0) for row in rows) for g in ("plain", "ours")}
    assert late["ours"] == 0 and f"Math-Verify did {late['plain']} times" in words

    threads = read("answering-speed")["threads"]
    assert f"{threads['1']['256']['ratio']:.1f} times as fast" in words
    assert f"on one thread, and {threads['2']['256']['ratio']:.1f} times on two" in words


def test_the_safety_figures_are_those_of_the_committed_result() -> None:
    path = ROOT / "docs/results/safety/embedded.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    study, words = record["safety"], " ".join(FINDINGS.split())
    lines = {"untuned model": study["base"]}
    lines |= {arm: of["area"] for arm, of in study["arms"].items() if arm != "human-balanced"}
    lines["human-balanced (attack type)"] = study["arms"]["human-balanced"]["area"]
    for name, levels in lines.items():
        shown = [f"{100 * levels[m]['mean']:.1f}" for m in ("attack_success", "refused", "over_refusal", "utility")]
        assert f"| {name} | {' | '.join(shown)} |" in FINDINGS
    rows = {
        (row["arm"], row["measure"]): row
        for row in study["paired"]
        if row["control"] == "random" and row["budget"] == "area"
    }

    def between(row: dict[str, Any]) -> str:
        return f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"

    success, over = rows["coverage", "attack_success"], rows["coverage", "over_refusal"]
    assert f"leaves {100 * success['mean']:+.1f} points" in words and success["verdict"] == "not separated"
    assert f"({between(success)} over seeds, {between(success['problems'])} over attacks: not separated)" in words
    assert f"{-100 * over['mean']:.1f} points fewer harmless look-alikes ({between(over)})" in words
    success, over = rows["human-balanced", "attack_success"], rows["human-balanced", "over_refusal"]
    assert f"({100 * success['mean']:+.1f} {between(success)}, not separated over attacks" in words
    assert f"over-refusal {100 * over['mean']:+.1f} {between(over)})" in words
