"""How things of the explorer look: marked texts, bars of scores, and the templates they stand in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from ..report.charts import COLOURS
from ..report.templates import template_environment
from .marking import END, START

if TYPE_CHECKING:
    from jinja2 import Environment

BAR_WIDTH = 120
_FOUND = re.compile(f"{START}([^{START}{END}]*){END}")


def marked(text: str) -> Markup:
    """A text with its found words marked, and everything else in it escaped."""
    clean = _clean(text)
    parts = _FOUND.split(clean)  # plain, found, plain, found, ..., plain
    out = [
        Markup("<mark>{}</mark>").format(part) if i % 2 else escape(part.replace(START, "").replace(END, ""))
        for i, part in enumerate(parts)
    ]
    return Markup("").join(out)


def _clean(text: str) -> str:
    """Without lone surrogates, which no page can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def bar(value: float, scale: float) -> Markup:
    """A bar to the right or left of a middle line. Args: scale: the value that fills a half."""
    share = 0.0 if not (math.isfinite(value) and scale > 0) else max(-1.0, min(1.0, value / scale))
    half = BAR_WIDTH / 2
    width = abs(share) * half
    start = half if share >= 0 else half - width
    side = "positive" if share >= 0 else "negative"
    return Markup(
        '<svg class="bar" width="{0}" height="12" viewBox="0 0 {0} 12" aria-hidden="true" focusable="false">'
        '<rect class="{1}" x="{2:.1f}" y="1" width="{3:.1f}" height="10"/>'
        '<line x1="{4}" y1="0" x2="{4}" y2="12"/></svg>'
    ).format(BAR_WIDTH, side, start, width, half)


def as_text(value: Any) -> str:
    """A value of a column as it is read."""
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; a dash where it is undefined."""
    return f"{value:+.{digits}f}" if math.isfinite(value) else "–"


def query(values: Sequence[tuple[str, str]]) -> str:
    """Values as the query of an address."""
    return urlencode(values)


@cache
def environment() -> Environment:
    """The templates; everything that is put into them is escaped."""
    made = template_environment("skillbasis.explore", "templates")
    made.filters |= {"marked": marked, "as_text": as_text, "signed": signed, "query": query}
    made.globals["bar"] = bar
    return made


@cache
def stylesheet() -> str:
    """The colours and the style of the report, and what the explorer adds."""

    def colours(place: int) -> str:
        return " ".join(f"--{name}: {pair[place]};" for name, pair in COLOURS.items())

    fonts = (
        '--serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, "Liberation Serif", Georgia, serif; '
        '--sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; '
        '--mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;'
    )
    report = files("skillbasis.report").joinpath("page.css").read_text("utf-8")
    own = files("skillbasis.explore").joinpath("explore.css").read_text("utf-8")
    return (
        f":root {{ color-scheme: light dark; {colours(0)} {fonts} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {colours(1)} }} }}\n{report}\n{own}"
    )
