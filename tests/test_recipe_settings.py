"""What the blocks of a recipe become."""

from __future__ import annotations

from typing import Any

import pytest

from skillbasis.contest import ARMS, NATIVE
from skillbasis.errors import UsageError
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.recipe import Recipe, parse_recipe
from skillbasis.recipe_settings import (
    CONTEST_SEEDS,
    all_arms,
    arms_of,
    cell_settings,
    contest_settings,
    evidence_settings,
    has_contest,
    probe_settings,
    recipe_needs,
    selection_settings,
    training_settings,
)
from skillbasis.select import SelectionSettings
from skillbasis.select.strategy import Arm
from skillbasis.train.settings import preset

OWN = {"name": "two", "strategy": "directions+likelihood", "directions": ["3+", "0-"], "cells": 4}
STUDY: dict[str, Any] = {"task": "embedded:test", "arms": ["random"], "budget": 5}


def recipe(arms: list[Any] | None = None, **blocks: Any) -> Recipe:
    study = STUDY | blocks.pop("study", {}) | ({} if arms is None else {"arms": arms})
    return parse_recipe({"model": "embedded", "corpus": "embedded", "study": study} | blocks, "test")


def test_training_is_the_preset_but_for_what_the_recipe_changes() -> None:
    block = recipe(training={"preset": "embedded", "trainer": "lean", "epochs": 7, "batch_size": 48}).training
    settings = training_settings(block)
    assert (settings.epochs, settings.batch_size) == (7, 48)
    assert settings.learning_rate == preset("embedded").learning_rate
    assert training_settings(recipe().training) == preset("reasoning")


def test_selection_settings_of_all_arms() -> None:
    block = {"rank_by": "centred-rank", "top_share": 0.2, "temperature": 0.5, "cells": 3, "rounds": 4, "band": "low"}
    settings = selection_settings(recipe(selection=block))
    assert {name: getattr(settings, name) for name in block} == block
    assert selection_settings(recipe()) == SelectionSettings(), "the defaults are the same in both places"


def test_evidence_is_measured_as_the_pool_is_read() -> None:
    sampling, own = {"rollouts": 3, "temperature": 0.7}, {"rollouts": 5, "max_tokens": 9}
    block = {
        "validation_sampling": sampling,
        "own_sampling": own,
        "own_rows": 40,
        "quality": "stars",
        "query": "q.jsonl",
    }
    settings = evidence_settings(recipe(seed=8, selection=block, activations={"span": "response", "max_length": 99}))
    assert (settings.max_length, settings.extraction.span, settings.extraction.max_length) == (99, "response", 99)
    assert settings.sampling == SamplingSettings(3, 0.7, 2048, 8)
    assert settings.own_sampling == SamplingSettings(5, 1.0, 9, 8)
    assert (settings.own_rows, settings.quality, settings.query, settings.seed) == (40, "stars", "q.jsonl", 8)


def test_arms_are_strategies_or_ones_own() -> None:
    given = recipe(["random", OWN, NATIVE, {"name": "top", "strategy": "directions", "top_share": 0.0}]).study
    assert given is not None
    changes = (("directions", ((3, "+"), (0, "-"))), ("cells", 4))
    assert arms_of(given.arms) == (
        Arm.of("random"),
        Arm("two", "directions+likelihood", changes),
        Arm("top", "directions", (("top_share", 0.0),)),
    )
    for arms, message in (
        (["rft", "randon"], r"unknown strategy 'randon' \(did you mean 'random'\?\)"),
        ([{"name": NATIVE, "strategy": "rft"}], "native is the name of what the contest chooses; give the arm another"),
        ([{"name": "a/b", "strategy": "rft"}], "'a/b' is no name for an arm"),
        ([OWN | {"directions": ["up"]}], "'up' is no signed direction"),
    ):
        block = recipe(arms).study
        assert block is not None
        with pytest.raises(UsageError, match=message):
            arms_of(block.arms)


