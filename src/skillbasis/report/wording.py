"""The sentences the report opens with: fixed rules, the same for page and terminal."""

from __future__ import annotations

from .records.figures import ALPHA, Difference, Measured
from .records.report import Report
from .records.study import Compared, Study
from .safety.wording import safety_headline, safety_warnings
from .shown import NBSP, Shown, number, p_text, percent, show, why_missing

PRIMARY = "pass@1"
BASE = "base"
RANDOM = "random"
MAX_TRUNCATED_FRACTION = 0.01


def headline(report: Report) -> tuple[str, ...]:
    """The report's finding in a few sentences by fixed rules; the first names the best arm of the study."""
    study = report.study
    if study is None and report.safety is not None:
        return safety_headline(report.safety)[:2]  # the rest stands in the section
    if study is None and report.sweep is not None and report.sweep.finding is not None:
        return (report.sweep.finding,)
    if study is None:
        return ("This run holds no study, so it compares no ways of choosing data.",)
    means = {name: arm.metric(PRIMARY).mean for name, arm in study.arms.items() if name != BASE}
    ranked = {name: mean for name, mean in means.items() if mean is not None}
    if not ranked:
        return (f"No arm of the study has a {PRIMARY}, so nothing can be compared.",)
    best = max(ranked, key=lambda name: ranked[name])
    shown = show(study.arms[best].metric(PRIMARY))
    lead = f"The best arm by mean {PRIMARY} is {best}: {_in_percent(shown)}."
    return (lead, *_against_random(study, best), *_against_base(study, best))


def _in_percent(shown: Shown) -> str:
    reason = f" ({shown.reason})" if shown.reason else ""
    return f"{shown.mean}{NBSP}% {shown.interval}{reason}"


def _in_points(difference: Difference) -> str:
    shown = show(difference)
    return f"{shown.mean} points {shown.interval}"


def _against_random(study: Study, best: str) -> tuple[str, ...]:
    """Says whether the best arm, or any other, is separated from random selection."""
    differences = {
        name: difference
        for name in study.arms
        if name not in (BASE, RANDOM) and (difference := study.difference(name, RANDOM)) is not None
    }
    separated = {name: difference for name, difference in differences.items() if difference.separated}
    nobody = "no arm is separated from random at these seeds."
    if best == RANDOM:
        first = "That is random selection itself: no other arm has a higher mean"
        return (f"{first}, and {nobody}" if differences and not separated else f"{first}.", *_others(separated))
    difference = differences.get(best)
    if difference is None or difference.mean is None:
        return (f"Its paired difference to {RANDOM} was not measured, so no gain can be claimed.", *_others(separated))
    seeds = f" over {len(study.seeds)} seed{'s' if len(study.seeds) != 1 else ''}" if study.seeds else ""
    p = "" if difference.p_holm is None else f", {_p_equals(difference.p_holm)} after Holm"
    stem = f"Its paired difference to random is {_in_points(difference)}{seeds}{p}"
    others = {name: value for name, value in separated.items() if name != best}
    if difference.separated:
        return (f"{stem}: the interval excludes zero.", *_others(others))
    if not difference.bounded:
        why = "without an interval it is not separated from random"
    elif difference.excludes_zero and difference.p_holm is not None and difference.p_holm >= ALPHA:
        why = "the interval excludes zero, but not after the correction for the number of comparisons"
    elif difference.excludes_zero and len(study.seeds) == 1:
        why = "the interval over problems excludes zero, but the variance between seeds is unknown"
    elif difference.excludes_zero:
        why = "the interval over seeds excludes zero, but that over problems does not"
    else:
        why = "the interval includes zero"
    return (f"{stem}: {why}.", *_others(others)) if others else (f"{stem}: {why}; {nobody}",)


def _p_equals(value: float) -> str:
    text = p_text(value)
    return (f"p {text}" if text.startswith("<") else f"p = {text}").replace(" ", NBSP)


def _others(separated: dict[str, Difference]) -> tuple[str, ...]:
    if not separated:
        return ()
    listed = ", ".join(f"{name} ({_in_points(difference)})" for name, difference in separated.items())
    return (f"Separated from random: {listed}.",)


def _against_base(study: Study, best: str) -> tuple[str, ...]:
    base = study.arms.get(BASE)
    if base is None:
        return ()
    level = base.metric(PRIMARY)
    if level.mean is None:
        return (f"The untuned model has no {PRIMARY} ({why_missing(base)}).",)
    text = f"The untuned model has {_in_percent(show(level))}"
    difference = study.difference(best, BASE)
    if difference is not None and difference.mean is not None:
        return (f"{text}; {best} differs from it by {_in_points(difference)}.",)
    return (f"{text}.",)


