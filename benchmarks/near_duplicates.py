"""Near-duplicates in training pools: how many real pools hold, how many planted ones are found, and how fast.

    python benchmarks/near_duplicates.py --out docs/results/near-duplicates.json      # a minute
    python benchmarks/near_duplicates.py --quick                                      # seconds; checks that it runs

Rates are those of one process: rows by the seconds of the processor that it used, so that others' work does not count.
The large pool is made of sentences drawn from real solutions; a tenth of its rows are changed copies of others. Memory
is the peak above what the process held with the texts made (measured on Linux only, which can start a peak anew).
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from farthest_points import above, new_peak

POOLS = (
    "gsm8k/train.jsonl.gz",
    "math_train/with_solutions.jsonl.gz",
    "traces_qwen25/instruct_32b_prompt_styles.jsonl.gz",
)
THRESHOLDS = (0.7, 0.8, 0.9)
ROW_WORDS = 150
COPIED_SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="normalised benchmarks and pools")
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"there is no folder {options.data}; give --data")

    from skillbasis.artifact import write_json
    from skillbasis.corpus import load_corpus
    from skillbasis.engine import machine

    pools = {name: load_corpus(options.data / name) for name in POOLS}
    sentences = [part for name in POOLS[:2] for text in texts_of(pools[name]) for part in text.split(". ") if part]
    pools["embedded"] = load_corpus("embedded")
    record = {
        "what": "near-duplicates: rows that share their 5-word shingles with a row before them",
        "command": "python benchmarks/near_duplicates.py" + " --quick" * options.quick,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "pools": [in_pool(name, pool, threshold) for name, pool in pools.items() for threshold in THRESHOLDS],
        "large": large(sentences, 10_000 if options.quick else 100_000),
    }
    for line in (*record["pools"], record["large"]):
        print(line)
    if options.out is not None:
        write_json(options.out, record)


def texts_of(pool: Any) -> list[str]:
    from skillbasis.select.candidates import Candidates

    return Candidates.of(pool).texts


def in_pool(name: str, pool: Any, threshold: float) -> dict[str, Any]:
    """How many rows of a pool go, and in how many of them the numbers are others than in the row that stays."""
    from skillbasis.select.near_duplicates import near_duplicates, row_words

    texts = texts_of(pool)
    started = time.process_time()
    found = near_duplicates(texts, pool.ids, threshold)
    seconds = time.process_time() - started

    def numbers(row_id: str) -> Counter[str]:
        return Counter(word for word in row_words(texts[pool.positions[row_id]]) if word.isdigit())

    return {
        "pool": name,
        "n_rows": len(pool),
        "threshold": threshold,
        "n_removed": len(found.removed),
        "n_removed_same_shingles": sum(near.similarity == 1 for near in found.removed.values()),
        "n_removed_other_numbers": sum(numbers(row_id) != numbers(near.of) for row_id, near in found.removed.items()),
        "rows_per_cpu_s": round(len(pool) / seconds),
    }


def large(sentences: list[str], n_rows: int) -> dict[str, Any]:
    """Speed and memory on many rows, and the share of the planted copies above the threshold that is found."""
    from skillbasis.select.near_duplicates import near_duplicates, row_words

    rng = random.Random(0)
    texts: list[str] = []
    planted: dict[int, int] = {}
    while len(texts) < n_rows:
        if texts and rng.random() < COPIED_SHARE:
            planted[len(texts)] = source = rng.randrange(len(texts))
            words = texts[source].split()
            for _ in range(rng.randrange(8)):
                words[rng.randrange(len(words))] = rng.choice(("amber", "basin", "cedar", "delta"))
            texts.append(" ".join(words))
        else:
            texts.append(made(sentences, rng))
    ids = [str(i) for i in range(n_rows)]
    before, started = new_peak(), time.process_time()
    found = near_duplicates(texts, ids)
    seconds = time.process_time() - started
    peak = above(before)
    # A copy of a row that stays, at the threshold or above by the definition, must go.
    due = [
        i for i, j in planted.items() if str(j) not in found.removed and jaccard(texts[i], texts[j]) >= found.threshold
    ]
    return {
        "n_rows": n_rows,
        "mean_words": round(sum(len(row_words(text)) for text in texts[:1000]) / len(texts[:1000])),
        "threshold": found.threshold,
        "seconds": round(seconds, 2),
        "rows_per_cpu_s": round(n_rows / seconds),
        "peak_rss_above_texts_mb": peak,
        "n_removed": len(found.removed),
        "n_copies_due": len(due),
        "n_copies_overlooked": sum(str(i) not in found.removed for i in due),
        "overlooked_at_threshold": found.overlooked_at_threshold,
    }


def made(sentences: list[str], rng: random.Random) -> str:
    """A row of about 150 words."""
    parts: list[str] = []
    while sum(len(part.split()) for part in parts) < ROW_WORDS:
        parts.append(rng.choice(sentences))
    return ". ".join(parts)


def jaccard(first: str, second: str, n: int = 5) -> float:
    """The definition, written apart from the package's."""
    from skillbasis.select.near_duplicates import row_words

    padded = [[""] * (n - 1) + row_words(text) + [""] * (n - 1) for text in (first, second)]
    a, b = (set(zip(*(words[i:] for i in range(n)), strict=False)) for words in padded)
    return len(a & b) / len(a | b)


if __name__ == "__main__":
    main()
