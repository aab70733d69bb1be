"""`videoopd bench view`: how soon pages are there, what the server holds, and what viewing costs.

The real command and a headless Chromium, on a run of the demo's size and on one with each of its
rows as often as makes a million. First paint is the browser's own number, of a server that was
just started, where it says cold. What viewing costs a round is told by rounds that take turns:
nobody looks, or two pages are kept up to date as the viewer's script does it.
"""

from __future__ import annotations

import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flows.bench.interleaved import Row, at_most
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROWS = 1_000_000
ROUNDS = 3
TURNS = 5
MIB = 500.0
EVERY_SECONDS = 2.0
"""As `EVERY_MS` of view.js."""
FILTERS = (
    "iou_from=0.5&iou_below=0.7", "reason=selected&sort=-reverse_kl", "kl_from=0.5&sort=tokens",
    "selected=no&span=yes&sort=-disagreement", "round=2&sort=tokens",
)  # fmt: skip
TYPED = "where=tokens+%3E+14+AND+student_iou+%3E+teacher_iou"
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    address: str
    """With the key."""

    def url(self, path: str) -> str:
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}{path}"

    def peak_mib(self) -> float:
        """The most that it has held; what answers `where` is another process."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise VideoOPDError("the server ended while it was measured; run the bench again")


def view_rows(rows: int = ROWS, rounds: int = ROUNDS, turns: int = TURNS) -> Iterator[Row]:
    """Every number of the viewer; about 15 minutes."""
    from flows.bench.tiny_config import DEMO, world_config

    with tempfile.TemporaryDirectory(prefix="videoopd-bench-") as scratch:
        config = world_config(Path(scratch), seed=0, like=DEMO)
        _run("flows.cli", "run", config, "--rounds", str(rounds))
        small, large = Path(scratch) / "run", Path(scratch) / "large"
        _run("flows.bench.large_run", str(small), str(large), str(rows))
        yield from page_rows("the demo's run", small, 1.0)
        yield from page_rows(f"{rows:,} trajectories", large, 3.0)
        yield slowing_row(config, small, turns)
        yield report_row(small, Path(scratch) / "report.html")


def page_rows(size: str, run: Path, paint_seconds: float) -> Iterator[Row]:
    """First paint of each page of a run, and what the server has held at most."""
    with _browser() as browser:
        with _server(run) as server:
            page, before = _page(browser, server), _cpu(server)
            seconds = _paint(page, server.url(f"/{run.name}"))
            # Beside other work the clock says little; the server's CPU seconds are told, too.
            yield at_most(f"view: run page, cold, {size}", seconds, paint_seconds, " s",
                          cpu_seconds=_cpu(server) - before)  # fmt: skip
            after_run_page = server.peak_mib()
        with _server(run) as server:
            page, table = _page(browser, server, "/static/view.js"), f"/{run.name}/rollouts"
            before = _cpu(server)
            seconds = _paint(page, server.url(table))
            yield at_most(f"view: table of rollouts, cold, {size}", seconds, paint_seconds, " s",
                          cpu_seconds=_cpu(server) - before)  # fmt: skip
            before = _cpu(server)
            each = {words: _paint(page, server.url(f"{table}?{words}")) for words in FILTERS}
            used = (_cpu(server) - before) / len(FILTERS)
            typed = [_paint(page, server.url(f"{table}?{TYPED}+AND+{i}={i}")) for i in range(3)]
            yield at_most(f"view: a filter, {size}", statistics.median(each.values()), 1.0, " s",
                          each=each, cpu_seconds=used, where_typed=typed)  # fmt: skip
            page.goto(server.url(table))
            links = [a.get_attribute("href") or "" for a in page.locator("tr[data-row] a").all()]
            _paint(page, server.url(links[-1]))  # the first one reads the tokenizer
            painted = [_paint(page, server.url(link)) for link in links[:5]]
            yield at_most(f"view: trajectory page, {size}", statistics.median(painted), 0.5, " s",
                          each=painted)  # fmt: skip
            held = {"run page alone": after_run_page, "the other pages": server.peak_mib()}
            _paint(page, server.url(f"/{run.name}"))
            yield at_most(f"view: peak memory of the server, {size}", server.peak_mib(), MIB,
                          " MiB", **held)  # fmt: skip


def report_row(run: Path, out: Path) -> Row:
    """How long the report of a run takes as a command, and how large it is."""
    began = time.perf_counter()
    _run("flows.cli", "report", str(run), "--out", str(out))
    return at_most(
        "report of the demo's run", time.perf_counter() - began, 10.0, " s",
        megabytes=out.stat().st_size / 1e6,
    )  # fmt: skip


def slowing_row(config: str, run: Path, turns: int) -> Row:
    """How much longer a round takes while two pages of its run are looked at."""
    seconds: dict[str, list[float]] = {"alone": [], "viewed": []}
    used: list[float] = []
    for _ in range(turns):
        seconds["alone"].append(_round(config))
        with _server(run) as server, _looked_at(server, run.name):
            before = _cpu(server)
            seconds["viewed"].append(_round(config))
            used.append(100 * (_cpu(server) - before) / seconds["viewed"][-1])
    alone, viewed = (statistics.median(seconds[name]) for name in ("alone", "viewed"))
    return at_most(
        "view: a round takes longer while it is viewed", 100 * (viewed / alone - 1), 2.0, " %",
        seconds=seconds, server_percent_of_a_core=used,
    )  # fmt: skip


def _round(config: str) -> float:
    began = time.perf_counter()
    _run("flows.cli", "run", config)
    return time.perf_counter() - began


@contextmanager
def _looked_at(server: Server, name: str) -> Iterator[None]:
    """As by a browser with the run's page and its rollouts open."""
    done = threading.Event()
    parts = urlsplit(server.address)
    key = parts.query.removeprefix("key=")
    pages = {f"/{name}?part=live": "", f"/{name}/rollouts?part=rows": ""}

    def look() -> None:
        while not done.wait(EVERY_SECONDS):
            for path, etag in pages.items():
                connection = http.client.HTTPConnection(parts.netloc, timeout=60)
                cookie = f"videoopd-{parts.port}={key}"
                connection.request("GET", path, headers={"Cookie": cookie, "If-None-Match": etag})
                answer = connection.getresponse()
                answer.read()
                assert answer.status in (200, 304), answer.status
                pages[path] = answer.headers.get("ETag", "")
                connection.close()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()


