"""The candidate pool of the embedded world: all families and styles, a third of it or more wrong or beside the point.

In the `plain` pool right solutions are written by a program; wrong ones are fluent: most are sampled from the reasoner
itself and graded false, the others are right solutions of another problem. In the `hard` pool all solutions, right and
wrong, are the reasoner's own samples, and within a style and family both have the same lengths (`matching.py`): neither
who wrote a row nor how long it is says whether it is right. What is hidden from every selection (family is known as the
human label; style, origin, correctness) stands in columns that begin with `hidden_`; only reports and tests read them.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from ..artifact import atomic_path
from ..errors import SkillbasisError
from ..evaluate.generate import generate
from ..evaluate.grade import ExactGrader
from ..evaluate.sampler import Prompt, SamplingSettings
from ..lm import LanguageModel, load_model
from .matching import draw_matched, matched_capacity, shared_evenly
from .problems import FAMILIES, Problem, draw_problem
from .solutions import Style, solution, story, style_of

PoolVariant = Literal["plain", "hard", "null"]

# Useful ways of working are the minority, as in a real pool.
_STYLE_SHARES: dict[str, float] = {"terse": 0.62, "worked": 0.13, "verified": 0.07, "guess": 0.10, "story": 0.08}
_WRONG_SHARE = 0.22  # of terse, worked and verified rows; three in four guesses are wrong by themselves
_SWAPPED_SHARE = 1 / 3  # of the wrong rows; the others are the model's own
_N_SAMPLED_PROBLEMS = 2400
_SAMPLING = SamplingSettings(rollouts=4, temperature=1.0, max_tokens=112)

# Guesses and stories, mostly and always wrong, are balanced so that short styles are no better than long ones: of terse
# rows and guesses (.62 x .65 + .15 x .25) / .77 = .57 are right, of the others .20 x .65 / .23 = .57. Most guesses are
# in the shorter register, as long as terse rows; the longer one would fill the longest third with wrong rows.
_HARD_SHARES: dict[str, float] = {"terse": 0.62, "worked": 0.13, "verified": 0.07, "guess": 0.15, "story": 0.03}
_HARD_SHORT_GUESSES = 0.85
_HARD_WRONG_SHARE = 0.35  # of terse, worked and verified rows, in every family and at every length
# What each model gives, and after how many tokens an answer is given up: no terse one has more than a dozen.
_HARD_SOURCES: dict[str, tuple[tuple[str, ...], int]] = {
    "skills": (("worked", "verified"), 112),
    "habit": (("terse",), 16),
}
_MAX_ROWS_OF_QUESTION = 2  # right ones, and wrong ones, within a style
_EVEN_ROUNDS = 5  # of sampling, in which families that have too few rows of some style are sampled again
_MAX_ROUNDS = 12  # after the even ones all families are, as long as there are too few rows altogether


@dataclass(frozen=True)
class _Row:
    problem: Problem
    solution: str
    style: str
    origin: str
    """`written`, `sampled`, `swapped` or `story`."""
    correct: bool


@dataclass(frozen=True)
class _Sample:
    """An answer of the model, graded, in which a final answer was found."""

    problem: Problem
    text: str
    style: str
    n_tokens: int
    correct: bool


def build_pool(
    models: Path,
    out: Path,
    *,
    n_rows: int = 20_000,
    seed: int = 0,
    variant: PoolVariant = "plain",
    problems_per_round: int = 500,
    log: Callable[[str], None] = print,
) -> None:
    """Writes the pool as gzip JSONL (problem, solution, answer, labels and hidden columns), deterministic bytes.

    Args:
        models: the directory `pretrain` filled: `skills` gives (wrong) worked solutions, `habit` (wrong) bare answers.
        problems_per_round: hard pool: problems of a family that are answered four times each, per round of sampling.
    Raises: SkillbasisError: the models gave too few solutions of some kind.
    """
    rng = Random(f"pool:{variant}:{seed}")
    if variant == "null":
        rows = _draw(rng, n_rows, lambda: _null_row(rng))
    elif variant == "hard":
        rows = _hard_rows(models, n_rows, problems_per_round, rng, log)
    else:
        wrong = {
            **_sample_wrong(models / "skills", ("worked", "verified"), rng, log),
            **_sample_wrong(models / "habit", ("terse",), rng, log),
        }
        rows = _draw(rng, n_rows, lambda: _plain_row(rng, wrong))
    with (
        atomic_path(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file,
    ):
        for number, row in enumerate(rows):
            file.write((json.dumps(_as_json(number, row), ensure_ascii=False) + "\n").encode())
    log(f"pool: {len(rows)} rows, {sum(row.correct for row in rows) / len(rows):.1%} correct")


def _as_json(number: int, row: _Row) -> dict[str, Any]:
    return {
        "id": f"pool-{number:05d}",
        "problem": row.problem.question,
        "solution": row.solution,
        "answer": row.problem.answer,
        "labels": [row.problem.family],
        "hidden_style": row.style,
        "hidden_origin": row.origin,
        "hidden_correct": row.correct,
    }


def _draw(rng: Random, n_rows: int, make: Callable[[], _Row]) -> list[_Row]:
    """Draws rows until n different (problem, solution) texts are there, in random order."""
    rows: dict[tuple[str, str], _Row] = {}
    for _ in range(20 * n_rows):
        row = make()
        rows.setdefault((row.problem.question, row.solution), row)
        if len(rows) == n_rows:
            drawn = list(rows.values())
            rng.shuffle(drawn)
            return drawn
    raise SkillbasisError(f"the pool split has fewer than {n_rows} different rows; ask for fewer")


def _null_row(rng: Random) -> _Row:
    problem = draw_problem(rng, "pool")
    style: Style = rng.choice(("terse", "worked", "verified", "guess"))
    return _Row(problem, solution(problem, style, "symbolic", rng, "null"), style, "written", True)


def _plain_row(rng: Random, wrong: dict[str, list[tuple[Problem, str]]]) -> _Row:
    problem = draw_problem(rng, "pool")
    style = rng.choices(tuple(_STYLE_SHARES), tuple(_STYLE_SHARES.values()))[0]
    register = "symbolic" if rng.random() < 0.5 else "verbal"
    if style == "story":
        return _Row(problem, story(rng), style, "story", False)
    if style == "guess" or rng.random() >= _WRONG_SHARE:
        text = solution(problem, style, register, rng)  # type: ignore[arg-type]
        return _Row(problem, text, style, "written", f"\\boxed{{{problem.answer}}}" in text)
    if rng.random() >= _SWAPPED_SHARE:
        sampled, text = rng.choice(wrong[style])
        return _Row(sampled, text, style, "sampled", False)
    while True:
        other = draw_problem(rng, "pool", problem.family)
        if other.answer != problem.answer:
            return _Row(problem, solution(other, style, register, rng), style, "swapped", False)  # type: ignore[arg-type]


def _sample_wrong(
    model: Path, styles: tuple[str, ...], rng: Random, log: Callable[[str], None]
) -> dict[str, list[tuple[Problem, str]]]:
    """Samples the model on pool problems and keeps what is wrong, has an answer, and is of one of the styles."""
    kept: dict[str, dict[tuple[str, str], Problem]] = defaultdict(dict)
    problems = [draw_problem(rng, "pool") for _ in range(_N_SAMPLED_PROBLEMS)]
    for sample in _graded_samples(load_model(model), problems, replace(_SAMPLING, seed=rng.randrange(1 << 30))):
        if sample.style in styles and not sample.correct:
            kept[sample.style][sample.problem.question, sample.text] = sample.problem
    result = {
        style: sorted(((p, text) for (_, text), p in kept[style].items()), key=lambda pair: (pair[0].key, pair[1]))
        for style in styles
    }
    for style, rows in result.items():
        log(f"pool: {len(rows)} different wrong {style} solutions sampled from {model.name}")
        if len(rows) < 50:
            raise SkillbasisError(f"{model} gave only {len(rows)} wrong {style} solutions; train it anew")
    return result


def _graded_samples(lm: LanguageModel, problems: list[Problem], settings: SamplingSettings) -> Iterator[_Sample]:
    """Answers every problem and grades the answers; those without a final answer are left out."""
    prompts = [Prompt(f"{n}", [{"role": "user", "content": problem.question}]) for n, problem in enumerate(problems)]
    with ExactGrader() as grader:
        for group in generate(lm, prompts, settings):
            asked = [problems[int(completion.prompt_id)] for completion in group]
            grades = grader.grade([c.text for c in group], [p.answer for p in asked], [c.truncated for c in group])
            for completion, problem, grade in zip(group, asked, grades, strict=True):
                if grade.status == "ok":
                    style = style_of(completion.text)
                    yield _Sample(problem, completion.text, style, completion.n_tokens, bool(grade.correct))


def _hard_rows(
    models: Path, n_rows: int, problems_per_round: int, rng: Random, log: Callable[[str], None]
) -> list[_Row]:
    """Rows of the hard pool: the models' own solutions, written guesses and stories, in random order."""
    counts = {style: round(share * n_rows) for style, share in _HARD_SHARES.items() if style != "terse"}
    counts["terse"] = n_rows - sum(counts.values())
    rows: list[_Row] = []
    for style in ("guess", "story"):
        rows += _draw(rng, counts[style], partial(_answerless_row, rng, style))
    for name, (styles, max_tokens) in _HARD_SOURCES.items():
        wanted = {style: counts[style] for style in styles}
        settings = replace(_SAMPLING, max_tokens=max_tokens, batch_size=512)
        rows += _matched_rows(models / name, wanted, problems_per_round, settings, rng, log)
    rng.shuffle(rows)
    return rows


