"""The Prefect deployments: `videoopd/round`, and one for each stage that is worth running alone.

A stage's deployment does what is missing of that stage, in the current round or in the one given;
with `force=true` it does all of it again, under a new take (`flows/stage/rerun.py`). A deployment
runs in no folder of the user's, so paths in its `overrides` are relative to the config's folder, as
those in the config are; a relative `config` is found from the folder that serves the deployments.
All flows are named `videoopd`, so that a deployment's name is `videoopd/<stage>`.

`python -m flows.deployments` serves them for the Prefect server of PREFECT_API_URL, until it is
stopped; `make up` starts it in the background. One flow runs at a time: they share a run's tables
and the machine's accelerator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from prefect import Flow, flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows import stages
from flows.alone import alone
from flows.round import videoopd
from flows.stage.prepare import opened
from flows.summaries import StageSummary
from opd_core.types import VideoOPDError


def _alone(stage: Callable[..., StageSummary], about: str) -> Flow[..., Any]:
    """The flow of one stage: under its name, in the round that is asked for."""

    def run(
        config: str,
        round: int | None = None,
        overrides: list[str] | None = None,
        force: bool = False,
    ) -> StageSummary:
        with opened(config, overrides) as work:
            return stage(work, work.policy_at(name, round), force)

    name = stage.__name__
    run.__name__, run.__qualname__, run.__doc__ = name, name, about
    return flow(name="videoopd", flow_run_name=name)(run)


draw = _alone(stages.draw, "Choose the round's examples, if it has none yet; by force, others.")
validate = _alone(
    alone("validate"),
    "Make the teacher predictions of the round's examples that have none.",
)
rollout = _alone(
    alone("rollout"), "Sample the answers that are still missing of the round's policy."
)
score = _alone(stages.score, "Have the teacher score the round's rollouts that have no score yet.")
focus = _alone(stages.focus, "Select the rollouts to train on, if the round has no selection yet.")
update = _alone(
    stages.update,
    "Train on the round's selection and commit the next policy, if that is still to be done.",
)
evaluate = _alone(
    alone("evaluate"),
    "Answer the evaluation examples that the policy has not answered yet; how well, in `notes`.",
)

DEPLOYMENTS: dict[str, Flow[..., Any]] = {
    "round": videoopd,
    "draw": draw,
    "validate": validate,
    "rollout": rollout,
    "score": score,
    "focus": focus,
    "update": update,
    "evaluate": evaluate,
}
"""Deployment name -> flow; `prefect.yaml` describes the same ones (a test compares)."""


def serve_deployments() -> None:
    """Register all deployments and run what is asked for, until a signal ends it."""
    served = []
    for name, served_flow in DEPLOYMENTS.items():
        deployment = cast(RunnerDeployment, served_flow.to_deployment(name, tags=[name]))
        # By module, not by file: found from any folder, and no code is copied. Of this module also
        # for `videoopd`, so that what is set up here holds for it too.
        deployment.entrypoint = entrypoint(served_flow)
        deployment._entrypoint_type = EntrypointType.MODULE_PATH
        served.append(deployment)
    serve(*served, limit=1, print_starting_message=False, pause_on_shutdown=False)


def entrypoint(served_flow: Flow[..., Any]) -> str:
    """Where a worker finds the flow."""
    return f"flows.deployments.{served_flow.fn.__name__}"


def _told_once(record: logging.LogRecord) -> bool:
    """An error of the user's is one sentence, which Prefect logs with the final state."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, VideoOPDError)


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_told_once)


if __name__ == "__main__":
    # Under its real name, which the deployments' entry points are made of.
    from flows import deployments
    from flows.server import prefect_settings

    prefect_settings.apply()
    deployments.serve_deployments()
