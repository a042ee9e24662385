"""What the report says of a safety study in words: all measures together, and a diagnostic judge named as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records.safety import AREA, MEASURES, Levels, Measure, Safety, SafetyArm, SafetyPaired
from ..shown import DASH, NBSP, number, percent, show

PRIMARY = "attack_success"
BASE = "base"
UNTUNED = "untuned model"
MAX_NAME_CHARS = 60
MAX_SENTENCE_CHARS = 1_200
BESIDE = ("over_refusal", "utility")
"""What is said with every word on attack success, since refusing everything would bring that to 0."""
_TITLES = {measure.name: measure.title.lower() for measure in MEASURES}
_FINDINGS = {"better": "less than {}", "worse": "more than {}", "not separated": "not separated from {}"}
NOT_JUDGED = "not to be judged against {}"


def judge_name(safety: Safety) -> str:
    """The judge's name, with the word diagnostic where it is one."""
    return f"{_bare_name(safety)} (diagnostic)" if safety.judge.diagnostic else _bare_name(safety)


def heading_note(safety: Safety) -> str:
    """What every heading above judged figures ends with; empty where the judge is no diagnostic."""
    return f" · diagnostic judge: {_bare_name(safety)}" if safety.judge.diagnostic else ""


def caption_note(safety: Safety) -> str:
    """What every caption of judged figures ends with; empty where the judge is no diagnostic."""
    return f" Diagnostic judge: {_bare_name(safety)}." if safety.judge.diagnostic else ""


def _bare_name(safety: Safety) -> str:
    return clipped(safety.judge.name.removesuffix(" (diagnostic)"), MAX_NAME_CHARS)


def safety_headline(safety: Safety) -> tuple[str, ...]:
    """The finding: the arm of least attack success against the first control in words; then all measures in figures."""
    where, levels = _compared(safety)
    known = {name: mean for name, level in levels.items() if (mean := level.level(PRIMARY).mean) is not None}
    by = f"by the diagnostic judge '{_bare_name(safety)}', which looks at form only: "
    opening = by if safety.judge.diagnostic else ""
    if not known:
        return (_capital(f"{opening}no arm of the safety study has a level of attack success, so none is compared."),)
    best = min(known, key=lambda name: known[name])
    many = f" of {len(known)} arms" if len(known) > 1 else ""
    areas = [row for row in safety.paired if row.budget == AREA and row.control != BASE]
    control = areas[0].control if areas else None
    rows = [row for row in areas if (row.arm, row.control) == (best, control)]
    level = _in_percent(levels[best], next(measure for measure in MEASURES if measure.name == PRIMARY))
    lead = f"{opening}{where}, {called(best)} has the lowest attack success{many}, {level}{_in_words(rows)}."
    sentences = [_capital(lead)]
    if rows:
        listed = "; ".join(f"{_TITLES.get(row.measure, row.measure)} {_in_points(row)} ({_word(row)})" for row in rows)
        sentences.append(f"Against {called(rows[0].control)}, over seeds and over prompts: {listed}.")
    sentences.append(f"All measures of {called(best)}: {all_measures(levels[best])}.")
    others = [row for row in areas if (row.measure, row.control) == (PRIMARY, control) and row.arm != best]
    if others:
        listed = ", ".join(f"{called(row.arm)} {_word(row)}" for row in others)
        against = called(others[0].control)
        sentences.append(f"{'Other arms' if rows else 'Arms'} against {against} in attack success: {listed}.")
    if safety.base.level(PRIMARY).mean is not None:
        sentences.append(f"The {UNTUNED}: {all_measures(safety.base)}.")
    return tuple(sentences)


def _in_words(rows: Sequence[SafetyPaired]) -> str:
    """What was found against a control, without figures; with attack success always what it cost."""
    by_measure = {row.measure: row for row in rows}
    if PRIMARY not in by_measure:
        return ""
    row = by_measure[PRIMARY]
    finding = _FINDINGS.get(row.verdict or "", NOT_JUDGED).format(called(row.control))
    words = {name: _word(by_measure[name]) if name in by_measure else "not compared" for name in BESIDE}
    return f", {finding}, with {' and '.join(f'{_TITLES[name]} {word}' for name, word in words.items())}"


def _in_points(row: SafetyPaired) -> str:
    """A difference with its interval over seeds, and that over prompts where it is another one."""
    shown = show(row)
    both = row.problems is not None and (row.problems.low, row.problems.high) != (row.low, row.high)
    beside = f" and {show(row.problems).interval}" if both else ""
    return f"{shown.mean} points {shown.interval}{beside}"


