"""Evidence, probe, contest and study in a row: what feeds what, what is warned of, and what an arm is charged."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planted_pool import DIRECTIONS, candidates, corpus
from skillbasis import selection_stages as module
from skillbasis.contest import NATIVE
from skillbasis.errors import UsageError
from skillbasis.recipe import Recipe, parse_recipe
from skillbasis.select import SelectionSettings
from skillbasis.select.strategy import Arm
from skillbasis.selection_stages import Chosen, gathered, studied, validation_task, workers
from skillbasis.stages import Run

LM: Any = SimpleNamespace(weights_fingerprint="w", device=SimpleNamespace(type="cpu"))
PROBE = {"task": "embedded:validation", "n_problems": 5}
FOUND = Chosen(((0, "+"), (1, "-")), ((0, "+"), (1, "-"), (2, "+")), (0.3, 0.1))


class Silent:
    @contextmanager
    def stage(self, name: str) -> Any:
        yield lambda done, total, words: None


def recipe(arms: list[Any], **blocks: Any) -> Recipe:
    study = {"task": "embedded:test", "arms": arms, "budget": 12, "seeds": [3, 4]} | blocks.pop("study", {})
    training = {"preset": "embedded", "trainer": "lean"}
    return parse_recipe({"model": "embedded", "corpus": "x", "study": study, "training": training} | blocks, "test")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts records in the place of contests and studies; keeps what these were asked."""
    calls: list[dict[str, Any]] = []

    def study(out: Path, _corpus: Any, known: Any, cells: Any, _print: str, settings: Any, **rest: Any) -> None:
        calls.append({"stage": out.name, "known": known, "cells": cells, "settings": settings} | rest)

    def contest(out: Path, _corpus: Any, known: Any, cells: Any, _print: str, settings: Any, **rest: Any) -> Any:
        calls.append({"stage": out.name, "known": known, "cells": cells, "settings": settings} | rest)
        chosen = {"name": "low-nll", "strategy": "low-nll", "changes": {}, "native": False}
        return {"chosen": chosen, "sentence": "low-nll won."}

    monkeypatch.setattr(module, "study", study)
    monkeypatch.setattr(module, "contest", contest)
    return calls


def run_study(path: Path, given: Recipe, found: Chosen = FOUND) -> Run:
    run = Run(path, given, Silent())
    studied(run, given, LM, corpus(), None, candidates(**DIRECTIONS | {"directions": ()}), found, {})  # type: ignore[arg-type]
    return run


# What the probe found goes into the study


