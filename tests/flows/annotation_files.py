"""Annotation files and runs for tests of what annotations and videos do to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.runs.run import Run
from tests import video_files

Event = tuple[str, float, float]


def row(video: str, *events: Event, duration: float = 6.0, source: str = "test") -> dict[str, Any]:
    return {
        "source": source,
        "video_path": video,
        "duration": duration,
        "events": [{"query": query, "span": [[start, end]]} for query, start, end in events],
    }


def annotate(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_videos(folder: Path, *names: str) -> Path:
    """Of 6 s and an eighth more each, so that no two are alike."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        video_files.write_video(folder / name, frames=48 + number)
    return folder


def reasons(run: Path, stage: str | None = None) -> dict[str, tuple[str, str]]:
    """query -> (kind, reason) of what the stages of rounds gave up."""
    opened = Run.open(run)
    queries = dict(opened.examples().select("example_id", "query").collect().iter_rows())
    rows = opened.quarantine().select("item_id", "stage", "kind", "reason").collect()
    return {
        queries.get(item, item): (kind, reason)
        for item, of, kind, reason in rows.iter_rows()
        if stage in (None, of)
    }


def drawn(run: Path, round: int) -> set[str]:
    """Sentences of a round's draw."""
    opened = Run.open(run)
    draws = opened.draws().select("policy_version", "example_id").collect()
    rows = draws.join(opened.examples().select("example_id", "query").collect(), on="example_id")
    return set(rows.filter(policy_version=round - 1)["query"])
