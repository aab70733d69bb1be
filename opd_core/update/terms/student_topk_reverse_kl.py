"""The reverse KL over the tokens that the student finds likeliest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.extensions import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs


def loss(inputs: LossInputs, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
    from opd_core.update import objectives

    possible = int((chunk.logprobs_CV[0] > float("-inf")).sum())
    k = min(inputs.settings.student_topk, possible)
    ids_CK = chunk.logprobs_CV.detach().topk(k, dim=1).indices
    student_CB = objectives.with_tail(chunk.logprobs_CV, ids_CK)
    teacher_CB = objectives.with_tail(inputs.teacher_vocabulary(chunk), ids_CK)
    return objectives.weighted(objectives.exact_reverse_kl(student_CB, teacher_CB), weights_C)


OBJECTIVE = Objective(
    about="KL(pi || q) over the student's own top-k (update.student_topk) and all other tokens",
    loss=loss,
    of_teacher="vocabulary",
    importance="prefix",
)
