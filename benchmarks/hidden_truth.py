"""What the directions of a run on the embedded world hold, and what its arms chose, by the pool's hidden columns.

    python benchmarks/hidden_truth.py runs/demo --out docs/results/demo/hidden-truth.json

Nothing that selects ever reads these columns; this looks afterwards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from skillbasis.artifact import write_json
from skillbasis.basis import Scores
from skillbasis.corpus import load_corpus
from skillbasis.evaluate.likelihood import Likelihood


def auc(score: np.ndarray, member: np.ndarray) -> float:
    """Chance that a member scores above another row (ties count half); the Mann-Whitney statistic, scaled."""
    ranks, n = rankdata(score), int(member.sum())
    return float((ranks[member].sum() - n * (n + 1) / 2) / (n * (len(member) - n)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    corpus = load_corpus("embedded")
    hidden = [json.loads(extra) for extra in corpus.rows["extra"]]
    style = np.array([row["hidden_style"] for row in hidden])
    correct = np.array([row["hidden_correct"] for row in hidden])
    family = np.array([labels[0] for labels in corpus.rows["labels"]])
    groups = {"worked or verified": np.isin(style, ["worked", "verified"]), "correct": correct}
    groups |= {"story": style == "story", "guess": style == "guess"}
    groups |= {name: family == name for name in sorted(set(family))}
    scores = Scores.load(options.run / "scores.parquet").aligned(corpus.ids)
    measures = {f"direction {k}": scores.cosine[:, k] for k in range(scores.values.shape[1])}
    measures["low NLL"] = (
        -Likelihood.load(options.run / "likelihood" / "likelihood.parquet").aligned(corpus.ids).mean_nll
    )
    table = {
        name: {group: auc(values, member) for group, member in groups.items()} for name, values in measures.items()
    }

    selections = {}
    for path in sorted((options.run / "study" / "selections").glob("*-0.jsonl")):
        rows = [corpus.positions[json.loads(line)["id"]] for line in path.read_text(encoding="utf-8").splitlines()]
        shares = {group: float(member[rows].mean()) for group, member in groups.items()}
        selections[path.stem.removesuffix("-0")] = shares
    write_json(options.out, {"auc": table, "shares_of_selections_seed_0": selections})
    for title, shown in (("AUC", table), ("share of the selection (seed 0)", selections)):
        print(f"\n{title:22}" + "".join(f"{group[:9]:>10}" for group in groups))
        for name, row in shown.items():
            print(f"{name:22}" + "".join(f"{row[group]:10.2f}" for group in groups))


if __name__ == "__main__":
    main()
