"""What the tests of the viewer share: a run, a server that shows runs, and a real Chromium.

def test_...(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)               # has the key; its console is kept
    page.goto(viewed.url("/tiny/rollouts"))
    assert viewed.said(page) == []            # nothing in the console
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from opd_core.prompts.batches import forget_decoded
from opd_core.tinyworld.world import World
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.tiny_config import as_toml, tiny_settings

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDE, NARROW = (1280, 800), (390, 844)
PATIENCE = 60_000
"""Milliseconds after which a page will not do what is waited for, also beside other tests."""
expect.set_options(timeout=PATIENCE)
COLOURS = ("light", "dark")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips by name what needs a browser where there is none; `make test` says so last."""
    for item in items:
        if CHROMIUM is None and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(f"{item.name}: chromium is not installed"))


@dataclass
class Viewed:
    """A server on loopback that shows runs."""

    port: int
    key: str
    """In the printed address; the browser then has it as a cookie."""
    runs: dict[str, Path]
    """By their names in URLs."""
    said_by: dict[int, list[str]] = field(default_factory=dict)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def page(self, browser: Browser, size: tuple[int, int] = WIDE, colours: str = "light") -> Page:
        """A page in a window of its own that has the key."""
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if colours == "dark" else "light",
        )
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        said = self.said_by.setdefault(id(page), [])
        page.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(self.url(f"/?key={self.key}"))
        return page

    def cookie(self) -> str:
        """The header of a request that has the key, without a browser."""
        return f"videoopd-{self.port}={self.key}"

    def said(self, page: Page) -> list[str]:
        """What the page's console was told: errors, warnings, refusals of the security policy."""
        return self.said_by[id(page)]


@contextmanager
def serving(runs: Sequence[Run]) -> Iterator[Viewed]:
    """A server for `runs` on a free port, in a thread that ends with the block."""
    import uvicorn

    from flows.view.app import make_app
    from flows.view.place import Place
    from flows.view.serve import listen_anywhere

    listening = listen_anywhere()
    port: int = listening.getsockname()[1]
    key = secrets.token_urlsafe(16)
    place = Place(runs)
    config = uvicorn.Config(
        make_app(place, key, port), log_level="warning", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Viewed(port, key, {name: one.path for name, one in place.shown.items()})
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
        assert not thread.is_alive()


MakeRun = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def make_run(tiny_world: World) -> MakeRun:
    """`make_run(folder, "tiny")` is the config of a run `folder/tiny` with two rounds: the shipped
    models, which answer with spans."""

    def make(folder: Path, name: str) -> Path:
        config = folder / f"{name}.toml"
        more = {"score.teacher_topk": 8}
        config.write_text(as_toml(tiny_settings(folder / name, tiny_world) | more))
        forget_decoded()  # of tests before: what is in memory is not put into the frame store
        run_without_server(str(config), 2)
        return config

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    """The config of a run `tiny` of two rounds, beside it; to be read only. Copy it to write."""
    return make_run(tmp_path_factory.mktemp("view"), "tiny")


def copied(finished: Path, folder: Path, name: str = "tiny") -> Path:
    """A copy of the run, to be written, in `folder/name`; its config."""
    shutil.copytree(finished.with_name("tiny"), folder / name)
    config = folder / "copied.toml"
    text = finished.read_text().splitlines()
    (place,) = as_toml({"run.path": str(folder / name)}).splitlines()
    config.write_text("\n".join([place, *(line for line in text if "run.path" not in line)]))
    return config


@pytest.fixture(scope="session")
def viewed(finished: Path) -> Iterator[Viewed]:
    """A server that shows `finished`, at `/tiny`."""
    with serving([Run.open(finished.with_name("tiny"))]) as shown:
        yield shown


@pytest.fixture(scope="module")
def browser(finished: Path) -> Iterator[Browser]:
    """Debian's Chromium, headless, started once a file of tests.

    After `finished` and closed with the file: while it is open, playwright's event loop runs in
    this thread, and nothing that starts one of its own (Prefect) can.
    """
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
