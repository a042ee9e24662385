"""The explorer in a real browser: what a person does with mouse and keyboard, and what an accessibility check finds."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from explored import ARABIC, EVIL, LATEX, make_run
from skillbasis.artifact import write_json
from skillbasis.explore.app import make_app
from skillbasis.explore.guard import Guard
from skillbasis.explore.opened import open_run

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
WAIT_MS = 20_000


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serves a run on a free port; yields the address that lets a browser in."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        guard = Guard(make_app(open_run(run)), listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(guard, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield guard.address
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import torch

    torch.set_num_threads(1)
    with served(make_run(tmp_path_factory.mktemp("explored"))) as found:
        yield found


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves a run whose report has a card for every direction."""
    run = make_run(tmp_path_factory.mktemp("described"))
    cards = [{"direction": k, "positive": [], "negative": [], "keywords": {}, "attributes": []} for k in range(4)]
    write_json(run / "interpret" / "directions.json", {"directions": cards})
    with served(run) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, **settings: Any) -> Iterator[Any]:
    """A page of the explorer that must have written nothing to the console and asked nobody else at its end."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    ours = ("http://127.0.0.1:", "data:")
    page.on("request", lambda request: None if request.url.startswith(ours) else said.append(request.url))
    page.goto(address)
    yield page
    assert said == []
    assert page.title() != "owned"
    context.close()


def n_found(page: Any) -> int:
    return int(page.locator(".found strong").inner_text().replace(",", ""))


def expect_found(page: Any, n: int) -> None:
    playwright.expect(page.locator(".found strong")).to_have_text(f"{n:,}", timeout=WAIT_MS)


def serious(page: Any) -> list[str]:
    """What axe-core finds at the levels serious and critical."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{item['id']}: {item['nodes'][0]['html'][:200]}" for item in found if item["impact"] in ("serious", "critical")
    ]


