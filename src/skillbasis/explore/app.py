"""The pages of the explorer: what each address answers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import SkillbasisError
from ..report.assets import FORMULAS, KATEX, KATEX_STYLE, asset
from ..steer.hooks import SCOPES
from ..steer.vectors import UNITS
from .answers import Answers, Wanted
from .coordinates import place_of
from .exporting import export, exported_file
from .marking import NOTHING
from .model import Model
from .opened import OpenedRun
from .report_page import ReportPage
from .searching import MATCHES, MEASURES, OPERATORS, PAGE_ROWS, Question, Search
from .shown import environment, stylesheet
from .streaming import events

MAX_TEXT_CHARS = 200_000
SHOWN_IN_SAFETY = 200
"""Characters up to which a further column of a safety run is shown: longer ones may hold an answer to an attack."""
_SCRIPTS = (("vendor", "htmx.min.js"), ("vendor", "htmx-sse.min.js"), ("", "explore.js"))
_CHANGED = "The files of the run have changed since the explorer was started; stop it and start it again."


def make_app(run: OpenedRun) -> Starlette:
    """The application of one run; what keeps others out is `Guard`.

    Whoever serves it may put a function into `state.closing` that says when the server is about to end.
    """
    pages = _Pages(run)
    app = Starlette(
        routes=[
            Route("/", pages.examples),
            Route("/results", pages.results),
            Route("/example/{n:int}", pages.example),
            Route("/export", pages.export, methods=["POST"]),
            Route("/exports/{name}", pages.exported),
            Route("/tag", pages.tag, methods=["POST"]),
            Route("/tag-all", pages.tag_all, methods=["POST"]),
            Route("/text", pages.text),
            Route("/place", pages.place, methods=["POST"]),
            Route("/steer", pages.steer),
            Route("/steer/start", pages.steer_start, methods=["POST"]),
            Route("/steer/stop", pages.steer_stop, methods=["POST"]),
            Route("/steer/stream/{key}", pages.steer_stream),
            Route("/report/", pages.report),
            Route("/report/{name:path}", pages.report_file),
            Route("/style.css", _text(stylesheet(), "text/css")),
            Route("/katex.css", _text(asset(KATEX_STYLE), "text/css")),
            Route("/katex.js", _text(asset(KATEX), "text/javascript")),
            Route("/formulas.js", _text(asset(FORMULAS), "text/javascript")),
            *(Route(f"/{name}", _text(_own(folder, name), "text/javascript")) for folder, name in _SCRIPTS),
        ],
        exception_handlers={SkillbasisError: _sentence, HTTPException: _nothing_there},
    )
    app.state.closing = lambda: False
    return app


def _own(folder: str, name: str) -> str:
    return files("skillbasis.explore").joinpath(folder, name).read_text("utf-8")


def _text(text: str, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(text, media_type=kind)


async def _sentence(_: Request, error: Exception) -> Response:
    """An error in a part of a page is one sentence there; htmx puts in only what comes with status 200."""
    return HTMLResponse(environment().get_template("problem.html.j2").render(sentence=str(error)))


async def _nothing_there(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return PlainTextResponse("there is no such page; go back to /\n", status_code=status)


async def _form(request: Request) -> list[tuple[str, str]]:
    """The fields of a form in their order, line ends as LF."""
    text = (await request.body()).decode("utf-8", "replace")
    return [(name, value.replace("\r\n", "\n")) for name, value in parse_qsl(text, keep_blank_values=True)]


def _whole(text: str | None) -> int | None:
    """The whole number that a text is, None where it is none."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None


