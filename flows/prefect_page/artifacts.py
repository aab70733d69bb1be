"""Artifacts: the page of a round, and a table a stage. Keys are a run's, and so have a history."""

from __future__ import annotations

import re
from functools import partial

from flows.prefect_page.sending import sent
from flows.summaries import StageSummary

Cell = str | int | float | None
MEGABYTE = 1e6


def key(run: str, what: str) -> str:
    """`videoopd-<run>-<what>`, in the letters that Prefect takes: a-z, 0-9 and dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", f"videoopd {run} {what}".lower()))


def round_artifact(run: str, markdown: str, description: str) -> None:
    """The page of a round."""
    from prefect.artifacts import create_markdown_artifact

    sent(partial(create_markdown_artifact, markdown, key(run, "round"), description))


def stage_artifact(run: str, round: int, done: StageSummary) -> None:
    """What a stage did, where it did anything."""
    from prefect.artifacts import create_table_artifact

    if done.rows or done.notes.get("quarantined"):
        about = f"{done.stage} of round {round} of {run}"
        sent(partial(create_table_artifact, stage_table(round, done), key(run, done.stage), about))


def stage_table(round: int, done: StageSummary) -> list[dict[str, Cell]]:
    """A row a number, because Prefect's page is narrower than all of them. Absent is null."""
    use = done.use
    speed = None if use is None else use.tokens_per_second
    memory = "memory" if use is None else f"memory of {use.memory_of}"
    numbers: dict[str, Cell] = {
        "round": round,
        "rows written": done.rows,
        "rows copied, of them": done.copied,
        "quarantined": int(done.notes.get("quarantined", 0)),
        "seconds": round_to(done.seconds, 1),
        "tokens a second": None if speed is None else int(speed),
        "largest engine mismatch, nats": round_to(done.mismatch, 9),
        f"{memory}, MB": None if use is None else int(use.peak_memory / MEGABYTE),
    }
    return [{"number": name, "value": value} for name, value in numbers.items()]


def round_to(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)
