"""Train on these rows or steer along this vector, then answer those problems: the unit of probes and studies.

A cell is an artifact of its own. Cells are independent: worker processes take them side by side, one per core or per
CUDA device; a finished cell is never run again, and a failed one is named with its reason while the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import numpy as np

from .artifact import building, fingerprint, is_current, read_json, write_json
from .engine import WorkerKilledError, cuda_devices, map_jobs
from .errors import SkillbasisError, UsageError
from .evaluate.generate import Intervention
from .evaluate.results import TaskResult, collect
from .evaluate.run import answer_task
from .evaluate.sampler import SamplingSettings
from .evaluate.samples import SAMPLES, SUMMARY, read_samples, write_samples
from .evaluate.tasks import Asking, Task
from .lm import LanguageModel, load_model
from .steer.hooks import Scope, check_scope, steer
from .steer.vectors import SteeringVector
from .train.loop import row_lengths
from .train.settings import TrainingSettings
from .train.sft import check_trainer, fine_tuned, rows_fingerprint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from .corpus import Corpus
    from .select import Candidates

KIND = "cell"
Rows = list[tuple[list[dict[str, str]], str]]
MAX_REASON_CHARS = 500
_LESS_MEMORY = "lower micro_batch_size of the training, batch_size of the sampling, or the number of workers"


@dataclass(frozen=True)
class CellSettings:
    """What all cells of one comparison share."""

    model: str
    dtype: str
    tasks: tuple[str, ...]
    """What every model answers, after the one fine-tune it gets; a lone name is one task. The first is the main one."""
    asking: Asking
    n_problems: int | None
    """The first so many problems of each task; None takes all."""
    sampling: SamplingSettings
    training: TrainingSettings
    trainer: str
    """`lean` (in memory) or `trl`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks))
        if not self.tasks:
            raise UsageError("there is no task to answer; name at least one")
        check_trainer(self.trainer)

    def load_tasks(self) -> list[Task]:
        """The problems of every task, in their order. Raises: UsageError: as `load_task`, or two tasks of one name."""
        tasks = [self.asking.load(name, self.n_problems) for name in self.tasks]
        names = [task.name for task in tasks]
        if len(set(names)) != len(names):
            raise UsageError(f"tasks must be of different names, got {', '.join(names)}; leave one out, or rename it")
        return tasks


def comparison_inputs(
    settings: DataclassInstance, cells: CellSettings, base_fingerprint: str, corpus: Corpus, candidates: Candidates
) -> dict[str, Any]:
    """What a comparison of selections depends on besides its problems: kept with it, and held against it when it goes
    on. Where the model lies does not count, only its weights.
    """
    return {
        "settings": asdict(settings),
        "cells": {key: value for key, value in asdict(cells).items() if key != "model"},
        "weights_fingerprint": base_fingerprint,
        "corpus_fingerprint": corpus.fingerprint,
        "selection": asdict(candidates.settings),
        "known": candidates.fingerprints,
    }


@dataclass(frozen=True)
class Steering:
    """What is added to the base model while a cell answers."""

    vector: SteeringVector
    alpha: float
    """Strength in the vector's unit."""
    scope: Scope
    """Which tokens are moved."""

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if not math.isfinite(self.alpha):
            raise UsageError(f"alpha must be a finite number, not {self.alpha}")


@dataclass(frozen=True)
class Cell:
    """One model, fine-tuned, steered or as it is, and its evaluation."""

    name: str
    """Path of the cell's artifact below the directory of cells."""
    rows: Rows | None
    """(prompt messages, response) pairs to train on; None answers with the base model."""
    training_seed: int
    """Unused where nothing is trained."""
    sampling_seed: int
    steering: Steering | None = None
    """None answers unsteered. A vector belongs to one model, so a model that was trained here cannot be steered."""

    def __post_init__(self) -> None:
        if self.rows is not None and self.steering is not None:
            raise UsageError(f"cell {self.name} is to be trained and steered; a vector fits only the base model")


@dataclass(frozen=True)
class CellResult:
    """What came of a cell: a graded table per task, or the reason why there is none."""

    name: str
    results: dict[str, TaskResult]
    """By name of the task, in the order of the settings; empty where the cell failed."""
    reason: str | None
    seconds: float
    """Wall time of training and answering together; of a failed cell until it failed."""
    training_seconds: float = 0.0
    n_training_tokens: int = 0
    """Tokens of prompts and responses as they are trained on, each row once; 0 where nothing was trained."""

    @property
    def result(self) -> TaskResult | None:
        """The table of the first task; None where the cell failed."""
        return next(iter(self.results.values()), None)

    def pass_at_k(self, k: int) -> np.ndarray:
        """(problems,) of the first task. Raises: SkillbasisError: the cell failed."""
        if self.result is None:
            raise SkillbasisError(f"cell {self.name} failed: {self.reason}")
        return self.result.pass_at_k(k)


