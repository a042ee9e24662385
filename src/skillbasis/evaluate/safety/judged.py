"""Stored answers judged: what a judge says of every one of them, on disk without a word of request or answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import statistics
from ...artifact import atomic_path, building, fingerprint, is_current, read_json, read_manifest, write_json
from ...errors import ArtifactError, UsageError
from ..reference import REFUSE
from ..samples import SAMPLES, Asked, read_asked, read_samples
from .empty import is_empty
from .exact import ExactJudge
from .judgement import Exchange, Judgement, SafetyJudge
from .measures import JudgedTable

KIND = "judgements"
JUDGEMENTS = "judgements.parquet"
SUMMARY = "summary.json"
MEASURES = ("attack_success", "score", "refused")
"""Of attacks; of safe requests it is `over_refusal`."""


@dataclass(frozen=True)
class Answer:
    """A stored answer to a request."""

    task: str
    problem_id: str
    sample: int
    """0-based number of the rollout."""
    exchange: Exchange
    group: str | None = None
    """Attack family or category of the request."""
    cluster: str | None = None
    """The behaviour it is after."""
    is_attack: bool = True
    """Whether the request is to be refused."""


OnJudged = Callable[[int, int], None]
"""Called with (how many are judged, how many there are): answers, unless something else is said."""


def read_answers(path: Path, tasks: Sequence[str] | None = None) -> list[Answer]:
    """The answers of an evaluation directory, or of a cell, in its order.

    Args:
        tasks: the tasks whose answers are wanted; all where None.
    Raises: UsageError: there is no such directory or task. ArtifactError: the evaluation is unfinished or damaged.
    """
    if not path.is_dir():
        unfinished = path.with_name(f"{path.name}.partial").is_dir()
        if unfinished:
            raise ArtifactError(f"{path} is unfinished; run the command that makes it again to finish it")
        raise UsageError(f"there is no evaluation directory at {path}; check the path")
    if not (path / SAMPLES).exists():
        raise UsageError(f"{path} has no {SAMPLES}, so it is no evaluation; give a directory that `evaluate` made")
    asked, samples = read_asked(path), read_samples(path)
    for name in tasks or ():
        if name not in samples:
            raise UsageError(f"{path} has no answers to the task {name!r}; it has {', '.join(samples)}")
    records = [record for name, of_task in samples.items() if tasks is None or name in tasks for record in of_task]
    try:
        return [_answer(record, asked[record["task"], record["problem_id"]]) for record in records]
    except KeyError as error:
        raise ArtifactError(f"{path} has answers to {error.args[0]}, which it did not ask; make it anew") from None


def _answer(record: Mapping[str, Any], asked: Asked) -> Answer:
    exchange = Exchange(asked.prompt[-1]["content"], record["response"], asked.sought)
    place = record["task"], record["problem_id"], record["sample"]
    return Answer(*place, exchange, asked.group, asked.cluster, asked.answers == (REFUSE,))


def judge_exchanges(
    judge: SafetyJudge, exchanges: Sequence[Exchange], on_judged: OnJudged | None = None
) -> list[Judgement]:
    """What a judge says of every exchange, in their order. The same exchange is judged once.

    Raises: SkillbasisError: the judge is down. An endpoint's answers so far are kept where it keeps them.
    """
    judgements: dict[int, Judgement] = {}
    for number, judgement in _judged(judge, exchanges):
        judgements[number] = judgement
        if on_judged is not None:
            on_judged(len(judgements), len(exchanges))
    return [judgements[number] for number in range(len(exchanges))]


def _judged(judge: SafetyJudge, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Judgement]]:
    places: dict[Exchange, list[int]] = {}
    for number, exchange in enumerate(exchanges):
        places.setdefault(exchange, []).append(number)
    distinct = list(places)
    for which, judgement in judge.judge(distinct):
        for number in places[distinct[which]]:
            yield number, judgement


def judge_evaluation(
    path: Path,
    out: Path,
    judge: SafetyJudge,
    *,
    tasks: Sequence[str] | None = None,
    overwrite: bool = True,
    on_judged: OnJudged | None = None,
) -> dict[str, Any]:
    """Judges the answers of an evaluation directory, or of a cell, into an artifact; see `judge_answers`."""
    answers = read_answers(path, tasks)
    _check_exact(path, judge, tasks)
    return judge_answers(answers, out, judge, overwrite=overwrite, on_judged=on_judged)


def judge_many(
    places: Mapping[Path, Sequence[Answer]], judge: SafetyJudge, *, on_judged: OnJudged | None = None
) -> None:
    """Judges the answers of many models at once, each into an artifact of its own, written when it is complete.

    Args:
        places: artifact directory -> answers, see `judge_answers`. What is finished there and current is not judged
            again.
        on_judged: called with (artifacts that are complete, artifacts in all).
    Raises: as `judge_answers`. What was complete by then stays.
    Cost: all answers in memory.
    """
    waiting = {out: answers for out, answers in places.items() if not is_current(out, KIND, _inputs(answers, judge))}
    owners = [(out, number) for out, answers in waiting.items() for number in range(len(answers))]
    found: dict[Path, dict[int, Judgement]] = {out: {} for out in waiting}
    n_done = len(places) - len(waiting)

    def finish(out: Path) -> None:
        nonlocal n_done
        answers = waiting[out]
        with building(out, KIND, _inputs(answers, judge), {}) as work:
            _write(work, answers, [found[out][number] for number in range(len(answers))], judge)
        n_done += 1
        if on_judged is not None:
            on_judged(n_done, len(places))

    for out in [out for out, answers in waiting.items() if not answers]:
        finish(out)
    for place, judgement in _judged(judge, [waiting[out][number].exchange for out, number in owners]):
        out, number = owners[place]
        found[out][number] = judgement
        if len(found[out]) == len(waiting[out]):
            finish(out)


def judge_answers(
    answers: Sequence[Answer],
    out: Path,
    judge: SafetyJudge,
    *,
    overwrite: bool = True,
    on_judged: OnJudged | None = None,
) -> dict[str, Any]:
    """Judges answers into an artifact: `judgements.parquet` and `summary.json`, without a text in either.

    `judgements.parquet` has a row per answer: task, problem_id, sample, refused, convincing, specific, score, reason;
    see `Judgement`. An artifact of the same answers and judge is not made again.

    Args:
        overwrite: whether judgements of other answers, or by another judge, give way; else they are refused.
    Returns: the content of `summary.json`, see `summarise`.
    Raises: SkillbasisError: the judge is down; what it said is kept by the judge, and the same call goes on.
        ArtifactError: something else is at `out`.
    """
    inputs = _inputs(answers, judge)
    if is_current(out, KIND, inputs):
        return read_summary(out)
    with building(out, KIND, inputs, {}, overwrite=overwrite) as work:
        judgements = judge_exchanges(judge, [answer.exchange for answer in answers], on_judged)
        _write(work, answers, judgements, judge)
    return read_summary(out)


def summarise(answers: Sequence[Answer], judgements: Sequence[Judgement], judge: SafetyJudge) -> dict[str, Any]:
    """Counts and means of judgements by task.

    Returns: `judge` (name, diagnostic, identity, description) and `tasks`: of each, n_problems, n_answers, n_scored,
        n_unscored with `unscored` (reason -> answers), n_refused, n_refusal_unknown (answers of which the judge does
        not say), n_empty (answers without a word); the estimates `attack_success`, `score` and `refused` of its
        attacks, and `over_refusal` of its safe requests, by `JudgedTable.estimate`; None where it has none of them.
    Raises: UsageError: not every request of a task has as many answers.
    """
    by_task: dict[str, list[tuple[Answer, Judgement]]] = {}
    for answer, judgement in zip(answers, judgements, strict=True):
        by_task.setdefault(answer.task, []).append((answer, judgement))
    who = {"name": judge.name, "diagnostic": judge.diagnostic}
    who |= {"identity": judge.identity, "description": judge.description}
    return {"judge": who, "tasks": {task: _figures(task, judged) for task, judged in by_task.items()}}


def _figures(task: str, judged: Sequence[tuple[Answer, Judgement]]) -> dict[str, Any]:
    reasons = Counter(str(judgement.reason) for _, judgement in judged if judgement.score is None)
    table = table_of(task, judged)
    to_refuse = {answer.problem_id: answer.is_attack for answer, _ in judged}
    counts = {
        "n_problems": len(table.problem_ids),
        "n_attacks": sum(to_refuse.values()),
        "n_answers": len(judged),
        "n_scored": len(judged) - reasons.total(),
        "n_unscored": reasons.total(),
        "unscored": dict(reasons.most_common()),
        "n_refused": sum(judgement.refused is True for _, judgement in judged),
        "n_refusal_unknown": sum(judgement.refused is None for _, judgement in judged),
        "n_empty": sum(is_empty(answer.exchange.response) for answer, _ in judged),
    }
    kinds = [to_refuse[problem_id] for problem_id in table.problem_ids]
    attacks, safe = table.where(kinds), table.where([not kind for kind in kinds])
    found = {measure: attacks.estimate(measure) if any(kinds) else None for measure in MEASURES}
    return counts | found | {"over_refusal": safe.estimate("over_refusal") if not all(kinds) else None}


def table_of(task: str, judged: Sequence[tuple[Answer, Judgement]]) -> JudgedTable:
    """Judgements of the answers to one list of requests as a table.

    Raises: UsageError: not every request has as many answers.
    """
    import numpy as np

    rows: dict[str, list[tuple[Answer, Judgement]]] = {}
    for answer, judgement in judged:
        rows.setdefault(answer.problem_id, []).append((answer, judgement))
    counts = {len(row) for row in rows.values()}
    if len(counts) > 1:
        raise UsageError(
            f"the requests of {task} have from {min(counts)} to {max(counts)} answers; give every id as many, or none"
        )
    first = [row[0][0] for row in rows.values()]
    said = [[(j.refused, j.score, j.is_success) for _, j in row] for row in rows.values()]
    values = np.array(said, dtype=np.float64).reshape(len(rows), -1, 3)  # None becomes NaN; (problems, rollouts, 3)
    return JudgedTable(
        task,
        list(rows),
        [answer.group for answer in first],
        [answer.cluster for answer in first],
        *(values[:, :, column] for column in range(3)),
    )


def read_judgements(path: Path) -> dict[str, dict[tuple[str, int], Judgement]]:
    """The judgements of an artifact by task, and by (problem, number of the answer), as `tabulate` takes them.

    Raises: ArtifactError: there is none, or it is unfinished.
    """
    import pyarrow.parquet as pq

    read_manifest(path, KIND)
    found: dict[str, dict[tuple[str, int], Judgement]] = {}
    for row in pq.read_table(path / JUDGEMENTS).to_pylist():
        task, place = row.pop("task"), (row.pop("problem_id"), row.pop("sample"))
        found.setdefault(task, {})[place] = Judgement(**row)
    return found


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of an artifact of judgements. Raises: ArtifactError: there is none, or it is unfinished."""
    read_manifest(path, KIND)
    return dict(read_json(path / SUMMARY))


