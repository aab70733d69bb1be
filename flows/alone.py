"""A stage alone: what its deployment does, and whether there is anything to do before it begins.

Knows no Prefect: that a stage has nothing to do is found out in a second, without a server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows import stages
from flows.evaluation.answers import of_policy
from flows.evaluation.groups import groups, numbers
from flows.stage.prepare import Work, WorkLeft, opened
from flows.summaries import StageSummary
from opd_core.config.load import load_config
from opd_core.types import Policy
from storage.runs.run_folder import RUN_FILE

Alone = Callable[..., StageSummary]
"""(work, policy, force) -> what was done."""


def _evaluate(work: Work, policy: Policy, force: bool) -> StageSummary:
    summary = stages.evaluate(work, policy, force)
    (every,) = groups(of_policy(work.run, policy.version))
    return summary.noting(answers=every.examples, **numbers(every))


def _rollout(work: Work, policy: Policy, force: bool) -> StageSummary:
    stages.validate(work, policy)  # asked first: on its answers depends what is sampled
    return stages.rollout(work, policy, force)


_evaluate.__name__, _rollout.__name__ = "evaluate", "rollout"
_WITH_MORE: dict[str, Alone] = {"evaluate": _evaluate, "rollout": _rollout}


def alone(name: str) -> Alone:
    """The stage, with what goes with it when no round surrounds it."""
    stage: Alone = getattr(stages, name)
    return _WITH_MORE.get(name, stage)


def nothing_to_do(
    name: str, config: str, round: int | None, overrides: Sequence[str], force: bool = False
) -> StageSummary | None:
    """What a stage says that has nothing to do; None where it has, or where there is no run yet.

    Raises `VideoOPDError` where the stage itself would.
    """
    if not (load_config(config, overrides).run.path / RUN_FILE).exists():
        return None
    with opened(config, overrides, looking=True) as work:
        try:
            return alone(name)(work, work.policy_at(name, round), force)
        except WorkLeft:
            return None
