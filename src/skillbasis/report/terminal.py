"""What a run ends with in the terminal: the arms of its study, and of its safety study with all measures together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .collect import SAFETY, STUDY, collect_safety, collect_study
from .records.figures import Interval
from .records.safety import MEASURES, Levels, Measure
from .records.study import Arm, Study
from .safety.wording import UNTUNED, called, caption_note, safety_headline, safety_warnings
from .shown import DASH, Shown, number, p_text, percent, show, why_missing
from .wording import BASE, RANDOM

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_NAME_CHARS = 14
"""What a terminal of 80 columns leaves for the names of arms; a longer one goes on below, after its +."""


def terminal_table(run: Path) -> Table:
    """Makes the table of the study's arms: two metrics, difference to random, and the verdict.

    Args:
        run: the run directory.
    Returns: a Rich table; percentages with their intervals in brackets, a dash with its reason where undefined.
    Raises:
        UsageError: the run holds no study.
        ArtifactError: the study's summary is damaged.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    study = collect_study(run)
    if study is None:
        raise UsageError(f"{run} holds no {STUDY}; run 'skillbasis study' first, or check the path")
    task = f" on {study.task}" if study.task else ""
    sizes = {number(arm.n_rows) for name, arm in study.arms.items() if name != BASE and arm.n_rows is not None}
    budget = f", {sizes.pop()} rows each" if len(sizes) == 1 else ""
    if study.budget_unit != "rows":
        budget = f", {number(study.budget)} {study.budget_unit} each"
    # Text objects throughout: names come from recipes, and Rich would read [brackets] in a string as markup.
    table = Table(
        title=Text(f"Arms{task}{budget}, % [95 % interval]"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    metrics = _shown_metrics(study.metric_names)
    table.add_column("arm", style="bold", overflow="fold", min_width=_NAME_CHARS)
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("vs random", justify="right", no_wrap=True)
    table.add_column("Holm p", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=9)
    for name, arm in study.arms.items():
        difference = None if name in (BASE, RANDOM) else study.difference(name, RANDOM)
        cells = [Text(name.replace("+", "+\n") if len(name) > _NAME_CHARS else name)]
        cells += [_stacked(show(arm.metric(metric), arm)) for metric in metrics]
        cells += [_stacked(show(difference)), Text(p_text(difference.p_holm if difference else None))]
        table.add_row(*cells, Text(_verdict(study, name, arm)))
    return table


def terminal_safety(run: Path) -> Group:
    """Makes the finding of the safety study, what must be known before it is believed, and the table of areas.

    Args:
        run: the run directory.
    Returns: a Rich group; percentages with their intervals in brackets. No request and no answer is in it.
    Raises:
        UsageError: the run holds no safety study.
        ArtifactError: its summary is damaged.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    safety = collect_safety(run)
    if safety is None:
        raise UsageError(f"{run} holds no {SAFETY}; run a recipe with a block 'safety' first, or check the path")
    table = Table(
        title=Text(f"Mean over budgets, %, above its 95 % interval.{caption_note(safety)}"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", style="bold", overflow="fold", min_width=_NAME_CHARS)
    for measure in MEASURES:
        table.add_column(measure.title.lower().replace(" ", "\n").replace("-", "-\n"), justify="right", no_wrap=True)
    rows = {UNTUNED: safety.base} | {called(name): arm.area or Levels() for name, arm in safety.arms.items()}
    for name, levels in rows.items():
        table.add_row(Text(name), *(_narrow(levels.level(measure.name), measure) for measure in MEASURES))
    sentences = [Text(sentence) for sentence in (*safety_headline(safety), *safety_warnings(safety))]
    return Group(*sentences, table)


def _shown_metrics(names: Sequence[str]) -> list[str]:
    """The first metric and pass@4, or else the last: what fits a terminal of 80 columns; the page has all."""
    if len(names) <= 2:
        return list(names)
    return [names[0], "pass@4" if "pass@4" in names else names[-1]]


def _stacked(shown: Shown) -> Text:
    """The estimate above its interval, so that neither is broken in a narrow terminal."""
    from rich.text import Text

    return Text.assemble(shown.mean, (f"\n{shown.interval}" if shown.interval else "", "dim"))


def _narrow(value: Interval, measure: Measure) -> Text:
    """The estimate above its interval without brackets: six of them fit a terminal of 80 columns."""
    from rich.text import Text

    ends = f"\n{percent(value.low)}–{percent(value.high)}" if value.bounded and not measure.counted else ""
    return Text.assemble(percent(value.mean), (ends, "dim"))


def _verdict(study: Study, name: str, arm: Arm) -> str:
    """The recorded verdict against random in a word or two; else why there is none."""
    if name in study.verdicts and arm.status == "done":
        word = study.verdict_word(name, RANDOM)
        return study.verdicts[name].split(": ")[0] if word is None else word
    if arm.status != "done":
        return why_missing(arm)
    reasons = [f"{metric}: {show(arm.metric(metric), arm).reason}" for metric in study.metric_names]
    if name not in (BASE, RANDOM):
        reasons.append(f"difference: {show(study.difference(name, RANDOM)).reason}")
    return "; ".join(reason for reason in reasons if not reason.endswith(": ")) or DASH
