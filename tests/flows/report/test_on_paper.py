"""A report in a real browser: at both widths, in both schemes, by keyboard, and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.report.page import html, report
from storage.runs.run import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NO_CHROMIUM = "chromium is not installed (apt-get install chromium)"


@pytest.fixture(scope="module")
def file(tiny: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("paper") / "report.html"
    made.write_text(html(report([Run.open(tiny), Run.open(seeded)])))
    return made


@pytest.fixture(scope="module")
def browser(file: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def _open(browser: Browser, file: Path, width: int = 1280, colours: str = "light") -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if colours == "dark" else "light",
    )
    page.goto(file.as_uri())
    return page


def _surface(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_fits_and_says_nothing(
    browser: Browser, file: Path, width: int, colours: str
) -> None:
    page = browser.new_page(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if colours == "dark" else "light",
    )
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda line: said.append(line.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto(file.as_uri())
    assert said == []
    assert asked.count("file") == 1 and set(asked) <= {"file", "data"}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = _surface(page) == "rgb(20, 22, 26)"
    assert dark == (colours == "dark"), "the style of the page was refused"
    assert page.locator("svg.chart").count() > 10
    assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    page.close()


def test_the_keyboard_reaches_the_sections(browser: Browser, file: Path) -> None:
    page = _open(browser, file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#effects")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('.scrolls')")
    page.close()


def test_on_paper_it_is_light_and_has_pages(browser: Browser, file: Path) -> None:
    page = _open(browser, file, colours="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert _surface(page) == "rgba(0, 0, 0, 0)"
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert ink == "rgb(27, 30, 34)"
    text = page.locator("svg.chart text").first.evaluate("one => getComputedStyle(one).fill")
    assert text == "rgb(31, 35, 40)"
    assert not page.locator("nav").is_visible()
    width = 794 - 2 * 53  # A4 without its margins, at 96 dpi
    page.set_viewport_size({"width": width, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 5
    page.close()
