"""The control of the embedded world: where no style helps, neither length nor any selection may win.

    skillbasis world train --variant null --seed 0 --out runs/null
    skillbasis world pool --variant null --models runs/null --out runs/null/pool.jsonl.gz
    python benchmarks/null_world.py --models runs/null --out docs/results/null-world.json

First random rows of the shortest and of the longest third of the pool are compared with random rows of all of it
(length alone must not decide), then both signs of every direction, low NLL and balanced families with random, all at
the same budget and paired by seed. Nothing is chosen by its result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from skillbasis import statistics
from skillbasis.activations import ExtractionSettings, extract
from skillbasis.artifact import write_json
from skillbasis.basis import PcaSettings, fit_pca, score
from skillbasis.cells import Cell, CellSettings, run_cells
from skillbasis.corpus import load_corpus
from skillbasis.evaluate.likelihood import measure_likelihood
from skillbasis.evaluate.sampler import SamplingSettings
from skillbasis.evaluate.tasks import Asking
from skillbasis.lm import load_model
from skillbasis.probe import selection_rows
from skillbasis.select import Candidates, SelectionSettings, select
from skillbasis.train.settings import preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=600)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problems", type=int, default=400)
    options = parser.parse_args()

    model = str(options.models / "habit")
    lm = load_model(model)
    pool = load_corpus(options.models / "pool.jsonl.gz")
    work = options.models / "control"
    settings = ExtractionSettings(span="response", max_length=256, batch_tokens=4096)
    store = extract(pool, lm, work / "activations", settings)
    basis = fit_pca(store, PcaSettings(k=options.k, normalize_blocks=True))
    likelihood = measure_likelihood(pool, lm, max_length=256, batch_tokens=4096)
    known = Candidates.of(pool, score(store, basis), likelihood)
    lengths = likelihood.n_tokens
    by_length = np.argsort(lengths, kind="stable")
    thirds = {"shortest third": by_length[: len(pool) // 3], "longest third": by_length[-len(pool) // 3 :]}

    cells = []
    for seed in range(options.seeds):
        chosen = {
            name: [pool.ids[i] for i in np.random.default_rng(seed).permutation(rows)[: options.budget]]
            for name, rows in thirds.items()
        }
        for strategy in ("random", "low-nll", "human-balanced"):
            chosen[strategy] = [row.id for row in select(known, strategy, options.budget, seed)]
        for direction in range(options.k):
            for sign in ("+", "-"):
                along = replace(known, settings=SelectionSettings(directions=((direction, sign),)))
                rows = select(along, "directions", options.budget, seed)
                chosen[f"direction {direction}{sign}"] = [row.id for row in rows]
        cells += [
            Cell(f"{arm.replace(' ', '-')}/{seed}", selection_rows(pool, ids), seed, seed)
            for arm, ids in chosen.items()
        ]
    arms = sorted({cell.name.split("/")[0] for cell in cells})
    sampling = SamplingSettings(rollouts=4, temperature=0.8, max_tokens=64)
    shared = CellSettings(
        model, "auto", ("embedded:validation",), Asking(), options.problems, sampling, preset("embedded"), "lean"
    )
    results = run_cells(work / "cells", cells, shared, lm.weights_fingerprint)
    values = {arm: np.stack([results[f"{arm}/{seed}"].pass_at_k(1) for seed in range(options.seeds)]) for arm in arms}
    rows = []
    for arm in arms:
        row = {"arm": arm, "pass@1": statistics.as_json(statistics.aggregate_over_seeds(values[arm]))}
        if arm != "random":
            difference = statistics.paired_over_seeds(values[arm], values["random"])
            row["difference_to_random"] = statistics.as_json(difference) | {"holds": difference.holds}
        rows.append(row)
    compared = [row["difference_to_random"] for row in rows if "difference_to_random" in row]
    for difference, p_holm in zip(compared, statistics.holm([d["p_value"] for d in compared]), strict=True):
        difference["p_holm"] = float(p_holm)
    record = {
        "what": "null world: pass@1 on validation problems, differences to random rows, paired by seed",
        "command": "python benchmarks/null_world.py",
        "budget": options.budget,
        "seeds": options.seeds,
        "weights_fingerprint": lm.weights_fingerprint,
        "mean_tokens": {name: float(lengths[rows].mean()) for name, rows in thirds.items()},
        "arms": rows,
    }
    write_json(options.out, statistics.nan_to_none(record))
    for row in rows:
        shown = f"{row['arm']:20} {row['pass@1']['mean']:.3f}"
        if "difference_to_random" in row:
            d = row["difference_to_random"]
            shown += f"  {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]  Holm p {d['p_holm']:.3f}"
        print(shown)


if __name__ == "__main__":
    main()
