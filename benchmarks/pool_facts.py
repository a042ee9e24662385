"""What pools of the embedded world are like, by their hidden columns: who is right, and what tells it.

    python benchmarks/pool_facts.py --pool plain embedded embedded \
        --pool hard-1 runs/world/seed-1/habit runs/world/seed-1/hard-pool.jsonl.gz --out docs/results/pool-facts.json

Each --pool is a name, the base model, and the pool. AUC is the chance that a right row has a lower mean NLL under the
base (or is longer) than a wrong one, ties counted half; 0.5 says nothing. Nothing that selects reads these columns.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from skillbasis.artifact import write_json
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.evaluate.likelihood import measure_likelihood
from skillbasis.lm import load_model


def auc(score: np.ndarray, member: np.ndarray) -> float | None:
    """Chance that a member scores above another row, ties counted half; None where there is only one kind of row."""
    n, n_others = int(member.sum()), int((~member).sum())
    if n == 0 or n_others == 0:
        return None
    return float((rankdata(score)[member].sum() - n * (n + 1) / 2) / (n * n_others))


def pool_facts(pool: Corpus, mean_nll: np.ndarray, n_tokens: np.ndarray) -> dict[str, Any]:
    """Shares and AUCs of a pool.

    Args:
        mean_nll: (n,) of each response under the base model, in nats.
        n_tokens: (n,) tokens of each response.
    """
    hidden = [json.loads(extra) for extra in pool.rows["extra"]]
    style = np.array([row["hidden_style"] for row in hidden])
    correct = np.array([row["hidden_correct"] for row in hidden])
    family = np.array([labels[0] for labels in pool.rows["labels"]])
    n_characters = np.array([len(text) for text in pool.rows["response"]])
    order = np.argsort(n_tokens, kind="stable")
    thirds = np.array_split(order, 3)
    questions = Counter(messages[-1]["content"] for messages in pool.rows["prompt"])

    def told(rows: np.ndarray) -> dict[str, Any]:
        return {
            "n": int(rows.sum()),
            "wrong": float(1 - correct[rows].mean()),
            "mean_tokens": float(n_tokens[rows].mean()),
            "auc_low_nll": auc(-mean_nll[rows], correct[rows]),
            "auc_tokens": auc(n_tokens[rows], correct[rows]),
            "auc_characters": auc(n_characters[rows], correct[rows]),
        }

    return {
        "pool_fingerprint": pool.fingerprint,
        "all": told(np.ones(len(correct), dtype=bool)),
        "wrong_by_third_of_length": [float(1 - correct[rows].mean()) for rows in thirds],
        "most_rows_of_a_question": max(questions.values()),
        "origins": dict(Counter(row["hidden_origin"] for row in hidden).most_common()),
        "styles": {
            name: told(style == name)
            | {
                "by_family": {
                    label: told((style == name) & (family == label)) for label in sorted(set(family[style == name]))
                }
            }
            for name in ("terse", "worked", "verified", "guess", "story")
            if (style == name).any()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pool", nargs=3, action="append", required=True, metavar=("NAME", "MODEL", "FILE"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    record: dict[str, Any] = {
        "what": "wrong rows of pools of the embedded world, and the AUC of mean NLL and of length for being right",
        "command": "python benchmarks/pool_facts.py",
        "versions": {name: version(name) for name in ("skillbasis", "torch", "transformers")},
        "pools": {},
    }
    for name, model, path in options.pool:
        lm, pool = load_model(model), load_corpus(path)
        likelihood = measure_likelihood(pool, lm, max_length=256, batch_tokens=4096)
        facts = pool_facts(pool, likelihood.mean_nll, likelihood.n_tokens)
        record["pools"][name] = {"weights_fingerprint": lm.weights_fingerprint} | facts
        print(f"\n{name:10}{'rows':>7}{'wrong':>7}{'AUC: low NLL':>14}{'tokens':>9}{'characters':>12}")
        for style, told in [("all", facts["all"]), *facts["styles"].items()]:
            values = (told["auc_low_nll"], told["auc_tokens"], told["auc_characters"])
            shown = ["-" if value is None else f"{value:.3f}" for value in values]
            print(f"{style:10}{told['n']:7}{told['wrong']:7.2f}{shown[0]:>14}{shown[1]:>9}{shown[2]:>12}")
        print("wrong, by third of length:", ", ".join(f"{share:.2f}" for share in facts["wrong_by_third_of_length"]))
    write_json(options.out, record)


if __name__ == "__main__":
    main()
