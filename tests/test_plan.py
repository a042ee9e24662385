"""The plan held against what a run then does: tokens and bytes of real extractions, counts of real cells."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import HIDDEN, N_BLOCKS
from scaled import Silent, nemotron_rows, problems, write_lines
from skillbasis import cli, contest, curriculum, evidence, pipeline, reading_stages
from skillbasis import probe as probing
from skillbasis import study as studying
from skillbasis.activations import ExtractionSettings, extract
from skillbasis.activations.settings import ReadingPlan
from skillbasis.artifact import read_json
from skillbasis.basis import Scores, sensitivity
from skillbasis.cells import Cell, CellSettings
from skillbasis.corpus import Corpus
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.evaluate.likelihood import measure_likelihood
from skillbasis.evaluate.run import evaluate
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.evaluate.tasks import Asking
from skillbasis.flops import Device, decoder_cost
from skillbasis.lm import LanguageModel
from skillbasis.plan import Plan, Stage, plan_extraction, plan_recipe, token_count, workload
from skillbasis.plan.token_count import count_tokens
from skillbasis.recipe import Recipe, load_recipe, parse_recipe
from skillbasis.select import Candidates
from skillbasis.train import fine_tuned
from skillbasis.train.settings import PRESETS
from skillbasis.world.assets import demo_recipe_path, pool_path

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
MakeCorpus = Callable[[list[tuple[str, str]]], Corpus]
DEVICE = Device()


def sums(n_rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Rows of very different lengths, no two alike."""
    draw = random.Random(seed)
    return [
        (f"what is {i} and {draw.randint(0, 99)}?", " and ".join(["three"] * (1 + draw.randint(0, 4) ** 2)))
        for i in range(n_rows)
    ]


# Tokens and bytes


@pytest.mark.parametrize(
    ("family", "chat", "settings"),
    [
        ("llama", False, ExtractionSettings()),
        ("llama", True, ExtractionSettings(max_length=40)),
        ("gpt2", False, ExtractionSettings(span="response", max_length=45)),
        ("qwen2", True, ExtractionSettings(span="prompt", max_length=8000)),  # the context of 256 cuts earlier
    ],
)
def test_tokens_are_those_that_extraction_reads(
    loaded: Callable[..., LanguageModel],
    model_path: Callable[..., Path],
    make_corpus: MakeCorpus,
    tmp_path: Path,
    family: str,
    chat: bool,
    settings: ExtractionSettings,
) -> None:
    corpus = make_corpus([*sums(40), ("long?", "two and three " * 200)])
    store = extract(corpus, loaded(family, chat=chat), tmp_path / "acts", settings)
    told: list[tuple[int, int, int]] = []
    made = plan_extraction(
        corpus, str(model_path(family, chat=chat)), settings, DEVICE, on_rows=lambda *counts: told.append(counts)
    )
    tokens = made.tokens
    assert (tokens.n_rows, tokens.n_counted) == (41, 41)
    assert tokens.n_tokens == tokens.low == tokens.high == store.manifest["n_tokens"]
    assert tokens.n_truncated == store.manifest["n_truncated"] >= 1
    assert (list(made.block_ids), made.max_length) == (store.block_ids, store.manifest["max_length"])
    assert tokens.longest == made.max_length
    assert (tokens.n_without_span, tokens.first_without_span) == (0, None)
    assert told[-1] == (41, 41, tokens.n_tokens)


def test_what_training_reads_is_counted_beside_it(
    loaded: Callable[..., LanguageModel], make_corpus: MakeCorpus
) -> None:
    corpus, lm = make_corpus(sums(30)), loaded("llama")
    reading = ReadingPlan((1, 2), "mean", "all", 25, 8192)
    whole = count_tokens(corpus, lm.tokenizer, replace(reading, max_length=1000))
    both = count_tokens(corpus, lm.tokenizer, reading, training_length=1000)
    alone = count_tokens(corpus, lm.tokenizer, reading)
    same = ("n_tokens", "n_pairs", "n_truncated", "longest", "n_without_span", "table_bytes")
    assert all(getattr(both, name) == getattr(alone, name) for name in same)
    assert alone.n_truncated > 0 and whole.n_truncated == 0
    assert both.training_tokens == pytest.approx(whole.n_tokens / 30 + 1)  # each with its end token
    assert both.training_pairs > both.training_tokens**2
    assert both.longest_training == whole.longest + 1
    assert count_tokens(corpus, lm.tokenizer, reading, training_length=20).longest_training == 20


