"""The paper's objective, on the sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    return objectives.policy_gradient(
        chunk.chosen_C,
        chunk.old_C,
        inputs.teacher_logprobs(chunk),
        weights_C,
        inputs.settings.max_advantage,
    )


OBJECTIVE = Objective(
    about="the paper's: the log-prob ratio of teacher and policy as each sampled token's advantage",
    loss=loss,
    of_teacher="logprobs",
    on_policy_only=True,
    importance="token",
)
