"""What the update minimises: pure functions of tensors, each checked by enumeration in the tests.

Every loss is one number for each completion token, [C]; the caller sums them and divides by the
number of trained tokens of the whole optimiser step, so that the result does not depend on how the
step was cut into packs. `training_loss.py` puts the config's objective together from these.

Shape suffixes: C completion tokens, V vocabulary, K kept tokens, B buckets of tokens (K single
tokens and the rest, or the whole vocabulary).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from opd_core.model.divergences import entropies, kl

ImportanceLevel = Literal["token", "prefix", "sequence"]


def truncated_importance_weights(
    old_logprobs_C: Tensor,
    sampling_logprobs_C: Tensor,
    lengths: Sequence[int],
    level: ImportanceLevel,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """(weights [C], whether each was cut off [C]): `min(pi_v / mu, cap)`, no gradient.

    For tokens that another engine (mu) sampled than the one that is trained (pi_v: the trainer's
    log-probs before its first step; how far it has moved since is the ratio of the loss, never part
    of these weights). `lengths` are those of the completions, sum C. By level:

    `token`     a token's own ratio: for losses of the sampled token, given its state.
    `prefix`    the product over the tokens strictly before it: how much likelier its state is under
                pi_v. For losses that are exact at their state, where the token that was sampled
                there says nothing any more: its own ratio would only add noise. 1 at the first.
    `sequence`  the product over the whole completion, the same for all its tokens: unbiased for
                both up to the cap, but of larger variance.
    """
    log_ratio_C = (old_logprobs_C - sampling_logprobs_C).detach()
    if level != "token":
        of = _before if level == "prefix" else _whole
        log_ratio_C = torch.cat([of(part) for part in log_ratio_C.split(list(lengths))])
    ratio_C = log_ratio_C.exp()
    return ratio_C.clamp(max=cap), ratio_C > cap


def _before(log_ratio_T: Tensor) -> Tensor:
    return torch.cat((log_ratio_T.new_zeros(1), log_ratio_T.cumsum(0)))[:-1]


def _whole(log_ratio_T: Tensor) -> Tensor:
    return log_ratio_T.sum().expand(len(log_ratio_T))


def policy_gradient(
    student_logprobs_C: Tensor,
    old_logprobs_C: Tensor,
    teacher_logprobs_C: Tensor,
    weights_C: Tensor | None = None,
    max_advantage: float | None = None,
) -> Tensor:
    """The paper's loss on the sampled tokens: `-(ratio * advantage)` (arXiv 2602.02994, eq. 6-8).

    `advantage = log q(y_t) - log pi_v(y_t)` is constant, `ratio = exp(log pi - log pi_v)` carries
    the gradient. At pi = pi_v its expectation over y_t ~ pi_v is the gradient of KL(pi || q).
    `old_logprobs_C` are log pi_v. Where another engine mu has sampled, they are the trainer's own
    and `weights_C` (pi_v / mu truncated, constant) multiply; with mu in the advantage, the gradient
    would be KL(pi || q)'s less KL(pi || mu)'s. Advantages beyond `max_advantage` nats are cut to
    it: a token that the teacher finds absurd would otherwise outweigh all others of its step.
    """
    advantages_C = _advantages(old_logprobs_C, teacher_logprobs_C, max_advantage)
    return -weighted(_ratio(student_logprobs_C, old_logprobs_C) * advantages_C, weights_C)


def unlikely_penalty(
    student_logprobs_C: Tensor,
    old_logprobs_C: Tensor,
    teacher_logprobs_C: Tensor,
    below: float,
    advantage: float,
    weights_C: Tensor | None = None,
    max_advantage: float | None = None,
) -> Tensor:
    """`policy_gradient` in which a token with q(y_t) < `below` has the constant `advantage` < 0
    instead of log q - log pi_v, which has no lower bound (after arXiv 2608.31046).

    At pi = pi_v its expectation over y_t ~ pi_v is the gradient of `sum pi (log pi - log q)` over
    the likely tokens, plus `1 - advantage` times the probability that pi gives to the unlikely.
    """
    advantages_C = _advantages(old_logprobs_C, teacher_logprobs_C, max_advantage)
    advantages_C = torch.where(
        teacher_logprobs_C < math.log(below), torch.full_like(advantages_C, advantage), advantages_C
    )
    return -weighted(_ratio(student_logprobs_C, old_logprobs_C) * advantages_C, weights_C)


def _advantages(
    old_logprobs_C: Tensor, teacher_logprobs_C: Tensor, max_advantage: float | None
) -> Tensor:
    """`log q - log pi_v` of each token, cut to `max_advantage` nats where that is given."""
    advantages_C = (teacher_logprobs_C - old_logprobs_C).detach()
    if max_advantage is None:
        return advantages_C
    return advantages_C.clamp(-max_advantage, max_advantage)


def weighted(losses_C: Tensor, weights_C: Tensor | None) -> Tensor:
    return losses_C if weights_C is None else weights_C * losses_C


def _ratio(student_logprobs_C: Tensor, old_logprobs_C: Tensor) -> Tensor:
    return (student_logprobs_C - old_logprobs_C.detach()).exp()


def with_tail(logprobs_CV: Tensor, token_ids_CK: Tensor) -> Tensor:
    """[C, K + 1] log-probabilities of the kept tokens, and of all others together."""
    kept_CK = logprobs_CV.gather(1, token_ids_CK)
    others_CV = logprobs_CV.scatter(1, token_ids_CK, torch.full_like(kept_CK, float("-inf")))
    return torch.cat((kept_CK, _logsumexp(others_CV)[:, None]), dim=1)


def exact_reverse_kl(student_logprobs_CB: Tensor, teacher_logprobs_CB: Tensor) -> Tensor:
    """KL(pi || q) at each sampled state, over the buckets of both.

    With the vocabulary as buckets it is the KL itself. With the teacher's K likeliest tokens and
    one bucket for the rest it is still a true KL: never negative, zero where the two agree on the
    buckets, at most the KL over the vocabulary and equal to it when K covers it. Buckets in which
    the teacher has no mass at all must have none in pi.
    """
    return kl(student_logprobs_CB, teacher_logprobs_CB)


def exact_forward_kl(student_logprobs_CB: Tensor, teacher_logprobs_CB: Tensor) -> Tensor:
    """KL(q || pi) at each state: pi must cover what the teacher says. On its own top-k the mass of
    q is nearly complete, so here the tail matters little."""
    return kl(teacher_logprobs_CB, student_logprobs_CB)


def generalized_jsd(
    student_logprobs_CB: Tensor, teacher_logprobs_CB: Tensor, beta: float
) -> Tensor:
    """`beta KL(q || m) + (1 - beta) KL(pi || m)` with `m = beta q + (1 - beta) pi`, 0 < beta < 1
    (GKD, arXiv 2306.13649). Bounded; towards beta = 0 its gradient, divided by beta, is that of
    the forward KL, towards 1, divided by 1 - beta, that of the reverse."""
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta = {beta} is not between 0 and 1")
    log_beta = torch.tensor([beta, 1.0 - beta]).log().to(student_logprobs_CB)
    log_m = _logaddexp(teacher_logprobs_CB + log_beta[0], student_logprobs_CB + log_beta[1])
    return beta * kl(teacher_logprobs_CB, log_m) + (1.0 - beta) * kl(student_logprobs_CB, log_m)


def group_advantages(rewards: Sequence[float], scale_by_std: bool) -> list[float]:
    """GRPO's advantage of each answer to one prompt: its reward less the group's mean, divided by
    the group's standard deviation (n - 1, plus 1e-4) where asked (arXiv 2402.03300; without:
    Dr. GRPO, arXiv 2503.20783). A group that agrees has advantages of 0: nothing to learn."""
    mean = statistics.fmean(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale_by_std or len(rewards) < 2:
        return centred
    deviation = statistics.stdev(rewards)
    return [value / (deviation + 1e-4) for value in centred]


def grpo(
    student_logprobs_C: Tensor,
    old_logprobs_C: Tensor,
    advantages_C: Tensor,
    clip_low: float,
    clip_high: float,
    weights_C: Tensor | None = None,
) -> Tensor:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` of each token (PPO's clip on
    group advantages; one advantage for all tokens of an answer), `ratio = pi / pi_v`.

    `old_logprobs_C` are log pi_v by the trainer: before its first step every ratio is 1 and nothing
    is clipped. `weights_C` (pi_v / mu truncated, constant) multiply where another engine mu has
    sampled; against mu's log-probs the ratio would count that difference a second time.
    """
    ratio_C = _ratio(student_logprobs_C, old_logprobs_C)
    clipped_C = ratio_C.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -weighted(torch.minimum(ratio_C * advantages_C, clipped_C * advantages_C), weights_C)


