"""The loop: the whole of Video-OPD on one screen.

    prefect deployment run videoopd/round --param config=configs/tiny.toml
    videoopd run configs/tiny.toml --rounds 3

Everything between the stages is in the run's tables, so any stage can be run again alone, and a
round that was killed goes on where it was. The row in `updates` is what commits a round.
"""

from __future__ import annotations

from prefect import flow

from flows.numbers.announced import announce
from flows.numbers.outcome import summarize
from flows.prefect_page.names import of_rounds
from flows.stage.older_policies import let_older_go
from flows.stage.prepare import opened
from flows.stages import draw, evaluate, focus, rollout, score, update, validate
from flows.summaries import RunSummary
from flows.tracking.live import tracked


@flow(name="videoopd", flow_run_name=of_rounds, validate_parameters=True, persist_result=False)
def videoopd(config: str, rounds: int = 1, overrides: list[str] | None = None) -> RunSummary:
    """Run `rounds` rounds of Video-OPD from the newest committed policy on.

    config: path of a TOML file. overrides: `section.key=value`, as for `videoopd run --set`, but
    a path in them is relative to the config's folder.
    """
    with opened(config, overrides) as work, tracked(work.config) as tell_trackers:
        outcomes = []
        policy = work.policy_of_round()
        if policy.version == 0:
            outcomes.append(summarize(work, 0, [evaluate(work, policy)]))
        for left in reversed(range(rounds)):
            policy = work.policy_of_round()  # resume = newest committed update
            stages = [
                draw(work, policy),  # seeded by policy_version
                validate(work, policy),  # teacher predictions, once per example and teacher
                rollout(work, policy),  # y ~ pi_v( . | video, query)
                score(work, policy),  # log q(y_t | video, query, y_<t)
                focus(work, policy),  # TVDF, polars
                update(work, policy),  # v -> v+1, committed last
                evaluate(work, work.policy()),
            ]
            work.run.finish_round(policy.version + 1)
            let_older_go(work)  # by [policies]; none unless it says so
            outcomes.append(summarize(work, policy.version + 1, stages))
            tell_trackers()
            announce(work, outcomes[-1], stages[-1], left)  # on Prefect's page, if one stays
        return RunSummary(str(work.run.path), tuple(outcomes))
