"""The arms of a study on one task: means over seeds, paired differences to the controls, and a verdict in words.

Pure: graded tables in, JSON-able figures out. A claim about an arm needs four things: its interval over seeds excludes
zero, so does the one over problems, on the same side, and p stays below .05 after Holm's correction over the arms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics
from .evaluate.results import TaskResult

BASE = "base"
RANDOM = "random"
HUMAN = ("human-balanced", "human-weakness", "s1-like")
"""Arms that choose by what people say of the rows; the best of them in a study is one control."""
BEST_HUMAN = "best-human"
"""The role of that arm in the paired differences."""
METRIC = "pass@1"
LEVEL = 0.05

Runs = Mapping[str, Mapping[int, TaskResult]]
"""Arm -> seed -> graded answers to one task; what failed is not there."""


def arm_figures(outcomes: Sequence[TaskResult]) -> dict[str, Any]:
    """Means of one arm over its finished seeds, with intervals over seeds and, under `problems`, over problems.

    Args:
        outcomes: one table per seed, of the same problems; at least one.
    Returns: `pass@k` for every k (with `seeds`, the mean of each), mean_tokens and truncated_fraction of the answers.
    """
    figures: dict[str, Any] = {}
    clusters = outcomes[0].cluster_labels
    for k in outcomes[0].ks:
        values = np.stack([outcome.pass_at_k(k) for outcome in outcomes])  # (seeds, problems)
        n_samples = outcomes[0].correct.shape[1] if k == 1 else None  # pass@k above 1 is no share of samples
        estimate = statistics.aggregate_over_seeds(values, n_samples)
        problems = statistics.rate_estimate(values.mean(axis=0), clusters)
        estimate = dataclasses.replace(estimate, problems=problems)
        if estimate.interval == "problems":
            estimate = dataclasses.replace(estimate, low=problems.low, high=problems.high, se=problems.se)
        figures[f"pass@{k}"] = statistics.as_json(estimate) | {"seeds": list(estimate.seed_means)}
    figures["mean_tokens"] = float(np.mean([outcome.n_tokens.mean() for outcome in outcomes]))
    figures["truncated_fraction"] = float(np.mean([outcome.truncated.mean() for outcome in outcomes]))
    return figures


def best_human(runs: Runs) -> str | None:
    """The human-skill arm with the highest mean pass@1, of those with the most finished seeds; None without any.

    It is picked on the very problems it is then compared on, which flatters it: differences in favour of another arm
    are rather too small for it.
    """
    found = [arm for arm in HUMAN if runs.get(arm)]
    return max(found, key=lambda arm: (len(runs[arm]), _mean(runs[arm])), default=None)


def _mean(seeds: Mapping[int, TaskResult]) -> float:
    return float(np.mean([outcome.pass_at_k(1).mean() for outcome in seeds.values()]))


def controls_of(runs: Runs) -> dict[str, str]:
    """What the others are compared with, as role -> arm: chance, the best human-skill arm, likelihood (once, and read
    again by what it selects first), own answers.

    An arm that is not in the study, or failed at every seed, is left out.
    """
    named = (RANDOM, "low-nll", "low-nll+reread", "rft")
    roles = {RANDOM: RANDOM, BEST_HUMAN: best_human(runs)} | {name: name for name in named[1:]}
    return {role: arm for role, arm in roles.items() if arm is not None and runs.get(arm)}


def paired_differences(runs: Runs, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm minus every control, paired by seed and problem, on the seeds that both have.

    Args:
        arms: what is compared, in order; the base model is put first.
    Returns: a row per control, metric (pass@1, pass@4 and the largest k) and arm: `a`, `b`, `control` (the role),
        `metric`, the figures of `paired_over_seeds`, n_seeds, `relative` (change with its interval), p_holm (over the
        arms of one control and metric), holds, and `verdict`: better, worse, not separated, or None where there is no
        interval over seeds.
    """
    rows: list[dict[str, Any]] = []
    finished = [outcome for seeds in runs.values() for outcome in seeds.values()]
    if not finished:
        return rows
    ks, clusters = finished[0].ks, finished[0].cluster_labels
    for role, control in controls_of(runs).items():
        for k in sorted({1, 4, ks[-1]} & set(ks)):  # the k between say nothing new
            family: list[dict[str, Any]] = []
            for arm in (BASE, *arms):
                common = sorted(set(runs.get(arm, {})) & set(runs[control]))
                if arm == control or not common:
                    continue
                a, b = (np.stack([runs[name][seed].pass_at_k(k) for seed in common]) for name in (arm, control))
                head = {"a": arm, "b": control, "control": role, "metric": f"pass@{k}", "n_seeds": len(common)}
                family.append(head | _difference(a, b, clusters))
            corrected = statistics.holm([math.nan if row["p_value"] is None else row["p_value"] for row in family])
            for row, p_holm in zip(family, corrected, strict=True):
                row["p_holm"] = None if math.isnan(p_holm) else float(p_holm)
                row["verdict"] = _word(row)
            rows += family
    return rows


