"""The safety section: numbers are those of the files, measures stand together, and no answer is shown unasked."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from skillbasis.errors import ArtifactError, UsageError
from skillbasis.evaluate.reference import Reference
from skillbasis.evaluate.safety import Exchange, Judgement
from skillbasis.evaluate.safety.judged import Answer, judge_answers
from skillbasis.evaluate.samples import Sample, write_problems, write_samples
from skillbasis.evaluate.tasks import Problem, Task
from skillbasis.report import terminal_safety, write_report
from skillbasis.report.collect import collect, collect_safety
from skillbasis.report.records.safety import MEASURES
from skillbasis.report.safety.exchanges import MAX_SHOWN_CHARS, N_SHOWN
from skillbasis.report.safety.wording import safety_headline, safety_warnings
from test_report import EVIL, Page, difference, estimate, page_of, write_run

CHROMIUM = shutil.which("chromium")
NAMES = [measure.name for measure in MEASURES]
RIGHT_TO_LEFT = "عدد \u202e!dlrow"
SECRET = "The planted answer to be hidden, number"
REQUEST = "The planted request to be hidden, number"


def levels(attack_success: float, utility: float = 0.5, unscored: float = 0.0) -> dict[str, Any]:
    """All measures of one arm; those of attacks hang together."""
    return {
        "attack_success": estimate(attack_success, seeds=[attack_success]),
        "score": estimate(attack_success - 0.05),
        "refused": estimate(1 - attack_success),
        "over_refusal": estimate(0.031, 0.01),
        "utility": estimate(utility),
        "unscored": estimate(unscored, 0.3),
    }


def point(attack_success: float, **more: Any) -> dict[str, Any]:
    groups = {name: {"role play": estimate(attack_success), "nesting": estimate(0.777)} for name in NAMES[:3]}
    groups |= {"over_refusal": {"homonyms": estimate(0.123)}, "utility": {"embedded": estimate(0.456)}}
    return {"status": "done", "reason": None, "n_seeds": 3, "n_rows": 40, "by_group": groups} | levels(
        attack_success, **more
    )


def hole(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "n_seeds": 0, "by_group": {}} | dict.fromkeys(NAMES)


def pair(arm: str, control: str, measure: str, budget: int | str, mean: float, half: float, p: float) -> dict[str, Any]:
    holds = half < abs(mean)
    verdict = ("better" if mean < 0 else "worse") if holds else "not separated"
    return {"arm": arm, "control": control, "measure": measure, "budget": budget, "n_seeds": 3, "holds": holds} | (
        difference(mean, half, p) | {"problems": estimate(mean, half + 0.01), "verdict": verdict}
    )


def fake_safety() -> dict[str, Any]:
    """A made-up study of two budgets in which coverage beats random and one arm failed."""
    arms = {
        "coverage": {"budgets": {"40": point(0.4), "160": point(0.201)}, "area": levels(0.3), "needed": 61.0},
        "random": {"budgets": {"160": point(0.35), "40": point(0.5)}, "area": levels(0.425), "needed": None},
        "text-diversity": {
            "budgets": {"40": point(0.48), "160": hole("training diverged at step 12")},
            "area": dict.fromkeys(NAMES),
            "needed": None,
        },
    }
    return {
        "judge": {"name": "strongreject-official", "diagnostic": False},
        "budgets": [40, 160],
        "seeds": [0, 1, 2],
        "rollouts": 4,
        "tasks": {"attacks": ["held-out + others"], "safe": ["plain"], "utility": ["embedded"]},
        "base": point(0.612),
        "arms": arms,
        "paired": [
            pair("coverage", "random", "attack_success", "area", -0.125, 0.03, 0.004),
            pair("coverage", "random", "over_refusal", "area", 0.002, 0.01, 0.7),
            pair("coverage", "base", "attack_success", "area", -0.312, 0.03, 0.0001),
            pair("coverage", "random", "attack_success", 40, -0.1, 0.02, 0.006),
        ],
        "needed": {
            "coverage": {"budget": 61.0, "target": 0.35, "low": 48.0, "high": None, "reason": None},
            "random": {"budget": 160.0, "target": 0.35, "low": None, "high": None, "reason": None},
            "text-diversity": {"budget": None, "target": None, "low": None, "high": None, "reason": "no seed of both"},
        },
        "verdicts": {"coverage": "coverage has less attack success than random choice: -12.5 points."},
        "notes": ["Differences are paired by seed."],
        "settings": {"n_attacks": 1},
    }


def fake_geometry(kinds: Sequence[str | None] = ("role play", "nesting", None)) -> dict[str, Any]:
    n = 60
    return {
        "points": {
            "ids": [f"req-{i}" for i in range(n)],
            "labels": [kinds[i % len(kinds)] for i in range(n)],
            "x": [float(i % 7) - 3 for i in range(n)],
            "y": [float(i % 5) - 2 for i in range(n)],
            "n_rows": 400,
        },
        "chosen": {
            "coverage": {"budget": 160, "seed": 0, "ids": ["req-3", "req-9", "elsewhere"]},
            "random": {"budget": 160, "seed": 0, "ids": ["req-5"]},
        },
        "order": {"ids": ["req-3", "req-9"], "distances": [None, *(4 / i**0.5 for i in range(1, 160))]},
        "radius": {"coverage": {"40": {"max": estimate(3.21, 0.1), "mean": estimate(1.5, 0.1)}}},
    }


def artifacts() -> dict[str, Any]:
    return {"safety/summary.json": fake_safety(), "safety/geometry.json": fake_geometry()}


class PlantedJudge:
    """Says of every answer what its last word says."""

    name, diagnostic, identity, description = "planted", False, {"kind": "planted"}, {}

    def judge(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Judgement]]:
        for number, exchange in enumerate(exchanges):
            score = float(exchange.response.rsplit(" ", 1)[1])
            yield number, Judgement(score == 0, score)


def write_cell(run: Path, place: str, responses: Sequence[str], requests: Sequence[str]) -> None:
    """A cell that answered one list of attacks, its judgements, and what was asked."""
    task = Task("held-out", [
        Problem(f"q{i}", [{"role": "user", "content": text}], Reference(("refuse",))) for i, text in enumerate(requests)
    ], "refusal")  # fmt: skip
    rows = [("held-out", i, text) for i, text in enumerate(responses)] + [("embedded", 0, "a sum 1.0")]
    records = [vars(Sample(t, f"q{i}", 0, text, None, False, "ok", 3, False, 0.1)) for t, i, text in rows]
    cell = run / "safety/cells" / place
    cell.mkdir(parents=True)
    write_samples(cell / "samples.parquet", records)
    (cell / "summary.json").write_text("{}")
    write_problems(run / "safety/problems.parquet", [task])
    answers = [Answer("held-out", f"q{i}", 0, Exchange(requests[i], text)) for i, text in enumerate(responses)]
    judge_answers(answers, run / "safety/judged/cells" / place, PlantedJudge())


def secret_run(folder: Path) -> Path:
    """A run with answers: one of eight attacks succeeded under `coverage`, on the last request."""
    run = write_run(folder, artifacts())
    requests = [f"{REQUEST} {i}" for i in range(8)]
    for place, successes in (("160/coverage/0", {7}), ("base/0", set(range(8))), ("40/coverage/0", {0})):
        scores = [1.0 if i in successes else 0.25 if i == 3 else 0.0 for i in range(8)]
        write_cell(run, place, [f"{SECRET} {i} of {place}, scored {s}" for i, s in enumerate(scores)], requests)
    return run


def words_of(page: Page) -> str:
    return page.words().replace("\N{NO-BREAK SPACE}", " ")


def section(html: str) -> str:
    return html[html.index('<section id="safety"') : html.index('<section id="making"')]


def test_the_section_shows_the_numbers_of_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, artifacts())
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 6_000_000
    figures = {(attrs["data-figure"] or "")[5:] for _, attrs in page.tags if "data-figure" in attrs}
    assert figures == {
        *(f"safety-{name}" for name in NAMES),
        *("safety-scatter", "safety-order", "safety-radius-max", "safety-radius-mean"),
    }
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert "safety" in ids and len(ids) == len(set(ids))
    words = words_of(page)
    for text in (
        "Judge strongreject-official Budgets, examples 40, 160 Seeds 0, 1, 2 Rollouts per prompt 4",
        # areas, with the number of examples needed
        "untuned model 61.2 [59.2, 63.2] 56.2 [54.2, 58.2] 38.8 [36.8, 40.8] 3.1 [2.1, 4.1] 50.0 [48.0, 52.0] 0.0 –",
        "coverage 30.0 [28.0, 32.0] 25.0 [23.0, 27.0] 70.0 [68.0, 72.0] 3.1 [2.1, 4.1] 50.0 [48.0, 52.0] 0.0 61 [48,",
        "text-diversity budget 160: failed: training diverged at step 12 – – – – – – – no seed of both",
        "the attack success of random at the largest budget (35.0 %)",
        # differences against each control
        "Against random coverage −12.5 [−15.5, −9.5] p 0.004, better – – +0.2 [−0.8, +1.2] p 0.700 –",
        "Against the untuned model coverage −31.2 [−34.2, −28.2] p < 0.001, better",
        "coverage − random 40 Attack success −10.0 [−12.0, −8.0] [−13.0, −7.0]",
        # by budget, ascending, and by family
        "coverage 40 3 40.0 [38.0, 42.0]",
        "coverage 160 3 20.1 [18.1, 22.1]",
        "nesting untuned model 77.7 [75.7, 79.7] 77.7 [75.7, 79.7] 77.7 [75.7, 79.7] –",
        "homonyms coverage 12.3 [10.3, 14.3]",
        "embedded random 45.6 [43.6, 47.6]",
        # geometry
        "60 of 400 requests of the pool, drawn at random, on the first two components",
        "nesting 20 type not recorded 20",
        "coverage 40 3.21 [3.11, 3.31] 1.50 [1.40, 1.60]",
        "coverage has less attack success than random choice: -12.5 points.",
        "Differences are paired by seed.",
        "n_attacks 1",
        "safety/geometry.json",
    ):
        assert text in words, text
    assert "None" not in words and "nan" not in words.lower().split() and "iagnostic" not in words


def test_the_headline_names_all_measures(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, artifacts()))
    safety = collect(tmp_path).safety
    assert safety is not None
    sentences = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in safety_headline(safety)]
    assert sentences == [
        "On average over budgets 40 to 160, coverage has the lowest attack success of 2 arms, 30.0 % [28.0, 32.0], "
        "less than random, with over-refusal not separated and utility not compared.",
        "Against random, over seeds and over prompts: attack success −12.5 points [−15.5, −9.5] and [−16.5, −8.5] "
        "(better); over-refusal +0.2 points [−0.8, +1.2] and [−1.8, +2.2] (not separated).",
        "All measures of coverage: attack success 30.0 % [28.0, 32.0], score 25.0 % [23.0, 27.0], refused attacks "
        "70.0 % [68.0, 72.0], over-refusal 3.1 % [2.1, 4.1], utility 50.0 % [48.0, 52.0], unscored 0.0 %.",
        "The untuned model: attack success 61.2 % [59.2, 63.2], score 56.2 % [54.2, 58.2], refused attacks 38.8 % "
        "[36.8, 40.8], over-refusal 3.1 % [2.1, 4.1], utility 50.0 % [48.0, 52.0], unscored 0.0 %.",
    ]
    assert all(words_of(page).count(sentence) == 1 for sentence in sentences)  # in the header or below it


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("not separated", "not separated from random"), (None, "not to be judged against random"), ("worse", "more than")],
)
def test_the_headline_says_no_more_than_the_verdict(tmp_path: Path, verdict: str | None, words: str) -> None:
    run = artifacts()
    run["safety/summary.json"]["paired"][0] |= {"verdict": verdict, "holds": verdict == "worse"}
    safety = collect_safety(write_run(tmp_path, run))
    assert safety is not None
    lead = safety_headline(safety)[0]
    assert f", {words}" in lead and "less than" not in lead


def test_beside_a_study_the_finding_stands_in_the_section(tmp_path: Path) -> None:
    from test_report import fake_run

    html = write_report(write_run(tmp_path, fake_run() | artifacts())).read_text("utf-8")
    header, rest = html[: html.index("</header>")], section(html)
    assert "The best arm by mean pass@1 is directions" in header and "attack success" not in header
    assert "On average over budgets 40 to 160, coverage has the lowest attack success" in rest


def test_without_areas_the_largest_budget_speaks(tmp_path: Path) -> None:
    run = artifacts()
    summary = run["safety/summary.json"]
    for arm in summary["arms"].values():
        arm["area"] = dict.fromkeys(NAMES)
    summary["paired"] = []
    safety = collect_safety(write_run(tmp_path, run))
    assert safety is not None
    assert safety_headline(safety)[0].startswith("At budget 160, coverage has the lowest attack success of 2 arms")
    summary["arms"] = {"text-diversity": summary["arms"]["text-diversity"]}
    safety = collect_safety(write_run(tmp_path, run))
    assert safety is not None and "no arm of the safety study has a level" in safety_headline(safety)[0].lower()
    assert "safety" in page_of(tmp_path).ids()


def test_a_diagnostic_judge_is_named_so_wherever_its_figures_stand(tmp_path: Path) -> None:
    run = artifacts()
    run["safety/summary.json"]["judge"] = {"name": "rules (diagnostic)", "diagnostic": True}
    html = write_report(write_run(tmp_path, run)).read_text("utf-8")
    found = re.findall(r"<(h[23]|caption|figcaption)[^>]*>(.*?)</", section(html), re.DOTALL)
    unjudged = ("Where the chosen requests lie", "first two components", "nearest chosen", "row of the pool")
    judged = [text for _, text in found if not any(word in text for word in unjudged)]
    assert len(judged) >= 17 and all("diagnostic judge: rules" in text.lower() for text in judged)
    words = words_of(Page(html))
    assert "By the diagnostic judge 'rules', which looks at form only: on average over budgets" in words
    assert "Judge rules (diagnostic)" in words and "(diagnostic) (diagnostic)" not in words
    assert "the judge 'rules' is a diagnostic" in words
    assert "diagnostic judge: rules" in printed(tmp_path).lower()


def test_what_is_unscored_or_missing_is_a_warning(tmp_path: Path) -> None:
    run = artifacts()
    arms = run["safety/summary.json"]["arms"]
    arms["coverage"]["budgets"]["40"]["unscored"] = estimate(0.02)
    arms["coverage"]["budgets"]["160"]["unscored"] = estimate(0.05)
    arms["coverage"]["budgets"]["160"]["attack_success"] |= {"low_if": 0.191, "high_if": 0.241}
    run["safety/summary.json"]["base"]["unscored"] = estimate(0.01)
    safety = collect_safety(write_run(tmp_path, run))
    assert safety is not None
    assert safety_warnings(safety) == [
        "Safety, untuned model: 1.0 % of the answers to attacks have no score; they count neither as safe nor as "
        "unsafe.",
        "Safety, arm coverage at budgets 40, 160: up to 5.0 % of the answers to attacks have no score; whatever they "
        "are, attack success at budget 160 is within 19.1 to 24.1 %.",
        "Safety, arm text-diversity at budget 160: failed: training diverged at step 12.",
    ]
    page = page_of(tmp_path)
    assert "warnings" in page.ids() and all(warning in page.words() for warning in safety_warnings(safety))


def test_plots_hold_the_numbers(tmp_path: Path) -> None:
    from skillbasis.report.charts import BLUE, GREY
    from skillbasis.report.safety.charts import attack_scatter, covering, efficiency, min_distances

    safety = collect_safety(write_run(tmp_path, artifacts()))
    assert safety is not None and safety.geometry is not None
    figure = efficiency(safety, MEASURES[0])
    assert figure is not None and figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == [40, 160]
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["coverage"].y) == pytest.approx([40.0, 20.1]) and lines["coverage"].line.color == BLUE
    assert list(lines["coverage"].error_y.array) == pytest.approx([2.0, 2.0])
    assert list(lines["random"].y) == pytest.approx([50.0, 35.0]) and lines["random"].line.color == GREY
    assert list(lines["coverage"].x) == pytest.approx([40, 160], rel=0.05)  # beside each other, near the budget
    assert len(lines["text-diversity"].y) == 1  # the other budget failed
    assert list(figure.data[-1].y) == pytest.approx([61.2, 61.2]) and figure.data[-1].line.dash == "dash"
    counted = efficiency(safety, MEASURES[-1])
    assert counted is not None and not any(trace.error_y.array and any(trace.error_y.array) for trace in counted.data)
    order = min_distances(safety.geometry, safety.budgets)
    assert order is not None and order.data[0].x[0] == 2 and list(order.data[1].x) == [40, 160]
    radius = covering(safety.geometry, list(safety.arms), "max")
    assert radius is not None and list(radius.data[0].y) == pytest.approx([3.21])
    scatter = attack_scatter(safety.geometry, list(safety.arms))
    assert scatter is not None
    rings = [trace for trace in scatter.data if str(trace.marker.symbol).endswith("-open")]
    assert [(ring.name, ring.visible) for ring in rings] == [
        ("coverage (2 of 3)", True),
        ("random (1)", "legendonly"),
    ]
    assert rings[0].marker.symbol != rings[1].marker.symbol
    assert (rings[0].x[0], rings[0].y[0]) == (0.0, 1.0)  # req-3: 3 % 7 - 3, 3 % 5 - 2


def test_more_attack_types_than_colours_end_in_one(tmp_path: Path) -> None:
    from skillbasis.report.safety.charts import MAX_TYPES, OTHER_TYPES, attack_scatter, type_marks

    run = artifacts() | {"safety/geometry.json": fake_geometry([f"type {i}" for i in range(MAX_TYPES + 4)])}
    safety = collect_safety(write_run(tmp_path, run))
    assert safety is not None and safety.geometry is not None
    marks = type_marks(safety.geometry.points)
    assert len(marks) == MAX_TYPES + 1 and marks[-1].name == OTHER_TYPES
    assert len({(mark.colour, mark.symbol) for mark in marks[:-1]}) == MAX_TYPES
    assert sorted(row for mark in marks for row in mark.rows) == list(range(60))
    assert attack_scatter(safety.geometry, []) is not None


@pytest.mark.parametrize("gone", ["geometry", "chosen", "points", "order", "radius"])
def test_what_is_absent_of_the_geometry_is_left_out(tmp_path: Path, gone: str) -> None:
    run = artifacts()
    if gone == "geometry":
        del run["safety/geometry.json"]
    else:
        del run["safety/geometry.json"][gone]
    page = page_of(write_run(tmp_path, run))
    figures = {(attrs["data-figure"] or "")[12:] for _, attrs in page.tags if "data-figure" in attrs}
    left = {"scatter", "order", "radius-max", "radius-mean"} & figures
    without = {"geometry": 4, "chosen": 0, "points": 1, "order": 1, "radius": 2}[gone]
    assert len(left) == 4 - without and "safety" in page.ids()


def test_numbers_that_are_undefined_are_dashes(tmp_path: Path) -> None:
    run = artifacts()
    summary = run["safety/summary.json"]
    empty = {"mean": None, "low": None, "high": None, "seeds": []}
    summary["base"]["over_refusal"] = None
    summary["arms"]["coverage"]["area"]["utility"] = empty
    summary["paired"][0] |= empty | {"p_value": None, "p_holm": None, "problems": None, "holds": None, "verdict": None}
    run["safety/geometry.json"]["radius"]["coverage"]["40"] = {"max": estimate(3.0), "mean": None}
    words = words_of(page_of(write_run(tmp_path, run)))
    assert "Against random coverage – p – – – +0.2" in words
    assert "utility – , unscored" not in words and "utility –, unscored 0.0 %" in words
    assert "coverage 40 3.00 [2.98, 3.02] –" in words
    assert "None" not in words and "nan" not in words.lower().split()


def test_one_seed_is_said_to_have_intervals_over_prompts(tmp_path: Path) -> None:
    run = artifacts()
    assert "Bars are intervals over seeds." in words_of(page_of(write_run(tmp_path, run)))
    run["safety/summary.json"]["seeds"] = [0]
    words = words_of(page_of(write_run(tmp_path, run)))
    assert "Bars are intervals over prompts." in words and "percent, with the interval over seeds" not in words
    assert "(one seed: the variance between seeds is unknown)" in words


def test_a_summary_of_the_study_can_be_read(tmp_path: Path) -> None:
    """The figures as the study itself makes them."""
    from planted_safety import planted_study
    from skillbasis.safety.summary import summarise

    effects = {"coverage": -0.1, "random": 0.0}
    summary = summarise(**planted_study(effects, n_seeds=3, n_families=4, n_behaviours=5, unscored=0.05))
    page = page_of(write_run(tmp_path, {"safety/summary.json": summary}))
    words = words_of(page)
    for arm in effects:
        area = summary["arms"][arm]["area"]["attack_success"]
        assert f"{arm} {100 * area['mean']:.1f} [{100 * area['low']:.1f}, {100 * area['high']:.1f}]" in words
    assert "family 3 coverage" in words and "topic 2 random" in words
    assert "of the answers to attacks have no score" in words
    assert summary["verdicts"]["coverage"] in page.words()


def with_marks(mark: str) -> dict[str, Any]:
    """The made-up run with `mark` added to every free text and name."""
    free = {"role play", "nesting", "homonyms", "embedded", "coverage", "text-diversity", "no seed of both", "plain"}
    free |= {"held-out + others", "strongreject-official", "training diverged at step 12", "req-3", "req-4", "req-5"}

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {marked(key): marked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [marked(item) for item in value]
        return value + mark if value in free or (isinstance(value, str) and value.endswith(".")) else value

    return {name: marked(value) for name, value in artifacts().items()}


def test_no_name_is_markup_or_script(tmp_path: Path) -> None:
    calm = page_of(write_run(tmp_path / "calm", with_marks("calm")))
    html = write_report(write_run(tmp_path / "evil", with_marks(EVIL)), show_responses=True).read_text("utf-8")
    shown = write_report(tmp_path / "calm", show_responses=True).read_text("utf-8")
    evil = Page(html)
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in Page(shown).tags]
    assert evil.text.count(EVIL) > 20 and "<script>alert" not in html
    kinds = [attrs.get("type") for tag, attrs in evil.tags if tag == "script"]
    running = [text for text, kind in zip(evil.scripts, kinds, strict=True) if kind is None]
    assert running == calm.scripts[-2:]
    figures = [text for text, kind in zip(evil.scripts, kinds, strict=True) if kind == "application/json"]
    assert len(figures) == 11 and not re.search("[<>&]", "".join(figures))
    labels = "".join(json.dumps(json.loads(text)) for text in figures)
    assert "&lt;script&gt;" in labels and "<script" not in labels


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
def test_a_browser_draws_the_section_under_the_policy(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", with_marks(EVIL + RIGHT_TO_LEFT)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [str(CHROMIUM), *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("js-plotly-plot") >= 10 and done.stdout.count('class="xaxislayer-above"') >= 10
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]  # no error, nothing refused


def test_long_and_odd_texts_keep_the_page_small(tmp_path: Path) -> None:
    run = with_marks(RIGHT_TO_LEFT + "&" * 100_000 + "\ud800")
    path = write_report(write_run(tmp_path, run), show_responses=True)
    assert path.stat().st_size < 6_000_000
    html = path.read_text("utf-8")
    assert RIGHT_TO_LEFT in html and "more characters]" in html


def test_every_colour_has_a_dark_one(tmp_path: Path) -> None:
    from skillbasis.report.charts import CLEAR, dark_palette

    page = page_of(write_run(tmp_path, artifacts()))
    figures = "".join(text for text in page.scripts if '"layout"' in text and "Plotly" not in text)
    used = set(re.findall(r'"(#[0-9a-f]{6}|rgba\([^)]*\))"', figures)) - {CLEAR}
    assert len(used) > 6 and used <= {light for light, _ in dark_palette()}


def test_no_answer_and_no_request_is_shown_unasked(tmp_path: Path) -> None:
    run = secret_run(tmp_path)
    html = write_report(run).read_bytes()
    assert SECRET.encode() not in html and REQUEST.encode() not in html
    words = words_of(Page(html.decode()))
    assert "Answers to attacks lie in safety/cells/BUDGET/ARM/SEED/samples.parquet of the run" in words
    assert "This page holds none of them" in words and "skillbasis report RUN --show-responses" in words
    assert SECRET not in printed(run) and REQUEST not in printed(run)
    write_report(run, show_responses=True)
    assert SECRET.encode() not in write_report(run).read_bytes()  # made anew, it is without them again


def test_answers_are_shown_where_asked_for(tmp_path: Path) -> None:
    run = secret_run(tmp_path)
    html = write_report(run, show_responses=True).read_text("utf-8")
    words = words_of(Page(html))
    assert "This page holds a few, since it was made with --show-responses" in words
    assert re.search(r'<details class="more harmful"><summary><strong>Warning:', html)  # closed
    shown = re.findall(rf"{SECRET} (\d) of (\S+), scored", html)
    assert [number for number, place in shown if place == "160/coverage/0"] == ["7", "3", "0", "1", "2"]
    assert [number for number, place in shown if place == "base/0"] == ["0", "1", "2", "3", "4"]
    assert len(shown) == 2 * N_SHOWN  # nothing of the smaller budget
    assert "not refused, score 100.0 %, attack succeeded Request The planted request to be hidden, number 7" in words
    assert "not refused, score 25.0 % Request" in words and "refused, score 0.0 % Request" in words
    assert "From safety/cells/160/random/0: there is no finished cell" in words
    assert "a sum 1.0" not in html  # of a reasoning task


def test_shown_texts_are_escaped_and_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path, artifacts())
    long = "x" * 100_000
    write_cell(run, "160/coverage/0", [f"{EVIL} 1.0", f"{RIGHT_TO_LEFT} 0.0", f"{long} 0.0"], [EVIL, long, "short"])
    path = write_report(run, show_responses=True)
    html = path.read_text("utf-8")
    page = Page(html)
    assert "<script>alert" not in html and page.text.count(EVIL) == 2 and RIGHT_TO_LEFT in html
    assert len(re.findall("x{2000}", html)) == 2 and f"x{MAX_SHOWN_CHARS + 1}" not in html
    assert not re.search(f"x{{{MAX_SHOWN_CHARS + 1}}}", html)
    assert path.stat().st_size < 6_000_000


def test_an_arm_reads_no_folder_but_its_own(tmp_path: Path) -> None:
    run = artifacts()
    arms = run["safety/summary.json"]["arms"]
    arms["../160/coverage"] = copy.deepcopy(arms["coverage"])
    arms[".."] = copy.deepcopy(arms["coverage"])
    write_run(tmp_path, run)
    write_cell(tmp_path, "160/coverage/0", [f"{SECRET} 1.0"], [REQUEST])
    html = write_report(tmp_path, show_responses=True).read_text("utf-8")
    assert html.count(SECRET) == 1


def test_damaged_answers_are_named_and_show_nothing(tmp_path: Path) -> None:
    run = secret_run(tmp_path)
    (run / "safety/judged/cells/160/coverage/0/manifest.json").unlink()
    html = write_report(run, show_responses=True).read_text("utf-8")
    assert "of 160/coverage/0, scored" not in html and "of base/0, scored" in html
    (run / "safety/problems.parquet").unlink()
    words = words_of(Page(write_report(run, show_responses=True).read_text("utf-8")))
    assert "The run did not keep its words; look it up by its id." in words


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    run = artifacts()
    run["safety/summary.json"]["arms"]["coverage"]["budgets"]["40"]["score"] = "high"
    with pytest.raises(ArtifactError, match=r"safety/summary\.json cannot be reported: arms\.coverage\.budgets\.40"):
        write_report(write_run(tmp_path, run))


def printed(run: Path, width: int = 80) -> str:
    import io

    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_safety(run))
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


def test_the_terminal_has_the_finding_and_the_table(tmp_path: Path) -> None:
    run = artifacts()
    arms = run["safety/summary.json"]["arms"]
    arms["[red]odd[/red]"] = copy.deepcopy(arms["coverage"])
    text = printed(write_run(tmp_path, run))
    assert all(len(line) <= 80 for line in text.splitlines())
    words = " ".join(text.split())
    assert "On average over budgets 40 to 160, coverage has the lowest attack success of 3 arms" in words
    assert "Safety, arm text-diversity at budget 160: failed: training diverged at step 12." in words
    assert "untuned model 61.2 56.2 38.8 3.1 50.0 0.0 59.2–63.2 54.2–58.2 36.8–40.8 2.1–4.1 48.0–52.0" in words
    assert "text-diversity – – – – – –" in words and "[red]odd[/red]" in words  # a name, not markup
    with pytest.raises(UsageError, match=r"holds no safety/summary\.json"):
        terminal_safety(write_run(tmp_path / "other", {"run.json": {}}))


def test_the_command_has_the_option(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from skillbasis.cli import app

    run = secret_run(tmp_path)
    for option, there in (([], False), (["--show-responses"], True)):
        result = CliRunner().invoke(app, ["report", str(run), *option])
        assert result.exit_code == 0 and SECRET not in result.output
        assert ((run / "report.html").read_bytes().find(SECRET.encode()) >= 0) == there
