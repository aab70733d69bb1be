"""The event of a committed round, for automations.

It carries an id that is the round's: said twice, it is one event. It is said once the round is
finished; a process that is killed in the moment between the two says nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from flows.prefect_page.sending import sent

COMMITTED = "videoopd.round.committed"
_OURS = uuid.uuid5(uuid.NAMESPACE_DNS, "videoopd")


@dataclass(frozen=True, slots=True)
class Committed:
    """A round that is finished: its policy is evaluated, its tables are tagged."""

    run_id: str
    run: Path
    config: Path
    overrides: tuple[str, ...]
    """What the round was given: a deployment that is given them again goes on with the run."""
    round: int
    rounds_left: int
    """Of its flow."""
    policy_hash: str
    miou_before: float | None
    miou_after: float | None
    r1_50_before: float | None
    r1_50_after: float | None
    selected: int

    @property
    def miou(self) -> Literal["rose", "fell", "same", "unknown"]:
        """What became of it. An automation can ask for a label of the resource, not for a number of
        the payload."""
        before, after = self.miou_before, self.miou_after
        if before is None or after is None:
            return "unknown"
        return "same" if after == before else "rose" if after > before else "fell"


def emit_committed(done: Committed) -> None:
    """Say it to the server."""
    from prefect.events import emit_event

    resource = {
        "prefect.resource.id": f"videoopd.run.{done.run_id}",
        "prefect.resource.name": done.run.name,
        "videoopd.miou": done.miou,
        "videoopd.goes-on": "yes" if done.rounds_left else "no",
    }
    payload = {
        "run": str(done.run),
        "config": str(done.config),
        "overrides": list(done.overrides),
        "round": done.round,
        "rounds_left": done.rounds_left,
        "policy_hash": done.policy_hash,
        "miou_before": done.miou_before,
        "miou_after": done.miou_after,
        "r1_50_before": done.r1_50_before,
        "r1_50_after": done.r1_50_after,
        "selected": done.selected,
    }
    known_as = uuid.uuid5(_OURS, f"{done.run_id} {done.round} {done.policy_hash}")
    sent(partial(emit_event, COMMITTED, resource, payload=payload, id=known_as))