def reference_kl(
    student_logprobs_C: Tensor,
    reference_logprobs_C: Tensor,
    old_logprobs_C: Tensor | None = None,
    weights_C: Tensor | None = None,
) -> Tensor:
    """KL(pi || reference) estimated on tokens that pi_v has sampled: `ratio * (exp(-d) - 1 + d)`,
    `d = log pi - log reference`, `ratio = pi / pi_v`; never negative. `old_logprobs_C` are log
    pi_v; None where pi itself has sampled.

    Without the ratio the k3 estimate (Schulman, 2020) has the right value at pi = pi_v, but its
    gradient is that of KL(reference || pi) (DeepSeek-V3.2, arXiv 2512.02556). `weights_C` as above.
    """
    difference_C = student_logprobs_C - reference_logprobs_C.detach()
    estimate_C = (-difference_C).exp() - 1.0 + difference_C
    old_C = student_logprobs_C if old_logprobs_C is None else old_logprobs_C
    return weighted(_ratio(student_logprobs_C, old_C) * estimate_C, weights_C)


def cross_entropy(student_logprobs_C: Tensor) -> Tensor:
    """`-log pi` of the given tokens: SFT on the truth, or on a teacher's answers."""
    return -student_logprobs_C


def entropy_weights(student_logprobs_CV: Tensor) -> Tensor:
    """[C] `1 - exp(-H)` of pi at each state, in [0, 1), no gradient: the probability that a token
    as uncertain as this comes out otherwise (exp(H) is the number of equally likely tokens). The
    tokens of a fixed format weigh almost nothing, the digits of an answer up to 1."""
    return 1.0 - (-entropies(student_logprobs_CV.detach())).exp()


def _logsumexp(x_CV: Tensor) -> Tensor:
    """logsumexp over the last axis whose gradient is 0, not nan, where every entry is -inf."""
    empty = (x_CV == float("-inf")).all(dim=1)
    safe = torch.where(empty[:, None], torch.zeros_like(x_CV), x_CV)
    return torch.where(empty, torch.full_like(safe[:, 0], float("-inf")), safe.logsumexp(dim=1))


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """logaddexp whose gradient is 0, not nan, where both are -inf."""
    both = (a == float("-inf")) & (b == float("-inf"))
    zero = torch.zeros_like(a)
    total = torch.logaddexp(torch.where(both, zero, a), torch.where(both, zero, b))
    return torch.where(both, torch.full_like(total, float("-inf")), total)
