"""Farthest point sampling as the package does it against the plain NumPy loop, which must choose the same points.

    python benchmarks/farthest_points.py --out docs/results/farthest-points.json     # about five minutes, idle machine
    python benchmarks/farthest_points.py --quick                                     # seconds; checks that it runs
    python benchmarks/farthest_points.py --large                                     # 10,000 of 1,000,000 x 32 as well

Each number of threads and each kind of points has a process of its own. Memory is the peak above what the process held
with the points made (measured on Linux only, which can start a peak anew).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
KINDS = ("normal", "clustered", "heavy-tailed")


@dataclass(frozen=True)
class Size:
    """How many points of how many features, and how many are chosen."""

    n_points: int = 200_000
    n_features: int = 25
    n: int = 2000
    repeats: int = 3
    """Of ours; the plain loop runs once, for it takes long enough."""
    plain: bool = True


QUICK = Size(n_points=5000, n=200, repeats=1)
LARGE = Size(n_points=1_000_000, n_features=32, n=10_000, repeats=1, plain=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a few points, once")
    parser.add_argument("--large", action="store_true", help="10,000 of 1,000,000 x 32 as well, without the plain loop")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # how this script calls itself: kind, size, file
    options = parser.parse_args()
    if options.measure is not None:
        kind, size, file = json.loads(options.measure)
        Path(file).write_text(json.dumps(measure(kind, Size(**size))))
        return

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine

    size = QUICK if options.quick else Size()
    wanted = [(n, kind, size) for kind in KINDS for n in options.threads]
    wanted += [(max(options.threads), "normal", LARGE)] if options.large else []
    results = []
    for n_threads, kind, this in wanted:
        results.append({"threads": n_threads, "points": kind, **asdict(this), **in_process(n_threads, kind, this)})
        print_result(results[-1])
    record = {
        "what": "farthest point sampling: the plain loop against ours in one process, the same points chosen",
        "command": "python benchmarks/farthest_points.py"
        + "".join(f" --{name}" for name in ("quick", "large") if getattr(options, name)),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "results": results,
    }
    if options.out is not None:
        write_json(options.out, record)


def in_process(n_threads: int, kind: str, size: Size) -> dict[str, Any]:
    """Measures in a fresh process, which has its number of threads from its first import on."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(n_threads))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        what = json.dumps([kind, asdict(size), str(result)])
        subprocess.run([sys.executable, __file__, "--measure", what], env=environment, check=True)
        return dict(json.loads(result.read_text()))


def measure(kind: str, size: Size) -> dict[str, Any]:
    """Seconds and memory of both ways in this process; stops where they do not choose the same points."""
    from skillbasis.select.coverage import farthest_points

    load = os.getloadavg()[0]
    points = make_points(kind, size)
    farthest_points(points[:100], 10)  # what is imported or started at first use
    before, runs = new_peak(), []
    for _ in range(size.repeats):
        started = time.perf_counter()
        found = farthest_points(points, size.n)
        runs.append(time.perf_counter() - started)
    seconds = statistics.median(runs)
    result = {
        "load_average_before": load,
        "points_mb": round(points.nbytes / 1e6),
        "seconds": round(seconds, 3),
        "runs": [round(s, 3) for s in runs],
        "peak_rss_above_points_mb": above(before),
        "distance_of_last": float(found.distances[-1]),
    }
    if size.plain:
        new_peak()
        started = time.perf_counter()
        chosen, distances = plain_loop(points, size.n)
        plain = time.perf_counter() - started
        if not (np.array_equal(chosen, found.indices) and np.array_equal(distances, found.distances)):
            raise SystemExit(f"the plain loop chose other points ({kind}); the ratio means nothing")
        result |= {"plain_seconds": round(plain, 3), "ratio": round(plain / seconds, 2), "same_points": True}
        result["plain_peak_rss_above_points_mb"] = above(before)
    return result


def make_points(kind: str, size: Size) -> np.ndarray:
    """(n_points, n_features) float64 of a fixed seed: a normal cloud, 50 clusters, or Student's t with 3 degrees."""
    rng, shape = np.random.default_rng(0), (size.n_points, size.n_features)
    if kind == "heavy-tailed":
        return rng.standard_t(3, size=shape)
    points = rng.normal(size=shape)
    if kind == "clustered":
        points += 5 * rng.normal(size=(50, size.n_features))[rng.integers(50, size=size.n_points)]
    return points


def plain_loop(points: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition: one pass over all points per choice. Returns: indices and distances."""
    chosen, distances = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())], [np.inf]
    squared = np.full(len(points), np.inf)
    while len(chosen) < n:
        squared = np.minimum(squared, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(squared.argmax()))
        distances.append(float(np.sqrt(squared[chosen[-1]])))
    return np.array(chosen), np.array(distances)


def new_peak() -> float | None:
    """Starts the peak of resident memory anew. Returns: what is resident now, in MB; None where it cannot be done."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")  # Linux: the peak becomes what is resident now
    return peak_rss_mb()


def above(before: float | None) -> int | None:
    return None if before is None else round(peak_rss_mb() - before)


def peak_rss_mb() -> float:
    """Largest resident memory of this process since its peak was started, in 10^6 bytes (Linux).

    Not `getrusage`, whose peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def print_result(result: dict[str, Any]) -> None:
    against = f", plain loop {result['plain_seconds']:.1f} s: {result['ratio']:.1f} x" if result["plain"] else ""
    print(
        f"{result['n']:,} of {result['n_points']:,} x {result['n_features']} {result['points']}, "
        f"{result['threads']} thread{'s' * (result['threads'] != 1)}: {result['seconds']:.2f} s{against}; "
        f"{result['peak_rss_above_points_mb']} MB above the points' {result['points_mb']}"
    )


if __name__ == "__main__":
    main()
