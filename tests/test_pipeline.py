"""A whole small run on the embedded reasoner: stages, resume after SIGKILL, and what a change redoes."""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from skillbasis.artifact import file_sha256, read_json, write_json
from skillbasis.errors import UsageError
from skillbasis.pipeline import run_recipe
from skillbasis.recipe import parse_recipe
from skillbasis.world.assets import pool_path

SAMPLING = {"rollouts": 2, "temperature": 0.8, "max_tokens": 40}
RECIPE: dict[str, Any] = {
    "model": "embedded",
    "corpus": {"source": "embedded", "limit": 300, "shuffle_seed": 0},
    "workers": 1,
    "activations": {"span": "response", "max_length": 256},
    "basis": {"k": 2},
    "training": {"preset": "embedded", "trainer": "lean", "epochs": 1},
    "probe": {
        "task": "embedded:validation",
        "n_problems": 16,
        "n_rows": 40,
        "n_random": 1,
        "n_seeds": 1,
        "n_finalists": 1,
        "n_repeats": 1,
        "sampling": SAMPLING,
    },
    "study": {
        "task": "embedded:test",
        "n_problems": 16,
        "arms": ["random", "human-balanced", "low-nll", "directions", "directions+likelihood"],
        "budget": 48,
        "seeds": [0, 1],
        "sampling": SAMPLING,
    },
    "steer": {
        "task": "embedded:validation",
        "n_problems": 16,
        "test_task": "embedded:test",
        "n_test_problems": 8,
        "alphas": [0.6],
        "n_random": 1,
        "n_controls": 2,
        "n_texts": 5,
        "sampling": SAMPLING,
    },
}


class Silent:
    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        yield lambda done, total, words: None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_recipe(parse_recipe(RECIPE, "test"), tmp_path_factory.mktemp("runs") / "whole", Silent())


def digests(run: Path) -> dict[str, str]:
    """Checksums of what must not depend on how often a run was interrupted (clocks are left out)."""
    names = ["activations/manifest.json", "activations/rows.parquet", "basis/basis.safetensors", "basis/config.json"]
    names += ["scores.parquet", "likelihood/likelihood.parquet", "interpret/directions.json", "steer/sweep.json"]
    names += [str(path.relative_to(run)) for path in sorted((run / "study" / "selections").glob("*"))]
    return {name: file_sha256(run / name) for name in names}


def outcome(run: Path) -> tuple[Any, Any]:
    arms = read_json(run / "study" / "summary.json")["arms"]
    probe = read_json(run / "probe" / "probe.json")
    return {arm: entry["pass@1"]["seeds"] for arm, entry in arms.items()}, (probe["ranking"], probe["chosen"])


def test_every_stage_leaves_its_artifact(finished: Path) -> None:
    stages = [stage["name"] for stage in read_json(finished / "run.json")["stages"]]
    before = ["corpus", "activations", "basis", "interpret", "overlap", "near-duplicates", "likelihood"]
    assert stages == [*before, "probe", "study", "steer"]
    summary = read_json(finished / "study" / "summary.json")
    assert set(summary["arms"]) == {"base", *RECIPE["study"]["arms"]}
    assert all(len(entry["pass@1"]["seeds"]) == 2 for entry in summary["arms"].values())
    assert {row["b"] for row in summary["paired"]} == {"random", "human-balanced", "low-nll"}
    sizes = {len(path.read_text().splitlines()) for path in (finished / "study" / "selections").glob("*.jsonl")}
    assert sizes == {48}
    sweep = read_json(finished / "steer" / "sweep.json")
    assert {(point["kind"], point["scope"]) for point in sweep["points"]} == {
        (kind, scope) for kind in ("direction", "random") for scope in ("last-prompt", "all")
    }
    assert all(point["damage"]["n_rows"] == 5 for point in sweep["points"])
    assert (sweep["test"] is None) == (sweep["winner"] is None)
    if sweep["test"] is not None:
        assert (sweep["test"]["n_problems"], len(sweep["test"]["controls"])) == (8, 2)
    assert not list(finished.rglob("*.partial")) and not list(finished.rglob("*.tmp"))


