"""The contest on planted effects: who wins, what is said of it, who cannot take part, and reuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_cells import fake_cells
from planted_pool import DIRECTIONS, candidates, corpus
from skillbasis import contest as module
from skillbasis.artifact import read_json
from skillbasis.cells import CellSettings
from skillbasis.contest import ARMS, NATIVE, ContestSettings, chosen_arm, contest, default_arms
from skillbasis.corpus import training_rows
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.evaluate.tasks import Asking
from skillbasis.select import STRATEGIES
from skillbasis.select.strategy import Arm
from skillbasis.train.settings import preset

CELLS = CellSettings(
    "embedded", "auto", ("embedded:validation",), Asking(), 4, SamplingSettings(4), preset("embedded"), "lean"
)
PLUS, MINUS = ((0, "+"),), ((1, "+"), (2, "-"))
OWN = Arm("two", "directions+likelihood", (("directions", MINUS),))
ENTRANTS = (Arm.of("directions"), OWN, Arm.of("low-nll"), Arm.of("rft"))


def settings(**changes: Any) -> ContestSettings:
    return ContestSettings(**{"arms": ENTRANTS, "budget": 12, "n_seeds": 2, "n_finalists": 2} | changes)


def held(path: Path, given: ContestSettings, **options: Any) -> dict[str, Any]:
    known = candidates(**DIRECTIONS | {"directions": PLUS})
    return contest(path, corpus(), known, CELLS, "w", given, **options)


def test_the_best_way_along_directions_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_cells(monkeypatch, module, {"two": 0.2, "directions": 0.05, "low-nll": 0.08})
    told: list[tuple[int, int]] = []
    record = held(tmp_path / "c", settings(), on_cell=lambda _cell, done, n: told.append((done, n)))
    changes = {"directions": [[1, "+"], [2, "-"]]}
    assert record["chosen"] == {
        "name": "two",
        "strategy": "directions+likelihood",
        "changes": changes,
        "native": True,
    }
    assert chosen_arm(record) == Arm(NATIVE, "directions+likelihood", (("directions", MINUS),))
    assert record["sentence"].startswith("two has the best fresh pilots of 2 finalists (")
    assert "falls back" not in record["sentence"] and "not separated" not in record["sentence"]
    table = {entry["name"]: entry for entry in record["arms"]}
    assert list(table) == [arm.name for arm in ENTRANTS] and table["two"]["verdict"] == "helps"
    assert [table[arm.name]["native"] for arm in ENTRANTS] == [True, True, False, False]
    assert (record["task"], record["budget"], record["budget_unit"]) == ("embedded:validation", 12, "rows")
    assert len(ran) == record["n_cells"] + 1 == told[-1][0] and all(done <= n for done, n in told)
    assert len(record["random"]) >= 3 and record["base"] == pytest.approx(0.4, abs=0.05)
    assert record["seconds"] == 2.0 * len(ran)
    assert read_json(tmp_path / "c" / "contest.json") == record


def test_a_control_that_is_better_is_taken_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cells(monkeypatch, module, {"low-nll": 0.2, "two": 0.1})
    record = held(tmp_path / "c", settings())
    assert record["chosen"] == {"name": "low-nll", "strategy": "low-nll", "changes": {}, "native": False}
    assert "no way along directions beat it, so the default falls back to this control." in record["sentence"]
    assert chosen_arm(record) == Arm(NATIVE, "low-nll")


def test_a_winner_that_is_no_better_than_chance_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cells(monkeypatch, module, {})
    record = held(tmp_path / "c", settings())
    assert record["sentence"].endswith("it is not separated from random selection on the validation problems.")
    assert {entry["verdict"] for entry in record["arms"]} == {"undecided"}


def test_every_pilot_has_its_own_rows_seed_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_cells(monkeypatch, module, {"directions": 0.3})
    held(tmp_path / "c", settings(seed=7, strategy="full"))
    ran = {cell.name: cell for cell in asked}
    known = candidates(**DIRECTIONS | {"directions": PLUS})
    assert ran["cells/base/0"].rows is None
    for name, arm in (("directions", ENTRANTS[0]), ("two", OWN), ("random", Arm.of("random"))):
        for number in (0, 1):
            cell = ran[f"cells/{name}/{number}"]
            assert cell.rows == training_rows(corpus(), arm.choose(known, 12, 7 + number))
            assert (cell.training_seed, cell.sampling_seed) == (7 + number, 7)
    assert ran["cells/directions/0"].rows != ran["cells/directions/1"].rows
    own = {response for _, response in ran["cells/rft/0"].rows or []}
    assert len(own) == 12 and all(text.startswith("my own way") for text in own)


def test_an_arm_that_lacks_its_needs_takes_no_part_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_cells(monkeypatch, module, {"low-nll": 0.1})
    known = replace(candidates(**DIRECTIONS | {"directions": ()}), own_answers=None)
    record = contest(tmp_path / "c", corpus(), known, CELLS, "w", settings())
    table = {entry["name"]: entry for entry in record["arms"]}
    assert table["rft"]["status"] == table["directions"]["status"] == "failed"
    assert table["rft"]["reason"].endswith("own answers to the rows' problems; give --model")
    assert table["directions"]["reason"].startswith("this strategy needs directions")
    assert not any(cell.name.startswith(("cells/rft", "cells/directions/")) for cell in ran)
    assert record["chosen"]["name"] in ("low-nll", "two") and record["ranking"][2:] == ["directions", "rft"]


def test_cells_that_fail_cost_an_arm_its_place_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cells(monkeypatch, module, {"two": 0.3, "low-nll": 0.1}, failing=frozenset([("two", 0), ("base", 0)]))
    record = held(tmp_path / "a", settings())
    two = next(entry for entry in record["arms"] if entry["name"] == "two")
    assert (two["status"], two["reason"]) == ("failed", "training diverged")
    assert record["chosen"]["name"] == "low-nll" and record["base"] is None
    fake_cells(monkeypatch, module, {}, failing=frozenset(("random", number) for number in range(9)))
    with pytest.raises(SkillbasisError, match="no arm can be compared with random selection; .*: training diverged"):
        held(tmp_path / "b", settings())
    lacking = settings(arms=(Arm.of("rft"), Arm.of("deita")))
    bare = replace(candidates(), own_answers=None, given_quality=None)
    fake_cells(monkeypatch, module, {})
    with pytest.raises(SkillbasisError, match="no arm can be compared .*the first failure: this strategy needs the mo"):
        contest(tmp_path / "d", corpus(), bare, CELLS, "w", lacking)


def test_the_same_call_runs_nothing_and_another_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_cells(monkeypatch, module, {"two": 0.2})
    first = held(tmp_path / "a", settings())
    n = len(ran)
    assert held(tmp_path / "a", settings()) == first and len(ran) == n
    assert held(tmp_path / "b", settings()) == first
    assert held(tmp_path / "a", settings(budget=13))["budget"] == 13
    tokens = held(tmp_path / "c", settings(budget=200, budget_unit="tokens"))
    assert (tokens["budget"], tokens["budget_unit"]) == (200, "tokens")
    other = replace(candidates(**DIRECTIONS | {"directions": PLUS}), own_answers=None)
    n = len(ran)
    contest(tmp_path / "b", corpus(), other, CELLS, "w", settings())
    assert len(ran) > n, "other evidence is another contest"


def test_rows_may_be_chosen_with_training_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cells(monkeypatch, module, {})
    asked = []

    def choose(arm: Arm, known: Any, budget: int, seed: int, unit: Any) -> Any:
        asked.append((arm.name, budget, seed, unit))
        return Arm.of("random").choose(known, budget, seed, unit)

    held(tmp_path / "c", settings(arms=(Arm.of("weakness-rounds"),), n_seeds=1), choose=choose)
    assert ("weakness-rounds", 12, 0, "rows") in asked and ("random", 12, 0, "rows") in asked


def test_who_takes_part_by_itself() -> None:
    one, two = ((0, "+"),), ((0, "+"), (2, "-"))
    arms = {arm.name: arm for arm in default_arms(one, (*two, (1, "+")))}
    assert set(ARMS) < set(arms) and len(arms) == len(ARMS) + 2
    assert dict(arms["directions+likelihood in cells"].changes)["cells"] > 1
    assert dict(arms["directions+likelihood of two"].changes) == {"directions": two}
    assert len(default_arms(two, two)) == len(default_arms((), ())) == len(ARMS) + 1, "no mixture of what is chosen"
    natives = [arm for arm in arms.values() if STRATEGIES[arm.strategy].native]
    assert len(natives) == 7 and {"low-nll", "rft", "human-weakness"} <= set(arms) - {arm.name for arm in natives}
    ContestSettings(arms=tuple(arms.values()), budget=1)


def test_contests_that_cannot_be_meant() -> None:
    for arms, message in (
        ((), "arms of different names, not none"),
        ((Arm.of("rft"), Arm("rft", "low-nll")), "arms of different names, not rft, rft"),
        ((Arm.of("random"),), "random is the control of every contest, base the untuned model and native the winner"),
        ((Arm(NATIVE, "low-nll"),), "give no arm such a name"),
        ((Arm("base", "low-nll"),), "give no arm such a name"),
    ):
        with pytest.raises(UsageError, match=message):
            settings(arms=arms)
    with pytest.raises(UsageError, match="at least one seed, repeat"):
        settings(n_seeds=0)
