"""Whose weights give a round's answers (`rollout.source`), where they are not the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from opd_core.config.load import Config
from opd_core.types import Policy


def sampler_of(config: Config, version: int, policy_of: Callable[[int], Policy]) -> Policy:
    """What answers in the round of policy `version`: that policy, or policy 0 in its name.

    `policy_of` gives a policy of the run. Nothing samples the truth: of the policy it takes the
    tokenizer.
    """
    if config.rollout.source == "base":
        return replace(policy_of(0), version=version)
    return policy_of(version)
