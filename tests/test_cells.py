"""Cells: trained, steered or as the base is; finished ones are kept, failed ones named, and inputs hold the vector."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import kill_this_process
from dying import DyingWorker, StillbornWorker
from skillbasis import cells as module
from skillbasis.artifact import read_json
from skillbasis.cells import Cell, CellResult, CellSettings, Steering, run_cells
from skillbasis.engine import WorkerKilledError
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.evaluate.run import answer_task
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.evaluate.tasks import Asking, load_task
from skillbasis.lm import LanguageModel, load_model
from skillbasis.steer import SteeringVector, random_vector, steer
from skillbasis.train.settings import preset

torch.set_num_threads(1)
SAMPLING = SamplingSettings(rollouts=2, temperature=0.8, max_tokens=24)
SETTINGS = CellSettings(
    "embedded", "auto", ("embedded:validation",), Asking(), 6, SAMPLING, replace(preset("embedded"), epochs=1), "lean"
)
ROWS = [([{"role": "user", "content": f"{i} + {i} ="}], f" {i + i}") for i in range(8)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def vector(lm: LanguageModel) -> SteeringVector:
    blocks = tuple(range(1, len(lm.blocks) - 1))
    values = np.random.default_rng(0).normal(size=(len(blocks), lm.identity["hidden_size"])).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return SteeringVector("d0+", blocks, values, "relative", lm.identity)


def run(out: Path, lm: LanguageModel, *cells: Cell, **options: Any) -> dict[str, CellResult]:
    return run_cells(out, cells, SETTINGS, lm.weights_fingerprint, n_workers=1, **options)


def test_a_steered_cell_is_the_steered_model(tmp_path: Path, lm: LanguageModel, vector: SteeringVector) -> None:
    steering = Steering(vector, 0.8, "last-prompt")
    found = run(tmp_path, lm, Cell("steered", None, 0, 3, steering), Cell("base", None, 0, 3))
    task = load_task("embedded:validation", instruction="none", limit=6)
    sampling = replace(SAMPLING, seed=3)
    expected, _ = answer_task(lm, task, sampling, partial(steer, vector=vector, alpha=0.8, scope="last-prompt"))
    plain, _ = answer_task(lm, task, sampling)
    steered, base = found["steered"].result, found["base"].result
    assert steered is not None and base is not None
    np.testing.assert_array_equal(steered.n_tokens, expected.n_tokens)
    np.testing.assert_array_equal(base.n_tokens, plain.n_tokens)
    assert (steered.n_tokens != base.n_tokens).any()


def test_a_cell_depends_on_its_vector_and_not_on_training_it_does_not_do(
    lm: LanguageModel, vector: SteeringVector
) -> None:
    def inputs(cell: Cell, settings: CellSettings = SETTINGS) -> dict[str, Any]:
        return module._inputs(cell, settings, [load_task("embedded:validation", limit=6)], lm.weights_fingerprint)

    steered = Cell("c", None, 0, 0, Steering(vector, 0.3, "all"))
    known = inputs(steered)
    assert known["steering"] == {"vector": vector.fingerprint, "alpha": 0.3, "scope": "all"}
    changes = [
        Steering(random_vector(vector, 1), 0.3, "all"),
        Steering(vector, 0.4, "all"),
        Steering(vector, 0.3, "generated"),
        None,
    ]
    assert all(inputs(replace(steered, steering=change)) != known for change in changes)
    assert inputs(replace(steered, sampling_seed=1)) != known
    other = module._inputs(steered, SETTINGS, [load_task("embedded:validation", limit=5)], lm.weights_fingerprint)
    assert other != known, "the problems count, not the name of their task"
    longer = replace(SETTINGS, training=replace(SETTINGS.training, epochs=3))
    trained = Cell("c", ROWS, 0, 0)
    assert inputs(steered, longer) == known and inputs(replace(steered, training_seed=5)) == known
    assert inputs(trained, longer) != inputs(trained) != inputs(replace(trained, training_seed=5))
    assert inputs(trained) != inputs(replace(trained, rows=ROWS[:-1]))


def test_cells_that_cannot_be_meant(vector: SteeringVector) -> None:
    with pytest.raises(UsageError, match="cell c is to be trained and steered"):
        Cell("c", ROWS, 0, 0, Steering(vector, 0.3, "all"))
    with pytest.raises(UsageError, match="unknown scope 'al'"):
        Steering(vector, 0.3, "al")
    with pytest.raises(UsageError, match="alpha must be a finite number, not inf"):
        Steering(vector, float("inf"), "all")


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path: Path, lm: LanguageModel, vector: SteeringVector) -> None:
    foreign = replace(vector, model={**vector.model, "weights_fingerprint": "0" * 16})
    broken = replace(vector, values=vector.values * np.float32("nan"))
    told: list[tuple[str, int, int]] = []
    found = run(
        tmp_path,
        lm,
        Cell("foreign", None, 0, 0, Steering(foreign, 0.3, "all")),
        Cell("broken", None, 0, 0, Steering(broken, 0.3, "all")),
        Cell("base", None, 0, 0),
        on_cell=lambda cell, done, n: told.append((cell.name, done, n)),
    )
    assert list(found) == ["foreign", "broken", "base"]
    assert "was made for model" in (found["foreign"].reason or "")
    assert "gives NaN" in (found["broken"].reason or "")
    assert found["base"].result is not None and found["base"].reason is None
    assert told == [("foreign", 1, 3), ("broken", 2, 3), ("base", 3, 3)]
    with pytest.raises(SkillbasisError, match="cell broken failed: .*NaN"):
        found["broken"].pass_at_k(1)


def test_one_fine_tune_answers_every_task(tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    train = module._CellWorker._train

    def watched(self: Any, cell: Cell, work: Path) -> Any:
        trained.append(cell.name)
        return train(self, cell, work)

    monkeypatch.setattr(module._CellWorker, "_train", watched)
    both = replace(SETTINGS, tasks=("embedded:validation", "embedded"), n_problems=4)
    cell = Cell("c", ROWS, 0, 3)
    found = run_cells(tmp_path / "both", [cell], both, lm.weights_fingerprint, n_workers=1)["c"]
    assert trained == ["c"] and list(found.results) == ["embedded:validation", "embedded:test"]
    assert found.result is found.results["embedded:validation"]
    for name, result in found.results.items():
        alone = replace(both, tasks=(name,))
        expected = run_cells(tmp_path / name, [cell], alone, lm.weights_fingerprint, n_workers=1)["c"].result
        assert expected is not None
        np.testing.assert_array_equal(result.n_tokens, expected.n_tokens)
        np.testing.assert_array_equal(result.correct, expected.correct)
    again = run_cells(tmp_path / "both", [cell], both, lm.weights_fingerprint, n_workers=1)["c"]
    assert len(trained) == 3 and list(again.results) == list(found.results)
    lengths = [len(lm.tokenizer(f"{i} + {i} =\n {i + i}")["input_ids"]) + 1 for i in range(8)]
    assert again.n_training_tokens == sum(lengths)
    assert 0 < again.training_seconds < again.seconds
    changed = replace(both, tasks=("embedded", "embedded:validation"), n_problems=3)
    tasks = both.load_tasks()
    assert module._inputs(cell, both, tasks, "w") != module._inputs(cell, changed, changed.load_tasks(), "w")


def test_tasks_that_cannot_be_meant(tmp_path: Path) -> None:
    assert replace(SETTINGS, tasks="embedded").tasks == ("embedded",)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is no task to answer"):
        replace(SETTINGS, tasks=())
    twice = replace(SETTINGS, tasks=("embedded", "embedded:test"))
    with pytest.raises(UsageError, match="different names, got embedded:test, embedded:test"):
        run_cells(tmp_path, [Cell("c", None, 0, 0)], twice, "w", n_workers=1)


def test_a_training_that_diverges_is_a_hole_with_its_time(tmp_path: Path, lm: LanguageModel) -> None:
    training = replace(SETTINGS.training, learning_rate=1e30, epochs=3, batch_size=4, micro_batch_size=4)
    diverging, told = replace(SETTINGS, training=training), []
    cells = [Cell("bad", ROWS, 0, 0), Cell("base", None, 0, 0)]
    found = run_cells(
        *(tmp_path, cells, diverging, lm.weights_fingerprint),
        n_workers=1,
        on_cell=lambda cell, done, n: told.append((cell.name, done, n)),
    )
    assert (found["bad"].reason or "").startswith("training diverged: the loss is nan at step")
    assert found["bad"].seconds > 0 and found["bad"].results == {} and found["base"].results
    assert told == [("bad", 1, 2), ("base", 2, 2)] and not (tmp_path / "bad").exists()
    with pytest.raises(SkillbasisError, match="cell bad failed: training diverged"):
        found["bad"].pass_at_k(1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate 2 GiB."),
            "out of memory; lower micro_batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory; lower micro_batch_size",
        ),
        (MemoryError(), "out of memory; lower micro_batch_size"),
        (RuntimeError("shapes\n do not fit"), "shapes do not fit"),
    ],
)
def test_memory_that_runs_out_is_a_hole_that_says_so(
    tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module, "fine_tuned", fail)
    found = run(tmp_path, lm, Cell("big", ROWS, 0, 0), Cell("base", None, 0, 0))
    assert (found["big"].reason or "").startswith(reason) and found["base"].results
    assert "\n" not in (found["big"].reason or "")


def test_a_defect_is_no_hole(tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(module, "fine_tuned", fail)
    with pytest.raises(KeyError, match="a defect") as caught:
        run(tmp_path, lm, Cell("c", ROWS, 0, 0))
    assert caught.value.__notes__ == ["in cell c"]


def test_a_killed_worker_costs_only_the_cell_it_dies_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CellWorker", DyingWorker)
    jobs = [(Cell(name, None, 0, 0), tmp_path / name, {}) for name in ("a", "greedy", "b", "c", "d")]
    found = {job[0].name: outcome for job, outcome in module._side_by_side(jobs, SETTINGS, 2)}
    assert sorted(found) == ["a", "b", "c", "d", "greedy"]
    (failure,) = [outcome for outcome in found.values() if outcome is not None]
    assert failure is found["greedy"] and isinstance(failure, module._Failure)
    assert failure.reason.startswith("its process was killed, probably for want of memory; lower")
    monkeypatch.setattr(module, "_CellWorker", StillbornWorker)
    with pytest.raises(WorkerKilledError, match="a worker process ended without a result"):
        list(module._side_by_side(jobs[2:], SETTINGS, 2))


def test_finished_cells_are_kept_after_a_kill(
    tmp_path: Path, lm: LanguageModel, vector: SteeringVector, in_child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(f"c/{seed}", None, 0, seed, Steering(vector, 0.3, "all")) for seed in range(3)]

    def die(cell: CellResult, done: int, _n: int) -> None:
        if done == 2:
            kill_this_process()

    assert in_child(lambda: run(tmp_path, lm, *cells, on_cell=die)) == -9
    made: list[str] = []
    work = module._CellWorker.__call__

    def watched(self: Any, job: Any) -> None:
        made.append(job[0].name)
        work(self, job)

    monkeypatch.setattr(module._CellWorker, "__call__", watched)
    found = run(tmp_path, lm, *cells)
    assert made == ["c/2"] and len(found) == 3
    whole = run(tmp_path / "whole", lm, *cells)
    for name, cell in found.items():
        np.testing.assert_array_equal(cell.pass_at_k(1), whole[name].pass_at_k(1))
    assert read_json(tmp_path / "c/0/manifest.json")["inputs"]["steering"]["vector"] == vector.fingerprint


def test_cells_that_can_only_come_out_alike_are_run_once(
    tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    work = module._CellWorker.__call__

    def watched(self: Any, job: Any) -> Any:
        made.append(job[0].name)
        return work(self, job)

    monkeypatch.setattr(module._CellWorker, "__call__", watched)
    first, twin, other = Cell("a/1", ROWS, 0, 1), Cell("b/1", ROWS, 0, 1), Cell("b/2", ROWS, 0, 2)
    ticks: list[tuple[str, int]] = []
    found = run(tmp_path, lm, first, twin, other, on_cell=lambda cell, done, n: ticks.append((cell.name, done)))
    assert sorted(made) == ["a/1", "b/2"] and list(found) == ["a/1", "b/1", "b/2"]
    assert sorted(done for _, done in ticks) == [1, 2, 3] and {name for name, _ in ticks} == set(found)
    np.testing.assert_array_equal(found["a/1"].pass_at_k(1), found["b/1"].pass_at_k(1))
    assert found["b/1"].seconds == found["a/1"].seconds > 0
    assert read_json(tmp_path / "b/1/manifest.json")["name"] == "b/1"
    late = run(tmp_path, lm, Cell("c/1", ROWS, 0, 1), first)  # one that is there already serves too
    assert len(made) == 2 and late["c/1"].seconds == found["a/1"].seconds

    def fail(*_: Any) -> None:
        raise SkillbasisError("diverged")

    monkeypatch.setattr(module._CellWorker, "_run", fail)
    failed = run(tmp_path, lm, Cell("x/1", ROWS, 0, 3), Cell("x/2", ROWS, 0, 3))
    assert len(made) == 3 and {cell.reason for cell in failed.values()} == {"diverged"}
