"""How a stage of a round begins: may it run, and does it go on or begin again?

It is refused while what it would be computed from is stale. It begins a new take when it is forced,
or when its own rows are stale; killed in the middle of one, it goes on with that take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opd_core.types import VideoOPDError
from storage.stages import round_number, stage_named
from storage.tables.takes import FORCED, Stale, Takes


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage of a round whose inputs are in force. Nothing is superseded yet."""

    forced: bool
    stale: Stale | None
    """What its own rows were computed from, where that is superseded."""
    _look_again: Callable[[], Stale | None]
    _supersede: Callable[[str], None]

    @property
    def again(self) -> bool:
        """Whether all of it is to be done again."""
        return self.forced or self.stale is not None

    def new_take(self, because: str | None = None) -> None:
        """Supersede what the stage has written, where that is due or there is another reason.

        Call it under `exclusive("round")`, once nothing else stands in the way: what it supersedes
        is not shown from then on. Whether its rows are stale is looked at again, because another
        process may have begun their take since. Raises `VideoOPDError` as `begin` does.
        """
        stale = self._look_again()
        why = FORCED if self.forced else stale.because() if stale else because
        if why is not None:
            self._supersede(why)


def begin(
    takes: Callable[[], Takes],
    stage: str,
    version: int,
    force: bool,
    supersede: Callable[[str], None],
    config: Callable[[], str],
) -> Begun:
    """Begin as `Run.begin` does; `config()` as one types it, for what to run first."""
    why_once = stage_named(stage).once
    if force and why_once:
        raise VideoOPDError(why_once)

    def look() -> Stale | None:
        now = takes()
        if (stale := now.in_the_way(stage, version)) is not None:
            raise VideoOPDError(
                f"{stage} of round {round_number(stage, version)} cannot run yet: {stale.reason()};"
                f" run that again first: {stale.command(config())}"
            )
        return now.stale_at(stage, version)

    return Begun(force, look(), look, supersede)
