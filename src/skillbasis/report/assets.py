"""The page's own files and the vendored libraries, ready to stand inside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

PLOTLY = "vendor/plotly-basic.min.js"
KATEX = "vendor/katex.min.js"
KATEX_STYLE = "vendor/katex.min.css"
PAGE_SCRIPT = "page.js"
FORMULAS = "formulas.js"
"""Sets the formulas of unfolded examples, here and in the explorer."""
_MATH = re.compile(r"\$|\\\(|\\\[")


@cache
def asset(name: str) -> str:
    """The text of a file of this package, such as `vendor/katex.min.js`. Parsers hash scripts with LF, so it has LF."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def script_hash(script: str) -> str:
    """The source expression by which a content policy allows one inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def holds_math(texts: Iterable[str]) -> bool:
    """Whether a text has the delimiter of a formula, so that the page needs the library that sets them."""
    return any(_MATH.search(text) for text in texts)


def embed_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    from markupsafe import Markup
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
