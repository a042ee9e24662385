"""Arms x seeds at an equal budget, the same training and evaluation, paired by seed: does a selection beat chance?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import statistics
from .artifact import array_fingerprint, building, is_current, read_json, write_json
from .cells import Cell, CellResult, CellSettings, run_cells
from .corpus import Corpus, write_selection
from .errors import SkillbasisError, UsageError
from .probe import selection_rows
from .select import Candidates, select
from .select.strategy import check_strategy, describe

KIND = "study"
BASE = "base"
CONTROLS = ("random", "human-balanced", "low-nll")
"""Arms that the others are compared with, where they are in the study."""


@dataclass(frozen=True)
class StudySettings:
    """What is compared."""

    arms: tuple[str, ...]
    """Selection strategies; the untuned `base` is always measured beside them."""
    budget: int
    """Rows of every arm."""
    seeds: tuple[int, ...]
    """Each seed draws its own selection, order of training and samples; arms are paired by seed."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            check_strategy(arm)
        if len(set(self.arms)) != len(self.arms) or len(set(self.seeds)) != len(self.seeds):
            raise UsageError("the arms and the seeds of a study must be different from each other")
        if not self.seeds or not self.arms:
            raise UsageError("a study needs at least one arm and one seed")


def study(
    out: str | Path,
    corpus: Corpus,
    candidates: Candidates,
    cells: CellSettings,
    base_fingerprint: str,
    settings: StudySettings,
    *,
    selection_cost_s: dict[str, float] | None = None,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs every arm at every seed and compares them.

    Args:
        out: artifact directory: `summary.json`, `selections/ARM-SEED.jsonl`, and a cell per arm and seed.
        candidates: what the strategies choose from, with the chosen directions in its settings.
        cells: model, test task, sampling and training.
        selection_cost_s: seconds that finding the selection took (proxy runs are compute too), by arm.
    Returns: the content of `summary.json`.
    Raises: UsageError: an arm lacks what it needs, or the budget is above the pool.
    """
    out = Path(out)
    inputs = {
        "settings": asdict(settings),
        "cells": {key: value for key, value in asdict(cells).items() if key != "model"},
        "weights_fingerprint": base_fingerprint,
        "corpus_fingerprint": corpus.fingerprint,
        "selection": asdict(candidates.settings),
        "scores": array_fingerprint(candidates.scores.values) if candidates.scores else None,
        "likelihood": array_fingerprint(candidates.likelihood.mean_nll) if candidates.likelihood else None,
    }
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "summary.json"))
    with building(out, KIND, inputs, {}) as work:
        jobs, holes = [], {}
        for arm in settings.arms:
            for seed in settings.seeds:
                try:
                    chosen = select(candidates, arm, settings.budget, seed)
                except SkillbasisError as error:
                    holes[f"cells/{arm}/{seed}"] = str(error)
                    continue
                how = describe(candidates.settings, arm) | {"budget": settings.budget, "seed": seed}
                write_selection(work / "selections" / f"{arm}-{seed}.jsonl", corpus, chosen, how)
                rows = selection_rows(corpus, [row.id for row in chosen])
                jobs.append(Cell(f"cells/{arm}/{seed}", rows, seed, seed))
        jobs += [Cell(f"cells/{BASE}/{seed}", None, seed, seed) for seed in settings.seeds]
        results = run_cells(work, jobs, cells, base_fingerprint, n_workers=n_workers, on_cell=on_cell)
        results |= {name: CellResult(name, None, reason, 0.0) for name, reason in holes.items()}
        summary = _compare(results, settings, cells, selection_cost_s or {})
        write_json(work / "summary.json", statistics.nan_to_none(summary | {"settings": inputs}))
    return dict(read_json(out / "summary.json"))


def _compare(
    results: dict[str, CellResult], settings: StudySettings, cells: CellSettings, cost_s: dict[str, float]
) -> dict[str, Any]:
    """Means, intervals and paired differences; an arm with a failed cell is compared on the seeds it has."""
    arms: dict[str, Any] = {}
    table: dict[str, dict[int, CellResult]] = {}
    for arm in (BASE, *settings.arms):
        cells_of = {seed: results[f"cells/{arm}/{seed}"] for seed in settings.seeds}
        done = {seed: cell for seed, cell in cells_of.items() if cell.result is not None}
        reasons = sorted({cell.reason for cell in cells_of.values() if cell.reason})
        table[arm] = done
        entry: dict[str, Any] = {
            "status": "done" if len(done) == len(cells_of) else "partial" if done else "failed",
            "reason": "; ".join(reasons) or None,
            "n_rows": 0 if arm == BASE else settings.budget,
            "cost_seconds": sum(cell.seconds for cell in done.values()) + cost_s.get(arm, 0.0),
        }
        if done:
            outcomes = [cell.result for cell in done.values() if cell.result is not None]
            for k in outcomes[0].ks:
                values = np.stack([outcome.pass_at_k(k) for outcome in outcomes])  # (seeds, problems)
                estimate = statistics.aggregate_over_seeds(values)
                entry[f"pass@{k}"] = statistics.as_json(estimate) | {"seeds": list(estimate.seed_means)}
            entry["mean_tokens"] = float(np.mean([outcome.n_tokens.mean() for outcome in outcomes]))
            entry["truncated_fraction"] = float(np.mean([outcome.truncated.mean() for outcome in outcomes]))
        arms[arm] = entry
    paired = _paired(table, settings.arms)
    first = next(iter(next(done for done in table.values() if done).values())).result
    assert first is not None
    return {
        "task": cells.task,
        "n_problems": len(first.problem_ids),
        "rollouts": cells.sampling.rollouts,
        "budget": settings.budget,
        "seeds": list(settings.seeds),
        "arms": arms,
        "paired": paired,
        "verdicts": {arm: _verdict(arm, arms[arm], paired) for arm in settings.arms if arm != "random"},
        "notes": [
            "Intervals of arms and differences are 95 % t-intervals over seeds; a difference counts only if the "
            "interval over problems excludes zero too.",
            f"Directions were chosen on validation problems; {cells.task} was not used to choose anything.",
        ],
    }


def _paired(table: dict[str, dict[int, CellResult]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Differences of each arm to the controls, on common seeds; Holm over the arms of one control and metric."""
    rows: list[dict[str, Any]] = []
    ks = next(cell.result.ks for done in table.values() for cell in done.values() if cell.result is not None)
    for control in CONTROLS:
        if not table.get(control):
            continue
        for k in sorted({1, 4, ks[-1]} & set(ks)):  # the k between say nothing new
            family: list[dict[str, Any]] = []
            for arm in (BASE, *arms):
                common = sorted(set(table[arm]) & set(table[control]))
                if arm == control or not common:
                    continue
                a, b = (np.stack([table[name][seed].pass_at_k(k) for seed in common]) for name in (arm, control))
                difference = statistics.paired_over_seeds(a, b)
                entry = statistics.as_json(difference)
                entry |= {"n_seeds": len(common), "holds": difference.holds}
                family.append({"a": arm, "b": control, "metric": f"pass@{k}"} | entry)
            corrected = statistics.holm([float("nan") if r["p_value"] is None else r["p_value"] for r in family])
            for row, p_holm in zip(family, corrected, strict=True):
                row["p_holm"] = p_holm
            rows += family
    return rows


def _verdict(arm: str, entry: dict[str, Any], paired: Sequence[dict[str, Any]]) -> str:
    """One plain sentence on an arm against random selection."""
    if entry["status"] == "failed":
        return f"{arm} failed: {entry['reason']}"
    row = next((r for r in paired if r["a"] == arm and r["b"] == "random" and r["metric"] == "pass@1"), None)
    if row is None:
        return f"{arm} cannot be compared with random selection: they share no seed"
    if row["low"] is None:
        return f"{arm} cannot be judged: {row['reason']}"
    points = f"{100 * row['mean']:+.1f} points, 95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    if row["holds"] and row["p_holm"] < 0.05:
        return f"{arm} is {'better' if row['mean'] > 0 else 'worse'} than random selection: {points}"
    return f"{arm} is not separated from random selection: {points}"
