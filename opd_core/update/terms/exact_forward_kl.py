"""The forward KL, exact at each sampled state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    return objectives.weighted(objectives.exact_forward_kl(*inputs.buckets(chunk)), weights_C)


OBJECTIVE = Objective(
    about="KL(q || pi) at each sampled state, over the teacher's top-k and the rest, or all tokens",
    loss=loss,
    of_teacher="distribution",
    importance="prefix",
)
