"""What successive halving saves and what its verdicts are worth, in worlds whose effects are planted.

    python benchmarks/halving.py --out docs/results/halving.json     # some minutes

No model runs: answers are random numbers (`tests/fake_scorer.py`): 20 directions, 240 problems x 4 answers, a spread of
2 points between pilots, the default schedule. The threshold for going on was picked among .1, .2 and .3 on such worlds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_scorer import FakeScorer
from skillbasis.artifact import write_json
from skillbasis.halving import Schedule, race
from skillbasis.verdicts import judge

NAMES = [f"{k}{sign}" for k in range(10) for sign in "+-"]
WORLDS = {
    "null": {},
    "one direction at +8 points": {"3+": 0.08},
    "graded effects": dict(zip(NAMES, np.linspace(0.08, -0.08, len(NAMES)).tolist(), strict=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    record: dict[str, Any] = {"command": "python benchmarks/halving.py", "runs": options.runs, "worlds": {}}
    for world, effects in WORLDS.items():
        record["worlds"][world] = {name: simulate(effects, name, options.runs) for name in ("halving", "full")}
        for name, figures in record["worlds"][world].items():
            print(f"{world}, {name}: {figures}", flush=True)
    if options.out is not None:
        write_json(options.out, record)


def simulate(effects: dict[str, float], strategy: Any, n_runs: int) -> dict[str, float | None]:
    """Shares and means over simulated probes."""
    best = max(effects, key=lambda name: effects[name]) if effects else None
    cells, found, helps, false_helps, bias = [], [], [], [], []
    for seed in range(n_runs):
        scorer = FakeScorer(effects, seed, n_problems=240)
        outcome = race(NAMES, Schedule(strategy=strategy), scorer)
        table = {e["name"]: e for e in judge(outcome, NAMES, scorer.cell("base"), {}, draws_vary=True)}
        winner = outcome.finalists[0]
        cells.append(outcome.n_cells)
        found.append(winner == best)
        helps.append(best is not None and table[best]["verdict"] == "helps")
        false_helps.append(any(e["verdict"] == "helps" and effects.get(name, 0.0) <= 0 for name, e in table.items()))
        bias.append(table[winner]["pass@1"]["mean"] - scorer.truth(winner))
    planned = Schedule(strategy="full").n_cells(len(NAMES))
    return {
        "cells": float(np.mean(cells)),
        "share_of_full": float(np.mean(cells)) / planned,
        "best_found": float(np.mean(found)) if best else None,
        "best_called_helps": float(np.mean(helps)) if best else None,
        "any_false_helps": float(np.mean(false_helps)),
        "winner_bias": float(np.mean(bias)),
        "winner_bias_se": float(np.std(bias, ddof=1) / n_runs**0.5),
    }


if __name__ == "__main__":
    main()
