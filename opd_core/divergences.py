"""Exact divergences between two distributions over the vocabulary, a row at a time.

Shape suffixes: C rows (completion tokens), V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Divergences(NamedTuple):
    """Each [C], nats, never negative."""

    forward_kl: Tensor
    """KL(q || p) = sum q (log q - log p): q is the teacher, p the policy."""
    reverse_kl: Tensor
    """KL(p || q)."""
    js: Tensor
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: at most log 2."""


def divergences(policy_logprobs_CV: Tensor, teacher_logprobs_CV: Tensor) -> Divergences:
    """Of log-probabilities that are -inf at the same tokens: those that nobody may say.

    A sum that rounding has made negative is 0. A token that only one of the two can say makes the
    KL in its direction infinite.
    """
    log_p, log_q = policy_logprobs_CV, teacher_logprobs_CV
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return Divergences(
        _kl(log_q, log_p), _kl(log_p, log_q), (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2
    )


def _kl(log_a_CV: Tensor, log_b_CV: Tensor) -> Tensor:
    possible = log_a_CV > float("-inf")
    # 0 (log 0 - log 0) is nan: tokens of no probability are taken out before the product.
    difference = torch.where(possible, log_a_CV - log_b_CV, 0.0)
    return (log_a_CV.exp() * difference).sum(dim=1).clamp(min=0.0)
