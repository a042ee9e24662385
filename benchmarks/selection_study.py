"""Does selecting along directions pay? The study of recipes/embedded-study.yaml on one base model and its pool.

    python benchmarks/selection_study.py --name shipped
    skillbasis world train --seed 1 --out runs/world/seed-1
    skillbasis world pool --models runs/world/seed-1 --seed 1 --out runs/world/seed-1/pool.jsonl.gz
    python benchmarks/selection_study.py --name seed-1 --models runs/world/seed-1 --arms few
    (the same with 2 for 1)
    skillbasis world pool --models runs/world/seed-1 --seed 1 --variant hard --out runs/world/seed-1/hard-pool.jsonl.gz
    python benchmarks/selection_study.py --name hard-1 --models runs/world/seed-1 --pool hard-pool.jsonl.gz --arms few

Nothing is set by hand from one base to the next: directions and the default way are chosen by the recipe itself on
validation problems. Killed at any moment, the same command goes on. The result is a file per budget,
docs/results/selection/NAME-BUDGET.json: the study's summary without its settings, what the contest and the probe
chose, and the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skillbasis.artifact import read_json, write_json
from skillbasis.console import ConsoleWatcher
from skillbasis.pipeline import run_recipe
from skillbasis.recipe import Recipe, load_recipe
from skillbasis.recipe_blocks import CorpusBlock

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "embedded-study.yaml"
FEW = (
    "random",
    "random-length-matched",
    "low-nll",
    "low-nll+reread",
    "rft",
    "s1-like",
    "human-balanced",
    "human-weakness",
    "directions",
    "directions+likelihood",
    "directions+reread",
    "native",
)
"""The controls and the ways along directions: for the bases beside the shipped one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--models", type=Path, help="what 'world train' made; the shipped reasoner if not given")
    parser.add_argument("--pool", default="pool.jsonl.gz", help="file in --models")
    parser.add_argument("--arms", choices=("all", "few"), default="all")
    parser.add_argument("--runs", type=Path, default=Path("runs/selection"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/selection"))
    options = parser.parse_args()
    recipe = of_base(load_recipe(RECIPE), options)
    run = run_recipe(recipe, options.runs / options.name, ConsoleWatcher())
    options.out.mkdir(parents=True, exist_ok=True)
    assert recipe.study is not None
    for number, budget in enumerate(recipe.study.budgets):
        suffix = "" if number == 0 else f"-{budget}"
        path = options.out / f"{options.name}-{budget}.json"
        write_json(path, record(run, suffix, options.name, options.models, options.pool))
        print(path)


def of_base(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe with another base and its pool."""
    changes: dict[str, Any] = {"title": f"selection, {options.name}"}
    if options.models is not None:
        pool = str(options.models / options.pool)
        changes |= {"model": str(options.models / "habit"), "corpus": CorpusBlock(source=pool)}
    if options.arms == "few":
        assert recipe.study is not None
        changes["study"] = recipe.study.model_copy(update={"arms": list(FEW)})
    return recipe.model_copy(update=changes)


def record(run: Path, suffix: str, name: str, models: Path | None, pool: str) -> dict[str, Any]:
    """What is kept of one budget."""
    summary, facts = read_json(run / f"study{suffix}" / "summary.json"), read_json(run / "run.json")
    contest, probe = read_json(run / f"contest{suffix}" / "contest.json"), read_json(run / "probe" / "probe.json")
    where = "" if models is None else f" --models {models} --pool {pool} --arms few"
    del summary["settings"], summary["tasks"]  # the first task stands in the summary itself
    summary["paired"] = [row for row in summary["paired"] if row["metric"] == "pass@1"]
    return {
        "what": "arms x seeds on the test problems of the embedded world, paired by seed",
        "command": f"python benchmarks/selection_study.py --name {name}{where}",
        "machine": facts["machine"],
        "versions": facts["versions"],
        "probe": {key: probe[key] for key in ("chosen", "ranking", "base", "random", "seconds")},
        "contest": {key: value for key, value in contest.items() if key not in ("settings", "rungs")},
        "stages": {stage["name"]: stage["seconds"] for stage in facts["stages"]},
        "study": summary,
    }


if __name__ == "__main__":
    main()