def test_study_figures_are_those_of_its_samples(finished: Path) -> None:
    """Counts pass@1 of one cell by hand from its samples."""
    import pyarrow.parquet as pq

    rows = pq.read_table(finished / "study/cells/random/1/samples.parquet").to_pylist()
    assert len(rows) == 32
    by_hand = sum(row["correct"] for row in rows) / len(rows)
    seeds = read_json(finished / "study" / "summary.json")["arms"]["random"]["pass@1"]["seeds"]
    assert seeds[1] == pytest.approx(by_hand)


def test_arms_train_on_what_was_selected_and_hidden_columns_choose_nothing(finished: Path) -> None:
    chosen = [json.loads(line) for line in (finished / "study/selections/directions-0.jsonl").read_text().splitlines()]
    name = read_json(finished / "probe" / "probe.json")["chosen"][0]
    assert {(row["_selection"]["direction"], row["_selection"]["sign"]) for row in chosen} == {(int(name[0]), name[1])}
    how = read_json(finished / "study/selections/directions-0.json")
    assert not any("hidden" in key for key in how)


def test_rows_that_hold_test_problems_are_not_trained_on(tmp_path: Path) -> None:
    from skillbasis.evaluate.tasks import load_task

    task = load_task("embedded", limit=8)
    with gzip.open(pool_path(), "rt") as pool:
        rows = [json.loads(line) for line in islice(pool, 64)]
    for number, problem in zip((3, 40), task.problems, strict=False):
        rows[number]["problem"] = problem.prompt[0]["content"].upper()
    corpus = tmp_path / "leaky.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = {"task": "embedded", "arms": ["random"], "budget": 62, "seeds": [0], "n_problems": 4}
    study |= {"sampling": {"rollouts": 1, "max_tokens": 8}}
    training = {"preset": "embedded", "trainer": "lean", "epochs": 1}
    recipe = {"model": "embedded", "corpus": str(corpus), "study": study, "training": training, "workers": 1}
    recipe |= {"basis": {"k": 2}, "activations": {"max_length": 128}}
    run_recipe(parse_recipe(recipe, "test"), tmp_path / "run", Silent())
    (selection,) = (tmp_path / "run" / "study" / "selections").glob("*.jsonl")
    chosen = {json.loads(line)["id"] for line in selection.read_text().splitlines()}
    assert chosen == {row["id"] for row in rows} - {rows[3]["id"], rows[40]["id"]}
    assert "2 of 64 rows overlap" in " ".join(read_json(tmp_path / "run" / "run.json")["warnings"])
    study["budget"] = 63
    with pytest.raises(UsageError, match="study.budget is 63 rows, but 62 are left without those that overlap"):
        run_recipe(parse_recipe(recipe, "test"), tmp_path / "run", Silent())


def test_the_same_call_does_nothing_again(finished: Path) -> None:
    before = digests(finished)
    started = time.perf_counter()
    run_recipe(parse_recipe(RECIPE, "test"), finished, Silent())
    assert time.perf_counter() - started < 8
    assert digests(finished) == before
    stages = {stage["name"]: stage["reused"] for stage in read_json(finished / "run.json")["stages"]}
    assert all(reused for name, reused in stages.items() if name != "corpus"), stages