def _answerless_row(rng: Random, style: str) -> _Row:
    problem = draw_problem(rng, "pool")
    if style == "story":
        return _Row(problem, story(rng), style, "story", False)
    text = solution(problem, "guess", "symbolic" if rng.random() < _HARD_SHORT_GUESSES else "verbal", rng)
    return _Row(problem, text, style, "written", f"\\boxed{{{problem.answer}}}" in text)


class _Cell:
    """What was sampled of one style and family: different (question, solution) texts, few of each question."""

    def __init__(self) -> None:
        self.right: dict[tuple[str, str], _Sample] = {}
        self.wrong: dict[tuple[str, str], _Sample] = {}
        self._seen: Counter[tuple[str, bool]] = Counter()

    def add(self, sample: _Sample) -> None:
        side, text = self.right if sample.correct else self.wrong, (sample.problem.question, sample.text)
        about = (sample.problem.question, sample.correct)
        if text not in side and self._seen[about] < _MAX_ROWS_OF_QUESTION:
            side[text] = sample
            self._seen[about] += 1

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of the right and of the wrong solutions."""
        return [s.n_tokens for s in self.right.values()], [s.n_tokens for s in self.wrong.values()]

    @property
    def capacity(self) -> int:
        """How many rows can be drawn of it."""
        return sum(matched_capacity(*self.lengths, _HARD_WRONG_SHARE).values())

    def draw(self, n_rows: int, rng: Random) -> list[_Row]:
        right, wrong = (list(side.values()) for side in (self.right, self.wrong))
        places = draw_matched(*self.lengths, n_rows, _HARD_WRONG_SHARE, rng)
        drawn = [right[i] for i in places[0]] + [wrong[i] for i in places[1]]
        return [_Row(s.problem, s.text, s.style, "sampled", s.correct) for s in drawn]


def _matched_rows(
    model: Path,
    wanted: Mapping[str, int],
    problems_per_round: int,
    settings: SamplingSettings,
    rng: Random,
    log: Callable[[str], None],
) -> list[_Row]:
    """Samples a model until every family holds its even part of every style, or the rounds are over; then draws.

    What a family lacks then, because the model almost never fails in it, comes from the other families: the share of
    wrong rows stays the same in all of them.
    """
    lm = load_model(model)
    cells = {style: {family: _Cell() for family in FAMILIES} for style in wanted}
    scarce, n_asked = list(FAMILIES), 0
    for n_rounds in range(1, _MAX_ROUNDS + 1):
        problems = [draw_problem(rng, "pool", family) for family in scarce for _ in range(problems_per_round)]
        n_asked += len(problems) * settings.rollouts
        for sample in _graded_samples(lm, problems, replace(settings, seed=rng.randrange(1 << 30))):
            if sample.style in cells:
                cells[sample.style][sample.problem.family].add(sample)
        capacity = {style: {family: cell.capacity for family, cell in cells[style].items()} for style in wanted}
        scarce = _scarce_families(capacity, wanted, n_rounds)
        if not scarce:
            break
    rows: list[_Row] = []
    for style, n in wanted.items():
        held = sum(capacity[style].values())
        if held < n:
            raise SkillbasisError(
                f"{n_asked} answers of {model} give {held} {style} rows whose right and wrong ones are equally long, "
                f"{n} are needed; ask for fewer rows, or for more problems per round"
            )
        sizes = shared_evenly(n, capacity[style])
        for family, size in sizes.items():
            rows += cells[style][family].draw(size, rng)
        log(f"pool: {n} {style} rows of {n_asked} answers of {model.name}, {min(sizes.values())} or more of a family")
    return rows


def _scarce_families(capacity: Mapping[str, Mapping[str, int]], wanted: Mapping[str, int], n_rounds: int) -> list[str]:
    """Families to sample again after so many rounds, given the rows that can be drawn by style and family."""
    if n_rounds < _EVEN_ROUNDS:  # a tenth above the even part makes up for families that stay below it
        return [f for f in FAMILIES if any(capacity[s][f] * len(FAMILIES) < 1.1 * n for s, n in wanted.items())]
    return list(FAMILIES) if any(sum(capacity[s].values()) < n for s, n in wanted.items()) else []
