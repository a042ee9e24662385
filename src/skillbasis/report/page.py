"""Renders the report as one self-contained HTML file: it opens from disk and needs no network.

Texts of the corpus are data from outside. They are escaped in the page and in the figures, and the page's content
policy lets no script run but those it was written with, and no request leave.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import write_text
from . import basis_charts, charts, shown, wording
from .assets import FORMULAS, KATEX, KATEX_STYLE, PAGE_SCRIPT, PLOTLY, asset, embed_json, holds_math, script_hash
from .collect import collect, collect_sweep
from .kinds import kinds_of, parts_of
from .records.report import Report
from .records.sweep import TARGET
from .safety.view import SafetyView, safety_figures
from .templates import template_environment

if TYPE_CHECKING:
    from markupsafe import Markup
    from plotly.graph_objects import Figure

REPORT = "report.html"
SWEEP_PAGE = "sweep.html"
# All exemplars together, once escaped: with the libraries (1.8 MB), scores and figures the page stays below 8 MB.
EXEMPLAR_BYTES = 3_000_000
MAX_EXEMPLAR_CHARS = 8_000
_MACHINE = {"cpu": "Processor", "cores": "Cores", "memory_gib": "Memory, GiB", "system": "System"}


def write_report(run: Path, *, show_responses: bool = False) -> Path:
    """Writes `run/report.html` from whatever artifacts the directory holds; sections without one are left out.

    Args:
        run: the run directory.
        show_responses: whether the page holds a few requests and answers of the safety study, folded.
    Returns: the path of the page, replaced atomically; below 8 MB.
    Raises:
        UsageError: `run` is no directory or holds no artifact.
        ArtifactError: an artifact is damaged.
    """
    report = collect(run, show_responses=show_responses)
    # A lone surrogate in a text (JSON allows it, UTF-8 does not) becomes a question mark.
    page = render(report).encode("utf-8", "replace").decode("utf-8")
    write_text(run / REPORT, page)
    return run / REPORT


def write_sweep_page(folder: Path) -> Path:
    """Writes `folder/sweep.html`, the plots and tables of the `sweep.json` beside it. Raises: as `write_report`."""
    page = render(collect_sweep(folder)).encode("utf-8", "replace").decode("utf-8")
    write_text(folder / SWEEP_PAGE, page)
    return folder / SWEEP_PAGE


@dataclass(frozen=True)
class Served:
    """What a server adds to the page that it serves; the file of a run has nothing of it."""

    bar: Markup
    """Stands above the page; its forms go to the page's own server."""
    style: Markup
    """Rules of the bar."""
    examples: Callable[[int, str], str] | None
    """Address of all examples at an end of a direction: its number, `+` or `-`; None where there are none."""


def render(report: Report, served: Served | None = None) -> str:
    """Renders the page. Cost: about 2 MB of text, most of it libraries."""
    from markupsafe import Markup

    environment = template_environment("skillbasis.report", ".")
    environment.filters |= {
        "percent": shown.percent,
        "number": shown.number,
        "area": shown.area,
        "p": shown.p_text,
        "duration": shown.duration,
        "size": shown.size,
        "clip": _clip,
        "code": _code,
    }
    figures = {name: embed_json(figure.to_plotly_json()) for name, figure in _figures(report).items()}
    scatter = basis_charts.scatter_data(report.scores, report.interpretation) if report.scores else None
    limit = _exemplar_chars(report)
    with_math = holds_math(text[:limit] for text in _exemplar_texts(report))
    names = [PLOTLY] * bool(figures or report.scores) + [KATEX, FORMULAS] * with_math
    scripts = [asset(name) for name in (*names, PAGE_SCRIPT)] if names else []
    return environment.get_template("page.html.j2").render(
        report=report,
        served=served,
        title=report.run.title or report.name,
        headline=wording.headline(report),
        warnings=wording.warnings(report),
        show=shown.show,
        why_missing=shown.why_missing,
        machine=[(_MACHINE.get(name, name), value) for name, value in report.run.machine.items()],
        study_files=[name for name in report.files if name.startswith(("study", "contest"))],
        kinds_of=kinds_of,
        kinds=kinds_of(parts_of(report)),
        figures=figures,
        scripts=[Markup(script) for script in scripts],
        script_policy=Markup(" ".join(script_hash(script) for script in scripts) or "'none'"),
        math_style=Markup(asset(KATEX_STYLE)) if with_math else "",
        scatter=scatter,
        scatter_json=embed_json(scatter) if scatter else "",
        area_style=shown.area_style,
        spectrum_caption=basis_charts.spectrum_caption(report.basis) if report.basis else "",
        colours=charts.COLOURS,
        palette=embed_json(charts.dark_palette()),
        exemplar_chars=limit,
        settings=_flatten(report.run.settings),
        study_settings=_flatten(report.study.settings) if report.study else {},
        safety_settings=_flatten(report.safety.settings) if report.safety else {},
        safety_words=SafetyView(report.safety) if report.safety else None,
    )


def _figures(report: Report) -> dict[str, Figure]:
    """All figures the artifacts allow, by the id of their place in the page."""
    found: dict[str, Figure | None] = {}
    for i, (_, part) in enumerate(report.study.parts if report.study else ()):
        place = f"study-{i}" if i else "study"
        found[f"{place}-arms"] = charts.study_forest(part)
        for j, control in enumerate(part.controls):
            found[f"{place}-paired-{j}"] = charts.paired_forest(part, control)
    if report.safety:
        found |= safety_figures(report.safety)
    if report.probe:
        found["probe"] = charts.probe_forest(report.probe)
    if report.sweep:
        for i, scope in enumerate(report.sweep.scopes):
            found[f"steer-{i}"] = charts.dose_response(report.sweep, scope)
            found[f"steer-target-{i}"] = charts.dose_response(report.sweep, scope, TARGET)
            found[f"steer-broken-{i}"] = charts.broken_response(report.sweep, scope)
            found[f"steer-damage-{i}"] = charts.damage_response(report.sweep, scope)
    if report.basis:
        found["spectrum"] = basis_charts.spectrum(report.basis)
    return {name: figure for name, figure in found.items() if figure is not None}


def _exemplar_texts(report: Report) -> list[str]:
    directions = report.interpretation.directions if report.interpretation else ()
    exemplars = [exemplar for direction in directions for exemplar in (*direction.positive, *direction.negative)]
    return [text for item in exemplars for text in (item.preview, item.prompt_text, item.response)]


def _exemplar_chars(report: Report) -> int:
    """How many characters of each exemplar text are shown, so that all of them together fit."""
    texts, limit = _exemplar_texts(report), MAX_EXEMPLAR_CHARS
    while sum(len(html.escape(text[:limit]).encode("utf-8", "replace")) for text in texts) > EXEMPLAR_BYTES:
        limit //= 2
    return limit


def _clip(text: str, limit: int) -> str:
    """The beginning of a text, with a word on how much is missing."""
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit:,} more characters]"


def _code(text: str) -> Markup:
    """A note with what stands between backticks as code; all else is escaped."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, in the order given."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat
