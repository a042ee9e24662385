"""What is measured of a model's answers at one setting of steering: right, matching a pattern, or broken.

An answer is broken where it is cut at the token limit or ends in a loop. Strong steering breaks answers, and some of
those are graded right all the same (a boxed number said twenty times): a broken answer is a miss, whatever it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import statistics
from ...errors import UsageError
from ...evaluate.tasks import Task

ACCURACY = "accuracy"
TARGET = "target"
LOOP_REPEATS = 3
LOOP_CHARS = 30
"""A shorter stretch is no loop: `1000`, an ellipsis, a row of dashes between two formulas."""
LOOP_UNIT_CHARS = 2_000
"""Longer units are not looked for; so at most the last 6,000 characters of an answer are read."""
PATTERN_CHARS = 20_000
"""A pattern is searched in the first 20,000 characters of an answer."""
_PREFIX = "pattern:"


def ends_in_loop(text: str) -> bool:
    """Whether a text ends in three or more repetitions of one unit, 30 characters or more in all.

    The last copy may be cut anywhere, or lack the white space behind it. A unit has at most 2,000 characters.
    """
    text = text.rstrip()[-LOOP_REPEATS * LOOP_UNIT_CHARS :]
    return any(_is_periodic_at_end(text + gap) for gap in ("", " ", "\n", "\n\n"))


def _is_periodic_at_end(text: str) -> bool:
    for unit in range(1, len(text) // LOOP_REPEATS + 1):
        if text[-1] != text[-1 - unit]:  # most units end here, so that long texts cost little
            continue
        length = max(LOOP_REPEATS * unit, LOOP_CHARS)
        tail = text[-length:]
        if len(tail) == length and tail[unit:] == tail[:-unit]:
            return True
    return False


def parse_target(text: str) -> re.Pattern[str] | None:
    """Reads what steering is to change: `accuracy` (None), or `pattern:REGEX`, the share of answers that match.

    Raises: UsageError: neither, or no valid regular expression.
    """
    if text == ACCURACY:
        return None
    expression = text.removeprefix(_PREFIX)
    if not text.startswith(_PREFIX) or not expression:
        raise UsageError(
            f"unknown target {text!r}; give {ACCURACY}, or {_PREFIX}REGEX for the share of answers it is in"
        )
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"the target's regular expression {expression[:80]!r} is not valid: {error}") from None


@dataclass(frozen=True)
class Measurement:
    """One setting's answers to all problems of a task, counted; or the reason why there are none."""

    rollouts: int
    n_correct: tuple[int, ...] = ()
    """Per problem, of `rollouts`: right and not broken."""
    n_matching: tuple[int, ...] | None = None
    """Per problem: matching the target's pattern and not broken; None where the target is accuracy."""
    mean_tokens: float = 0.0
    truncated_fraction: float = 0.0
    """Share of answers cut at the token limit."""
    looped_fraction: float = 0.0
    """Share of answers that end in a loop (`ends_in_loop`), cut or not."""
    broken_fraction: float = 0.0
    """Share of answers cut, looping or both."""
    n_broken_correct: int = 0
    """Answers that the grader took for right and that are misses here because they are broken."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Answers by what became of them: `looped`, else `truncated`, else the grader's status."""
    damage: Mapping[str, Any] | None = None
    """To the model's reading of held-out text (see `text_damage`); None where no text was given."""
    reason: str | None = None
    """Why the setting could not be measured (the model gave NaN, say)."""

    @property
    def ks(self) -> list[int]:
        """Powers of two up to the number of rollouts."""
        return [2**i for i in range(self.rollouts.bit_length()) if 2**i <= self.rollouts]

    def values(self, metric: str) -> np.ndarray:
        """(problems,) float64: `pass@K`, or `target`, the share of answers that match.

        Raises: UsageError: pass@K for more than the rollouts.
        """
        if metric == TARGET:
            assert self.n_matching is not None
            return np.array(self.n_matching, dtype=np.float64) / self.rollouts
        n = np.full(len(self.n_correct), self.rollouts)
        return statistics.pass_at_k(n, np.array(self.n_correct, dtype=np.int64), int(metric.removeprefix("pass@")))


def measure(
    task: Task, records: Sequence[Mapping[str, Any]], rollouts: int, pattern: re.Pattern[str] | None
) -> Measurement:
    """Counts the sample records of a task (see `answer_task`)."""
    row = {problem.id: i for i, problem in enumerate(task.problems)}
    n_correct, n_matching = [0] * len(row), [0] * len(row)
    n_truncated = n_looped = n_broken = n_broken_correct = 0
    statuses: Counter[str] = Counter()
    for record in records:
        looped, truncated = ends_in_loop(record["response"]), bool(record["truncated"])
        broken = looped or truncated
        statuses["looped" if looped else "truncated" if truncated else record["status"]] += 1
        n_looped, n_truncated, n_broken = n_looped + looped, n_truncated + truncated, n_broken + broken
        n_broken_correct += broken and record["correct"]
        if broken:
            continue
        n_correct[row[record["problem_id"]]] += record["correct"]
        if pattern is not None:
            n_matching[row[record["problem_id"]]] += pattern.search(record["response"][:PATTERN_CHARS]) is not None
    n = len(records)
    return Measurement(
        rollouts,
        tuple(n_correct),
        None if pattern is None else tuple(n_matching),
        sum(record["tokens"] for record in records) / n,
        n_truncated / n,
        n_looped / n,
        n_broken / n,
        n_broken_correct,
        dict(sorted(statuses.items())),
    )
