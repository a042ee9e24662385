"""Makes the files that the recipes at the paper's scale read, from the Hugging Face hub.

    python recipes/paper_data.py --out data

* `pool.jsonl.gz`: 50,000 rows of the math part of nvidia/Llama-Nemotron-Post-Training-Dataset (CC BY 4.0), drawn while
  it streams: files in random order, rows through a buffer of 100,000. Rows without a response and exact repeats are
  passed over. Two columns are added that arms need and the set has not: `answer`, the last box of the response (the
  teacher's, for grading the model's own answers), and `subject`, a label that people gave: the most frequent one of the
  5 MATH training problems whose words are nearest (TF-IDF). `system_prompt` ("detailed thinking on") is left out, since
  the tasks are asked without one.
* `validation.jsonl`: 300 training problems of MATH (EleutherAI/hendrycks_math, MIT) with solution, answer, level and
  subject. They choose directions and arms; nothing is reported on them. The other training problems give the labels.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from skillbasis.artifact import atomic_path
from skillbasis.corpus_formats import RowError
from skillbasis.evaluate.problems.catalogue import BENCHMARKS
from skillbasis.evaluate.problems.published import boxes
from skillbasis.select.texts import text_vectors

POOL = ("nvidia/Llama-Nemotron-Post-Training-Dataset", "SFT", "math")
BUFFER_ROWS = 100_000
NEIGHBOURS = 5
BLOCK_ROWS = 4096


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--problems", type=int, default=300, help="validation problems")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    problems = list(math_problems())
    order = np.random.default_rng(options.seed).permutation(len(problems))
    chosen = set(order[: options.problems].tolist())
    labelled = [problem for i, problem in enumerate(problems) if i not in chosen]
    pool = list(pool_rows(options.rows, options.seed))
    subjects = nearest_subjects([asked(row) for row in pool], labelled)
    with atomic_path(options.out / "pool.jsonl.gz") as path, gzip.open(path, "wt", encoding="utf-8") as file:
        for row, subject in zip(pool, subjects, strict=True):
            file.write(json.dumps(row | {"answer": (boxes(row["output"]) or [None])[-1], "subject": subject}) + "\n")
    with atomic_path(options.out / "validation.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for i in sorted(chosen):
            file.write(json.dumps(problems[i]) + "\n")
    print(f"{options.out}: {len(pool):,} rows of {dict(Counter(subjects))}, {len(chosen):,} validation problems")


def math_problems() -> Iterator[dict[str, Any]]:
    """The training problems of MATH, without the few that have several right answers or none in a box."""
    import datasets

    benchmark = BENCHMARKS["math"]
    for config in benchmark.configs:
        for i, row in enumerate(datasets.load_dataset(benchmark.hub, config, split="train")):
            try:
                problem = benchmark.from_hub(row)
            except RowError:
                continue
            if len(problem["answer"]) == 1:
                yield {"id": f"math-train-{config}-{i}"} | problem | {"answer": problem["answer"][0]}


def pool_rows(n_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Different rows with a response, in the order drawn."""
    import datasets

    name, config, split = POOL
    stream = datasets.load_dataset(name, config, split=split, streaming=True)
    seen: set[tuple[str, str]] = set()
    for row in stream.shuffle(seed=seed, buffer_size=BUFFER_ROWS):
        key = (asked(row), row["output"] or "")
        if not key[1].strip() or key in seen:
            continue
        seen.add(key)
        yield {column: value for column, value in row.items() if column != "system_prompt"}
        if len(seen) == n_rows:
            return


def asked(row: dict[str, Any]) -> str:
    """The text of a row's prompt."""
    turns = row["input"]
    return turns if isinstance(turns, str) else "\n".join(turn["content"] for turn in turns)


def nearest_subjects(texts: list[str], labelled: list[dict[str, Any]]) -> list[str]:
    """The most frequent subject of the nearest labelled problems of each text; on ties that of the nearer one."""
    vectors = text_vectors(texts + [problem["problem"] for problem in labelled])
    known = vectors[len(texts) :]
    subjects: list[str] = []
    for start in range(0, len(texts), BLOCK_ROWS):
        cosines = vectors[start : min(start + BLOCK_ROWS, len(texts))] @ known.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        # Counter keeps the order of the first meeting, so equal counts go to the nearer problem.
        counts = (Counter(labelled[place]["subject"] for place in places) for places in nearest)
        subjects += [count.most_common(1)[0][0] for count in counts]
    return subjects


if __name__ == "__main__":
    main()
