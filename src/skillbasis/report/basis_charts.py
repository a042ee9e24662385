"""The spectrum of a basis as a Plotly figure, and what the page's script draws the scatter of scores from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .charts import BLUE, ORANGE, new_figure
from .records.basis import BasisFacts, ScoreSample
from .records.directions import Interpretation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_CATEGORIES = 20
SIGNIFICANT_DIGITS = 5
NONE_GIVEN = "none given"


def spectrum(basis: BasisFacts) -> Figure | None:
    """Draws the share of variance per direction, in percent (or the variance where no shares are recorded).

    Shares that add up are drawn together as a line; None where nothing was recorded.
    """
    shares = [None if value is None else 100 * value for value in basis.explained_variance_ratio]
    values: list[float | None] = list(shares or basis.explained_variance)
    if not any(value is not None for value in values):
        return None
    title, unit = ("share of variance, %", " %") if shares else ("explained variance", "")
    sums = basis.cumulative if shares else ()
    figure = new_figure(height=300)
    figure.add_bar(
        x=list(range(len(values))),
        y=values,
        name="single directions",
        marker={"color": BLUE, "line": {"width": 0}},
        hovertext=[f"d{i}: {'undefined' if value is None else f'{value:.3g}{unit}'}" for i, value in enumerate(values)],
        hoverinfo="text",
    )
    if sums:
        figure.add_scatter(
            x=list(range(len(sums))),
            y=[100 * value for value in sums],
            mode="lines+markers",
            name="together with those before",
            line={"color": ORANGE, "width": 2},
            marker={"size": 6, "color": ORANGE},
            hovertext=[f"d0 to d{i}: {100 * value:.1f} %" for i, value in enumerate(sums)],
            hoverinfo="text",
        )
        figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(title_text="direction", showgrid=False, dtick=max(1, len(values) // 12))
    figure.update_yaxes(title_text=title, rangemode="tozero")
    figure.update_layout(bargap=0.5)
    return figure


def spectrum_caption(basis: BasisFacts) -> str:
    """What the figure shows, and in which units its line adds up."""
    text = "Share of the variance of the activations along each direction."
    if basis.cumulative and basis.orthogonal:
        return f"{text} The line adds them up."
    if basis.cumulative:
        return (
            f"{text} In these units the directions are not orthogonal and their shares overlap; the line adds up their "
            "shares in units of each block's deviation, in which they were found and are orthogonal."
        )
    overlap = " The directions are not orthogonal: their shares overlap and do not add up."
    return text if basis.orthogonal else text + overlap


def scatter_data(sample: ScoreSample, interpretation: Interpretation | None) -> dict[str, Any]:
    """What the page's script needs to draw any two directions in any colour.

    Returns: JSON-able: `names`, `titles` (by name, with the label where there is one), `ids`, `scores` (a list per
        direction, five significant digits), `columns` (each `name` and either `numbers`, or `categories`, the most
        frequent first, and `codes` into them).
    """
    labels = {f"d{entry.direction}": entry.label for entry in (interpretation.directions if interpretation else ())}
    titles = []
    for name in sample.names:
        label = labels.get(name)
        words = f": {', '.join(label.positive)} against {', '.join(label.negative)}" if label else ""
        titles.append(f"{name}{words}"[:90])
    return {
        "names": list(sample.names),
        "titles": titles,
        "ids": [row_id[:80] for row_id in sample.ids],
        "scores": [[_rounded(value) for value in values] for values in sample.scores],
        "columns": [_column(name, values) for name, values in sample.columns.items()],
    }


def _column(name: str, values: Sequence[bool | int | float | str | None]) -> dict[str, Any]:
    present = {value for value in values if value is not None}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
    if numeric and len(present) > MAX_CATEGORIES:
        return {"name": name[:80], "numbers": [None if value is None else _rounded(float(value)) for value in values]}
    texts = [_text(value) for value in values]
    frequency = Counter(texts)
    categories = sorted(frequency, key=lambda text: (-frequency[text], text))
    place = {text: i for i, text in enumerate(categories)}
    codes = [place[text] for text in texts]
    return {"name": name[:80], "categories": [text[:60] for text in categories], "codes": codes}


def _text(value: bool | int | float | str | None) -> str:
    if value is None:
        return NONE_GIVEN
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
