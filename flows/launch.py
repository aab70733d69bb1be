"""Runs rounds or a stage from the command line: in this process, with a Prefect server meanwhile.

Prefect's own lines on the console are left out, because the tables say the same in fewer words and
an error is told once; they are in the server's log of the flow all the same. PREFECT_LOGGING_LEVEL
brings them back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from flows.progress import waiting
from flows.server import connect
from storage.takes import round_number

if TYPE_CHECKING:
    from flows.summaries import RoundSummary, RunSummary, StageSummary


class Rounds(Protocol):
    """`flows.round.videoopd`, or what stands in for it in a test."""

    def __call__(self, config: str, rounds: int = 1, *, overrides: list[str]) -> RunSummary: ...


def round_flow() -> Rounds:
    """The flow `videoopd`, ready to be called."""
    _connect()
    from flows.round import videoopd

    return videoopd


def _connect() -> None:
    with waiting("starting Prefect"):
        wait_for_server = quiet_server()
        import flows.round  # noqa: F401  (takes its time, too)

        wait_for_server()


def quiet_server() -> Callable[[], None]:
    """A Prefect API for this process and those it starts; returns what waits until it answers."""
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    return connect()


def run_rounds(config: str, rounds: int, overrides: Sequence[str]) -> None:
    """Run `rounds` rounds and print their table after each."""
    from flows.prepare import check_folders, refuse_busy
    from flows.report import print_rounds
    from opd_core.config import load_config

    # A wrong key or folder, or a run that is worked on, is found before a server is started.
    loaded = load_config(config, overrides)
    check_folders(loaded, config)
    refuse_busy(loaded)
    flow = round_flow()
    done: list[RoundSummary] = []
    for _ in range(rounds):
        summary = flow(config, rounds=1, overrides=list(overrides))
        done += summary.rounds
        print_rounds(summary.run_path, done)


def run_stage(
    stage: str, config: str, round: int | None, force: bool, overrides: Sequence[str]
) -> None:
    """Run the deployment of a stage here, where it has anything to do; print what it did."""
    from flows.alone import nothing_to_do
    from flows.prepare import check_folders, refuse_busy
    from opd_core.config import load_config

    loaded = load_config(config, overrides)
    check_folders(loaded, config)
    refuse_busy(loaded)
    done = None if force else nothing_to_do(stage, config, round, overrides)
    if done is None:
        _connect()
        from flows.deployments import DEPLOYMENTS

        run: Callable[..., StageSummary] = DEPLOYMENTS[stage]
        done = run(config, round=round, force=force, overrides=list(overrides))
    notes = "".join(
        f"; {key.replace('_', ' ')} {value:.3g}" if isinstance(value, float)
        else f"; {key.replace('_', ' ')} {value}"
        for key, value in done.notes.items()
    )  # fmt: skip
    print(f"{stage} of round {round_number(stage, done.policy_version)}: {done.rows:,} rows{notes}")
