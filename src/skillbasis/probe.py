"""Which directions matter for this model: a cheap try along every signed direction, against random controls.

A `pilot` fine-tunes on rows taken along the direction; `steer` adds the direction while the model answers, and trains
nothing. Both are judged on validation problems only. halving.py says who is tried how often and which cells may be used
to judge whom, verdicts.py what then may be said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from . import statistics
from .artifact import array_fingerprint, building, is_current, read_json, write_json
from .basis import SkillBasis
from .cells import Cell, CellResult, CellSettings, Steering, run_cells
from .corpus import Corpus, training_rows
from .errors import ArtifactError, SkillbasisError, UsageError, nearest
from .halving import CONTROL, Asked, Race, Schedule, race
from .select import Candidates, SignedDirection, select
from .steer.hooks import Scope, check_scope
from .steer.vectors import UNITS, SteeringVector, Unit, direction_vector, random_vector
from .verdicts import cell_variance, judge

KIND = "probe"
Kind = Literal["pilot", "steer"]
ALONG = ("directions", "directions+likelihood")
MakeCell = Callable[[str, int], Cell]
"""The cell of a direction's name (or `CONTROL`) and its number."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Schedule):
    """How directions are tried, and how often."""

    kind: Kind = "pilot"
    """`pilot` fine-tunes along a direction; `steer` only adds it while the model answers."""
    n_rows: int = 1000
    """Rows of each pilot (the paper's 1,000)."""
    along: str = "directions"
    """Strategy that draws the rows of a pilot: `directions`, or `directions+likelihood`, as they will be selected."""
    alpha: float = 0.3
    """Strength of steering, in `unit`."""
    unit: Unit = "relative"
    """`raw`, `std`, or `relative` to the norm of the stream where the vector is added."""
    scope: Scope = "last-prompt"
    """Which tokens are steered."""
    blocks: tuple[int, ...] | None = None
    """Which of the basis' blocks are steered; None takes all."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in get_args(Kind):
            raise UsageError(f"unknown kind of probe {self.kind!r}; allowed are {', '.join(get_args(Kind))}")
        if self.along not in ALONG:
            raise UsageError(f"pilots are drawn by {' or '.join(ALONG)}, not by {self.along!r}")
        if self.n_rows < 1:
            raise UsageError("a probe needs at least one row per pilot")
        if self.unit not in UNITS:
            raise UsageError(f"unknown unit {self.unit!r}{nearest(self.unit, list(UNITS))}; allowed are {UNITS}")
        check_scope(self.scope)

    @property
    def used(self) -> dict[str, Any]:
        """The settings that a probe of this kind depends on."""
        other = ("alpha", "unit", "scope", "blocks") if self.kind == "pilot" else ("n_rows", "along")
        return {key: value for key, value in asdict(self).items() if key not in other}


def name_of(direction: SignedDirection) -> str:
    """`3+` for (3, "+")."""
    return f"{direction[0]}{direction[1]}"


def probe(
    out: str | Path,
    corpus: Corpus | None,
    candidates: Candidates | None,
    cells: CellSettings,
    base_fingerprint: str,
    settings: ProbeSettings,
    *,
    basis: SkillBasis | None = None,
    directions: Sequence[SignedDirection] | None = None,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, Any]:
    """Tries every signed direction and ranks them by pass@1 on the validation task.

    Killed at any moment, the same call goes on: finished cells are kept.

    Args:
        out: artifact directory; `probe.json`, and one evaluation per cell under `pilots/` or `steered/`.
        corpus: what pilots train on; None where none is made.
        candidates: scores of the corpus; its selection settings say how rows along a direction are drawn. Pilots only.
        cells: model, validation task (the first, if there are several), sampling, and training of every pilot.
        basis: where steering vectors come from; for the kind `steer` only.
        directions: signed directions to try; None takes both signs of all.
        on_cell: called with each finished cell, the number done and the number expected in all.
    Returns: the content of `probe.json`.
    Raises: UsageError: what this kind of probe needs is missing, or a pilot is larger than the corpus. ArtifactError:
        the basis belongs to another model. SkillbasisError: no control or no direction succeeded.
    """
    source: dict[str, Any]
    if settings.kind == "steer":
        basis = _checked(basis, base_fingerprint)
        n_directions, source = len(basis.directions), {"basis": basis.fingerprint}
    else:
        if corpus is None or candidates is None or candidates.scores is None:
            raise UsageError("pilots need a corpus and its scores; make them with skillbasis score, or probe by steer")
        n_directions = candidates.scores.values.shape[1]
        source = {"corpus_fingerprint": corpus.fingerprint, "scores": array_fingerprint(candidates.scores.values)}
        source |= {"selection": asdict(candidates.settings)}
        if settings.along != "directions":
            source |= {"likelihood": array_fingerprint(candidates.mean_nll)}
    signed = list(directions or [(k, sign) for k in range(n_directions) for sign in ("+", "-")])
    cells = replace(cells, tasks=cells.tasks[:1])
    out, left_out = Path(out), {"model"} | ({"training", "trainer"} if settings.kind == "steer" else set())
    inputs = {
        "settings": settings.used,
        "directions": [name_of(direction) for direction in signed],
        "cells": {key: value for key, value in asdict(cells).items() if key not in left_out},
        "weights_fingerprint": base_fingerprint,
    } | source
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "probe.json"))
    if basis is not None and settings.kind == "steer":
        make_cell = steered_cells(basis, signed, settings)
    else:
        assert corpus is not None and candidates is not None
        make_cell = pilot_cells(corpus, candidates, signed, settings)
    with building(out, KIND, inputs, {}) as work:
        results: dict[tuple[str, int], CellResult] = {}
        n_expected = 1 + settings.n_cells(len(signed))

        def answer(asked: Asked) -> Mapping[tuple[str, int], np.ndarray | None]:
            new = {key: make_cell(*key) for key in ([] if results else [("base", 0)]) + asked}
            n_before, n_all = len(results), max(n_expected, len(results) + len(new))
            done = run_cells(
                work,
                list(new.values()),
                cells,
                base_fingerprint,
                n_workers=n_workers,
                on_cell=lambda result, n, _: on_cell(result, n_before + n, n_all) if on_cell else None,
            )
            results.update((key, done[cell.name]) for key, cell in new.items())
            return {key: None if results[key].result is None else results[key].pass_at_k(1) for key in asked}

        varied = settings.kind == "pilot"
        outcome = race([name_of(direction) for direction in signed], settings, answer, draws_vary=varied)
        record = summarise(outcome, results, signed, settings)
        if candidates is not None and varied:
            n_top = math.ceil(candidates.settings.top_share * len(candidates.ids))
            if settings.along != "directions" or n_top <= settings.n_rows:
                why = f"{settings.n_rows} rows are no less than its top share of {n_top}"
                if settings.along != "directions":
                    why = f"{settings.along} draws nothing at random"
                record["notes"].append(
                    f"All pilots of a direction train on the same rows, in another order: {why}; the variance between "
                    "them is that of training alone."
                )
        record |= {"task": cells.tasks[0], "rollouts": cells.sampling.rollouts, "settings": inputs}
        write_json(work / "probe.json", statistics.nan_to_none(record))
    return dict(read_json(out / "probe.json"))


def _checked(basis: SkillBasis | None, base_fingerprint: str) -> SkillBasis:
    if basis is None:
        raise UsageError("a probe by steering needs the basis its vectors come from; give one, or probe by pilot")
    if basis.config["weights_fingerprint"] != base_fingerprint:
        raise ArtifactError(
            f"the basis was made on a model with weights_fingerprint {basis.config['weights_fingerprint']}, this one "
            f"has {base_fingerprint}; give that model, or make the basis anew on this one"
        )
    return basis


def pilot_cells(
    corpus: Corpus, candidates: Candidates, signed: Sequence[SignedDirection], settings: ProbeSettings
) -> MakeCell:
    """Pilots: each number draws other rows and trains in another order; all answer with the same random numbers."""
    by_name = {name_of(direction): direction for direction in signed}

    def make(name: str, number: int) -> Cell:
        if name == "base":
            return Cell("pilots/base", None, 0, settings.seed)
        chosen = () if name == CONTROL else (by_name[name],)
        known = replace(candidates, settings=replace(candidates.settings, directions=chosen, weights=()))
        seed = settings.seed + number
        rows = select(known, settings.along if chosen else "random", settings.n_rows, seed)
        return Cell(f"pilots/{name}/{number}", training_rows(corpus, rows), seed, settings.seed)

    return make


def steered_cells(basis: SkillBasis, signed: Sequence[SignedDirection], settings: ProbeSettings) -> MakeCell:
    """Steered answers: each number samples anew; each control is another random vector, of the directions' norms."""

    vectors: dict[str, SteeringVector] = {
        name_of((k, sign)): direction_vector(basis, k, sign, unit=settings.unit, blocks=settings.blocks)
        for k, sign in signed
    }
    in_order = list(vectors.values())

    def make(name: str, number: int) -> Cell:
        if name == "base":
            return Cell("steered/base", None, 0, settings.seed)
        if name == CONTROL:  # norms differ between directions, but for the unit relative: the controls take turns
            vector = random_vector(in_order[number % len(in_order)], settings.seed + number)
        else:
            vector = vectors[name]
        steering = Steering(vector, settings.alpha, settings.scope)
        return Cell(f"steered/{name}/{number}", None, 0, settings.seed + number, steering)

    return make


