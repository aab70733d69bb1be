"""The frame of the viewer in a real browser: who may look, and what every page keeps to."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from flows.stage.prepare import opened
from opd_core.types import QuarantinedItem
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from tests.flows.view.conftest import COLOURS, NARROW, WIDE, Viewed, copied, serving
from tests.storage.storage_factories import new_run, one_of_each
from tests.storage.tables.test_older_formats import set_back

SCRIPT = "<script>document.title = 'taken'</script>"


def asked(
    viewed: Viewed, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers) of one request without a browser; `_` in a header's name is `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", viewed.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}


# --- who may look ---------------------------------------------------------------------------------


def test_the_run_opens_with_the_key_which_leaves_the_address(
    browser: Browser, viewed: Viewed
) -> None:
    page = viewed.page(browser)
    assert page.url == viewed.url("/tiny")
    assert page.locator("h1").inner_text() == "tiny"
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    page.goto(viewed.url(f"/tiny?at=1&key={viewed.key}"))
    assert page.url == viewed.url("/tiny?at=1")
    assert viewed.said(page) == []


def test_without_the_key_nothing_is_told(browser: Browser, viewed: Viewed) -> None:
    for path in ("/", "/tiny", "/static/view.js", "/tiny?key=wrong", "/?key=", "/?key=%C3%A9"):
        status, body, _ = asked(viewed, path)
        assert status == 403 and "tiny" not in body
    wrong = f"videoopd-{viewed.port}=wrong"
    assert asked(viewed, "/tiny", Cookie=wrong)[0] == 403
    page = browser.new_page()
    answer = page.goto(viewed.url("/tiny?key=wrong"))
    assert answer is not None and answer.status == 403
    page.close()


def test_a_wrong_key_is_refused_whatever_cookie_comes_with_it(viewed: Viewed) -> None:
    assert asked(viewed, "/tiny?key=wrong", Cookie=viewed.cookie())[0] == 403


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example"])
def test_the_key_leads_to_no_other_host(viewed: Viewed, path: str) -> None:
    status, _, headers = asked(viewed, f"{path}?key={viewed.key}")
    assert status == 303
    assert headers["location"].startswith("/") and headers["location"][1:2] not in ("/", "\\")


def test_another_host_is_refused(viewed: Viewed) -> None:
    cookie = viewed.cookie()
    for host in ("evil.example", "127.0.0.1.evil.example", f"evil.example:{viewed.port}", ""):
        assert asked(viewed, "/tiny", Host=host, Cookie=cookie)[0] == 400
    for host in ("localhost:9", "127.0.0.1", "[::1]:80"):  # another port: the end of a tunnel
        assert asked(viewed, "/tiny", Host=host, Cookie=cookie)[0] == 200


def test_it_only_reads(viewed: Viewed) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert asked(viewed, "/tiny", method, Cookie=viewed.cookie())[0] == 405
    assert asked(viewed, "/tiny", "HEAD", Cookie=viewed.cookie())[0] == 200


def test_every_answer_says_what_a_page_may_load(viewed: Viewed) -> None:
    for path, cookie in (("/tiny", viewed.cookie()), ("/static/view.css", viewed.cookie()),
                         ("/nothing", viewed.cookie()), ("/tiny", "")):  # fmt: skip
        _, _, headers = asked(viewed, path, Cookie=cookie)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_no_file_beside_the_static_ones_is_served(viewed: Viewed) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        status, body, _ = asked(viewed, path, Cookie=viewed.cookie())
        assert status == 404 and "Starlette" not in body


# --- what is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/other", 404, "there is no run 'other' here; shown are: tiny"),
        ("/tiny?at=9", 400, "has not finished round 9; give one of those it has: 1, 2"),
        ("/tiny?at=x", 400, "at='x' is no round"),
        pytest.param(f"/tiny?at={'9' * 5_000}", 400, "is no round", id="at of 5,000 digits"),
        pytest.param(
            f"/tiny/frame/v0-x-0/{'9' * 5_000}",
            404,
            "no rollout 'v0-x-0' in tiny",
            id="frame of 5,000 digits",
        ),
        ("/tiny?part=nothing", 404, "this page has no part 'nothing'"),
        ("/tiny/nothing/at/all", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(
    browser: Browser, viewed: Viewed, path: str, status: int, said: str
) -> None:
    page = viewed.page(browser)
    answer = page.goto(viewed.url(path))
    assert answer is not None and answer.status == status
    assert said in page.locator("main").inner_text()


def test_damaged_tables_are_told_with_the_file(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path)
    run = tmp_path / "tiny"
    with serving([Run.open(run)]) as viewed:
        assert asked(viewed, "/tiny", Cookie=viewed.cookie())[0] == 200
        for file in (run / "tables" / "updates.lance" / "data").glob("*.lance"):
            file.write_bytes(file.read_bytes()[:40])
        (run / "audit.json").write_text("{}")  # so that the page is made again
        status, body, _ = asked(viewed, "/tiny", Cookie=viewed.cookie())
    assert status >= 400
    assert "damaged" in body and "Traceback" not in body


def test_a_run_without_a_round_and_one_of_an_older_format_have_pages(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with serving([run]) as viewed:
        status, body, _ = asked(viewed, "/run", Cookie=viewed.cookie())
        assert status == 200 and "nothing drawn yet" in body and "nothing yet" in body
        for name, record in one_of_each().items():
            run.append(name, [record], stage=TABLES[name].writer or "score")
        set_back(run.path / "tables")
        status, body, _ = asked(viewed, "/run", Cookie=viewed.cookie())
        assert status == 200 and "Table of policies" in body and "nothing drawn yet" in body


# --- text stays text ------------------------------------------------------------------------------


def test_a_script_in_names_and_reasons_stays_text(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    name = "a&b <img src=x onerror=\"document.title='taken'\"> #1?"
    with opened(str(copied(finished, tmp_path, name))) as work:
        item = QuarantinedItem("v.mp4#1", "rollout", "v.mp4", f"no frames {SCRIPT}", 2)
        work.run.append("quarantine", [item], stage="rollout", policy_version=2)
    with serving([Run.open(tmp_path / name), Run.open(finished.with_name("tiny"))]) as viewed:
        page = viewed.page(browser)
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_load_state()
        assert page.locator("h1").inner_text() == name
        assert f"no frames {SCRIPT}" in page.locator("main").inner_text()
        assert page.title() == f"{name} – Video-OPD"
        assert page.locator("main script, main img").count() == 0
        assert viewed.said(page) == []


# --- how it looks ---------------------------------------------------------------------------------


def pages(viewed: Viewed) -> list[str]:
    return [viewed.url(path) for path in ("/tiny", "/tiny?at=1", "/nothing")]


def wider_than_the_window(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
def test_no_page_is_wider_than_the_window(
    browser: Browser, viewed: Viewed, size: tuple[int, int], colours: str
) -> None:
    page = viewed.page(browser, size, colours)
    for url in pages(viewed):
        page.goto(url)
        assert wider_than_the_window(page) <= 0, url


def test_it_is_light_or_dark_as_the_system_is(browser: Browser, viewed: Viewed) -> None:
    seen = []
    for colours in COLOURS:
        page = viewed.page(browser, colours=colours)
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        seen.append([int(part) for part in background[4:-1].split(",")])
    light, dark = seen
    assert min(light) > 200 and max(dark) < 60


# --- keyboard -------------------------------------------------------------------------------------

FOCUSED = """() => {
  const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
  return {tag: e.tagName, text: e.innerText,
          outline: s.outlineStyle, width: parseFloat(s.outlineWidth),
          seen: r.width > 0 && r.left >= 0 && r.top >= 0 && r.top < innerHeight};
}"""


def test_the_first_key_leads_past_the_navigation(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)
    page.keyboard.press("Tab")
    first = page.evaluate(FOCUSED)
    assert first["text"] == "Skip to the content" and first["seen"]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_everything_is_reached_by_tab_and_shows_it(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)
    wanted = page.locator("a[href], button, summary, [tabindex='0']").count()
    reached = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    assert [one for one in reached if not one["seen"]] == []
    assert [one for one in reached if one["outline"] == "none" or one["width"] < 2] == []
    assert {one["tag"] for one in reached} >= {"A", "DIV"}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BODY"  # that was all