def test_search_filter_and_open(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        assert n_found(page) == 60
        page.get_by_label("Search for").fill("zebra")
        expect_found(page, 2)
        assert "q=zebra" in page.url
        assert page.title().startswith("Examples · Planted <script>")
        first = page.locator(".list details", has_text="evil")
        first.locator("summary").click()
        playwright.expect(first.locator("pre").nth(1)).to_contain_text("<script>")
        assert first.locator("pre").nth(0).inner_text() == EVIL
        assert first.locator("pre mark").inner_text() == "zebra"
        assert first.locator("table.scores tbody tr").count() == 4
        assert EVIL in first.locator("table.plain").inner_text()
        page.get_by_label("Search for").fill("")
        expect_found(page, 60)
        page.get_by_label("Direction").select_option("0")
        page.get_by_label("At least").fill("0.2")
        page.get_by_label("Label").select_option("addition")
        playwright.expect(page.locator(".found")).to_contain_text("the highest cosine first")
        values = [float(text) for text in page.locator(".list .ends").all_inner_texts()]
        assert values == sorted(values, reverse=True)
        page.get_by_label("Column", exact=True).select_option("level")
        page.get_by_label("Value").fill("9")
        expect_found(page, 0)


def test_filters_are_chips_that_the_address_keeps(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_label("Column", exact=True).select_option("level")
        page.get_by_label("Compared").select_option("least")
        page.get_by_label("Value").fill("3")
        expect_found(page, 26)
        page.get_by_role("button", name="Add filter").click()
        chips = page.get_by_role("button", name="Take off the filter")
        playwright.expect(chips).to_have_count(1)
        playwright.expect(page.get_by_label("Column", exact=True)).to_be_focused()
        assert page.get_by_label("Value").input_value() == ""
        page.get_by_label("Column", exact=True).select_option("level")
        page.get_by_label("Compared").select_option("most")
        page.get_by_label("Value").fill("3")
        page.get_by_role("button", name="Add filter").press("Enter")
        playwright.expect(chips).to_have_count(2)
        expect_found(page, 11)
        page.get_by_label("Search for").fill("add")
        expect_found(page, 6)
        page.goto(page.url)  # as somebody else would who was sent the address
        playwright.expect(chips).to_have_text(["level is at least 3 ×", "level is at most 3 ×"])
        expect_found(page, 6)
        assert serious(page) == []
        chips.first.press("Enter")
        playwright.expect(chips).to_have_count(1)
        playwright.expect(page.get_by_label("Column", exact=True)).to_be_focused()
        expect_found(page, 23)


def test_formulas_are_set_and_can_be_seen_as_written(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_label("Taken as").select_option("text")
        page.get_by_label("Search for").fill(r"\frac")
        playwright.expect(page.locator(".list .id")).to_have_text(["latex"])
        assert page.locator(".preview mark").all_inner_texts() == [r"\frac", r"\frac"]
        page.locator(".list summary").click()
        text = page.locator("details.exemplar pre").first
        playwright.expect(text.locator("mark .katex .mfrac")).to_have_count(1)
        assert text.inner_text().startswith("Let ") and text.inner_text().endswith(r"; so \boxed{7}.")
        page.get_by_label("Set formulas").uncheck()
        assert text.inner_text() == LATEX and text.locator("mark").inner_text() == r"\frac"
        page.reload()  # the switch keeps its place
        page.locator(".list summary").click()
        playwright.expect(text).to_have_text(LATEX)
        page.get_by_label("Set formulas").check()
        playwright.expect(text.locator(".katex")).to_have_count(1)
        assert serious(page) == []


def test_hostile_formulas_stay_text_and_stall_nothing(browser: Any, address: str) -> None:
    texts = [r"$\href{javascript:alert(1)}{x}$", r"$\frac{$", "$" + "{" * 500 + "$", "costs $5 and $6"]
    texts += [r"$\def\a{\a\a}\a$", r"\[ " * 30_000, "$x$ " * 6_000, "$x$ " * 1_000]
    with opened(browser, address) as page:
        found = page.evaluate(
            """(texts) => texts.map((text) => {
                const place = document.createElement("pre");
                place.textContent = text;
                const began = performance.now();
                formulas.set(place);
                const n = place.querySelectorAll(".katex").length;
                return [n, n > 0 || place.textContent === text, performance.now() - began];
            })""",
            texts,
        )
        assert [n for n, _, _ in found] == [0, 0, 0, 0, 0, 0, 0, 200]  # the last but one is too long
        assert all(as_written for _, as_written, _ in found)
        assert max(took for _, _, took in found) < 2_000  # 0.2 s on an idle core
        assert page.locator("a[href^=javascript]").count() == 0


def test_texts_are_text_and_long_ones_fit(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        for row_id, words, text in (("arabic", "اثنين", ARABIC), ("latex", "frac", LATEX)):
            page.get_by_label("Search for").fill(words)
            playwright.expect(page.locator(".list .id")).to_have_text([row_id])
            details = page.locator(".list details")
            details.locator("summary").click()
            playwright.expect(details.locator("pre").first).to_be_visible()
            page.get_by_label("Set formulas").set_checked(False)  # as written
            assert details.locator("pre").first.inner_text() == text
            page.get_by_label("Set formulas").set_checked(True)
        page.get_by_label("Search for").fill('"Count on"')
        playwright.expect(page.locator(".list .id")).to_have_text(["long"])
        page.locator(".list summary").click()
        playwright.expect(page.locator("pre").nth(1)).to_be_visible()
        assert len(page.locator("pre").nth(1).inner_text()) > 99_000
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_further_pages_come_as_one_scrolls(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        assert page.locator(".list details").count() >= 25
        for _ in range(6):
            page.mouse.wheel(0, 20_000)
            page.wait_for_timeout(100)
        playwright.expect(page.locator(".list details")).to_have_count(60)
        ids = page.locator(".list .id").all_inner_texts()
        assert len(set(ids)) == 60


def test_tags_and_export(browser: Any, address: str, tmp_path: Path) -> None:
    with opened(browser, address) as page:
        page.get_by_label("Search for").fill('"Add 121 and"')
        expect_found(page, 1)
        page.locator(".list summary").click()
        page.get_by_label("New tag").fill("mine & yours")
        page.get_by_role("button", name="Tag", exact=True).click()
        playwright.expect(page.get_by_role("button", name="Take off the tag mine & yours")).to_be_visible()
        page.get_by_label("Search for").fill("zebra")
        expect_found(page, 2)
        page.get_by_label("Tag all of them").fill("mine & yours")
        page.get_by_role("button", name="Tag all").click()
        playwright.expect(page.locator("#tagged-all")).to_contain_text("2 examples")
        page.get_by_label("Search for").fill("")
        page.get_by_label("Tag", exact=True).select_option("mine & yours")
        expect_found(page, 3)
        page.get_by_role("button", name="Export").click()
        for name, file in (("the examples", "export.jsonl"), ("the record", "export.json")):
            with page.expect_download() as download:
                page.locator("#exported").get_by_role("link", name=name).click()
            download.value.save_as(tmp_path / file)
        lines = [json.loads(line) for line in (tmp_path / "export.jsonl").read_text("utf-8").splitlines()]
        assert [line["id"] for line in lines] == ["row-03", "evil", "long"]
        assert lines[1]["problem"] == EVIL and lines[1]["_selection"]["rank"] == 2
        record = json.loads((tmp_path / "export.json").read_text("utf-8"))
        assert record["tag"] == {"name": "mine & yours", "n_rows": 3} and record["n_rows"] == 3


def test_a_text_is_placed(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_role("link", name="Place a text").click()
        page.get_by_label("Text, or prompt").fill("Add 107 and 203.")
        page.get_by_label("Response (may be left empty)").fill("107+203=310. So \\boxed{310}.")
        page.get_by_role("button", name="Place it").click()
        playwright.expect(page.locator("#place table.scores tbody tr")).to_have_count(4)
        nearest = page.locator("#place .list details").first
        assert nearest.locator(".ends").inner_text() == "+1.000" and nearest.locator(".id").inner_text() == "row-01"
        assert serious(page) == []


def test_the_slider_steers_and_answers_are_streamed(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_role("link", name="Steer").click()
        page.get_by_label("Prompt").fill("Add 126 and 338.")
        page.get_by_label("Longest answer, tokens").fill("60")
        slider = page.get_by_label("Alpha, from")
        slider.focus()
        for _ in range(6):
            page.keyboard.press("ArrowRight")
        assert page.get_by_label("Alpha", exact=True).input_value() == slider.input_value() == "0.6"
        status = page.locator("#answers [role=status]")
        playwright.expect(status).to_have_text("Both answers are there.", timeout=60_000)
        sides = page.locator("#answers pre")
        assert sides.count() == 2 and all(text.strip() for text in sides.all_inner_texts())
        plain = sides.nth(0).inner_text()
        page.get_by_label("Alpha", exact=True).fill("0")
        page.get_by_role("button", name="Answer").click()
        playwright.expect(page.locator("#answers h3").nth(1)).to_contain_text("alpha 0")
        playwright.expect(status).to_have_text("Both answers are there.", timeout=60_000)
        assert sides.all_inner_texts() == [plain, plain]
        page.get_by_label("Longest answer, tokens").fill("400")
        page.get_by_label("Temperature").fill("9")
        page.get_by_role("button", name="Answer").click()
        playwright.expect(page.locator("#answers")).to_contain_text("going on")
        page.get_by_role("button", name="Stop").click()
        playwright.expect(status).to_have_text("Stopped.")
        assert serious(page) == []


def test_the_report_is_served_as_it_is(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_role("link", name="Report").click()
        playwright.expect(page.locator("h1")).to_contain_text("Planted <script>")
        page.get_by_role("link", name="basis/config.json").first.click()
        assert page.url.endswith("/report/basis/config.json")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_report_and_explorer_lead_to_each_other(browser: Any, described: str, scheme: str, width: int) -> None:
    size = {"width": width, "height": 900}
    with opened(browser, described, color_scheme=scheme, viewport=size) as page:
        if width == 390:
            page.get_by_text("Direction, label, tag, columns").click()
        page.get_by_label("Direction").select_option("2")
        page.get_by_role("link", name="Direction 2 in the report").click()
        card = page.locator("#direction-2")
        playwright.expect(card).to_be_in_viewport()
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        card.get_by_role("link", name="All examples at the negative end").click()
        playwright.expect(page.locator(".found")).to_contain_text("the highest cosine first")
        assert page.get_by_label("Sign").input_value() == "-" and page.get_by_label("At least").input_value() == "0"
        assert 0 < n_found(page) < 60
        page.locator(".list summary").first.click()
        page.locator(".list details[open] table.scores").get_by_role("link").nth(3).click()
        playwright.expect(page.locator("#direction-3")).to_be_in_viewport()
        page.get_by_role("searchbox").fill("zebra")
        page.keyboard.press("Enter")
        expect_found(page, 2)
        page.go_back()
        page.get_by_role("link", name="Explorer").click()
        expect_found(page, 60)


def test_all_can_be_done_by_keyboard(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.type("zebra")
        expect_found(page, 2)
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
        page.keyboard.press("Enter")
        playwright.expect(page.locator(".list details[open] pre").first).to_be_visible()
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible_and_fit(browser: Any, address: str, scheme: str, width: int) -> None:
    size = {"width": width, "height": 900}
    with opened(browser, address, color_scheme=scheme, viewport=size) as page:
        if width == 390:
            assert not page.get_by_label("Direction").is_visible()  # the results come first
            page.get_by_text("Direction, label, tag, columns").click()
        page.get_by_label("Direction").select_option("1")
        playwright.expect(page.locator(".found")).to_contain_text("the highest cosine first")
        page.locator(".list summary").first.click()
        playwright.expect(page.locator(".list details[open] table.scores")).to_be_visible()
        for name in ("Examples", "Place a text", "Steer"):
            if name != "Examples":
                page.get_by_role("link", name=name).click()
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
