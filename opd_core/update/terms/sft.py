"""Supervised fine-tuning on the truth, or on a teacher's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    return objectives.cross_entropy(chunk.chosen_C)


OBJECTIVE = Objective(
    about="cross-entropy of the given answers (rollout.source)",
    loss=loss,
)
