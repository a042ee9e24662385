"""Problems with known answers: the embedded world's splits, and any JSONL or Parquet of problem and answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..artifact import fingerprint
from ..corpus import load_corpus
from ..errors import CorpusError, UsageError, nearest
from ..world.problems import Split, distinct_problems
from .generate import Prompt
from .grade import ExactGrader, Grader, MathVerifyGrader

# Fixed before the first model was trained: the same problems for everybody, whatever the seed of a run.
_EMBEDDED_SEED = 20260417
_EMBEDDED_SPLITS: dict[str, tuple[Split, int]] = {
    "embedded": ("test", 400),
    "embedded:test": ("test", 400),
    "embedded:validation": ("validation", 240),
    "embedded:pool": ("pool", 400),
}
Instruction = Literal["boxed", "none"]
INSTRUCTIONS: dict[str, str] = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "none": "",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a task."""

    id: str
    prompt: list[dict[str, str]]
    """Messages, the last one the user's."""
    answer: str
    group: str | None = None
    """Family, subject or source, for tables by group."""


@dataclass(frozen=True)
class Task:
    """A named set of problems and the way their answers are graded."""

    name: str
    problems: list[Problem]
    exact: bool
    """Graded by exact comparison of the boxed answer (the embedded world), else by Math-Verify."""

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.name, [[p.id, p.prompt, p.answer] for p in self.problems], self.exact])

    @property
    def prompts(self) -> list[Prompt]:
        return [Prompt(problem.id, problem.prompt) for problem in self.problems]

    def grader(self, n_workers: int = 1) -> Grader:
        return ExactGrader() if self.exact else MathVerifyGrader(n_workers=n_workers)


def load_task(name: str, *, instruction: str = "none", limit: int | None = None) -> Task:
    """Loads a task by name or from a file.

    Args:
        name: `embedded` (400 test problems), `embedded:validation` (240), `embedded:pool` (400 of those the pool draws
            from: to make vectors of the model's own answers), or a JSONL/Parquet path whose rows carry a problem and
            an answer.
        instruction: `boxed` or `none`, or a text of one's own, put behind the problem; the embedded world has none.
        limit: the first so many problems.
    Raises: UsageError: unknown name, or a limit below 1. CorpusError: a row without an answer, naming it.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more")
    if name in _EMBEDDED_SPLITS:
        split, n = _EMBEDDED_SPLITS[name]
        problems = [
            Problem(p.key, [{"role": "user", "content": p.question}], p.answer, p.family)
            for p in distinct_problems(n, split, _EMBEDDED_SEED)
        ]
        return Task(f"embedded:{split}", problems[:limit], exact=True)
    if not Path(name).exists():
        hint = nearest(name, list(_EMBEDDED_SPLITS))
        raise UsageError(f"unknown task {name!r}{hint}; give one of {', '.join(_EMBEDDED_SPLITS)}, or a file")
    corpus = load_corpus(name, limit=limit)
    suffix = INSTRUCTIONS.get(instruction, instruction)
    problems = []
    for number, row in enumerate(corpus.rows, 1):
        if not row["answer"]:
            raise CorpusError(
                f"{name} row {number} (id {row['id']!r}) has no answer; a task needs one for every problem"
            )
        prompt = [dict(message) for message in row["prompt"]]
        if suffix:
            prompt[-1]["content"] += f"\n{suffix}"
        problems.append(Problem(row["id"], prompt, row["answer"], row["labels"][0] if row["labels"] else None))
    return Task(Path(name).name, problems, exact=False)
