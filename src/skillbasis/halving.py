"""Which of many directions are best, by successive halving with paired tests: a schedule, blind to what is measured.

Rung 0 gives every direction one cell. After each rung the better half goes on, and whoever of the worse half may still
be the best; whoever is clearly worse than the best is stopped, wherever it stands. `full` gives every direction all
cells instead. At the end the finalists get fresh cells, which choose nothing.

Nothing is used twice. A cell that sent a direction on, or chose it, was lucky on the whole, so it is left out of what
is said of that direction: a finalist is judged by its fresh cells alone, another direction by the cells of its last
rung, the ones it was stopped by. What is said of a winner is thus unbiased, and of a stopped one at worst too low.
That is on these problems: that a direction suits them better than others no fresh cell undoes. Against it stand the
interval over problems and Holm's correction over all directions (verdicts.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from . import statistics
from .errors import UsageError

Strategy = Literal["halving", "full"]
CONTROL = "random"
CLEARLY_WORSE = 0.025
"""One-sided p of being worse than the best below which a direction is stopped although in the better half."""
STILL_OPEN = 0.2
"""One-sided p of being worse than the best above which a direction of the worse half goes on."""

Asked = list[tuple[str, int]]
"""Cells by the direction's name (or `CONTROL`) and number; a number is a draw of its own, the same for all names."""
Answer = Callable[[Asked], Mapping[tuple[str, int], np.ndarray | None]]
"""Runs cells; gives pass@1 of every problem, (problems,), or None where the cell failed."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many cells who gets."""

    strategy: Strategy = "halving"
    """`halving` stops directions that fall behind; `full` gives all of them all cells."""
    n_seeds: int = 3
    """Cells a direction gets at most before the choice."""
    n_finalists: int = 3
    """Best directions that get fresh cells, which judge them."""
    n_repeats: int = 2
    """Fresh cells of each finalist."""
    n_random: int = 3
    """Random controls at least; there are as many as the most tried direction has cells."""
    n_chosen: int = 1
    """Directions to go on with."""

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise UsageError(f"unknown strategy {self.strategy!r}; allowed are {', '.join(get_args(Strategy))}")
        if min(self.n_seeds, self.n_repeats, self.n_random, self.n_chosen) < 1:
            raise UsageError("a probe needs at least one seed, repeat, random control and direction to choose")
        if self.n_finalists < self.n_chosen:
            raise UsageError(f"{self.n_finalists} finalists cannot give {self.n_chosen} chosen directions")

    def n_cells(self, n_directions: int, strategy: Strategy | None = None) -> int:
        """Cells in all, controls too: of `full` exactly; of `halving` where just the better half goes on each time."""
        alive, tried, n_rungs = n_directions, 0, 0
        for _ in range(self.n_seeds):
            tried += alive
            n_rungs += 1
            if (strategy or self.strategy) == "halving":
                alive = self.n_kept(alive)
                if alive <= self.n_chosen:
                    break
        n_controls = max(self.n_random, n_rungs + self.n_repeats)
        return n_controls + tried + min(self.n_finalists, n_directions) * self.n_repeats

    def n_kept(self, n_alive: int) -> int:
        """The better half of so many, but never fewer than are to be chosen."""
        return max(self.n_chosen, math.ceil(n_alive / 2))


@dataclass(frozen=True)
class Race:
    """What came of a schedule."""

    controls: list[np.ndarray]
    """(problems,) of each control that succeeded."""
    cells: dict[str, dict[int, np.ndarray]]
    """(problems,) of each cell that succeeded, by direction and number."""
    judged: dict[str, tuple[int, ...]]
    """The cells that may be used to say something of a direction: those that did not choose it."""
    rungs: list[dict[str, Any]]
    """For each rung: who was tried, and who was stopped with the test against the best; the fresh cells last."""
    ranking: list[str]
    """By the rung reached, then by mean pass@1 before the fresh cells; directions without any cell last."""
    finalists: list[str]
    n_cells: int
    """Cells run, controls and failed ones too."""


