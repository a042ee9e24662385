"""How much does the gain of selection depend on each choice? One change at a time, on the embedded reasoner.

    python benchmarks/sensitivity.py --out docs/results/sensitivity.json

The baseline is recipes/embedded-study.yaml at 500 rows with 5 seeds. Every variant changes one thing and is taken
through the whole path: reading, basis, probe on validation problems, study on test problems. Arms that a variant does
not touch are not run again: differences are to the baseline's random rows, paired by seed (for another budget or pool,
to the variant's own). Nothing is chosen by these figures. Killed at any moment, the same command goes on; `--only`
takes some variants alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from skillbasis import statistics
from skillbasis.artifact import atomic_path, read_json, write_json
from skillbasis.console import ConsoleWatcher
from skillbasis.engine import machine
from skillbasis.pipeline import run_recipe
from skillbasis.recipe import Recipe, load_recipe, parse_recipe
from skillbasis.world.assets import pool_path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "embedded-study.yaml"
BASELINE = "baseline"
ARMS = ["random", "low-nll", "directions", "directions+likelihood", "directions+reread"]
ALONG = ["directions", "directions+likelihood"]
SEEDS = [100, 101, 102, 103, 104]
NOISY_ROWS = 8000
SHARED = ("activations", "likelihood", "overlap")  # of the baseline; what a change touches is made anew

Changes = dict[str, Any]
"""Dotted keys of the recipe and their values."""
VARIANTS: dict[str, dict[str, Changes]] = {
    "budget": {f"{n} rows": {"study.budget": n, "study.arms": ARMS} for n in (125, 250, 1000, 2000)},
    "wrong rows in the pool": {
        f"{share:.0%} wrong": {"pool": share, "study.arms": ARMS} for share in (0.0, 0.2, 0.4, 0.6)
    },
    "directions (k)": {f"k = {k}": {"basis.k": k} for k in (4, 16, 32)},
    "pooling": {p: {"activations.pooling": p} for p in ("last", "max")},
    "span": {span: {"activations.span": span} for span in ("all", "prompt")},
    "blocks": {
        name: {"activations.layers": layers}
        for name, layers in (("all", "all"), ("first", "0"), ("second", "1"), ("third", "2"), ("last", "3"))
    },
    "normalised blocks": {"no": {"basis.normalize_blocks": False}},
    "ranking rule": {
        "projection": {"selection.rank_by": "projection"},
        "centred rank": {"selection.rank_by": "centred-rank"},
        "very top": {"selection.top_share": 0.0},
        "top 30 %": {"selection.top_share": 0.3, "selection.likelihood_share": 0.5},
        "top 10 %": {"selection.top_share": 0.05, "selection.likelihood_share": 0.1},
        "temperature 0.5": {"selection.temperature": 0.5},
        "8 cells": {"selection.cells": 8},
    },
    "mixtures": {
        "best two, equal": {"probe.n_chosen": 2},
        "best three, equal": {"probe.n_chosen": 3},
        "best three, by gain": {"probe.n_chosen": 3, "selection.quotas": "gain"},
    },
    "proxy": {
        "pilots of 100 rows": {"probe.n_rows": 100},
        "pilots of 250 rows": {"probe.n_rows": 250},
        "pilots of 1000 rows": {"probe.n_rows": 1000},
        "one seed": {"probe.n_seeds": 1},
        "all directions thrice": {"probe.strategy": "full", "probe.n_seeds": 3},
        "pilots without likelihood": {"probe.along": "directions"},
        "60 problems": {"probe.n_problems": 60},
        "steering": {"probe.kind": "steer"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--only", nargs="*", help="questions, such as 'pooling'")
    options = parser.parse_args()
    unknown = set(options.only or ()) - VARIANTS.keys()
    if unknown:
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    baseline = options.runs / BASELINE
    run_recipe(variant({"study.arms": ARMS}, options.runs), baseline, ConsoleWatcher())
    found: list[dict[str, Any]] = [figures(baseline, baseline, BASELINE, BASELINE)]
    for question, variants in VARIANTS.items():
        if options.only and question not in options.only:
            continue
        for name, changes in variants.items():
            run = options.runs / f"{question}-{name}".replace(" ", "-").replace("%", "percent")
            share_with(baseline, run)
            run_recipe(variant(changes, options.runs), run, ConsoleWatcher())
            own = "random" in changes.get("study.arms", ())
            found.append(figures(run, run if own else baseline, question, name))
            show(found[-1])
            save(options.out, found)
    save(options.out, found)


def save(path: Path, found: list[dict[str, Any]]) -> None:
    record = {
        "what": "pass@1 on the test problems of the embedded world, one change at a time, 500 rows, 5 seeds",
        "command": "python benchmarks/sensitivity.py --out docs/results/sensitivity.json",
        "machine": machine(),
        "variants": found,
    }
    write_json(path, statistics.nan_to_none(record))


def variant(changes: Changes, runs: Path) -> Recipe:
    """The recipe with some keys changed, without what takes long and is not asked."""
    raw = load_recipe(RECIPE).model_dump(mode="json", exclude_none=True)
    raw["study"] |= {"arms": ALONG, "budget": 500, "seeds": SEEDS}
    raw["selection"]["near_duplicates"] = None
    del raw["contest"]
    for key, value in changes.items():
        if key == "pool":
            raw["corpus"]["source"] = str(noisy_pool(runs, value))
            continue
        block, name = key.split(".")
        raw[block][name] = value
    return parse_recipe(raw, "the variant")


def noisy_pool(runs: Path, share: float) -> Path:
    """A pool of which a given share is wrong, drawn from the shipped one by its hidden column, so that sizes agree."""
    path = runs / f"pool-{share:g}.jsonl.gz"
    if path.exists():
        return path
    with gzip.open(pool_path(), "rt", encoding="utf-8") as file:
        lines = list(file)
    rng = np.random.default_rng(0)
    right = [json.loads(line)["hidden_correct"] for line in lines]
    n_wrong = round(share * NOISY_ROWS)
    drawn = [*rng.permutation(np.flatnonzero(np.logical_not(right)))[:n_wrong]]
    drawn += [*rng.permutation(np.flatnonzero(right))[: NOISY_ROWS - n_wrong]]
    assert len(drawn) == NOISY_ROWS, "the shipped pool has too few rows of one kind"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as out:
        out.writelines(lines[i] for i in sorted(drawn))
    return path


def share_with(baseline: Path, run: Path) -> None:
    """Copies finished stages, so that only what the change touches is made anew."""
    for name in SHARED:
        if (baseline / name).exists() and not (run / name).exists():
            shutil.copytree(baseline / name, run / name)


def figures(run: Path, reference: Path, question: str, name: str) -> dict[str, Any]:
    """What a variant gives: the chosen directions, each arm's mean, and its difference to random rows by seed."""
    study, probe = read_json(run / "study" / "summary.json"), read_json(run / "probe" / "probe.json")
    random = read_json(reference / "study" / "summary.json")["arms"]["random"]["pass@1"]
    arms = {}
    for arm, entry in study["arms"].items():
        if arm == "base" or entry["status"] != "done":
            continue
        seeds = entry["pass@1"]["seeds"]
        difference = statistics.paired_difference(seeds, random["seeds"])
        arms[arm] = {"pass@1": entry["pass@1"], "difference_to_random": statistics.as_json(difference)}
    failed = {arm: entry["reason"] for arm, entry in study["arms"].items() if entry["status"] != "done"}
    return {
        "question": question,
        "name": name,
        "chosen": probe["chosen"],
        "probe_seconds": probe["seconds"],
        "probe_cells": probe["saved"]["cells"],
        "arms": arms,
        "failed": failed,
    }


def show(found: dict[str, Any]) -> None:
    text = ", ".join(_words(found["arms"].items()))
    print(f"{found['question']}, {found['name']}: chosen {' '.join(found['chosen'])}; {text}", flush=True)


def _words(arms: Iterable[tuple[str, dict[str, Any]]]) -> Iterable[str]:
    for arm, entry in arms:
        d = entry["difference_to_random"]
        ends = "" if d["low"] is None else f" [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
        yield f"{arm} {entry['pass@1']['mean']:.3f} ({100 * d['mean']:+.1f}{ends})"


if __name__ == "__main__":
    main()
