"""Exact divergences between two distributions, and the entropy of one, a row at a time.

Shape suffixes: C rows (completion tokens), V vocabulary, B tokens or buckets of tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Divergences(NamedTuple):
    """Three divergences of a teacher and a policy, each [C], nats, never negative."""

    forward_kl: Tensor
    """KL(q || p) = sum q (log q - log p): q is the teacher, p the policy."""
    reverse_kl: Tensor
    """KL(p || q)."""
    js: Tensor
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: at most log 2."""


def divergences(policy_logprobs_CV: Tensor, teacher_logprobs_CV: Tensor) -> Divergences:
    """Divergences of log-probabilities, -inf at the same tokens: those that nobody may say.

    A sum that rounding has made negative is 0. A token that only one of the two can say makes the
    KL in its direction infinite.
    """
    log_p, log_q = policy_logprobs_CV, teacher_logprobs_CV
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    forward, reverse = kl(log_q, log_p), kl(log_p, log_q)
    js = (kl(log_p, log_m) + kl(log_q, log_m)) / 2
    return Divergences(forward.clamp(min=0.0), reverse.clamp(min=0.0), js.clamp(min=0.0))


def kl(log_a_CB: Tensor, log_b_CB: Tensor) -> Tensor:
    """[C] `sum a (log a - log b)`: KL(a || b), differentiable in both.

    Entries without mass in a add nothing, and have no gradient; one in b alone makes it infinite.
    """
    possible = log_a_CB.exp() > 0
    # -inf * 0 is nan, in the gradient too: impossible tokens are taken out before the product.
    zero = torch.zeros_like(log_a_CB)
    log_a = torch.where(possible, log_a_CB, zero)
    log_b = torch.where(possible, log_b_CB, zero)
    a = torch.where(possible, log_a.exp(), zero)
    return (a * (log_a - log_b)).sum(dim=1)


def entropies(logprobs_CV: Tensor) -> Tensor:
    """Entropy of each row, [C], nats; tokens of no probability (-inf) add nothing."""
    entropies_C: Tensor = torch.special.entr(logprobs_CV.exp()).sum(dim=1)
    return entropies_C