def _cpu(server: Server) -> float:
    import psutil

    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def _server(run: Path) -> Iterator[Server]:
    command = _command("flows.cli", "view", str(run), "--no-browser")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise VideoOPDError(f"`videoopd view {run}` did not start; run it by hand")
        yield Server(process, address)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise VideoOPDError("the bench needs playwright; pip install 'videoopd[dev]'") from None
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise VideoOPDError("the bench needs chromium; apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def _page(browser: Browser, server: Server, path: str = "/static/icon.svg") -> Page:
    """A page that has the key; nothing of the run was asked for."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{server.url(path)}?{urlsplit(server.address).query}")
    return page


def _paint(page: Page, url: str) -> float:
    """Seconds from asking for a page to its first contentful paint, by the browser's clock."""
    answer = page.goto(url)
    if answer is None or answer.status != 200:
        raise VideoOPDError(f"{url} was answered with {answer and answer.status}; look at it")
    # Asked again and again: a function that waits in the page is refused by its security policy.
    while (painted := page.evaluate(_PAINT)) is None:
        page.wait_for_timeout(20)
    return float(painted) / 1000


def _command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *words]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(module: str, *words: str) -> None:
    command: Sequence[str] = _command(module, *words)
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise VideoOPDError(f"{' '.join(command[3:])} ended with {done.returncode}: {last}")