def summarise(
    outcome: Race,
    results: Mapping[tuple[str, int], CellResult],
    signed: Sequence[SignedDirection],
    settings: ProbeSettings,
) -> dict[str, Any]:
    """The content of `probe.json` but for its settings. Raises: SkillbasisError: nothing can be compared."""
    failures = {key: result.reason for key, result in results.items() if result.result is None}
    if not outcome.controls or not outcome.finalists:
        reason = next(iter(failures.values()), "none ran")
        raise SkillbasisError(f"no direction can be compared with a control; the first failure: {reason}")
    base = results["base", 0]
    base_values = None if base.result is None else base.pass_at_k(1)
    names = [name_of(direction) for direction in signed]
    varied = settings.kind == "pilot"
    table = judge(outcome, names, base_values, _reasons(results), draws_vary=varied)
    steps = {name: rung["rung"] for rung in outcome.rungs for name in rung["tried"]}
    for entry, (direction, sign) in zip(table, signed, strict=True):
        entry |= {"direction": direction, "sign": sign, "rung": steps[entry["name"]]}
    chosen = outcome.finalists[: settings.n_chosen]
    n_full = settings.n_cells(len(signed), "full")
    known = [result.seconds for key, result in results.items() if key[0] != "base" and result.result is not None]
    seconds = sum(result.seconds for result in results.values())
    verdicts = {entry["name"]: entry["verdict"] for entry in table}
    notes = _notes(outcome, settings, cell_variance(outcome, draws_vary=varied))
    if not any(verdicts[name] == "helps" for name in chosen):
        notes.append(
            "No chosen direction is separated from random "
            + ("pilots: expect no gain from selecting along it." if varied else "vectors and the untouched model.")
        )
    notes += [f"A cell of {name} failed: {reason}" for (name, _), reason in failures.items()]
    return {
        "kind": settings.kind,
        "strategy": settings.strategy,
        **{key: settings.used[key] for key in ("n_rows", "alpha", "unit", "scope") if key in settings.used},
        "base": {"status": "failed", "reason": base.reason}
        if base_values is None
        else {"pass@1": statistics.as_json(statistics.mean_estimate(base_values))},
        "random": {
            "pass@1": statistics.as_json(statistics.mean_estimate(np.mean(outcome.controls, axis=0))),
            "pilots": [float(control.mean()) for control in outcome.controls],
        },
        "directions": table,
        "ranking": outcome.ranking,
        "finalists": outcome.finalists,
        "chosen": chosen,
        "rungs": outcome.rungs,
        "saved": {
            "cells": outcome.n_cells,
            "cells_of_full": n_full,
            "fraction": 1 - outcome.n_cells / n_full,
            "seconds_of_full": float(np.mean(known)) * n_full + base.seconds,
        },
        "seconds": seconds,
        "notes": notes,
    }


