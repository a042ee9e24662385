"""Every selection strategy that works from arrays alone, on a million rows of made-up evidence: time and memory.

    python benchmarks/selection_speed.py --out docs/results/selection-speed.json      # some minutes, idle machine
    python benchmarks/selection_speed.py --quick                                      # seconds; checks that it runs
    python benchmarks/selection_speed.py --only random coverage                       # these strategies

Each strategy has a process of its own, which opens the corpus, reads the arrays, brings them into corpus order (align)
and chooses. The time counted begins with the arrays read. Memory is the peak of the process with all that it holds,
arrays and imports too (measured on Linux only, which can start a peak anew). Strategies that compare rows with each
other get a budget of their own. Those that read texts are left out, but for `deita`, which gets the scores as vectors;
so is the curriculum in rounds, which trains.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from farthest_points import THREAD_VARIABLES, new_peak, peak_rss_mb

APART = ("coverage", "coverage+quality")
LEFT_OUT = ("text-diversity", "facility-location", "weakness-rounds")
N_LABELS = 40
N_ANSWERS = 4
N_VALIDATION = 400


@dataclass(frozen=True)
class Size:
    """How many rows along how many directions, and how many are chosen."""

    n_rows: int = 1_000_000
    n_directions: int = 32
    budget: int = 100_000
    budget_apart: int = 10_000
    """Of strategies that compare rows with each other."""


QUICK = Size(n_rows=20_000, budget=2000, budget_apart=500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("--only", nargs="+", help="these strategies")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # how this script calls itself: strategy, size, folder
    options = parser.parse_args()
    if options.measure is not None:
        strategy, size, folder = json.loads(options.measure)
        (Path(folder) / "result.json").write_text(json.dumps(measure(strategy, Size(**size), Path(folder))))
        return

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine
    from skillbasis.select import STRATEGIES

    size = QUICK if options.quick else Size()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        make_rows(size, Path(folder))
        for strategy in options.only or [name for name in STRATEGIES if name not in LEFT_OUT]:
            results.append(in_process(options.threads, strategy, size, Path(folder)))
            print(
                "{strategy}: {budget:,} of {n_rows:,} rows, align {align_s:.1f} s, select {select_s:.1f} s, "
                "peak {peak_rss_mb:,.0f} MB".format(**results[-1])
            )
    record = {
        "what": "selection from arrays: seconds and peak memory of each strategy in a process of its own",
        "command": "python benchmarks/selection_speed.py" + " --quick" * options.quick,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "threads": options.threads,
        "size": asdict(size),
        "results": results,
    }
    if options.out is not None:
        write_json(options.out, record)


def make_rows(size: Size, folder: Path) -> None:
    """Writes a corpus without text, its ids and labels in an Arrow file, and what is known of its rows as arrays."""
    import pyarrow as pa

    rng, n = np.random.default_rng(0), size.n_rows
    labels = np.array([f"label {i}" for i in range(N_LABELS)])[rng.integers(N_LABELS, size=n)]
    table = pa.table({"id": [f"row-{i:07d}" for i in range(n)], "labels": [[label] for label in labels.tolist()]})
    with pa.ipc.new_file(str(folder / "corpus.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=1000)  # as the package writes its own
    arrays = {
        "values": rng.normal(size=(n, size.n_directions)),
        "nll": rng.gamma(2, 0.5, size=n),
        "alone": rng.gamma(2, 0.6, size=n),
        "tokens": rng.integers(20, 2000, size=n),
        "n_correct": rng.integers(N_ANSWERS + 1, size=n),
        "quality": rng.normal(size=n),
        "query_rows": rng.normal(size=(n, size.n_directions)).astype(np.float32),
        "order": rng.permutation(n),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def in_process(n_threads: int, strategy: str, size: Size, folder: Path) -> dict[str, Any]:
    """Measures in a fresh process, which has its number of threads from its first import on."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(n_threads))
    what = json.dumps([strategy, asdict(size), str(folder)])
    subprocess.run([sys.executable, __file__, "--measure", what], env=environment, check=True)
    return dict(json.loads((folder / "result.json").read_text()))


