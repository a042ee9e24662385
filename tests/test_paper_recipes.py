"""The recipes at the paper's scale: what they say, what they will cost, and each of them run whole on a tiny model."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from conftest import make_tokenizer
from scaled import SUBJECTS, Silent, keys, nemotron_rows, problems, scaled, taught, write_lines
from skillbasis.artifact import read_json
from skillbasis.cli import app
from skillbasis.corpus import load_corpus
from skillbasis.evaluate.problems.catalogue import BENCHMARKS
from skillbasis.evaluate.tasks import load_task
from skillbasis.flops import Device
from skillbasis.pipeline import _check_seeds, run_recipe
from skillbasis.plan import Plan, plan_recipe
from skillbasis.recipe import load_recipe, parse_recipe
from skillbasis.recipe_settings import training_settings

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
GRID = RECIPES / "sensitivity"
MAIN = {"llama": RECIPES / "llama3-8b-selection.yaml", "qwen2": RECIPES / "qwen2.5-3b-selection.yaml"}
ALL = [*MAIN.values(), *sorted(GRID.glob("*.yaml"))]
FAMILY = {path: family for family, path in MAIN.items()}


def raw(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


# What they say


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_the_settings_are_those_of_the_paper(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.study is not None and recipe.probe is not None
    training = training_settings(recipe.training)
    assert (training.learning_rate, training.epochs, training.warmup_fraction) == (5e-5, 1, 0.1)
    assert (training.micro_batch_size, training.accumulation_steps(1), training.max_length) == (2, 32, 8000)
    assert training.lora is None and training.bf16 and recipe.training.trainer == "trl"
    assert recipe.corpus.limit == 50_000 and recipe.activations.max_length == 8000
    assert (recipe.probe.n_rows, recipe.probe.sampling.rollouts, recipe.probe.sampling.temperature) == (1000, 8, 0.5)
    assert recipe.study.sampling.temperature == 1.0
    assert len(recipe.study.seeds) >= 5 and recipe.selection.near_duplicates == 0.8
    assert recipe.probe.task not in recipe.study.tasks and set(recipe.study.tasks) <= set(BENCHMARKS)


@pytest.mark.parametrize("family", MAIN)
def test_the_main_recipes_compare_what_there_is(family: str) -> None:
    recipe = load_recipe(MAIN[family])
    assert recipe.study is not None and recipe.study.budget == 25_000
    assert set(recipe.study.tasks) == {"math500", "gsm8k", "amc23", "aime24", "aime25", "olympiadbench", "minerva"}
    assert {"random", "low-nll", "low-nll+reread", "rft", "human-balanced", "human-weakness"} < set(recipe.study.arms)
    assert {"directions", "directions+likelihood", "directions+reread", "native"} < set(recipe.study.arms)
    assert recipe.selection.likelihood_share > 0.5  # else the budget takes all of it, and it is `directions`
    other = load_recipe(next(path for name, path in MAIN.items() if name != family))
    left_out = {"title", "model", "selection", "probe", "contest", "study"}  # answers are of another length
    assert recipe.model_dump(exclude=left_out) == other.model_dump(exclude=left_out)
    assert recipe.study.arms == other.study.arms  # type: ignore[union-attr]


CHANGED = {
    "layers": {"activations.layers"},
    "pooling": {"activations.pooling"},
    "k": {"basis.k"},
    "budgets": {"study.budget"},
}


def flat(value: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {place: value}
    return {name: one for key, inner in value.items() for name, one in flat(inner, f"{place}.{key}".strip(".")).items()}


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_recipe_reports_on_its_pilots(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.study is not None
    _check_seeds(recipe, recipe.study)  # else the run is refused


@pytest.mark.parametrize("path", sorted(set(GRID.glob("*.yaml")) - {GRID / "base.yaml"}), ids=name_of)
def test_every_variant_of_the_grid_changes_one_thing(path: Path) -> None:
    base, own = flat(raw(GRID / "base.yaml")), flat(raw(path))
    assert base.keys() == own.keys()
    differing = {key for key in base if base[key] != own[key]} - {"title", "study.arms"}
    assert differing == CHANGED[path.stem.split("-")[0]]
    assert {"random", "directions", "directions+likelihood"} <= {
        arm if isinstance(arm, str) else arm["strategy"] for arm in own["study.arms"]
    }


def test_the_grid_is_whole() -> None:
    settings = [flat(raw(path)) for path in GRID.glob("*.yaml")]
    assert {one["activations.layers"] for one in settings} == {"inner", "1-11", "12-23", "24-34", "18"}
    assert {one["activations.pooling"] for one in settings} == {"mean", "last", "max"}
    assert {one["basis.k"] for one in settings} == {8, 10, 16, 32}
    budgets = [one["study.budget"] for one in settings]
    assert [10000, 5000, 1000] in budgets and 25000 in budgets


@pytest.mark.parametrize("path", [*MAIN.values(), GRID / "base.yaml"], ids=name_of)
def test_the_commands_of_the_head_exist(path: Path) -> None:
    head = re.findall(r"^# +(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line for line in head if line.startswith(("skillbasis ", "python "))]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(re.split(r" {4,}", line)[0])
        assert all((RECIPES.parent / word).exists() for word in words if word.startswith("recipes/"))
        if words[0] == "skillbasis":
            shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0 and all(word in shown.output for word in words if word.startswith("--"))


# The files they read


def paper_data() -> Any:
    spec = importlib.util.spec_from_file_location("paper_data", RECIPES / "paper_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_made_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    words = {"algebra": "solve for the unknown x", "geometry": "area of a triangle", "number_theory": "prime divisor"}
    rows = []
    for i in range(60):
        subject = list(words.values())[i % 3]
        rows.append({"input": [{"role": "user", "content": f"{subject} {i}"}], "output": f"so \\boxed{{{i}}}"})
    rows[5]["output"], rows[7]["output"] = "  ", "no box here"
    rows.append(dict(rows[0]))
    rows = [row | {"category": "math", "system_prompt": "detailed thinking on"} for row in rows]
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str, *, split: str, streaming: bool = False) -> Any:
        asked.append((name, config, split, streaming))
        if name == "nvidia/Llama-Nemotron-Post-Training-Dataset":
            return datasets.Dataset.from_list(rows).to_iterable_dataset()
        problem = words.get(config, "something else")
        return datasets.Dataset.from_list(
            [
                {
                    "problem": f"{problem} {i}" + (", one of them" if i == 9 else ""),
                    "solution": "none" if i == 8 else f"\\boxed{{{i}}}" + ("\\boxed{3}" if i == 9 else ""),
                    "level": "Level 2",
                    "type": config.replace("_", " ").title(),
                }
                for i in range(10)
            ]
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    paper_data().main(["--out", str(tmp_path), "--rows", "50", "--problems", "12"])
    assert asked[-1] == ("nvidia/Llama-Nemotron-Post-Training-Dataset", "SFT", "math", True)
    assert [entry[:3] for entry in asked[:-1]] == [
        ("EleutherAI/hendrycks_math", config, "train") for config in BENCHMARKS["math"].configs
    ]
    with gzip.open(tmp_path / "pool.jsonl.gz", "rt") as lines:
        pool = [json.loads(line) for line in lines]
    texts = [(row["input"][0]["content"], row["output"]) for row in pool]
    assert len(pool) == len(set(texts)) == 50 and all(output.strip() for _, output in texts)
    assert texts != sorted(texts) and not any("system_prompt" in row for row in pool)
    for row in pool:
        question, number = row["input"][0]["content"].rsplit(" ", 1)
        assert row["answer"] == (None if number == "7" else number)
        assert row["subject"] == {text: name.replace("_", " ").title() for name, text in words.items()}[question]
    corpus = load_corpus(tmp_path / "pool.jsonl.gz", format="llama-nemotron", label_column="subject")
    assert len(corpus) == 50 and all(len(labels) == 1 for labels in corpus.rows["labels"])
    task = load_task(str(tmp_path / "validation.jsonl"))
    assert len(task.problems) == 12 and all(problem.group and problem.level == "2" for problem in task.problems)
    query = load_corpus(tmp_path / "validation.jsonl")  # what rds+ looks for
    assert all("boxed" in response for response in query.rows["response"])


# What they cost


def real_shapes(family: str) -> Any:
    import transformers as hf

    if family == "llama":
        return hf.LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            dtype="bfloat16",
        )
    return hf.Qwen2Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[Path, str], Plan]:
    """Plans a recipe as it stands on a model of the real shapes, without weights, and a pool of rows of 8,000 tokens
    at most."""

    def make(path: Path, gpu: str) -> Plan:
        real_shapes(FAMILY.get(path, "qwen2")).save_pretrained(tmp_path / "model")
        make_tokenizer(chat=True).save_pretrained(tmp_path / "model")
        rows = nemotron_rows(30)
        rows[3]["output"] += " and two" * 9000
        recipe = raw(path)
        recipe["model"] = str(tmp_path / "model")
        recipe["corpus"]["source"] = str(write_lines(tmp_path / "pool.jsonl", rows))
        validation = str(write_lines(tmp_path / "validation.jsonl", problems("validation", 300)))
        for block, key in (("probe", "task"), ("contest", "task"), ("selection", "query")):
            if key in recipe.get(block, {}):
                recipe[block][key] = validation
        recipe["study"]["task"] = [
            str(write_lines(tmp_path / f"{name}.jsonl", problems(name, BENCHMARKS[name].n_problems)))
            for name in recipe["study"]["task"]
        ]
        return plan_recipe(parse_recipe(recipe, path.name), Device(gpu))

    return make


def memory_gib(made: Plan) -> dict[str, float]:
    return {item.stage: item.bytes / 2**30 for item in made.memory}


def test_what_the_head_of_the_llama_recipe_says_of_its_cost_is_so(planned: Callable[[Path, str], Plan]) -> None:
    made = planned(MAIN["llama"], "B200")
    stages = {stage.name: stage for stage in made.stages}
    assert made.n_parameters == 8_030_261_248 and made.block_ids == tuple(range(1, 31))
    assert made.tokens.longest_training == 8000
    assert stages["probe: training"].note.startswith("40 fine-tunes x 1,000 rows x 1 epoch")
    assert stages["contest: training"].note.startswith("21 fine-tunes x 25,000 rows")
    assert stages["study: training"].note.startswith("80 fine-tunes x 25,000 rows")
    assert stages["study: answering"].note.startswith("85 x 1,872 problems x 4 answers of 6,144 tokens")
    assert stages["own answers"].note.startswith("1 x 30 problems x 2 answers")
    assert memory_gib(made)["study: training"] == pytest.approx(180, abs=5)
    assert all(memory.fits for memory in made.memory)
    logits = next(item.parts["logits"] for item in made.memory if item.stage == "likelihood")
    assert logits == 8192 * 128_256 * 10  # the batches of measure_likelihood, not the recipe's 32,768 tokens
    kept = {item.what: item.bytes for item in made.disk}["fine-tuned models"]
    assert kept == 141 * 2 * made.n_parameters == pytest.approx(2.3e12, rel=0.02)
    # of this pool, that is: nothing else stands against the recipe
    assert [warning.split(",")[0] for warning in made.warnings] == ["probe takes 1", "study takes 25"]
    # 4,000 tokens a row, some 260 hours: 102 fine-tunes of 25,000 rows and 40 of 1,000, by hand, and what answers take
    flops = (103 * 25_000 + 40 * 1000) * 4000 * 8.03e9 * 8
    assert Device("B200").hours(flops) == pytest.approx(260, rel=0.25)


def test_what_the_head_of_the_qwen_recipe_says_of_its_cost_is_so(planned: Callable[[Path, str], Plan]) -> None:
    made = planned(MAIN["qwen2"], "H200")
    assert made.n_parameters == 3_085_938_688 and made.block_ids == tuple(range(1, 35))
    assert all(memory.fits for memory in made.memory)
    assert {item.what: item.bytes for item in made.disk}["fine-tuned models"] == pytest.approx(0.9e12, rel=0.05)
    assert [warning.split(",")[0] for warning in made.warnings] == ["probe takes 1", "study takes 25"]


@pytest.mark.parametrize("path", sorted(GRID.glob("*.yaml")), ids=name_of)
def test_the_grid_is_planned(path: Path, planned: Callable[[Path, str], Plan]) -> None:
    made = planned(path, "H200")
    layers = {"layers-early": (1, 11), "layers-middle": (12, 23), "layers-late": (24, 34), "layers-single": (18, 18)}
    first, last = layers.get(path.stem, (1, 34))
    assert made.block_ids == tuple(range(first, last + 1))
    assert all(memory.fits for memory in made.memory) and all(stage.hours > 0 for stage in made.stages)


# Run whole


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("taught")

    def path(family: str) -> Path:
        return folder / family if (folder / family).exists() else taught(family, folder / family)

    return path


def run_small(recipe: dict[str, Any], folder: Path) -> Path:
    return run_recipe(parse_recipe(recipe | {"workers": 1}, "small"), folder / "run", Silent())


def check_study(run: Path, recipe: dict[str, Any], holes: dict[str, str] | None = None) -> None:
    """Every arm is done at every budget, but for the holes that are expected: arm -> words of the reason."""
    budgets = recipe["study"]["budget"]
    budgets = [budgets] if isinstance(budgets, int) else budgets
    names = [arm if isinstance(arm, str) else arm["name"] for arm in recipe["study"]["arms"]]
    tasks = {Path(task).name for task in recipe["study"]["task"]}
    for number, budget in enumerate(budgets):
        summary = read_json(run / ("study" if number == 0 else f"study-{budget}") / "summary.json")
        assert (summary["budget"], set(summary["arms"]), set(summary["tasks"])) == (budget, {"base", *names}, tasks)
        for arm, entry in summary["arms"].items():
            if arm in (holes or {}):
                assert entry["status"] == "failed" and (holes or {})[arm] in entry["reason"]
            else:
                assert entry["status"] == "done", (arm, entry["reason"])
                assert arm == "base" or entry["n_rows"] == budget
        assert any(row["b"] == "random" for row in summary["paired"])
        assert (run / ("study" if number == 0 else f"study-{budget}") / "summary.md").exists()


def test_a_scaled_recipe_keeps_every_key(tmp_path: Path) -> None:
    for path in ALL:
        assert keys(scaled(raw(path), tmp_path / "m", tmp_path)) == keys(raw(path))
    assert {row["subject"] for row in nemotron_rows(6)} == set(SUBJECTS)


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_a_main_recipe_runs_with_few_arms(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = scaled(raw(MAIN[family]), tiny(family), tmp_path)
    recipe["study"]["arms"] = ["random", "rft", "rds+", "human-weakness", "native"]
    recipe["study"]["task"] = recipe["study"]["task"][:1]
    recipe["contest"]["arms"] = ["directions+likelihood", "low-nll"]
    once = {"n_random": 1, "n_seeds": 1, "n_finalists": 1, "n_repeats": 1}
    recipe["probe"] |= once
    recipe["contest"] |= once
    run = run_small(recipe, tmp_path)
    check_study(run, recipe)
    stages = [stage["name"] for stage in read_json(run / "run.json")["stages"]]
    assert stages == [
        *("corpus", "activations", "basis", "interpret", "overlap", "near-duplicates", "likelihood", "own answers"),
        *("validation answers", "query vectors", "probe", "contest", "study"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", MAIN)
def test_a_main_recipe_runs_whole(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = scaled(raw(MAIN[family]), tiny(family), tmp_path)
    run = run_small(recipe, tmp_path)
    check_study(run, recipe)
    # the contest may fall back to a control, which is said
    assert all(warning.startswith("contest at 12 rows") for warning in read_json(run / "run.json")["warnings"])
    how = read_json(run / "study" / "selections" / "directions+likelihood-0.json")
    assert how["likelihood_share"] == 0.75


@pytest.mark.slow
def test_a_main_recipe_trains_with_trl_as_it_says(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = scaled(raw(MAIN["llama"]), tiny("llama"), tmp_path)
    recipe["training"] = raw(MAIN["llama"])["training"]
    recipe["study"]["arms"] = ["random", "low-nll+reread", "directions"]
    recipe["study"]["task"] = recipe["study"]["task"][:1]
    recipe["study"]["match"] = None
    run = run_small(recipe, tmp_path)
    check_study(run, recipe)
    assert (run / "study" / "cells" / "directions" / "1" / "model" / "model.safetensors").exists()
    assert not (run / "reread-by-likelihood" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(GRID.glob("*.yaml")), ids=name_of)
def test_the_grid_runs_whole(path: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = scaled(raw(path), tiny("qwen2"), tmp_path)
    run = run_small(recipe, tmp_path)
    check_study(run, recipe)
    assert read_json(run / "basis" / "config.json")["pooling"] == recipe["activations"]["pooling"]
