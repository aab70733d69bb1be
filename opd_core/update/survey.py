"""What an update has to know of all its rollouts before the first step, from one pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from opd_core.config.load import Config
from opd_core.types import GroundingExample, Policy, VideoOPDError
from opd_core.update.importance import Importance
from opd_core.update.rows import Outline, TrainedRows
from opd_core.update.saved_step import update_key


@dataclass(frozen=True, slots=True)
class Survey:
    key: str
    """`update_key` of the update."""
    engines: tuple[str, ...]
    """What has sampled its rollouts."""
    run_before: tuple[GroundingExample, ...]
    """The examples of later steps than the first whose log pi_v has to be the trainer's own."""


def survey(
    config: Config,
    parent: Policy,
    plan: Sequence[Sequence[GroundingExample]],
    rows: TrainedRows,
    begins_with: str,
) -> Survey:
    """Raises `VideoOPDError` naming a rollout that `parent` may not be trained on."""
    importance = Importance(config)
    engines: dict[str, None] = {}
    need: set[str] = set()

    def seen() -> Iterator[Outline]:
        for outline in rows.outlines():
            _check_on_policy(config, parent, outline)
            engines[outline.engine] = None
            if importance.needs_old_logprobs(outline):
                need.add(outline.example_id)
            yield outline

    key = update_key(config, parent, plan, seen(), begins_with)
    need -= {example.example_id for batch in plan[:1] for example in batch}
    later = {e.example_id: e for batch in plan[1:] for e in batch if e.example_id in need}
    return Survey(key, tuple(engines), tuple(later.values()))


def _check_on_policy(config: Config, parent: Policy, rollout: Outline) -> None:
    """It is of the source that the config names; the student's own is of `parent`."""
    if rollout.answered_by != config.rollout.source:
        raise VideoOPDError(
            f"rollout {rollout.rollout_id} is an answer of the {rollout.answered_by} and "
            f"rollout.source is {config.rollout.source!r}; put back the config that the "
            "round began with, or start a new run"
        )
    if rollout.answered_by == "student" and rollout.policy_hash != parent.weights_hash:
        raise VideoOPDError(
            f"rollout {rollout.rollout_id} was sampled by policy {rollout.policy_version} "
            f"(weights {rollout.policy_hash}) but the update trains policy "
            f"{parent.version} (weights {parent.weights_hash}); a round trains on its own "
            "rollouts only: rerun the rollout stage of this round"
        )