def _inputs(answers: Sequence[Answer], judge: SafetyJudge) -> dict[str, Any]:
    content = [[a.task, a.problem_id, a.sample, *asdict(a.exchange).values(), a.group, a.cluster] for a in answers]
    return {"answers": fingerprint(content), "judge": judge.identity}


def _check_exact(path: Path, judge: SafetyJudge, tasks: Sequence[str] | None) -> None:
    """Raises: UsageError: the exact judge is given requests of which nothing says what obliging would look like."""
    if not isinstance(judge, ExactJudge):
        return
    for (task, _), asked in read_asked(path).items():
        if asked.answers == (REFUSE,) and asked.sought is None and (tasks is None or task in tasks):
            raise UsageError(
                f"the judge exact cannot judge the task {task!r}: nothing says what its forbidden requests seek, as "
                "the embedded world does; name another judge"
            )


def _write(work: Path, answers: Sequence[Answer], judgements: Sequence[Judgement], judge: SafetyJudge) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"task": answer.task, "problem_id": answer.problem_id, "sample": answer.sample} | asdict(judgement)
        for answer, judgement in zip(answers, judgements, strict=True)
    ]
    types = {"task": pa.string(), "problem_id": pa.string(), "sample": pa.int32(), "refused": pa.bool_()}
    types |= {"convincing": pa.int8(), "specific": pa.int8(), "score": pa.float64(), "reason": pa.string()}
    with atomic_path(work / JUDGEMENTS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), temporary)
    write_json(work / SUMMARY, statistics.nan_to_none(summarise(answers, judgements, judge)))
