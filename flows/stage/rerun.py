"""Before a stage of a round: may it run, and does it go on or begin again?

A stage is refused while what it would be computed from is stale. It begins a new take when it is
forced, or when its own rows are stale; killed in the middle of one, it goes on with that take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.stage.typed_config import config_words
from opd_core.types import VideoOPDError
from storage.tables.takes import FORCED, Stale, round_number

if TYPE_CHECKING:
    from storage.runs.run import Run


def refuse_stale_inputs(run: Run, stage: str, version: int) -> None:
    """Raises `VideoOPDError` naming the round and the stage that has to be run again first."""
    found = run.takes().in_the_way(stage, version)
    if found is not None:
        raise VideoOPDError(
            f"{stage} of round {round_number(stage, version)} cannot run yet: {found.reason()}; "
            f"run that again first: {command(found, config_words(run))}"
        )


def begin(run: Run, stage: str, version: int, force: bool = False) -> None:
    """Begin a new take where one is due; call it when nothing else stands in the way."""
    refuse_stale_inputs(run, stage, version)
    stale = run.takes().stale_at(stage, version)
    if force:
        run.begin_take(stage, version, FORCED)
    elif stale:
        run.begin_take(stage, version, stale.because())


def command(stale: Stale, config: str) -> str:
    """What runs a stale stage again."""
    if stale.stage == "rescore":
        return f"videoopd rescore {config} --round {stale.round}"
    return f"videoopd stage {stale.stage} {config} --round {stale.round}"
