"""The paper's objective with one fixed negative advantage for the tokens that the teacher finds
unlikely, whatever their log-prob ratio (after arXiv 2608.31046).

Only the idea is that paper's, whose text was not at hand: threshold and advantage are settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from opd_core.config.section import Section
from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


class UnlikelyPenaltySection(Section):
    """Settings of the objective `unlikely_penalty`."""

    below: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """A sampled token to which the teacher gives a smaller probability is unlikely."""
    advantage: Annotated[float, Field(lt=0)] = -1.0
    """Nats; that of an unlikely token."""


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    settings: UnlikelyPenaltySection = inputs.settings.of("unlikely_penalty")
    return objectives.unlikely_penalty(
        chunk.chosen_C,
        chunk.old_C,
        inputs.teacher_logprobs(chunk),
        settings.below,
        settings.advantage,
        weights_C,
        inputs.settings.max_advantage,
    )


OBJECTIVE = Objective(
    about="the paper's, with a fixed negative advantage where the teacher finds the token unlikely",
    loss=loss,
    settings=UnlikelyPenaltySection,
    of_teacher="logprobs",
    on_policy_only=True,
    importance="token",
)
