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