def test_a_change_redoes_what_depends_on_it_and_no_more(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    changed = RECIPE | {"study": RECIPE["study"] | {"seeds": [0]}}
    run_recipe(parse_recipe(changed, "test"), copy, Silent())
    stages = {stage["name"]: stage["reused"] for stage in read_json(copy / "run.json")["stages"]}
    assert [name for name, reused in stages.items() if not reused] == ["corpus", "study"]


def test_a_basis_of_an_interrupted_change_is_not_taken_for_the_old_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another k stops between its basis and its description; the first recipe must then find its own basis again."""
    import shutil

    from skillbasis import reading_stages
    from skillbasis.basis import SkillBasis

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reading_stages, "describe_basis", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(parse_recipe(RECIPE | {"basis": {"k": 3}}, "test"), copy, Silent())
    assert SkillBasis.load(copy / "basis").n_components == 3
    run_recipe(parse_recipe(RECIPE, "test"), copy, Silent())
    assert digests(copy) == digests(finished)


def test_killed_at_several_moments_the_same_command_ends_the_same(finished: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-c", "from skillbasis.cli import main; main()", "run", str(recipe), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waits = ["activations.partial", "probe.partial/pilots/0+/0", "study.partial/cells/random/0", "steer.partial"]
    for wait in waits:  # kill once each of these is there: mid-extraction, mid-probe, mid-study, mid-sweep
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and not (out / wait).exists():
            assert time.monotonic() < deadline, f"{wait} never came"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "report.html").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(finished)
    assert outcome(out) == outcome(finished)
    assert (out / "report.html").stat().st_size < 8_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": RECIPE["study"] | {"budget": 301}}, "study.budget is 301, above the pool of 300 rows"),
        ({"study": RECIPE["study"] | {"arms": ["randon"]}}, r"unknown strategy 'randon' \(did you mean 'random'\?\)"),
        (
            {"probe": RECIPE["probe"] | {"task": "embedded"}, "steer": None},
            "400 of 400 problems of 'embedded:test', which the study reports on, are in 'embedded:test'",
        ),
        ({"selection": {"validation": "embedded"}}, "400 of 400 problems of 'embedded:test', which the study reports"),
        (
            {"study": RECIPE["study"] | {"task": ["embedded:pool", "embedded:validation"]}},
            "240 of 240 problems of 'emb",
        ),
        (
            {
                "probe": None,
                "steer": None,
                "study": RECIPE["study"] | {"directions": ["0+"], "arms": ["native"]},
                "contest": {"task": "embedded:test"},
            },
            "are in 'embedded:test' too, which chooses; directions and arms must be chosen on other problems",
        ),
        ({"probe": None, "steer": None}, "study needs directions"),
        (
            {"probe": None, "steer": None, "study": RECIPE["study"] | {"directions": ["0+"], "arms": ["native"]}},
            "the arm native is chosen on validation problems: give contest.task, or a probe block",
        ),
        ({"study": RECIPE["study"] | {"match": "length"}}, "study.match names 'length', which is no arm of the study"),
        ({"study": RECIPE["study"] | {"match": "native"}}, "study.match names 'native', which is no arm of the study"),
        (
            {"study": RECIPE["study"] | {"arms": ["native"]}, "contest": {"arms": ["low-nl"]}},
            r"unknown strategy 'low-nl' \(did you mean 'low-nll'\?\)",
        ),
        (
            {"study": RECIPE["study"] | {"arms": ["native"]}, "contest": {"arms": ["random"]}},
            "random is the control of every contest",
        ),
        (
            {"study": RECIPE["study"] | {"arms": ["native", "native"]}},
            "arms and the seeds of a study must be different",
        ),
        ({"study": RECIPE["study"] | {"arms": ["rft", "rft"]}}, "arms and the seeds of a study must be different"),
        ({"study": RECIPE["study"] | {"budget": [48, 301]}}, "study.budget is 301, above the pool of 300 rows"),
        (
            {"probe": RECIPE["probe"] | {"n_rows": 48}},
            "seed 0 is one of the study and of pilots of the same 48 rows.*give study.seeds above 1",
        ),
        ({"selection": {"quotas": [1, 2]}}, "selection.quotas has 2 shares for 1 directions; give one for each"),
        ({"training": RECIPE["training"] | {"batch_size": 5}}, "batch_size 5 is no multiple of micro_batch_size"),
        ({"study": RECIPE["study"] | {"directions": ["7+"]}}, r"study.directions names 7\+, but the basis has 0 to 1"),
        ({"probe": RECIPE["probe"] | {"kind": "steer", "scope": "last"}}, "unknown scope 'last'"),
        ({"probe": RECIPE["probe"] | {"kind": "steer", "blocks": [0]}}, "probe.blocks names block 0, but the basis"),
        ({"probe": RECIPE["probe"] | {"n_chosen": 2}}, "1 finalists cannot give 2 chosen directions"),
        ({"probe": RECIPE["probe"] | {"task": "embeded"}}, r"unknown task 'embeded' \(did you mean 'embedded'\?\)"),
        ({"steer": RECIPE["steer"] | {"alphas": [0.0]}}, "alpha 0 steers nothing"),
        ({"steer": RECIPE["steer"] | {"scopes": ["promt"]}}, r"unknown scope 'promt' \(did you mean 'prompt'\?\)"),
        ({"steer": RECIPE["steer"] | {"metric": "pass@4"}}, "metric 'pass@4' is not measured with 2 rollouts"),
        ({"steer": RECIPE["steer"] | {"target": "pattern:("}}, "regular expression"),
        ({"steer": RECIPE["steer"] | {"directions": ["1+", "1+"]}}, "steer.directions names one twice"),
        ({"steer": RECIPE["steer"] | {"test_task": "embedded:validation"}}, "8 of 8 problems of the test task"),
        (
            {"steer": RECIPE["steer"] | {"task": "embedded:test", "n_problems": 4, "test_task": "embedded:validation"}},
            "8 of 8 problems of the test task 'embedded:validation' are in the task 'embedded:validation'",
        ),
        ({"model": "./no-such-model"}, "model directory ./no-such-model does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_stage(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run_recipe(parse_recipe(RECIPE | change, "test"), tmp_path / "run", Silent())
    assert not (tmp_path / "run" / "activations").exists()


# Ways of selecting

SHORT = {"rollouts": 1, "temperature": 0.8, "max_tokens": 24}
SELECTION: dict[str, Any] = {key: RECIPE[key] for key in ("model", "workers", "activations", "basis", "training")}
SELECTION |= {
    "selection": {"rounds": 2, "own_rows": 120, "own_sampling": SHORT, "validation_sampling": SHORT},
    "contest": {
        "task": "embedded:validation",
        "n_problems": 8,
        "arms": ["directions+likelihood", "low-nll", "s1-like"],
        "n_random": 1,
        "n_seeds": 1,
        "n_finalists": 1,
        "n_repeats": 1,
        "sampling": SHORT,
    },
    "study": {
        "task": "embedded:test",
        "n_problems": 6,
        "arms": ["native", "rft", "random-length-matched", "deita", "weakness-rounds", "random"],
        "directions": ["0+"],
        "match": "native",
        "budget": [20, 30],
        "seeds": [0, 1],
        "sampling": SHORT,
    },
}
MEASURED = ["own answers", "validation answers", "likelihood"]


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run over 300 rows of which two hold a test problem and two are copies."""
    from skillbasis.evaluate.tasks import load_task

    folder = tmp_path_factory.mktemp("selected")
    with gzip.open(pool_path(), "rt") as pool:
        rows = [json.loads(line) for line in islice(pool, 300)]
    for number, problem in zip((3, 40), load_task("embedded", limit=8).problems, strict=False):
        rows[number]["problem"] = problem.prompt[0]["content"].upper()
    for number, copied in ((70, 10), (71, 11)):
        rows[number] |= {key: rows[copied][key] for key in ("problem", "solution", "answer")}
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    selection = SELECTION["selection"] | {"near_duplicates": 1.0}  # rows of a template are near each other
    recipe = SELECTION | {"corpus": str(folder / "pool.jsonl"), "selection": selection}
    return recipe, run_recipe(parse_recipe(recipe, "test"), folder / "run", Silent())


def selection(run: Path, study: str, arm: str, seed: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / study / "selections" / f"{arm}-{seed}.jsonl").read_text().splitlines()]


