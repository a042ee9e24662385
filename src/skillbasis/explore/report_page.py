"""The report of a run as its files are now, with a bar on top that leads back to the explorer."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from threading import Lock

from markupsafe import Markup

from ..report.collect import collect
from ..report.page import Served, render
from .opened import OpenedRun
from .shown import environment, query


class ReportPage:
    """Renders the report when it is asked for, and again when a file of it has changed; the run's own is left alone."""

    def __init__(self, run: OpenedRun) -> None:
        self._run = run
        self._kept: tuple[float, str, tuple[str, ...]] | None = None
        self._lock = Lock()

    @property
    def page(self) -> str:
        """The whole page. Raises: SkillbasisError: an artifact is damaged."""
        return self._rendered()[0]

    def file(self, name: str) -> Path | None:
        """A file that the report names; what is asked for is compared with them and never opened itself."""
        found = next((known for known in self._rendered()[1] if known == name), None)
        return None if found is None else self._run.path / found

    def _rendered(self) -> tuple[str, tuple[str, ...]]:
        with self._lock:
            report = collect(self._run.path)
            newest = max((self._run.path / name).stat().st_mtime for name in report.files)
            if self._kept is None or self._kept[0] != newest:
                page = render(report, self._served()).encode("utf-8", "replace").decode("utf-8")
                self._kept = (newest, page, report.files)
            return self._kept[1], self._kept[2]

    def _served(self) -> Served:
        bar = environment().get_template("report_bar.html.j2").render(run=self._run)
        style = files("skillbasis.explore").joinpath("report_bar.css").read_text("utf-8")
        return Served(Markup(bar), Markup(style), examples_at if self._run.search is not None else None)


def examples_at(direction: int, sign: str) -> str:
    """The explorer's address of the examples at an end of a direction, from the middle on, the furthest first."""
    return f"/?{query([('direction', str(direction)), ('sign', sign), ('least', '0')])}"
