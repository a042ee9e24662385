"""Grades responses against reference answers: exactly for the embedded world, with Math-Verify for everything else.

Math-Verify can hang or eat memory on hostile answers, and its time-out needs a main thread. So it runs in worker
processes of its own, each with a memory limit; one that overruns is killed and replaced, and only its item suffers.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol, Self, get_args

from ..artifact import atomic_path
from ..errors import CorpusError, SkillbasisError, UsageError
from .answers import Status, canonical, extract_answer, read_answer, reference_answer, same_text

__all__ = ["ExactGrader", "GradeResult", "Grader", "MathVerifyGrader", "extract_answer", "grade_file"]

DEFAULT_TIMEOUT_S = 10.0
STARTUP_S = 120.0
"""How long a worker may take to import Math-Verify on a busy machine before that is an error."""
KILL_AFTER_S = 1.0
"""Beyond the time-out: what Python cannot interrupt (a huge power, a regular expression) is killed this much later."""
FILE_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class GradeResult:
    """The grade of one response."""

    correct: bool
    extracted: str | None
    """The answer found in the response, as written there."""
    status: Status
    """"ok" (compared); "no_answer"; "truncated" (cut before an answer); "timeout" and "error" of the grader itself.
    Everything but "ok" counts as not correct."""


class Grader(Protocol):
    """Grades a batch of responses; a context manager that frees its processes."""

    version: str
    """Name and version, kept with every result."""

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str]],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """One result per response, in order; a list of answers holds alternatives, any of which is right."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class ExactGrader:
    """Compares the boxed answer with the reference by canonical spelling, in process; only `\\boxed{}` counts."""

    version = "exact 1"

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str]],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """See `Grader.grade`."""
        results = []
        for response, references, cut in _items(responses, answers, truncated):
            extracted, status = read_answer(response, cut, boxed_only=True)
            right = extracted is not None and canonical(extracted) in map(canonical, references)
            results.append(GradeResult(right, extracted, status))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class MathVerifyGrader:
    """Grades mathematics with Math-Verify in worker processes.

    Answers spelled alike, and plain integers, are decided without a worker; equal pairs are compared once per call.

    Args:
        n_workers: processes; they start when first needed and stay until `close`. Default: cores, at most 8.
        timeout_s: time for one response against all its references.
    """

    def __init__(self, n_workers: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if n_workers is not None and n_workers < 1:
            raise UsageError(f"n_workers is {n_workers}; give at least 1")
        if not timeout_s > 0:
            raise UsageError(f"timeout_s is {timeout_s}; give seconds above 0")
        self.n_workers = n_workers or min(8, os.cpu_count() or 1)
        self.timeout_s = timeout_s
        self.version = f"math-verify {importlib.metadata.version('math-verify')}"
        self._workers: list[_Worker] = []

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str]],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """See `Grader.grade`."""
        results: list[GradeResult] = []
        waiting: dict[tuple[str, ...], list[int]] = {}  # (extracted, references still open) -> positions
        for response, references, cut in _items(responses, answers, truncated):
            extracted, status = read_answer(response, cut)
            correct = False
            if extracted is not None:
                verdicts = {reference: same_text(extracted, reference) for reference in references}
                correct = True in verdicts.values()
                still_open = [reference for reference, verdict in verdicts.items() if verdict is None]
                if still_open and not correct:
                    waiting.setdefault((extracted, *still_open), []).append(len(results))
            results.append(GradeResult(correct, extracted, status))
        for pair, (status, correct) in self._compare(list(waiting)).items():
            for i in waiting[pair]:
                results[i] = GradeResult(correct, results[i].extracted, status)
        return results

    def _compare(self, pairs: list[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[Status, bool]]:
        """Hands the pairs to the workers, one at a time each; kills those that overrun."""
        queue = deque(pairs)
        done: dict[tuple[str, ...], tuple[Status, bool]] = {}
        try:
            while len(done) < len(pairs):
                while len(self._workers) < min(self.n_workers, len(pairs) - len(done)):
                    self._workers.append(_Worker(self.timeout_s))
                for worker in self._workers:
                    if queue and worker.idle:
                        worker.send(queue.popleft())
                busy = [worker for worker in self._workers if not worker.idle]
                nearest = min(worker.deadline for worker in busy)
                readable = wait([worker.fileno() for worker in busy], max(0.0, nearest - time.monotonic()))
                for worker in busy:
                    if worker.fileno() in readable:
                        answered, outcome = worker.receive()
                    elif time.monotonic() >= worker.deadline:
                        answered, outcome = worker.overrun()
                    else:
                        continue
                    if answered is not None:
                        done[answered] = outcome
                    if worker.dead:
                        worker.close()
                        self._workers.remove(worker)
        except BaseException:
            self.close()  # an answer still on its way must not be taken for one of the next call
            raise
        return done

    def close(self) -> None:
        """Ends the worker processes; a later `grade` starts new ones."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_OUTCOMES: dict[str, tuple[Status, bool]] = {
    "right": ("ok", True),
    "wrong": ("ok", False),
    "timeout": ("timeout", False),
    "error": ("error", False),
}


@dataclass(eq=False)
class _Worker:
    """One process running `math_worker`, spoken to in lines of text.

    Not `multiprocessing`: that would run the caller's main script again in each worker, and needs a guard in it.
    """

    timeout_s: float
    item: tuple[str, ...] | None = None
    ready: bool = False
    dead: bool = False
    deadline: float = field(default_factory=lambda: time.monotonic() + STARTUP_S)

    def __post_init__(self) -> None:
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, see close()
        self.process = subprocess.Popen(
            # -P: a file in the current directory must not shadow a module
            [sys.executable, "-P", "-m", "skillbasis.evaluate.math_worker", repr(self.timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    @property
    def idle(self) -> bool:
        return self.ready and self.item is None

    def fileno(self) -> int:
        return self.stdout.fileno()

    def send(self, item: tuple[str, ...]) -> None:
        self.item = item
        self.deadline = time.monotonic() + self.timeout_s + KILL_AFTER_S
        try:
            self.stdin.write(json.dumps(item).encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            # It died while idle: receive() meets the end of its output next, and counts an error.
            self.dead = True

    def receive(self) -> tuple[tuple[str, ...] | None, tuple[Status, bool]]:
        """(the item answered, its outcome); None for the item where this was the worker's first sign of life."""
        line = self.stdout.readline()  # a reply is one short write, so a readable pipe holds a whole line or its end
        if not line and not self.ready:
            self.stderr.seek(0)
            said = self.stderr.read().decode(errors="replace").strip().rpartition("\n")[2] or "no message"
            raise SkillbasisError(f"a grading worker ended while starting ({said}); reinstall math-verify")
        if line and not self.ready:
            self.ready = True
            return None, _OUTCOMES["error"]
        self.dead = self.dead or not line
        item, self.item = self.item, None
        return item, _OUTCOMES[line.decode().strip() or "error"]

    def overrun(self) -> tuple[tuple[str, ...] | None, tuple[Status, bool]]:
        if not self.ready:
            raise SkillbasisError(f"a grading worker did not start in {STARTUP_S:.0f} s; use fewer workers")
        self.dead = True
        return self.item, _OUTCOMES["timeout"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        self.stderr.close()
        with suppress(BrokenPipeError):  # what was still to be sent has no reader; the file is closed all the same
            self.stdin.close()


def _items(
    responses: Sequence[str], answers: Sequence[str | list[str]], truncated: Sequence[bool] | None
) -> Iterator[tuple[str, list[str], bool]]:
    cut = [False] * len(responses) if truncated is None else truncated
    if not len(responses) == len(answers) == len(cut):
        raise UsageError(
            f"{len(responses)} responses, {len(answers)} answers and {len(cut)} truncation flags; give one of each"
        )
    for i, (response, answer, flag) in enumerate(zip(responses, answers, cut, strict=True)):
        references = [reference_answer(text) for text in ([answer] if isinstance(answer, str) else answer)]
        if not references or not all(references):
            raise UsageError(
                f"the reference answer of item {i} is empty: {answer!r}; give the answer, or a list of them"
            )
        yield response, references, bool(flag)


def grade_file(
    path: Path, out_parquet: Path, n_workers: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> dict[str, int]:
    """Grades the responses of a file and writes `id, extracted, correct, status` as Parquet, atomically.

    Args:
        path: JSONL, JSONL.gz or Parquet with columns `response` and `answer` (text, a number, or a list of
            alternatives), and optionally `id` (else the row number, from 1) and `truncated`.
        out_parquet: the file to write; rows in the order read, grader version and time-out in its metadata.
        n_workers: Math-Verify processes. Default: cores, at most 8.
        timeout_s: time for one response.
    Returns: counts of `rows`, `correct`, and of each status.
    Raises: UsageError: when the file or a column is missing, or a row lacks a value. CorpusError: when the file is
        damaged.
    Cost: memory of a block of 1024 rows, whatever the size of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.resolve() == out_parquet.resolve():
        raise UsageError(f"{out_parquet} is the input itself; give another --out")
    counts = {"rows": 0, "correct": 0} | dict.fromkeys(get_args(Status), 0)
    rows = _checked_rows(path)
    with MathVerifyGrader(n_workers, timeout_s) as grader, atomic_path(out_parquet) as temporary:
        columns = {"id": pa.string(), "extracted": pa.string(), "correct": pa.bool_(), "status": pa.string()}
        schema = pa.schema(columns, metadata={"grader": grader.version, "timeout_s": str(timeout_s)})
        with pq.ParquetWriter(temporary, schema) as writer:
            while block := list(islice(rows, FILE_BLOCK_ROWS)):
                ids, responses, answers, truncated = zip(*block, strict=True)
                results = grader.grade(responses, answers, truncated)
                written = {"id": ids, **{name: [getattr(r, name) for r in results] for name in list(columns)[1:]}}
                writer.write_table(pa.table(written, schema=schema))
                counts["rows"] += len(results)
                counts["correct"] += sum(result.correct for result in results)
                for result in results:
                    counts[result.status] += 1
        if not counts["rows"]:
            raise UsageError(f"{path} holds no rows; give a file with columns response and answer")
    return counts


def _checked_rows(path: Path) -> Iterator[tuple[str, str, list[str], bool]]:
    """(id, response, answers, truncated) of each row."""
    for number, row in enumerate(_read_rows(path), start=1):
        for column in ("response", "answer"):
            if column not in row:
                has = ", ".join(row) or "none"
                raise UsageError(f"{path}, row {number}: there is no column '{column}' (columns: {has}); rename yours")
        response, answer = row["response"], row["answer"]
        if not isinstance(response, str):
            raise UsageError(f"{path}, row {number}: 'response' is {response!r}, not text; remove or mend the row")
        answers = [_answer_text(value) for value in (answer if isinstance(answer, list) else [answer])]
        if not answers or not all(text and reference_answer(text) for text in answers):
            raise UsageError(f"{path}, row {number}: 'answer' is {answer!r}, not an answer; remove or mend the row")
        name, truncated = row.get("id"), row.get("truncated") or False
        if not isinstance(truncated, bool):
            raise UsageError(f"{path}, row {number}: 'truncated' is {truncated!r}; give true or false")
        yield str(number if name is None else name), response, answers, truncated


def _answer_text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else ""


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL, JSONL.gz or Parquet file, as dicts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UsageError(f"there is no file {path}; check the path")
    number = 0
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(FILE_BLOCK_ROWS):
                    yield from batch.to_pylist()
            return
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict):
                    raise CorpusError(
                        f"{path}, line {number}: a {type(row).__name__}, not an object; give one per line"
                    )
                yield row
    except (ValueError, EOFError, zlib.error, OSError, pa.ArrowException) as error:
        where = f"{path}, line {number}" if number else str(path)
        raise CorpusError(f"{where} cannot be read as JSONL or Parquet ({error}); mend or export it again") from error
