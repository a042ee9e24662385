"""Arms x budgets x seeds of refusal training, each asked and judged: how few examples are enough, by which choice?

Every model is fine-tuned on its requests with refusals and on the same anchors, then answers attacks, safe requests and
reasoning problems; a judge reads the stored answers afterwards. Neither part is done twice, whatever kills it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import statistics
from ..arms import BASE
from ..artifact import building, fingerprint, is_current, read_json, write_json, write_text
from ..cells import Cell, CellResult, CellSettings, comparison_inputs, run_cells
from ..corpus import Corpus, training_rows, write_selection
from ..errors import SkillbasisError, UsageError
from ..evaluate.reference import REFUSE
from ..evaluate.safety import Exchange, SafetyJudge
from ..evaluate.safety.judged import Answer, judge_many, read_judgements
from ..evaluate.safety.measures import JudgedTable, joined, tabulate
from ..evaluate.samples import PROBLEMS, read_samples, write_problems
from ..evaluate.tasks import Task
from ..select import Candidates
from ..select.strategy import STRATEGIES, Arm, Need, describe
from .curves import curves_svg
from .geometry import geometry
from .pool import Rows, attack_types, with_refusals
from .summary import ArmFacts, SafetyRun, summarise
from .tables import latex, markdown

KIND = "safety"
KNOWN: frozenset[Need] = frozenset({"scores", "tokens"})
"""What is known of requests without a response: arms that need more cannot be chosen by."""


@dataclass(frozen=True)
class SafetySettings:
    """What is compared, and on what."""

    arms: tuple[Arm, ...]
    budgets: tuple[int, ...]
    """Requests that an arm may choose."""
    seeds: tuple[int, ...]
    """Each draws its own selection, order of training and answers; arms are paired by seed."""
    n_attacks: int
    """The first so many of the tasks are attacks; the next `n_safe` safe requests, all others reasoning."""
    n_safe: int
    refusal: str
    """What a request without a response is trained to be answered."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or BASE in names:
            raise UsageError(f"the arms must be different from each other and none called {BASE}")
        if not self.refusal.strip():
            raise UsageError("safety.refusal is empty; give the words of a refusal")
        for arm in self.arms:
            unknown = sorted(set(STRATEGIES[arm.strategy].needs) - KNOWN)
            if unknown:
                can = ", ".join(name for name, strategy in STRATEGIES.items() if set(strategy.needs) <= KNOWN)
                raise UsageError(
                    f"the arm {arm.name} of safety needs {' and '.join(unknown)}, which requests do not have; choose "
                    f"among {can}"
                )


@dataclass(frozen=True)
class _Selected:
    cells: dict[tuple[str, int, int], Cell] = field(default_factory=dict)
    """By arm, budget and seed."""
    holes: dict[tuple[str, int, int], CellResult] = field(default_factory=dict)
    chosen: dict[str, dict[int, dict[int, list[str]]]] = field(default_factory=dict)
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)


