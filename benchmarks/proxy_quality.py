"""Are the proxies any good? Pilots and steering held against the full budget, for every signed direction.

    python benchmarks/proxy_quality.py --run runs/demo --out docs/results/proxy-quality.json
    python benchmarks/proxy_quality.py --quick                 # two minutes; checks that it runs

The directions are those of the demo (of a finished run of it, or found anew with its settings). Every signed direction
gets, at several seeds: a selection at the study's budget, answered on the test problems, which is the truth here; a
pilot, and steering, both answered on the validation problems. Draws of the full budget are none of the pilots'. It can
be killed and started again: finished cells are kept in --work.
"""

from __future__ import annotations

import argparse
import platform
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from skillbasis import statistics
from skillbasis.artifact import write_json
from skillbasis.basis import Scores, SkillBasis
from skillbasis.cells import Cell, CellResult, CellSettings, run_cells
from skillbasis.engine import machine
from skillbasis.lm import load_model
from skillbasis.pipeline import recipe_corpus, run_recipe, sampling_settings, training_settings
from skillbasis.probe import ProbeSettings, name_of, pilot_cells, steered_cells
from skillbasis.proxy import proxy_quality
from skillbasis.recipe import Recipe, load_recipe
from skillbasis.select import Candidates, SelectionSettings
from skillbasis.world.assets import demo_recipe_path

