"""How long the command line takes to answer, as a process of its own.

python benchmarks/start_up.py --out docs/results/start-up.json
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from skillbasis.artifact import write_json
from skillbasis.engine import machine

RUNS = 20
COMMAND = [str(Path(sys.executable).parent / "skillbasis"), "--help"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    options = parser.parse_args()
    runs = [seconds() for _ in range(RUNS + 1)][1:]  # the first fills the cache of files
    record = {
        "what": "skillbasis --help, seconds from start to end of the process",
        "command": "python benchmarks/start_up.py",
        "machine": machine(),
        "versions": {"python": platform.python_version(), "typer": version("typer"), "rich": version("rich")},
        "seconds": round(statistics.median(runs), 3),
        "runs": [round(run, 3) for run in runs],
    }
    print(f"skillbasis --help: {record['seconds']:.3f} s (median of {RUNS}, {min(runs):.3f} to {max(runs):.3f})")
    if options.out is not None:
        write_json(options.out, record)


def seconds() -> float:
    started = time.perf_counter()
    subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
