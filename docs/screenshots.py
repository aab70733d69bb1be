"""The pictures of `videoopd view` and `videoopd report` in docs/pictures/, as they are now.

    make demo                            # the run that they show
    python docs/screenshots.py [RUN]     # default: runs/tiny; needs Chromium

Each page at 1280 pixels and the run page also at 390, light and dark, and part of the report; WebP,
below 200 kB each.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flows.report.write import write_report  # noqa: E402
from storage.asking.query import query  # noqa: E402
from storage.runs.run import Run  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
LARGEST = 200_000
WIDE, NARROW = (1280, 800), (390, 844)
CHOSEN = "SELECT * FROM trajectories WHERE selected AND predicted_start IS NOT NULL"
TELLING = ("rounds", "disagreement", "rollout_id")
"""A rollout that says much: drawn in several rounds, and the teacher knows better."""


def pages(run: Run) -> dict[str, tuple[str, tuple[int, int], bool]]:
    """Name of a picture -> path, size of the window, and whether all of the page is on it."""
    often = pl.col("policy_version").n_unique().over("example_id").alias("rounds")
    chosen = query(run, CHOSEN).with_columns(often).sort(TELLING, descending=True)
    rollout_id, start, end = chosen.select("rollout_id", "span_start", "span_end").row(0)
    student, teacher = query(
        run,
        "SELECT sampling_logprobs, teacher_logprobs FROM rollouts JOIN teacher_scores"
        f" USING (rollout_id) WHERE rollout_id = '{rollout_id}'",
    ).row(0)
    gaps = [pi - q for pi, q in zip(student, teacher, strict=True)]
    name, moment = run.path.name, f"?t={(start + end) / 2:.1f}&token={gaps.index(max(gaps))}"
    return {
        "run": (f"/{name}", WIDE, True),
        "run-narrow": (f"/{name}", NARROW, False),
        "rollouts": (f"/{name}/rollouts", WIDE, False),
        "trajectory": (f"/{name}/r/{rollout_id}{moment}", WIDE, True),
    }


@contextmanager
def shown(run: Path) -> Iterator[str]:
    """The address that `videoopd view` prints for a run, meanwhile."""
    command = [sys.executable, "-P", "-m", "flows.cli", "view", str(run), "--no-browser"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def picture(page: Page, whole: bool) -> bytes:
    """The page as WebP, once its frames and the first picture of its video are there."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function(
        "[...document.images].every((i) => i.complete)"
        " && [...document.querySelectorAll('video')].every((v) => v.readyState >= 2 || v.error)"
    )
    return as_webp(page.screenshot(full_page=whole), page.url)


def report_picture(browser: Browser, run: Path) -> bytes:
    """What a report shows of the curves and of the largest change, as WebP."""
    page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
    with tempfile.TemporaryDirectory() as folder:
        page.goto(write_report([Run.open(run)], Path(folder) / "report.html", False).as_uri())
        head = page.locator("#curves").bounding_box()
        last = page.locator("article.change").first.bounding_box()
        assert head is not None and last is not None
        top, bottom = head["y"] - 16, last["y"] + last["height"] + 16
        clip = {"x": 0, "y": top, "width": WIDE[0], "height": bottom - top}
        taken = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
    page.close()
    return as_webp(taken, "the report")


def as_webp(png: bytes, what: str) -> bytes:
    """A picture as WebP, without loss where that is small enough."""
    taken = Image.open(io.BytesIO(png))
    made = io.BytesIO()
    taken.save(made, "WEBP", lossless=True, method=6)
    if made.tell() > LARGEST:  # much of it is frames of a video
        made = io.BytesIO()
        taken.save(made, "WEBP", quality=85, method=6)
    if made.tell() > LARGEST:
        raise SystemExit(f"{what}: its picture has {made.tell():,} bytes, above {LARGEST:,}")
    return made.getvalue()


def main(run: Path) -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("there is no Chromium; apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    wanted = pages(Run.open(run))
    with shown(run) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        place = urlsplit(address)
        for colours in ("light", "dark"):
            for name, (path, (width, height), whole) in wanted.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if colours == "dark" else "light",
                )
                page = context.new_page()
                page.goto(address)
                page.goto(f"{place.scheme}://{place.netloc}{path}")
                file = PICTURES / f"view-{name}-{colours}.webp"
                file.write_bytes(picture(page, whole))
                print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")
                context.close()
        file = PICTURES / "report-light.webp"
        file.write_bytes(report_picture(browser, run))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "tiny").resolve())
