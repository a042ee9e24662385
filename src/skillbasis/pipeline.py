"""Run a recipe: each stage an artifact in the run directory, made once, and again only when what it depends on changes.

corpus -> activations -> basis -> scores -> interpret
                            |-> sensitivity
                            |-> probe -> study -> report
                            |-> steer
                            |-> safety
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .artifact import MANIFEST, fingerprint, lock, read_json, reopen
from .basis import SkillBasis
from .contest import NATIVE
from .corpus import Corpus, load_corpus
from .errors import UsageError
from .lm import LanguageModel, load_model, parse_layers
from .reading_stages import read, sensitivity
from .recipe import Recipe
from .recipe_blocks import SteerBlock, StudyBlock
from .recipe_settings import (
    all_arms,
    arms_of,
    basis_settings,
    has_contest,
    probe_settings,
    recipe_corpus,
    sampling_settings,
    selection_settings,
    sweep_settings,
    training_settings,
)
from .safety_stages import check_safety, secured, without_held_out
from .select import Candidates, SignedDirection, parse_direction
from .select.near_duplicates import kept_near_duplicates
from .select.overlap import kept_overlaps
from .select.strategy import Arm
from .selection_stages import gathered, probed, studied, workers
from .stages import Run, Watcher
from .steer.sweep import load_tasks, sweep
from .steer.sweep.dose import check_metric
from .steer.sweep.measure import ACCURACY
from .steer.vectors import direction_vector
from .study import StudySettings


def run_recipe(recipe: Recipe, out: str | Path, watcher: Watcher, *, retry_failed: bool = False) -> Path:
    """Runs all stages of a recipe into a run directory.

    Killed at any moment, the same call goes on: finished stages are kept, and within extraction, pilots, arms and
    steering so is what was finished of them.

    Args:
        retry_failed: tries the cells again that failed in a finished study; the others are kept.
    Returns: the run directory, with `run.json` and an artifact per stage.
    Raises: UsageError: what can be checked beforehand is checked before the first stage.
    """
    out = Path(out)
    if (out / MANIFEST).exists():
        raise UsageError(f"{out} holds an artifact of its own and is no run directory; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        if retry_failed:
            for study in studies_with_failures(out):
                reopen(study)
        run = Run(out, recipe, watcher)
        lm = load_model(recipe.model, dtype=recipe.dtype)
        _check(recipe, lm)
        corpus = run.do("corpus", lambda _: _corpus(recipe, out))
        if corpus.n_rejected:
            run.warnings.append(f"{corpus.n_rejected} rows of the corpus could not be read; see rejected.jsonl")
        basis, scores, corpus = read(run, recipe, lm, corpus)
        sensitivity(run, recipe, lm, corpus)
        pool = _clean(run, recipe, corpus)
        evidence, lacking = gathered(run, recipe, lm, pool, basis)
        candidates = Candidates.of(pool, scores, settings=selection_settings(recipe), **evidence)
        found = probed(run, recipe, lm, pool, basis, candidates)
        studied(run, recipe, lm, pool, basis, candidates, found, lacking)
        _steer(run, recipe, lm, corpus, basis, found.directions)
        secured(run, recipe, lm, pool, scores)
        run.save()
    return out


def studies_with_failures(out: Path) -> list[Path]:
    """The finished studies of a run, of selection or safety, of which cells failed."""
    found = sorted([*out.glob("study*/summary.json"), *out.glob("safety/summary.json")])
    finished = [path for path in found if not path.parent.name.endswith(".partial")]
    return [path.parent for path in finished if _has_failures(read_json(path)["arms"])]


def _has_failures(record: Any) -> bool:
    """Whether something in a record, at any depth, is said to have failed, wholly or partly."""
    if not isinstance(record, dict):
        return False
    return record.get("status") in ("failed", "partial") or any(map(_has_failures, record.values()))


def _check(recipe: Recipe, lm: LanguageModel) -> None:
    """Finds what would fail hours later: unknown tasks and arms, budgets, directions without a probe."""
    read = parse_layers(recipe.activations.layers, len(lm.blocks))
    for name, steered in (("steer", recipe.steer), ("probe", recipe.probe)):
        unread = sorted(set(steered.blocks or ()) - set(read)) if steered else []
        if unread:
            raise UsageError(f"{name}.blocks names block {unread[0]}, but the basis will have {read}")
    training_settings(recipe.training)
    basis_settings(recipe)
    if recipe.sensitivity is not None:
        if recipe.basis.method != "pca":
            raise UsageError(f"sensitivity is about principal directions, and basis.method is {recipe.basis.method}")
        for layers in recipe.sensitivity.layers:
            parse_layers(layers, len(lm.blocks))
        for source in recipe.sensitivity.corpora:
            load_corpus(source, limit=1)
    if recipe.probe is not None:
        probe_settings(recipe.probe, recipe.seed)
    tasks = [block.task for block in (recipe.probe, recipe.steer) if block is not None]
    for task in tasks + list(recipe.study.tasks if recipe.study is not None else ()):
        recipe.asking.load(task, 1)
    if recipe.steer is not None:
        _check_steer(recipe, recipe.steer)
    for name, directions in (
        ("study", recipe.study.directions if recipe.study else []),
        ("steer", recipe.steer.directions if recipe.steer else []),
    ):
        for direction in directions:
            if parse_direction(direction)[0] >= recipe.basis.k:
                raise UsageError(f"{name}.directions names {direction}, but the basis has 0 to {recipe.basis.k - 1}")
    if recipe.steer is not None and not recipe.steer.directions and recipe.probe is None:
        raise UsageError("steer needs directions: give steer.directions, or a probe block that finds them")
    if recipe.study is not None:
        _check_study(recipe)
    check_safety(recipe, lm)


def _check_study(recipe: Recipe) -> None:
    """Arms, budgets, and problems: what chooses must not be what the results are reported on."""
    block = recipe.study
    assert block is not None
    natives = [Arm(NATIVE, "random")] * block.arms.count(NATIVE)  # in place of what is not chosen yet
    for budget in block.budgets:
        StudySettings((*arms_of(block.arms), *natives), budget, tuple(block.seeds), block.budget_unit)
    arms = all_arms(recipe)
    if not block.directions and recipe.probe is None and any(arm.needs_directions for arm in arms):
        raise UsageError("study needs directions: give study.directions, or a probe block that finds them")
    if has_contest(recipe) and recipe.probe is None and recipe.contest.task is None:
        raise UsageError(f"the arm {NATIVE} is chosen on validation problems: give contest.task, or a probe block")
    known = [arm.name for arm in arms_of(block.arms)] + ([NATIVE] if has_contest(recipe) else [])
    if block.match is not None and block.match not in known:
        raise UsageError(f"study.match names {block.match!r}, which is no arm of the study")
    quotas, n_directions = recipe.selection.quotas, len(block.directions)
    n_directions = n_directions or (recipe.probe.n_chosen if recipe.probe is not None else 0)
    if isinstance(quotas, list) and len(quotas) != n_directions:
        raise UsageError(f"selection.quotas has {len(quotas)} shares for {n_directions} directions; give one for each")
    _check_seeds(recipe, block)
    choosing = [recipe.selection.validation, recipe.contest.task, recipe.probe.task if recipe.probe else None]
    for task in [recipe.asking.load(name) for name in dict.fromkeys(choosing) if name is not None]:
        chosen_by = {fingerprint(problem.prompt) for problem in task.problems}
        for name in block.tasks:
            problems = recipe.asking.load(name).problems
            shared = sum(fingerprint(problem.prompt) in chosen_by for problem in problems)
            if shared:
                raise UsageError(
                    f"{shared} of {len(problems)} problems of {name!r}, which the study reports on, are in "
                    f"{task.name!r} too, which chooses; directions and arms must be chosen on other problems"
                )


def _check_seeds(recipe: Recipe, block: StudyBlock) -> None:
    """A pilot of the study's size and seed would be one of the study's models, chosen for its luck with that seed."""
    rule = recipe.probe
    if rule is None or rule.kind != "pilot" or block.budget_unit != "rows" or rule.n_rows not in block.budgets:
        return
    pilots = range(recipe.seed, recipe.seed + rule.n_seeds + rule.n_repeats)
    both = sorted(set(pilots) & set(block.seeds))
    if both:
        raise UsageError(
            f"seed {both[0]} is one of the study and of pilots of the same {rule.n_rows} rows, so that the study would "
            f"report on a model that the probe has chosen; give study.seeds above {pilots[-1]}"
        )


def _check_steer(recipe: Recipe, block: SteerBlock) -> None:
    """Settings, metric and tasks of the steer block; problems that chose the directions are none to test on."""
    if len(set(map(parse_direction, block.directions))) < len(block.directions):
        raise UsageError(f"steer.directions names one twice ({', '.join(block.directions)}); give each once")
    check_metric(sweep_settings(block, recipe.seed).chosen_by, block.sampling.rollouts, block.target != ACCURACY)
    limits = {"n_problems": block.n_problems, "n_test_problems": block.n_test_problems}
    load_tasks(block.task, block.test_task, asking=recipe.asking, **limits)
    if recipe.probe is not None and not block.directions and block.test_task is not None:
        limits["n_problems"] = recipe.probe.n_problems
        load_tasks(recipe.probe.task, block.test_task, asking=recipe.asking, **limits)


def _corpus(recipe: Recipe, out: Path) -> Corpus:
    corpus = recipe_corpus(recipe.corpus, out / "rejected.jsonl" if recipe.corpus.on_bad_row == "skip" else None)
    in_rows = recipe.study is not None and recipe.study.budget_unit == "rows"
    for name, wanted in (
        ("study.budget", max(recipe.study.budgets) if recipe.study and in_rows else 0),
        ("probe.n_rows", recipe.probe.n_rows if recipe.probe and recipe.probe.kind == "pilot" else 0),
        ("safety.budgets", max(recipe.safety.budgets) if recipe.safety else 0),
    ):
        if wanted > len(corpus):
            raise UsageError(f"{name} is {wanted}, above the pool of {len(corpus)} rows; choose a smaller one")
    return without_held_out(recipe, corpus, out)


def _clean(run: Run, recipe: Recipe, corpus: Corpus) -> Corpus:
    """The rows that may be trained on: none that holds a problem of the recipe's tasks, none that comes twice.

    Raises: UsageError: fewer rows are left than the study's budget.
    """
    if recipe.probe is None and recipe.study is None and recipe.safety is None:
        return corpus
    names = [recipe.probe.task] if recipe.probe is not None else []
    names += [recipe.contest.task] if recipe.contest.task is not None and has_contest(recipe) else []
    names += [recipe.selection.validation] if recipe.selection.validation is not None else []
    names += recipe.study.tasks if recipe.study is not None else ()
    tasks, pool = [recipe.asking.load(name) for name in dict.fromkeys(names)], corpus
    if tasks:  # requests are compared with those of other tasks by safety_stages.py
        path = run.out / "overlap"
        overlap = run.do(
            "overlap",
            lambda tick: kept_overlaps(path, corpus, tasks, on_progress=lambda done, n: tick(done, n, "")),
            path,
        )
        held = {entry["id"] for entry in overlap["overlaps"]}
        if held:
            run.warnings.append(f"{overlap['sentence']}; they are left out of probe and study")
        pool = corpus.without(held)
    threshold = recipe.selection.near_duplicates
    if threshold is not None:
        twins = run.out / "near-duplicates"
        found = run.do(
            "near-duplicates",
            lambda tick: kept_near_duplicates(twins, pool, threshold, on_progress=lambda done, n: tick(done, n, "")),
            twins,
        )
        if found.removed:
            run.warnings.append(f"{found.sentence}; they are left out of probe, study and safety")
        pool = pool.without(set(found.removed))
    block = recipe.study
    if block is not None and block.budget_unit == "rows" and max(block.budgets) > len(pool):
        raise UsageError(
            f"study.budget is {max(block.budgets)} rows, but {len(pool)} are left without those that overlap with "
            "evaluation problems or are near-duplicates; lower it"
        )
    return pool


def _steer(
    run: Run,
    recipe: Recipe,
    lm: LanguageModel,
    corpus: Corpus,
    basis: SkillBasis,
    chosen: tuple[SignedDirection, ...],
) -> None:
    block = recipe.steer
    if block is None:
        return
    vectors = [
        direction_vector(basis, direction, sign, unit=block.unit, blocks=block.blocks)
        for direction, sign in tuple(parse_direction(name) for name in block.directions) or chosen
    ]
    if not vectors:
        run.warnings.append("steering was left out: the probe chose no direction")
        return
    drawn = np.random.default_rng(recipe.seed).permutation(len(corpus))[: block.n_texts]
    run.do(
        "steer",
        lambda tick: sweep(
            run.out / "steer",
            lm,
            vectors,
            block.task,
            sampling_settings(block.sampling, recipe.seed),
            sweep_settings(block, recipe.seed),
            test_task=block.test_task,
            held_out=[(row["prompt"], row["response"]) for row in corpus.rows.select(drawn)],
            dtype=recipe.dtype,
            asking=recipe.asking,
            n_problems=block.n_problems,
            n_test_problems=block.n_test_problems,
            n_workers=workers(recipe, lm),
            on_point=lambda point, done, n: tick(done, n, f"{point['vector']} {point['scope']} {point['alpha']:g}"),
        ),
        run.out / "steer",
    )
