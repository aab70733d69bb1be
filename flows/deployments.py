"""The Prefect deployments: `videoopd/round`, and one for each stage (`storage/stages.py`).

A stage's deployment does what is missing of that stage, in the current round or in the one given;
with `force=true` it does all of it again, under a new take (`storage/runs/begun.py`). A deployment
runs in no folder of the user's, so paths in its `overrides` are relative to the config's folder, as
those in the config are; a relative `config` is found from the folder that serves the deployments.
All flows are named `videoopd`, so that a deployment's name is `videoopd/<stage>`.

`flows/serving.py` serves them. One flow runs at a time: they share a run's tables and the machine's
accelerator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from prefect import Flow, flow
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.alone import alone
from flows.prefect_page.names import of_stage
from flows.round import videoopd
from flows.stage.prepare import opened
from flows.summaries import StageSummary
from flows.tracking.live import tracked
from opd_core.types import VideoOPDError
from storage.stages import ROUND, Stage


def _alone(stage: Stage) -> Flow[..., Any]:
    """The flow of one stage: under its name, in the round that is asked for."""
    run_stage = alone(stage.name)

    def run(
        config: str,
        round: int | None = None,
        overrides: list[str] | None = None,
        force: bool = False,
    ) -> StageSummary:
        with opened(config, overrides, stages=(stage.name,)) as work, tracked(work.config):
            return run_stage(work, work.policy_at(stage.name, round), force)

    run.__name__ = run.__qualname__ = stage.name
    run.__doc__ = stage.about
    return flow(name="videoopd", flow_run_name=of_stage(stage.name))(run)


_STAGES = {stage.name: _alone(stage) for stage in ROUND}
globals().update(_STAGES)  # where their entry points find them
DEPLOYMENTS: dict[str, Flow[..., Any]] = {"round": videoopd, **_STAGES}
"""Deployment name -> flow; `prefect.yaml` describes the same ones (a test compares)."""


def serve_deployments(registered: Callable[[], None] = lambda: None) -> None:
    """Register all deployments and run what is asked for, until a signal ends it.

    `registered` is called as soon as a deployment can be asked for. (`prefect.serve` is the same
    without telling.)
    """
    runner = Runner(limit=1, pause_on_shutdown=False)
    for name, served_flow in DEPLOYMENTS.items():
        deployment = cast(RunnerDeployment, served_flow.to_deployment(name, tags=[name]))
        # By module, not by file: found from any folder, and no code is copied. Of this module also
        # for `videoopd`, so that what is set up here holds for it too.
        deployment.entrypoint = entrypoint(served_flow)
        deployment._entrypoint_type = EntrypointType.MODULE_PATH
        runner.add_deployment(deployment)
    registered()
    with suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())


def entrypoint(served_flow: Flow[..., Any]) -> str:
    """Where a worker finds the flow."""
    return f"flows.deployments.{served_flow.fn.__name__}"


def _told_once(record: logging.LogRecord) -> bool:
    """An error of the user's is one sentence, which Prefect logs with the final state."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, VideoOPDError)


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_told_once)