def safety_study(
    out: Path,
    corpus: Corpus,
    candidates: Candidates,
    anchors: Rows,
    cells: CellSettings,
    base_fingerprint: str,
    settings: SafetySettings,
    judge: SafetyJudge,
    *,
    n_workers: int | None = None,
    on_cell: Callable[[CellResult, int, int], None] | None = None,
    on_judged: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs every arm at every budget and seed, has the answers judged, and compares the arms.

    Killed at any moment, or left by its judge, the same call goes on: finished cells and judgements are kept.

    Args:
        out: artifact directory: `summary.json`, the same as tables (`summary.md`, `summary.tex`) and as curves
            (`curves.svg`), `geometry.json`, `selections/BUDGET/ARM-SEED.jsonl`, a cell and its judgements per arm,
            budget and seed. The answers to attacks are nowhere else.
        candidates: what the arms choose from.
        anchors: rows that every arm is trained on too.
        cells: model, sampling and training, and the tasks: attacks, then safe requests, then reasoning.
        judge: of answers to attacks and to safe requests.
        on_judged: called with (cells judged, cells in all).
    Returns: the content of `summary.json`.
    Raises: SkillbasisError: the judge is down.
    """
    tasks = cells.load_tasks()
    inputs = comparison_inputs(settings, cells, base_fingerprint, corpus, candidates)
    inputs |= {
        "anchors": fingerprint([[prompt, response] for prompt, response in anchors]),
        "tasks": {task.name: task.fingerprint for task in tasks},
        "judge": judge.identity,
    }
    if is_current(out, KIND, inputs):
        return dict(read_json(out / "summary.json"))
    with building(out, KIND, inputs, {}) as work:
        selected = _select(work, corpus, candidates, anchors, settings)
        base = {seed: Cell(f"cells/{BASE}/{seed}", None, seed, seed) for seed in settings.seeds}
        jobs = [*selected.cells.values(), *base.values()]
        results = run_cells(work, jobs, cells, base_fingerprint, n_workers=n_workers, on_cell=on_cell)
        found = geometry(candidates, attack_types(corpus), selected.chosen)
        write_json(work / "geometry.json", statistics.nan_to_none(found))
        finished = [result for result in results.values() if result.results]
        requests = tasks[: settings.n_attacks + settings.n_safe]
        write_problems(work / PROBLEMS, requests)
        judged = _judged(work, finished, requests, judge, cells.sampling.rollouts, on_judged)
        summary = _summary(settings, tasks, base, selected, results, judged, judge, cells.sampling.rollouts)
        write_json(work / "summary.json", statistics.nan_to_none(summary | {"settings": inputs}))
        write_text(work / "summary.md", markdown(summary))
        write_text(work / "summary.tex", latex(summary))
        write_text(work / "curves.svg", curves_svg(summary))
    return dict(read_json(out / "summary.json"))


def _select(work: Path, corpus: Corpus, candidates: Candidates, anchors: Rows, settings: SafetySettings) -> _Selected:
    """Chooses the requests of every arm, budget and seed and writes them down; what cannot be chosen is a hole."""
    found = _Selected()
    for arm, budget, seed in _places(settings):
        started, name = time.perf_counter(), f"cells/{budget}/{arm.name}/{seed}"
        try:
            chosen = with_refusals(corpus, arm.choose(candidates, budget, seed), settings.refusal)
        except SkillbasisError as error:
            found.holes[arm.name, budget, seed] = CellResult(name, {}, str(error), 0.0)
        else:
            how = describe(arm.settings(candidates.settings), arm.strategy) | {"arm": arm.name}
            how |= {"budget": budget, "unit": "rows", "seed": seed}
            write_selection(work / "selections" / str(budget) / f"{arm.name}-{seed}.jsonl", corpus, chosen, how)
            rows = training_rows(corpus, chosen) + anchors
            found.cells[arm.name, budget, seed] = Cell(name, rows, seed, seed)
            found.chosen.setdefault(arm.name, {}).setdefault(budget, {})[seed] = [row.id for row in chosen]
        seconds = found.seconds.get((arm.name, budget), 0.0) + time.perf_counter() - started
        found.seconds[arm.name, budget] = seconds
    return found


def _places(settings: SafetySettings) -> Iterator[tuple[Arm, int, int]]:
    return ((arm, budget, seed) for arm in settings.arms for budget in settings.budgets for seed in settings.seeds)


@dataclass(frozen=True)
class _Judged:
    """What the judge said of one model's answers, by task, and how long that took."""

    tables: dict[str, JudgedTable]
    seconds: float


def _judged(
    work: Path,
    finished: Sequence[CellResult],
    requests: Sequence[Task],
    judge: SafetyJudge,
    rollouts: int,
    on_judged: Callable[[int, int], None] | None,
) -> dict[str, _Judged]:
    """Has the answers of every cell to every request judged, each cell's into an artifact of its own."""
    started = time.perf_counter()
    places = {work / "judged" / cell.name: _answers(work / cell.name, requests) for cell in finished}
    judge_many(places, judge, on_judged=on_judged)
    seconds = (time.perf_counter() - started) / max(1, len(finished))
    found = {}
    for cell in finished:
        judgements = read_judgements(work / "judged" / cell.name)
        tables = {task.name: tabulate(task, judgements[task.name], rollouts) for task in requests}
        found[cell.name] = _Judged(tables, seconds)
    return found


def _answers(cell: Path, requests: Sequence[Task]) -> list[Answer]:
    """The stored answers of a cell to the requests."""
    samples = read_samples(cell)
    found = []
    for task in requests:
        asked = {problem.id: problem for problem in task.problems}
        for record in samples[task.name]:
            problem = asked[record["problem_id"]]
            exchange = Exchange(problem.prompt[-1]["content"], record["response"], problem.sought)
            kind = problem.reference.answers == (REFUSE,)
            found.append(
                Answer(task.name, problem.id, record["sample"], exchange, problem.group, problem.cluster, kind)
            )
    return found


def _summary(
    settings: SafetySettings,
    tasks: Sequence[Task],
    base: Mapping[int, Cell],
    selected: _Selected,
    results: Mapping[str, CellResult],
    judged: Mapping[str, _Judged],
    judge: SafetyJudge,
    rollouts: int,
) -> dict[str, Any]:
    """The figures of all models; see `summary.summarise`."""
    attacks, others = tasks[: settings.n_attacks], tasks[settings.n_attacks :]
    safe, utility = others[: settings.n_safe], others[settings.n_safe :]

    def run(name: str) -> SafetyRun:
        tables, graded = judged[name].tables, results[name].results
        return SafetyRun(
            joined([tables[task.name] for task in attacks]),
            joined([tables[task.name] for task in safe]) if safe else None,
            tuple(graded[task.name] for task in utility),
        )

    runs: dict[str, dict[int, dict[int, SafetyRun]]] = {}
    facts: dict[str, dict[int, ArmFacts]] = {}
    for arm, budget in {(arm.name, budget): None for arm, budget, _ in _places(settings)}:
        names = {seed: f"cells/{budget}/{arm}/{seed}" for seed in settings.seeds}
        runs.setdefault(arm, {})[budget] = {seed: run(name) for seed, name in names.items() if name in judged}
        cells = [
            selected.holes[arm, budget, seed] if (arm, budget, seed) in selected.holes else results[name]
            for seed, name in names.items()
        ]
        facts.setdefault(arm, {})[budget] = _facts(cells, budget, selected.seconds[arm, budget], judged)
    untuned = {seed: run(cell.name) for seed, cell in base.items() if cell.name in judged}
    who = {"name": judge.name, "diagnostic": judge.diagnostic, "identity": judge.identity}
    who |= {"description": judge.description}
    return summarise(untuned, runs, facts, settings.budgets, settings.seeds, who, rollouts)


def _facts(cells: Sequence[CellResult], budget: int, selection_s: float, judged: Mapping[str, _Judged]) -> ArmFacts:
    done = [cell for cell in cells if cell.results]
    training = sum(cell.training_seconds for cell in done)
    return ArmFacts(
        reasons=tuple(sorted({cell.reason for cell in cells if cell.reason})),
        n_rows=float(budget) if done else None,
        selection_seconds=selection_s,
        training_seconds=training,
        answering_seconds=sum(cell.seconds for cell in done) - training,
        judging_seconds=sum(judged[cell.name].seconds for cell in done),
        failed_seconds=sum(cell.seconds for cell in cells if not cell.results),
    )
