"""`skillbasis evaluate`, `grade` and `diff`: what each leaves, says and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from endpoint_server import chat, serving
from shell import done, skillbasis
from skillbasis.artifact import read_json
from skillbasis.evaluate.samples import read_samples
from skillbasis.world.assets import reasoner_path

torch.set_num_threads(1)

SAMPLE = ("--rollouts", "2", "--temperature", "0.8", "--max-tokens", "40", "--limit", "8")
EVALUATE = ("evaluate", "--model", "embedded", "--task", "embedded", *SAMPLE)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations of the reasoner, a task, a folder of benchmarks, a model without an end token."""
    folder = tmp_path_factory.mktemp("evaluate")
    done(*EVALUATE, "--out", folder / "a")
    done(*EVALUATE, "--seed", "1", "--out", folder / "b")
    sums = [{"id": f"s{i}", "problem": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(4)]
    jsonl(folder / "sums.jsonl", sums)
    jsonl(folder / "hole.jsonl", [*sums[:2], {"id": "s9", "problem": "What is 3 plus 1?"}])
    (folder / "data" / "amc23").mkdir(parents=True)
    jsonl(folder / "data" / "amc23" / "test.jsonl", [{"id": "amc23-0", "problem": "1 + 1?", "answer": "2"}])
    shutil.copytree(reasoner_path(), folder / "endless")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / "endless" / name).exists():
            settings = read_json(folder / "endless" / name)
            for key in ("eos_token", "eos_token_id"):
                settings.pop(key, None)
            (folder / "endless" / name).write_text(json.dumps(settings))
    config = read_json(folder / "endless" / "config.json") | {"eos_token_id": None}
    (folder / "endless" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "grade", "diff", "overlap"])
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in done(command, "--help") and command in done("--help")


def test_the_record_says_what_was_asked_and_how(work: Path) -> None:
    record = read_json(work / "a" / "summary.json")
    assert record["asked"]["embedded:test"]["source"]["kind"] == "embedded"
    assert record["grader"]["embedded:test"].startswith("exact ")
    assert record["settings"]["sampling"]["seed"] == 0 and record["engine"] == "transformers"
    figures = record["tasks"]["embedded:test"]
    assert {"pass@1", "pass@2", "tokens", "truncated", "statuses", "unanswered_fraction"} <= figures.keys()


def test_a_benchmark_from_a_folder_is_asked_for_a_box(work: Path, tmp_path: Path) -> None:
    options = ("--task-data", work / "data", "--system", "Be brief.", "--out", tmp_path / "ev")
    shown = done("evaluate", "--model", "embedded", "--task", "amc23", *SAMPLE, *options)
    assert shown.startswith("amc23: pass@1 ")
    prompt = json.loads(pq.read_table(tmp_path / "ev" / "problems.parquet")["prompt"][0].as_py())
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[0]["content"] == "Be brief." and "\\boxed{}" in prompt[1]["content"]
    asked = read_json(tmp_path / "ev" / "summary.json")["asked"]["amc23"]
    assert asked["source"]["sha256"] and asked["n_problems"] == 1


def test_other_settings_are_refused_and_the_same_are_read(work: Path) -> None:
    before = (work / "a" / "samples.parquet").stat().st_mtime_ns
    done(*EVALUATE, "--out", work / "a")
    refused = skillbasis(*EVALUATE, "--seed", "5", "--out", work / "a")
    assert refused.code == 1 and re.search(r"sampling was .*'seed': 0.* and is .*'seed': 5.*--overwrite", refused.err)
    assert (work / "a" / "samples.parquet").stat().st_mtime_ns == before
    shutil.copytree(work / "a", work / "c")
    done(*EVALUATE, "--seed", "5", "--overwrite", "--out", work / "c")
    assert read_json(work / "c" / "summary.json")["settings"]["sampling"]["seed"] == 5


def test_top_p_narrows_what_is_drawn(tmp_path: Path) -> None:
    def texts(name: str, *options: str) -> list[str]:
        done(*EVALUATE, *options, "--out", tmp_path / name)
        return [sample["response"] for sample in read_samples(tmp_path / name)["embedded:test"]]

    assert texts("narrow", "--top-p", "0.000001") == texts("greedy", "--temperature", "0")


