"""Refuses a config that cannot fit into the memory that is there, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from opd_core.config.load import Config
from opd_core.types import VideoOPDError


def refuse_what_cannot_fit(config: Config, stages: Sequence[str] | None = None) -> None:
    """Raise `VideoOPDError` naming a stage, of all or of these, that by its plan is too large for
    this machine, and the setting that makes it fit; not with `machine.check_memory = false`.

    Nothing is said of models whose shape cannot be told: who opens them says what is wrong.
    """
    if not config.machine.check_memory:
        return
    from flows.console.plan_tables import misfit
    from opd_core.plan.memory import STAGES
    from opd_core.plan.plan import plan
    from opd_core.plan.plan_of_config import plan_of, this_machine

    machine = this_machine(config)
    if machine is None:
        return
    asked = STAGES if stages is None else stages
    try:
        if plan(config, machine, stages=asked, remedies=False).fits:
            return
    except VideoOPDError:
        return
    try:
        # Now with the lengths of the annotated videos, which may be shorter than the budget.
        exact = plan_of(config, machine, stages=asked)
    except VideoOPDError:
        exact = plan(config, machine, stages=asked)
    for stage in exact.stages:
        if not stage.fits:
            raise VideoOPDError(
                f"{misfit(stage, machine)}; or set machine.check_memory = false and try "
                f"(videoopd plan has the parts)"
            )
