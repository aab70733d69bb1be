"""The file: whole in itself, small, readable, and written where it may be."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flows.cli import main
from flows.report.frames import _frame
from flows.report.page import HERE, html, report
from opd_core.types import Span
from opd_core.video.clip import VideoClip
from storage.runs.run import Run

AT_MOST = 5_000_000
LOADING = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
EMPTY = ("meta", "img", "br", "hr", "input", "link")


class _Read(HTMLParser):
    """Keeps what could load something, and that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADING]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_loads_nothing(tiny: Path, seeded: Path) -> None:
    page = html(report([Run.open(tiny), Run.open(seeded)]))
    read = _Read()
    read.feed(page)
    assert read.open == [] and not read.tags & {"script", "link", "iframe", "object", "base"}
    assert {load.split(",")[0] for load in read.loads if not load.startswith("#")} == {
        "data:image/jpeg;base64"
    }
    (css,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in css and "@import" not in css
    assert "default-src &#39;none&#39;" in page
    targets = {load[1:] for load in read.loads if load.startswith("#")}
    assert targets <= set(re.findall(r'id="(\w+)"', page))


def test_pictures_of_any_video_leave_room() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 720, 1280, 3), dtype=np.uint8)
    clip = VideoClip.of(noise, (0, 10, 20, 30), 10.0, 40, "pyav")

    frames = [_frame(clip, at, [Span(1.0, 3.0)]) for at in range(4)]

    assert 64 * max(len(frame.uri) for frame in frames) < AT_MOST / 2
    assert [frame.in_truth for frame in frames] == [False, True, True, False]
    assert {(frame.width, frame.height) for frame in frames} == {(160, 90)}


def test_a_small_frame_keeps_its_pixels() -> None:
    from PIL import Image

    smooth = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None], (1, 32, 1, 3))
    frame = _frame(VideoClip.of(smooth, (0,), 1.0, 1, "pyav"), 0, ())
    picture = Image.open(io.BytesIO(base64.b64decode(frame.uri.partition(",")[2])))
    assert picture.size == (32, 32) and (frame.width, frame.height) == (160, 160)
    assert np.abs(np.asarray(picture).astype(int) - smooth[0].astype(int)).max() < 12


def test_the_command_writes_where_it_may(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(tiny)]) == 0
    file = tmp_path / "report-tiny.html"
    assert file.stat().st_size < AT_MOST and "wrote report-tiny.html" in capsys.readouterr().out

    written = file.stat().st_mtime_ns
    for words, said in (
        ([str(tiny)], "report-tiny.html is there already; choose another --out, or add --force"),
        ([str(tiny), "--out", str(tmp_path)], "is a folder; give --out the name of a file in it"),
        ([str(tiny), "--out", "no/such.html"], "there is no folder no for --out"),
        (["nowhere"], "nowhere is no run"),
        ([str(tiny), "nowhere"], "nowhere is no run"),
        ([f"{tiny}@7"], "has not finished round 7"),
    ):
        assert main(["report", *words]) == 2
        complaint = capsys.readouterr().err.strip()
        assert said in complaint and "\n" not in complaint
    assert file.stat().st_mtime_ns == written
    assert main(["report", str(tiny), f"{tiny}@1", "--out", file.name, "--force"]) == 0
    assert "Report of tiny and tiny@1" in file.read_text()


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_marks_can_be_seen_in_light_and_dark() -> None:
    css = (HERE / "templates" / "report.css").read_text()
    charts = (HERE.parent / "charts" / "chart.css").read_text()
    roots = [re.findall(r":root \{(.*?)\n ?\s*\}", text, re.DOTALL) for text in (css, charts)]
    for of_page, of_charts in zip(*roots, strict=True):
        known = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", of_page + of_charts))
        for surface in ("--surface", "--surface-panel"):
            for text in ("--ink", "--ink-muted", "--ink-link", "--far"):
                assert _contrast(known[text], known[surface]) >= 4.5, (text, surface)
        for text in ("--chart-ink", "--chart-muted"):
            for surface in ("--surface-panel", "--chart-video"):
                assert _contrast(known[text], known[surface]) >= 4.5, (text, surface)
        for mark in ("--truth", "--student", "--teacher", *(f"--chart-{n}" for n in range(1, 9))):
            assert _contrast(known[mark], known["--surface-panel"]) >= 3, mark