def warnings(report: Report) -> tuple[str, ...]:
    """All that a reader must know before believing a number: what failed, was cut short or could not be scored."""
    found = list(report.run.warnings)
    found += [f"{name}: not finished; run the same command again to finish it." for name in report.unfinished]
    found += [warning for warning in _left_out(report) if warning not in found]
    facts = report.activations
    told = any("rows were cut at" in warning for warning in found)
    if facts and facts.n_truncated and facts.n_truncated > MAX_TRUNCATED_FRACTION * facts.rows and not told:
        share = percent(facts.n_truncated / facts.rows)
        found.append(
            f"Activations: {number(facts.n_truncated)} of {number(facts.rows)} rows ({share} %) were truncated."
        )
    found += _unstable(report)
    for where, measured in _everything_measured(report):
        if measured.status != "done":
            found.append(f"{where}: {why_missing(measured)}.")
        if measured.n_unscored:
            found.append(f"{where}: {number(measured.n_unscored)} responses could not be scored.")
    if report.safety:
        found += safety_warnings(report.safety)
    for where, group in _truncating_groups(report):
        cut = [item.truncated_fraction for item in group if (item.truncated_fraction or 0) > MAX_TRUNCATED_FRACTION]
        if cut:
            worst = percent(max(value for value in cut if value is not None))
            found.append(
                f"{where}: {len(cut)} of {len(group)} had more than 1 % of responses cut at the token limit "
                f"(at most {worst} %)."
            )
    return tuple(found)


def _left_out(report: Report) -> list[str]:
    """Rows that no later number is from; in the words of the run, which may have said so already."""
    skipped = report.activations.n_skipped if report.activations else None
    found = []
    if report.n_rejected:
        found.append(f"{report.n_rejected} rows of the corpus could not be read; see rejected.jsonl")
    if skipped:
        found.append(f"{skipped} rows gave no activations; see activations/skipped.jsonl")
    return found


def _unstable(report: Report) -> list[str]:
    """Which directions are unstable, and which of them the run went on with."""
    described = report.interpretation.directions if report.interpretation else ()
    numbers = {entry.direction for entry in described} | {*(report.basis.unstable if report.basis else ())}
    unstable = [number for number in sorted(numbers) if report.is_unstable(f"{number}+")]
    if not unstable:
        return []
    several = len(unstable) > 1
    of_all = f" ({len(unstable)} of {report.basis.n_components})" if report.basis else ""
    named = f"Direction{'s' * several} {_ranges(unstable)} {'are' if several else 'is'} unstable{of_all}"
    chosen = [name for name in (report.probe.chosen if report.probe else ()) if report.is_unstable(name)]
    used = f" The probe chose {', '.join(chosen)} all the same." if chosen else ""
    return [f"{named}: other rows of the corpus may well not give {'them' if several else 'it'}.{used}"]


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers, three or more in a row as a range: 0, 2 to 5, 7, 8."""
    runs: list[list[int]] = []
    for number_ in numbers:
        if runs and number_ == runs[-1][-1] + 1:
            runs[-1].append(number_)
        else:
            runs.append([number_])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _everything_measured(report: Report) -> list[tuple[str, Measured]]:
    found: list[tuple[str, Measured]] = []
    for contest in report.contests:
        found += [(f"Contest, {arm.name}", arm) for arm in contest.arms]
    for where, part in _study_parts(report):
        found += [(f"{where}, arm {name}", arm) for name, arm in part.arms.items()]
    if report.probe:
        found += [("Probe, untuned model", report.probe.base), ("Probe, random", report.probe.random)]
        found += [(f"Probe, direction {pilot.name}", pilot) for pilot in report.probe.directions]
    if report.sweep:
        found.append(("Steering, baseline", report.sweep.baseline))
        found += [(f"Steering, {p.vector} at {p.alpha:g} ({p.scope})", p) for p in report.sweep.points]
    if report.sweep and report.sweep.test:
        test = report.sweep.test
        found += [("Steering on test problems, steered", test.winner), ("Steering on test problems", test.baseline)]
        found += [(f"Steering on test problems, {control.vector}", control) for control in test.controls]
    return found


def _truncating_groups(report: Report) -> list[tuple[str, list[Measured]]]:
    found: list[tuple[str, list[Measured]]] = []
    found += [(f"{where} arms", list(part.arms.values())) for where, part in _study_parts(report)]
    if report.probe:
        found.append(("Probe directions", list(report.probe.directions)))
    if report.sweep:
        found.append(("Steering points", list(report.sweep.points)))
    return found


def _study_parts(report: Report) -> list[tuple[str, Compared]]:
    """Every task at every budget; the name says which, where there are several."""
    parts = report.study.parts if report.study else []
    return [(f"Study ({name})" if len(parts) > 1 else "Study", part) for name, part in parts]
