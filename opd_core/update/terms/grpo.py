"""GRPO: no teacher, an answer's reward among those to the same prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.config.sections import GRPOSection
from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    grpo = inputs.settings.grpo
    losses_C = objectives.grpo(
        chunk.chosen_C, chunk.old_C, inputs.advantages(chunk), grpo.clip_low, grpo.clip_high,
        weights_C,
    )  # fmt: skip
    if chunk.reference_C is not None:
        kl_C = objectives.reference_kl(chunk.chosen_C, chunk.reference_C, chunk.old_C, weights_C)
        losses_C = losses_C + grpo.reference_kl * kl_C
    return losses_C


OBJECTIVE = Objective(
    about="no teacher: the reward of an answer (its IoU) among those to the same prompt",
    loss=loss,
    settings=GRPOSection,
    on_policy_only=True,
    clips_ratio=True,
    needs_groups=True,
    reference=lambda settings: settings.grpo.reference_kl > 0,
    importance="token",
)
