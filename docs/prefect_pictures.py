"""Pictures for docs/how-to/prefect.md, made again by `python docs/prefect_pictures.py`.

A real round of a deployment on a server of its own, in a folder that goes away, looked at in
Chromium. Needs playwright and Debian's chromium; about two minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 200_000
SMALL = {
    "rollout.examples_per_round": 96, "focus.top_k": 96, "update.examples_per_step": 16,
    "update.warmup_steps": 3,
}  # fmt: skip
"""Of the demo's config: a round of half a minute."""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="videoopd-pictures-") as name:
        project = Path(name)
        shutil.copy(ROOT / "prefect.toml", project)
        shutil.copytree(ROOT / "configs", project / "configs")
        (project / "home").mkdir()
        _world(project)
        try:
            _run(project, "flows.cli", "up")
            overrides = json.dumps([f"{key}={value}" for key, value in SMALL.items()])
            given = ("--param", "config=configs/tiny.toml", "--param", f"overrides={overrides}")
            watched = ("--watch", "--watch-timeout", "400")
            _run(project, "prefect", "deployment", "run", "videoopd/round", *given, *watched)
            _photograph(json.loads((project / ".prefect" / "server.json").read_text())["url"])
        finally:
            _run(project, "flows.cli", "down")


def _world(project: Path) -> None:
    size = ("--train-videos", "100", "--eval-videos", "60", "--annotations", "loose")
    _run(project, "flows.cli", "tinyworld", "make", "--out", "worlds/tiny-loose", *size)


def _run(project: Path, module: str, *words: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    own = {"HOME": str(project / "home"), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-P", "-m", module, *words], cwd=project, env=kept | own, check=True
    )


def _photograph(api: str) -> None:
    from playwright.sync_api import sync_playwright

    (run,) = (r for r in _asked(api, "/flow_runs/filter") if r["name"] == "tiny-round-1")
    newest = {a["key"]: a["latest_id"] for a in _asked(api, "/artifacts/latest/filter")}
    page_of = "/artifacts/artifact/{}"
    pages = {
        "prefect-flow-run": f"/runs/flow-run/{run['id']}",
        "prefect-round": page_of.format(newest["videoopd-tiny-round"]),
        "prefect-stage": page_of.format(newest["videoopd-tiny-rollout"]),
    }
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 1240})
        for name, path in pages.items():
            page.goto(api.removesuffix("/api") + path)
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(2000)  # the timeline is drawn on a canvas
            picture = PICTURES / f"{name}.png"
            page.screenshot(path=picture, clip=None if name == "prefect-round" else TOP)
            size = picture.stat().st_size
            assert size <= MOST_BYTES, f"{picture} has {size:,} bytes"
            print(picture.relative_to(ROOT), f"{size:,} bytes")


TOP: Any = {"x": 0, "y": 0, "width": 1280, "height": 620}


def _asked(api: str, path: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(api + path, b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        found: list[dict[str, Any]] = json.load(reply)
        return found


if __name__ == "__main__":
    main()
