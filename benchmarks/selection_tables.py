"""The page docs/selection-results.md, from the committed result files of benchmarks/selection_study.py.

python benchmarks/selection_tables.py > docs/selection-results.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "selection"
BASES = {
    "shipped": "the shipped reasoner and its pool",
    "seed-1": "a reasoner of pretraining seed 1 and its pool",
    "seed-2": "a reasoner of pretraining seed 2 and its pool",
    "hard-1": "seed 1, hard pool: right and wrong rows are a model's own samples, of equal lengths",
    "hard-2": "seed 2, hard pool",
    "null": "the null world: no row of the pool helps",
}
NULL = "null"
"""The base on which nothing is to win."""
AIM_RELATIVE = 0.5
"""Gain of `native` over random selection that is aimed at, as a share of it."""
MET = ("the best human-skill arm", "low-nll", "rft")
"""Arms that `native` is to beat with a 95 % interval over seeds above zero."""
HEAD = """# Does selecting along directions pay?

Results of `recipes/embedded-study.yaml` on the base models below: arms x 8 seeds, paired by seed, 400 test problems x 4
answers. Directions and the way of selecting (`native`) are chosen by the recipe on validation problems, with seeds that
the study does not use. Arms have equally many rows, not tokens (the second column): rows that are worked out are
longer, and `length` says what length alone is worth. All figures are pass@1 in percent or percentage points with 95 %
t-intervals over seeds. This page is made by `python benchmarks/selection_tables.py` from `docs/results/selection`; each
table names the command that remade its file."""


def main() -> None:
    print(page(), end="")


def page() -> str:
    """The whole page as Markdown."""
    studies = [(name, record) for name in BASES for record in read(name)]
    lines = [HEAD, "", "## Against the aims", "", *aims([study for study in studies if study[0] != NULL])]
    lines += [line for name, record in studies if name == NULL for line in ("", winners(record["study"]))]
    for name, record in studies:
        lines += ["", *section(name, record)]
    return "\n".join(lines) + "\n"


def read(name: str) -> list[dict[str, Any]]:
    """The results of a base, smallest budget first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"{name}-[0-9]*.json")]
    own = [record for record in records if record["command"].split(" --")[1].split()[1] == name]
    return sorted(own, key=lambda record: int(record["study"]["budget"]))


def aims(studies: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """What `native` was on each base, and whether it did what is aimed at."""
    yield f"Aimed at: `native` gains {AIM_RELATIVE:.0%} on random selection, and the 95 % intervals of its differences"
    yield f"to {', '.join(MET[:-1])} and {MET[-1]} are above zero."
    yield ""
    yield "| base | rows | `native` is | to random, % | to best human | to low-nll | to rft | all met |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"
    for name, record in studies:
        study = record["study"]
        found = {row["b"]: row for row in differences(study) if row["a"] == "native"}
        met = [found[arm] for arm in (study["best_human"], "low-nll", "rft")]
        relative = found["random"]["relative"]["mean"]
        whole = relative >= AIM_RELATIVE and all(row["low"] is not None and row["low"] > 0 for row in met)
        chosen = f"`{record['contest']['chosen']['name']}`"
        cells = [name, f"{study['budget']:,}", chosen, f"{100 * relative:+.0f}", *map(points, met)]
        yield f"| {' | '.join(cells)} | {'yes' if whole else '**no**'} |"


def winners(study: dict[str, Any]) -> str:
    """Which arms are better than random selection where none should be."""
    found = [row["a"] for row in differences(study) if row["b"] == "random" and row["verdict"] == "better"]
    named = f"**{', '.join(found)}** came out as" if found else "none of the arms is"
    return f"In the null world, where nothing is to win: at {study['budget']:,} rows {named} better than random."


def differences(study: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in study["paired"] if row["metric"] == "pass@1"]


def section(name: str, record: dict[str, Any]) -> Iterator[str]:
    """One base at one budget: every arm."""
    study = record["study"]
    yield f"## {name}: {study['budget']:,} rows"
    yield ""
    yield f"On {BASES[name]}. {record['contest']['sentence']}"
    yield f"Made by `{record['command']}` on {record['machine']['cpu']}."
    yield ""
    human = study["best_human"]
    controls = ("random", human, "low-nll", "low-nll+reread", "rft")
    yield f"| arm | tokens | pass@1 | to {' | to '.join(controls)} | verdict | s |"
    yield "| --- " + "| ---: " * (2 + len(controls)) + "| --- | ---: |"
    rows = {(row["a"], row["b"]): row for row in differences(study)}
    arms = sorted(study["arms"].items(), key=lambda item: -((item[1].get("pass@1") or {}).get("mean") or -1))
    for arm, figures in arms:
        if figures["status"] == "failed":
            yield f"| {arm} | – | hole: {figures['reason']} {'| ' * (len(controls) + 2)}|"
            continue
        mean = figures["pass@1"]
        cells = [arm, f"{figures['training_tokens']:,.0f}", interval(mean["mean"], mean["low"], mean["high"])]
        cells += [points(rows.get((arm, control))) for control in controls]
        verdict = (rows.get((arm, "random")) or {}).get("verdict") or "–"
        yield f"| {' | '.join(cells)} | {verdict} | {figures['cost_seconds']:,.0f} |"


def points(row: dict[str, Any] | None) -> str:
    """A difference in points."""
    return "–" if row is None or row["mean"] is None else interval(row["mean"], row["low"], row["high"], signed=True)


def interval(mean: float, low: float | None, high: float | None, *, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    ends = "–" if low is None or high is None else f"{100 * low:{form}}, {100 * high:{form}}"
    return f"{100 * mean:{form}} [{ends}]"


if __name__ == "__main__":
    main()
