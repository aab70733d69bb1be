"""What the update minimises: pure functions of tensors, each checked by enumeration in the tests.

Every function gives a loss for each completion token, [C]; the caller sums them and divides by the
number of trained tokens of the whole optimiser step, so that the result does not depend on how the
step was cut into packs.

Shape suffixes: C completion tokens, V vocabulary, K the teacher's kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def truncated_importance_weights(
    student_logprobs_C: Tensor,
    sampling_logprobs_C: Tensor,
    lengths: Sequence[int],
    level: Literal["token", "sequence"],
    cap: float,
) -> tuple[Tensor, Tensor]:
    """(weights [C], whether each was cut off [C]): `min(exp(trainer - engine), cap)`, no gradient.

    For tokens that another engine sampled than the one that is trained. `token` takes each token's
    own ratio; `sequence` the product over a completion, the same for all its tokens: unbiased up to
    the cap, but of larger variance. `lengths` are those of the completions, sum C.
    """
    log_ratio_C = (student_logprobs_C - sampling_logprobs_C).detach()
    if level == "sequence":
        parts = log_ratio_C.split(list(lengths))
        log_ratio_C = torch.cat([part.sum().expand(len(part)) for part in parts])
    ratio_C = log_ratio_C.exp()
    return ratio_C.clamp(max=cap), ratio_C > cap


def policy_gradient(
    student_logprobs_C: Tensor,
    sampling_logprobs_C: Tensor,
    teacher_logprobs_C: Tensor,
    weights_C: Tensor | None = None,
) -> Tensor:
    """The paper's loss on the sampled tokens: `-(ratio * advantage)` (arXiv 2602.02994, eq. 6-8).

    `advantage = log q(y_t) - log pi_v(y_t)` is constant, `ratio = exp(log pi - log pi_v)` carries
    the gradient. At pi = pi_v its expectation over y_t ~ pi_v is the gradient of KL(pi || q).
    `weights_C` (truncated importance weights, constant) take the place of the ratio's value; where
    they are the ratio, so is the gradient.
    """
    advantages_C = (teacher_logprobs_C - sampling_logprobs_C).detach()
    if weights_C is None:
        ratio_C = (student_logprobs_C - sampling_logprobs_C.detach()).exp()
    else:
        ratio_C = weights_C * (student_logprobs_C - student_logprobs_C.detach()).exp()
    return -(ratio_C * advantages_C)


def exact_reverse_kl(
    student_logprobs_CV: Tensor,
    topk_token_ids_CK: Tensor,
    topk_logprobs_CK: Tensor,
    tail_logprobs_C: Tensor,
) -> Tensor:
    """KL(pi || q) at each sampled state, over the teacher's K likeliest tokens and the rest.

    The rest is one bucket on both sides, so this is a true KL: never negative, zero where the two
    agree on the buckets, at most the KL over the vocabulary and equal to it when K covers it.
    Entries of -inf on the teacher's side (fewer than K possible tokens) must have no mass in pi.
    """
    chosen_CK = student_logprobs_CV.gather(1, topk_token_ids_CK)
    student_tail_C = student_logprobs_CV.scatter(
        1, topk_token_ids_CK, torch.full_like(chosen_CK, float("-inf"))
    )
    student = torch.cat((chosen_CK, _logsumexp(student_tail_C)[:, None]), dim=1)
    teacher = torch.cat((topk_logprobs_CK, tail_logprobs_C[:, None]), dim=1)
    possible = student > float("-inf")
    # -inf * 0 is nan, in the gradient too: impossible tokens are taken out before the product.
    log_p = torch.where(possible, student, torch.zeros_like(student))
    log_q = torch.where(possible, teacher, torch.zeros_like(teacher))
    p = torch.where(possible, log_p.exp(), torch.zeros_like(log_p))
    return (p * (log_p - log_q)).sum(dim=1)


def _logsumexp(x_CV: Tensor) -> Tensor:
    """logsumexp over the last axis whose gradient is 0, not nan, where every entry is -inf."""
    empty = (x_CV == float("-inf")).all(dim=1)
    safe = torch.where(empty[:, None], torch.zeros_like(x_CV), x_CV)
    return torch.where(empty, torch.full_like(safe[:, 0], float("-inf")), safe.logsumexp(dim=1))
