"""The page in a real Chromium, from a file: no errors, sorting, filters, both colour schemes, a phone's width."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from report.html.folders import EVIL, Folder, paper_rows
from swaa.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with everything that could go wrong in it: 34 rows, two lengths, a judge, and hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    Folder(rows=paper_rows(), examples=8, lengths=(450, 900), judge=True, evil=True, words=60).write(folder / "run")
    assert main(["report", str(folder / "run"), "-o", str(folder / "report.html")]) == 0
    return (folder / "report.html").as_uri()


class Opened:
    """A page that was opened, and everything that it complained of."""

    def __init__(self, browser: Any, url: str, size: dict[str, int], scheme: str = "light") -> None:
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.told: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()
        assert self.told == []

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_text_contents()
        return found


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1400"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_word_and_fits(browser: Any, url: str, size: dict[str, int], scheme: str) -> None:
    with Opened(browser, url, size, scheme) as opened:
        page = opened.page
        assert opened.asked == [url]
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.locator("svg.plot:visible").count() == 1
        sizes = page.evaluate(
            """() => [...document.querySelectorAll("svg text, td, th, p, li, figcaption")]
                .filter((part) => part.getBoundingClientRect().width > 1 && part.textContent.trim())
                .map((part) => parseFloat(getComputedStyle(part).fontSize)
                    * (part.tagName === "text" ? Math.hypot(part.getScreenCTM().a, part.getScreenCTM().b) : 1))"""
        )
        assert len(sizes) > 500
        assert min(sizes) >= 10


def test_every_head_sorts_both_ways(browser: Any, url: str) -> None:
    with Opened(browser, url, DESK) as opened:
        page = opened.page
        table = page.locator("table.recipes:visible").first
        heads = table.locator("thead th")
        for place in range(heads.count()):
            head = heads.nth(place)
            head.locator("button").click()
            first = head.get_attribute("aria-sort")
            assert table.locator("thead th:not([aria-sort=none])").count() == 1
            once = values(table, place)
            head.locator("button").click()
            assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}
            twice = values(table, place)
            words = "words" in (head.get_attribute("class") or "")
            ascending = first == "ascending"
            assert in_order(once, words=words) if ascending else in_order(once[::-1], words=words)
            assert in_order(twice[::-1], words=words) if ascending else in_order(twice, words=words)
            assert sorted(once) == sorted(twice)


def values(table: Any, column: int) -> list[str]:
    """What the rows sort by; what was not measured is last, and left out here."""
    script = "(table, column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value)"
    found: list[str] = table.evaluate(script, column)
    there = [value for value in found if value != ""]
    assert found[: len(there)] == there
    return there


def in_order(found: list[str], *, words: bool) -> bool:
    keys = [value.lower() if words else float(value) for value in found]
    return words or keys == sorted(keys)  # the order of words is the browser's own


def test_sorting_works_from_the_keyboard(browser: Any, url: str) -> None:
    with Opened(browser, url, DESK) as opened:
        page = opened.page
        page.locator("table.recipes:visible thead button", has_text="speed").first.focus()
        page.keyboard.press("Enter")
        rows = page.locator("table.recipes:visible tbody tr")
        assert "naive SWA" in (rows.first.text_content() or "") or "sink 10" in (rows.first.text_content() or "")
        page.keyboard.press("Enter")
        assert "full attention, CoT" in (rows.first.text_content() or "")


def found_is(page: Any, beginning: str) -> None:
    """Wait until the browser of samples says that it found so many."""
    page.locator("#found").filter(has_text=re.compile(f"^({beginning})")).wait_for(timeout=20_000)


def test_filters_find_what_they_say(browser: Any, url: str) -> None:
    with Opened(browser, url, DESK) as opened:
        page = opened.page
        total = 34 * 2 * 8
        assert opened.texts("#found") == [f"{total} of {total} answers, the first 50 shown"]
        page.locator("#more").click()
        assert page.locator("details.sample").count() == 100
        page.select_option("[name=recipe]", label="2 naive SWA")
        found_is(page, "16 of")
        page.select_option("[name=verdict]", "wrong")
        found_is(page, r"\d of|1[0-5] of")
        verdicts = opened.texts("details.sample .verdict")
        assert set(verdicts) == {"wrong"}
        page.select_option("[name=verdict]", "")
        page.select_option("[name=recipe]", "")
        page.fill("[name=search]", "NUMBER OF THE ORCHARD")
        found_is(page, f"{34 * 2} of")
        page.fill("[name=search]", "nowhere to be found")
        found_is(page, "0 of")
        assert page.locator("details.sample").count() == 0


def test_a_sample_shows_texts_as_texts(browser: Any, url: str) -> None:
    with Opened(browser, url, PHONE) as opened:
        page = opened.page
        page.fill("[name=search]", "step by step. answer")
        found_is(page, "272 of")
        sample = page.locator("details.sample", has_text="right").first
        sample.locator("summary").first.click()
        assert EVIL.split("\u2028")[0] in (sample.locator(".text").first.text_content() or "")
        assert sample.locator("mark.graded").count() == 1
        prompt = sample.locator("details")
        assert prompt.get_attribute("open") is None
        prompt.locator("summary").click()
        evidence = sample.locator("mark.evidence")
        assert (evidence.text_content() or "").startswith("The special number of the")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.locator("b", has_text="&amp;").count() == 0


def test_dark_differs_and_the_toggle_decides(browser: Any, url: str) -> None:
    def colours(page: Any) -> tuple[str, ...]:
        script = """() => ["body", ".tick", ".f-both .mark", ".share"].map((name) => {
            const style = getComputedStyle(document.querySelector(name));
            return `${style.backgroundColor} ${style.color} ${style.fill} ${style.stroke}`;
        })"""
        return tuple(page.evaluate(script))

    with Opened(browser, url, DESK) as light, Opened(browser, url, DESK, "dark") as dark:
        ours, theirs = colours(light.page), colours(dark.page)
        assert all(one != other for one, other in zip(ours, theirs, strict=True))
        toggle = light.page.locator("#theme")
        assert toggle.text_content() == "Colours: system"
        toggle.click()
        assert colours(light.page) == ours
        toggle.click()
        assert toggle.text_content() == "Colours: dark"
        assert colours(light.page) == theirs
        light.page.emulate_media(media="print")
        assert colours(light.page) == ours  # paper is white


def test_a_mark_and_a_choice_of_length(browser: Any, url: str) -> None:
    with Opened(browser, url, DESK) as opened:
        page = opened.page
        point = page.locator("svg.plot:visible .point").nth(7)
        point.focus()
        readout = page.locator(".readout:visible")
        assert readout.text_content() == point.get_attribute("aria-label")
        assert page.locator(".legend:visible li.looked").count() == 1
        titles = opened.texts("#group option")
        assert titles[0] == "all 2 tasks and lengths"
        page.select_option("#group", "2")
        assert page.locator("#recipes h3:visible").all_text_contents() == [titles[2]]
        page.emulate_media(media="print")
        assert page.locator("#recipes h3:visible").all_text_contents() == titles