def test_diff_says_what_can_be_seen(work: Path, tmp_path: Path) -> None:
    shown = done("diff", work / "a", work / "b", "--out", tmp_path / "diff.json")
    assert re.search(r"embedded:test +8 +pass@1", shown)
    assert re.search(r"with these 8 problems differences below [\d.]+ points? cannot be seen|no interval", shown)
    found = read_json(tmp_path / "diff.json")
    assert found["sign"] == "B minus A" and [task["task"] for task in found["tasks"]] == ["embedded:test"]
    assert shown == done("diff", work / "a", work / "b", "--task", "embedded:test")


def test_an_endpoint_is_evaluated_and_resumed(work: Path, tmp_path: Path) -> None:
    def adds(body: dict[str, Any], _attempt: int) -> Any:
        number = int(re.findall(r"\d+", body["messages"][-1]["content"])[0])
        return chat(f"That is \\boxed{{{number + 1}}}.")

    with serving(adds) as server:
        command = ("evaluate", "--model", "served", "--backend", "openai", "--base-url", server.url)
        command += ("--task", work / "sums.jsonl", *SAMPLE, "--out", tmp_path / "ev")
        assert done(*command).startswith("sums.jsonl: pass@1 1.000 [")
        n_requests = len(server.requests)
        assert n_requests >= 8
        done(*command)
        assert len(server.requests) == n_requests, "a finished evaluation asks nothing"


def test_grades_keep_apart_what_could_not_be_graded(tmp_path: Path) -> None:
    rows = [("so \\boxed{3}", "3"), ("", "5"), ("<think> and then", "5"), ("#### 1,234", "1234"), ("\\boxed{2}", "3")]
    jsonl(tmp_path / "answers.jsonl", [{"response": response, "answer": answer} for response, answer in rows])
    shown = done("grade", tmp_path / "answers.jsonl", "--out", tmp_path / "grades.parquet", "--workers", "1")
    assert "5 rows, 2 correct" in shown
    table = pq.read_table(tmp_path / "grades.parquet").to_pylist()
    assert [row["status"] for row in table] == ["ok", "no_answer", "truncated", "ok", "ok"]
    assert [row["id"] for row in table] == ["1", "2", "3", "4", "5"]


REFUSED = [
    (1, "{work}/hole.jsonl", "", r"row 3 \(id 's9'\): the column 'answer' is missing .*; mend the row"),
    (2, "gsm9k", "", r"unknown task 'gsm9k' \(did you mean 'gsm8k'\?\); give one of .*, or a file"),
    (2, "math:level9", "--task-data {work}/data", r"has no math_train/with_solutions.jsonl.gz for the task math"),
    (2, "gsm8k", "--task-data {work}/data", r"has no gsm8k/test.jsonl.gz for the task gsm8k; put its rows there"),
    (2, "embedded", "--backend vlm", r"unknown backend 'vlm' \(did you mean 'vllm'\?\); allowed are hf, vllm, openai"),
    (2, "embedded", "--backend openai", r"--backend openai needs --base-url, such as"),
    (2, "embedded", "--base-url http://x/v1", r"--base-url is for --backend openai, not hf"),
    (2, "embedded", "--tensor-parallel 2", r"are for --backend vllm, not hf"),
    (2, "embedded", "--backend openai --base-url http://x/v1 --steer b:0+:1", r"cannot be steered from here; serve a"),
    (2, "embedded", "--backend vllm --steer b:0+:1", r"vLLM is steered with a vector file"),
    (2, "embedded", "--top-p 0", r"top_p must be above 0 and at most 1, not 0.0"),
    (2, "embedded", "--model {work}/endless", r"has no end token, so answers would never end; set eos_token_id"),
    (2, "embedded", "--max-tokens 2040", r"exceeds the context of 2048 tokens; lower --max-tokens"),
]


