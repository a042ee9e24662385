"""The explorer without a browser: what it finds, writes, streams and refuses, held against the package itself."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.testclient import TestClient

from explored import EVIL, LONG_CHARS, rows
from skillbasis.artifact import file_sha256, read_json, write_json
from skillbasis.basis import Scores, SkillBasis
from skillbasis.corpus import SelectedRow, load_corpus, write_selection
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.evaluate.generate import generate
from skillbasis.evaluate.sampler import Prompt, SamplingSettings
from skillbasis.explore.app import make_app
from skillbasis.explore.exporting import export, selection_lines
from skillbasis.explore.guard import MAX_BODY_BYTES, Guard
from skillbasis.explore.marking import MAX_MARKS, Sought
from skillbasis.explore.opened import OpenedRun, open_run
from skillbasis.explore.searching import Filter, Question, Search, full_text_query
from skillbasis.explore.serving import serve
from skillbasis.explore.shown import bar, marked
from skillbasis.explore.tags import Tags
from skillbasis.interpret.locate import locate
from skillbasis.lm import load_model
from skillbasis.report import write_report
from skillbasis.steer.hooks import steer
from skillbasis.steer.vectors import direction_vector

HOST = "127.0.0.1:8765"


@pytest.fixture
def run_path(explored_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(explored_run, tmp_path / "run"))


@pytest.fixture
def opened(run_path: Path) -> OpenedRun:
    return open_run(run_path)


def client_of(run: OpenedRun) -> TestClient:
    """A browser that has been let in."""
    guard = Guard(make_app(run), 8765)
    client = TestClient(guard, base_url=f"http://{HOST}", headers={"Origin": f"http://{HOST}"})
    assert client.get("/", params={"token": guard.token}).status_code == 200
    return client


@pytest.fixture
def client(opened: OpenedRun) -> Iterator[TestClient]:
    with client_of(opened) as client:
        yield client


def search_of(run: OpenedRun) -> Search:
    assert run.search is not None
    return run.search


def ids(run: OpenedRun, *further: tuple[str, str], **asked: str) -> list[str]:
    search = search_of(run)
    return [search.scores.ids[n] for n in search.find(Question.of([*asked.items(), *further])).rows]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_words_find_what_holds_them(opened: OpenedRun) -> None:
    assert len(ids(opened)) == 60
    assert set(ids(opened, q="zebra")) == {"evil", "long"}
    assert ids(opened, q="zebra -count") == ["evil"]
    assert ids(opened, q='"Add 121 and"') == ["row-03"]
    assert ids(opened, q="121+209=330") == ["row-03"]  # signs only separate the words
    assert set(ids(opened, q="zeb*")) == {"evil", "long"}
    assert ids(opened, q="اثنين") == ["arabic"]
    assert ids(opened, q="nowhere") == []
    assert len(ids(opened, q="digit last")) == 28
    for query in ("+ = *", "-zebra", "..."):
        with pytest.raises(UsageError, match="add a word"):
            search_of(opened).find(Question(q=query))


@pytest.mark.parametrize("typed", ['"', 'a" OR b', "NEAR(a b)", "prompt:x", "a AND", "{a}", "^a", "*", "a\0b", "''--"])
def test_no_query_is_a_program(opened: OpenedRun, typed: str) -> None:
    try:
        search_of(opened).find(Question(q=typed))
    except UsageError as error:
        assert "add a word" in str(error)  # noqa: PT017


def test_full_text_query() -> None:
    assert full_text_query("") == ""
    assert full_text_query('sum "in a row" -no beg*') == '"sum" AND "in a row" AND "beg*"* NOT "no"'


@pytest.mark.parametrize("by", ["cosine", "projection"])
@pytest.mark.parametrize("sign", ["+", "-"])
def test_directions_order_and_cut_as_the_scores_say(opened: OpenedRun, by: str, sign: str) -> None:
    table = Scores.load(opened.path / "scores.parquet")
    values = (table.cosine if by == "cosine" else table.values)[:, 2] * (1 if sign == "+" else -1)
    threshold = float(np.median(values))
    expected = [table.ids[n] for n in np.argsort(-values, kind="stable") if values[n] >= threshold]
    assert ids(opened, direction="2", by=by, sign=sign, least=repr(threshold)) == expected
    with_words = [i for i in expected if i.startswith("row-") and int(i[4:]) % 2]
    assert ids(opened, direction="2", by=by, sign=sign, least=repr(threshold), q="add") == with_words


def test_labels_and_columns(opened: OpenedRun) -> None:
    assert set(ids(opened, label="addition")) == {f"row-{i:02d}" for i in range(1, 56, 2)}
    assert set(ids(opened, label=EVIL)) == {"evil", "long", "arabic", "latex"}
    assert set(ids(opened, column="level", op="is", value="9")) == {"evil", "long", "arabic", "latex"}
    assert set(ids(opened, column="level", op="least", value="4")) - {"evil", "long", "arabic", "latex"} == {
        f"row-{i:02d}" for i in range(4, 56, 5)
    }
    assert len(ids(opened, column="level", op="most", value="0")) == 12
    assert len(ids(opened, column="note", op="contains", value="ALERT")) == 0
    assert len(ids(opened, column="note", op="contains", value="OWNED")) == 4
    assert ids(opened, label="addition", column="level", value="9") == []


def test_filters_hold_together_and_stand_in_the_address(opened: OpenedRun, client: TestClient) -> None:
    first = [("column", "level"), ("op", "least"), ("value", "2")]
    second = [("column", "level"), ("op", "most"), ("value", "3")]
    asked = [("label", "addition"), *first, *second]
    expected = [f"row-{i:02d}" for i in range(1, 56, 2) if i % 5 in (2, 3)]
    assert ids(opened, *asked) == expected
    question = Question.of(asked)
    assert question.pairs() == asked and Question.of(question.pairs()) == question
    assert question.without(0).pairs() == [asked[0], *second]
    # One that is still being typed does not count.
    assert Question.of([*asked, ("column", "note"), ("op", "is"), ("value", "")]) == question
    assert Question.of([*asked, ("column", ""), ("op", "is"), ("value", "x")]) == question
    page = client.get("/", params=asked).text
    assert page.count("Take off the filter") == 2 and "level is at least 2" in page
    answer = client.get("/results", params=[*asked, ("without", "1")])
    assert answer.headers["HX-Replace-Url"] == f"/?{urlencode([asked[0], *first])}"
    assert 'hx-swap-oob="true"' in answer.text and "level is at most" not in answer.text
    assert 'hx-swap-oob="true"' not in client.get("/results", params=asked).text
    assert client.get("/results", params=[*asked, ("keep", "1")]).text.count("Take off the filter") == 2


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("\\frac", {"latex"}),
        ("FRAC{1}", {"latex"}),
        ("ebr", {"evil", "long"}),
        ("107*", set()),  # row-01 adds, row-00 has 100*200
        ("100*2", {"row-00"}),
        ("121 and", {"row-03"}),
        ("0%", set()),
        ("1_1", set()),
        ("~", set()),
        ("<img src=x", {"evil"}),
        ('"document', {"evil"}),
        ("'owned'", {"evil"}),
        ("ثني", {"arabic"}),
        ("x", {"evil", "latex", *(f"row-{i:02d}" for i in range(56))}),  # of \boxed
    ],
)
def test_text_as_written_finds_any_characters(opened: OpenedRun, typed: str, expected: set[str]) -> None:
    assert set(ids(opened, q=typed, match="text")) == expected


def test_who_finds_no_words_is_led_to_the_text(client: TestClient) -> None:
    asked = {"q": "ebr", "label": "odd"}
    assert "/?q=ebr&amp;label=odd&amp;match=text" in client.get("/results", params=asked).text
    found = client.get("/results", params=asked | {"match": "text"}).text
    assert "<strong>2</strong>" in found and "text as written" not in found


def test_text_as_written_is_marked(opened: OpenedRun, client: TestClient) -> None:
    number = next(i for i, row in enumerate(rows()) if row["id"] == "latex")
    page = client.get("/results", params={"q": "\\FRAC{", "match": "text"}).text
    assert "Let $x = <mark>\\frac{</mark>1}" in page
    assert "<mark>\\frac{</mark>1}" in client.get(f"/example/{number}", params={"q": "\\FRAC{", "match": "text"}).text
    long = next(i for i, row in enumerate(rows()) if row["id"] == "long")
    assert client.get(f"/example/{long}", params={"q": "1", "match": "text"}).text.count("<mark>") == MAX_MARKS
    assert Sought(characters="far").snippets({0: ("x" * 100 + "Far", "")}) == {0: ("…" + "x" * 30 + "\x02Far\x03", "")}
    assert Sought(characters="far").whole(("near", "")) is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"direction": "4"}, "no direction '4'; the basis has 0 to 3"),
        ({"direction": "x"}, "no direction 'x'"),
        ({"direction": "0", "by": "magic"}, "cosine or projection"),
        ({"direction": "0", "sign": "*"}, r"\+ or -"),
        ({"direction": "0", "least": "nan"}, "the threshold is 'nan'; give a number"),
        ({"column": "level", "op": "least", "value": "x"}, "the value of level is 'x'"),
        ({"column": "nowhere", "value": "x"}, "no column 'nowhere'"),
        ({"column": "level", "op": "like", "value": "x"}, "not by 'like'"),
        ({"q": "x", "match": "sound"}, "not by 'sound'"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(opened: OpenedRun, asked: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        search_of(opened).find(Question.of(asked.items()))
    with client_of(opened) as client:
        answer = client.get("/results", params=asked)
    assert answer.status_code == 200 and 'role="alert"' in answer.text


def test_pages_of_results_hold_every_row_once(client: TestClient) -> None:
    seen: list[str] = []
    for offset in (0, 25, 50):
        text = client.get("/results", params={"offset": str(offset)}).text
        seen += [part.split("</bdi>")[0] for part in text.split('class="id"><bdi>')[1:]]
        assert ("More" in text) == (offset < 50)
    assert sorted(seen) == sorted(row["id"] for row in rows())


def test_texts_are_escaped_everywhere(client: TestClient) -> None:
    number = next(i for i, row in enumerate(rows()) if row["id"] == "evil")
    client.post("/tag", data={"n": str(number), "new_tag": EVIL[:60]})
    pages = [
        "/",
        "/text",
        "/steer",
        f"/?{EVIL}",
        "/results?q=zebra",
        f"/example/{number}?q=zebra",
        f"/results?q={EVIL}",
    ]
    for page in pages:
        text = client.get(page).text
        assert "<script>document" not in text and "<img" not in text, page
    opened = client.get(f"/example/{number}?q=zebra").text
    assert "&lt;script&gt;document.title" in opened and "<mark>zebra</mark>" in opened


def test_long_texts_are_whole_in_the_opened_example(client: TestClient) -> None:
    number = next(i for i, row in enumerate(rows()) if row["id"] == "long")
    assert len(client.get(f"/example/{number}").text) > LONG_CHARS - 10
    assert len(client.get("/results?q=zebra").text) < 10_000
    assert client.get("/example/60").status_code == 404


def test_marks_and_bars() -> None:
    assert marked("a \x02b\x03 <c>") == "a <mark>b</mark> &lt;c&gt;"
    assert marked("\x02 a \x02b\x03 \x03\ud800") == " a <mark>b</mark> ?"
    assert 'class="negative" x="30.0" y="1" width="30.0"' in bar(-0.5, 1)
    assert 'width="0.0"' in bar(float("nan"), 1) and 'width="60.0"' in bar(7, 1)


def test_an_export_is_a_selection(opened: OpenedRun, tmp_path: Path, client: TestClient) -> None:
    corpus = load_corpus(read_json(opened.path / "run.json")["settings"]["corpus"]["source"])
    asked = {"direction": "1", "sign": "-", "label": "digit", "least": "0"}
    found = search_of(opened).find(Question.of(asked.items()))
    assert found.values is not None and 0 < len(found.rows) < 28
    chosen = [
        SelectedRow(search_of(opened).scores.ids[n], rank, score, 1, "-")
        for rank, (n, score) in enumerate(zip(found.rows, found.values.tolist(), strict=True), 1)
    ]
    write_selection(tmp_path / "by-api.jsonl", corpus, chosen, {"strategy": "explore"})
    answer = client.post("/export", data=asked).text
    (path,) = (opened.path / "explore" / "exports").glob("*.jsonl")
    assert f"{len(found.rows)} examples are in <code>{path}</code>" in answer
    assert path.read_bytes() == (tmp_path / "by-api.jsonl").read_bytes()
    for file in (path, path.with_suffix(".json")):
        download = client.get(f"/exports/{file.name}")
        assert f'href="/exports/{file.name}" download' in answer and download.content == file.read_bytes()
        assert download.headers["content-disposition"] == f'attachment; filename="{file.name}"'
    by_api, record = read_json(tmp_path / "by-api.json"), read_json(path.with_suffix(".json"))
    assert {key: record[key] for key in by_api} == by_api  # rows, checksum, corpus, as every selection has them
    client.post("/export", data=asked)
    assert len(list(path.parent.iterdir())) == 2  # the same export is the same file
    plain = [json.loads(line) for line in selection_lines(search_of(opened), Question(q="zebra"))]
    assert {line["id"] for line in plain} == {"evil", "long"} and plain[0]["_selection"]["score"] is None


def test_the_record_of_an_export_says_how_it_was_made(opened: OpenedRun) -> None:
    search = search_of(opened)
    search.tags.add("mine", ["row-03", "row-04"])
    filters = (Filter("level", "least", "3"), Filter("level", "most", "3"))
    asked = Question("dd 1", "text", "d2", "-", "projection", "-1e9", "addition", "mine", filters)
    written = export(opened, search, asked)
    record = read_json(written.record)
    file = opened.path / "scores.parquet"
    assert record.pop("versions").keys() == {"python", "skillbasis"}
    assert record == {
        "strategy": "explore",
        "query": "dd 1",
        "match": "text",
        "direction": 2,
        "sign": "-",
        "by": "projection",
        "least": -1e9,
        "label": "addition",
        "filters": [
            {"column": "level", "op": "least", "value": "3"},
            {"column": "level", "op": "most", "value": "3"},
        ],
        "tag": {"name": "mine", "n_rows": 2},
        "order": "the highest projection first",
        "address": f"/?{urlencode(asked.pairs())}",
        "run": "run",
        "scores": {"file": "scores.parquet", "sha256": file_sha256(file), "n_rows": 60},
        "basis": SkillBasis.load(opened.path / "basis").fingerprint,
        "n_rows": 1,
        "reasons": {},
        "sha256": file_sha256(written.path),
        "corpus_fingerprint": search.index.corpus_fingerprint,
    }
    everything = read_json(export(opened, search, Question()).record)
    unasked = ("query", "match", "direction", "sign", "by", "least", "label", "tag")
    assert (
        everything["n_rows"] == 60 and everything["filters"] == [] and {everything[name] for name in unasked} == {None}
    )


def test_an_export_that_cannot_be_vouched_for_is_refused(opened: OpenedRun, client: TestClient) -> None:
    assert "nothing was found" in client.post("/export", data={"q": "nowhere"}).text
    assert "no direction" in client.post("/export", data={"direction": "9"}).text
    file = opened.path / "scores.parquet"
    os.utime(file, ns=(1, 1))
    assert "have changed since it was opened" in client.post("/export").text
    assert not (opened.path / "explore" / "exports").exists()


def test_tags_are_kept_and_found(opened: OpenedRun, client: TestClient) -> None:
    assert "none" in client.post("/tag", data={"n": "3", "new_tag": " "}).text
    client.post("/tag", data={"n": "3", "new_tag": "  to  look at "})
    assert ids(opened, tag="to look at") == ["row-03"]
    assert client.post("/tag-all", data={"q": "zebra", "new_tag": "to look at"}).text.startswith("2 examples")
    assert set(ids(opened, tag="to look at")) == {"row-03", "evil", "long"}
    assert set(ids(opened, tag="to look at", label="addition")) == {"row-03"}
    kept = read_json(opened.path / "explore" / "tags.json")
    assert set(kept["to look at"]) == {"row-03", "evil", "long"}
    assert Tags(opened.path / "explore" / "tags.json").of("evil") == ["to look at"]
    client.post("/tag", data={"n": "3", "remove": "to look at"})
    assert set(ids(opened, tag="to look at")) == {"evil", "long"}
    assert client.post("/tag", data={"n": "99", "new_tag": "x"}).status_code == 404


def test_nothing_is_written_but_in_its_folder(run_path: Path) -> None:
    before = files(run_path)
    with client_of(open_run(run_path)) as client:
        for page in ("/", "/text", "/results?q=add", "/example/1", "/report/"):
            assert client.get(page).status_code == 200
        client.post("/tag", data={"n": "1", "new_tag": "x"})
        client.post("/export", data={"q": "add"})
    after = files(run_path)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after.keys() - before.keys()} == {"explore"}


def test_the_index_is_built_once_and_holds_without_the_corpus(run_path: Path) -> None:
    open_run(run_path)
    index = run_path / "explore" / "index.sqlite"
    stamp = index.stat().st_mtime_ns
    record = read_json(run_path / "run.json")
    record["settings"]["corpus"]["source"] = str(run_path / "moved.jsonl")
    write_json(run_path / "run.json", record)
    assert len(ids(open_run(run_path))) == 60 and index.stat().st_mtime_ns == stamp
    index.write_bytes(b"damaged")
    run = open_run(run_path)
    assert run.search is None and "say where it lies now with --corpus" in run.gaps[0]
    with client_of(run) as client:
        page = client.get("/").text
        assert "--corpus" in page and client.get("/results").status_code == 200
    source = str(run_path.parent / "pool.jsonl")
    Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    assert len(ids(open_run(run_path, corpus=source))) == 60


def test_a_corpus_that_has_changed_is_refused(run_path: Path, tmp_path: Path) -> None:
    changed = rows()
    changed[5]["solution"] = "otherwise"
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    assert "has changed since the run read it" in open_run(run_path, corpus=str(path)).gaps[0]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed[:50]), encoding="utf-8")
    assert "10 of 60 scored rows are not in" in open_run(run_path, corpus=str(path)).gaps[0]


def test_parts_that_are_missing_are_explained(run_path: Path, tmp_path: Path) -> None:
    (run_path / "scores.parquet").unlink()
    run = open_run(run_path)
    assert run.search is None and "no score file" in run.gaps[0]
    with client_of(run) as client:
        assert "no score file" in client.get("/").text
        assert "Place it" in client.get("/text").text
    shutil.rmtree(run_path / "basis")
    assert any("no basis" in gap for gap in open_run(run_path).gaps)
    (run_path / "run.json").unlink()
    with pytest.raises(UsageError, match="holds no run"):
        open_run(run_path)
    with pytest.raises(UsageError, match="no run directory"):
        open_run(tmp_path / "nowhere")


def test_a_run_that_changes_is_noticed(run_path: Path, opened: OpenedRun, client: TestClient) -> None:
    assert "have changed" not in client.get("/").text
    write_json(run_path / "run.json", read_json(run_path / "run.json") | {"title": "another"})
    assert "have changed" in client.get("/").text


def test_coordinates_are_the_scores_of_the_run(opened: OpenedRun, client: TestClient) -> None:
    table = Scores.load(opened.path / "scores.parquet")
    row = rows()[7]
    page = client.post("/place", data={"prompt": row["problem"], "response": row["solution"]}).text
    for cosine in table.cosine[7]:
        assert f'<td class="n">{cosine:+.3f}</td>' in page
    assert page.index("row-07") < page.index("row-", page.index("row-07") + 7)  # the row itself is the nearest
    basis, lm = SkillBasis.load(opened.path / "basis"), load_model("embedded")
    found = locate("Add 3 and 4.", basis, lm, scores=table)
    page = client.post("/place", data={"prompt": "Add 3 and 4."}).text
    for place in found.coordinates:
        assert f'<td class="n">{place.score:+.3f}</td>' in page and f"{place.percentile:.1f}" in page
        assert f'<td class="n">{place.z:+.2f}</td>' in page
    assert "the text is empty" in client.post("/place", data={"prompt": " "}).text


def test_a_model_that_cannot_be_loaded_is_said_where_it_is_needed(run_path: Path) -> None:
    with client_of(open_run(run_path, model=str(run_path / "nowhere"))) as client:
        assert "does not exist" in client.post("/place", data={"prompt": "x"}).text
        assert "60" in client.get("/").text
        started = client.post("/steer/start", data={"prompt": "x"}).text
        assert "does not exist" in streamed(client, started)


def streamed(client: TestClient, started: str) -> str:
    """Everything that the stream of a comparison says."""
    key = started.split('sse-connect="')[1].split('"')[0]
    return client.get(key).text


def answers_in(stream: str) -> dict[str, str]:
    """The last text of either side."""
    found = {}
    for event in stream.split("\n\n"):
        name, *data = event.split("\n")
        text = "\n".join(line.removeprefix("data: ") for line in data)
        if name.removeprefix("event: ") in ("steered", "unsteered"):
            found[name.removeprefix("event: ")] = text.split('aria-label="Answer">\n')[1].split("</pre>")[0]
    return found


def test_answers_are_those_of_the_api(opened: OpenedRun, client: TestClient) -> None:
    form = {"prompt": "Add 126 and 338.", "direction": "1", "alpha": "-0.6", "unit": "relative", "scope": "all"}
    form |= {"temperature": "0.8", "max_tokens": "40", "seed": "3"}
    stream = streamed(client, client.post("/steer/start", data=form).text)
    lm, basis = load_model("embedded"), SkillBasis.load(opened.path / "basis")
    vector = direction_vector(basis, 1, "-", unit="relative")
    prompts = [Prompt("explore", [{"role": "user", "content": form["prompt"]}])]
    settings = SamplingSettings(1, 0.8, 40, 3, batch_size=1)
    ((plain,),) = generate(lm, prompts, settings)
    ((steered,),) = generate(lm, prompts, settings, lambda model: steer(model, vector, 0.6, scope="all"))
    assert plain.text != steered.text
    assert answers_in(stream) == {"unsteered": plain.text, "steered": steered.text}
    assert stream.count("event: unsteered") > 3  # token by token
    assert stream.rstrip().endswith("data: over")
    again = streamed(client, client.post("/steer/start", data=form | {"alpha": "0"}).text)
    assert answers_in(again) == {"unsteered": plain.text, "steered": plain.text}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"direction": "9"}, "no direction"),
        ({"alpha": "inf"}, "alpha is"),
        ({"scope": "some"}, "unknown scope"),
        ({"unit": "miles"}, "the unit of alpha"),
        ({"max_tokens": "0"}, "give 1 to"),
        ({"temperature": "-1"}, "temperature must be"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(client: TestClient, changes: dict[str, str], says: str) -> None:
    assert says in client.post("/steer/start", data={"prompt": "x", "alpha": "1"} | changes).text


def test_an_answer_can_be_stopped(opened: OpenedRun, client: TestClient) -> None:
    form = {"prompt": "Add 1 and 2.", "temperature": "9", "max_tokens": "400"}
    started = client.post("/steer/start", data=form).text
    assert client.post("/steer/stop").status_code == 204
    assert "Stopped." in streamed(client, started)
    assert client.get("/steer/stream/unknown").status_code == 404


def test_a_safety_run_shows_prompts_only(run_path: Path) -> None:
    record = read_json(run_path / "run.json")
    record["settings"]["safety"] = {"attacks": ["x"]}
    write_json(run_path / "run.json", record)
    run = open_run(run_path)
    assert ids(run, q="zebra") == []  # which is in responses only
    assert ids(run, q="boxed") == ["latex"]  # which has it in its prompt
    with client_of(run) as client:
        text = client.get("/example/3").text
        assert "Add 121 and 209." in text and "121+209=330" not in text and "not shown in a safety run" in text
        assert "nothing is generated" in client.get("/steer").text
        assert "nothing is generated" in client.post("/steer/start", data={"prompt": "x"}).text


def guarded(opened: OpenedRun) -> tuple[Guard, TestClient]:
    guard = Guard(make_app(opened), 8765)
    client = TestClient(guard, base_url=f"http://{HOST}", follow_redirects=False)
    client.cookies.set(guard.cookie, guard.token)
    return guard, client


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"Host": "localhost:8765"}, 200),
        ("GET", {"Host": "evil.example:8765"}, 403),
        ("GET", {"Host": "127.0.0.1"}, 403),
        ("GET", {"Host": "127.0.0.1:9999"}, 403),
        ("GET", {"Origin": "http://evil.example"}, 403),
        ("GET", {"Origin": "null"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": f"https://{HOST}"}, 403),
        ("POST", {"Origin": f"http://{HOST}"}, 405),
        ("PUT", {"Origin": f"http://{HOST}"}, 405),
        ("OPTIONS", {}, 405),
    ],
)
def test_only_own_pages_may_ask(opened: OpenedRun, method: str, headers: dict[str, str], status: int) -> None:
    _, client = guarded(opened)
    host = headers.get("Host", HOST)
    cookie = {"Cookie": f"skillbasis-8765={client.cookies['skillbasis-8765']}"}
    client.cookies.clear()
    answer = client.request(method, "/", headers={"Host": host, "Content-Length": "0"} | cookie | headers)
    assert answer.status_code == status


def test_the_key_is_needed(opened: OpenedRun) -> None:
    guard, client = guarded(opened)
    client.cookies.clear()
    assert client.get("/").status_code == client.get("/style.css").status_code == 403
    assert client.get("/", params={"token": "wrong"}).status_code == 403
    let_in = client.get("/", params={"token": guard.token})
    assert let_in.status_code == 303 and "HttpOnly" in let_in.headers["set-cookie"]
    assert "SameSite=strict" in let_in.headers["set-cookie"]
    assert client.get("/").status_code == 200
    assert Guard(make_app(opened), 8765).token != guard.token


def test_requests_and_answers_are_bounded_and_headed(opened: OpenedRun, client: TestClient) -> None:
    assert client.post("/place", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/place", content=iter([b"x"])).status_code == 411
    assert client.get("/results", params={"q": "x" * 30_000}).status_code == 414
    headers = client.get("/").headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    page = client.get("/").text
    assert " style=" not in page and "<style" not in page and " on" + "click" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/exports/..%2ftags.json",
        "/exports/nothing.jsonl",
        "/report/../run.json",
        "/report/%2e%2e/pool.jsonl",
        "/report//etc/passwd",
        "/pool.jsonl",
    ],
)
def test_no_path_of_a_client_is_opened(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and "there is no such page" in answer.text


def test_files_of_the_report_are_served(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "skillbasis.explore.report_page.render", lambda report, served: f"<p>the report of {report.name}</p>"
    )
    assert "the report of run" in client.get("/report/").text
    assert client.get("/report/basis/config.json").json()["method"] == "pca"
    assert client.get("/report/basis/basis.safetensors").status_code == 404


def test_report_and_explorer_lead_to_each_other(run_path: Path) -> None:
    write_report(run_path)
    before = files(run_path)
    with client_of(open_run(run_path)) as client:
        assert "/report/#direction" not in client.get("/results?direction=1").text  # there is no card yet
    described = [{"direction": k, "positive": [], "negative": [], "keywords": {}, "attributes": []} for k in range(4)]
    write_json(run_path / "interpret" / "directions.json", {"directions": described})
    with client_of(open_run(run_path)) as client:
        page = client.get("/report/").text
        assert '<form action="/" method="get" role="search"' in page and "form-action 'self'" in page
        assert 'href="/?direction=3&amp;sign=-&amp;least=0"' in page and 'id="direction-3"' in page
        assert '<a href="/report/#direction-1">' in client.get("/results?direction=1").text
        assert client.get("/example/3").text.count('<a href="/report/#direction-') == 4
        assert len(ids(open_run(run_path), direction="3", sign="-", least="0")) > 0
    after = files(run_path)
    assert after["report.html"] == before["report.html"] and "form-action 'none'" in after["report.html"].decode()
    assert b'role="search"' not in after["report.html"]


def test_serving_refuses_in_one_sentence(run_path: Path, tmp_path: Path) -> None:
    import socket

    from skillbasis.artifact import lock

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="is in use; give another with --port"):
            serve(run_path, port=taken.getsockname()[1], browser=False)
    with pytest.raises(UsageError, match="no run directory"):
        serve(tmp_path / "nowhere", port=0, browser=False)
    with (
        lock(run_path / "explore" / "explore"),
        pytest.raises(ArtifactError, match="being explored by another process"),
    ):
        serve(run_path, port=0, browser=False)


def test_tags_that_are_damaged_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "tags.json").write_text('{"a": 1}')
    with pytest.raises(ArtifactError, match="no file of tags"):
        Tags(tmp_path / "tags.json")
    with pytest.raises(UsageError, match="at most 60"):
        Tags(tmp_path / "none.json").add("x" * 61, ["a"])


N_MANY = 100_000
# What is felt as at once is 0.1 s, which an idle core keeps; a busy machine takes longer.
AT_ONCE_S = 0.3
QUESTIONS = (
    *("", "q=word17", "q=the", "q=word17+word18", "q=word12*", "direction=3", "direction=3&least=0.2&q=the"),
    *("label=l3", "label=l3&column=level&op=least&value=4&direction=1&sign=-", "q=the&offset=50000"),
    *(
        "column=level&op=contains&value=3",
        "tag=half",
        "q=ord17&match=text",
        "q=d1&match=text&direction=3",
        "q=12*7&match=text",
    ),
    "column=level&op=least&value=3&column=level&op=most&value=5&label=l3&direction=2",
)


@pytest.mark.slow
def test_a_hundred_thousand_examples_stay_fluid(run_path: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(5_000)]
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for i, picked in enumerate(rng.integers(0, 5_000, (N_MANY, 60))):
            text = " ".join(words[j] for j in picked)
            row = {
                "id": f"m{i}",
                "prompt": f"the {text[:200]}",
                "response": text,
                "labels": [f"l{i % 7}"],
                "level": i % 9,
            }
            file.write(json.dumps(row) + "\n")
    values = rng.standard_normal((N_MANY, 10))
    norm = np.linalg.norm(values, axis=1) + 1
    shutil.rmtree(run_path / "basis")
    Scores([f"m{i}" for i in range(N_MANY)], values, norm, norm).save(run_path / "scores.parquet")
    run = open_run(run_path, corpus=str(path))
    search = search_of(run)
    search.tags.add("half", [f"m{i}" for i in range(0, N_MANY, 2)])
    with client_of(run) as client:
        client.get("/")  # counts the values of the columns once
        seconds = {asked: first_answer(client, search, asked) for asked in QUESTIONS}
    print(*(f"{1000 * took:.0f} ms {asked}" for asked, took in seconds.items()), sep="\n")
    assert {asked: took for asked, took in seconds.items() if took > AT_ONCE_S} == {}


def first_answer(client: TestClient, search: Search, asked: str) -> float:
    """Seconds of an answer that is not kept yet: the least of three, since the machine may be busy."""
    took = []
    for _ in range(3):
        search._kept.clear()
        began = time.perf_counter()
        assert client.get(f"/results?{asked}").status_code == 200
        took.append(time.perf_counter() - began)
    return min(took)
