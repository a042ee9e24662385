"""Answer tasks, grade the answers, and keep every sample: resumable on disk, or in memory for many small runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import statistics
from ..artifact import atomic_path, building, is_current, read_json, write_json
from ..errors import ArtifactError, SkillbasisError, UsageError
from ..lm import LanguageModel
from .generate import Completion, Intervention, SamplingSettings, generate
from .grade import GradeResult
from .tasks import Task

KIND = "evaluation"
PROBLEMS = "problems.parquet"
OnSamples = Callable[[int, int, float], None]
"""Called with (samples done, samples in all, running share of correct answers)."""


@dataclass(frozen=True)
class TaskResult:
    """Graded answers of one task; rows are problems in task order, columns rollouts."""

    task: str
    problem_ids: list[str]
    groups: list[str | None]
    correct: np.ndarray
    """(problems, rollouts) bool."""
    n_tokens: np.ndarray
    """(problems, rollouts) int."""
    truncated: np.ndarray
    """(problems, rollouts) bool."""
    statuses: dict[str, int]
    """How many answers had each grading status."""

    def pass_at_k(self, k: int) -> np.ndarray:
        """Unbiased pass@k of every problem, (problems,)."""
        n = np.full(len(self.correct), self.correct.shape[1])
        return statistics.pass_at_k(n, self.correct.sum(axis=1), k)

    @property
    def ks(self) -> list[int]:
        """Powers of two up to the number of rollouts."""
        return [2**i for i in range(self.correct.shape[1].bit_length()) if 2**i <= self.correct.shape[1]]

    def summary(self) -> dict[str, Any]:
        """JSON-able figures: pass@k with SE and interval, by group too, length, truncation and grading statuses."""
        figures: dict[str, Any] = {
            "n_problems": len(self.problem_ids),
            "n_samples": int(self.correct.size),
            "n_correct": int(self.correct.sum()),
        }
        for k in self.ks:
            figures[f"pass@{k}"] = statistics.as_json(statistics.mean_estimate(self.pass_at_k(k)))
        groups = sorted({group for group in self.groups if group is not None})
        if len(groups) > 1:
            member = np.array([group or "" for group in self.groups])
            first = self.pass_at_k(1)
            figures["by_group"] = {
                group: statistics.as_json(statistics.mean_estimate(first[member == group])) for group in groups
            }
        figures["mean_tokens"] = float(self.n_tokens.mean())
        figures["truncated_fraction"] = float(self.truncated.mean())
        figures["statuses"] = self.statuses
        return figures


def _graded_groups(
    lm: LanguageModel, task: Task, settings: SamplingSettings, intervention: Intervention | None, todo: set[str]
) -> Generator[list[tuple[Completion, GradeResult, float]]]:
    """Samples and grades the problems in `todo`, a group of whole problems at a time; with seconds per sample."""
    answers = {problem.id: problem.answer for problem in task.problems}
    prompts = [prompt for prompt in task.prompts if prompt.id in todo]
    with task.grader() as grader:
        started = time.perf_counter()
        for group in generate(lm, prompts, settings, intervention):
            grades = grader.grade(
                [completion.text for completion in group],
                [answers[completion.prompt_id] for completion in group],
                [completion.truncated for completion in group],
            )
            seconds = (time.perf_counter() - started) / len(group)
            yield [(completion, grade, seconds) for completion, grade in zip(group, grades, strict=True)]
            started = time.perf_counter()


def answer_task(
    lm: LanguageModel, task: Task, settings: SamplingSettings, intervention: Intervention | None = None
) -> tuple[TaskResult, list[dict[str, Any]]]:
    """Answers and grades a task in memory; returns the graded table and the sample records behind it."""
    ids = {problem.id for problem in task.problems}
    records = [
        _record(task.name, completion, grade, seconds)
        for group in _graded_groups(lm, task, settings, intervention, ids)
        for completion, grade, seconds in group
    ]
    return collect(task, records, settings.rollouts), records


def write_samples(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes sample records as Parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(records), schema=_sample_schema()), temporary)


def _record(task: str, completion: Completion, grade: GradeResult, seconds: float) -> dict[str, Any]:
    return {
        "task": task,
        "problem_id": completion.prompt_id,
        "sample": completion.sample,
        "response": completion.text,
        "extracted": grade.extracted,
        "correct": grade.correct,
        "status": grade.status,
        "tokens": completion.n_tokens,
        "truncated": completion.truncated,
        "seconds": seconds,
    }


def collect(task: Task, records: Sequence[dict[str, Any]], rollouts: int) -> TaskResult:
    """Arranges sample records as a table of problems x rollouts.

    Raises: SkillbasisError: a sample is missing.
    """
    row = {problem.id: i for i, problem in enumerate(task.problems)}
    shape = (len(row), rollouts)
    correct, n_tokens = np.zeros(shape, dtype=bool), np.full(shape, -1)
    truncated = np.zeros(shape, dtype=bool)
    for record in records:
        place = row[record["problem_id"]], record["sample"]
        correct[place], n_tokens[place] = record["correct"], record["tokens"]
        truncated[place] = record["truncated"]
    if (n_tokens < 0).any():
        raise SkillbasisError(f"{int((n_tokens < 0).sum())} samples of task {task.name} are missing; evaluate again")
    statuses = Counter(record["status"] for record in records)
    groups = [problem.group for problem in task.problems]
    return TaskResult(task.name, list(row), groups, correct, n_tokens, truncated, dict(sorted(statuses.items())))


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[Task],
    settings: SamplingSettings,
    out: str | Path,
    *,
    intervention: Intervention | None = None,
    intervention_settings: dict[str, Any] | None = None,
    on_samples: OnSamples | None = None,
) -> dict[str, TaskResult]:
    """Evaluates a model on tasks into a directory (format: docs/architecture.md).

    Killed at any moment, the same call goes on with the problems not yet answered; other settings are another
    evaluation and start anew.

    Args:
        intervention: a change of the model for the time of the sampling, such as steering.
        intervention_settings: what describes it in the record; needed with an intervention.
    Returns: the graded table of each task.
    """
    if (intervention is None) != (not intervention_settings):
        raise UsageError("an intervention and the settings that describe it in the record must be given together")
    if not tasks:
        raise UsageError("there is no task to evaluate on; name at least one")
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise UsageError(f"tasks must be different, got {', '.join(names)}")
    out = Path(out)
    sampling = {key: value for key, value in asdict(settings).items() if key != "batch_size"}
    inputs: dict[str, Any] = {
        "weights_fingerprint": lm.weights_fingerprint,
        "tokenizer_fingerprint": lm.tokenizer_fingerprint,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "tasks": {task.name: task.fingerprint for task in tasks},
        "sampling": sampling,
        "intervention": intervention_settings,
    }
    by_name = {task.name: task for task in tasks}
    if not is_current(out, KIND, inputs):
        with building(out, KIND, inputs, {}) as work:
            _write_problems(work / PROBLEMS, tasks)
            results = _fill(work, lm, tasks, settings, intervention, on_samples)
            summary = {
                "model": lm.name,
                "engine": "transformers",
                "versions": _versions(),
                "template_fingerprint": lm.template_fingerprint,
                "settings": inputs,
                "grader": {task.name: "exact" if task.exact else "math-verify" for task in tasks},
                "tasks": {name: result.summary() for name, result in results.items()},
            }
            write_json(work / "summary.json", summary)
    elif not (out / PROBLEMS).exists():  # an older version wrote no problems
        _write_problems(out / PROBLEMS, tasks)
    return {name: collect(by_name[name], records, settings.rollouts) for name, records in read_samples(out).items()}


def _fill(
    work: Path,
    lm: LanguageModel,
    tasks: Sequence[Task],
    settings: SamplingSettings,
    intervention: Intervention | None,
    on_samples: OnSamples | None,
) -> dict[str, TaskResult]:
    """Samples what is missing into part files, then joins them into samples.parquet."""
    import pyarrow.parquet as pq

    parts, joined = sorted(work.glob("part-*.parquet")), work / "samples.parquet"
    # The joined file is written when all is answered: a run killed after it may have lost some of its parts.
    answered = [joined] if joined.exists() else parts
    records = [record for file in answered for record in pq.read_table(file).to_pylist()]
    n_total = sum(len(task.problems) for task in tasks) * settings.rollouts
    n_correct = sum(record["correct"] for record in records)
    for task in tasks:
        done = {record["problem_id"] for record in records if record["task"] == task.name}
        todo = {problem.id for problem in task.problems} - done
        with closing(_graded_groups(lm, task, settings, intervention, todo)) as groups:  # undoes the intervention
            for group in groups:
                new = [_record(task.name, completion, grade, seconds) for completion, grade, seconds in group]
                parts.append(work / f"part-{len(parts):05d}.parquet")
                write_samples(parts[-1], new)
                records += new
                n_correct += sum(record["correct"] for record in new)
                if on_samples:
                    on_samples(len(records), n_total, n_correct / len(records))
    order = {(task.name, problem.id): i for task in tasks for i, problem in enumerate(task.problems)}
    names = [task.name for task in tasks]
    records.sort(key=lambda r: (names.index(r["task"]), order[r["task"], r["problem_id"]], r["sample"]))
    write_samples(joined, records)
    for part in parts:
        part.unlink()
    return {
        task.name: collect(task, [r for r in records if r["task"] == task.name], settings.rollouts) for task in tasks
    }


def _sample_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("problem_id", pa.string()),
            ("sample", pa.int32()),
            ("response", pa.string()),
            ("extracted", pa.string()),
            ("correct", pa.bool_()),
            ("status", pa.string()),
            ("tokens", pa.int32()),
            ("truncated", pa.bool_()),
            ("seconds", pa.float64()),
        ]
    )


def read_samples(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the samples of an evaluation directory by task.

    Raises: ArtifactError: unfinished or absent.
    """
    import pyarrow.parquet as pq

    read_json(Path(path) / "summary.json")
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in pq.read_table(Path(path) / "samples.parquet").to_pylist():
        by_task.setdefault(record["task"], []).append(record)
    return by_task


