"""The Prefect deployments: `videoopd/round`, and one for each stage that is worth running alone.

A stage's deployment does what is missing of that stage, in the current round or in the one given;
with `force=true` it does all of it again, under a new take (`rerun.py`).
All flows are named `videoopd`, so that a deployment's name is `videoopd/<stage>`.

`python -m flows.deployments` serves them for the Prefect server of PREFECT_API_URL, until it is
stopped; `make up` starts it in the background. One flow runs at a time: they share a run's tables
and the machine's accelerator.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect import Flow, flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows import stages
from flows.evaluation import groups, numbers, of_policy
from flows.prepare import opened
from flows.round import videoopd
from flows.summaries import StageSummary
from opd_core.types import VideoOPDError


@flow(name="videoopd", flow_run_name="draw")
def draw(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Choose the round's examples, if it has none yet; by force, others."""
    with opened(config, overrides) as work:
        return stages.draw(work, work.policy(round), force)


@flow(name="videoopd", flow_run_name="rollout")
def rollout(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Sample the answers that are still missing of the round's policy."""
    with opened(config, overrides) as work:
        return stages.rollout(work, work.policy(round), force)


@flow(name="videoopd", flow_run_name="score")
def score(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Have the teacher score the round's rollouts that have no score yet."""
    with opened(config, overrides) as work:
        return stages.score(work, work.policy(round), force)


@flow(name="videoopd", flow_run_name="focus")
def focus(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Select the rollouts to train on (TVDF), if the round has no selection yet."""
    with opened(config, overrides) as work:
        return stages.focus(work, work.policy(round), force)


@flow(name="videoopd", flow_run_name="update")
def update(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Train on the round's selection and commit the next policy, if that is still to be done."""
    with opened(config, overrides) as work:
        return stages.update(work, work.policy(round), force)


@flow(name="videoopd", flow_run_name="evaluate")
def evaluate(
    config: str,
    round: int | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Answer the evaluation examples that the policy has not answered yet; how well, in `notes`."""
    with opened(config, overrides) as work:
        policy = work.policy(round)
        summary = stages.evaluate(work, policy, force)
        (every,) = groups(of_policy(work.run, policy.version))
        return summary.noting(answers=every.examples, **numbers(every))


DEPLOYMENTS: dict[str, Flow[..., Any]] = {
    "round": videoopd,
    "draw": draw,
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
    from flows import deployments, prefect_settings

    prefect_settings.apply()
    deployments.serve_deployments()
