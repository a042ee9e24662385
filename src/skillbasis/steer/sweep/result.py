"""What a sweep found: the content of `sweep.json`, in figures and in words, and its table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...evaluate.tasks import Task
from . import dose
from .dose import RANDOM, in_percent, in_points
from .measure import ACCURACY, Measurement
from .plan import Setting, SweepSettings

Records = Sequence[Mapping[str, Any]]
"""What the workers wrote, in the order of the settings: a measurement each, and norms with the unsteered model's."""
_UNITS = {
    "relative": "alpha is a fraction of the norm of the residual stream at each steered token.",
    "std": "alpha counts standard deviations of the scores along the direction.",
    "raw": "alpha counts multiples of the vector as it is.",
}


def summarise(
    records: Records, settings: Sequence[Setting], task: Task, swept: SweepSettings
) -> tuple[dict[str, Any], Setting | None]:
    """Figures per setting, usable ranges and the winner; the first record and setting are the unsteered model's."""
    base, *measured = _measurements(records)
    metric, norms = swept.chosen_by, records[0]["norms"]
    points = []
    for setting, found in zip(settings[1:], measured, strict=True):
        assert setting.vector is not None
        unusable = dose.why_unusable(found, base, metric, swept.max_broken_rise)
        point = setting.identity | {"unit": setting.vector.unit} | dose.figures(found, base)
        points.append(point | {"unusable": unusable, "added_fraction": _added(setting, norms)})
    baseline = dose.figures(base)
    best = dose.choose_winner(points, baseline, metric)
    n_tried = sum(point["kind"] != RANDOM for point in points)
    units = sorted({str(point["unit"]) for point in points})
    read = next((found.damage for found in measured if found.damage), None)
    result: dict[str, Any] = {
        "unit": units[0] if len(units) == 1 else "several",
        "task": task.name,
        "rollouts": base.rollouts,
        "n_problems": len(base.n_correct),
        "target": swept.target,
        "metric": metric,
        "largest_k": f"pass@{base.ks[-1]}",
        "n_settings": n_tried,
        "finding": "",
        "baseline": baseline,
        "perplexity_unsteered": read["perplexity_base"] if read else None,
        "residual_norms": norms,
        "points": points,
        "usable": dose.usable_ranges([point for point in points if point["kind"] != RANDOM]),
        "winner": None,
        "test": None,
        "notes": [*(_UNITS[unit] for unit in units), *_notes(swept)],
    }
    size = f"{_count(len(swept.scopes), 'scope')} x {_count(len(swept.alphas), 'strength')}"
    n_vectors = n_tried // (len(swept.scopes) * len(swept.alphas))
    tried = f"{_count(n_tried, 'setting')} ({_count(n_vectors, 'vector')} x {size})"
    if best is None:
        result["finding"] = (
            f"Of {tried} none is usable with {dose.in_words(metric)} above the unsteered model's on {task.name}, so "
            "none was chosen."
        )
        return result, None
    number = next(i for i, point in enumerate(points) if point is best)
    gain = dose.difference(measured[number], base, metric)
    chosen = f"{best['vector']} at {best['alpha']:g} ({best['scope']}) was chosen on {task.name} as the best of {tried}"
    result["winner"] = {key: best[key] for key in ("vector", "scope", "alpha")} | {"difference": gain, "how": chosen}
    result["finding"] = (
        f"{chosen}: {dose.in_words(metric)} differs from unsteered by {in_points(gain)} there. The choice among many "
        "flatters this figure; give a test task for one that it does not."
    )
    return result, settings[1 + number]