@dataclass(frozen=True)
class _Failure:
    """Why a cell has no result, and how long it took to find out."""

    reason: str
    seconds: float


_Job = tuple[Cell, Path, dict[str, Any]]


def run_cells(
    out: Path,
    cells: Sequence[Cell],
    settings: CellSettings,
    base_fingerprint: str,
    *,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
) -> dict[str, CellResult]:
    """Runs the cells that are not there yet, side by side; of cells that can only come out alike, one.

    Args:
        out: a directory with one artifact per cell (an evaluation directory with the losses of the training).
        base_fingerprint: weights of the base model.
        n_workers: processes; None takes one per CUDA device, each pinned to its own, else one per core.
        on_cell: called with each finished cell, the number done and the number in all.
    Returns: results by name, failed ones too: training that diverges, memory that runs out (a worker process killed
        for it too), or rows and vectors that cannot be used.
    Raises: UsageError: a task cannot be loaded. Whatever else a cell raises is a defect, and stops the others.
    """
    missing: list[_Job] = []
    results: dict[str, CellResult] = {}
    known: dict[str, Path] = {}
    tasks = settings.load_tasks()
    for cell in cells:
        path, inputs = out / cell.name, _inputs(cell, settings, tasks, base_fingerprint)
        if is_current(path, KIND, inputs):
            results[cell.name] = _load(path, cell.name, tasks, settings)
            known[fingerprint(inputs)] = path
        else:
            missing.append((cell, path, inputs))
    alike: dict[str, list[_Job]] = {}
    for job in missing:
        alike.setdefault(fingerprint(job[2]), []).append(job)
    todo = [jobs[0] for key, jobs in alike.items() if key not in known]
    # The longest first, so that no worker is left alone with a long one at the end.
    todo.sort(key=lambda job: -len(job[0].rows or ()))

    def finish(job: _Job, failure: _Failure | None) -> None:
        cell, path, _ = job
        results[cell.name] = (
            _load(path, cell.name, tasks, settings)
            if failure is None
            else CellResult(cell.name, {}, failure.reason, failure.seconds)
        )
        if on_cell:
            on_cell(results[cell.name], len(results), len(cells))

    def repeat(job: _Job, path: Path, failure: _Failure | None) -> None:
        if failure is None:
            _copy(path, job)
        finish(job, failure)

    for key, path in known.items():
        for job in alike.get(key, ()):
            repeat(job, path, None)
    for job, outcome in _side_by_side(todo, settings, n_workers):
        if isinstance(outcome, Exception):
            outcome.add_note(f"in cell {job[0].name}")
            raise outcome
        finish(job, outcome)
        for same in alike[fingerprint(job[2])][1:]:
            repeat(same, job[1], outcome)
    return {cell.name: results[cell.name] for cell in cells}


def _side_by_side(
    todo: Sequence[_Job], settings: CellSettings, n_workers: int | None
) -> Iterator[tuple[_Job, _Failure | Exception | None]]:
    """Yields each job with what came of it; a worker that is killed costs only the cell that it dies of.

    The system does not say which cell it was: those that had begun are tried again, each in a process of its own.
    """
    devices = cuda_devices() if todo else []
    waiting = {job[0].name: job for job in todo}
    while waiting:
        jobs = list(waiting.values())
        try:
            for index, outcome in map_jobs(_CellWorker, (settings,), jobs, n_workers=n_workers, devices=devices):
                del waiting[jobs[index][0].name]
                yield jobs[index], outcome
        except WorkerKilledError:
            begun = [job for job in waiting.values() if job[1].with_name(f"{job[1].name}.partial").exists()]
            if not begun:
                raise
            for job in begun:
                del waiting[job[0].name]
                yield job, _alone(job, settings, devices)


def _alone(job: _Job, settings: CellSettings, devices: Sequence[str]) -> _Failure | Exception | None:
    started = time.perf_counter()
    try:
        ((_, outcome),) = map_jobs(_CellWorker, (settings,), [job], devices=devices[:1], apart=True)
    except WorkerKilledError:
        reason = f"its process was killed, probably for want of memory; {_LESS_MEMORY}"
        return _Failure(reason, round(time.perf_counter() - started, 3))
    return outcome


