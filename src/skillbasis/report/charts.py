"""The report's plots, as Plotly figures in the light palette; the page swaps colours for the dark one.

Names and ids come from corpora and recipes. Plotly reads a small HTML in its labels, so every such text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .records.figures import Interval
from .records.report import Probe
from .records.study import Compared, Paired
from .records.sweep import TARGET, Sweep, SweepPoint
from .shown import percent, show
from .wording import BASE, PRIMARY, RANDOM

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_LABEL_CHARS = 28
MAX_ID_CHARS = 48
CLEAR = "rgba(0,0,0,0)"

# name -> (light, dark): the one palette of page and plots. Blue against orange stays apart for colour-blind eyes.
COLOURS = {
    "ink": ("#20242a", "#e6e8eb"),
    "muted": ("#5c646f", "#a0a8b2"),
    "rule": ("#e1e4e8", "#30353c"),
    "surface": ("#fefefe", "#16191d"),
    "panel": ("#f6f7f8", "#1e2227"),
    "blue": ("#2463a8", "#6fb1f2"),
    "orange": ("#b9541a", "#f09a62"),
    "teal": ("#1b7f68", "#54c7a8"),
    "purple": ("#7449a8", "#b79cf0"),
    "ochre": ("#8f6b00", "#d8b545"),
    "rose": ("#ad2f72", "#ee85bb"),
    "grey": ("#8d949d", "#78808a"),
}
INK, MUTED, RULE, SURFACE, PANEL, BLUE, ORANGE, TEAL, PURPLE, OCHRE, ROSE, GREY = (
    light for light, _ in COLOURS.values()
)
SERIES = (BLUE, ORANGE, TEAL, PURPLE, OCHRE, ROSE)
DASHES = ("solid", "dash", "dot", "dashdot")
VERDICT_MARKS = {"helps": (BLUE, "circle"), "hurts": (ORANGE, "diamond")}
UNDECIDED_MARK = (MUTED, "circle-open")


def band(colour: str) -> str:
    """The pale form of a palette colour, for the interval around a line."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def dark_palette() -> list[tuple[str, str]]:
    """Pairs (light, dark) of every colour the figures use."""
    pairs = list(COLOURS.values())
    return pairs + [(band(light), band(dark)) for light, dark in pairs]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of a forest plot."""

    label: str
    value: Interval
    colour: str
    symbol: str = "circle"
    second: Interval | None = None
    """Another interval of the same estimate, drawn thin."""


def study_forest(study: Compared, metric: str = PRIMARY) -> Figure | None:
    """Draws each arm's mean with its interval and one dot per seed; None where no arm has this metric."""
    rows = [
        _Row(label=name, value=arm.metric(metric), colour=MUTED if name in (BASE, RANDOM) else BLUE)
        for name, arm in study.arms.items()
    ]
    base = study.arms[BASE].metric(metric).mean if BASE in study.arms else None
    return _forest(rows, title=f"{metric}, %", line=base)


def paired_forest(study: Compared, control: str, metric: str = PRIMARY) -> Figure | None:
    """Draws the differences of all arms to one on one metric, intervals over seeds thick and over problems thin."""
    rows = [_paired_row(row) for row in study.paired if (row.b, row.metric) == (control, metric)]
    return _forest(rows, title=f"difference to {label(control)} in {metric}, percentage points", line=0.0)


def probe_forest(probe: Probe) -> Figure | None:
    """Draws each direction's difference to the random controls, largest first; None where none was measured."""
    measured = [
        (pilot, pilot.difference_to_random)
        for pilot in probe.directions
        if pilot.difference_to_random is not None and pilot.difference_to_random.mean is not None
    ]
    measured.sort(key=lambda pair: -(pair[1].mean or 0.0))
    rows = []
    for pilot, difference in measured:
        colour, symbol = VERDICT_MARKS.get(pilot.verdict or "", UNDECIDED_MARK)
        rows.append(_Row(label=pilot.name, value=difference, colour=colour, symbol=symbol))
    return _forest(rows, title=f"difference to random in {PRIMARY}, percentage points", line=0.0)


def dose_response(sweep: Sweep, scope: str, metric: str = PRIMARY) -> Figure | None:
    """Draws a metric against steering strength in one scope: vectors with bands, random ones grey."""
    figure = _doses(sweep, scope, lambda point: point.metric(metric), 100)
    if figure is None:
        return None
    _baseline(figure, sweep.baseline.metric(metric))
    figure.update_yaxes(title_text="answers that match, %" if metric == TARGET else f"{metric}, %")
    return figure


