"""Runs rounds from the command line: in this process, with a Prefect server for that long.

Prefect's own lines on the console are left out, because the tables say the same in fewer words and
an error is told once; they are in the server's log of the flow all the same. PREFECT_LOGGING_LEVEL
brings them back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from flows.progress import waiting
from flows.server import connect

if TYPE_CHECKING:
    from flows.summaries import RoundSummary, RunSummary


class Rounds(Protocol):
    """`flows.round.videoopd`, or what stands in for it in a test."""

    def __call__(self, config: str, rounds: int = 1, *, overrides: list[str]) -> RunSummary: ...


def round_flow() -> Rounds:
    """The flow `videoopd`, ready to be called."""
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with waiting("starting Prefect"):
        wait_for_server = connect()
        from flows.round import videoopd

        wait_for_server()
    return videoopd


def run_rounds(config: str, rounds: int, overrides: Sequence[str]) -> None:
    """Run `rounds` rounds and print their table after each."""
    from flows.prepare import check_folders
    from flows.report import print_rounds
    from opd_core.config import load_config

    # A wrong key or folder is found before a server is started.
    check_folders(load_config(config, overrides), config)
    flow = round_flow()
    done: list[RoundSummary] = []
    for _ in range(rounds):
        summary = flow(config, rounds=1, overrides=list(overrides))
        done += summary.rounds
        print_rounds(summary.run_path, done)
