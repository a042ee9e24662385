"""One steering setting, chosen on validation problems, on the test problems of the embedded world.

    python benchmarks/steering_on_test.py runs/demo --alpha 0.6 --out docs/results/steering-on-test.json

The direction is the one the run's pilots chose; the strength and the scope are those that did best in the run's sweep
on validation problems. Nothing else is tried on the test problems. Random directions of the same norm are the control.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from skillbasis import statistics
from skillbasis.artifact import read_json, write_json
from skillbasis.basis import SkillBasis
from skillbasis.evaluate.generate import SamplingSettings
from skillbasis.evaluate.run import answer_task
from skillbasis.evaluate.tasks import load_task
from skillbasis.lm import load_model
from skillbasis.select import parse_direction
from skillbasis.steer import direction_vector, random_vector, steer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--random", type=int, default=3)
    options = parser.parse_args()

    lm, task = load_model("embedded"), load_task("embedded:test")
    direction, sign = parse_direction(read_json(options.run / "probe" / "probe.json")["chosen"][0])
    vector = direction_vector(SkillBasis.load(options.run / "basis"), direction, sign, unit="relative")
    sampling = SamplingSettings(rollouts=8, temperature=0.8, max_tokens=112)
    plain, _ = answer_task(lm, task, sampling)
    record: dict[str, Any] = {
        "task": task.name,
        "n_problems": len(task.problems),
        "rollouts": sampling.rollouts,
        "alpha": options.alpha,
        "unit": "relative",
        "scope": "last-prompt",
        "unsteered": plain.summary(),
        "steered": [],
    }
    for steering in (vector, *(random_vector(vector, seed) for seed in range(options.random))):
        intervention = partial(steer, vector=steering, alpha=options.alpha, scope="last-prompt")
        result, _ = answer_task(lm, task, sampling, intervention)
        differences = {
            f"pass@{k}": statistics.paired_difference(result.pass_at_k(k), plain.pass_at_k(k)) for k in (1, 4, 8)
        }
        shown = ", ".join(f"{k} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for k, d in differences.items())
        print(f"{steering.name}: pass@1 {result.pass_at_k(1).mean():.3f}; differences {shown}")
        record["steered"].append(
            {
                "vector": steering.name,
                "figures": result.summary(),
                "differences": {k: statistics.as_json(d) for k, d in differences.items()},
            }
        )
    write_json(options.out, statistics.nan_to_none(record))


if __name__ == "__main__":
    main()
