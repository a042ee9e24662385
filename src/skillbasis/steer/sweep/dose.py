"""Judges what a sweep measured: usable strengths, the winner, and the winner's test against random vectors.

Pure functions on measurements and on the JSON-able figures made of them; everything that a reader is told is put into
words here, once, for the table, the report and the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ... import statistics
from ...errors import UsageError, nearest
from .measure import TARGET, Measurement

RANDOM = "random"
LEVEL = 0.05
MIN_CONTROLS = 19
"""Fewer random vectors cannot give a rank p of 0.05 or less: the smallest is 1 / (1 + n)."""
Point = Mapping[str, Any]
"""The figures of one setting, as they stand in `sweep.json`."""


def check_metric(metric: str, rollouts: int, has_pattern: bool) -> None:
    """Refuses a metric that the sweep will not measure. Raises: UsageError: naming those it will."""
    allowed = [f"pass@{k}" for k in Measurement(rollouts).ks] + [TARGET] * has_pattern
    if metric in allowed:
        return
    hint = "; target needs a pattern" if metric == TARGET else nearest(metric, allowed)
    raise UsageError(f"metric {metric!r} is not measured with {rollouts} rollouts{hint}; choose {', '.join(allowed)}")


def compared_metrics(of: Measurement) -> list[str]:
    """What is compared with the unsteered model: pass@1, pass@K for the largest K, and the target's share."""
    return list(dict.fromkeys(["pass@1", f"pass@{of.ks[-1]}"])) + [TARGET] * (of.n_matching is not None)


def figures(of: Measurement, base: Measurement | None = None) -> dict[str, Any]:
    """The JSON-able figures of one setting, with paired differences to `base`, the unsteered model, where given."""
    if of.reason is not None:
        return {"status": "failed", "reason": of.reason}
    found: dict[str, Any] = {
        "mean_tokens": of.mean_tokens,
        "truncated_fraction": of.truncated_fraction,
        "looped_fraction": of.looped_fraction,
        "broken_fraction": of.broken_fraction,
        "n_broken_correct": of.n_broken_correct,
        "statuses": dict(of.statuses),
    }
    for k in of.ks:
        found[f"pass@{k}"] = statistics.as_json(statistics.mean_estimate(of.values(f"pass@{k}")))
    if of.n_matching is not None:
        found["target_rate"] = statistics.as_json(statistics.mean_estimate(of.values(TARGET)))
    if of.damage is not None:
        found["damage"] = dict(of.damage)
    if base is not None:
        found["differences"] = [difference(of, base, metric) for metric in compared_metrics(of)]
        found["difference"] = {
            key: value for key, value in found["differences"][0].items() if key not in ("metric", "relative")
        }
    return found


def difference(of: Measurement, base: Measurement, metric: str) -> dict[str, Any]:
    """Paired difference over problems; `relative` is its share of the unsteered mean, None where that is 0."""
    ours, plain = of.values(metric), base.values(metric)
    found = statistics.as_json(statistics.paired_difference(ours, plain))
    level = float(plain.mean())
    return {"metric": metric} | found | {"relative": found["mean"] / level if level > 0 else None}


def why_unusable(of: Measurement, base: Measurement, metric: str, max_broken_rise: float) -> str | None:
    """Why a setting is not usable; None where it is.

    Args:
        metric: must not lie below the unsteered model by its interval over problems (95 %, for this setting alone).
        max_broken_rise: by how much the share of broken answers may be above the unsteered model's.
    """
    if of.reason is not None:
        return f"failed: {of.reason}"
    if of.broken_fraction - base.broken_fraction > max_broken_rise + 1e-12:  # the fractions carry rounding
        return (
            f"{in_percent(of.broken_fraction)} of the answers are broken, {in_percent(base.broken_fraction)} unsteered"
        )
    found = statistics.paired_difference(of.values(metric), base.values(metric))
    # Without a spread there is no interval: all problems lost alike.
    if found.high < 0 or (math.isnan(found.high) and found.mean < 0):
        return f"{in_words(metric)} is below unsteered ({in_points(statistics.as_json(found))})"
    return None


