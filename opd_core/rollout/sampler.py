"""Whose weights give a round's answers (`rollout.source`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from opd_core.config.load import Config
from opd_core.types import Policy


def sampler_of(
    config: Config, version: int, policy_of: Callable[[int], Policy], teacher_hash: str
) -> Policy:
    """What answers in the round of policy `version`: that policy, or others' weights in its name.

    `policy_of` gives a policy of the run. Nothing samples the truth: of the policy it takes the
    tokenizer.
    """
    match config.rollout.source:
        case "teacher":
            return Policy(version, config.teacher.path, teacher_hash)
        case "base":
            return replace(policy_of(0), version=version)
        case "student" | "truth":
            return policy_of(version)
