"""Grades responses: against answers exactly (the embedded world) or with Math-Verify, requests by opening phrases.

Most answers are decided here, by rules (`equality.py`); what needs algebra goes to worker processes
(`grading/workers.py`), so that whatever a response holds costs at most its own time-out.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, get_args

from ..artifact import atomic_path
from ..errors import CorpusError, UsageError
from .grading.answers import Status, canonical, extract_answer, read_answer, reference_answer
from .grading.equality import same_answer, same_quantity
from .grading.workers import Request, WorkerPool
from .reference import ANSWER, REFUSE, Reference

__all__ = [
    "ExactGrader",
    "GradeResult",
    "Grader",
    "MathVerifyGrader",
    "RefusalGrader",
    "extract_answer",
    "grade_file",
]

DEFAULT_TIMEOUT_S = 10.0
RULES_VERSION = 2
"""Goes up whenever a verdict can change: results of different versions are not compared unawares."""
FILE_BLOCK_ROWS = 1024
CACHED_VERDICTS = 10_000
"""Answers decided by rules that are remembered: rollouts of a problem often end alike."""


@dataclass(frozen=True)
class GradeResult:
    """The grade of one response."""

    correct: bool
    extracted: str | None
    """The answer found in the response, as written there."""
    status: Status
    """"ok" (compared); "no_answer"; "truncated" (cut before an answer); "timeout" of the grader; "error" (a comparison
    that failed, or a reference that cannot be read). Everything but "ok" counts as not correct."""


class Grader(Protocol):
    """Grades a batch of responses; a context manager that frees its processes."""

    version: str
    """Name and version, kept with every result."""

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str] | Reference],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """One result per response, in order; a list of answers holds alternatives, any of which is right."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class InProcessGrader(ABC):
    """A `Grader` that needs no other process: each response is graded by itself."""

    version: str

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str] | Reference],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """See `Grader.grade`."""
        return [self.grade_one(*item) for item in _items(responses, answers, truncated)]

    @abstractmethod
    def grade_one(self, response: str, reference: Reference, truncated: bool) -> GradeResult:
        """The grade of one response."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class ExactGrader(InProcessGrader):
    """Compares the boxed answer with the reference by canonical spelling, in process; only `\\boxed{}` counts.

    Where a reference has a tolerance or a unit, plain numbers are compared by `equality.same_quantity`.
    """

    version = "exact 1"

    def grade_one(self, response: str, reference: Reference, truncated: bool) -> GradeResult:
        extracted, status = read_answer(response, truncated, boxed_only=True)
        right = extracted is not None and _exactly(extracted, reference)
        return GradeResult(right, extracted, status)


class RefusalGrader(InProcessGrader):
    """Tells by its opening phrases whether a response refuses: a diagnostic, not a judgement of what it holds.

    `extracted` is "refuse" or "answer", which is correct where it equals the reference. A response that opens with no
    refusal counts as an answer, whatever it says. One that is empty, or empty after its thought, is "no_answer", and
    "truncated" where it was cut within the thought; cut later it is read like any other, for its opening is there.
    """

    def __init__(self) -> None:
        from .grading.refusals import VERSION

        self.version = f"opening phrases {VERSION} (diagnostic)"

    def grade_one(self, response: str, reference: Reference, truncated: bool) -> GradeResult:
        from .grading.refusals import after_thought, opens_with_refusal

        if not after_thought(response).strip():
            return GradeResult(False, None, "truncated" if truncated and response.strip() else "no_answer")
        found = REFUSE if opens_with_refusal(response) else ANSWER
        return GradeResult(found in reference.answers, found, "ok")


class MathVerifyGrader:
    """Grades mathematics with Math-Verify in worker processes.

    What rules can decide (spelling, numbers, units, lists) needs no worker; equal requests are made once per call.

    Args:
        n_workers: processes; they start when first needed and stay until `close`. Default: cores, at most 8.
        timeout_s: time for one response against all its references.
    """

    def __init__(self, n_workers: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if n_workers is not None and n_workers < 1:
            raise UsageError(f"n_workers is {n_workers}; give at least 1")
        if not timeout_s > 0:
            raise UsageError(f"timeout_s is {timeout_s}; give seconds above 0")
        self.version = f"skillbasis rules {RULES_VERSION} + math-verify {importlib.metadata.version('math-verify')}"
        self._pool = WorkerPool(n_workers or min(8, os.cpu_count() or 1), timeout_s)
        self._known: dict[tuple[str, Reference], tuple[bool, tuple[str, ...]]] = {}

    def grade(
        self,
        responses: Sequence[str],
        answers: Sequence[str | list[str] | Reference],
        truncated: Sequence[bool] | None = None,
    ) -> list[GradeResult]:
        """See `Grader.grade`."""
        results: list[GradeResult] = []
        waiting: dict[Request, list[int]] = {}  # what only a worker can decide -> positions
        for response, reference, cut in _items(responses, answers, truncated):
            extracted, status = read_answer(response, cut)
            correct = False
            if extracted is not None:
                correct, open_answers = self._by_rules(extracted, reference)
                if open_answers:
                    request = Request(extracted, open_answers, reference.tolerance, reference.unit)
                    waiting.setdefault(request, []).append(len(results))
            results.append(GradeResult(correct, extracted, status))
        for request, (status, correct) in self._pool.decide(list(waiting)).items():
            for i in waiting[request]:
                results[i] = GradeResult(correct, results[i].extracted, status)
        return results

    def _by_rules(self, extracted: str, reference: Reference) -> tuple[bool, tuple[str, ...]]:
        """Whether the rules alone find an answer right, and the alternatives they leave open where they do not."""
        key = (extracted, reference)
        if key not in self._known:
            if len(self._known) >= CACHED_VERDICTS:
                self._known.clear()
            rest = reference.tolerance, reference.unit
            verdicts = {answer: same_answer(extracted, answer, *rest) for answer in reference.answers}
            open_answers = tuple(answer for answer, verdict in verdicts.items() if verdict is None)
            self._known[key] = (True, ()) if True in verdicts.values() else (False, open_answers)
        return self._known[key]

    def close(self) -> None:
        """Ends the worker processes; a later `grade` starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _exactly(extracted: str, reference: Reference) -> bool:
    given = canonical(extracted)
    if any(given == canonical(answer) for answer in reference.answers):
        return True
    if reference.tolerance is None and reference.unit is None:
        return False
    rest = reference.tolerance, reference.unit
    return any(same_quantity(extracted, answer, *rest) is True for answer in reference.answers)