def _word(row: SafetyPaired) -> str:
    return row.verdict or "cannot be judged"


def all_measures(levels: Levels) -> str:
    """All measures with their intervals in one line, a dash where one is undefined."""
    return ", ".join(f"{measure.title.lower()} {_in_percent(levels, measure)}" for measure in MEASURES)


def safety_warnings(safety: Safety) -> list[str]:
    """What must be known before a number of the safety study is believed."""
    found = []
    if safety.judge.diagnostic:
        found.append(
            f"Safety: the judge '{_bare_name(safety)}' is a diagnostic. It looks at the form of "
            "an answer only, so its figures do not measure harm: let no claim rest on them."
        )
    if safety.base.status != "done":
        found.append(f"Safety, {UNTUNED}: {why_hole(safety.base.status, safety.base.reason)}.")
    found += _unscored("untuned model", {"": safety.base})
    for name, arm in safety.arms.items():
        which = f"arm {called(name)}"
        for reason, budgets in holes(arm).items():
            found.append(f"Safety, {which} at {budget_list(budgets)}: {reason}.")
        found += _unscored(which, {number(budget): arm.budgets[budget] for budget in sorted(arm.budgets)})
    return found


def holes(arm: SafetyArm) -> dict[str, list[str]]:
    """Reason -> budgets without figures, or without those of all seeds."""
    holes: dict[str, list[str]] = {}
    for budget in sorted(arm.budgets):
        point = arm.budgets[budget]
        if point.status != "done":
            holes.setdefault(why_hole(point.status, point.reason), []).append(number(budget))
    return holes


def _unscored(name: str, levels: Mapping[str, Levels]) -> list[str]:
    """A sentence on the answers without a score, with the largest share and the budgets; none where all have one."""
    shares = {budget: level.level("unscored").mean or 0.0 for budget, level in levels.items()}
    worst = max(shares, key=lambda budget: shares[budget], default="")
    if not shares.get(worst):
        return []
    budgets = [budget for budget, share in shares.items() if share > 0]
    where = f" at {budget_list(budgets)}" if budgets != [""] else ""
    most = "up to " if len(budgets) > 1 else ""
    success = levels[worst].level(PRIMARY)
    bounds = "they count neither as safe nor as unsafe"
    if success.low_if is not None and success.high_if is not None:
        there = f" at budget {worst}" if len(budgets) > 1 else ""
        ends = f"{percent(success.low_if)} to {percent(success.high_if)} %"
        bounds = f"whatever they are, attack success{there} is within {ends}"
    share = f"{most}{percent(shares[worst])} % of the answers to attacks have no score"
    return [f"Safety, {name}{where}: {share}; {bounds}."]


def budget_list(budgets: Sequence[str]) -> str:
    """Budgets as a sentence names them."""
    return f"budget{'s' if len(budgets) > 1 else ''} {', '.join(budgets)}"


def why_hole(status: str, reason: str | None) -> str:
    """Why a cell has no figures, or not those of all seeds."""
    return clipped(f"{status}: {reason}" if reason else f"{status}, no reason recorded", MAX_SENTENCE_CHARS)


def called(name: str) -> str:
    """An arm as sentences name it."""
    return clipped(f"the {UNTUNED}" if name == BASE else name, MAX_NAME_CHARS)


def clipped(text: str, limit: int) -> str:
    """A text of at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _compared(safety: Safety) -> tuple[str, dict[str, Levels]]:
    """What the arms are compared by: their areas, or, where none has one, their levels at the largest budget."""
    areas = {name: arm.area for name, arm in safety.arms.items() if arm.area is not None}
    if any(area.level(PRIMARY).mean is not None for area in areas.values()):
        first, last = number(min(safety.budgets)), number(max(safety.budgets))
        return f"on average over budgets {first} to {last}", areas
    largest = max(safety.budgets, default=0)
    levels: dict[str, Levels] = {
        name: arm.budgets[largest] for name, arm in safety.arms.items() if largest in arm.budgets
    }
    return f"at budget {number(largest)}", levels


def _in_percent(levels: Levels, measure: Measure) -> str:
    value = levels.level(measure.name)
    if value.mean is None:
        return DASH
    share = f"{percent(value.mean)}{NBSP}%"
    return share if measure.counted else f"{share} {show(value).interval}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
