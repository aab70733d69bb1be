"""The generalized Jensen-Shannon divergence (GKD)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    losses_C = objectives.generalized_jsd(*inputs.buckets(chunk), inputs.settings.jsd_beta)
    return objectives.weighted(losses_C, weights_C)


OBJECTIVE = Objective(
    about="generalized Jensen-Shannon divergence at each sampled state (update.jsd_beta)",
    loss=loss,
    of_teacher="distribution",
    importance="prefix",
)