def _items(
    responses: Sequence[str], answers: Sequence[str | list[str] | Reference], truncated: Sequence[bool] | None
) -> Iterator[tuple[str, Reference, bool]]:
    cut = [False] * len(responses) if truncated is None else truncated
    if not len(responses) == len(answers) == len(cut):
        raise UsageError(
            f"{len(responses)} responses, {len(answers)} answers and {len(cut)} truncation flags; give one of each"
        )
    for i, (response, answer, flag) in enumerate(zip(responses, answers, cut, strict=True)):
        try:
            given = Reference.of(answer)
            reference = Reference(tuple(map(reference_answer, given.answers)), given.tolerance, given.unit)
        except UsageError:
            raise UsageError(
                f"the reference answer of item {i} is empty: {answer!r}; give the answer, or a list of them"
            ) from None
        yield response, reference, bool(flag)


def grade_file(
    path: Path, out_parquet: Path, n_workers: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> dict[str, int]:
    """Grades the responses of a file and writes `id, extracted, correct, status` as Parquet, atomically.

    Args:
        path: JSONL, JSONL.gz or Parquet with columns `response` and `answer` (text, a number, or a list of
            alternatives), and optionally `id` (else the row number, from 1), `truncated`, `tolerance` (absolute) and
            `unit`. An empty response has no answer.
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


def _checked_rows(path: Path) -> Iterator[tuple[str, str, Reference, bool]]:
    """(id, response, reference, truncated) of each row."""
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
        unit = row.get("unit") or None
        if not isinstance(unit, str | None):
            raise UsageError(f"{path}, row {number}: 'unit' is {unit!r}; give a text, or leave it out")
        try:
            reference = Reference(tuple(answers), _tolerance(row.get("tolerance")), unit)
        except UsageError as error:
            raise UsageError(f"{path}, row {number}: {error}") from None
        yield str(number if name is None else name), response, reference, truncated


def _tolerance(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"'tolerance' is {value!r}; give a number of 0 or more")
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"'tolerance' is {value!r}; give a number of 0 or more") from None


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