def test_rows_without_a_token_to_pool_are_found(model_path: Callable[..., Path], make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([("so?", "two"), ("two and three " * 30, "three"), ("and?", "three")])
    settings = ExtractionSettings(span="response", max_length=30)
    made = plan_extraction(corpus, str(model_path("llama")), settings, DEVICE)
    assert (made.tokens.n_without_span, made.tokens.first_without_span) == (1, "row-1")
    assert made.warnings[0].startswith("1 rows have no token in the span 'response', such as 'row-1': extraction stops")


@pytest.mark.parametrize("layers", ["all", "1"])
def test_disk_is_that_of_the_real_directory(
    loaded: Callable[..., LanguageModel],
    model_path: Callable[..., Path],
    make_corpus: MakeCorpus,
    tmp_path: Path,
    layers: str,
) -> None:
    corpus = make_corpus([(f"{i}?", str(i)) for i in range(2500)])
    settings = ExtractionSettings(layers=layers)
    extract(corpus, loaded("llama"), tmp_path / "acts", settings)
    real = sum(file.stat().st_size for file in (tmp_path / "acts").iterdir())
    made = plan_extraction(corpus, str(model_path("llama")), settings, DEVICE)
    sizes = {item.what: item.bytes for item in made.disk}
    n_features = HIDDEN * (N_BLOCKS if layers == "all" else 1)
    assert sizes["activations"] == 2500 * n_features * 4
    assert sizes["activations"] + sizes["rows.parquet"] == pytest.approx(real, rel=0.01)
    assert sizes["instead of both, streamed"] == 32 * n_features**2


def test_a_large_corpus_is_sampled_and_the_interval_covers_the_truth(
    loaded: Callable[..., LanguageModel], make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tokenizer = make_corpus(sums(1200)), loaded("llama").tokenizer
    reading = ReadingPlan((1, 2), "mean", "all", 60, 8192)
    truth = count_tokens(corpus, tokenizer, reading)
    monkeypatch.setattr(token_count, "COUNTED_ROWS", 300)
    counts = [count_tokens(corpus, tokenizer, reading, seed=seed) for seed in range(3)]
    assert counts[0] == count_tokens(corpus, tokenizer, reading, seed=0)
    assert len({count.n_tokens for count in counts}) == 3
    for count in counts:
        assert (count.n_rows, count.n_counted) == (1200, 300)
        assert count.low < truth.n_tokens < count.high
        assert count.n_tokens == pytest.approx((count.low + count.high) / 2)
        assert 0.01 < (count.high - count.low) / count.n_tokens < 0.15
        assert count.n_pairs == pytest.approx(truth.n_pairs, rel=0.2)
        assert count.n_truncated == pytest.approx(truth.n_truncated, rel=0.4)
        assert count.table_bytes == pytest.approx(truth.table_bytes, rel=0.3)


def test_the_interval_of_a_total_holds_what_it_says() -> None:
    rng = np.random.default_rng(0)
    population = rng.lognormal(5, 0.7, 1000)
    covered = 0
    for _ in range(1000):
        low, high = token_count._interval_of_total(rng.choice(population, 400, replace=False), 1000)
        covered += low < population.sum() < high
    assert 0.92 < covered / 1000 < 0.975  # 95 %; without the correction for 400 of 1000 rows it would be above 0.985
    assert token_count._interval_of_total(population, 1000) == (population.mean() * 1000,) * 2
    # by hand: mean 2, sd 1, n 3 of 12: se = 12 x 1 x sqrt((1 - 3/12) / 3) = 6; t(0.975, 2) = 4.3027
    assert token_count._interval_of_total(np.array([1, 2, 3]), 12) == pytest.approx(
        (24 - 25.816, 24 + 25.816), abs=1e-3
    )


# Recipes


def recipe_file(folder: Path, **changes: Any) -> Path:
    """Writes a recipe with all stages; model and corpus are to be among the changes."""
    for name in ("validation", "test"):
        rows = [{"id": f"{name}-{i}", "problem": f"What is {i} and 1?", "answer": str(i + 1)} for i in range(5)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = {"rollouts": 4, "max_tokens": 30, "batch_size": 8}
    validation, test = str(folder / "validation.jsonl"), str(folder / "test.jsonl")
    recipe: dict[str, Any] = {
        "basis": {"k": 3},
        "training": {"preset": "reasoning", "epochs": 2},
        "probe": {"task": validation, "n_rows": 10, "n_finalists": 2, "sampling": sampling},
        "study": {
            "task": test,
            "n_problems": 3,
            "arms": ["random", "low-nll", "directions"],
            "budget": 20,
            "seeds": [0, 1],
            "sampling": sampling,
        },
        "steer": {"task": validation, "alphas": [0.1, 0.2], "scopes": ["all"], "n_random": 2, "sampling": sampling},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


@pytest.fixture
def planned(
    model_path: Callable[..., Path], make_corpus: MakeCorpus, tmp_path: Path
) -> Callable[..., tuple[Plan, dict[str, Stage]]]:
    """Plans a recipe on 50 rows and a tiny llama."""
    source = make_corpus(sums(50)).source

    def make(device: Device = DEVICE, **changes: Any) -> tuple[Plan, dict[str, Stage]]:
        changes = {"model": str(model_path("llama")), "corpus": source} | changes
        made = plan_recipe(load_recipe(recipe_file(tmp_path, **changes)), device)
        return made, {stage.name: stage for stage in made.stages}

    return make


def test_the_stages_of_a_recipe(planned: Callable[..., tuple[Plan, dict[str, Stage]]], loaded: Any) -> None:
    made, stages = planned()
    lm = loaded("llama")
    cost, tokens = decoder_cost(lm.model), made.tokens
    assert list(stages) == [
        *("extraction", "likelihood", "probe: training", "probe: answering"),
        *("study: training", "study: answering", "steer: answering"),
    ]
    assert stages["extraction"].forward_flops == cost.forward_flops(tokens.n_tokens, tokens.n_pairs, last_block=2)
    whole = cost.forward_flops(tokens.n_tokens, tokens.n_pairs, head_tokens=tokens.n_tokens)
    assert stages["likelihood"].forward_flops == whole > stages["extraction"].forward_flops
    # both signs of 3 directions, then 3 and 2 of the 6, 2 finalists twice more, 5 random pilots; 3 arms at 2 seeds
    for name, n_read in (("probe", (6 + 3 + 2 + 4 + 5) * 10 * 2), ("study", 6 * 20 * 2)):
        stage = stages[f"{name}: training"]
        assert stage.n_tokens == pytest.approx(n_read * tokens.training_tokens)
        forward = n_read * cost.forward_flops(tokens.training_tokens, tokens.training_pairs)
        forward += stage.n_tokens * cost.head_flops
        assert stage.forward_flops == pytest.approx(forward)
        assert stage.backward_flops == 2 * stage.forward_flops
        assert stage.recomputed_flops == stage.forward_flops  # trl checkpoints
        assert stage.hours == DEVICE.hours(4 * stage.forward_flops)
    # the untuned model answers beside the pilots, and at every seed of the study; steering has 1 + 2 x (1 + 2) points
    for name, n_times, n_problems in (("probe", 21, 5), ("study", 8, 3), ("steer", 7, 5)):
        texts = [f"What is {i} and 1?\n" for i in range(n_problems)]
        lengths = [len(lm.tokenizer(text)["input_ids"]) + 30 for text in texts]
        stage = stages[f"{name}: answering"]
        assert stage.n_tokens == 4 * n_times * sum(lengths)
        forward = sum(cost.forward_flops(n, n * n, head_tokens=30) for n in lengths)
        assert stage.forward_flops == pytest.approx(4 * n_times * forward)
        assert stage.backward_flops == 0
    assert "upper bound" in stages["steer: answering"].note


def test_as_many_cells_are_planned_as_are_run(
    planned: Callable[..., tuple[Plan, dict[str, Stage]]],
    make_corpus: MakeCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, stages = planned()
    corpus = make_corpus(sums(50))
    values = np.random.default_rng(0).normal(size=(50, 3))
    norms = np.linalg.norm(values, axis=1) + 1
    candidates = Candidates.of(corpus, Scores(list(corpus.ids), values, norms, norms))
    cells = CellSettings("m", "auto", ("embedded",), Asking(), None, SamplingSettings(), PRESETS["embedded"], "lean")
    ran: list[Cell] = []

    def stop(_out: Path, jobs: list[Cell], *_: Any, **__: Any) -> None:
        ran.extend(jobs)
        raise SkillbasisError("far enough")

    monkeypatch.setattr(probing, "run_cells", stop)
    monkeypatch.setattr(studying, "run_cells", stop)
    with pytest.raises(SkillbasisError, match="far enough"):
        probing.probe(tmp_path / "p", corpus, candidates, cells, "w", probing.ProbeSettings(n_rows=10, n_finalists=2))
    assert sum(cell.rows is not None for cell in ran) == 3 + 6  # later rungs and the finalists' repeats never came
    assert sum(cell.rows is None for cell in ran) == 1
    assert stages["probe: training"].note.startswith("20 fine-tunes x 10 rows x 2 epochs")
    assert stages["probe: training"].note.endswith("; halving: up to 27 where directions lie close together")
    assert stages["probe: answering"].note.startswith("21 x 5 problems")
    ran.clear()
    directed = replace(candidates, settings=replace(candidates.settings, directions=((0, "+"),)))
    arms = studying.StudySettings(("random", "directions"), 20, (0, 1))
    with pytest.raises(SkillbasisError, match="far enough"):
        studying.study(tmp_path / "s", corpus, directed, cells, "w", arms)
    assert [cell.rows is not None for cell in ran] == [True] * 2 * 2 + [False] * 2  # the recipe has three arms
    assert stages["study: training"].note.startswith("6 fine-tunes x 20 rows x 2 epochs")
    assert stages["study: answering"].note.startswith("8 x 3 problems")


EVERY_NEED = ["random", "ifd", "s1-like", "rds+", "weakness-rounds", "directions+reread", "low-nll+reread", "native"]


def scaled_recipe(folder: Path, model: Path, **study: Any) -> dict[str, Any]:
    """A study of everything that a recipe can ask for, on a tiny model, with schedules that stop nobody."""
    asked = {"rollouts": 2, "max_tokens": 8}
    full = {"strategy": "full", "n_random": 2, "n_seeds": 2, "n_finalists": 2, "n_repeats": 1, "sampling": asked}
    paths = {
        name: str(write_lines(folder / f"{name}.jsonl", problems(name, n)))
        for name, n in {"validation": 5, "test": 3, "other": 4, "query": 6}.items()
    }
    return {
        "model": str(model),
        "workers": 1,
        "corpus": {"source": str(write_lines(folder / "pool.jsonl", nemotron_rows(40))), "label_column": "subject"},
        "basis": {"k": 2},
        "selection": {
            "near_duplicates": 0.9,
            "query": paths["query"],
            "rounds": 3,
            "own_rows": 30,
            "validation_sampling": asked | {"rollouts": 3},
            "own_sampling": asked,
            "likelihood_share": 0.7,
        },
        "training": {"preset": "reasoning", "trainer": "lean", "batch_size": 8},
        "probe": full | {"task": paths["validation"], "n_rows": 5, "n_problems": 4},
        "contest": full | {"arms": ["directions", "low-nll", "weakness-rounds"]},
        "study": {
            "task": [paths["test"], paths["other"]],
            "arms": EVERY_NEED,
            "budget": [9, 6],
            "seeds": [0, 1],
            "sampling": asked,
        }
        | study,
    }


def test_a_run_does_what_its_plan_counts(
    model_path: Callable[..., Path], loaded: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    recipe = parse_recipe(scaled_recipe(tmp_path, model_path("llama", chat=True)), "everything")
    stages = {stage.name: stage for stage in plan_recipe(recipe, DEVICE).stages}
    seen = watched_run(recipe, tmp_path / "run")
    run, whole = tmp_path / "run", decoder_cost(loaded("llama").model)

    # The pool is read once for its activations, once (and each response once more) for likelihoods, once for vectors.
    n_tokens = seen["extracted"]["activations"]
    assert stages["extraction"].n_tokens == n_tokens
    assert stages["likelihood"].n_tokens == 2 * n_tokens >= seen["likelihoods"][0] > n_tokens
    assert stages["query vectors"].n_tokens == seen["extracted"]["pool"] + seen["extracted"]["query"]
    assert seen["extracted"]["pool"] == n_tokens
    pairs = stages["query vectors"].forward_flops - stages["query vectors"].n_tokens * sum(whole.token_flops)
    assert pairs > 0  # all blocks, no head
    # Answers of the base to validation problems are read along the basis, at their full length in the plan.
    answered = stages["validation answers"]
    assert answered.note.startswith("1 x 4 problems x 3 answers of 8 tokens")
    assert stages["validation answers: reading"].n_tokens == answered.n_tokens
    assert seen["rows"]["validation-answers"] in (11, 12)  # an empty one is not read
    assert seen["answered"][:2] == [("pool", 30, 2), ("validation.jsonl", 4, 3)]
    assert stages["own answers"].note.startswith("1 x 30 problems x 2 answers of 8 tokens")

    for suffix, budget in (("", 9), ("-6", 6)):
        # The pool is read again by two models, each made of one selection of the budget.
        for by in ("directions", "likelihood"):
            assert stages[f"reread by {by}{suffix}: training"].note.startswith(f"1 fine-tune x {budget} rows")
            assert stages[f"reread by {by}{suffix}: reading"].n_tokens == n_tokens
        # 3 arms, twice each, 2 finalists once more, 3 controls; the untrained model answers too.
        cells = trained(run / f"contest{suffix}" / "cells")
        assert cells == [0] + [budget] * (3 * 2 + 2 + 3)
        assert stages[f"contest{suffix}: training"].note.startswith(f"11 fine-tunes x {budget} rows")
        assert stages[f"contest{suffix}: answering"].note.startswith("12 x 4 problems x 2 answers")
        cells = trained(run / f"study{suffix}" / "cells")
        assert cells == [0] * 2 + [budget] * (len(EVERY_NEED) * 2)
        assert stages[f"study{suffix}: training"].note.startswith(f"{len(EVERY_NEED) * 2} fine-tunes x {budget} rows")
        assert stages[f"study{suffix}: answering"].note.startswith(f"{len(EVERY_NEED) * 2 + 2} x 7 problems x 2")
        # Rounds: at most 2 seeds of the study and 3 cells of the contest, each with two models in between.
        first, second = budget // 3, 2 * budget // 3
        note = stages[f"rounds{suffix}: training"].note
        assert note.startswith(f"5 fine-tunes x {first} rows and 5 fine-tunes x {second} rows")
        assert stages[f"rounds{suffix}: answering"].note.startswith("10 x 4 problems x 3 answers of 8 tokens")
    assert seen["reread"] == [9, 9, 6, 6]
    assert sorted(set(seen["rounds"])) == [2, 3, 4, 6]
    assert seen["rounds"].count(3) == seen["rounds"].count(6) <= 6
    assert stages["probe: training"].note.startswith("13 fine-tunes x 5 rows")  # 4 x 2, 2 once more, 3 controls
    assert trained(run / "probe" / "pilots") == [0] + [5] * 13
    assert {path.name for path in run.iterdir() if path.is_dir()} >= {
        "near-duplicates",
        "overlap",
        "rounds",
        "rounds-6",
    }


def trained(cells: Path) -> list[int]:
    """Rows of every cell below a directory, sorted."""
    return sorted(json.loads(path.read_text())["n_rows"] for path in cells.rglob("summary.json"))


def watched_run(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Runs a recipe; tokens of extractions by their folder's name, of likelihoods, answers asked for, rows trained."""
    seen: dict[str, Any] = {"extracted": {}, "rows": {}, "likelihoods": [], "answered": [], "reread": [], "rounds": []}

    def extracted(corpus: Any, lm: Any, path: Path, *args: Any, **options: Any) -> Any:
        store = extract(corpus, lm, path, *args, **options)
        name = path.parent.name if path.name == "activations" and path.parent != out else path.name
        seen["extracted"][name], seen["rows"][name] = store.manifest["n_tokens"], len(store)
        return store

    def measured(*args: Any, **options: Any) -> Any:
        seen["likelihoods"].append(0)

        def show(_rows: int, _n: int, tokens: int) -> None:
            seen["likelihoods"][-1] = tokens

        return evidence_of_likelihood(*args, **options | {"on_progress": show})

    def asked(lm: Any, tasks: Any, settings: Any, *args: Any, **options: Any) -> Any:
        seen["answered"].append((tasks[0].name, len(tasks[0].problems), settings.rollouts))
        return evaluate(lm, tasks, settings, *args, **options)

    def tuned(where: str) -> Any:
        def make(lm: Any, rows: Any, *args: Any, **options: Any) -> Any:
            seen[where].append(len(rows))
            return fine_tuned(lm, rows, *args, **options)

        return make

    evidence_of_likelihood = evidence.measure_likelihood
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "extract", extracted)
        patch.setattr(reading_stages, "extract", extracted)
        patch.setattr(evidence, "measure_likelihood", measured)
        patch.setattr(evidence, "evaluate", asked)
        patch.setattr(evidence, "fine_tuned", tuned("reread"))
        patch.setattr(curriculum, "fine_tuned", tuned("rounds"))
        pipeline.run_recipe(recipe, out, Silent())
    return seen


def test_the_default_contest_is_counted_as_it_will_be(model_path: Callable[..., Path], tmp_path: Path) -> None:
    """Ten ways, the one in cells, and the best two directions as a mixture where one alone was chosen."""
    once = {"n_seeds": 1, "n_finalists": 1, "n_repeats": 1, "n_random": 1}

    def n_cells(n_chosen: int = 1, directions: tuple[str, ...] = (), **changes: Any) -> str:
        recipe = scaled_recipe(tmp_path, model_path("llama", chat=True), directions=list(directions))
        recipe["contest"] = once | {"strategy": "full"} | changes
        recipe["probe"] |= {"n_chosen": n_chosen}
        made = plan_recipe(parse_recipe(recipe, "contest"), DEVICE)
        return next(stage.note for stage in made.stages if stage.name == "contest: training").split(" ")[0]

    # every arm once, the finalist once more, two controls
    n_default = len(contest.ARMS) + 1
    assert n_cells() == str(n_default + 1 + 1 + 2)
    assert n_cells(n_chosen=2) == str(n_default + 1 + 2)  # the mixture is the choice itself
    assert n_cells(directions=("0+", "1-")) == str(n_default + 1 + 1 + 2)
    assert n_cells(arms=["low-nll", "coverage"]) == str(2 + 1 + 2)
    wanted = contest.default_arms(((0, "+"),), ((0, "+"), (1, "-"), (0, "-")))
    assert len(wanted) == n_default + 1


def test_likelihood_is_planned_in_the_batches_it_is_read_in() -> None:
    default = inspect.signature(measure_likelihood).parameters["batch_tokens"].default
    assert default == workload.LIKELIHOOD_BATCH_TOKENS


def test_a_query_set_without_a_corpus_is_of_the_validation_answers(
    model_path: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = scaled_recipe(tmp_path, model_path("llama", chat=True), arms=["random", "rds+"])
    del recipe["contest"], recipe["selection"]["query"]
    stages = {stage.name: stage for stage in plan_recipe(parse_recipe(recipe, "query"), DEVICE).stages}
    assert list(stages) == [
        *("extraction", "validation answers", "validation answers: reading", "query vectors", "probe: training"),
        *("probe: answering", "study: training", "study: answering", "study-6: training", "study-6: answering"),
    ]
    answers = stages["query vectors"].n_tokens - stages["extraction"].n_tokens
    assert answers == stages["validation answers"].n_tokens
    vectors = {item.what: item.bytes for item in plan_recipe(parse_recipe(recipe, "q"), DEVICE).disk}["query vectors"]
    assert vectors == 40 * HIDDEN * 4


def test_what_a_recipe_will_lack_is_said_before(model_path: Callable[..., Path], tmp_path: Path) -> None:
    recipe = scaled_recipe(
        tmp_path, model_path("llama", chat=True), arms=[*EVERY_NEED, "perplexity", "human-weakness"], budget=14
    )

    def warnings(**changes: Any) -> str:
        return "\n".join(plan_recipe(parse_recipe(recipe | changes, "lacking"), DEVICE).warnings)

    assert "perplexity draws from a third of 40 rows, fewer than the budget of 14: a hole" in warnings()
    assert "directions+likelihood" not in warnings()  # no arm of this recipe
    arms = [*recipe["study"]["arms"], "directions+likelihood"]
    share = recipe["selection"] | {"likelihood_share": 0.35}
    words = warnings(selection=share, study=recipe["study"] | {"arms": arms})
    assert "directions+likelihood at 14 rows takes all of its share of 0.35 of the pool" in words
    assert "raise likelihood_share above 0.35" in words
    plain = [{key: row[key] for key in ("input", "output")} for row in nemotron_rows(40)]
    corpus = {"source": str(write_lines(tmp_path / "plain.jsonl", plain))}
    words = warnings(corpus=corpus)
    assert "no row has a reference answer to grade by" in words
    assert "human-weakness, s1-like: no row has a label, so they will be holes; name a label_column" in words
    words = warnings(study=recipe["study"] | {"budget": 10**6, "budget_unit": "tokens"})
    assert "study takes 1,000,000 tokens, the corpus has" in words and "every arm will be a hole" in words


def test_a_probe_by_steering_trains_nothing_and_a_full_one_is_counted_exactly(
    planned: Callable[..., tuple[Plan, dict[str, Stage]]], tmp_path: Path
) -> None:
    block = {"task": str(tmp_path / "validation.jsonl"), "kind": "steer", "strategy": "full", "n_finalists": 2}
    _, stages = planned(probe=block, study=None, steer=None)
    assert list(stages) == ["extraction", "probe: answering"]
    note = stages["probe: answering"].note
    assert note.startswith("28 x 5 problems") and "halving" not in note  # the base, 6 x 3, 2 x 2 and 5 random vectors


def test_adapters_and_the_lean_loop_are_planned_otherwise(
    planned: Callable[..., tuple[Plan, dict[str, Stage]]],
) -> None:
    full, _ = planned()
    adapters, stages = planned(training={"preset": "safety"})
    stage = stages["study: training"]
    assert stage.backward_flops == stage.forward_flops and "adapters only" in stage.note
    kept = {m.stage: m.parts for m in adapters.memory}, {m.stage: m.parts for m in full.memory}
    states = [parts["study: training"]["training state"] for parts in kept]
    assert states[1] == 16 * full.n_parameters > states[0] > 4 * full.n_parameters  # the tiny model is in float32
    on_disk = [{item.what: item.bytes for item in made.disk}["fine-tuned models"] for made in (adapters, full)]
    assert on_disk[1] == 26 * 4 * full.n_parameters > on_disk[0] > 0
    lean, stages = planned(training={"preset": "embedded", "trainer": "lean"})
    assert stages["study: training"].recomputed_flops == 0
    assert "fine-tuned models" not in {item.what for item in lean.disk}


def test_a_recipe_without_experiments_is_an_extraction(
    planned: Callable[..., tuple[Plan, dict[str, Stage]]],
) -> None:
    made, stages = planned(probe=None, study=None, steer=None)
    assert list(stages) == ["extraction"] and [memory.stage for memory in made.memory] == ["extraction"]
    assert [item.what for item in made.disk] == ["activations", "rows.parquet", "instead of both, streamed"]
    assert made.tokens.training_tokens == 0


def test_what_would_stop_a_run_is_said_before(planned: Callable[..., tuple[Plan, dict[str, Stage]]]) -> None:
    study = {"task": "embedded", "arms": ["random"], "budget": 51, "sampling": {"max_tokens": 250}}
    made, _ = planned(Device("T4"), study=study, dtype="bfloat16")
    words = "\n".join(made.warnings)
    assert "the T4 does not compute in bfloat16; take float16" in words
    assert "study takes 51 rows, the corpus has 50: the run stops" in words
    assert "above the context of 256: it fails; lower max_tokens" in words
    assert "float32 takes several times longer" in planned()[0].warnings[0]
    assert planned(dtype="float16", steer=None)[0].warnings == []
    sampling = {"rollouts": 4, "max_tokens": 200, "batch_size": 200_000}
    task = {"task": "embedded", "alphas": [0.1], "n_problems": 400, "directions": ["0+"], "sampling": sampling}
    small, _ = planned(dtype="float16", probe=None, study=None, steer=task)
    assert [memory.fits for memory in small.memory] == [True, True]
    many = dict(task, sampling=dict(sampling, rollouts=2_000_000, batch_size=1))
    large, _ = planned(dtype="float16", probe=None, study=None, steer=many)
    assert [memory.fits for memory in large.memory] == [True, False]
    assert "steer: answering needs about" in large.warnings[0]
    assert large.warnings[0].endswith("one H100 has 80; most of it is key-value cache")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": {"task": "embedded", "arms": ["randon"], "budget": 1}}, "did you mean 'random'?"),
        ({"activations": {"layers": "9"}}, "--layers names block 9, but the model has blocks 0 to 3"),
        ({"probe": {"task": "embeded"}}, "unknown task 'embeded' (did you mean 'embedded'?)"),
        ({"model": "./nowhere"}, "model directory ./nowhere does not exist"),
        ({"corpus": "./nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_a_recipe_that_cannot_be_meant(
    planned: Callable[..., tuple[Plan, dict[str, Stage]]], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        planned(**changes)
    assert words in str(caught.value)


# The command


def skillbasis(*arguments: str | Path) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr of the command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["skillbasis", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            cli.main()
    return left.value.code, out.getvalue(), err.getvalue()


def test_the_shipped_recipe_is_planned(tmp_path: Path) -> None:
    code, out, err = skillbasis(
        "plan", ROOT / "recipes" / "embedded.yaml", "--gpu", "T4", "--json", tmp_path / "p.json"
    )
    assert (code, err) == (0, "")
    numbers = json.loads((tmp_path / "p.json").read_text())
    assert numbers["tokens"]["n_rows"] == 2000
    assert f"tokens   {numbers['tokens']['n_tokens']:,.0f}, counted" in out
    assert "1 x T4 at 40% of 65 TFLOP/s" in out
    assert f"{numbers['stages'][0]['forward_flops']:.2e}" in out
    assert all(
        title in out for title in ("Work", "Memory of one device, estimated", "Disk", "2,000 rows x 2 blocks x 128")
    )


def test_the_demo_is_planned() -> None:
    made = plan_recipe(load_recipe(demo_recipe_path()), DEVICE)
    assert [stage.name for stage in made.stages][-2:] == ["steer: answering", "steer test: answering"]
    assert all(stage.forward_flops > 0 for stage in made.stages)


def test_a_corpus_is_planned_with_a_model(tmp_path: Path) -> None:
    with gzip.open(pool_path(), "rt") as pool:
        (tmp_path / "pool.jsonl").write_text("".join(pool.readline() for _ in range(30)))
    given = (tmp_path / "pool.jsonl", "--model", "embedded", "--layers", "all", "--batch-tokens", "512")
    code, out, err = skillbasis("plan", *given, "--n-gpus", "2", "--utilisation", "0.5", "--limit", "20")
    assert (code, err) == (0, "")
    assert "rows     20\n" in out and "2 x H100 at 50% of 989 TFLOP/s" in out and "20 rows x 4 blocks x 128" in out
    code, again, _ = skillbasis("plan", *given, "--limit", "20", "--first", "--span", "response")
    assert code == 0 and "rows     20\n" in again


def test_a_sampled_corpus_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_count, "COUNTED_ROWS", 200)
    _, out, _ = skillbasis("plan", ROOT / "recipes" / "embedded.yaml")
    assert "95 % interval" in out and "from 200 rows drawn at random" in out and "cut      about 0 rows" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("embedded", "--model", "embedded", "--gpu", "H10"), 2, "unknown GPU 'H10' (did you mean 'H100'?); known are"),
        (("embedded", "--model", "embedded", "--utilisation", "0"), 2, "utilisation must be above 0"),
        (("embedded", "--model", "embedded", "--span", "respnse"), 2, "(did you mean 'response'?)"),
        (("embedded", "--model", "embedded", "--dtype", "int3"), 2, "unknown dtype 'int3'"),
        (("embedded", "--model", "embedded", "--layers", "9"), 2, "--layers names block 9"),
        (("embedded", "--model", "embedded", "--json", "."), 2, "--json . is a directory"),
        (("embedded",), 2, "embedded is no recipe (.yaml); give one, or a corpus together with --model"),
        (("nowhere.yaml",), 2, "there is no recipe at nowhere.yaml"),
        (("recipes/embedded.yaml", "--max-length", "5"), 2, "change it there and leave out --max-length"),
        (("recipes/llama3-8b-selection.yaml",), 2, "model 'meta-llama/Meta-Llama-3-8B-Instruct' cannot be read"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.chdir(ROOT)
    left, out, err = skillbasis("plan", *arguments)
    assert (left, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_model_without_a_tokenizer_is_named(model_path: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(model_path("llama") / "config.json", tmp_path)
    left, _, err = skillbasis("plan", "embedded", "--model", tmp_path)
    assert left == 2 and "has no tokenizer that can be read" in err


def test_a_process_of_its_own_plans_without_touching_weights(model_path: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(model_path("llama"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "c.jsonl").write_text('{"id": "a", "prompt": "so?", "response": "two"}\n')
    start = [sys.executable, "-c", "from skillbasis.cli import main; main()"]
    command = [*start, "plan", str(tmp_path / "c.jsonl"), "--model", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "") and "rows     1\n" in done.stdout


def test_the_recipe_of_the_command_is_the_recipe_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"model": "embedded", "corpus": "embedded", "basis": {"kk": 3}}))
    with pytest.raises(UsageError) as run:
        parse_recipe(yaml.safe_load(path.read_text()), str(path))
    assert skillbasis("plan", path) == (2, "", f"error: {run.value}\n")


def test_sensitivity_reads_the_rows_its_plan_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {
        "model": "embedded",
        "corpus": {"source": "embedded", "limit": 90},
        "basis": {"k": 3},
        "sensitivity": {"rows": 50, "span": ["response"], "k": [2], "seeds": [1], "corpora": ["embedded"]},
    }
    recipe = parse_recipe(raw, "test")
    (stage,) = [stage for stage in plan_recipe(recipe, DEVICE).stages if stage.name == "sensitivity"]
    read: list[int] = []

    def extracted(*args: Any, **options: Any) -> Any:
        store = extract(*args, **options)
        read.append(len(store))
        return store

    monkeypatch.setattr(sensitivity, "extract", extracted)
    pipeline.run_recipe(recipe, tmp_path / "run", Silent())
    # As the recipe says, last token, maximum, response; other 40 rows; 50 of another corpus.
    assert sorted(read) == [40, 50, 50, 50, 50, 50] and stage.note.startswith("290 rows of which each")
    found = read_json(tmp_path / "run" / "sensitivity" / "sensitivity.json")
    assert [entry["reason"] for entry in found["variants"]] == [None] * 9
    assert not (tmp_path / "run" / "sensitivity" / "activations").exists()
    for wrong, message in (
        ({"layers": ["4"]}, "names block 4"),
        ({"layers": ["outer"]}, "neither one of inner"),
        ({"corpora": ["nowhere.jsonl"]}, "there is no corpus at nowhere.jsonl"),
    ):
        with pytest.raises(UsageError, match=message):
            pipeline.run_recipe(parse_recipe(raw | {"sensitivity": wrong}, "test"), tmp_path / "other", Silent())