def _reasons(results: Mapping[tuple[str, int], CellResult]) -> dict[str, str]:
    """Why cells of a direction failed, and how many."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for name, _ in results):
        cells = [result for key, result in results.items() if key[0] == name]
        reasons = sorted({cell.reason for cell in cells if cell.reason})
        if reasons:
            n_failed = sum(cell.result is None for cell in cells)
            found[name] = f"{n_failed} of {len(cells)} cells failed: {'; '.join(reasons)}"
    return found


def _notes(outcome: Race, settings: ProbeSettings, between: tuple[float, int]) -> list[str]:
    tries = (
        f"Every pilot trains on {settings.n_rows} rows along a direction, the controls on as many at random"
        if settings.kind == "pilot"
        else f"Every direction is added at alpha {settings.alpha:g} ({settings.unit}, {settings.scope}), as are the "
        "controls, random vectors of the same norm; a verdict needs a difference to these and to the untouched model"
    )
    spread = f"(sd {100 * between[0] ** 0.5:.1f} points, {between[1]} degrees of freedom)"
    what = "pilots" if settings.kind == "pilot" else "random vectors"
    return [
        tries + ".",
        f"The ranking, and so the choice, is made before the {settings.n_repeats} fresh cells of each finalist, and "
        "these alone give the finalists' figures; the other directions' are those of the rung they ended in, so they "
        "are rather too low than too high. Verdicts are at this budget: more cells could decide more.",
        f"Intervals hold the variance between problems and that between {what} {spread}."
        if between[1]
        else f"Intervals are over problems only: the variance between {what} is unknown, since there was one of each.",
    ]
