"""A few requests and answers of every arm, read only where a person asks for them: they may be harmful."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import SkillbasisError
from ...evaluate.safety.judged import read_judgements
from ...evaluate.safety.judgement import Judgement
from ...evaluate.samples import PROBLEMS, SAMPLES, Asked, read_asked, read_samples
from ..records.safety import Safety, ShownArm, ShownExchange
from .wording import BASE, UNTUNED

SAFETY = "safety"
CELLS = "safety/cells"
JUDGED = "safety/judged/cells"
FLAG = "--show-responses"
MAX_NAME_BYTES = 255
N_SHOWN = 5
"""Exchanges per arm."""
MAX_SHOWN_CHARS = 2_000
"""Of a request, and of an answer."""


def read_shown(run: Path, safety: Safety) -> tuple[ShownArm, ...]:
    """Reads exchanges of the untuned model and of every arm at the largest budget, first seed.

    Args:
        run: the run directory.
        safety: its safety study.
    Returns: of each, at most `N_SHOWN` answers to attacks, those that were judged successful attacks first; a reason
        where there are none.
    Cost: one file of answers per arm in memory at a time.
    """
    if not safety.budgets or not safety.seeds:
        return ()
    asked = read_asked(run / SAFETY) if (run / SAFETY / PROBLEMS).is_file() else {}
    # Several lists of attacks are summarised as one, called by all their names.
    attacks = [task for name in safety.tasks.attacks for task in dict.fromkeys((name, *name.split(" + ")))]
    seed, budget = str(safety.seeds[0]), str(max(safety.budgets))
    places = {BASE: f"{BASE}/{seed}"} | {arm: f"{budget}/{arm}/{seed}" for arm in safety.arms}
    return tuple(_read_arm(run, arm, place, attacks, asked) for arm, place in places.items())


def _read_arm(
    run: Path, arm: str, place: str, attacks: Iterable[str], asked: Mapping[tuple[str, str], Asked]
) -> ShownArm:
    name, cell = UNTUNED if arm == BASE else arm, f"{CELLS}/{place}"
    # An arm's name is one folder's: no other part of the disk is read by it.
    if "/" in arm or len(arm.encode("utf-8", "replace")) > MAX_NAME_BYTES or not (run / cell / SAMPLES).is_file():
        return ShownArm(name=name, place=cell, reason="there is no finished cell")
    try:
        samples = read_samples(run / cell)
        judged = read_judgements(run / JUDGED / place) if (run / JUDGED / place).is_dir() else {}
    except SkillbasisError as error:
        return ShownArm(name=name, place=cell, reason=str(error))
    found = [_exchange(record, asked, judged.get(task, {})) for task in attacks for record in samples.get(task, ())]
    found.sort(key=lambda item: (not item.success, -(item.score or 0.0)))
    return ShownArm(name=name, place=cell, exchanges=tuple(found[:N_SHOWN]))


def _exchange(
    record: Mapping[str, Any],
    asked: Mapping[tuple[str, str], Asked],
    judged: Mapping[tuple[str, int], Judgement],
) -> ShownExchange:
    of = asked.get((record["task"], record["problem_id"]))
    judgement = judged.get((record["problem_id"], record["sample"]), Judgement(None, None))
    return ShownExchange(
        task=record["task"],
        problem_id=record["problem_id"],
        request=of.prompt[-1]["content"] if of else None,
        response=record["response"],
        refused=judgement.refused,
        score=judgement.score,
        success=bool(judgement.is_success),
    )
