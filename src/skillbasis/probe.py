"""Which directions matter for this model: a pilot fine-tune along every signed direction, against random controls.

Pilots are judged on validation problems only. The first round pilots every signed direction once; the best few are
piloted again on other draws of rows, so that the winner is not merely the luckiest of many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import statistics
from .artifact import array_fingerprint, building, is_current, read_json, write_json
from .cells import Cell, CellResult, CellSettings, Rows, run_cells
from .corpus import Corpus
from .errors import SkillbasisError, UsageError
from .select import Candidates, SignedDirection, select

KIND = "probe"


@dataclass(frozen=True)
class ProbeSettings:
    """How directions are piloted."""

    n_rows: int = 1000
    """Rows of each pilot (the paper's 1,000)."""
    n_random: int = 3
    """Random pilots of the same size, the control."""
    n_finalists: int = 4
    """Signed directions that are piloted again."""
    n_repeats: int = 2
    """Further pilots of each finalist."""
    n_chosen: int = 1
    """Directions to go on with."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_rows < 1 or self.n_random < 1 or self.n_chosen < 1:
            raise UsageError("a probe needs at least one row per pilot, one random control and one direction to choose")
        if self.n_finalists < self.n_chosen:
            raise UsageError(f"{self.n_finalists} finalists cannot give {self.n_chosen} chosen directions")


def name_of(direction: SignedDirection) -> str:
    """`3+` for (3, "+")."""
    return f"{direction[0]}{direction[1]}"


def selection_rows(corpus: Corpus, ids: Sequence[str]) -> Rows:
    """The (prompt, response) pairs of chosen rows, in the order given."""
    columns = corpus.rows.select([corpus.positions[row_id] for row_id in ids])
    return list(zip(columns["prompt"], columns["response"], strict=True))


def probe(
    out: str | Path,
    corpus: Corpus,
    candidates: Candidates,
    cells: CellSettings,
    base_fingerprint: str,
    settings: ProbeSettings,
    *,
    directions: Sequence[SignedDirection] | None = None,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, Any]:
    """Pilots every signed direction and ranks them by pass@1 on the validation task.

    Args:
        out: artifact directory; `probe.json` and one evaluation per pilot under `pilots/`.
        candidates: scores of the corpus; its selection settings say how rows along a direction are drawn.
        cells: model, validation task, sampling and training of every pilot.
        directions: signed directions to try; None takes both signs of all.
    Returns: the content of `probe.json`.
    Raises: UsageError: a pilot is larger than the corpus. SkillbasisError: no control or no direction succeeded.
    """
    if candidates.scores is None:
        raise UsageError("probing needs scores; make them with skillbasis score")
    n_directions = candidates.scores.values.shape[1]
    signed = list(directions or [(k, sign) for k in range(n_directions) for sign in ("+", "-")])
    out = Path(out)
    inputs = {
        "settings": asdict(settings),
        "directions": [name_of(direction) for direction in signed],
        "cells": {key: value for key, value in asdict(cells).items() if key != "model"},
        "weights_fingerprint": base_fingerprint,
        "corpus_fingerprint": corpus.fingerprint,
        "selection": asdict(candidates.settings),
        "scores": array_fingerprint(candidates.scores.values),
    }
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "probe.json"))
    with building(out, KIND, inputs, {}) as work:

        def pilot(name: str, strategy: str, direction: SignedDirection | None, repeat: int) -> Cell:
            chosen = () if direction is None else (direction,)
            known = replace(candidates, settings=replace(candidates.settings, directions=chosen))
            seed = settings.seed + repeat
            ids = [row.id for row in select(known, strategy, settings.n_rows, seed)]
            return Cell(f"pilots/{name}/{repeat}", selection_rows(corpus, ids), seed, settings.seed)

        first = [Cell("pilots/base", None, 0, settings.seed)]
        first += [pilot("random", "random", None, repeat) for repeat in range(settings.n_random)]
        first += [pilot(name_of(direction), "directions", direction, 0) for direction in signed]
        n_all = len(first) + min(settings.n_finalists, len(signed)) * settings.n_repeats

        def report(result: CellResult, done: int, _n: int) -> None:
            if on_cell:
                on_cell(result, done, n_all)

        results = run_cells(work, first, cells, base_fingerprint, n_workers=n_workers, on_cell=report)
        ranked = [d for d in signed if results[f"pilots/{name_of(d)}/0"].result is not None]
        ranked.sort(key=lambda d: -float(results[f"pilots/{name_of(d)}/0"].pass_at_k(1).mean()))
        finalists = ranked[: settings.n_finalists]
        second = [
            pilot(name_of(direction), "directions", direction, 1 + repeat)
            for direction in finalists
            for repeat in range(settings.n_repeats)
        ]
        n_first = len(first)
        results |= run_cells(
            work,
            second,
            cells,
            base_fingerprint,
            n_workers=n_workers,
            on_cell=lambda result, done, n: report(result, n_first + done, n),
        )
        outcome = _judge(results, signed, finalists, settings)
        outcome |= {"task": cells.task, "rollouts": cells.sampling.rollouts, "settings": inputs}
        write_json(work / "probe.json", statistics.nan_to_none(outcome))
    return dict(read_json(out / "probe.json"))


def between_pilots(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance of pass@1 between pilots of one kind on the same problems, pooled over kinds, and degrees of freedom.

    Returns: (0, 0) where no kind has two pilots.
    """
    several = [group for group in groups if len(group) > 1]
    n_free = sum(len(group) - 1 for group in several)
    squares = sum(float(np.square(np.asarray(group) - np.mean(group)).sum()) for group in several)
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


def _judge(
    results: dict[str, CellResult],
    signed: Sequence[SignedDirection],
    finalists: Sequence[SignedDirection],
    settings: ProbeSettings,
) -> dict[str, Any]:
    """Compares every direction with the random pilots, paired by problem, and chooses among the finalists."""
    controls = [results[f"pilots/random/{repeat}"] for repeat in range(settings.n_random)]
    succeeded = [control for control in controls if control.result is not None]
    if not succeeded or not finalists:
        failed = next((r for r in results.values() if r.result is None), None)
        raise SkillbasisError(f"no pilot can be compared; the first failure: {failed.reason if failed else 'none ran'}")
    random = np.mean([control.pass_at_k(1) for control in succeeded], axis=0)  # (problems,)
    groups = [[float(control.pass_at_k(1).mean()) for control in succeeded]]
    for direction in finalists:
        again = [results[f"pilots/{name_of(direction)}/{repeat}"] for repeat in range(1, 1 + settings.n_repeats)]
        groups.append([float(pilot.pass_at_k(1).mean()) for pilot in again if pilot.result is not None])
    between = between_pilots(groups)
    table: list[dict[str, Any]] = []
    p_values = []
    for direction in signed:
        name = name_of(direction)
        repeats = 1 + settings.n_repeats * (direction in finalists)
        pilots = [results[f"pilots/{name}/{repeat}"] for repeat in range(repeats)]
        done = [pilot for pilot in pilots if pilot.result is not None]
        entry: dict[str, Any] = {"name": name, "direction": direction[0], "sign": direction[1], "n_pilots": len(done)}
        if not done:
            table.append(entry | {"status": "failed", "reason": pilots[0].reason})
            p_values.append(float("nan"))
            continue
        # The first pilot made a finalist of the direction; its luck is left out of what is said of it.
        judged = done[1:] if direction in finalists and len(done) > 1 else done
        values = np.mean([pilot.pass_at_k(1) for pilot in judged], axis=0)
        over_problems = statistics.paired_difference(values, random)
        difference = with_pilot_variance(over_problems, between, 1 / len(judged) + 1 / len(succeeded))
        entry |= {"status": "done", "reason": None, "pilots": [float(p.pass_at_k(1).mean()) for p in done]}
        entry["pass@1"] = statistics.as_json(statistics.mean_estimate(values))
        entry["difference_to_random"] = statistics.as_json(difference)
        table.append(entry)
        p_values.append(difference.p_value)
    for entry, p_holm in zip(table, statistics.holm(p_values), strict=True):
        if entry["status"] == "done":
            entry["difference_to_random"]["p_holm"] = p_holm
            mean = entry["difference_to_random"]["mean"]
            entry["verdict"] = "undecided" if not p_holm < 0.05 else "helps" if mean > 0 else "hurts"
    known = [entry for entry in table if (entry["direction"], entry["sign"]) in finalists]
    known.sort(key=lambda entry: -entry["pass@1"]["mean"])
    chosen = known[: settings.n_chosen]
    notes = [
        f"Every pilot trains on {settings.n_rows} rows; finalists are piloted {settings.n_repeats} more times on other "
        "draws, and those repeats alone choose the winner and give its figures.",
        f"Intervals hold the variance between problems and that between pilots (sd {100 * between[0] ** 0.5:.1f} "
        f"points, {between[1]} degrees of freedom)."
        if between[1]
        else "Intervals are over problems only: no pilot was repeated, so the variance between pilots is unknown.",
    ]
    if not any(entry["verdict"] == "helps" for entry in chosen):
        notes.append("No chosen direction is separated from random pilots: expect no gain from selecting along it.")
    ranking = sorted((e for e in table if e["status"] == "done"), key=lambda e: -e["pass@1"]["mean"])
    base = results["pilots/base"]
    return {
        "n_rows": settings.n_rows,
        "base": {"pass@1": statistics.as_json(statistics.mean_estimate(base.pass_at_k(1)))} if base.result else None,
        "random": {
            "pass@1": statistics.as_json(statistics.mean_estimate(random)),
            "pilots": [float(control.pass_at_k(1).mean()) for control in succeeded],
        },
        "directions": table,
        "ranking": [entry["name"] for entry in ranking],
        "chosen": [entry["name"] for entry in chosen],
        "seconds": sum(result.seconds for result in results.values()),
        "notes": notes,
    }
