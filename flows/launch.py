"""Runs rounds or a stage from the command line: in this process, with a Prefect server meanwhile.

Prefect's own lines on the console are left out, because the tables say the same in fewer words and
an error is told once; they are in the server's log of the flow all the same. PREFECT_LOGGING_LEVEL
brings them back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from flows.console.progress import waiting
from flows.server.local import connect
from opd_core.types import VideoOPDError
from storage.stages import RESCORE, round_number

if TYPE_CHECKING:
    from flows.summaries import RoundSummary, RunSummary, StageSummary
    from opd_core.config.load import Config
    from storage.tables.takes import Stale


class Rounds(Protocol):
    """`flows.round.videoopd`, or what stands in for it in a test."""

    def __call__(self, config: str, rounds: int = 1, *, overrides: list[str]) -> RunSummary: ...


def round_flow() -> Rounds:
    """The flow `videoopd`, ready to be called."""
    _connect()
    from flows.round import videoopd

    return videoopd


@cache
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
    from flows.console.report import print_rounds
    from flows.tracking.live import tracked

    loaded = _checked(config, overrides)
    flow = round_flow()
    done: list[RoundSummary] = []
    with tracked(loaded):
        for number in range(1, rounds + 1):
            summary = flow(config, rounds=1, overrides=list(overrides))
            done += summary.rounds
            print_rounds(summary.run_path, done, last=number == rounds)


def run_stage(
    stage: str, config: str, round: int | None, force: bool, overrides: Sequence[str]
) -> None:
    """Run the deployment of a stage here, where it has anything to do; print what it did."""
    from flows.alone import nothing_to_do

    _checked(config, overrides, (stage,))
    done = nothing_to_do(stage, config, round, overrides, force)
    if done is not None:
        return _print_done(stage, done)
    _connect()
    _run_one(stage, config, round, force, overrides)


def run_stale(config: str, round: int | None, force: bool, overrides: Sequence[str]) -> None:
    """Run again everything that reruns have made stale, of a round or of all, in its order.

    Raises `VideoOPDError` with `force`: what is stale is computed again as a whole anyway.
    """
    if force:
        raise VideoOPDError(
            "a stale stage is run again as a whole without --force; leave it out, or name a stage"
        )
    from storage.tables import damage

    loaded = _checked(config, overrides)
    with damage.told([loaded.run.path]):
        done = _run_all_stale(loaded, config, round, overrides)
    where = "" if round is None else f" of round {round}"
    print(f"nothing{where} is stale" + (f" any more; {done} run again" if done else ""))


def _run_all_stale(loaded: Config, config: str, round: int | None, overrides: Sequence[str]) -> int:
    """Run all that is stale again; returns how many stages that were."""
    from flows.rescore import rescore_run
    from storage.runs.run import Run

    done = 0
    while (stale := _next_stale(loaded, round)) is not None:
        if stale.stage == RESCORE.name:
            rescore_run(Run.open(loaded.run.path), stale.round, loaded)
        else:
            _connect()
            _run_one(stale.stage, config, stale.round, False, overrides)
        done += 1
        if _next_stale(loaded, round) == stale:
            raise VideoOPDError(
                f"{stale.reason()}, and still is after it was run again; run it alone to see why: "
                f"{stale.command(config)}"
            )
    return done


def _next_stale(config: Config, round: int | None) -> Stale | None:
    """What is to be run again first; a rescore, from which nothing is computed, last."""
    from storage.runs.run import Run

    if not config.run.path.exists():
        raise VideoOPDError(f"there is no run at {config.run.path} yet; `videoopd run` starts it")
    stale = [s for s in Run.open(config.run.path).takes().stale() if round in (None, s.round)]
    return min(stale, key=lambda s: s.stage == RESCORE.name, default=None)


def _checked(config: str, overrides: Sequence[str], stages: Sequence[str] | None = None) -> Config:
    """The config; a wrong key or folder, a run that is worked on, or a stage (of these, or of all)
    that cannot fit into memory is found before a server is started."""
    from flows.stage.memory_check import refuse_what_cannot_fit
    from flows.stage.models import with_folders
    from flows.stage.prepare import check_folders, refuse_busy, refuse_missing_trackers
    from opd_core.config.load import load_config

    loaded = load_config(config, overrides)
    refuse_busy(loaded)
    check_folders(loaded, config)
    refuse_missing_trackers(loaded)
    refuse_what_cannot_fit(loaded, stages)
    return with_folders(loaded, config)


def _run_one(
    stage: str, config: str, round: int | None, force: bool, overrides: Sequence[str]
) -> None:
    from flows.deployments import DEPLOYMENTS

    run: Callable[..., StageSummary] = DEPLOYMENTS[stage]
    _print_done(stage, run(config, round=round, force=force, overrides=list(overrides)))


def _print_done(stage: str, done: StageSummary) -> None:
    notes = "".join(
        f"; {key.replace('_', ' ')} {value:.3g}" if isinstance(value, float)
        else f"; {key.replace('_', ' ')} {value}"
        for key, value in done.notes.items()
        if not key.endswith(("_low", "_high"))
    )  # fmt: skip
    print(f"{stage} of round {round_number(stage, done.policy_version)}: {done.rows:,} rows{notes}")
