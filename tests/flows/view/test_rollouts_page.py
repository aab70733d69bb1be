"""The table of rollouts in a real browser: filter, histogram, sort, keys, a row, refused SQL."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from flows.view.rollouts import Asked
from opd_core.types import Rollout
from storage.runs.run import Run
from tests.flows.view.conftest import COLOURS, NARROW, WIDE, Viewed, serving


def count(page: Page) -> int:
    return int(page.locator("#count").inner_text().replace(",", ""))


def words(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def ids(page: Page) -> list[str]:
    return [str(link.get_attribute("id")) for link in page.locator("tr[data-row] a[id]").all()]


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return Run.open(finished.with_name("tiny"))


@pytest.fixture
def page(browser: Browser, viewed: Viewed) -> Page:
    opened = viewed.page(browser)
    opened.goto(viewed.url("/tiny/rollouts"))
    return opened


def test_a_filter_narrows_the_table_and_is_in_the_address(
    page: Page, viewed: Viewed, run: Run
) -> None:
    every = count(page)
    assert every == run.rollouts().collect().height
    page.locator("[name=round]").select_option("2")
    page.locator("[name=iou_from]").fill("0.1")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("round=2"))
    assert words(page) == {"round": ["2"], "iou_from": ["0.1"]}
    rows = run.trajectories().filter(policy_version=1).collect()
    left = rows.filter(rows["student_iou"] >= 0.1)
    assert ids(page) == left["rollout_id"].to_list()[:50]
    assert 0 < count(page) == left.height < every
    page.locator("#without-round").click()
    page.wait_for_url(re.compile(r"rollouts\?iou_from=0.1$"))
    assert count(page) > left.height
    page.go_back()
    expect(page.locator("[name=round]")).to_have_value("2")
    assert viewed.said(page) == []


def test_a_bin_of_a_histogram_narrows_the_filter(page: Page, viewed: Viewed) -> None:
    for chart, name in (("#iou-chart", "iou"), ("#kl-chart", "kl")):
        page.goto(viewed.url("/tiny/rollouts"))
        bins = page.locator(f"{chart} a")
        largest = max(range(bins.count()), key=lambda i: said_count(bins.nth(i)))
        wanted = said_count(bins.nth(largest))
        bins.nth(largest).locator(".hit").click(force=True)
        page.wait_for_url(re.compile(f"{name}_from="))
        assert count(page) == wanted > 0
    page.goto(viewed.url("/tiny/rollouts"))
    first = page.locator("#iou-chart a").first
    wanted = said_count(first)
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("iou_from="))
    assert count(page) == wanted
    assert viewed.said(page) == []


def said_count(link: object) -> int:
    label = str(link.get_attribute("aria-label"))  # type: ignore[attr-defined]
    return int(label.rsplit(": ", 1)[1].replace(",", ""))


def test_a_head_sorts_and_sorts_the_other_way(page: Page, run: Run) -> None:
    view = run.trajectories().collect()
    page.locator("#sort-student_iou").click()
    page.wait_for_url(re.compile("sort=-student_iou"))
    expect(page.locator("th[aria-sort=descending]")).to_have_count(1)
    wanted = view.sort("student_iou", "rollout_id", descending=[True, False])["rollout_id"]
    assert ids(page) == wanted.to_list()[:50]
    page.locator("#sort-student_iou").click()
    page.wait_for_url(re.compile("sort=student_iou"))
    wanted = view.sort("student_iou", "rollout_id")["rollout_id"]
    assert ids(page) == wanted.to_list()[:50]


def test_the_keyboard_alone_is_enough(
    page: Page, viewed: Viewed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.view.rollouts.ROWS", 5)
    monkeypatch.setattr("flows.view.rollouts_page.ROWS", 5)
    page.goto(viewed.url("/tiny/rollouts?span=yes"))
    shown = ids(page)
    assert len(shown) == 5
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    here = page.locator("tr.here a[id]")
    assert here.get_attribute("id") == shown[1]
    page.keyboard.press("n")
    page.wait_for_url(re.compile("page=2"))
    assert not set(ids(page)) & set(shown)
    page.keyboard.press("p")
    page.wait_for_url(re.compile(r"span=yes$"))
    assert ids(page) == shown
    page.keyboard.press("/")
    expect(page.locator("[name=where]")).to_be_focused()
    page.keyboard.type("tokens > 1j")  # letters are letters in a field
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    assert page.locator("tr.here a[id]").get_attribute("id") == shown[-1]
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"/tiny/r/{shown[-1]}"))
    assert words(page) == {"span": ["yes"]}  # previous and next are those of this list


def test_a_row_opens_where_it_is_clicked(page: Page) -> None:
    row = page.locator("tr[data-row]").nth(2)
    rollout_id = row.locator("a[id]").get_attribute("id")
    row.locator("td").nth(5).click()
    page.wait_for_url(re.compile(f"/tiny/r/{rollout_id}"))


def test_sql_that_writes_is_refused_and_stays_to_be_corrected(page: Page, run: Run) -> None:
    before = run.table_versions()
    page.locator("[name=where]").fill("DELETE FROM rollouts")
    with page.expect_response(re.compile("where=")) as answer:
        page.keyboard.press("Enter")
    assert answer.value.status == 400
    expect(page.get_by_role("alert")).to_contain_text("queries only read, and 'DELETE' does not")
    expect(page.locator("[name=where]")).to_have_value("DELETE FROM rollouts")
    page.locator("[name=where]").fill("tokens > 3 AND policy_version = 1")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("tokens"))
    assert count(page) == run.rollouts().collect().filter(policy_version=1).height
    assert run.table_versions() == before


def test_a_page_says_the_sql_that_it_stands_for(browser: Browser, viewed: Viewed, run: Run) -> None:
    page = viewed.page(browser)
    page.goto(viewed.url("/tiny/rollouts?at=1&sort=-reverse_kl"))
    page.locator("summary").click()
    said = page.locator("#sql").inner_text()
    assert said.startswith(f"videoopd query {run.path}@1 'SELECT ")
    assert Asked(sort="-reverse_kl").sql() in said
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == said


def test_markup_in_a_filter_stays_text(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)
    page.goto(viewed.url("/tiny/rollouts?text=<script>document.title='owned'</script>"))
    assert count(page) == 0 and page.title() != "owned"
    page.goto(viewed.url("/tiny/rollouts?reason=\"><script>document.title='owned'</script>"))
    assert count(page) == 0 and page.title() != "owned"


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("colours", COLOURS)
def test_it_fits_the_window(
    browser: Browser, viewed: Viewed, size: tuple[int, int], colours: str
) -> None:
    page = viewed.page(browser, size, colours)
    page.goto(viewed.url("/tiny/rollouts?where=" + "tokens%20%3E%200%20AND%20" * 20 + "true"))
    assert count(page) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert viewed.said(page) == []


def test_new_rows_appear_without_reloading(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.with_name("tiny"), tmp_path / "tiny")
    config = max((tmp_path / "tiny" / "configs").glob("*.json"))
    reading = Run.open(tmp_path / "tiny")
    with serving([reading]) as viewed:
        page = viewed.page(browser)
        page.goto(viewed.url("/tiny/rollouts?where=tokens %3E 0"))
        page.keyboard.press("j")
        before, here = count(page), page.locator("tr.here a[id]").get_attribute("id")
        one = reading.read("rollouts", Rollout)[0]
        more = dataclasses.replace(one, rollout_id=one.rollout_id[:-1] + "9", sample_index=9)
        writing = Run(tmp_path / "tiny", config.stem, None)
        writing.append("rollouts", [more], policy_version=0)
        expect(page.locator("#count")).to_have_text(f"{before + 1:,}", timeout=60_000)
        assert page.locator("tr.here a[id]").get_attribute("id") == here
        assert viewed.said(page) == []