FULL_SEED = 1000  # with the seeds of the pilots, a pilot's rows would be among those of the full budget
QUICK = {"seeds": 2, "proxy_seeds": 2, "problems": 12, "directions": 2, "budget": 40, "rows": 24}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run of the demo, for its basis and scores")
    parser.add_argument("--work", type=Path, help="where finished cells are kept; default runs/proxy-quality")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="seeds at full budget")
    parser.add_argument("--proxy-seeds", type=int, default=3, help="pilots, and steered answers, of each direction")
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--scope", default="last-prompt")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.set_defaults(problems=None, directions=None, budget=None, rows=None)
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    work = options.work or Path("runs") / f"proxy-quality{'-quick' if options.quick else ''}"
    recipe = load_recipe(demo_recipe_path())
    assert recipe.probe is not None and recipe.study is not None
    budget, n_rows = options.budget or recipe.study.budget, options.rows or recipe.probe.n_rows
    run = options.run or found_anew(recipe, work / "run")
    lm, basis = load_model(recipe.model, dtype=recipe.dtype), SkillBasis.load(run / "basis")
    basis.check_model(lm)
    corpus = recipe_corpus(recipe.corpus)
    selection = SelectionSettings(**recipe.selection.model_dump())
    candidates = Candidates.of(corpus, Scores.load(run / "scores.parquet"), settings=selection)
    n_directions = min(options.directions or basis.n_components, basis.n_components)
    signed = [(k, sign) for k in range(n_directions) for sign in ("+", "-")]
    names = [name_of(direction) for direction in signed]

    def shared(task: str, block: Any) -> CellSettings:
        sampling, training = sampling_settings(block, recipe.seed), training_settings(recipe.training)
        settings = (recipe.model, recipe.dtype, (task,), recipe.asking, options.problems, sampling, training)
        return CellSettings(*settings, "lean")

    settings = ProbeSettings(n_rows=n_rows, alpha=options.alpha, scope=options.scope, seed=recipe.seed)
    steered = replace(settings, kind="steer")
    whole = pilot_cells(corpus, candidates, signed, replace(settings, n_rows=budget, seed=FULL_SEED))
    cheap = {
        "pilot": pilot_cells(corpus, candidates, signed, settings),
        "steer": steered_cells(basis, signed, steered),
    }
    test, validation = (
        shared(recipe.study.task, recipe.study.sampling),
        shared(recipe.probe.task, recipe.probe.sampling),
    )

    def full_cell(name: str, number: int) -> Cell:
        """As an arm of a study: each seed draws, trains and answers anew."""
        return replace(whole(name, number), name=f"full/{name}/{number}", sampling_seed=FULL_SEED + number)

    def measure(what: str, make: Any, n_seeds: int, cells: CellSettings) -> tuple[dict[str, np.ndarray], float, list]:
        """(seeds, problems) pass@1 of every direction, seconds of all cells, and what failed."""
        jobs = {(name, number): make(name, number) for number in range(n_seeds) for name in names}

        def show(cell: CellResult, done: int, n: int) -> None:
            print(f"{what} {done}/{n}: {cell.name} " + (cell.reason or f"{cell.pass_at_k(1).mean():.3f}"), flush=True)

        jobs_done = run_cells(
            *(work, list(jobs.values()), cells, lm.weights_fingerprint), n_workers=options.workers, on_cell=show
        )
        results = {key: jobs_done[cell.name] for key, cell in jobs.items()}
        values = {}
        for name in names:
            rows = [result.pass_at_k(1) for (of, _), result in results.items() if of == name and result.result]
            if rows:
                values[name] = np.stack(rows)
        failed = [f"{result.name}: {result.reason}" for result in results.values() if result.reason]
        return values, sum(result.seconds for result in results.values()), failed

    full, full_seconds, failed = measure("full", full_cell, options.seeds, test)
    record: dict[str, Any] = {
        "what": "pilots and steering on validation problems against the full budget on test problems, by direction",
        "command": "python benchmarks/proxy_quality.py"
        + "".join(
            f" --{name.replace('_', '-')} {getattr(options, name)}"
            for name in ("seeds", "proxy_seeds", "alpha", "scope")
            if getattr(options, name) != parser.get_default(name) and not options.quick
        )
        + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("skillbasis", "torch", "numpy", "scipy")},
        "weights_fingerprint": lm.weights_fingerprint,
        "basis": basis.fingerprint,
        "full": {
            "budget": budget,
            "n_seeds": options.seeds,
            "task": test.tasks[0],
            "seconds": full_seconds,
            "pass@1": {name: values.mean(axis=1).tolist() for name, values in full.items()},
            "failed": failed,
        },
        "proxies": {},
    }
    if options.seeds > 1:  # what the full budget's own luck allows: no proxy can be expected to do better
        halves = [{name: rows[start::2] for name, rows in full.items() if len(rows) > 1} for start in (0, 1)]
        record["full"]["against_itself"] = proxy_quality(*halves)
    for kind, make in cheap.items():
        values, seconds, failed = measure(kind, make, options.proxy_seeds, validation)
        record["proxies"][kind] = {
            "task": validation.tasks[0],
            "n_seeds": options.proxy_seeds,
            **({"n_rows": n_rows} if kind == "pilot" else {"alpha": options.alpha, "unit": steered.unit}),
            **({} if kind == "pilot" else {"scope": options.scope}),
            "seconds": seconds,
            "pass@1": {name: rows.mean(axis=1).tolist() for name, rows in values.items()},
            "failed": failed,
            "quality": proxy_quality(values, full),
            "quality_of_one_seed": proxy_quality({name: rows[:1] for name, rows in values.items()}, full),
        }
    write_json(options.out or work / "proxy-quality.json", statistics.nan_to_none(record))
    for kind, proxy in record["proxies"].items():
        quality = proxy["quality"]
        print(
            f"{kind}: Spearman {quality['spearman']['value']}, over directions {quality['spearman']['over_directions']}"
        )
        for name in ("regret", "regret_of_random", "gain_over_random"):
            print(f"  {name.replace('_', ' ')}: {quality[name]['value']:+.3f} {quality[name]['over_runs']}")


def found_anew(recipe: Recipe, out: Path) -> Path:
    """The basis and the scores of the demo, without what comes after them."""

    class Silent:
        @contextmanager
        def stage(self, name: str) -> Any:
            print(f"{name} ...", flush=True)
            yield lambda done, total, words: None

    return run_recipe(recipe.model_copy(update={"probe": None, "study": None, "steer": None}), out, Silent())


if __name__ == "__main__":
    main()