def race(names: Sequence[str], schedule: Schedule, answer: Answer, *, draws_vary: bool = True) -> Race:
    """Runs a schedule over directions.

    Args:
        names: of the directions.
        answer: runs the cells of one rung; the same cells are never asked for twice.
        draws_vary: whether a control is what a direction's cell is but for the direction (a fine-tune on other rows),
            so that the variance between controls is that between a direction's cells too.
    Returns: everything measured; deterministic given the answers. A direction whose first cells failed takes no
        further part.
    """
    cells: dict[str, dict[int, np.ndarray]] = {name: {} for name in names}
    controls: dict[int, np.ndarray] = {}
    rungs: list[dict[str, Any]] = []
    last: dict[str, tuple[int, ...]] = {}
    reached = dict.fromkeys(names, 0)
    n_asked = n_controls = 0

    def run(who: Sequence[str], numbers: Sequence[int], n_wanted: int) -> None:
        nonlocal n_asked, n_controls
        asked = [(CONTROL, number) for number in range(n_controls, max(n_wanted, schedule.n_random))]
        n_controls += len(asked)
        asked += [(name, number) for number in numbers for name in who]
        n_asked += len(asked)
        for (name, number), values in answer(asked).items():
            if values is not None:
                (controls if name == CONTROL else cells[name])[number] = values
        last.update((name, tuple(number for number in numbers if number in cells[name])) for name in who)

    alive = list(names)
    whole = tuple(range(schedule.n_seeds))
    for step, numbers in enumerate([whole] if schedule.strategy == "full" else [(number,) for number in whole]):
        run(alive, numbers, numbers[-1] + 1)
        reached.update(dict.fromkeys(alive, step))
        tried, alive = alive, [name for name in alive if cells[name]]
        groups = [list(cells[name].values()) for name in names]
        between = between_pilots([*groups, list(controls.values())] if draws_vary else groups)
        stopped = stop({name: cells[name] for name in alive}, between, schedule) if schedule.strategy != "full" else []
        rungs.append({"rung": step, "numbers": list(numbers), "tried": tried, "stopped": stopped})
        gone = {entry["name"] for entry in stopped}
        alive = [name for name in alive if name not in gone]
        if len(alive) <= schedule.n_chosen or not controls:
            break
    ranking = sorted(names, key=lambda name: (not cells[name], -reached[name], -_mean(cells[name])))
    finalists = [name for name in ranking if cells[name]][: schedule.n_finalists]
    if finalists and controls:  # else nothing can be compared
        fresh = tuple(range(schedule.n_seeds, schedule.n_seeds + schedule.n_repeats))
        run(finalists, fresh, rungs[-1]["numbers"][-1] + 1 + schedule.n_repeats)
        rungs.append({"rung": "repeats", "numbers": list(fresh), "tried": finalists, "stopped": []})
    return Race([controls[number] for number in sorted(controls)], cells, last, rungs, ranking, finalists, n_asked)


def stop(
    cells: Mapping[str, Mapping[int, np.ndarray]], between: tuple[float, int], schedule: Schedule
) -> list[dict[str, Any]]:
    """Which directions take no further part, each compared with the best, paired by problem.

    With several to be chosen, the comparison is with the last of the places that count.

    Args:
        cells: (problems,) by direction and number, of all cells so far.
        between: variance between cells of one direction; see `between_pilots`.
    Returns: name, difference to the best (mean over problems), one-sided p, and why, the best of the stopped first.
    """
    means = {name: np.mean(list(values.values()), axis=0) for name, values in cells.items()}
    order = sorted(means, key=lambda name: -means[name].mean())  # equal ones stay in the order given
    n_half = schedule.n_kept(len(order))
    stopped = []
    for place in range(schedule.n_chosen, len(order)):
        name, best = order[place], order[schedule.n_chosen - 1]
        over_problems = statistics.paired_difference(means[name], means[best])
        difference = with_pilot_variance(over_problems, between, 1 / len(cells[name]) + 1 / len(cells[best]))
        worse = difference.p_value / 2  # the mean cannot be above that of the best; NaN where no problem differs
        if worse < (CLEARLY_WORSE if place < n_half else STILL_OPEN):
            why = "clearly worse than the best" if worse < CLEARLY_WORSE else "worse half"
            stopped.append({"name": name, "difference_to_best": difference.mean, "p_worse": worse, "why": why})
    return stopped


def _mean(cells: Mapping[int, np.ndarray]) -> float:
    return float(np.mean(list(cells.values()))) if cells else -math.inf


def between_pilots(groups: Sequence[Sequence[np.ndarray | float]]) -> tuple[float, int]:
    """Variance of pass@1 between cells of one kind on the same problems, pooled over kinds, and degrees of freedom.

    Args:
        groups: of each kind its cells: their pass@1, or (problems,) the pass@1 of every problem.
    Returns: (0, 0) where no kind has two cells.
    """
    means = [np.array([np.mean(cell) for cell in group]) for group in groups if len(group) > 1]
    n_free = sum(len(group) - 1 for group in means)
    squares = sum(float(np.square(group - group.mean()).sum()) for group in means)
    return (squares / n_free, n_free) if n_free else (0.0, 0)


def with_pilot_variance(
    difference: statistics.Difference, between: tuple[float, int], scale: float, level: float = 0.95
) -> statistics.Difference:
    """Widens a difference over problems by the variance between pilots: another draw of rows would train another model.

    Args:
        difference: paired over problems.
        between: variance between pilots and its degrees of freedom.
        scale: 1 / pilots of one side + 1 / pilots of the other.
    Returns: the interval and p-value by Student's t with Satterthwaite's degrees of freedom.
    Source: Satterthwaite 1946, for the sum of two estimated variances.
    """
    from scipy.stats import t

    variance, n_free = between
    if n_free == 0 or not difference.se > 0:
        return difference
    pilots = variance * scale
    total = difference.se**2 + pilots
    n = total**2 / (difference.se**4 / (difference.n - 1) + pilots**2 / n_free)
    se, quantile = total**0.5, float(t.ppf((1 + level) / 2, n))
    p_value = float(2 * t.sf(abs(difference.mean) / se, n))
    detectable = se * (float(t.ppf(0.975, n)) + float(t.ppf(0.8, n)))
    low, high = difference.mean - quantile * se, difference.mean + quantile * se
    return replace(difference, low=low, high=high, se=se, p_value=p_value, minimum_detectable=detectable)