def test_all_ways_of_selecting_at_two_budgets(selected: tuple[dict[str, Any], Path]) -> None:
    recipe, run = selected
    record = read_json(run / "run.json")
    stages = [stage["name"] for stage in record["stages"]]
    assert stages[:6] == ["corpus", "activations", "basis", "interpret", "overlap", "near-duplicates"]
    assert sorted(stages[6:-4]) == sorted(MEASURED) and stages[-4:] == ["contest", "study", "contest-30", "study-30"]
    for study, budget in (("study", 20), ("study-30", 30)):
        summary = read_json(run / study / "summary.json")
        assert (summary["budget"], list(summary["arms"])) == (budget, ["base", *recipe["study"]["arms"]])
        assert summary["arms"].pop("deita")["status"] == "failed"
        assert {entry["status"] for entry in summary["arms"].values()} == {"done"}
        for arm in summary["arms"].keys() - {"base"}:
            for seed in (0, 1):
                rows = selection(run, study, arm, seed)
                assert len({row["id"] for row in rows}) == len(rows) == budget
                assert [row["_selection"]["rank"] for row in rows] == list(range(1, budget + 1))


def test_rows_that_overlap_or_come_twice_are_in_no_selection(selected: tuple[dict[str, Any], Path]) -> None:
    _, run = selected
    pool = [json.loads(line)["id"] for line in (run.parent / "pool.jsonl").read_text().splitlines()]
    twins = set(read_json(run / "near-duplicates" / "near_duplicates.json")["removed"])
    assert {pool[70], pool[71]} <= twins
    left_out = twins | {pool[3], pool[40]}
    for file in run.glob("study*/selections/*.jsonl"):
        assert not left_out & {json.loads(line)["id"] for line in file.read_text().splitlines()}
    words = read_json(run / "run.json")["warnings"]
    assert any("2 of 300 rows overlap" in text and "left out of probe and study" in text for text in words)
    assert any("exactly the same shingles; they are left out of probe, study and safety" in text for text in words)


