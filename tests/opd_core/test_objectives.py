"""The losses against exact gradients, by enumerating a tiny vocabulary."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.objectives import exact_reverse_kl, policy_gradient

VOCABULARY = 5
DEPTH = 2


def random_model(seed: int) -> torch.Tensor:
    """Logits of a two-token language model: [prefix states, V]; state 0 begins, 1 + i follows i."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)


def states(sequence: tuple[int, ...]) -> list[int]:
    return [0, *(1 + token for token in sequence[:-1])]


def all_sequences() -> list[tuple[int, int]]:
    return [(a, b) for a in range(VOCABULARY) for b in range(VOCABULARY)]


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(pi || q) over whole answers, from its definition, by enumeration."""
    log_p, log_q = student.log_softmax(1), teacher.log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for sequence in all_sequences():
        rows = states(sequence)
        lp = sum(log_p[row, token] for row, token in zip(rows, sequence, strict=True))
        lq = sum(log_q[row, token] for row, token in zip(rows, sequence, strict=True))
        total = total + lp.exp() * (lp - lq)
    return total


def test_policy_gradient_is_the_gradient_of_the_reverse_kl_of_each_token():
    """At pi = pi_v, E[grad loss] = sum_t E_states[grad KL(pi(.|s_t) || q(.|s_t))].

    That is the paper's gradient: per-token advantages without a return, so the states' own
    distribution is held fixed. Both sides by enumeration.
    """
    student = random_model(0).requires_grad_()
    teacher = random_model(1)
    sampling = student.detach().log_softmax(1)
    log_q = teacher.log_softmax(1)

    expected_loss = torch.zeros((), dtype=torch.float64)
    for sequence in all_sequences():
        rows = torch.tensor(states(sequence))
        tokens = torch.tensor(sequence)
        probability = sampling[rows, tokens].sum().exp()
        loss_C = policy_gradient(
            student.log_softmax(1)[rows, tokens], sampling[rows, tokens], log_q[rows, tokens]
        )
        expected_loss = expected_loss + probability * loss_C.sum()
    (estimated,) = torch.autograd.grad(expected_loss, student)

    visits = torch.cat((torch.ones(1, dtype=torch.float64), sampling[0].exp()))
    log_p = student.log_softmax(1)
    token_kl = (log_p.exp() * (log_p - log_q)).sum(1)
    (exact,) = torch.autograd.grad((visits * token_kl).sum(), student)

    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=1e-10)


def test_one_token_policy_gradient_is_the_gradient_of_the_whole_kl():
    student = random_model(2)[:1].clone().requires_grad_()
    log_q = random_model(3)[0].log_softmax(0)
    sampling = student.detach().log_softmax(1)[0]
    loss_C = policy_gradient(student.log_softmax(1)[0], sampling, log_q)
    (estimated,) = torch.autograd.grad((sampling.exp() * loss_C).sum(), student)
    log_p = student.log_softmax(1)[0]
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), student)
    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=1e-10)


def test_policy_gradient_equals_the_reference_trainers_formula():
    """`-exp(logp - old_logp) * (teacher_logp - old_logp)`, DESIGN section 7."""
    logp, old, teacher = torch.randn(3, 7, dtype=torch.float64)
    expected = -torch.exp(logp - old) * (teacher - old)
    torch.testing.assert_close(policy_gradient(logp, old, teacher), expected)


def topk_of(log_q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, ids = log_q.topk(k, dim=1)
    return ids, values, log_q.scatter(1, ids, -math.inf).logsumexp(1)


def test_exact_reverse_kl_with_the_whole_vocabulary_is_the_definition():
    log_p = random_model(4).log_softmax(1)
    log_q = random_model(5).log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    ids, values, tail = topk_of(log_q, VOCABULARY)
    torch.testing.assert_close(exact_reverse_kl(log_p, ids, values, tail), expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY))
def test_exact_reverse_kl_is_a_kl_of_buckets_below_the_full_one(seed, k):
    log_p = random_model(seed).log_softmax(1)
    log_q = random_model(seed + 1).log_softmax(1)
    ids, values, tail = topk_of(log_q, k)
    got = exact_reverse_kl(log_p, ids, values, tail)
    full = (log_p.exp() * (log_p - log_q)).sum(1)
    assert (got >= -1e-12).all(), "a KL is never negative"
    assert (got <= full + 1e-12).all(), "joining tokens into a bucket cannot raise a KL"
    by_hand = []
    for row in range(len(log_p)):
        p = log_p[row].exp()
        q = log_q[row].exp()
        kept = ids[row].tolist()
        buckets = [(p[i].item(), q[i].item()) for i in kept]
        if k < VOCABULARY:
            rest = [i for i in range(VOCABULARY) if i not in kept]
            buckets.append((p[rest].sum().item(), q[rest].sum().item()))
        by_hand.append(sum(a * math.log(a / b) for a, b in buckets))
    assert got.tolist() == pytest.approx(by_hand, abs=1e-10)


def test_exact_reverse_kl_is_zero_between_equals_and_its_gradient_too():
    student = random_model(6).requires_grad_()
    log_q = student.detach().log_softmax(1)
    ids, values, tail = topk_of(log_q, 3)
    loss = exact_reverse_kl(student.log_softmax(1), ids, values, tail).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-12


def test_excluded_tokens_change_neither_loss_nor_gradient():
    """A token of log-prob -inf on both sides is as if it were not in the vocabulary."""
    student = random_model(7).requires_grad_()
    log_q_small = random_model(8).log_softmax(1)
    ids, values, tail = topk_of(log_q_small, VOCABULARY)
    small = exact_reverse_kl(student.log_softmax(1), ids, values, tail).sum()
    (expected,) = torch.autograd.grad(small, student)

    banned = torch.full((len(student), 1), -math.inf, dtype=torch.float64)
    wide = torch.cat((student, banned), dim=1)
    log_q = torch.cat((random_model(8), banned), dim=1).log_softmax(1)
    ids, values, tail = topk_of(log_q, VOCABULARY + 1)
    loss = exact_reverse_kl(wide.log_softmax(1), ids, values, tail).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, small)
    torch.testing.assert_close(gradient, expected)