@pytest.mark.parametrize(("code", "task", "options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_is_one_sentence_before_anything_is_sampled(
    work: Path, tmp_path: Path, code: int, task: str, options: str, message: str
) -> None:
    command = ("evaluate", "--model", "embedded", "--task", task.format(work=work), *SAMPLE, "--out", tmp_path / "new")
    refused = skillbasis(*command, *options.format(work=work).split())
    assert (refused.code, refused.out) == (code, "") and re.search(message, refused.err), refused.err
    assert not list(tmp_path.iterdir())


def test_diff_refuses_what_cannot_be_compared(work: Path, tmp_path: Path) -> None:
    done("evaluate", "--model", "embedded", "--task", work / "sums.jsonl", *SAMPLE, "--out", tmp_path / "sums")
    for arguments, message in [
        ((work / "a", work / "nothing"), r"nothing does not exist; give an evaluation directory"),
        ((work / "a", work / "data"), r"data holds no results that can be read \(amc23\); give an"),
        (
            (work / "a", work / "b", "--task", "other"),
            r"there is no task 'other'; .*a has embedded:test",
        ),
        ((work / "a", work / "b", "--metric", "acc"), r"other tools' results only"),
        ((work / "a", tmp_path / "sums"), r"no problem of task embedded:test in common: their ids differ"),
    ]:
        refused = skillbasis("diff", *arguments)
        assert refused.code in (1, 2) and re.search(message, refused.err), refused.err
        assert len(refused.err.splitlines()) == 1


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Forty rows, of which the third holds a problem of the task beside it, written otherwise."""
    problem = "Ana buys 7 red pencils and 12 blue ones, gives 5 away and loses 3. How many pencils are left?"
    jsonl(tmp_path / "task.jsonl", [{"id": "t0", "problem": problem, "answer": "11"}])
    rows = [{"id": f"r{i}", "prompt": f"What is {i} times {i + 1}?", "response": f"{i * i + i}"} for i in range(40)]
    rows[2]["prompt"] = f"A riddle!  {problem.upper().replace(',', ' ,')}"
    return jsonl(tmp_path / "rows.jsonl", rows)


def test_select_leaves_out_rows_that_hold_evaluation_problems(leaky: Path, tmp_path: Path) -> None:
    def chosen(*options: str | Path) -> tuple[set[str], Any, str]:
        out = tmp_path / "chosen.jsonl"
        shown = done("select", leaky, "--strategy", "random", "--budget", "39", "--out", out, *options)
        ids = {json.loads(line)["id"] for line in out.read_text().splitlines()}
        return ids, read_json(out.with_suffix(".json"))["overlap"], shown

    everything = {f"r{i}" for i in range(40)}
    ids, record, shown = chosen("--task", tmp_path / "task.jsonl")
    assert ids == everything - {"r2"} and "1 of 40 rows overlap with 1 evaluation problems" in shown
    assert "left out" in shown and (record["n_overlapping_rows"], record["kept"]) == (1, False)
    kept = [chosen("--task", tmp_path / "task.jsonl", "--keep-overlap", "--seed", str(seed)) for seed in range(8)]
    assert any("r2" in ids for ids, _, _ in kept) and all(record["kept"] for _, record, _ in kept)
    _, record, shown = chosen()
    assert record is None and "not searched for evaluation problems" in shown
    refused = skillbasis("select", leaky, "--strategy", "random", "--budget", "40", "--out", tmp_path / "x.jsonl",
                         "--task", tmp_path / "task.jsonl")  # fmt: skip
    assert refused.code == 2 and "the budget of 40 rows is above the pool of 39" in refused.err


def test_overlap_says_which_rows_and_where(leaky: Path, work: Path, tmp_path: Path) -> None:
    shown = done("overlap", leaky, "--task", tmp_path / "task.jsonl", "--out", tmp_path / "overlap.json")
    assert re.search(r"^r2: task.jsonl t0 \(text, 100% of its words\): ana buys 7 red pencils", shown, re.MULTILINE)
    (found,) = read_json(tmp_path / "overlap.json")["overlaps"]
    assert (found["id"], found["task"], found["problem_id"], found["kind"]) == ("r2", "task.jsonl", "t0", "text")
    assert "none of the 40 rows overlaps" in done("overlap", leaky, "--task-data", work / "data")
    for options, message in [
        ((), r"name the tasks to look for"),
        (("--task-data", tmp_path), r"none of the benchmarks"),
    ]:
        refused = skillbasis("overlap", leaky, *options)
        assert refused.code == 2 and re.search(message, refused.err)
