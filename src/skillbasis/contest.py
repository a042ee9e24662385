"""Which way of selecting suits this model: arms tried on validation problems, the worse half dropped after each round.

What a selection is worth depends on the model, the pool and the budget; so the default is not fixed but chosen, by
pilots at the full budget that are judged like those of directions (halving.py, verdicts.py). Arms that read no
direction take part as controls: where the best of them wins, it is taken, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import statistics
from .artifact import building, is_current, read_json, write_json
from .cells import Cell, CellResult, CellSettings, comparison_inputs, run_cells
from .corpus import Corpus, training_rows
from .errors import SkillbasisError, UsageError
from .halving import CONTROL, Asked, Race, Schedule, race
from .select import Candidates, SignedDirection
from .select.strategy import STRATEGIES, Arm, ChooseRows, Unit
from .verdicts import judge

KIND = "contest"
NATIVE = "native"
"""The arm of a study that the contest has chosen."""
BASE = "base"
"""The untuned model, measured beside the arms."""
ARMS = (
    "directions",
    "directions+likelihood",
    "directions+reread",
    "coverage+quality",
    "weakness",
    "low-nll",
    "low-nll+reread",
    "rft",
    "human-balanced",
    "human-weakness",
)
"""What takes part by itself; random selection is the control of all."""
N_CELLS = 8
"""Cells of the variant of `directions+likelihood` that covers its direction."""


@dataclass(frozen=True, kw_only=True)
class ContestSettings(Schedule):
    """Who takes part, and how often each is tried."""

    arms: tuple[Arm, ...]
    budget: int
    """Rows or tokens of each pilot: those of the study, since what is best depends on it."""
    budget_unit: Unit = "rows"
    seed: int = 0
    """Of the first pilot; the others count on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or not names:
            raise UsageError(f"a contest needs arms of different names, not {', '.join(names) or 'none'}")
        if {CONTROL, NATIVE, BASE} & set(names):
            raise UsageError(
                f"{CONTROL} is the control of every contest, {BASE} the untuned model and {NATIVE} the winner; give no "
                "arm such a name"
            )


def default_arms(directions: tuple[SignedDirection, ...], ranking: tuple[SignedDirection, ...]) -> tuple[Arm, ...]:
    """Every way worth a try along the chosen directions, and the controls.

    Args:
        directions: what the probe chose.
        ranking: all signed directions that the probe tried, the best first; the first two make a mixture.
    """
    arms = [Arm.of(name) for name in ARMS]
    arms.insert(2, Arm("directions+likelihood in cells", "directions+likelihood", (("cells", N_CELLS),)))
    if len(ranking) > 1 and tuple(ranking[:2]) != directions:
        arms.insert(
            3, Arm("directions+likelihood of two", "directions+likelihood", (("directions", tuple(ranking[:2])),))
        )
    return tuple(arms)


