"""The documentation says what is there: links, commands, paths, what is made from the code."""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import click
import pytest

from flows.cli import main, program
from tests.tiny_config import ROOT

DOCS = ROOT / "docs"
FRONT = ROOT / "README.md"
PAGES = sorted(
    {FRONT, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")}
    - {DOCS / "log.md"}
)
"""All but the log, which speaks of the program as it was."""
FRONT_PAGE_LINES = 150
_FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`")
_GIVEN = {"N": "3", "FORMAT": "csv"}
"""What stands for a word that the parser checks."""
_SHELL_ENDS = ("|", "&&", ";", ">")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", text)


def anchor(heading: str) -> str:
    """As mkdocs and GitHub make it of the headings that are linked here."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def dead_links(page: Path) -> Iterator[str]:
    for link in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield link
        elif fragment:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if fragment not in map(anchor, headings):
                yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b\n[1](#a-b) [2](page.md#c) [3](gone.md) [4](https://x.y/z)\n```\n[5](q)\n```\n"
    )
    assert list(dead_links(page)) == ["page.md#c", "gone.md"]


def test_every_page_is_reached_from_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert listed <= pages
    # `videoopd study` writes reports of the user's own there
    assert {page for page in pages - listed if not page.startswith("studies/")} == set()


def typed(text: str) -> Iterator[str]:
    """The lines `videoopd ...` of a page's blocks of code: to be typed as they stand."""
    for block in _FENCED.findall(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        yield from (line.strip() for line in lines if re.match(r"\s*videoopd ", line))


def mentioned(text: str) -> Iterator[str]:
    """Every `videoopd ...` in a sentence, which may leave out what a command is about."""
    for words in _INLINE.findall(prose(text)):
        command = " ".join(words.split()).removeprefix(".venv/bin/")
        if command.startswith("videoopd "):
            yield command


def arguments(command: str) -> list[str]:
    """What the shell hands on: without a comment, a pipe or a second command."""
    words = shlex.split(command.replace("...", ""), comments=True)[1:]
    ends = [i for i, word in enumerate(words) if word.startswith(_SHELL_ENDS)]
    words = words[: ends[0]] if ends else words
    return [_GIVEN.get(word, word) for word in words]


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take their arguments and do nothing with them."""
    groups: list[click.Group] = [program]
    for group in groups:
        for command in group.commands.values():
            if isinstance(command, click.Group):
                groups.append(command)
            else:
                monkeypatch.setattr(command, "callback", lambda **given: None)


def refusal(command: str) -> str:
    """What the real command line says against a command; nothing where it takes it."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        main(arguments(command))
    return said.getvalue()


def of_pages(find: Callable[[str], Iterator[str]]) -> list[object]:
    return [
        pytest.param(command, id=f"{name_of(page)}: {command[:60]}")
        for page in PAGES
        for command in dict.fromkeys(find(page.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("command", of_pages(typed))
def test_commands_to_type_are_taken_by_the_parser(command: str) -> None:
    assert refusal(command) == ""


@pytest.mark.parametrize("command", of_pages(mentioned))
def test_commands_in_sentences_are_commands(command: str) -> None:
    said = refusal(command)
    assert said == "" or re.search("missing (command|argument|option)", said)


def test_there_are_commands_to_try_and_a_wrong_one_is_refused() -> None:
    assert len(of_pages(typed)) > 25 and len(of_pages(mentioned)) > 25
    assert "--no-such" in refusal("videoopd status RUN --no-such  # a comment")
    assert "missing argument 'RUN'" in refusal("videoopd status | head")
    assert refusal("videoopd status RUN | head") == ""


def test_paths_of_the_map_exist() -> None:
    named = _INLINE.findall(prose((DOCS / "tree.md").read_text()))
    paths = [
        name for name in named if name.startswith(("flows/", "opd_core/", "storage/", "tests/"))
    ]
    assert len(paths) > 200
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    if page == ROOT / "CHANGELOG.md":
        return
    named = re.findall(
        r"`((?:flows|opd_core|storage|tests)/[\w/.-]+|[\w.-]+/[\w/.-]+\.py)`", page.read_text()
    )
    recipes = {path for path in named if "NAME" in path}
    assert [path for path in named if path not in recipes and not (ROOT / path).exists()] == []


def test_the_front_page_is_one() -> None:
    assert len(FRONT.read_text().splitlines()) <= FRONT_PAGE_LINES


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_from_the_code_is_as_the_code_is(generate: ModuleType) -> None:
    stale = [
        name_of(path)
        for path, text in generate.pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def test_the_reference_leaves_nothing_out(generate: ModuleType) -> None:
    from opd_core.config.template import config_template
    from storage.tables.schemas import TABLES

    config = generate.config_page()
    keys = re.findall(r"^#?([a-z_]+) = ?", config_template(), re.MULTILINE)
    assert len(keys) > 80
    assert [key for key in keys if f"| `{key}` |" not in config] == []
    tables = generate.tables_page()
    for table in TABLES.values():
        section = tables.split(f"## `{table.name}`\n")[1].split("\n## ")[0]
        assert all(f"| `{column.name}` |" in section for column in table.own_columns)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(site),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (site / "reference" / "config.html").is_file()
