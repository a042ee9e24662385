"""The stage of a run that trains refusals on few requests and sees what that is worth; see `safety/study.py`."""

from __future__ import annotations

from pathlib import Path

from .basis import Scores
from .cells import CellSettings
from .corpus import Corpus
from .errors import UsageError
from .evaluate.generate import TransformersSampler
from .evaluate.problems.requests import repeated_requests, request_key
from .evaluate.reference import REFUSE
from .evaluate.safety.judges import JudgeSettings, check, safety_judge
from .evaluate.tasks import Task
from .lm import LanguageModel
from .recipe import Recipe
from .recipe_blocks import SafetyBlock
from .recipe_settings import arms_of, cell_settings, selection_settings, training_settings
from .safety.pool import RequestPool, anchor_rows, hold_out, request_pool
from .safety.study import SafetySettings, safety_study
from .select import Candidates
from .selection_stages import cell_tick, workers
from .stages import Run

HELD_OUT = "held-out.jsonl"
REPLIES = "safety.judge.jsonl"
"""Answers of the judge, kept in the run directory whatever becomes of the stage."""


def without_held_out(recipe: Recipe, corpus: Corpus, out: Path) -> Corpus:
    """The corpus without the attack types that nobody is to be trained on; they become a task of the run."""
    block = recipe.safety
    if block is None or not block.held_out:
        return corpus
    return hold_out(corpus, block.held_out, out / HELD_OUT, block.behaviour_column)


def check_safety(recipe: Recipe, lm: LanguageModel) -> None:
    """Finds what would fail hours later: tasks of the wrong kind, prompts beyond the context, arms, the judge."""
    block = recipe.safety
    if block is None:
        return
    _settings(block, n_attacks=1)
    check(judge_settings(block, None))
    sampler = TransformersSampler(lm)
    for kind, names in (("attacks", block.attacks), ("safe", block.safe), ("utility", block.utility)):
        for name in names:
            task = recipe.asking.load(name, block.n_problems)
            _check_kind(kind, task)
            sampler.check(task.prompts, _cells(recipe, block, (name,)).sampling)
    if block.judge.kind == "exact" and block.held_out:
        raise UsageError("the judge 'exact' knows the embedded world's tasks only; leave out safety.held_out")


def _check_kind(kind: str, task: Task) -> None:
    """Raises: UsageError: what is to be refused must not stand where it is to be answered, and the other way round."""
    n_refused = sum(problem.reference.answers == (REFUSE,) for problem in task.problems)
    if kind == "attacks" and n_refused < len(task.problems):
        raise UsageError(
            f"safety.attacks names {task.name!r}, of which {len(task.problems) - n_refused} requests are to be "
            "answered; name a part of it, such as xstest:unsafe"
        )
    if kind != "attacks" and n_refused:
        raise UsageError(
            f"safety.{kind} names {task.name!r}, of which {n_refused} requests are to be refused; name a part of it, "
            "such as xstest:safe"
        )
    if kind == "utility" and task.grading == "refusal":
        raise UsageError(f"safety.utility names {task.name!r}, which has no right answers; name a reasoning task")


def judge_settings(block: SafetyBlock, replies: Path | None) -> JudgeSettings:
    """Who judges; with a file, what it answers is kept there."""
    return JudgeSettings(replies=replies, **block.judge.model_dump())


def secured(run: Run, recipe: Recipe, lm: LanguageModel, corpus: Corpus, scores: Scores) -> None:
    """Refusal training by every arm at every budget, asked, judged and compared."""
    block = recipe.safety
    if block is None:
        return
    held_out = [str(run.out / HELD_OUT)] if block.held_out else []
    names = (*block.attacks, *held_out, *block.safe, *block.utility)
    tasks = [recipe.asking.load(name, block.n_problems) for name in names]
    n_attacks = len(block.attacks) + len(held_out)
    requests = tasks[: n_attacks + len(block.safe)]
    repeats = repeated_requests(requests)
    if repeats:
        run.warnings.append(
            f"safety: {len(repeats)} requests are in two tasks, such as {repeats[0][1]!r} of {repeats[0][0]} and "
            f"{repeats[0][3]!r} of {repeats[0][2]}; they count twice"
        )
    pool = _pool(run, recipe, lm, corpus, requests)
    candidates = Candidates.of(
        pool.corpus, scores, settings=selection_settings(recipe), tokens={i: pool.tokens[i] for i in pool.corpus.ids}
    )
    kept = block.anchors
    anchors = [] if kept is None else anchor_rows(kept.source, kept.n_rows, recipe.seed, tasks)
    judge = safety_judge(judge_settings(block, run.out / REPLIES))
    with judge:
        run.do(
            "safety",
            lambda tick: safety_study(
                run.out / "safety",
                pool.corpus,
                candidates,
                anchors,
                _cells(recipe, block, names),
                lm.weights_fingerprint,
                _settings(block, n_attacks),
                judge,
                n_workers=workers(recipe, lm),
                on_cell=cell_tick(tick),
                on_judged=lambda done, n: tick(done, n, "judged"),
            ),
            run.out / "safety",
        )


def _pool(run: Run, recipe: Recipe, lm: LanguageModel, corpus: Corpus, requests: list[Task]) -> RequestPool:
    """The rows that may be trained on. Raises: UsageError: fewer are left than the largest budget."""
    block = recipe.safety
    assert block is not None
    asked = {request_key(problem.prompt, task.instruction) for task in requests for problem in task.problems}
    prompts = zip(corpus.ids, corpus.rows["prompt"], strict=True)
    same = {row_id for row_id, prompt in prompts if request_key(prompt) in asked}
    if same:
        run.warnings.append(f"safety: {len(same)} requests of the corpus are asked in its tasks; they are left out")
    pool = request_pool(corpus.without(same), lm, block.refusal, training_settings(recipe.training).max_length)
    if pool.too_long:
        run.warnings.append(
            f"safety: {len(pool.too_long)} requests are too long to be trained on with a refusal and are left out, the "
            f"first is {pool.too_long[0]!r}"
        )
    if max(block.budgets) > len(pool.corpus):
        raise UsageError(
            f"safety.budgets goes up to {max(block.budgets)}, above the pool of {len(pool.corpus)} requests; lower it"
        )
    return pool


def _cells(recipe: Recipe, block: SafetyBlock, names: tuple[str, ...]) -> CellSettings:
    return cell_settings(recipe, names, block.n_problems, block.sampling)


def _settings(block: SafetyBlock, n_attacks: int) -> SafetySettings:
    return SafetySettings(
        arms=arms_of(block.arms),
        budgets=tuple(sorted(block.budgets)),
        seeds=tuple(block.seeds),
        n_attacks=n_attacks,
        n_safe=len(block.safe),
        refusal=block.refusal,
    )
