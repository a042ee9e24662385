"""The embedded world: exact answers, disjoint splits, fluent wrong rows, and the shipped files as recorded."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from random import Random
from typing import Any

import numpy as np
import pytest

from skillbasis.artifact import file_sha256, read_json
from skillbasis.world.assets import pool_path, reasoner_path, record_path
from skillbasis.world.problems import FAMILIES, UNITS, Problem, distinct_problems, draw_problem
from skillbasis.world.solutions import STYLES, near_miss, solution, story, style_of


def independent_answer(problem: Problem) -> int:
    """Solves a problem again from its question's numbers alone, in another way than the generator."""
    n = problem.numbers
    match problem.family:
        case "addition":
            return n[0] + n[1]
        case "last_digit":
            return int(str(n[0] * n[1] * n[2])[-1])
        case "linear":
            return next(x for x in range(1, 1000) if n[0] * x + n[1] == n[2])
        case "remainder":
            return len(range(n[0])[n[0] // n[1] * n[1] :])
        case "units":
            return sum(UNITS[n[0]][2] for _ in range(n[1])) + n[2]
        case "kth_smallest":
            return int(np.partition(np.array(n[1:]), n[0] - 1)[n[0] - 1])
        case "word_problem":
            return sum([n[1]] * n[0]) + (n[2] if n[3] else -n[2])
        case "counting":
            return int((np.array(n[1:]) > n[0]).sum())
    raise AssertionError(problem.family)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_exact_and_stand_in_every_right_solution(family: str) -> None:
    rng = Random(f"exact:{family}")
    for _ in range(300):
        problem = draw_problem(rng, "pretrain", family)
        assert int(problem.answer) == independent_answer(problem)
        for style in ("terse", "worked", "verified"):
            for register in ("symbolic", "verbal"):
                text = solution(problem, style, register, rng)
                assert re.findall(r"\\boxed\{(.*?)\}", text) == [problem.answer]
                assert style_of(text) == style


def test_every_number_sentence_of_worked_solutions_is_true() -> None:
    rng = Random("true sentences")
    checked = 0
    for _ in range(500):
        problem = draw_problem(rng, "pretrain")
        text = solution(problem, "verified", "symbolic", rng)
        for left, right in re.findall(r"(\d[\d+*/-]*)=(\d+)", text):
            assert eval(left) == int(right), text  # noqa: S307 - digits and operators only, by the pattern
            checked += 1
    assert checked > 500


def test_splits_share_no_problem_and_cover_all_families() -> None:
    keys = {split: {p.key for p in distinct_problems(240, split, 1)} for split in ("pool", "validation", "test")}
    assert all(len(found) == 240 for found in keys.values())
    assert not keys["pool"] & keys["validation"] and not keys["validation"] & keys["test"]
    families = Counter(key.split(":")[0] for key in keys["test"])
    assert set(families.values()) == {30}


def test_guesses_miss_three_times_in_four_and_near_misses_always() -> None:
    rng = Random("guesses")
    problems = [draw_problem(rng, "pretrain") for _ in range(2000)]
    right = [f"\\boxed{{{p.answer}}}" in solution(p, "guess", "verbal", rng) for p in problems]
    assert 0.22 < np.mean(right) < 0.28  # 2,000 draws: standard error 0.01
    assert all(near_miss(p.answer, rng) != p.answer for p in problems)


def test_null_world_styles_have_the_same_length_and_answer() -> None:
    rng = Random("null")
    problems = [draw_problem(rng, "pretrain") for _ in range(1500)]
    lengths = {style: np.mean([len(solution(p, style, "symbolic", rng, "null")) for p in problems]) for style in STYLES}
    assert max(lengths.values()) - min(lengths.values()) < 0.1 * np.mean(list(lengths.values()))
    assert all(p.answer in solution(p, "guess", "symbolic", rng, "null") for p in problems)


def test_stories_answer_nothing() -> None:
    rng = Random("stories")
    stories = [story(rng) for _ in range(200)]
    assert 60 < sum("\\boxed" in text for text in stories) < 140


@pytest.fixture(scope="module")
def pool() -> list[dict[str, Any]]:
    with gzip.open(pool_path(), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_pool_holds_what_it_says(pool: list[dict[str, Any]]) -> None:
    assert len(pool) == 20_000
    assert len({(row["problem"], row["solution"]) for row in pool}) == len(pool)
    wrong = 1 - np.mean([row["hidden_correct"] for row in pool])
    assert 0.30 < wrong < 0.40
    for row in pool:
        boxed = re.findall(r"\\boxed\{(.*?)\}", row["solution"])
        if row["hidden_style"] != "story":  # a story's stray number may hit the answer by chance
            assert row["hidden_correct"] == (boxed[-1] == row["answer"])


def test_wrong_rows_are_fluent_and_short_rows_no_better(pool: list[dict[str, Any]]) -> None:
    by_style = defaultdict(list)
    for row in pool:
        by_style[row["hidden_style"]].append(row)
    shares = {s: 1 - np.mean([row["hidden_correct"] for row in by_style[s]]) for s in ("terse", "worked", "verified")}
    assert all(0.17 < share < 0.27 for share in shares.values()), shares
    sampled = [row for row in pool if row["hidden_origin"] == "sampled"]
    assert len(sampled) > 1500
    assert all(style_of(row["solution"]) == row["hidden_style"] for row in sampled)


def test_pool_shares_no_problem_with_validation_and_test(pool: list[dict[str, Any]]) -> None:
    questions = {row["problem"] for row in pool}
    from skillbasis.evaluate.tasks import load_task

    for name in ("embedded:validation", "embedded:test"):
        task = load_task(name)
        assert not questions & {problem.prompt[-1]["content"] for problem in task.problems}


def test_shipped_files_are_the_recorded_ones() -> None:
    from skillbasis.lm import load_model

    record = read_json(record_path())
    weights = reasoner_path() / "model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    assert file_sha256(weights) == record["model_sha256"]
    assert file_sha256(pool_path()) == record["pool_sha256"]
    lm = load_model("embedded")
    assert lm.weights_fingerprint == record["weights_fingerprint"]
    assert 800_000 < sum(p.numel() for p in lm.model.parameters()) < 950_000


def test_shipped_reasoner_measures_what_is_recorded() -> None:
    from dataclasses import replace

    from skillbasis.evaluate.run import answer_task
    from skillbasis.evaluate.tasks import load_task
    from skillbasis.lm import load_model
    from skillbasis.world.ship import RECORD_SAMPLING

    record = read_json(record_path())["tasks"]
    for name in ("embedded:validation", "embedded:test"):
        result, _ = answer_task(load_model("embedded"), load_task(name), replace(RECORD_SAMPLING, batch_size=512))
        # The streams of random numbers are the same; other processors may turn a few tokens by rounding.
        assert result.pass_at_k(1).mean() == pytest.approx(record[name]["pass@1"]["mean"], abs=0.01)


def test_pretraining_goes_on_with_the_same_bytes_after_a_stop(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from skillbasis.world import reasoner

    monkeypatch.setattr(reasoner, "CHUNK_STEPS", 2)
    monkeypatch.setattr(reasoner, "BATCH_SIZE", 4)
    monkeypatch.setattr(reasoner, "CHECKPOINT_STEPS", 2)
    mixture = {"worked": 0.5, "terse": 0.5}
    monkeypatch.setitem(reasoner.PHASES, "plain", (reasoner.Phase("skills", 24, 1e-3, mixture),))
    reasoner.pretrain(tmp_path / "whole", 0, log=lambda _: None)

    class StopError(Exception):
        pass

    def stop(line: str) -> None:
        if "step 4/" in line:
            raise StopError

    # The log line of step 4 comes before its checkpoint: the second call starts again from step 2.
    with pytest.raises(StopError):
        reasoner.pretrain(tmp_path / "stopped", 0, log=stop)
    lines: list[str] = []
    reasoner.pretrain(tmp_path / "stopped", 0, log=lines.append)
    assert lines[0] == "skills: goes on at step 2 of 6"
    whole, stopped = (tmp_path / name / "skills" / "model.safetensors" for name in ("whole", "stopped"))
    assert file_sha256(whole) == file_sha256(stopped)
