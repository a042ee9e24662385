"""How fast principal directions are found from disk, against scikit-learn, and how time and memory grow with the rows.

    python benchmarks/pca.py --out docs/results/pca-speed.json     # half an hour on an idle machine, 13 GB of disk
    python benchmarks/pca.py --quick                               # half a minute; checks that it runs

The activations are planted as those of large models are: variances by a power law, a few features that vary hundreds
of times more than the others, and a mean far from zero. They lie on disk as skillbasis stores them. Every run is a
process of its own with two threads. It reads the rows itself, and reading counts, also the checksums on our side; its
memory is the peak of what is resident, mapped files included, less what it was after the imports. Each result is held
against the exact directions, from the matrix of inner products of all rows in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SHARD_ROWS = 625  # 82 MB at 32,768 features
BLOCKS = 8
RANK = 256


@dataclass(frozen=True)
class Size:
    """How much is decomposed."""

    n_features: int = 32_768
    rows: tuple[int, ...] = (12_500, 25_000, 50_000, 100_000)
    """The first is compared with scikit-learn; all show how time and memory grow."""
    k: int = 10
    repeats: int = 3
    """Of each run that is compared, but IncrementalPCA's, which takes minutes and runs once."""
    growth_repeats: int = 2
    threads: int = 2


QUICK = Size(n_features=4096, rows=(1250, 2500, 5000), repeats=1, growth_repeats=1)
METHODS = ("fit_pca", "PCA", "IncrementalPCA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a few rows, once")
    parser.add_argument("--repeats", type=int, help="of the fast runs")
    parser.add_argument("--threads", type=int, help="of every run")
    parser.add_argument("--folder", type=Path, help="where the activations are put; they are removed at the end")
    parser.add_argument("--run", nargs=4, metavar=("METHOD", "STORE", "ROWS", "K"), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # with --run: how this script calls itself
    options = parser.parse_args()
    if options.run is not None:
        method, store, rows, k = options.run
        options.result.write_text(json.dumps(run_here(method, Path(store), int(rows), int(k), options.result)))
        return

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine

    changes = {name: value for name in ("repeats", "threads") if (value := getattr(options, name)) is not None}
    size = Size(**asdict(QUICK if options.quick else Size()) | changes)
    record: dict[str, Any] = {
        "what": "principal directions from disk: seconds are medians, each run in a process of its own",
        "command": "python benchmarks/pca.py" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": versions(),
        "load_average_before": os.getloadavg()[0],
        "size": asdict(size),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        needed = 4 * size.n_features * size.rows[-1]
        if shutil.disk_usage(folder).free < 1.1 * needed:
            sys.exit(f"{folder} has no room for {needed / 1e9:.0f} GB of activations; give another --folder")
        store = Path(folder) / "activations"
        plant(store, size.rows[-1], size.n_features)
        record |= {"compared": compare(store, size), "growth": list(growth(store, size))}
    if options.out is not None:
        write_json(options.out, record)
    print_tables(record)


def plant(path: Path, n_rows: int, n_features: int) -> None:
    """Writes activations as an extraction would have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from skillbasis.artifact import building, checksum, write_tensors

    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((n_features, RANK)))[0].T.astype(np.float32)
    deviations = np.sqrt(n_features * 0.1 * np.arange(1, RANK + 1) ** -1.25).astype(np.float32)
    mean = rng.standard_normal(n_features, dtype=np.float32) * 5
    outliers = rng.choice(n_features, 4, replace=False)
    mean[outliers] *= 200
    same = dict.fromkeys(("model", "model_type", "weights_fingerprint", "tokenizer_fingerprint", "corpus"), "planted")
    manifest: dict[str, Any] = same | {
        "template_fingerprint": None,
        "hidden_size": n_features // BLOCKS,
        "n_blocks": BLOCKS + 2,
        "block_ids": list(range(1, BLOCKS + 1)),
        "pooling": "mean",
        "span": "all",
        "max_length": 8000,
        "dtype": "float32",
        "corpus_fingerprint": "planted",
        "rows": n_rows,
        "shards": [],
    }
    with building(path, "activations", {"rows": n_rows, "features": n_features}, manifest) as work:
        for start in range(0, n_rows, SHARD_ROWS):
            scores = rng.standard_normal((SHARD_ROWS, RANK), dtype=np.float32) * deviations
            part = scores @ directions
            part += rng.standard_normal(part.shape, dtype=np.float32)
            part[:, outliers] += rng.standard_normal((SHARD_ROWS, 4), dtype=np.float32) * [400, 300, 200, 100]
            part += mean
            file = work / f"shard-{start // SHARD_ROWS:05d}.safetensors"
            write_tensors(file, {"activations": part.reshape(SHARD_ROWS, BLOCKS, -1)})
            shard = {"file": file.name, "corpus_rows": [start, start + SHARD_ROWS], "rows": SHARD_ROWS}
            manifest["shards"].append(shard | {"bytes": file.stat().st_size, "checksum": checksum(file)})
        pq.write_table(pa.table({"id": [str(i) for i in range(n_rows)]}), work / "rows.parquet")
        manifest["rows_checksum"] = checksum(work / "rows.parquet")


def first_rows(path: Path, n_rows: int) -> Any:
    """The store of the first `n_rows` rows, a whole number of shards."""
    from skillbasis.activations import ActivationStore

    whole = ActivationStore.open(path)
    shards = whole.manifest["shards"][: n_rows // SHARD_ROWS]
    return ActivationStore(path, whole.manifest | {"rows": n_rows, "shards": shards})


def compare(store: Path, size: Size) -> dict[str, Any]:
    """The same rows through fit_pca and scikit-learn, in turns, so that a change of the machine's speed meets all."""
    n_rows, runs = size.rows[0], {name: [] for name in METHODS}
    exact = exact_directions(store, n_rows, size.k)
    for i in range(size.repeats):
        for name in METHODS:
            if i == 0 or name != "IncrementalPCA":
                runs[name].append(in_process(name, store, n_rows, size, exact))
    found = {name: summary(of_method) for name, of_method in runs.items()}
    seconds = {name: entry["seconds"] for name, entry in found.items()}
    return {
        "rows": n_rows,
        "runs": found,
        "ratios": {f"{name} / fit_pca": seconds[name] / seconds["fit_pca"] for name in METHODS[1:]},
    }


def growth(store: Path, size: Size) -> Iterator[dict[str, Any]]:
    """fit_pca on more and more rows."""
    for n_rows in size.rows:
        runs = [in_process("fit_pca", store, n_rows, size) for _ in range(size.growth_repeats)]
        entry = {"rows": n_rows} | summary(runs)
        yield entry | {"microseconds_per_row_and_pass": 1e6 * entry["seconds"] / n_rows / entry["passes"]}


def in_process(method: str, store: Path, n_rows: int, size: Size, exact: np.ndarray | None = None) -> dict[str, Any]:
    """Runs a method in a fresh process, which has its number of threads from its first import on."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(size.threads))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--run", method, str(store), str(n_rows), str(size.k)]
        subprocess.run([*command, "--result", str(result)], env=environment, check=True)
        found = dict(json.loads(result.read_text()))
        if exact is not None:
            found["angle_degrees"] = largest_angle(exact, np.load(result.with_suffix(".npy")))
    return found


def run_here(method: str, store: Path, n_rows: int, k: int, result: Path) -> dict[str, Any]:
    """One method in this process. Returns: seconds, and memory over the imports; its directions go into a file."""
    from sklearn.decomposition import PCA, IncrementalPCA

    from skillbasis.activations import ActivationStore
    from skillbasis.basis import PcaSettings, fit_pca

    source: ActivationStore = first_rows(store, n_rows)
    report: dict[str, Any] = {}

    def ours() -> np.ndarray:
        basis = fit_pca(source, PcaSettings(k=k, method="krylov"))
        report.update({key: basis.config[key] for key in ("passes", "angle_estimated_by")})
        return basis.directions.reshape(k, -1)

    def whole() -> np.ndarray:
        x = np.empty((n_rows, source.n_features), dtype=np.float32)
        start = 0
        for part in plain_shards(source):
            x[start : start + len(part)] = part
            start += len(part)
        return PCA(k, random_state=0).fit(x).components_

    def incremental() -> np.ndarray:
        model = IncrementalPCA(k)
        for part in plain_shards(source):
            model.partial_fit(part)
        return model.components_

    works: dict[str, Callable[[], np.ndarray]] = {"fit_pca": ours, "PCA": whole, "IncrementalPCA": incremental}
    before, started = restart_peak(), time.perf_counter()
    directions = works[method]()
    seconds = time.perf_counter() - started
    np.save(result.with_suffix(".npy"), directions)
    return {"seconds": seconds, "memory_mb": (peak_rss() - before) / 1e6} | report


def plain_shards(store: Any) -> Iterator[np.ndarray]:
    """The shards as any reader of safetensors would map them, without our checksums."""
    from safetensors import safe_open

    for shard in store.manifest["shards"]:
        with safe_open(store.path / shard["file"], framework="numpy") as file:
            yield file.get_tensor("activations").reshape(-1, store.n_features)


def exact_directions(path: Path, n_rows: int, k: int) -> np.ndarray:
    """Orthonormal rows (k, d): the top eigenvectors, from the inner products of all rows in float64."""
    from scipy.sparse.linalg import eigsh

    x = np.concatenate(list(first_rows(path, n_rows).shards()))
    x_mean = x.mean(axis=0, dtype=np.float64)
    gram = np.zeros((n_rows, n_rows))
    for start in range(0, x.shape[1], 1024):  # bounds the float64 copy
        centred = x[:, start : start + 1024] - x_mean[start : start + 1024]
        gram += centred @ centred.T
    values, vectors = eigsh(gram, k=k, v0=np.ones(n_rows))
    products = [(x[:, i : i + 1024] - x_mean[i : i + 1024]).T @ vectors for i in range(0, x.shape[1], 1024)]
    return (np.concatenate(products) / np.sqrt(values)).T  # type: ignore[no-any-return]


def largest_angle(exact: np.ndarray, found: np.ndarray) -> float:
    """Largest principal angle in degrees between orthonormal rows (k, d) and any rows (k, d)."""
    basis = np.linalg.qr(found.T.astype(np.float64))[0].T
    sine = np.linalg.norm(exact - exact @ basis.T @ basis, ord=2)
    return float(np.degrees(np.arcsin(min(1.0, sine))))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds, all seconds, most memory, and what else the first run said."""
    seconds = [run["seconds"] for run in runs]
    entry = {"seconds": round(statistics.median(seconds), 3), "runs": [round(s, 3) for s in seconds]}
    return runs[0] | entry | {"memory_mb": round(max(run["memory_mb"] for run in runs))}


def restart_peak() -> int:
    """Starts the peak of resident memory anew where the system can (Linux). Returns: the peak, in bytes."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak becomes what is resident now
    return peak_rss()


def peak_rss() -> int:
    """Largest resident memory of this process, in bytes.

    On Linux not from `getrusage`, whose peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("skillbasis", "numpy", "scipy", "scikit-learn", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def print_tables(record: dict[str, Any]) -> None:
    """Both comparisons, a line per run."""
    compared, size = record["compared"], record["size"]
    print(f"{record['machine']['cpu']}, {record['machine']['cores']} cores; {size['threads']} threads")
    print(f"\n{compared['rows']:,} rows x {size['n_features']:,} features, k = {size['k']}")
    for name, run in compared["runs"].items():
        print(f"{name:16}{run['seconds']:>9.2f} s{run['memory_mb']:>9,} MB{run['angle_degrees']:>10.4f} degrees")
    for name, ratio in compared["ratios"].items():
        print(f"{name:26}{ratio:>8.1f}")
    print(f"\n{'rows':>8}{'seconds':>10}{'passes':>8}{'us/row/pass':>13}{'MB':>7}")
    for run in record["growth"]:
        rate = run["microseconds_per_row_and_pass"]
        print(f"{run['rows']:>8,}{run['seconds']:>10.2f}{run['passes']:>8}{rate:>13.1f}{run['memory_mb']:>7,}")


if __name__ == "__main__":
    main()