def test_an_arm_without_its_evidence_is_a_hole_that_says_what_to_give(selected: tuple[dict[str, Any], Path]) -> None:
    _, run = selected
    summary = read_json(run / "study" / "summary.json")
    assert summary["arms"]["deita"]["reason"].startswith("this strategy needs a quality of every row; name the column")
    assert "deita failed: this strategy needs a quality" in summary["verdicts"]["deita"]
    warnings = read_json(run / "run.json")["warnings"]
    assert any(text.startswith("quality: ") and text.endswith("arms that need it are left out") for text in warnings)
    contest = read_json(run / "contest" / "contest.json")
    assert {entry["name"] for entry in contest["arms"] if entry["status"] == "done"} >= {"low-nll"}


def test_native_is_what_the_contest_chose_and_the_control_has_its_lengths(
    selected: tuple[dict[str, Any], Path],
) -> None:
    from skillbasis.corpus import load_corpus
    from skillbasis.evidence import count_tokens
    from skillbasis.lm import load_model

    _, run = selected
    tokens = count_tokens(load_corpus(run.parent / "pool.jsonl"), load_model("embedded"), 256)
    for study, contest in (("study", "contest"), ("study-30", "contest-30")):
        chosen = read_json(run / contest / "contest.json")["chosen"]
        how = read_json(run / study / "selections" / "native-0.json")
        assert (how["strategy"], how["arm"]) == (chosen["strategy"], "native")
        native = selection(run, study, "native", 0)
        assert {row["_selection"]["strategy"] for row in native} == {chosen["strategy"]}
        if chosen["strategy"] == "s1-like":
            continue
        lengths = [
            sum(tokens[row["id"]] for row in selection(run, study, arm, 0))
            for arm in ("native", "random-length-matched")
        ]
        assert abs(lengths[0] - lengths[1]) < 0.1 * lengths[0]


def test_own_answers_stand_in_place_of_the_rows_responses(selected: tuple[dict[str, Any], Path]) -> None:
    from skillbasis.evaluate.samples import read_samples

    _, run = selected
    right = {(r["problem_id"], r["response"]) for r in read_samples(run / "own-answers")["pool"] if r["correct"]}
    assert {(row["id"], row["response"]) for row in selection(run, "study-30", "rft", 1)} <= right


def test_the_curriculum_takes_its_rounds(selected: tuple[dict[str, Any], Path]) -> None:
    _, run = selected
    reasons = read_json(run / "study-30" / "selections" / "weakness-rounds-1.json")["reasons"]
    rounds = {name: sum(n for why, n in reasons.items() if why.startswith(name)) for name in ("round 1", "round 2")}
    assert rounds == {"round 1": 15, "round 2": 15}
    assert (run / "rounds-30" / "weakness-rounds" / "30-1" / "answers-1" / "samples" / "summary.json").exists()
    scored = run / "rounds-30" / "weakness-rounds" / "30-1" / "answers-1" / "activations" / "manifest.json"
    base = read_json(run / "activations" / "manifest.json")["weights_fingerprint"]
    assert read_json(scored)["weights_fingerprint"] == base, "the base reads what the trained model answers"


