"""Recipes: strict keys with the nearest match, all errors together, and defaults that are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skillbasis.errors import UsageError
from skillbasis.recipe import load_recipe, parse_recipe
from skillbasis.world.assets import demo_recipe_path

SMALL: dict[str, Any] = {"model": "embedded", "corpus": "embedded"}
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_defaults_are_those_of_the_paper() -> None:
    recipe = parse_recipe(SMALL, "small")
    assert (recipe.basis.k, recipe.activations.layers, recipe.activations.pooling) == (10, "inner", "mean")
    assert recipe.activations.max_length == 8000
    assert recipe.probe is None and recipe.study is None


def test_a_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'basis.kk' \(did you mean 'k'\?\)"):
        parse_recipe(SMALL | {"basis": {"kk": 3}}, "small")
    with pytest.raises(UsageError, match=r"unknown key 'activation' \(did you mean 'activations'\?\)"):
        parse_recipe(SMALL | {"activation": {}}, "small")


def test_all_faults_come_together() -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe({"corpus": "embedded", "basis": {"k": 0}, "sead": 1}, "bad.yaml")
    message = str(caught.value)
    assert message.startswith("bad.yaml is no valid recipe")
    for fault in ("'model' is missing", "'basis.k' is 0", "unknown key 'sead' (did you mean 'seed'?)"):
        assert fault in message


STUDY: dict[str, Any] = {"task": "embedded:test", "arms": ["random"], "budget": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "'study.budget' is 0: give one budget or several different ones, each at least 1"),
        ({"budget": []}, "'study.budget' is []: give one budget or several different ones"),
        ({"budget": [20, 20]}, "'study.budget' is [20, 20]: give one budget or several different ones"),
        ({"budget": [20, 0]}, "'study.budget' is [20, 0]: give one budget"),
        ({"budget": "many"}, "'study.budget' is 'many': input should be a valid integer"),
        ({"budget": [1, "many"]}, "'study.budget.1' is 'many': input should be a valid integer"),
        ({"budget_unit": "row"}, "'study.budget_unit' is 'row': input should be 'rows' or 'tokens'"),
        ({"arms": []}, "'study.arms' is []: list should have at least 1 item"),
        ({"arms": ["random", {"name": "x"}]}, "'study.arms.1.strategy' is missing"),
        ({"arms": [3]}, "'study.arms.0' is 3: input should be a valid string, or input should be a valid dictionary"),
        (
            {"arms": [{"name": "x", "strategy": "directions", "top_shar": 0.1}]},
            "unknown key 'study.arms.0.top_shar' (did you mean 'top_share'?)",
        ),
        (
            {"arms": ["random", {"name": "x", "strategy": "directions", "temperature": 0}]},
            "'study.arms.1.temperature' is 0: input should be greater than 0",
        ),
        ({"mach": "random"}, "unknown key 'study.mach' (did you mean 'match'?)"),
        ({"seeds": [-1]}, "'study.seeds.0' is -1: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_study_says_so_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(SMALL | {"study": STUDY | change}, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml is no valid recipe: {message}")
    assert ";" not in str(caught.value), "one fault is told once, whatever types the value might have had"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quotas": "gains"}, "'selection.quotas' is 'gains': input should be 'equal' or 'gain', or input should be a"),
        ({"quotas": [1, 0]}, "'selection.quotas.1' is 0: input should be greater than 0"),
        (
            {"rank_by": "rank"},
            "'selection.rank_by' is 'rank': input should be 'cosine', 'projection' or 'centr",
        ),
        ({"near_duplicates": 0}, "'selection.near_duplicates' is 0: input should be greater than 0"),
        ({"rounds": 1}, "'selection.rounds' is 1: input should be greater than or equal to 2"),
        ({"top_shares": 0.1}, "unknown key 'selection.top_shares' (did you mean 'top_share'?)"),
        ({"own_sampling": {"rollout": 1}}, "unknown key 'selection.own_sampling.rollout' (did you mean 'rollouts'?)"),
    ],
)
def test_a_wrong_selection_says_so_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(SMALL | {"selection": change}, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml is no valid recipe: {message}")
    assert ";" not in str(caught.value)


def test_several_faults_of_values_of_several_types_are_all_told() -> None:
    arms = [3, {"name": "x", "strategy": "low-nll", "cell": 2, "cells": 0}]
    with pytest.raises(UsageError) as caught:
        parse_recipe(SMALL | {"study": STUDY | {"arms": arms, "budget": -2}, "contest": {"arms": [{}]}}, "r")
    message = str(caught.value)
    for fault in (
        "'contest.arms.0.name' is missing; 'contest.arms.0.strategy' is missing",
        "'study.arms.0' is 3: ",
        "'study.arms.1.cells' is 0: input should be greater than or equal to 1",
        "unknown key 'study.arms.1.cell' (did you mean 'cells'?)",
        "'study.budget' is -2: ",
    ):
        assert fault in message
    assert message.count(";") == 5 and "ArmBlock.name" not in message and ".str'" not in message


def test_one_task_or_budget_or_several() -> None:
    one = parse_recipe(SMALL | {"study": STUDY}, "one").study
    several = parse_recipe(SMALL | {"study": STUDY | {"task": ["a", "b"], "budget": [9, 3]}}, "several").study
    assert one is not None and several is not None
    assert (one.tasks, one.budgets, one.budget_unit, one.match) == (("embedded:test",), (5,), "rows", None)
    assert (several.tasks, several.budgets) == (("a", "b"), (9, 3))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="holds no mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UsageError, match="is no valid YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UsageError, match="is no valid YAML"):
        load_recipe(tmp_path / "evil.yaml")


def test_the_demo_chooses_on_other_problems_than_it_reports() -> None:
    recipe = load_recipe(demo_recipe_path())
    assert recipe.probe is not None and recipe.study is not None and recipe.steer is not None
    assert recipe.probe.task == "embedded:validation"
    assert recipe.study.task == "embedded:test"
    assert len(recipe.study.seeds) >= 5


def test_a_steer_block_needs_a_task_and_strengths_only() -> None:
    steer = parse_recipe(SMALL | {"steer": {"task": "embedded:validation", "alphas": [0.2]}}, "small").steer
    assert steer is not None
    assert (steer.test_task, steer.n_controls, steer.target, steer.metric) == (None, 19, "accuracy", None)
    with pytest.raises(UsageError, match=r"unknown key 'steer.test_tasks' \(did you mean 'test_task'\?\)"):
        parse_recipe(SMALL | {"steer": {"task": "embedded", "alphas": [0.2], "test_tasks": "x"}}, "small")
    with pytest.raises(UsageError, match="'steer.alphas' is"):
        parse_recipe(SMALL | {"steer": {"task": "embedded", "alphas": []}}, "small")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    load_recipe(path)


def test_a_probe_may_steer() -> None:
    block = {"task": "embedded:validation", "kind": "steer", "alpha": 0.2, "scope": "all", "blocks": [1, 2]}
    probe = parse_recipe(SMALL | {"probe": block}, "steered").probe
    assert probe is not None
    assert (probe.kind, probe.strategy, probe.unit, probe.blocks) == ("steer", "halving", "relative", (1, 2))
    with pytest.raises(UsageError, match="'probe.strategy' is 'half': input should be 'halving' or 'full'"):
        parse_recipe(SMALL | {"probe": block | {"strategy": "half"}}, "bad")
    with pytest.raises(UsageError, match="'probe.n_repeats' is 0"):
        parse_recipe(SMALL | {"probe": block | {"n_repeats": 0}}, "bad")
