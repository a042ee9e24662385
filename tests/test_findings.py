"""The figures of docs/findings.md and docs/speed.md are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
WORDS = " ".join(FINDINGS.split())
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


def selection(base: str, budget: int) -> dict[str, Any]:
    path = ROOT / f"docs/results/selection/{base}-{budget}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def native_less(record: dict[str, Any], arm: str) -> dict[str, Any]:
    rows = record["study"]["paired"]
    (row,) = [row for row in rows if (row["a"], row["b"], row["metric"]) == ("native", arm, "pass@1")]
    return dict(row)


BASES = ("shipped", "seed-1", "seed-2", "hard-1")
STUDIES = {(base, budget): selection(base, budget) for base in BASES for budget in (500, 1000)}


def test_the_default_is_better_than_all_controls_on_every_base() -> None:
    gains = []
    for record in STUDIES.values():
        gains.append(native_less(record, "random")["relative"]["mean"])
        for control in ("random", record["study"]["best_human"], "low-nll", "rft"):
            assert native_less(record, control)["low"] > 0
    assert f"{100 * min(gains):.0f} to {100 * max(gains):.0f} % above random selection" in WORDS
    assert {path.stem.rsplit("-", 1)[0] for path in (ROOT / "docs/results/selection").glob("*.json")} == set(BASES)


def test_what_directions_add_to_likelihood() -> None:
    control = "low-nll+reread"
    fell_back = {base for (base, _), record in STUDIES.items() if record["contest"]["chosen"]["name"] == control}
    assert fell_back == {"shipped", "seed-1"} and "on `shipped` and `seed-1` the contest said so beforehand" in WORDS
    for base in BASES:
        few = native_less(STUDIES[base, 500], control)
        assert few["low"] is None or few["low"] < 0 < few["high"], "500 rows: nothing"
        row = native_less(STUDIES[base, 1000], control)
        gain = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        assert (
            f"{100 * row['mean']:.1f} points ({gain})" in WORDS
            or f"{100 * row['mean']:.1f} ({gain})" in WORDS
            or (f"({100 * row['mean']:.1f} {gain})" in WORDS and row["low"] < 0)
        )


def test_what_directions_are_worth_without_likelihood() -> None:
    means = {
        base: {arm: f"{100 * of['pass@1']['mean']:.1f}" for arm, of in STUDIES[base, 1000]["study"]["arms"].items()}
        for base in BASES
    }
    assert (
        "at 1,000 rows {directions} against {low-nll} % (random {random}) on `shipped`".format_map(means["shipped"])
        in WORDS
    )
    for base in ("seed-1", "seed-2"):
        assert f"{{directions}} against {{low-nll}} % ({{random}}) on `{base}`".format_map(means[base]) in WORDS
    assert "they reach {directions} % (low NLL {low-nll}, random {random})".format_map(means["hard-1"]) in WORDS
    long = [f"{means[base]['random-length-matched']} % on `{base}`" for base in BASES if base != "shipped"]
    assert f"random rows as long reach {long[0]}, {long[1]} and {long[2]}" in WORDS


def test_what_is_no_better_than_random_selection() -> None:
    none_better = {"coverage", "facility-location", "rds+", "crds"}
    for budget in (500, 1000):
        rows = STUDIES["shipped", budget]["study"]["paired"]
        verdicts = {row["a"]: row["verdict"] for row in rows if row["b"] == "random" and row["verdict"]}
        assert none_better <= verdicts.keys()
        assert {verdicts[arm] for arm in none_better} <= {"not separated", "worse"}


def test_the_committed_result_is_of_the_shipped_recipe_and_reasoner() -> None:
    from skillbasis.artifact import read_json
    from skillbasis.recipe import load_recipe, parse_recipe
    from skillbasis.world.assets import demo_recipe_path, record_path

    results = ROOT / "docs/results/demo"
    assert parse_recipe(read_json(results / "run.json")["settings"], "run.json") == load_recipe(demo_recipe_path())
    fingerprint = read_json(record_path())["weights_fingerprint"]
    assert read_json(results / "study.json")["settings"]["weights_fingerprint"] == fingerprint


def test_the_speed_of_selecting_is_that_of_the_committed_results() -> None:
    words = " ".join(SPEED.split())
    record = json.loads((ROOT / "docs/results/selection-speed.json").read_text(encoding="utf-8"))
    seconds = {row["strategy"]: row["align_s"] + row["select_s"] for row in record["results"]}
    whole = [row["strategy"] for row in record["results"] if row["budget"] == record["size"]["budget"]]
    slowest = f"takes {max(seconds[name] for name in whole):.0f} s at most, for the slowest of {len(whole)} strategies"
    memory = f"and {max(row['peak_rss_mb'] for row in record['results']) / 1000:.1f} GB"
    assert f"{slowest}, {memory}; coverage of 10,000 of them {seconds['coverage']:.0f} s" in words
    large = json.loads((ROOT / "docs/results/near-duplicates.json").read_text(encoding="utf-8"))["large"]
    assert (
        f"at {round(large['rows_per_cpu_s'], -2):,} rows of {large['mean_words']} words a second of one core" in words
    )
    assert large["n_copies_overlooked"] == 0 and f"of {large['n_copies_due']:,} planted copies none" in words


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
    demo = json.loads((ROOT / "docs/results/demo/steer.json").read_text(encoding="utf-8"))
    study = json.loads((ROOT / "docs/results/steering-study.json").read_text(encoding="utf-8"))
    for difference in demo["test"]["winner"]["differences"]:
        assert points(difference) in WORDS
    for base in study["bases"]:
        by_metric = {entry["metric"]: entry for entry in base["test"]["winner"]["differences"]}
        assert points(by_metric["pass@8"]) in WORDS
        assert base["winner"]["vector"] == "gradient block 3"
        assert base["n_settings"] == 174
    controls = [control["difference"]["mean"] for base in study["bases"] for control in base["test"]["controls"]]
    assert f"{100 * min(controls):+.1f} to {100 * max(controls):+.1f} points of pass@1" in WORDS


def test_the_figures_of_the_proxies_are_those_of_the_committed_result() -> None:
    proxies = json.loads((ROOT / "docs/results/proxy-quality.json").read_text(encoding="utf-8"))["proxies"]
    for proxy in proxies.values():
        spearman = proxy["quality"]["spearman"]
        low, high = spearman["over_directions"]
        assert f"{spearman['value']:.2f} [{low:.2f}, {high:.2f}]".replace("0.", ".") in WORDS
        low, high = proxy["quality"]["gain_over_random"]["over_runs"]
        assert f"[{100 * low:+.1f}, {100 * high:+.1f}] by" in WORDS
    saved = json.loads((ROOT / "docs/results/demo/probe.json").read_text(encoding="utf-8"))["saved"]
    assert f"{saved['cells']} of the {saved['cells_of_full']} cells" in WORDS


def test_the_figures_of_measuring_are_those_of_the_committed_results() -> None:

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8")))

    coverage = read("coverage")
    held = [100 * row["coverage"] for row in coverage["intervals"] if not row["note"]]
    rejected = [100 * row["rejected"] for row in coverage["tests"] if not row["note"]]
    assert f"cover {min(held):.1f} to {max(held):.1f} %" in WORDS
    assert f"reject {min(rejected):.1f} to {max(rejected):.1f} %" in WORDS
    assert sum(row["note"] == "limit" for row in coverage["intervals"]) == 10 and "ten cases marked as limits" in WORDS

    rows = read("grading")["results"]
    n = sum(row["responses"] for row in rows)
    assert f"{n:,} labelled responses" in WORDS

    def share(grader: str, figure: str) -> str:
        return f"{sum(100 * row[grader][figure] * row['responses'] for row in rows) / n:.2f}"

    plain, ours = ((share(g, "agreement"), share(g, "agreement_corrected")) for g in ("plain", "ours"))
    assert f"agrees with the labels on {plain[0]} %, ours on {ours[0]} %" in WORDS
    assert f"turned round it is {plain[1]} and {ours[1]} %" in WORDS
    read_by_eye = json.loads((ROOT / "docs/results/grading-disagreements.json").read_text(encoding="utf-8"))
    wrong = sum(row["class"] == "label wrong" for row in read_by_eye["disagreements"])
    assert f"the {wrong} labels that are wrong" in WORDS
    late = {g: sum(row[g]["statuses"].get("timeout", 0) for row in rows) for g in ("plain", "ours")}
    assert late["ours"] == 0 and f"Math-Verify did {late['plain']} times" in WORDS

    threads = read("answering-speed")["threads"]
    assert f"{threads['1']['256']['ratio']:.1f} times as fast" in WORDS
    assert f"on one thread, and {threads['2']['256']['ratio']:.1f} times on two" in WORDS


def test_the_safety_figures_are_those_of_the_committed_result() -> None:
    path = ROOT / "docs/results/safety/embedded.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    study = record["safety"]
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
    assert f"leaves {100 * success['mean']:+.1f} points" in WORDS and success["verdict"] == "not separated"
    assert f"({between(success)} over seeds, {between(success['problems'])} over attacks: not separated)" in WORDS
    assert f"{-100 * over['mean']:.1f} points fewer harmless look-alikes ({between(over)})" in WORDS
    success, over = rows["human-balanced", "attack_success"], rows["human-balanced", "over_refusal"]
    assert f"({100 * success['mean']:+.1f} {between(success)}, not separated over attacks" in WORDS
    assert f"over-refusal {100 * over['mean']:+.1f} {between(over)})" in WORDS


def test_in_no_space_that_was_tried_does_coverage_refuse_as_much_as_random_requests() -> None:
    words = " ".join((ROOT / "docs/experiments.md").read_text(encoding="utf-8").split())
    arms = json.loads((ROOT / "docs/results/safety/space.json").read_text(encoding="utf-8"))["arms"]
    refused, solved = (
        {name: 100 * of[measure]["mean"] for name, of in arms.items()} for measure in ("refused", "look_alikes_solved")
    )
    at = [f"{refused[f'coverage: last, block 1, k = {k}']:.1f}" for k in (8, 25, 64)]
    control = f"random requests make {refused['random']:.1f} and balanced types {refused['human-balanced']:.1f}"
    assert (
        f"{at[0]} % of the attacks refused with 8 directions, {at[1]} with 25 and {at[2]} with 64, where {control}"
        in words
    )
    spaces = [name for name in arms if name.startswith("coverage")]
    places = [name for name in spaces if name.endswith("k = 25")]
    assert len(places) == 8 and all(refused[name] < refused["random"] for name in spaces)
    most = max(places, key=refused.__getitem__)
    assert most == "coverage: mean, block 0, k = 25"
    assert f"it is {min(refused[name] for name in places):.1f} to {refused[most]:.1f} %" in words
    low, high = min(solved[name] for name in spaces), max(solved[name] for name in spaces)
    assert (
        f"{low:.1f} to {high:.1f} % (random {solved['random']:.1f}, balanced {solved['human-balanced']:.1f})" in words
    )
