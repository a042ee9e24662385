"""The plots of a safety study: a small one per measure, and the geometry of the choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..charts import (
    BLUE,
    DASHES,
    GREY,
    INK,
    MAX_ID_CHARS,
    MUTED,
    SERIES,
    band,
    label,
    new_figure,
)
from ..records.figures import Interval
from ..records.safety import Geometry, Measure, Points, Safety
from ..shown import number, percent, show
from ..wording import RANDOM

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
RINGS = ("circle-open", "square-open", "diamond-open", "hexagon-open", "triangle-up-open", "star-open")
MAX_TYPES = len(SERIES) * len(SYMBOLS)
COVERAGE = "coverage"
OTHER_TYPES = "other types"
NO_TYPE = "type not recorded"
_STEP = 0.012  # decades by which the arms stand beside each other, so that intervals do not hide one another
Curve = Sequence[tuple[int, Interval]]
"""Budget -> estimate, budgets ascending."""


def arm_styles(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of every arm's line, the same in all plots; `random` is grey."""
    coloured = [arm for arm in arms if arm != RANDOM]
    styles = {arm: (SERIES[i % len(SERIES)], DASHES[i // len(SERIES) % len(DASHES)]) for i, arm in enumerate(coloured)}
    return {arm: styles.get(arm, (GREY, "solid")) for arm in arms}


def efficiency(safety: Safety, measure: Measure) -> Figure | None:
    """Draws one measure against the budget, a line per arm, the untuned model dashed; None where there is no value."""
    curves: dict[str, Curve] = {name: arm.curve(measure.name) for name, arm in safety.arms.items()}
    level: Interval = safety.base.level(measure.name)
    if measure.counted:
        level = Interval(mean=level.mean)
        curves = {
            name: [(budget, Interval(mean=value.mean)) for budget, value in curve] for name, curve in curves.items()
        }
    figure = _curves(curves, scale=100)
    if figure is not None and not any(value.mean for curve in curves.values() for _, value in curve):
        figure.update_yaxes(range=[-0.05, 1])  # all at 0: no axis of negative shares
    if figure is None or level.mean is None:
        return figure
    if level.low is not None and level.high is not None:
        figure.add_hrect(
            y0=100 * level.low, y1=100 * level.high, fillcolor=band(MUTED), line={"width": 0}, layer="below"
        )
    first, last = (10**end for end in figure.layout.xaxis.range)
    figure.add_scatter(
        x=[first, last],
        y=[100 * level.mean] * 2,
        mode="lines",
        line={"color": MUTED, "width": 1.5, "dash": "dash"},
        hovertext=[f"untuned model<br>{_percentage(level)}"] * 2,
        hoverinfo="text",
    )
    return figure


def covering(geometry: Geometry, arms: Sequence[str], which: str) -> Figure | None:
    """Draws the largest (`max`) or the mean distance to the nearest chosen row against the budget, a line per arm."""
    curves = {}
    for arm in arms:
        by_budget = geometry.radius.get(arm, {})
        found = [(budget, getattr(by_budget[budget], which) or Interval()) for budget in sorted(by_budget)]
        curves[arm] = [(budget, value) for budget, value in found if value.mean is not None]
    figure = _curves(curves, scale=1)
    if figure is not None:
        figure.update_yaxes(title_text="standard deviations")
    return figure


def min_distances(geometry: Geometry, budgets: Sequence[int]) -> Figure | None:
    """Draws the distance of each row that `coverage` chose to the nearest before it; dots stand at the budgets."""
    pairs = [(rank, value) for rank, value in enumerate(geometry.order.distances, 1) if value is not None]
    if not pairs:
        return None
    figure = new_figure(height=260)
    figure.add_scatter(
        x=[rank for rank, _ in pairs],
        y=[value for _, value in pairs],
        mode="lines",
        line={"color": BLUE, "width": 2},
        hovertext=[f"row {rank}: {value:.3g}" for rank, value in pairs],
        hoverinfo="text",
    )
    marked = [(rank, value) for rank, value in pairs if rank in set(budgets)]
    figure.add_scatter(
        x=[rank for rank, _ in marked],
        y=[value for _, value in marked],
        mode="markers",
        marker={"size": 8, "color": BLUE},
        hovertext=[f"budget {rank}: {value:.3g}" for rank, value in marked],
        hoverinfo="text",
    )
    figure.update_xaxes(title_text="rows chosen", rangemode="tozero")
    figure.update_yaxes(title_text="standard deviations", rangemode="tozero")
    return figure


@dataclass(frozen=True)
class TypeMark:
    """How the rows of one attack type are drawn."""

    name: str
    rows: list[int]
    """Positions among the points."""
    colour: str
    symbol: str


def type_marks(points: Points) -> list[TypeMark]:
    """A colour and form per attack type, the commonest first; what finds none of its own is grey, at the end."""
    types = [points.labels[row] if row < len(points.labels) else None for row in range(_n_points(points))]
    commonest = [kind for kind, _ in Counter(kind for kind in types if kind is not None).most_common(MAX_TYPES)]
    rows: dict[str | None, list[int]] = {kind: [] for kind in commonest}
    others: list[int] = []
    for row, kind in enumerate(types):
        if kind is not None and kind not in rows:
            others.append(row)
        else:
            rows.setdefault(kind, []).append(row)
    marks = [
        TypeMark(kind, rows[kind], SERIES[i % len(SERIES)], SYMBOLS[i // len(SERIES)])
        for i, kind in enumerate(commonest)
    ]
    rest = (TypeMark(OTHER_TYPES, others, GREY, SYMBOLS[0]), TypeMark(NO_TYPE, rows.get(None, []), GREY, SYMBOLS[0]))
    return marks + [mark for mark in rest if mark.rows]


def attack_scatter(geometry: Geometry, arms: Sequence[str]) -> Figure | None:
    """Draws the pool on two components, a colour and form per attack type, and rings around what an arm chose.

    The rings of `coverage`, which reads this geometry, are shown at first, else those of the first arm; the legend
    shows and hides those of each, which have a form of their own.
    """
    points = geometry.points
    if not _n_points(points):
        return None
    figure = new_figure(height=480)
    for mark in type_marks(points):
        figure.add_scatter(
            x=[points.x[row] for row in mark.rows],
            y=[points.y[row] for row in mark.rows],
            mode="markers",
            showlegend=False,
            marker={"size": 5, "color": mark.colour, "symbol": mark.symbol, "opacity": 0.6},
            hovertext=[_point_text(points, row) for row in mark.rows],
            hoverinfo="text",
        )
    place = {points.ids[row]: row for row in range(_n_points(points))}
    shown = [arm for arm in arms if arm in geometry.chosen]
    first = COVERAGE if COVERAGE in shown else next(iter(shown), None)
    for i, arm in enumerate(shown):
        chosen = geometry.chosen[arm]
        rows = [place[row_id] for row_id in chosen.ids if row_id in place]
        figure.add_scatter(
            x=[points.x[row] for row in rows],
            y=[points.y[row] for row in rows],
            mode="markers",
            name=f"{label(arm)} ({_of(len(rows), len(chosen.ids))})",
            showlegend=True,
            visible=True if arm == first else "legendonly",
            marker={"size": 10, "symbol": RINGS[i % len(RINGS)], "color": INK, "line": {"width": 1.3, "color": INK}},
            hoverinfo="skip",
        )
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12, "color": INK}}
    figure.update_layout(showlegend=bool(shown), legend=legend | {"itemdoubleclick": False})
    zero = {"zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 1}
    shares = [f", {100 * share:.1f} % of the variance" if share is not None else "" for share in geometry.variance]
    across, up = (*shares, "", "")[:2]
    figure.update_xaxes(title_text=f"component 0{across}, standard deviations", **zero)
    figure.update_yaxes(title_text=f"component 1{up}, standard deviations", **zero)
    return figure


def _of(n: int, n_all: int) -> str:
    return f"{n:,}" if n == n_all else f"{n:,} of {n_all:,}"


def _n_points(points: Points) -> int:
    return min(len(points.ids), len(points.x), len(points.y))


def _point_text(points: Points, row: int) -> str:
    kind = points.labels[row] if row < len(points.labels) else None
    return f"{label(points.ids[row], MAX_ID_CHARS)}<br>{NO_TYPE if kind is None else label(kind)}"


def _curves(curves: Mapping[str, Curve], scale: float) -> Figure | None:
    """A line per arm over budgets on a log axis, with its intervals; None where there is no value."""
    budgets = sorted({budget for curve in curves.values() for budget, _ in curve})
    if not budgets:
        return None
    figure = new_figure(height=230)
    styles = arm_styles(list(curves))
    # Lines in the order of the arms would hide the first, which the study is about: it is drawn last.
    for i, (arm, curve) in reversed(list(enumerate(curves.items()))):
        if not curve:
            continue
        colour, dash = styles[arm]
        shift = 10 ** (_STEP * (i - (len(curves) - 1) / 2))
        ends = [(value.low, value.high) if value.bounded else (value.mean, value.mean) for _, value in curve]
        means = [value.mean or 0.0 for _, value in curve]
        figure.add_scatter(
            x=[budget * shift for budget, _ in curve],
            y=[scale * mean for mean in means],
            mode="lines+markers",
            name=label(arm),
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 6, "color": colour},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [scale * ((high or 0.0) - mean) for (_, high), mean in zip(ends, means, strict=True)],
                "arrayminus": [scale * (mean - (low or 0.0)) for (low, _), mean in zip(ends, means, strict=True)],
                "thickness": 1.2,
                "width": 0,
                "color": colour,
            },
            hovertext=[
                f"{label(arm)}, budget {budget:,}<br>{_percentage(value) if scale == 100 else in_deviations(value)}"
                for budget, value in curve
            ],
            hoverinfo="text",
        )
    pad = 0.08 + _STEP * len(curves) / 2
    figure.update_xaxes(
        type="log",
        range=[math.log10(budgets[0]) - pad, math.log10(budgets[-1]) + pad],
        tickvals=budgets,
        ticktext=[f"{budget:,}" for budget in budgets],
        title_text="budget, examples",
    )
    return figure


def _percentage(value: Interval) -> str:
    return str(show(value)) if value.bounded else f"{percent(value.mean)} %"


def in_deviations(value: Interval | None) -> str:
    """A distance with its interval, as a plain number."""
    if value is None or value.mean is None:
        return number(None)
    if not value.bounded:
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"