class _Pages:
    """The answers to requests; each renders a whole page or a part of one."""

    def __init__(self, run: OpenedRun) -> None:
        self.run = run
        self.model = Model(run.model, run.dtype, run.basis)
        self.answers = Answers(self.model, run.basis) if run.basis is not None and not run.safety else None
        self._report = ReportPage(run)

    def _page(self, template: str, **values: Any) -> Response:
        common = {"run": self.run, "changed": _CHANGED if self.run.changed else "", "model_loaded": self.model.loaded}
        return HTMLResponse(environment().get_template(template).render(**common, **values))

    def _search(self) -> Search:
        if self.run.search is None:
            raise SkillbasisError(" ".join(self.run.gaps) or "there are no examples to search")
        return self.run.search

    def examples(self, request: Request) -> Response:
        """The page of the examples, with the results of the question in its address."""
        question = Question.of(request.query_params.multi_items())
        search = self.run.search
        found = None if search is None else self._results(search, question, 0)
        tags = {} if search is None else search.tags.counts()
        asked = self._asked(question)
        return self._page("examples.html.j2", results=found, tags=tags, measures=MEASURES, refilled=False, **asked)

    def _asked(self, question: Question) -> dict[str, Any]:
        """What the fields of a question are filled with."""
        columns = [] if self.run.search is None else self.run.search.index.columns
        return {"question": question, "columns": columns, "operators": OPERATORS, "matches": MATCHES}

    def results(self, request: Request) -> Response:
        """A page of results; the address of the whole page follows the question.

        With `keep` what was typed of a filter becomes one of those that are kept, with `without` one of them goes.
        """
        asked = request.query_params
        question = Question.of(asked.multi_items())
        gone = _whole(asked.get("without"))
        if gone is not None:
            question = question.without(gone)
        start = _whole(asked.get("offset")) or 0
        values = self._results(self._search(), question, start)
        refilled = "keep" in asked or gone is not None
        answer = self._page("results.html.j2", results=values, refilled=refilled, **self._asked(question))
        if not start:
            answer.headers["HX-Replace-Url"] = f"/?{environment().filters['query'](question.pairs())}"
        return answer

    def _results(self, search: Search, question: Question, start: int) -> dict[str, Any]:
        """What the template of results shows; a question that cannot be meant is a sentence."""
        began = perf_counter()
        try:
            found = search.find(question)
        except SkillbasisError as error:
            return {"problem": str(error), "n": 0, "entries": [], "start": 0, "next": None}
        rows = found.rows[start : start + PAGE_ROWS].tolist()
        texts = search.snippets(rows, found.sought) if rows else {}
        values = [None] * len(rows) if found.values is None else found.values[start : start + PAGE_ROWS].tolist()
        entries = [
            {"n": n, "id": search.scores.ids[n], "prompt": texts[n][0], "response": texts[n][1], "value": value}
            for n, value in zip(rows, values, strict=True)
        ]
        after = start + len(rows)
        return {
            "problem": "",
            "n": len(found.rows),
            "n_all": len(search.scores.ids),
            "order": found.order,
            "entries": entries,
            "start": start,
            "next": after if after < len(found.rows) else None,
            "milliseconds": 1000 * (perf_counter() - began),
        }

    def example(self, request: Request) -> Response:
        """One example, opened."""
        search, n = self._search(), request.path_params["n"]
        found = search.index.example(n) if n < len(search.scores.ids) else None
        if found is None:
            raise HTTPException(404)
        question = Question.of(request.query_params.multi_items())
        try:
            sought = search.find(question).sought
        except SkillbasisError:
            sought = NOTHING  # the list says what is wrong with the question
        texts = search.highlighted(n, sought)
        extra = found.extra
        if self.run.safety:
            extra = {key: value for key, value in extra.items() if len(str(value)) <= SHOWN_IN_SAFETY}
        return self._page(
            "example.html.j2",
            example=found,
            # Marks can be put into the joined text of a prompt; with several turns its roles are worth more.
            prompt=texts[0] if texts and len(found.messages) == 1 else None,
            response=texts[1] if texts else found.response,
            extra=extra,
            n_hidden=len(found.extra) - len(extra),
            cosines=_cosines(search, n),
            values=search.scores.values[n].tolist(),
            tags=search.tags.of(found.id),
            all_tags=list(search.tags.counts()),
        )

    async def tag(self, request: Request) -> Response:
        """Tags one example, or takes a tag off it."""
        search, form = self._search(), dict(await _form(request))
        n = _whole(form.get("n"))
        if n is None or n >= len(search.scores.ids):
            raise HTTPException(404)
        row_id, problem = search.scores.ids[n], ""
        try:
            if form.get("remove"):
                await run_in_threadpool(search.tags.remove, form["remove"], [row_id])
            else:
                await run_in_threadpool(search.tags.add, form.get("new_tag", ""), [row_id])
        except SkillbasisError as error:
            problem = str(error)
        return self._page(
            "tags.html.j2",
            n=n,
            tags=search.tags.of(row_id),
            all_tags=list(search.tags.counts()),
            counts=search.tags.counts(),
            chosen=form.get("tag", ""),
            problem=problem,
        )

    async def tag_all(self, request: Request) -> Response:
        """Tags everything that the question finds."""
        search, pairs = self._search(), await _form(request)
        form = dict(pairs)
        found = await run_in_threadpool(search.find, Question.of(pairs))
        ids = [search.scores.ids[n] for n in found.rows.tolist()]
        name = await run_in_threadpool(search.tags.add, form.get("new_tag", ""), ids)
        counts = search.tags.counts()
        return self._page("tagged_all.html.j2", n=len(ids), name=name, counts=counts, tag=form.get("tag", ""))

    async def export(self, request: Request) -> Response:
        """Writes what is found into the run, and says where it is; both files can then be downloaded."""
        search, question = self._search(), Question.of(await _form(request))
        written = await run_in_threadpool(export, self.run, search, question)
        return self._page("exported.html.j2", written=written)

    def exported(self, request: Request) -> Response:
        """A file of an export, to be kept elsewhere too."""
        return _file(exported_file(self.run, request.path_params["name"]), attached=True)

    def text(self, _: Request) -> Response:
        return self._page("text.html.j2", missing=self._why_no_model())

    def _why_no_model(self) -> str:
        if self.run.basis is None:
            return "There is no basis in this run, so a text has no coordinates and there is nothing to steer along."
        return "" if self.run.model else "The run does not name its model; start the explorer with --model."

    async def place(self, request: Request) -> Response:
        """Where a pasted text lies."""
        form = dict(await _form(request))
        return await run_in_threadpool(self._place, form.get("prompt", ""), form.get("response", ""))

    def _place(self, prompt: str, response: str) -> Response:
        run = self.run
        if run.basis is None:
            raise SkillbasisError(self._why_no_model())
        if len(prompt) + len(response) > MAX_TEXT_CHARS:
            raise SkillbasisError(f"the text is longer than {MAX_TEXT_CHARS:,} characters; give a shorter one")
        with self.model.use() as lm:
            place = place_of(prompt, response, run.basis, lm, run.scores)
        nearest = []
        if run.search is not None:
            texts = run.search.snippets([n for n, _ in place.nearest]) if place.nearest else {}
            nearest = [(n, cosine, run.search.scores.ids[n], *texts[n]) for n, cosine in place.nearest]
        return self._page("place.html.j2", place=place, nearest=nearest, std=run.basis.score_std.tolist())

    def steer(self, _: Request) -> Response:
        why = self._why_no_model()
        if self.run.safety:
            why = "This is a safety run: answers to attacks are never shown here, so nothing is generated."
        return self._page("steer.html.j2", missing=why, scopes=SCOPES, units=UNITS)

    def _generating(self) -> Answers:
        if self.answers is None:
            raise SkillbasisError("nothing is generated for this run")
        return self.answers

    async def steer_start(self, request: Request) -> Response:
        """Begins a comparison; the part of the page that is sent listens to its stream."""
        answers, form = self._generating(), dict(await _form(request))
        assert self.run.basis is not None  # else there are no answers
        wanted = Wanted.of(form, self.run.basis.n_components)
        return self._page("answers.html.j2", answering=answers.start(wanted))

    async def steer_stop(self, _: Request) -> Response:
        self._generating().stop()
        return Response(status_code=204)

    async def steer_stream(self, request: Request) -> Response:
        """The two answers as they come: the newest text of each side, and `over` at the end."""
        answering = self._generating().find(request.path_params["key"])
        if answering is None:
            raise HTTPException(404)
        return StreamingResponse(events(answering, request.app.state.closing), media_type="text/event-stream")

    def report(self, _: Request) -> Response:
        """The report of the run as it is now; its own policy stands in the page."""
        return HTMLResponse(self._report.page, headers={"Content-Security-Policy": "frame-ancestors 'none'"})

    def report_file(self, request: Request) -> Response:
        """One of the files that the report names."""
        return _file(self._report.file(request.path_params["name"]))


def _file(path: Path | None, *, attached: bool = False) -> Response:
    """A file of the run, to be looked at or to be kept. Raises: HTTPException: there is none."""
    if path is None:
        raise HTTPException(404)
    kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
    return FileResponse(path, media_type=kind, filename=path.name if attached else None)


def _cosines(search: Search, n: int) -> list[float]:
    norm = float(search.scores.norm[n])
    return [float(value) / norm if norm > 0 else 0.0 for value in search.scores.values[n]]