def _write_problems(path: Path, tasks: Sequence[Task]) -> None:
    """Writes what was asked (task, problem_id, prompt as JSON messages, answer, group) as Parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "task": task.name,
            "problem_id": problem.id,
            "prompt": json.dumps(problem.prompt, ensure_ascii=False),
            "answer": problem.answer,
            "group": problem.group,
        }
        for task in tasks
        for problem in task.problems
    ]
    schema = pa.schema([(name, pa.string()) for name in ("task", "problem_id", "prompt", "answer", "group")])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def read_problems(path: str | Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Reads the prompts (messages) of an evaluation directory by task and problem id, in task order.

    Raises: ArtifactError: unfinished or absent, or written by a version that kept no problems.
    """
    import pyarrow.parquet as pq

    read_json(Path(path) / "summary.json")
    if not (Path(path) / PROBLEMS).exists():
        raise ArtifactError(
            f"{path} has no {PROBLEMS}, so its prompts are not known; run the evaluate command that made it again, "
            "which adds them and answers nothing anew"
        )
    columns = pq.read_table(Path(path) / PROBLEMS, columns=["task", "problem_id", "prompt"]).to_pydict()
    return {
        (task, problem): json.loads(prompt)
        for task, problem, prompt in zip(columns["task"], columns["problem_id"], columns["prompt"], strict=True)
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("skillbasis", "torch", "transformers", "math-verify")}
