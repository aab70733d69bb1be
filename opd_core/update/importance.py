"""Importance weights: what each objective of a config makes of an engine that is not the trainer.

Three policies speak of a sampled token: mu, the engine that sampled it; pi_v, the trainer's before
the first step of the round; pi, the trainer's now. A weight is pi_v / mu, truncated. How far the
trainer has moved since, pi / pi_v, is the ratio in the losses that have one. Neither is ever
counted in the other. Where nothing needs the trainer's own pi_v, mu is taken for it.

Shape suffixes: C completion tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.extensions import OBJECTIVES, is_the_trainer
from opd_core.update.chunk import Chunk
from opd_core.update.objectives import ImportanceLevel, truncated_importance_weights


class Answer(Protocol):
    """A rollout, or as much of it as says who has sampled it."""

    @property
    def answered_by(self) -> str: ...

    @property
    def engine(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a chunk's tokens: those that the loss uses, and those that a step tells."""

    of_objective: dict[str, Tensor]
    """Objective -> [C] truncated pi_v / mu; an objective without weights has no entry."""
    mean_C: Tensor
    """The mean over the objectives, each by its share; 1 without weights."""
    cut_C: Tensor
    """1 where the weight was cut off, else 0; with several objectives the share that was."""
    factor_C: Tensor
    """What a token counts by: its weight, times pi / pi_v in the objectives that have the ratio."""


class Importance:
    """The rules of one config."""

    def __init__(self, config: Config) -> None:
        self._settings = config.update
        self._float32 = config.student.dtype == "float32"
        objectives = config.objective_weights
        self._shares = {name: w / sum(objectives.values()) for name, w in objectives.items()}

    def needs_old_logprobs(self, rollout: Answer) -> bool:
        """Whether pi_v has to be the trainer's own: where weights are made of it, and where a ratio
        is clipped that another arithmetic would make something else than 1 before the first step.
        """
        if rollout.answered_by != "student":
            return False
        same = is_the_trainer(rollout.engine) and self._float32
        clipped = any(OBJECTIVES[name].clips_ratio for name in self._shares) and not same
        return clipped or any(self._level(name, rollout) for name in self._shares)

    def weights(self, chunk: Chunk) -> Weights:
        """Weights of each token, for each objective of the sum."""
        ratio_C = (chunk.chosen_C.detach() - chunk.old_C).exp()
        ones_C = torch.ones_like(ratio_C)
        by_objective: dict[str, Tensor] = {}
        mean_C, cut_C, factor_C = (torch.zeros_like(ratio_C) for _ in range(3))
        for name, share in self._shares.items():
            weights_C, truncated_C = ones_C, torch.zeros_like(ones_C)
            levels = [self._level(name, fact.rollout) for fact in chunk.facts]
            if any(levels):
                weights_C, truncated_C = self._truncated(chunk, levels)
                by_objective[name] = weights_C
            mean_C += share * weights_C
            cut_C += share * truncated_C
            factor_C += share * weights_C * (ratio_C if OBJECTIVES[name].on_policy_only else ones_C)
        return Weights(by_objective, mean_C, cut_C, factor_C)

    def _level(self, objective: str, rollout: Answer) -> ImportanceLevel | None:
        """How an objective weighs a rollout; None: it does not."""
        level = self._settings.tis
        fitting = OBJECTIVES[objective].importance_levels
        if level == "off" or rollout.answered_by != "student" or not fitting:
            return None
        if level != "auto":
            return level
        return None if is_the_trainer(rollout.engine) else fitting[0]

    def _truncated(
        self, chunk: Chunk, levels: Sequence[ImportanceLevel | None]
    ) -> tuple[Tensor, Tensor]:
        """Weights and where they were cut off; 1 for the rollouts that have no level."""
        weights: list[Tensor] = []
        cut: list[Tensor] = []
        lengths = [len(fact.rollout.completion_token_ids) for fact in chunk.facts]
        parts = zip(chunk.facts, levels, chunk.old_C.split(lengths), strict=True)
        for fact, level, old_T in parts:
            sampling_T = old_T
            if level is not None:
                sampling_T = torch.tensor(fact.rollout.sampling_logprobs).to(old_T)
            weight_T, cut_T = truncated_importance_weights(
                old_T, sampling_T, [len(old_T)], level or "token", self._settings.tis_cap
            )
            weights.append(weight_T)
            cut.append(cut_T.to(weight_T))
        return torch.cat(weights), torch.cat(cut)
