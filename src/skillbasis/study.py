"""Arms x seeds at an equal budget, the same training and evaluation, paired by seed: does a selection beat chance?

Each arm is trained once per seed and answers all tasks. What cannot be selected, diverges or runs out of memory is a
hole with a reason; the rest goes on. arms.py says what the figures are and what may be claimed, study_tables.py and
study_forest.py write them down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from . import statistics
from .arms import BASE, BEST_HUMAN, RANDOM, Runs, arm_figures, best_human, paired_differences, verdict_of
from .artifact import building, is_current, read_json, write_json, write_text
from .cells import Cell, CellResult, CellSettings, comparison_inputs, run_cells
from .corpus import Corpus, training_rows, write_selection
from .errors import SkillbasisError, UsageError, nearest
from .evaluate.tasks import Task
from .select import Candidates
from .select.strategy import Arm, ChooseRows, Unit, describe
from .study_forest import forest_svg
from .study_tables import latex, markdown

KIND = "study"


@dataclass(frozen=True)
class StudySettings:
    """What is compared."""

    arms: tuple[Arm, ...]
    """What is compared, a lone name being a strategy; the untuned `base` is always measured beside them."""
    budget: int
    """Rows, or tokens, of every arm."""
    seeds: tuple[int, ...]
    """Each seed draws its own selection, order of training and samples; arms are paired by seed."""
    budget_unit: Unit = "rows"
    """What the budget counts; tokens are those of prompt and response."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(Arm.of(arm) for arm in self.arms))
        if len(set(self.names)) != len(self.arms) or len(set(self.seeds)) != len(self.seeds):
            raise UsageError("the arms and the seeds of a study must be different from each other")
        if BASE in self.names:
            raise UsageError(f"{BASE} is the untuned model in every study; give the arm another name")
        if not self.seeds or not self.arms:
            raise UsageError("a study needs at least one arm and one seed")
        units = list(get_args(Unit))
        if self.budget_unit not in units:
            hint = nearest(self.budget_unit, units)
            raise UsageError(f"unknown unit of the budget {self.budget_unit!r}{hint}; allowed are {', '.join(units)}")
        if self.budget < 1:
            raise UsageError(f"the budget must be at least 1, not {self.budget}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arms, in order."""
        return tuple(arm.name for arm in self.arms)


@dataclass(frozen=True)
class _Selected:
    """What was chosen, and how long that took."""

    cells: list[Cell]
    holes: dict[str, CellResult]
    """Cells that cannot be run, since their rows could not be chosen."""
    seconds: dict[str, float]
    """By arm, over all seeds."""


def study(
    out: str | Path,
    corpus: Corpus,
    candidates: Candidates,
    cells: CellSettings,
    base_fingerprint: str,
    settings: StudySettings,
    *,
    choose: ChooseRows = Arm.choose,
    selection_cost_s: Mapping[str, float] | None = None,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs every arm at every seed and compares them on every task.

    Killed at any moment, the same call goes on: finished cells are kept.

    Args:
        out: artifact directory: `summary.json`, the same as tables (`summary.md`, `summary.tex`) and as a plot
            (`forest.svg`), `selections/ARM-SEED.jsonl`, and a cell per arm and seed.
        candidates: what the strategies choose from, with the chosen directions in its settings.
        cells: model, test tasks, sampling and training.
        choose: gives the rows of an arm.
        selection_cost_s: seconds that finding the selection took once (proxy runs, likelihoods, own answers), by arm.
        n_workers: as of `run_cells`.
    Returns: the content of `summary.json`. An arm whose rows cannot be chosen (a budget above the pool, something
        that was not measured) and a cell that fails are in it with their reasons.
    Raises: UsageError: a task cannot be loaded.
    """
    out, tasks = Path(out), cells.load_tasks()
    inputs = comparison_inputs(settings, cells, base_fingerprint, corpus, candidates)
    inputs |= {"tasks": {task.name: task.fingerprint for task in tasks}}
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "summary.json"))
    with building(out, KIND, inputs, {}) as work:
        selected = _select(work, corpus, candidates, settings, choose)
        jobs = selected.cells + [Cell(f"cells/{BASE}/{seed}", None, seed, seed) for seed in settings.seeds]
        results = run_cells(work, jobs, cells, base_fingerprint, n_workers=n_workers, on_cell=on_cell)
        results |= selected.holes
        once = {arm: seconds + (selection_cost_s or {}).get(arm, 0.0) for arm, seconds in selected.seconds.items()}
        n_rows = {cell.name: len(cell.rows or ()) for cell in jobs}
        summary = summarise(results, tasks, settings, n_rows, once, cells.sampling.rollouts)
        summary = statistics.nan_to_none(summary | {"settings": inputs})
        write_json(work / "summary.json", summary)
        write_text(work / "summary.md", markdown(summary))
        write_text(work / "summary.tex", latex(summary))
        write_text(work / "forest.svg", forest_svg(summary))
    return dict(read_json(out / "summary.json"))


def _select(
    work: Path, corpus: Corpus, candidates: Candidates, settings: StudySettings, choose: ChooseRows
) -> _Selected:
    """Chooses the rows of every arm and seed and writes them down; what fails is a hole."""
    found = _Selected([], {}, dict.fromkeys(settings.names, 0.0))
    for arm in settings.arms:
        for seed in settings.seeds:
            started, name = time.perf_counter(), f"cells/{arm.name}/{seed}"
            try:
                chosen = choose(arm, candidates, settings.budget, seed, settings.budget_unit)
            except SkillbasisError as error:
                found.holes[name] = CellResult(name, {}, str(error), 0.0)
            else:
                how = describe(arm.settings(candidates.settings), arm.strategy) | {"arm": arm.name}
                how |= {"budget": settings.budget, "unit": settings.budget_unit, "seed": seed}
                write_selection(work / "selections" / f"{arm.name}-{seed}.jsonl", corpus, chosen, how)
                found.cells.append(Cell(name, training_rows(corpus, chosen), seed, seed))
            found.seconds[arm.name] += time.perf_counter() - started
    return found


def summarise(
    results: Mapping[str, CellResult],
    tasks: Sequence[Task],
    settings: StudySettings,
    n_rows: Mapping[str, int],
    selection_s: Mapping[str, float],
    rollouts: int,
) -> dict[str, Any]:
    """The content of `summary.json` but for its settings; an arm with failed cells is compared on the seeds it has.

    Args:
        results: of every cell, `cells/ARM/SEED`.
        n_rows: by the name of the cell.
        selection_s: seconds that choosing the rows took, by arm.
    """
    by_arm = {arm: {seed: results[f"cells/{arm}/{seed}"] for seed in settings.seeds} for arm in (BASE, *settings.names)}
    facts = {arm: _facts(of, n_rows, selection_s.get(arm, 0.0)) for arm, of in by_arm.items()}
    compared: dict[str, Any] = {}
    for task in tasks:
        runs: Runs = {
            arm: {seed: cell.results[task.name] for seed, cell in of.items() if cell.results}
            for arm, of in by_arm.items()
        }
        arms = {arm: facts[arm] | (arm_figures(list(of.values())) if of else {}) for arm, of in runs.items()}
        paired, human = paired_differences(runs, settings.names), best_human(runs)
        compared[task.name] = {
            "n_problems": len(task.problems),
            "arms": arms,
            "best_human": human,
            "paired": paired,
            "verdicts": {arm: verdict_of(arm, facts[arm], paired, human) for arm in settings.names if arm != RANDOM},
        }
    first = tasks[0].name
    return {
        "task": first,
        "rollouts": rollouts,
        "budget": settings.budget,
        "budget_unit": settings.budget_unit,
        "seeds": list(settings.seeds),
        **compared[first],
        "tasks": compared,
        "notes": _notes(compared),
    }


def _facts(cells: Mapping[int, CellResult], n_rows: Mapping[str, int], selection_s: float) -> dict[str, Any]:
    """What an arm is whatever the task: whether it ran, what it was trained on, what it cost over all its seeds."""
    done = [cell for cell in cells.values() if cell.results]
    reasons = sorted({cell.reason for cell in cells.values() if cell.reason})
    rows = [n_rows[cell.name] for cell in done]
    training = sum(cell.training_seconds for cell in done)
    total = sum(cell.seconds for cell in cells.values())  # what failed has cost its time too
    return {
        "status": "done" if len(done) == len(cells) else "partial" if done else "failed",
        "reason": "; ".join(reasons) or None,
        "n_seeds": len(done),
        "n_rows": None if not rows else rows[0] if len(set(rows)) == 1 else float(np.mean(rows)),
        "training_tokens": float(np.mean([cell.n_training_tokens for cell in done])) if done else None,
        "selection_seconds": round(selection_s, 3),
        "training_seconds": round(training, 3),
        "answering_seconds": round(sum(cell.seconds for cell in done) - training, 3),
        "cost_seconds": round(total + selection_s, 3),
    }


def _notes(compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = [
        "Intervals of arms and differences are 95 % t-intervals over seeds. An arm is called better or worse only if "
        "the interval over problems excludes zero too, on the same side, and p stays below .05 after Holm's correction "
        "over the arms of one control, metric and task.",
        "Differences that could be seen are those found in 80 % of studies of this size at p < .05, before Holm's "
        "correction, by both tests.",
        "Costs are sums over seeds, but for what was measured once to select by (proxy runs, likelihoods, own "
        "answers): that counts in full for every arm that needs it.",
        f"Directions were chosen on validation problems; no problem of {', '.join(compared)} was used to choose rows.",
    ]
    if any(part["best_human"] for part in compared.values()):
        notes.append(
            f"The control {BEST_HUMAN} is the human-skill arm with the highest mean pass@1 on these same problems. "
            "That flatters it, so differences in favour of other arms are rather too small than too large."
        )
    else:
        notes.append("No human-skill arm has a result here, so nothing is compared with one.")
    return notes