def test_every_cost_of_finding_the_rows_is_counted(selected: tuple[dict[str, Any], Path]) -> None:
    _, run = selected
    seconds = {stage["name"]: stage["seconds"] for stage in read_json(run / "run.json")["stages"]}
    arms = read_json(run / "study" / "summary.json")["arms"]
    spent = {arm: entry["selection_seconds"] for arm, entry in arms.items()}
    assert spent["rft"] >= seconds["own answers"] > 0
    assert spent["weakness-rounds"] >= seconds["activations"] + seconds["basis"] + seconds["validation answers"]
    assert spent["native"] >= seconds["contest"] + seconds["likelihood"] + seconds["own answers"]
    assert spent["random"] < 1


def test_a_second_run_measures_chooses_and_trains_nothing(selected: tuple[dict[str, Any], Path]) -> None:
    recipe, run = selected

    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(run.rglob("manifest.json"))}

    before = stamps()
    assert len(before) > 30
    run_recipe(parse_recipe(recipe, "test"), run, Silent())
    assert stamps() == before
    reused = {stage["name"]: stage["reused"] for stage in read_json(run / "run.json")["stages"]}
    assert all(reused[name] for name in reused if name != "corpus"), reused


def test_a_failed_cell_leaves_a_hole_that_is_shown(tmp_path: Path) -> None:
    """A learning rate that diverges fails its cells; the base is still measured and the reason is kept."""
    arms = ["random", "low-nll"]
    training = {"preset": "embedded", "trainer": "lean", "epochs": 3, "learning_rate": 1e36}
    changed = {key: RECIPE[key] for key in ("model", "corpus", "workers", "activations", "basis")}
    changed |= {"training": training, "study": RECIPE["study"] | {"arms": arms, "seeds": [0]}}
    run_recipe(parse_recipe(changed, "test"), tmp_path, Silent())
    summary = read_json(tmp_path / "study" / "summary.json")
    assert summary["arms"]["base"]["status"] == "done"
    assert summary["arms"]["random"]["status"] == "failed"
    assert "training diverged" in summary["arms"]["random"]["reason"]
    assert "failed" in summary["verdicts"]["low-nll"]


def test_failed_cells_are_tried_again_where_asked_for(tmp_path: Path) -> None:
    """A finished study whose cell failed is opened again; the cells that it has are kept."""
    changed = {key: RECIPE[key] for key in ("model", "corpus", "workers", "activations", "basis", "training")}
    changed |= {"study": RECIPE["study"] | {"arms": ["random", "human-balanced"], "seeds": [0]}}
    recipe, study = parse_recipe(changed, "test"), tmp_path / "study"
    run_recipe(recipe, tmp_path, Silent())
    whole, kept = read_json(study / "summary.json"), study / "cells" / "random" / "0" / "manifest.json"
    stamp = kept.stat().st_mtime_ns
    broken = copy.deepcopy(whole)
    broken["arms"]["human-balanced"] |= {"status": "failed", "reason": "out of memory"}
    write_json(study / "summary.json", broken)
    shutil.rmtree(study / "cells" / "human-balanced" / "0")

    run_recipe(recipe, tmp_path, Silent())
    assert read_json(study / "summary.json") == broken, "a finished study is left as it is"
    run_recipe(recipe, tmp_path, Silent(), retry_failed=True)
    again = read_json(study / "summary.json")
    assert again["arms"]["human-balanced"]["status"] == "done" and again["paired"] == whole["paired"]
    assert kept.stat().st_mtime_ns == stamp and not (tmp_path / "study.partial").exists()
    run_recipe(recipe, tmp_path, Silent(), retry_failed=True)
    assert read_json(study / "summary.json") == again, "nothing failed, so nothing is done"


def test_a_probe_by_steering_in_a_run(tmp_path: Path) -> None:
    block = RECIPE["probe"] | {"kind": "steer", "alpha": 0.5, "n_problems": 4}
    changes = {"probe": block, "study": None, "steer": None}
    run = run_recipe(parse_recipe(RECIPE | changes, "steered"), tmp_path / "run", Silent())
    probe = read_json(run / "probe" / "probe.json")
    assert (probe["kind"], probe["alpha"], len(probe["directions"])) == ("steer", 0.5, 4)
    assert len(list((run / "probe" / "steered").glob("*/*/samples.parquet"))) == probe["saved"]["cells"]