def _difference(a: np.ndarray, b: np.ndarray, clusters: list[str] | None) -> dict[str, Any]:
    """Figures of a - b, both (seeds, problems)."""
    found = statistics.paired_over_seeds(a, b)
    problems = statistics.paired_difference(a.mean(axis=0), b.mean(axis=0), clusters)
    found = dataclasses.replace(found, problems=problems)
    if found.interval == "problems":  # one seed
        shared = ("low", "high", "se", "p_value", "minimum_detectable")
        found = dataclasses.replace(found, **{name: getattr(problems, name) for name in shared})
        relative = statistics.relative_change(a[0], b[0], clusters)
    else:
        relative = statistics.relative_change(a.mean(axis=1), b.mean(axis=1))
    return statistics.as_json(found) | {"holds": bool(found.holds), "relative": statistics.as_json(relative)}


def _word(row: Mapping[str, Any]) -> str | None:
    if row["low"] is None or row["interval"] == "problems":
        return None
    if not (row["holds"] and row["p_holm"] < LEVEL):
        return "not separated"
    return "better" if row["mean"] > 0 else "worse"


def verdict_of(arm: str, status: Mapping[str, Any], paired: Sequence[Mapping[str, Any]], human: str | None) -> str:
    """What may be said of one arm, in plain words: against random selection, then against the best human-skill arm.

    Args:
        status: its `status` and `reason`.
        paired: all rows of `paired_differences`.
        human: the best human-skill arm; None where there is none to compare with.
    """
    if status["status"] == "failed":
        return f"{arm} failed: {status['reason']}."
    rows = {row["control"]: row for row in paired if row["a"] == arm and row["metric"] == METRIC}
    sentences = [_sentence(arm, "random selection", rows.get(RANDOM))]
    if human == arm:
        sentences.append("It is the best human-skill arm itself.")
    elif human is not None:
        sentences.append(_sentence("It", f"the best human-skill arm, {human}", rows.get(BEST_HUMAN)))
    if status["status"] == "partial":
        sentences.append(f"Some of its cells failed: {status['reason']}.")
    return " ".join(sentences)


def _sentence(subject: str, control: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return f"{subject} cannot be compared with {control}: no seed of both is finished."
    points = f"{100 * row['mean']:+.1f} points of {row['metric']}"
    if row["low"] is None:
        return f"{subject} cannot be judged against {control}: {points}, but {row['reason']}."
    seeds, problems = (_ends(ends, signed=True) for ends in (row, row["problems"]))
    if row["interval"] == "problems":
        return (
            f"{subject} cannot be judged from one seed against {control}: {points} (95 % interval over problems "
            f"{problems}), but the variance between seeds is unknown."
        )
    words = {"better": "is better than", "worse": "is worse than", "not separated": "is not separated from"}
    figures = f"{points} (95 % interval over {row['n_seeds']} seeds {seeds}, over {row['problems']['n']} problems"
    return f"{subject} {words[row['verdict']]} {control}: {figures} {problems}), {_relative(row)}{_doubt(row)}."


def _ends(found: Mapping[str, Any], *, signed: bool = False) -> str:
    if found["low"] is None:
        return "unknown"
    low, high = (f"{100 * found[end]:+.1f}" if signed else f"{100 * found[end]:.1f}" for end in ("low", "high"))
    return f"{low} to {high}"


def _relative(row: Mapping[str, Any]) -> str:
    change = row["relative"]
    if change["mean"] is None:
        return "no relative change, since the other solves nothing"
    text = f"{100 * change['mean']:+.1f} % relative"
    return text if change["low"] is None else f"{text} ({_ends(change, signed=True)})"


def _doubt(row: Mapping[str, Any]) -> str:
    """What the comparison could have seen, and which of its tests a difference did not pass."""
    least = detectable(row)
    text = "" if least is None else f"; a true difference of {100 * least:.1f} points would be seen in 80 % of studies"
    if row["verdict"] != "not separated" or row["low"] <= 0 <= row["high"]:
        return text
    if not row["holds"]:
        return f"{text}; the interval over problems does not exclude zero on that side"
    return f"{text}; after Holm's correction p = {row['p_holm']:.3f}"


def detectable(row: Mapping[str, Any]) -> float | None:
    """The smallest true difference that would be found in 80 % of studies like this one, before Holm's correction.

    The larger of those over seeds and over problems, since a claim needs both.
    """
    known = [found["minimum_detectable"] for found in (row, row["problems"])]
    return max((value for value in known if value is not None), default=None)
