"""Dose and response: pass@k against the strength of steering, with random directions of the same norm as control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import statistics
from ..artifact import building, fingerprint, is_current, read_json, write_json
from ..basis import SkillBasis
from ..engine import map_jobs
from ..errors import UsageError
from ..evaluate.generate import SamplingSettings
from ..evaluate.run import answer_task
from ..evaluate.tasks import load_task
from ..lm import LanguageModel, load_model
from .hooks import SCOPES, Scope, steer
from .vectors import SteeringVector, Unit, direction_vector, random_vector

KIND = "steering"


@dataclass(frozen=True)
class SweepSettings:
    """Which vectors, where, how strongly."""

    directions: tuple[tuple[int, str], ...]
    """Signed directions."""
    alphas: tuple[float, ...] = (0.1, 0.2, 0.4)
    unit: Unit = "relative"
    scopes: tuple[Scope, ...] = ("last-prompt", "all")
    n_random: int = 3
    """Random directions of the same norm per block, at every alpha and scope."""
    blocks: tuple[int, ...] | None = None
    """A subset of the basis' blocks; None takes all."""
    seed: int = 0

    def __post_init__(self) -> None:
        for scope in self.scopes:
            if scope not in SCOPES:
                raise UsageError(f"unknown scope {scope!r}; allowed are {', '.join(SCOPES)}")
        if not self.alphas or not self.directions:
            raise UsageError("a sweep needs at least one direction and one alpha")


@dataclass(frozen=True)
class _Point:
    vector: SteeringVector | None
    """None is the unsteered model."""
    scope: Scope
    alpha: float


def sweep(
    out: str | Path,
    basis: SkillBasis,
    lm: LanguageModel,
    task: str,
    sampling: SamplingSettings,
    settings: SweepSettings,
    *,
    dtype: str = "auto",
    instruction: str = "none",
    n_problems: int | None = None,
    n_workers: int | None = None,
    on_point: Callable[[dict[str, Any], int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures pass@k under steering along directions and along random ones.

    Every point uses the same random numbers per (problem, sample), and differences to the unsteered model are paired by
    problem.

    Args:
        out: artifact directory; holds `sweep.json`. Finished points survive a kill.
        instruction: put behind every problem; see `load_task`.
    Returns: the content of `sweep.json`.
    """
    basis.check_model(lm)
    out = Path(out)
    sampled = {key: value for key, value in asdict(sampling).items() if key != "batch_size"}
    inputs: dict[str, Any] = {
        "basis": basis.fingerprint,
        "settings": asdict(settings),
        "task": task,
        "sampling": sampled,
    }
    inputs |= {"dtype": dtype, "instruction": instruction, "n_problems": n_problems}
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "sweep.json"))
    points = _points(basis, settings)
    with building(out, KIND, inputs, {}) as work:
        names = [f"point-{number:03d}.json" for number in range(len(points))]
        todo = [(point, work / name) for point, name in zip(points, names, strict=True) if not (work / name).exists()]
        n_done = len(points) - len(todo)
        arguments = (lm.name, dtype, task, instruction, n_problems, sampling)
        for _, outcome in map_jobs(_SweepWorker, arguments, todo, n_workers=n_workers):
            if isinstance(outcome, Exception):
                raise outcome
            n_done += 1
            if on_point:
                on_point(outcome, n_done, len(points))
        records = [read_json(work / name) for name in names]
        result = _summarise(records, settings, task)
        result |= {"settings": inputs, "fingerprint": fingerprint(inputs)}
        write_json(work / "sweep.json", statistics.nan_to_none(result))
        for name in names:
            (work / name).unlink()
    return dict(read_json(out / "sweep.json"))


def _points(basis: SkillBasis, settings: SweepSettings) -> list[_Point]:
    """The unsteered model, then every vector at every scope and strength."""
    vectors: list[SteeringVector] = []
    for direction, sign in settings.directions:
        assert sign in ("+", "-")
        vectors.append(
            direction_vector(basis, direction, sign, unit=settings.unit, blocks=settings.blocks)  # type: ignore[arg-type]
        )
    vectors += [random_vector(vectors[0], settings.seed + number) for number in range(settings.n_random)]
    points = [_Point(None, "all", 0.0)]
    points += [
        _Point(vector, scope, alpha) for scope in settings.scopes for alpha in settings.alphas for vector in vectors
    ]
    return points


class _SweepWorker:
    """Answers the task under steering, one point at a time, with one loaded model."""

    def __init__(
        self, model: str, dtype: str, task: str, instruction: str, n_problems: int | None, sampling: SamplingSettings
    ) -> None:
        self.lm = load_model(model, dtype=dtype)
        self.task = load_task(task, instruction=instruction, limit=n_problems)
        self.sampling = sampling

    def __call__(self, job: tuple[_Point, Path]) -> dict[str, Any]:
        point, path = job
        vector = point.vector
        intervention: Callable[[LanguageModel], AbstractContextManager[Any]] | None = None
        if vector is not None:
            intervention = partial(steer, vector=vector, alpha=point.alpha, scope=point.scope)
        result, _ = answer_task(self.lm, self.task, self.sampling, intervention)
        record = {
            "vector": "none" if vector is None else vector.name,
            "kind": "base" if vector is None else "random" if vector.name.startswith("random") else "direction",
            "scope": point.scope,
            "alpha": point.alpha,
            "rollouts": self.sampling.rollouts,
            "n_problems": len(result.problem_ids),
            "n_correct": result.correct.sum(axis=1).tolist(),
            "mean_tokens": float(result.n_tokens.mean()),
            "truncated_fraction": float(result.truncated.mean()),
        }
        write_json(path, record)
        return record


def _summarise(records: Sequence[dict[str, Any]], settings: SweepSettings, task: str) -> dict[str, Any]:
    """Estimates per point and paired differences to the unsteered model, the first record."""
    base = records[0]
    n = base["rollouts"]
    ks = [2**i for i in range(n.bit_length()) if 2**i <= n]

    def values(record: dict[str, Any], k: int) -> np.ndarray:
        return statistics.pass_at_k(np.full(record["n_problems"], n), np.array(record["n_correct"]), k)

    def estimates(record: dict[str, Any]) -> dict[str, Any]:
        figures = {key: record[key] for key in ("mean_tokens", "truncated_fraction")}
        return figures | {f"pass@{k}": statistics.as_json(statistics.mean_estimate(values(record, k))) for k in ks}

    points = [
        {key: record[key] for key in ("vector", "kind", "scope", "alpha")}
        | estimates(record)
        | {"difference": statistics.as_json(statistics.paired_difference(values(record, 1), values(base, 1)))}
        for record in records[1:]
    ]
    return {
        "unit": settings.unit,
        "task": task,
        "rollouts": n,
        "n_problems": base["n_problems"],
        "baseline": estimates(base),
        "points": points,
        "notes": [
            "alpha is a fraction of the norm of the residual stream at each steered token."
            if settings.unit == "relative"
            else f"alpha is in the unit {settings.unit!r}.",
            "Intervals are over problems and hold for one point; the best of many points is flattered by the choice.",
        ],
    }