def contest(
    out: str | Path,
    corpus: Corpus,
    candidates: Candidates,
    cells: CellSettings,
    base_fingerprint: str,
    settings: ContestSettings,
    *,
    choose: ChooseRows = Arm.choose,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, Any]:
    """Tries arms on the validation task and chooses one.

    Killed at any moment, the same call goes on: finished cells are kept.

    Args:
        out: artifact directory: `contest.json`, and a cell per arm and pilot.
        candidates: what the arms choose from.
        cells: model, validation task, sampling and training.
        choose: gives the rows of an arm.
    Returns: the content of `contest.json`; `chosen` is the winner {name, strategy, changes, native}. An arm that lacks
        what it needs takes no part, and its reason is kept.
    Raises: SkillbasisError: no control or no arm succeeded.
    """
    out = Path(out)
    inputs = comparison_inputs(settings, cells, base_fingerprint, corpus, candidates)
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "contest.json"))
    arms = {arm.name: arm for arm in settings.arms}
    with building(out, KIND, inputs, {}) as work:
        results: dict[tuple[str, int], CellResult] = {}
        n_expected = 1 + settings.n_cells(len(arms))

        def answer(asked: Asked) -> Mapping[tuple[str, int], np.ndarray | None]:
            new, names = [], {}
            for name, number in ([(BASE, 0)] if not results else []) + asked:
                path = f"cells/{name}/{number}"
                names[name, number] = path
                try:
                    rows = None
                    if name != BASE:
                        arm = Arm.of("random") if name == CONTROL else arms[name]
                        seed = settings.seed + number
                        chosen = choose(arm, candidates, settings.budget, seed, settings.budget_unit)
                        rows = training_rows(corpus, chosen)
                except SkillbasisError as error:
                    results[name, number] = CellResult(path, {}, str(error), 0.0)
                else:
                    new.append(Cell(path, rows, settings.seed + number, settings.seed))
            n_before = len(results)

            def show(cell: CellResult, n: int, _: int) -> None:
                if on_cell:
                    on_cell(cell, n_before + n, max(n_expected, n_before + n))

            done = run_cells(
                work,
                new,
                cells,
                base_fingerprint,
                n_workers=n_workers,
                on_cell=show,
            )
            results.update((key, done[path]) for key, path in names.items() if path in done)
            return {key: None if results[key].result is None else results[key].pass_at_k(1) for key in asked}

        outcome = race(list(arms), settings, answer)
        record = _record(outcome, results, arms, settings) | {"task": cells.tasks[0], "settings": inputs}
        write_json(work / "contest.json", statistics.nan_to_none(record))
    return dict(read_json(out / "contest.json"))


def _record(
    outcome: Race, results: Mapping[tuple[str, int], CellResult], arms: Mapping[str, Arm], settings: ContestSettings
) -> dict[str, Any]:
    reasons = {name: cell.reason for (name, _), cell in results.items() if cell.reason is not None}
    if not outcome.controls or not outcome.finalists:
        reason = next(iter(reasons.values()), "none ran")
        raise SkillbasisError(f"no arm can be compared with random selection; the first failure: {reason}")
    base = results[BASE, 0]
    table = judge(outcome, list(arms), base.pass_at_k(1) if base.results else None, reasons, draws_vary=True)
    # The fresh cells of the finalists decide: those that brought an arm this far were lucky on the whole.
    fresh = {entry["name"]: entry["pass@1"]["mean"] for entry in table if entry["name"] in outcome.finalists}
    winner = max(outcome.finalists, key=lambda name: fresh[name])
    for entry in table:
        entry["native"] = STRATEGIES[arms[entry["name"]].strategy].native
    arm, native = arms[winner], STRATEGIES[arms[winner].strategy].native
    verdict = next(entry["verdict"] for entry in table if entry["name"] == winner)
    sentence = f"{winner} has the best fresh pilots of {len(outcome.finalists)} finalists ({100 * fresh[winner]:.1f} %)"
    if not native:
        sentence += "; no way along directions beat it, so the default falls back to this control"
    if verdict != "helps":
        sentence += "; it is not separated from random selection on the validation problems"
    return {
        "chosen": {"name": winner, "strategy": arm.strategy, "changes": dict(arm.changes), "native": native},
        "sentence": sentence + ".",
        "budget": settings.budget,
        "budget_unit": settings.budget_unit,
        "arms": table,
        "random": [float(control.mean()) for control in outcome.controls],
        "base": float(base.pass_at_k(1).mean()) if base.results else None,
        "ranking": outcome.ranking,
        "finalists": outcome.finalists,
        "rungs": outcome.rungs,
        "n_cells": outcome.n_cells,
        "seconds": sum(cell.seconds for cell in results.values()),
    }


def chosen_arm(record: Mapping[str, Any]) -> Arm:
    """The winner of a contest under the name `native`."""
    changes = dict(record["chosen"]["changes"])
    if "directions" in changes:
        changes["directions"] = tuple((int(k), sign) for k, sign in changes["directions"])
    return Arm(NATIVE, record["chosen"]["strategy"], tuple(changes.items()))