def measure(strategy: str, size: Size, folder: Path) -> dict[str, Any]:
    """Seconds and memory of bringing what a strategy needs into corpus order, and of choosing."""
    from skillbasis.select import Candidates, SelectionSettings, select
    from skillbasis.select.strategy import STRATEGIES

    new_peak()
    load = os.getloadavg()[0]
    corpus = open_corpus(folder)
    known = evidence(STRATEGIES[strategy].needs, corpus.ids, size, folder)
    settings = SelectionSettings(directions=((0, "+"), (1, "-"), (2, "+")), text_encoder="native")
    budget = size.budget_apart if strategy in APART else size.budget
    started = time.perf_counter()
    candidates = Candidates.of(corpus, settings=settings, **known)
    aligned = time.perf_counter()
    rows = select(candidates, strategy, budget, seed=0)
    done = time.perf_counter()
    return {
        "strategy": strategy,
        "n_rows": len(corpus),
        "budget": len(rows),
        "load_average_before": load,
        "align_s": round(aligned - started, 2),
        "select_s": round(done - aligned, 2),
        "peak_rss_mb": round(peak_rss_mb()),
    }


def open_corpus(folder: Path) -> Any:
    import datasets
    import pyarrow as pa

    from skillbasis.corpus import Corpus

    table = pa.ipc.open_file(pa.memory_map(str(folder / "corpus.arrow"))).read_all()
    return Corpus(datasets.Dataset(table, fingerprint="made"), "made", "made", "made")


def evidence(needs: tuple[str, ...], ids: list[str], size: Size, folder: Path) -> dict[str, Any]:
    """What a strategy needs, in another order than the corpus'."""
    from skillbasis.basis import Scores
    from skillbasis.evaluate.likelihood import Likelihood
    from skillbasis.select.evidence import OwnAnswers, QueryVectors, ValidationAnswers
    from skillbasis.select.reread import FIRST

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy")

    given = [ids[i] for i in array("order")]
    rng, known = np.random.default_rng(1), dict[str, Any]()

    def scores(of: list[str], values: np.ndarray) -> Any:
        norm = np.sqrt((values**2).sum(axis=1)) + 1
        return Scores(of, values, norm, norm + 1)

    if "scores" in needs or needs == ("quality",):  # `deita` compares scores
        known["scores"] = scores(given, array("values"))
    if {"likelihood", "likelihood alone"} & set(needs):
        nll = array("nll")
        known["likelihood"] = Likelihood(given, nll, 2 * nll, np.ones(len(nll), dtype=np.int64), array("alone"))
    for need, first in FIRST.items():
        if need in needs:
            nll = array("nll")
            known["reread"] = {first: Likelihood(given, nll, 2 * nll, np.ones(len(nll), dtype=np.int64))}
    if "tokens" in needs:
        known["tokens"] = dict(zip(given, array("tokens").tolist(), strict=True))
        known["reference"] = ids[:: max(1, len(ids) // size.budget)]
    if "own answers" in needs:
        n_correct = array("n_correct")
        answers = [["an answer"] * min(int(n), 1) for n in n_correct]
        known["own_answers"] = OwnAnswers(given, np.full(len(given), N_ANSWERS), n_correct, answers)
    if "validation" in needs:
        values = rng.normal(size=(N_VALIDATION, size.n_directions))
        groups: list[str | None] = [f"label {i % N_LABELS}" for i in range(N_VALIDATION)]
        names = [f"answer {i}" for i in range(N_VALIDATION)]
        known["validation"] = ValidationAnswers(rng.random(N_VALIDATION) < 0.5, groups, scores(names, values))
    if "quality" in needs:
        known["quality"] = dict(zip(given, array("quality").tolist(), strict=True))
    if "query" in needs:
        query = rng.normal(size=(N_VALIDATION, size.n_directions)).astype(np.float32)
        known["query"] = QueryVectors(given, array("query_rows"), query)
    return known


if __name__ == "__main__":
    main()