def test_the_contest_is_held_where_the_study_asks_for_its_winner() -> None:
    assert not has_contest(recipe()) and all_arms(recipe()) == (Arm.of("random"),)
    assert not has_contest(parse_recipe({"model": "m", "corpus": "c"}, "t"))
    whole = recipe(
        ["random", NATIVE], seed=3, study={"budget_unit": "tokens"}, contest={"n_seeds": 1, "n_finalists": 2}
    )
    assert has_contest(whole)
    names = {arm.name for arm in all_arms(whole)}
    assert {"random", "directions+likelihood in cells"} | set(ARMS) == names
    settings = contest_settings(whole, 77, ((0, "+"),), ((0, "+"), (1, "-")))
    assert (settings.budget, settings.budget_unit, settings.seed) == (77, "tokens", 3 + CONTEST_SEEDS)
    assert (settings.n_seeds, settings.n_finalists, settings.n_repeats, settings.n_random) == (1, 2, 2, 3)
    assert "directions+likelihood of two" in {arm.name for arm in settings.arms}
    named = contest_settings(recipe([NATIVE], contest={"arms": ["rft", OWN]}), 5, (), ())
    assert [arm.name for arm in named.arms] == ["rft", "two"]


@pytest.mark.parametrize(
    ("blocks", "needs"),
    [
        ({}, set()),
        ({"arms": ["low-nll", "length"]}, {"likelihood", "tokens"}),
        ({"arms": ["low-nll+reread"]}, {"reread by likelihood", "likelihood"}),
        ({"arms": ["directions+reread"]}, {"reread along directions", "scores", "directions", "likelihood"}),
        ({"arms": ["coverage+quality"], "selection": {"quality": "stars"}}, {"scores", "likelihood", "quality"}),
        ({"arms": ["random"], "selection": {"quality": "stars"}}, set()),
        ({"study": {"budget_unit": "tokens"}}, {"tokens"}),
        ({"probe": {"task": "x"}}, {"scores", "directions"}),
        ({"probe": {"task": "x", "along": "directions+likelihood"}}, {"scores", "directions", "likelihood"}),
        ({"probe": {"task": "x", "along": "directions+likelihood", "kind": "steer"}}, set()),
        ({"arms": ["deita", "rds+", "rft"]}, {"quality", "query", "own answers"}),
        ({"arms": [NATIVE], "contest": {"arms": ["ifd"]}}, {"likelihood", "likelihood alone"}),
    ],
)
def test_only_what_some_arm_reads_is_measured(blocks: dict[str, Any], needs: set[str]) -> None:
    assert recipe_needs(recipe(**blocks)) == needs


def test_the_default_contest_measures_all_that_its_arms_read() -> None:
    needs = recipe_needs(recipe([NATIVE]))
    reread = {"reread along directions", "reread by likelihood"}
    assert needs == reread | {"scores", "directions", "likelihood", "validation", "own answers"}


def test_probe_and_cells_get_their_blocks() -> None:
    probe = {"task": "embedded:validation", "n_rows": 9, "along": "directions+likelihood", "n_problems": 4}
    whole = recipe(seed=6, probe=probe, model="m", dtype="float32", training={"preset": "safety", "trainer": "trl"})
    assert whole.probe is not None and whole.study is not None
    settings = probe_settings(whole.probe, 6)
    assert (settings.n_rows, settings.along, settings.seed, settings.kind) == (9, "directions+likelihood", 6, "pilot")
    cells = cell_settings(whole, "embedded:validation", 4, whole.probe.sampling)
    assert (cells.model, cells.dtype, cells.tasks, cells.n_problems) == ("m", "float32", ("embedded:validation",), 4)
    assert (cells.trainer, cells.training, cells.sampling.seed) == ("trl", preset("safety"), 6)
    assert cell_settings(whole, ("a", "b"), None, whole.study.sampling).tasks == ("a", "b")