def broken_response(sweep: Sweep, scope: str) -> Figure | None:
    """Draws the share of broken answers against steering strength in one scope."""
    figure = _doses(sweep, scope, lambda point: Interval(mean=point.broken_fraction), 100, height=260)
    if figure is None:
        return None
    _baseline(figure, Interval(mean=sweep.baseline.broken_fraction))
    figure.update_yaxes(title_text="broken answers, %", rangemode="tozero")
    return figure


def damage_response(sweep: Sweep, scope: str) -> Figure | None:
    """Draws the divergence on held-out text against steering strength in one scope; None where it was not measured."""
    figure = _doses(sweep, scope, lambda point: Interval(mean=point.damage.kl if point.damage else None), 1, height=260)
    if figure is not None:
        figure.update_yaxes(title_text="KL, nats per token", rangemode="tozero")
    return figure


def _doses(
    sweep: Sweep, scope: str, value: Callable[[SweepPoint], Interval], scale: float, height: int = 380
) -> Figure | None:
    """One line per vector of one scope, values times `scale`; None where there is no value."""
    by_vector: dict[str, list[SweepPoint]] = {}
    for point in sweep.points:
        by_vector.setdefault(point.vector, []).append(point)
    kinds = {vector: points[0].kind for vector, points in by_vector.items()}
    # A vector has one colour in all scopes; random controls are drawn first, beneath.
    directions = [vector for vector, kind in kinds.items() if kind != RANDOM]
    figure = new_figure(height=height)
    for vector in sorted(by_vector, key=lambda name: kinds[name] != RANDOM):
        points = sorted((point for point in by_vector[vector] if point.scope == scope), key=lambda point: point.alpha)
        pairs = [(point, value(point)) for point in points if value(point).mean is not None]
        if not pairs:
            continue
        if kinds[vector] == RANDOM:
            _line(figure, vector, pairs, scale, colour=GREY, dash="solid", legend="random vectors")
        else:
            index = directions.index(vector)
            colour, dash = SERIES[index % len(SERIES)], DASHES[index // len(SERIES) % len(DASHES)]
            _band(figure, [(point.alpha, found) for point, found in pairs if found.bounded], scale, colour)
            _line(figure, vector, pairs, scale, colour=colour, dash=dash, legend=vector)
    if not figure.data:
        return None
    unit = "each vector's own unit" if sweep.unit == "several" else sweep.unit
    figure.update_xaxes(title_text=f"strength ({label(unit)})" if unit else "strength")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return figure


def label(value: str, limit: int = MAX_LABEL_CHARS) -> str:
    """A text for a Plotly label: clipped, and without meaning as markup."""
    clipped = value if len(value) <= limit else value[: limit - 1] + "…"
    return html.escape(clipped, quote=False)


def new_figure(height: int) -> Figure:
    """An empty figure in the report's style: no frame, faint grid, no toolbar, nothing that catches a scroll."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": RULE,
        "linecolor": RULE,
        "zeroline": False,
        "tickfont": {"color": MUTED},
        "title": {"font": {"color": MUTED, "size": 13}, "standoff": 10},
        "automargin": True,
        "fixedrange": True,
    }
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "hoverlabel": {"bgcolor": PANEL, "bordercolor": RULE, "font": {"color": INK}, "align": "left"},
            "showlegend": False,
            "dragmode": False,
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def _paired_row(row: Paired) -> _Row:
    verdict = ("helps" if (row.mean or 0.0) > 0 else "hurts") if row.separated else ""
    colour, symbol = VERDICT_MARKS.get(verdict, UNDECIDED_MARK)
    return _Row(label=row.a, value=row, colour=colour, symbol=symbol, second=row.problems)


def _forest(rows: Sequence[_Row], *, title: str, line: float | None) -> Figure | None:
    """One row per estimate from the top down, with its interval, and a dashed line to compare with."""
    rows = [row for row in rows if row.value.mean is not None]
    if not rows:
        return None
    figure = new_figure(height=76 + 34 * len(rows))
    ends = [len(rows) - 0.4, -0.6]
    if line is not None:
        # A trace, not a shape: it lies above the grid and below the estimates.
        style = {"color": GREY, "width": 1, "dash": "dash"}
        figure.add_scatter(x=[100 * line] * 2, y=ends, mode="lines", line=style, hoverinfo="skip")
    for position, row in enumerate(rows):
        mean = row.value.mean or 0.0
        seeds = [100 * value for value in row.value.seeds if value is not None]
        if len(seeds) > 1:
            figure.add_scatter(
                x=seeds,
                y=[position + 0.26] * len(seeds),
                mode="markers",
                marker={"size": 5, "color": GREY},
                hovertext=[f"{label(row.label)}, one seed: {value:.1f}" for value in seeds],
                hoverinfo="text",
            )
        if row.second is not None and row.second.bounded:
            figure.add_scatter(
                x=[100 * (row.second.low or 0.0), 100 * (row.second.high or 0.0)],
                y=[position + 0.22] * 2,  # below, where a wider thick line does not hide it
                mode="lines",
                line={"color": row.colour, "width": 1},
                hoverinfo="skip",
            )
        low, high = (row.value.low, row.value.high) if row.value.bounded else (mean, mean)
        figure.add_scatter(
            x=[100 * mean],
            y=[position],
            mode="markers",
            marker={"size": 9, "color": row.colour, "symbol": row.symbol, "line": {"width": 2, "color": row.colour}},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * ((high or 0.0) - mean)],
                "arrayminus": [100 * (mean - (low or 0.0))],
                "thickness": 2 if row.second is None else 3,
                "width": 0,
                "color": row.colour,
            },
            hovertext=[f"{label(row.label, MAX_ID_CHARS)}<br>{show(row.value)}"],
            hoverinfo="text",
        )
    figure.update_xaxes(title_text=title)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[label(row.label) for row in rows],
        tickfont={"color": INK},
        range=ends,
        showgrid=False,
    )
    return figure


def _line(
    figure: Figure,
    vector: str,
    pairs: Sequence[tuple[SweepPoint, Interval]],
    scale: float,
    *,
    colour: str,
    dash: str,
    legend: str,
) -> None:
    known = any(trace.name == label(legend) for trace in figure.data)
    figure.add_scatter(
        x=[point.alpha for point, _ in pairs],
        y=[scale * (found.mean or 0.0) for _, found in pairs],
        mode="lines+markers",
        name=label(legend),
        legendgroup=label(legend),
        showlegend=not known,
        line={"color": colour, "width": 1.2 if colour == GREY else 2, "dash": dash},
        marker={"size": 4 if colour == GREY else 6, "color": colour},
        hovertext=[f"{label(vector)} at {point.alpha:g}<br>{_hover(found, scale)}" for point, found in pairs],
        hoverinfo="text",
    )


def _hover(found: Interval, scale: float) -> str:
    if scale != 100:
        return f"{found.mean or 0.0:.3g}"
    return str(show(found)) if found.bounded else f"{percent(found.mean)} %"


def _band(figure: Figure, bounded: Sequence[tuple[float, Interval]], scale: float, colour: str) -> None:
    if not bounded:
        return
    upper = [scale * (found.high or 0.0) for _, found in bounded]
    lower = [scale * (found.low or 0.0) for _, found in bounded]
    strengths = [strength for strength, _ in bounded]
    figure.add_scatter(
        x=strengths + strengths[::-1],
        y=upper + lower[::-1],
        mode="lines",
        line={"width": 0, "color": colour},
        fill="toself",
        fillcolor=band(colour),
        hoverinfo="skip",
        showlegend=False,
    )


def _baseline(figure: Figure, baseline: Interval) -> None:
    if baseline.mean is None:
        return
    if baseline.low is not None and baseline.high is not None:
        figure.add_hrect(
            y0=100 * baseline.low, y1=100 * baseline.high, fillcolor=band(MUTED), line={"width": 0}, layer="below"
        )
    # The line itself is a trace, so that the legend can name it.
    strengths = [value for trace in figure.data for value in trace.x]
    figure.add_scatter(
        x=[min(strengths), max(strengths)],
        y=[100 * baseline.mean] * 2,
        mode="lines",
        name="baseline, unsteered",
        line={"color": MUTED, "width": 1.5, "dash": "dash"},
        hovertext=[f"baseline<br>{show(baseline)}"] * 2,
        hoverinfo="text",
    )
