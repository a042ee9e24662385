"""What may be said of each direction after a race: differences to the controls and to the base model, and a verdict.

The cells that chose a direction say nothing about it (see halving.py), and Holm's correction is over all directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import statistics
from .halving import Race, between_pilots, with_pilot_variance

LEVEL = 0.05


def judge(
    race: Race,
    names: Sequence[str],
    base: np.ndarray | None,
    reasons: Mapping[str, str],
    *,
    draws_vary: bool,
) -> list[dict[str, Any]]:
    """Compares every direction with the controls and with the base model, paired by problem.

    Where every cell is another draw (pilots), the intervals hold the variance between pilots, and a verdict is on the
    difference to the controls: rows are taken anyway, the question is which. Where a cell is the same vector sampled
    anew (steering), the variance is that between random vectors, and a repeat does not make it smaller: a direction
    must stand out from what any vector of its norm does. And it must beat the untouched model too, since random vectors
    often harm: the verdict takes the larger p of the two, where they point the same way.

    Args:
        race: with at least one control and one direction that succeeded.
        names: of the directions, in the order of the table.
        base: (problems,) pass@1 of the untouched model; None where it failed.
        reasons: why cells failed, by direction.
        draws_vary: as in the race.
    Returns: for each direction name, n_pilots, n_judged, status, reason, pilots (pass@1 of each cell), pass@1,
        differences and verdict (`helps`, `hurts`, `undecided`), the last four None where all its cells failed.
    """
    control = np.mean(race.controls, axis=0)  # (problems,)
    between = cell_variance(race, draws_vary=draws_vary)
    table: list[dict[str, Any]] = []
    to_random, to_base = [], []
    for name in names:
        cells = race.cells[name]
        judged = [cells[number] for number in race.judged[name]]
        entry: dict[str, Any] = {"name": name, "n_pilots": len(cells), "n_judged": len(judged)}
        entry |= {"status": "done" if cells else "failed", "reason": reasons.get(name)}
        entry["pilots"] = [float(cells[number].mean()) for number in sorted(cells)]
        values = np.mean(judged or list(cells.values()), axis=0) if cells else None
        entry["pass@1"] = None if values is None else statistics.as_json(statistics.mean_estimate(values))
        side = 1 / max(1, len(judged)) if draws_vary else 1.0
        known = None if values is None else statistics.paired_difference(values, control)
        to_random.append(known and with_pilot_variance(known, between, side + 1 / len(race.controls)))
        known = None if values is None or base is None else statistics.paired_difference(values, base)
        to_base.append(known and with_pilot_variance(known, between, side) if draws_vary else known)
        if cells and not judged:  # the luck of the choice is still in its figures
            to_random[-1], to_base[-1] = (d and replace(d, p_value=float("nan")) for d in (to_random[-1], to_base[-1]))
        table.append(entry)
    random_holm, base_holm = (
        statistics.holm([float("nan") if d is None else d.p_value for d in differences])
        for differences in (to_random, to_base)
    )
    for i, entry in enumerate(table):
        for key, difference, p_holm in (
            ("difference_to_random", to_random[i], random_holm[i]),
            ("difference_to_base", to_base[i], base_holm[i]),
        ):
            entry[key] = statistics.as_json(difference) | {"p_holm": float(p_holm)} if difference else None
        entry["verdict"] = None
        if entry["status"] == "done":
            tests = [(to_random[i], random_holm[i])] + ([] if draws_vary else [(to_base[i], base_holm[i])])
            entry["verdict"] = _verdict(tests)
    return table


def _verdict(tests: Sequence[tuple[statistics.Difference | None, float]]) -> str:
    """One word from tests that must all be significant and agree."""
    if any(difference is None or not p_holm < LEVEL for difference, p_holm in tests):
        return "undecided"
    signs = {bool(difference.mean > 0) for difference, _ in tests if difference is not None}
    return "undecided" if len(signs) > 1 else "helps" if signs == {True} else "hurts"


def cell_variance(race: Race, *, draws_vary: bool) -> tuple[float, int]:
    """Variance between cells that differ by luck (all draws, or random vectors), and degrees of freedom."""
    groups = [list(cells.values()) for cells in race.cells.values()] if draws_vary else []
    return between_pilots([*groups, race.controls])
