"""The table of benchmarks/README.md, from the committed result files.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Line:
    """One measurement against its aim."""

    what: str
    against: str
    aim: float
    measured: float
    file: str
    unit: str = "x"
    """`x` is a ratio of speeds, where more is better; of any other unit less is."""

    @property
    def reached(self) -> bool:
        return self.measured >= self.aim if self.unit == "x" else self.measured <= self.aim

    def __str__(self) -> str:
        sign = ">=" if self.unit == "x" else "<="
        unit = "" if self.unit in ("x", "share") else f" {self.unit}"
        verdict = "yes" if self.reached else "**no**"
        cells = (f"{sign} {self.aim:g}{unit}", f"{self.measured:.3g}{unit}", verdict)
        return f"| {self.what} | {self.against} | {' | '.join(cells)} | `{self.file}.json` |"


def lines() -> Iterator[Line]:
    """All measurements that have an aim."""
    yield from of_extraction()
    yield from of_pca()
    for result in read("farthest-points")["results"]:
        if result["plain"]:
            threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
            what = f"farthest points, 2,000 of 200,000 x 25, {result['points']}, {threads}"
            yield Line(what, "plain NumPy loop, same points", 3, result["ratio"], "farthest-points")
    yield from of_selecting()
    yield from of_steering()
    yield from of_evaluating()
    yield Line("`skillbasis --help`", "", 0.5, read("start-up")["seconds"], "start-up", "s")


def of_extraction() -> Iterator[Line]:
    names = {
        "llama44m": "extraction, Llama of 44M, rows of 20-1,500 tokens",
        "embedded": "extraction, embedded reasoner",
    }
    for name, workload in read("extraction")["workloads"].items():
        ratios, what = workload["tokens_per_second_of_ours_over"], names[name]
        scripts = "the reference scripts' way"
        yield Line(what, scripts, 1.9 if name == "llama44m" else 8, ratios["reference scripts"], "extraction")
        if name == "llama44m":
            share = workload["peak_memory_of_ours_over_reference_scripts"]
            yield Line(f"{what}: peak memory", scripts, 0.45, share, "extraction", "share")
        yield Line(what, "bare forward pass, its best batch size", 0.95, ratios["bare forward"], "extraction")
        for peer in ("steering-vectors", "repeng"):
            best = min(ratio for label, ratio in ratios.items() if label.startswith(peer))
            yield Line(what, f"{peer}, its best batch size and order", 2, best, "extraction")


def of_pca() -> Iterator[Line]:
    record = read("pca-speed")
    compared, growth = record["compared"], record["growth"]
    what = f"PCA, {compared['rows']:,} x {record['size']['n_features']:,} from disk, k = {record['size']['k']}"
    for peer, aim in (("PCA", 5), ("IncrementalPCA", 50)):
        yield Line(what, f"scikit-learn `{peer}`", aim, compared["ratios"][f"{peer} / fit_pca"], "pca-speed")
    ours = compared["runs"]["fit_pca"]
    yield Line(f"{what}: angle", "the exact subspace", 0.1, ours["angle_degrees"], "pca-speed", "degrees")
    yield Line(f"{what}: peak memory", "over the imports", 0.5, ours["memory_mb"] / 1000, "pca-speed", "GB")
    first, last = growth[0], growth[-1]
    grown = f"PCA, {first['rows']:,} -> {last['rows']:,} rows"
    pace = last["microseconds_per_row_and_pass"] / first["microseconds_per_row_and_pass"]
    yield Line(f"{grown}: time per row and pass", "itself", 1.25, pace, "pca-speed", "share")
    yield Line(f"{grown}: memory", "itself", 1.1, last["memory_mb"] / first["memory_mb"], "pca-speed", "share")


def of_selecting() -> Iterator[Line]:
    record = read("selection-speed")
    size, whole = record["size"], [r for r in record["results"] if r["budget"] == record["size"]["budget"]]
    what = f"{size['budget']:,} of {size['n_rows']:,} rows x {size['n_directions']} directions"
    slowest = max(whole, key=lambda result: result["align_s"] + result["select_s"])
    seconds = slowest["align_s"] + slowest["select_s"]
    yield Line(
        f"{what}, slowest of {len(whole)} strategies (`{slowest['strategy']}`)", "", 60, seconds, "selection-speed", "s"
    )
    most = max(record["results"], key=lambda result: result["peak_rss_mb"])
    memory = most["peak_rss_mb"] / 1000
    yield Line(f"the same: peak memory, most of all (`{most['strategy']}`)", "", 4, memory, "selection-speed", "GB")


def of_steering() -> Iterator[Line]:
    names = {"llama44m": "Llama of 44M", "embedded": "embedded reasoner"}
    for name, workload in read("steering-speed")["workloads"].items():
        for batch, measured in workload["batches"].items():
            what = f"generation with hooks, {names[name]}, batch {batch}: time"
            ours = measured["results"]["skillbasis, all tokens"]
            yield Line(what, "unsteered", 1.03, ours["over_unsteered"]["ratio"], "steering-speed", "share")
            for peer in ("steering-vectors", "repeng"):
                if f"{peer}, all tokens" in measured["results"]:
                    share = measured["results"][f"{peer}, all tokens"]["ours_over_this"]["ratio"]
                    yield Line(what, peer, 1.03, share, "steering-speed", "share")
    baked = read("bake")
    speed = baked["generate"]["speed_ratio"]["mean"]
    yield Line("generation of a baked checkpoint", "unsteered", 0.97, speed, "bake")


def of_evaluating() -> Iterator[Line]:
    for n, batches in read("answering-speed")["threads"].items():
        for batch, found in batches.items():
            what = f"16 answers to each problem, {n} thread{'s' * (n != '1')}, batch {batch}"
            yield Line(what, "`model.generate`, prompts repeated", 3, found["ratio"], "answering-speed")
    by_file: dict[str, list[Any]] = {}
    for row in read("grading")["results"]:
        by_file.setdefault(row["file"], []).append(row)
    slowest = min(
        row["ours"]["responses_per_second"] / row["plain"]["responses_per_second"]
        for rows in by_file.values()
        for row in rows
    )
    yield Line("grading, the benchmark with the least gain", "plain Math-Verify", 1, slowest, "grading")
    for file, rows in by_file.items():
        plain, ours = (
            sum(row[grader][kind] for row in rows for kind in ("right_but_labelled_wrong", "wrong_but_labelled_right"))
            for grader in ("plain", "ours")
        )
        yield Line(f"grades other than their labels, `{file}`", "plain Math-Verify", plain, ours, "grading", "rows")


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    head = "| what | against | aim | measured | reached | file |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(map(str, lines())) + "\n"


if __name__ == "__main__":
    print(table(), end="")