def with_test(
    records: Records, settings: Sequence[Setting], task: Task, result: Mapping[str, Any], swept: SweepSettings
) -> dict[str, Any]:
    """The test of the winner, and the finding in words.

    Args:
        records: of the unsteered model, the winner, and the random vectors, all on the test problems.
        result: what `summarise` made.
    Returns: what replaces `test` and `finding` of the result.
    """
    base, winner, *controls = _measurements(records)
    where = f"On {task.name} ({_count(len(task.problems), 'problem')}, which chose nothing)"
    test = dose.judge_test(winner, base, controls, swept.chosen_by, f"{result['winner']['how']}. {where}")
    figures = [
        setting.identity | dose.figures(found, base) for setting, found in zip(settings[2:], controls, strict=True)
    ]
    facts = {"task": task.name, "n_problems": len(task.problems), "n_controls": len(controls)}
    return {"test": facts | test | {"controls": figures}, "finding": test["sentence"]}


def markdown(result: Mapping[str, Any]) -> str:
    """The content of `sweep.json` as a Markdown page: the findings, then one table of all settings."""
    base = result["baseline"]
    metrics = list(dict.fromkeys(["pass@1", result["largest_k"]])) + ["target_rate"] * ("target_rate" in base)
    read = result["perplexity_unsteered"] is not None
    head = ["vector", "scope", "alpha", *metrics, "pass@1 against unsteered", "broken", "tokens"]
    head += ["perplexity", "KL"] * read + ["added / residual norm", "usable"]
    rows = [["unsteered", "", "", *(_shown(base[metric]) for metric in metrics), "", *_length(base)]]
    rows[0] += [_number(result["perplexity_unsteered"]), ""] * read + ["", ""]
    for point in result["points"]:
        cells = [point["vector"], point["scope"], f"{point['alpha']:g}"]
        if point.get("status") == "failed":
            cells += [f"failed: {point['reason']}"]
            cells += [""] * (len(head) - len(cells) - 2)
        else:
            damage = point.get("damage") or {}
            cells += [*(_shown(point[metric]) for metric in metrics), in_points(point["difference"]), *_length(point)]
            cells += [_number(damage.get("perplexity")), _number(damage.get("kl"))] * read
        cells += [f"{max(point['added_fraction'].values()):.2f}", "yes" if point["unusable"] is None else "no"]
        rows.append(cells)
    table = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in table]
    sections = [f"# Steering on {result['task']}", result["finding"], _listed(r["sentence"] for r in result["usable"])]
    return "\n\n".join([*sections, "\n".join(lines), _listed(result["notes"])]) + "\n"


def _added(setting: Setting, norms: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By block: the norm of what is added, as a fraction of the stream's norm there."""
    vector = setting.vector
    assert vector is not None
    scale = dict.fromkeys(map(str, vector.block_ids), 1.0) if vector.unit == "relative" else norms[setting.scope]
    sizes = zip(vector.block_ids, abs(setting.alpha) * vector.norms, strict=True)
    return {str(block): float(size) / scale[str(block)] for block, size in sizes}


def _measurements(records: Records) -> list[Measurement]:
    return [Measurement(**record["measurement"]) for record in records]


def _notes(swept: SweepSettings) -> list[str]:
    rise = f"{100 * swept.max_broken_rise:g} percentage points"
    notes = [
        "Intervals are over problems and hold for one point; the best of many points is flattered by the choice.",
        "An answer that is cut at the token limit or ends in a loop (three or more repetitions of one unit, 30 "
        "characters or more) is broken, and a broken answer is a miss, whatever the grader says.",
        f"A strength is usable where the share of broken answers is no more than {rise} above the unsteered model's "
        f"and {dose.in_words(swept.chosen_by)} is not below it by its interval.",
        "The size of what is added is told against the norm of the residual stream where the scope steers, in the "
        "model's own unsteered answers.",
    ]
    if swept.target != ACCURACY:
        notes.append(f"The target is the share of answers that match {swept.target.removeprefix('pattern:')!r}.")
    return notes


def _count(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def _length(point: Mapping[str, Any]) -> list[str]:
    return [in_percent(point["broken_fraction"]), f"{point['mean_tokens']:.0f}"]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _shown(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return in_percent(estimate["mean"])
    return f"{in_percent(estimate['mean'])} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"* {sentence}" for sentence in sentences)