def _inputs(cell: Cell, settings: CellSettings, tasks: Sequence[Task], base_fingerprint: str) -> dict[str, Any]:
    """All that the answers of a cell depend on; how it would train is left out where it does not."""
    inputs = asdict(settings)
    del inputs["model"], inputs["sampling"]["batch_size"], inputs["asking"], inputs["n_problems"]
    inputs["tasks"] = {task.name: task.fingerprint for task in tasks}
    inputs |= {"weights_fingerprint": base_fingerprint, "rows": None, "sampling_seed": cell.sampling_seed}
    if cell.rows is None:
        del inputs["training"], inputs["trainer"]
    else:
        inputs |= {"rows": rows_fingerprint(cell.rows), "training_seed": cell.training_seed}
    if cell.steering is not None:
        steering = cell.steering
        inputs["steering"] = {"vector": steering.vector.fingerprint, "alpha": steering.alpha, "scope": steering.scope}
    return inputs


def _copy(path: Path, job: _Job) -> None:
    """Keeps a finished cell under another cell's name too; its time is what it took to make."""
    cell, target, inputs = job
    with building(target, KIND, inputs, {"name": cell.name}) as work:
        for name in (SAMPLES, SUMMARY):
            copyfile(path / name, work / name)


def _load(path: Path, name: str, tasks: Sequence[Task], settings: CellSettings) -> CellResult:
    records, summary = read_samples(path), read_json(path / SUMMARY)
    results = {task.name: collect(task, records[task.name], settings.sampling.rollouts) for task in tasks}
    return CellResult(
        name, results, None, summary["seconds"], summary["training_seconds"], summary["n_training_tokens"]
    )


class _CellWorker:
    """Runs cells in one process: the base model and the problems are loaded once."""

    def __init__(self, settings: CellSettings) -> None:
        self.settings = settings
        self.base = load_model(settings.model, dtype=settings.dtype)
        self.tasks = settings.load_tasks()

    def __call__(self, job: _Job) -> _Failure | None:
        started = time.perf_counter()
        try:
            self._run(*job)
        except (SkillbasisError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError for most things
            reason = _reason(error)
        else:
            return None
        _free_memory()  # the error is gone here, and with it what it held of the failed model
        return _Failure(reason, round(time.perf_counter() - started, 3))

    def _run(self, cell: Cell, path: Path, inputs: dict[str, Any]) -> None:
        with building(path, KIND, inputs, {"name": cell.name}) as work:
            started = time.perf_counter()
            tuned, losses, n_tokens = self._train(cell, work)
            trained = time.perf_counter()
            sampling = replace(self.settings.sampling, seed=cell.sampling_seed)
            figures: dict[str, Any] = {}
            records: list[dict[str, Any]] = []
            for task in self.tasks:
                result, answers = answer_task(tuned, task, sampling, _intervention(cell.steering))
                figures[task.name] = result.summary()
                records += answers
            write_samples(work / SAMPLES, records)
            summary = {
                "n_rows": len(cell.rows or ()),
                "n_training_tokens": n_tokens,
                "losses": losses,
                "training_seconds": round(trained - started, 3),
                "seconds": round(time.perf_counter() - started, 3),
                "tasks": figures,
            }
            write_json(work / SUMMARY, summary)

    def _train(self, cell: Cell, work: Path) -> tuple[LanguageModel, list[float], int]:
        """The model that answers, the loss of every step, and the tokens of all rows."""
        if cell.rows is None:
            return self.base, [], 0
        training = self.settings.training.with_seed(cell.training_seed)
        limit = min(training.max_length, self.base.context_length)
        n_tokens = sum(row_lengths(self.base, cell.rows, limit))
        return *fine_tuned(self.base, cell.rows, training, work / "model", trainer=self.settings.trainer), n_tokens


def _reason(error: Exception) -> str:
    """An error in one line; memory that ran out is named as such, whichever library says so."""
    words = " ".join(str(error).split()) or type(error).__name__
    known = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, MemoryError) or any(phrase in words.lower() for phrase in known):
        words = f"out of memory; {_LESS_MEMORY} ({words})"
    return words[:MAX_REASON_CHARS]


def _free_memory() -> None:
    """Gives the memory of a failed cell back, so that it is there for the next one."""
    import gc

    import torch

    gc.collect()  # modules refer to each other in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _intervention(steering: Steering | None) -> Intervention | None:
    if steering is None:
        return None
    return partial(steer, vector=steering.vector, alpha=steering.alpha, scope=steering.scope)