def usable_ranges(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The span of strengths around 0, per vector and scope, up to the first one on each side that is not usable.

    Args:
        points: with `vector`, `scope`, `alpha` and `unusable`, the reason or None.
    Returns: `low` (0 or the most negative strength) and `high` of the span, with a sentence; a usable strength beyond
        an unusable one is not in it.
    """
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point["vector"], point["scope"]), []).append(point)
    found = []
    for (vector, scope), group in groups.items():
        ends, stops = {-1: 0.0, 1: 0.0}, []
        for sign in (-1, 1):
            side = sorted((p for p in group if sign * p["alpha"] > 0), key=lambda p: abs(p["alpha"]))
            for point in side:
                if point["unusable"] is not None:
                    stops.append(f"at {point['alpha']:g} {point['unusable']}")
                    break
                ends[sign] = point["alpha"]
        low, high = ends[-1], ends[1]
        span = "at no strength tried" if low == high else f"from {low:g} to {high:g}"
        tail = "; ".join(stops) if stops else "the strongest tried"
        sentence = f"{vector} ({scope}) is usable {span}: {tail}."
        found.append({"vector": vector, "scope": scope, "low": low, "high": high, "sentence": sentence})
    return found


def level_of(point: Point, metric: str) -> float:
    """The mean of a metric in a point's figures; minus infinity where it failed."""
    entry = point.get("target_rate" if metric == TARGET else metric)
    return -math.inf if entry is None or entry["mean"] is None else float(entry["mean"])


def choose_winner(points: Sequence[Point], base: Point, metric: str) -> Point | None:
    """The usable setting of the highest metric, if that is above the unsteered model's; random vectors never win.

    Of equals the weaker one wins, then the first.
    """
    usable = [point for point in points if point["kind"] != RANDOM and point["unusable"] is None]
    best = max(usable, key=lambda point: (level_of(point, metric), -abs(point["alpha"])), default=None)
    return best if best is not None and level_of(best, metric) > level_of(base, metric) else None


def rank_p_value(value: float, controls: Sequence[float]) -> float:
    """One-sided: how often a random vector does as well, counting the winner itself: (1 + #controls >= value)/(1 + n).

    Source: Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39.
    """
    return (1 + sum(control >= value for control in controls)) / (1 + len(controls))


def judge_test(
    winner: Measurement, base: Measurement, controls: Sequence[Measurement], metric: str, chosen: str
) -> dict[str, Any]:
    """The winner on test problems, with its rank among random vectors and what may be claimed.

    Args:
        controls: random vectors of the winner's norms at its strength and scope, on the same problems.
        chosen: how it was chosen and where it is tested: the beginning of the sentence.
    Returns: figures, `p_value`, `claim` (`holds`, `not separated` or `not possible`) and the `sentence`.
    """
    found: dict[str, Any] = {"baseline": figures(base), "winner": figures(winner, base)}
    if winner.reason is not None:
        return found | {"p_value": None, "claim": "not separated", "sentence": f"{chosen} it failed: {winner.reason}."}
    names = list(dict.fromkeys([metric, *compared_metrics(winner)]))  # the metric first; it may be pass@K between
    differences = [difference(winner, base, name) for name in names]
    found["winner"]["differences"] = differences
    value = float(winner.values(metric).mean())
    levels = [-math.inf if control.reason else float(control.values(metric).mean()) for control in controls]
    p_value = rank_p_value(value, levels)
    rank = f"{sum(level >= value for level in levels)} of {len(controls)} random vectors of its norm reach it"
    if len(controls) < MIN_CONTROLS:
        claim = "not possible"
        verdict = (
            f"{rank}; with {len(controls)} of them the rank p is {1 / (1 + len(controls)):.2f} at best, so no claim is "
            f"possible at this number: it takes {MIN_CONTROLS}"
        )
    elif p_value <= LEVEL and (differences[0]["low"] or 0.0) > 0:
        claim, verdict = "holds", f"{rank} (rank p = {p_value:.3f}), and the interval excludes zero"
    else:
        claim = "not separated"
        verdict = f"{rank} (rank p = {p_value:.3f}), so no gain of this vector over random ones can be claimed"
    words = "; ".join(
        f"{in_words(name)} is {in_percent(float(winner.values(name).mean()))}, unsteered "
        f"{in_percent(float(base.values(name).mean()))}: {in_points(entry)}{_relative(entry['relative'])}"
        for name, entry in zip(names, differences, strict=True)
    )
    return found | {"p_value": p_value, "claim": claim, "sentence": f"{chosen} its {words}. {verdict}."}


def in_words(metric: str) -> str:
    """A metric's name in a sentence."""
    return "share of answers that match" if metric == TARGET else metric


def in_percent(fraction: float) -> str:
    """A fraction with one decimal: 0.4125 -> `41.2 %`."""
    return f"{100 * fraction:.1f} %"


def in_points(entry: Mapping[str, Any]) -> str:
    """A difference in percentage points with its interval."""
    text = f"{100 * entry['mean']:+.1f} points"
    if entry["low"] is None:
        return f"{text} (no interval: {entry['reason']})"
    return f"{text} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"


def _relative(share: float | None) -> str:
    return "" if share is None else f", {100 * share:+.1f} % of it"
