"""The tables of README.md, "What it measured", from the committed result files: between the two marks, in place.

python benchmarks/front_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selection_tables import BASES
from selection_tables import read as read_selection

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BEGIN = "<!-- made by benchmarks/front_tables.py -->"
END = "<!-- end -->"
COVERAGE = ("coverage", "random", "area")
"""Arm, control and budget of the safety study: all budgets together."""
CONTROLS = ("random", "best human", "low-nll", "low-nll+reread", "rft")


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """The page with fresh tables between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def tables() -> str:
    """Both tables as Markdown."""
    lines = [
        "| base and pool | rows | `native` is | pass@1, % | to random | to the best human-skill arm | to low NLL "
        "| to low NLL, read twice | to own right answers |",
        "|---|---|---|---|---|---|---|---|---|",
        *selection(),
        "",
        "| question | measured | 95 % interval |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in others()),
    ]
    return "\n".join(lines)


def selection() -> Iterator[str]:
    """A line per base and budget: the default way of selecting, and what it is better by."""
    for name in BASES:
        for record in read_selection(name):
            study = record["study"]
            found = {row["b"]: row for row in study["paired"] if row["a"] == "native" and row["metric"] == "pass@1"}
            arms = [study["best_human"] if arm == "best human" else arm for arm in CONTROLS]
            cells = [name, f"{study['budget']:,}", f"`{record['contest']['chosen']['name']}`"]
            cells += [
                f"{100 * study['arms']['native']['pass@1']['mean']:.1f}",
                *(points(found[arm], "<br>") for arm in arms),
            ]
            yield f"| {' | '.join(cells)} |"


def points(estimate: dict[str, Any], gap: str) -> str:
    """A difference in points with its interval; none where both arms are the same rows."""
    mean = f"{100 * estimate['mean']:+.1f}"
    return mean if estimate["low"] is None else f"{mean}{gap}{between(estimate)}"


def between(estimate: dict[str, Any]) -> str:
    return f"[{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"


def others() -> Iterator[tuple[str, str, str]]:
    """Everything else, as question, figure and interval."""
    yield from steering()
    yield from proxies()
    yield from safety()
    yield from null_world()
    yield from trust()
    yield from speed()


def steering() -> Iterator[tuple[str, str, str]]:
    bases = read("steering-study")["bases"]
    gains = [next(d for d in base["test"]["winner"]["differences"] if d["metric"] == "pass@8") for base in bases]
    yield (
        "Steering with a vector made of reward alone, at the last prompt token: pass@8 on test problems, three models",
        ", ".join(f"{100 * gain['mean']:+.1f}" for gain in gains),
        ", ".join(between(gain) for gain in gains),
    )
    demo = read("demo/steer")["test"]["winner"]["differences"]
    gain = next(d for d in demo if d["metric"] == "pass@1")
    yield (
        "Steering along the direction that pilots chose, at the last prompt token: pass@1 (the demo)",
        f"{100 * gain['mean']:+.1f}",
        between(gain),
    )


def proxies() -> Iterator[tuple[str, str, str]]:
    named = {"pilot": "pilot fine-tunes of 300 rows", "steer": "steering"}
    for name, proxy in read("proxy-quality")["proxies"].items():
        correlation = proxy["quality"]["spearman"]
        low, high = correlation["over_directions"]
        yield (
            f"Do {named[name]} rank 20 signed directions as the full budget does? Spearman"
            if name == "pilot"
            else f"Does {named[name]} (no training)?",
            f"{correlation['value']:.2f}",
            f"[{low:.2f}, {high:.2f}]",
        )


def safety() -> Iterator[tuple[str, str, str]]:
    paired = read("safety/embedded")["safety"]["paired"]
    rows = {row["measure"]: row for row in paired if (row["arm"], row["control"], row["budget"]) == COVERAGE}
    success, over = rows["attack_success"], rows["over_refusal"]
    yield (
        "Safety data by coverage instead of at random: attack success (lower is better)",
        f"{100 * success['mean']:+.1f} (worse; {success['verdict']} over attacks)",
        f"{between(success)} over seeds, {between(success['problems'])} over attacks",
    )
    yield "the same: harmless look-alikes refused", f"{100 * over['mean']:+.1f}", between(over)


def null_world() -> Iterator[tuple[str, str, str]]:
    arms = [arm for arm in read("null-world")["arms"] if arm.get("difference_to_random")]
    means = [100 * arm["difference_to_random"]["mean"] for arm in arms]
    held = sum(arm["difference_to_random"]["holds"] for arm in arms)
    yield (
        f"Where no row helps, does one of {len(arms)} arms win?",
        f"{'no' if held == 0 else held}: {min(means):+.1f} to {max(means):+.1f}",
        "none excludes 0 after Holm's correction" if held == 0 else f"{held} exclude 0",
    )


def trust() -> Iterator[tuple[str, str, str]]:
    coverage = read("coverage")
    held = [100 * row["coverage"] for row in coverage["intervals"] if not row["note"]]
    limits = sum(row["note"] == "limit" for row in coverage["intervals"])
    yield (
        f"What nominal 95 % intervals cover, 20,000 simulated benchmarks each, {limits} marked limits aside",
        f"{min(held):.1f} to {max(held):.1f} %",
        "",
    )
    rows = read("grading")["results"]
    n = sum(row["responses"] for row in rows)
    agreed = {
        (grader, figure): f"{sum(100 * row[grader][figure] * row['responses'] for row in rows) / n:.2f}"
        for grader in ("ours", "plain")
        for figure in ("agreement", "agreement_corrected")
    }
    yield (
        f"Grades against the labels of {n:,} responses: ours, plain Math-Verify (wrong labels corrected; not blind)",
        f"{agreed['ours', 'agreement']}, {agreed['plain', 'agreement']} % "
        f"({agreed['ours', 'agreement_corrected']}, {agreed['plain', 'agreement_corrected']} %)",
        "",
    )


def speed() -> Iterator[tuple[str, str, str]]:
    threads = read("answering-speed")["threads"]
    ratios = " and ".join(f"{threads[n]['256']['ratio']:.1f}" for n in ("1", "2"))
    yield "Sixteen answers to each problem, times as fast as `model.generate`, on one and two threads", ratios, ""
    extraction = read("extraction")["workloads"]["llama44m"]
    yield (
        "Extraction of a 44M Llama, times as fast as the reference scripts' way (share of its memory)",
        f"{extraction['tokens_per_second_of_ours_over']['reference scripts']:.2f} "
        f"({extraction['peak_memory_of_ours_over_reference_scripts']:.2f})",
        "",
    )
    ratio = read("pca-speed")["compared"]["ratios"]["PCA / fit_pca"]
    yield "Principal directions from disk, 12,500 x 32,768, times as fast as scikit-learn's", f"{ratio:.1f}", ""


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
