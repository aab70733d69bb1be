"""The loss that a config asks for, of each completion token of a forward pass.

A weighted sum of objectives (`terms/`) on the same tokens and the same student pass, each
with the importance weights that fit it, and the options that hold for all of them: tokens left out,
entropy weights.

Shape suffixes: C completion tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.extensions import OBJECTIVES
from opd_core.types import Rollout, TeacherScore
from opd_core.update import objectives
from opd_core.update.chunk import Chunk, Fact
from opd_core.update.importance import Weights
from opd_core.update.loss_inputs import LossInputs


def facts_of(
    config: Config, rollouts: Sequence[Rollout], scores: Sequence[TeacherScore | None]
) -> list[Fact]:
    """The facts of all trained rollouts of one example, which stand beside their scores."""
    advantages: Sequence[float | None] = [None] * len(rollouts)
    if any(OBJECTIVES[name].needs_groups for name in config.objective_weights):
        grpo = config.update.grpo
        rewards = [
            r.student_iou + grpo.format_reward * (r.predicted_span is not None) for r in rollouts
        ]
        advantages = objectives.group_advantages(rewards, grpo.scale_by_std)
    return [Fact(r, s, a) for r, s, a in zip(rollouts, scores, advantages, strict=True)]


class TrainingLoss:
    """`config.update.objective` with its options, on one device."""

    def __init__(self, config: Config, tokenizer: Any, excluded_ids: Sequence[int],
                 device: torch.device) -> None:  # fmt: skip
        self._settings = config.update
        self._weights = config.objective_weights
        self._inputs = LossInputs(config, excluded_ids, device)
        self._special = torch.tensor(sorted(tokenizer.all_special_ids), device=device)

    @property
    def needs_reference(self) -> bool:
        asked = (OBJECTIVES[name].reference for name in self._weights)
        return any(reference(self._settings) for reference in asked if reference is not None)

    def tokens_in_loss(self, token_ids: Sequence[int]) -> int:
        """How many of a completion's tokens are trained: the loss is divided by their number."""
        if not self._settings.skip_special_tokens:
            return len(token_ids)
        special = set(self._special.tolist())
        return sum(token not in special for token in token_ids)

    def __call__(self, chunk: Chunk, weights: Weights) -> Tensor:
        """The loss of each token, [C]; tokens that are left out have 0."""
        losses_C = torch.zeros_like(chunk.chosen_C)
        for name, weight in self._weights.items():
            of_objective_C = weights.of_objective.get(name)
            term_C = OBJECTIVES[name].loss(self._inputs, chunk, of_objective_C)
            losses_C = losses_C + weight * term_C
        if self._settings.entropy_weight:
            losses_C = losses_C * objectives.entropy_weights(chunk.logprobs_CV)
        return losses_C * self.in_loss(chunk)

    def in_loss(self, chunk: Chunk) -> Tensor:
        """Which of the tokens are trained, [C]."""
        if not self._settings.skip_special_tokens:
            return torch.ones_like(chunk.token_ids_C, dtype=torch.bool)
        return ~torch.isin(chunk.token_ids_C, self._special)