@pytest.mark.parametrize(
    ("blocks", "found", "directions", "weights"),
    [
        ({}, FOUND, FOUND.directions, ()),
        ({"selection": {"quotas": "gain"}}, FOUND, FOUND.directions, (0.3, 0.1)),
        ({"selection": {"quotas": [1, 5]}}, FOUND, FOUND.directions, (1.0, 5.0)),
        ({"study": {"directions": ["2-"]}}, FOUND, ((2, "-"),), ()),
        ({"study": {"directions": ["2-"]}, "selection": {"quotas": "gain"}}, FOUND, ((2, "-"),), ()),
        # A loss cannot be a share: the directions then share equally.
        ({"selection": {"quotas": "gain"}}, Chosen(FOUND.directions, (), (0.3, -0.1)), FOUND.directions, ()),
    ],
)
def test_directions_and_their_shares(
    blocks: Any, found: Chosen, directions: Any, weights: Any, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_study(tmp_path, recipe(["directions"], **blocks), found)
    settings: SelectionSettings = asked[0]["known"].settings
    assert (settings.directions, settings.weights) == (directions, weights)


def test_each_budget_is_a_contest_and_a_study_of_its_own(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    given = recipe(["random", NATIVE, "rft"], probe=PROBE, study={"budget": [12, 7]}, contest={"arms": ["low-nll"]})
    run = run_study(tmp_path, given)
    assert [call["stage"] for call in asked] == ["contest", "study", "contest-7", "study-7"]
    assert [call["settings"].budget for call in asked] == [12, 12, 7, 7]
    assert [arm.name for arm in asked[1]["settings"].arms] == ["random", NATIVE, "rft"], "in the place it was named"
    assert asked[1]["settings"].arms[1] == Arm(NATIVE, "low-nll")
    assert (asked[0]["cells"].tasks, asked[0]["cells"].n_problems) == (("embedded:validation",), 5)
    assert asked[1]["cells"].tasks == ("embedded:test",)
    assert run.warnings == ["contest at 12 rows: low-nll won.", "contest at 7 rows: low-nll won."]


def test_the_contest_may_have_problems_of_its_own(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    block = {"arms": ["low-nll"], "task": "embedded:pool", "n_problems": 9}
    run_study(tmp_path, recipe([NATIVE], probe=PROBE, contest=block))
    assert (asked[0]["cells"].tasks, asked[0]["cells"].n_problems) == (("embedded:pool",), 9)


@pytest.mark.parametrize(
    ("match", "target"),
    [(None, "directions"), ("low-nll", "low-nll")],
)
def test_the_length_control_matches_the_arm_named_or_the_first_native_one(
    match: str | None, target: str, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    arms = ["low-nll", "random-length-matched", "directions"]
    run_study(tmp_path, recipe(arms, study={"match": match}))
    known = asked[0]["known"]
    assert known.reference == [row.id for row in Arm.of(target).choose(known, 12, 3)]


def test_without_an_arm_to_match_the_control_says_so_itself(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(tmp_path, recipe(["random-length-matched", "low-nll"]), Silent())
    bare = candidates(**DIRECTIONS)
    bare = type(bare)(bare.ids, bare.labels, n_tokens=bare.n_tokens)
    studied(run, run.recipe, LM, corpus(), None, bare, Chosen(), {})  # type: ignore[arg-type]
    assert asked[0]["known"].reference is None
    studied(run, recipe(["random-length-matched", "weakness"]), LM, corpus(), None, bare, Chosen(), {})  # type: ignore[arg-type]
    assert asked[1]["known"].reference is None, "the arm to match cannot be chosen: its hole says why"


# Rereading


def test_the_pool_is_read_again_by_models_of_each_budget(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int, Any]] = []

    def kept_reread(
        path: Path, _c: Any, _lm: Any, first: Any, training: Any, max_length: int, _t: Any, *, trainer: str
    ) -> Any:
        read.append((path.name, len(first), (training.seed, max_length, trainer)))
        return candidates().reread["low-nll"]

    monkeypatch.setattr(module, "kept_reread", kept_reread)
    arms = ["directions+reread", "low-nll+reread"]
    run = run_study(tmp_path, recipe(arms, seed=9, study={"budget": [12, 7]}, activations={"max_length": 64}))
    how = (9, 64, "lean")
    assert read == [
        ("reread-by-directions", 12, how),
        ("reread-by-likelihood", 12, how),
        ("reread-by-directions-7", 7, how),
        ("reread-by-likelihood-7", 7, how),
    ]
    assert set(asked[0]["known"].reread) == {"directions+likelihood", "low-nll"}
    read.clear()
    run = run_study(tmp_path, recipe(arms), Chosen())
    assert [name for name, _, _ in read] == ["reread-by-likelihood"]
    assert run.warnings[0].startswith("the pool was not read again after directions+likelihood: this strategy needs d")


# Evidence


def test_evidence_that_cannot_be_had_is_warned_of_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, Any] = {}

    def fake(_out: Path, needs: set[str], *_: Any, on_lack: Any, **named: Any) -> dict[str, Any]:
        got.update(needs=needs, **named)
        if "quality" in needs:
            on_lack("quality", UsageError("no column"))
        return {"tokens": {}}

    monkeypatch.setattr(module, "gather", fake)
    given = recipe(["deita", "rds+", "weakness"], probe=PROBE)
    run = Run(tmp_path, given, Silent())
    evidence, lacking = gathered(run, given, LM, corpus(), None)  # type: ignore[arg-type]
    assert (evidence, lacking) == ({"tokens": {}}, {"quality": "no column"})
    assert run.warnings == ["quality: no column; arms that need it are left out"]
    assert {"quality", "query", "validation"} <= got["needs"]
    assert (got["validation"].name, len(got["validation"].problems)) == ("embedded:validation", 5)


def test_the_hole_of_an_arm_says_why_its_evidence_is_not_there(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(tmp_path, recipe(["low-nll"]), Silent())
    bare = candidates(**DIRECTIONS)
    bare = type(bare)(bare.ids, bare.labels)
    lacking = {"likelihood": "no row has a response"}
    studied(run, run.recipe, LM, corpus(), None, bare, Chosen(), lacking)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="^no row has a response$"):
        asked[0]["choose"](Arm.of("low-nll"), bare, 1, 0, "rows")
    with pytest.raises(UsageError, match="needs scores"):
        asked[0]["choose"](Arm.of("coverage"), bare, 1, 0, "rows")


def test_which_problems_may_choose() -> None:
    def task(**blocks: Any) -> tuple[str, int] | None:
        found = validation_task(recipe(["random"], **blocks))
        return None if found is None else (found.name, len(found.problems))

    assert task() is None
    assert task(probe=PROBE) == ("embedded:validation", 5)
    assert task(probe=PROBE, selection={"n_validation": 3}) == ("embedded:validation", 3)
    assert task(contest={"task": "embedded:pool"}, selection={"n_validation": 4}) == ("embedded:pool", 4)
    own = {"validation": "embedded:pool", "n_validation": 7}
    assert task(probe=PROBE, selection=own) == ("embedded:pool", 7)
    assert task(probe=PROBE, selection={"validation": "embedded:pool"}) == ("embedded:pool", 400)


# Rounds


def test_rounds_are_trained_and_other_arms_are_chosen_plainly(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []

    def in_rounds(path: Path, *_: Any) -> Any:
        paths.append(path)
        return lambda known, budget, seed, unit: [known.settings.rounds, budget, seed, unit]

    monkeypatch.setattr(module, "in_rounds", in_rounds)
    given = recipe(["random", "weakness-rounds"], probe=PROBE, selection={"rounds": 2}, study={"budget": [12, 7]})
    run_study(tmp_path, given)
    known, rounds = candidates(rounds=2), Arm.of("weakness-rounds")
    first, second = asked[0]["choose"], asked[1]["choose"]
    assert first(rounds, known, 12, 3, "rows") == [2, 12, 3, "rows"]
    second(Arm("weak 2", "weakness-rounds"), known, 7, 3, "rows")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["rounds/weakness-rounds", "rounds-7/weak-2"]
    assert first(Arm.of("random"), known, 12, 3, "rows") == Arm.of("random").choose(known, 12, 3)


def test_rounds_without_problems_are_a_hole_with_its_reason(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    run_study(tmp_path, recipe(["weakness-rounds"]))
    with pytest.raises(UsageError, match="weakness-rounds looks at the model's answers to validation problems"):
        asked[0]["choose"](Arm.of("weakness-rounds"), candidates(), 12, 3, "rows")


# Costs


def test_an_arm_is_charged_all_that_was_measured_for_it(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    arms = ["random", "low-nll", "rft", "coverage", "directions+likelihood", "weakness", "low-nll+reread", NATIVE]
    given = recipe(arms, probe=PROBE, contest={"arms": ["rft", "directions"]})
    run = Run(tmp_path, given, Silent())
    seconds = {"activations": 1, "basis": 2, "likelihood": 4, "own answers": 8, "validation answers": 16, "probe": 32}
    run.stages = [{"name": name, "seconds": value} for name, value in seconds.items()]

    def charge(name: str, value: float) -> None:
        run.stages.append({"name": name, "seconds": value})

    do = run.do
    run.do = lambda name, work, artifact=None: (do(name, work, artifact), run.stages.pop(), charge(name, 64.0))[0]  # type: ignore[method-assign]
    table = {"low-nll": candidates().reread["low-nll"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "kept_reread", lambda *_, **__: table["low-nll"])
        studied(run, given, LM, corpus(), None, candidates(**DIRECTIONS), FOUND, {})  # type: ignore[arg-type]
    costs = asked[-1]["selection_cost_s"]
    assert costs == {
        "random": 0,
        "low-nll": 4,
        "rft": 8,
        "coverage": 3,
        "directions+likelihood": 1 + 2 + 32 + 4,
        "weakness": 1 + 2 + 16,
        "low-nll+reread": 4 + 64,  # the first reading, and the second with its fine-tune
        NATIVE: 64 + 8 + 1 + 2 + 32 + 4,  # the contest and all that its arms were given
    }


def test_cells_are_run_side_by_side_on_processors_and_gpus() -> None:
    assert workers(recipe(["random"]), LM) is None
    assert workers(recipe(["random"], workers=3), LM) == 3
    other: Any = SimpleNamespace(device=SimpleNamespace(type="mps"))
    assert workers(recipe(["random"]), other) == 1
