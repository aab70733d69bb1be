"""The losses against exact gradients, by enumerating a tiny vocabulary."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.update.objectives import (
    cross_entropy,
    entropy_weights,
    exact_forward_kl,
    exact_reverse_kl,
    generalized_jsd,
    group_advantages,
    grpo,
    policy_gradient,
    reference_kl,
    unlikely_penalty,
    with_tail,
)
from tests.known import known

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
        lp = log_p[rows, sequence].sum()
        lq = log_q[rows, sequence].sum()
        total = total + lp.exp() * (lp - lq)
    return total


def test_policy_gradient_is_the_gradient_of_the_reverse_kl_of_each_token() -> None:
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


def test_one_token_policy_gradient_is_the_gradient_of_the_whole_kl() -> None:
    student = random_model(2)[:1].clone().requires_grad_()
    log_q = random_model(3)[0].log_softmax(0)
    sampling = student.detach().log_softmax(1)[0]
    loss_C = policy_gradient(student.log_softmax(1)[0], sampling, log_q)
    (estimated,) = torch.autograd.grad((sampling.exp() * loss_C).sum(), student)
    log_p = student.log_softmax(1)[0]
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), student)
    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=1e-10)


def test_policy_gradient_equals_the_reference_trainers_formula() -> None:
    """`-exp(logp - old_logp) * (teacher_logp - old_logp)`, DESIGN section 7."""
    logp, old, teacher = torch.randn(3, 7, dtype=torch.float64)
    expected = -torch.exp(logp - old) * (teacher - old)
    torch.testing.assert_close(policy_gradient(logp, old, teacher), expected)


@pytest.mark.parametrize(("below", "advantage"), [(0.1, -1.0), (0.2, -0.3), (0.9999, -2.0)])
def test_the_unlikely_penalty_is_the_gradient_of_a_kl_and_of_the_unlikely_tokens_mass(
    below: float, advantage: float
) -> None:
    """At pi = pi_v, E[grad loss] is that of sum over likely tokens of pi log(pi / q), plus
    (1 - advantage) times the mass of the unlikely ones, at each state; by enumeration."""
    student, teacher = random_model(23).requires_grad_(), random_model(24)
    sampling, log_q = student.detach().log_softmax(1), teacher.log_softmax(1)
    unlikely = log_q.exp() < below
    assert 0 < unlikely.sum() <= unlikely.numel()

    expected_loss = torch.zeros((), dtype=torch.float64)
    for sequence in all_sequences():
        rows, tokens = torch.tensor(states(sequence)), torch.tensor(sequence)
        now = student.log_softmax(1)[rows, tokens]
        loss_C = unlikely_penalty(
            now, sampling[rows, tokens], log_q[rows, tokens], below, advantage
        )
        expected_loss = expected_loss + sampling[rows, tokens].sum().exp() * loss_C.sum()
    (estimated,) = torch.autograd.grad(expected_loss, student)

    visits = torch.cat((torch.ones(1, dtype=torch.float64), sampling[0].exp()))
    log_p = student.log_softmax(1)
    likely_kl = (log_p.exp() * (log_p - log_q)).masked_fill(unlikely, 0.0).sum(1)
    mass = log_p.exp().masked_fill(~unlikely, 0.0).sum(1)
    (exact,) = torch.autograd.grad((visits * (likely_kl + (1 - advantage) * mass)).sum(), student)
    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=1e-10)


def test_where_no_token_is_unlikely_the_unlikely_penalty_is_the_papers_loss() -> None:
    logp, old, teacher = torch.randn(3, 7, dtype=torch.float64)
    weights_C = torch.rand(7, dtype=torch.float64)
    papers = policy_gradient(logp, old, teacher, weights_C, 0.5)
    below = 0.5 * float(teacher.exp().min())
    torch.testing.assert_close(
        unlikely_penalty(logp, old, teacher, below, -1.0, weights_C, 0.5), papers
    )


def test_an_unlikely_token_has_its_advantage_however_unlikely_it_is_and_whatever_is_cut() -> None:
    logp = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-math.inf, -30.0, -5.0, -1.5], dtype=torch.float64)
    losses = unlikely_penalty(logp, logp.detach(), teacher, 0.01, -0.7, max_advantage=0.4)
    assert losses.tolist() == pytest.approx([0.7, 0.7, 0.7, 0.4])
    weighed = unlikely_penalty(logp, logp.detach(), teacher, 0.01, -0.7, torch.full((4,), 0.5))
    assert weighed.tolist() == pytest.approx([0.35, 0.35, 0.35, 0.25])
    weighed.sum().backward()
    assert torch.isfinite(known(logp.grad)).all()


def topk_of(log_q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, ids = log_q.topk(k, dim=1)
    return ids, values, log_q.scatter(1, ids, -math.inf).logsumexp(1)


def reverse_on_topk(
    log_p: torch.Tensor, ids: torch.Tensor, values: torch.Tensor, tail: torch.Tensor
) -> torch.Tensor:
    """As the update does: the teacher's buckets are those that the score kept."""
    return exact_reverse_kl(with_tail(log_p, ids), torch.cat((values, tail[:, None]), dim=1))


def test_exact_reverse_kl_with_the_whole_vocabulary_is_the_definition() -> None:
    log_p = random_model(4).log_softmax(1)
    log_q = random_model(5).log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    ids, values, tail = topk_of(log_q, VOCABULARY)
    torch.testing.assert_close(reverse_on_topk(log_p, ids, values, tail), expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY))
def test_exact_reverse_kl_is_a_kl_of_buckets_below_the_full_one(seed: int, k: int) -> None:
    log_p = random_model(seed).log_softmax(1)
    log_q = random_model(seed + 1).log_softmax(1)
    ids, values, tail = topk_of(log_q, k)
    got = reverse_on_topk(log_p, ids, values, tail)
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


def test_exact_reverse_kl_is_zero_between_equals_and_its_gradient_too() -> None:
    student = random_model(6).requires_grad_()
    log_q = student.detach().log_softmax(1)
    ids, values, tail = topk_of(log_q, 3)
    loss = reverse_on_topk(student.log_softmax(1), ids, values, tail).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-12


def test_excluded_tokens_change_neither_loss_nor_gradient() -> None:
    """A token of log-prob -inf on both sides is as if it were not in the vocabulary."""
    student = random_model(7).requires_grad_()
    log_q_small = random_model(8).log_softmax(1)
    ids, values, tail = topk_of(log_q_small, VOCABULARY)
    small = reverse_on_topk(student.log_softmax(1), ids, values, tail).sum()
    (expected,) = torch.autograd.grad(small, student)

    banned = torch.full((len(student), 1), -math.inf, dtype=torch.float64)
    wide = torch.cat((student, banned), dim=1)
    log_q = torch.cat((random_model(8), banned), dim=1).log_softmax(1)
    ids, values, tail = topk_of(log_q, VOCABULARY + 1)
    loss = reverse_on_topk(wide.log_softmax(1), ids, values, tail).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, small)
    torch.testing.assert_close(gradient, expected)


def test_forward_kl_is_its_definition_and_its_gradient_is_that_of_the_teachers_cross_entropy() -> (
    None
):
    student = random_model(9).requires_grad_()
    log_p, log_q = student.log_softmax(1), random_model(10).log_softmax(1)
    got = exact_forward_kl(log_p, log_q)
    torch.testing.assert_close(got, (log_q.exp() * (log_q - log_p)).sum(1))
    (gradient,) = torch.autograd.grad(got.sum(), student)
    torch.testing.assert_close(gradient, (log_p.exp() - log_q.exp()).detach())


def test_forward_kl_on_a_teachers_samples_is_sft_in_expectation() -> None:
    """E over y ~ q of -log pi differs from KL(q || pi) by the entropy of q, a constant."""
    student = random_model(11)[:1].clone().requires_grad_()
    log_q = random_model(12)[:1].log_softmax(1)
    log_p = student.log_softmax(1)
    sampled = (log_q.exp()[0] * cross_entropy(log_p[0])).sum()
    (of_samples,) = torch.autograd.grad(sampled, student, retain_graph=True)
    (exact,) = torch.autograd.grad(exact_forward_kl(log_p, log_q).sum(), student)
    torch.testing.assert_close(of_samples, exact)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 0.95))
def test_jsd_is_its_definition_between_zero_and_the_entropy_of_beta(seed: int, beta: float) -> None:
    p, q = random_model(seed).softmax(1), random_model(seed + 1).softmax(1)
    m = beta * q + (1 - beta) * p
    expected = beta * (q * (q / m).log()).sum(1) + (1 - beta) * (p * (p / m).log()).sum(1)
    got = generalized_jsd(p.log(), q.log(), beta)
    torch.testing.assert_close(got, expected)
    most = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert (got >= -1e-12).all() and (got <= most + 1e-12).all()


@pytest.mark.parametrize(("beta", "scale", "limit"), [
    (1e-5, 1e-5, exact_forward_kl), (1 - 1e-5, 1e-5, exact_reverse_kl),
])  # fmt: skip
def test_jsd_goes_to_the_kls_at_its_ends(
    beta: float, scale: float, limit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    student = random_model(13).requires_grad_()
    log_q = random_model(14).log_softmax(1)
    (near,) = torch.autograd.grad(
        generalized_jsd(student.log_softmax(1), log_q, beta).sum() / scale, student
    )
    (exact,) = torch.autograd.grad(limit(student.log_softmax(1), log_q).sum(), student)
    torch.testing.assert_close(near, exact, atol=1e-3, rtol=1e-3)


def test_every_divergence_has_a_finite_gradient_where_tokens_are_impossible() -> None:
    banned = torch.full((1 + VOCABULARY, 1), -math.inf, dtype=torch.float64)
    student = random_model(15).requires_grad_()
    log_p = torch.cat((student, banned), dim=1).log_softmax(1)
    log_q = torch.cat((random_model(16), banned), dim=1).log_softmax(1)
    for loss_C in (
        exact_reverse_kl(log_p, log_q),
        exact_forward_kl(log_p, log_q),
        generalized_jsd(log_p, log_q, 0.3),
        entropy_weights(log_p) * exact_reverse_kl(log_p, log_q),
    ):
        (gradient,) = torch.autograd.grad(loss_C.sum(), student, retain_graph=True)
        assert gradient.isfinite().all() and loss_C.isfinite().all()
        assert gradient.abs().max() > 0


def test_the_students_own_topk_is_a_kl_of_its_buckets() -> None:
    log_p, log_q = random_model(17).log_softmax(1), random_model(18).log_softmax(1)
    ids = log_p.topk(2, dim=1).indices
    got = exact_reverse_kl(with_tail(log_p, ids), with_tail(log_q, ids))
    for row in range(len(log_p)):
        kept = ids[row].tolist()
        rest = [i for i in range(VOCABULARY) if i not in kept]
        p, q = log_p[row].exp(), log_q[row].exp()
        pairs = [(p[i], q[i]) for i in kept] + [(p[rest].sum(), q[rest].sum())]
        assert float(got[row]) == pytest.approx(float(sum(a * (a / b).log() for a, b in pairs)))


def test_group_advantages_are_rewards_less_their_mean_and_scaled() -> None:
    rewards = [0.0, 0.5, 1.0, 0.5]
    assert group_advantages(rewards, scale_by_std=False) == pytest.approx([-0.5, 0.0, 0.5, 0.0])
    deviation = float(torch.tensor(rewards).std())  # n - 1
    expected = [(r - 0.5) / (deviation + 1e-4) for r in rewards]
    assert group_advantages(rewards, scale_by_std=True) == pytest.approx(expected, rel=1e-6)
    assert group_advantages([0.7, 0.7], scale_by_std=True) == [0.0, 0.0]


def test_at_the_sampling_policy_grpo_is_the_gradient_of_the_expected_reward() -> None:
    """With the mean over all answers as baseline, by enumeration of all answers."""
    student = random_model(19).requires_grad_()
    sampling = student.detach().log_softmax(1)
    generator = torch.Generator().manual_seed(20)
    reward = torch.rand(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def log_probability(model: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
        return model[torch.tensor(states(answer)), torch.tensor(answer)]

    answers = all_sequences()
    probability = torch.stack([log_probability(sampling, a).sum().exp() for a in answers])
    mean = float((probability * reward.flatten()).sum())
    loss = torch.zeros((), dtype=torch.float64)
    for weight, answer in zip(probability, answers, strict=True):
        advantages = torch.full((2,), float(reward[answer]) - mean, dtype=torch.float64)
        now = log_probability(student.log_softmax(1), answer)
        loss = (
            loss + weight * grpo(now, log_probability(sampling, answer), advantages, 0.2, 0.2).sum()
        )
    (estimated,) = torch.autograd.grad(loss, student)
    expected_reward = torch.stack(
        [log_probability(student.log_softmax(1), a).sum().exp() * reward[a] for a in answers]
    ).sum()
    (exact,) = torch.autograd.grad(expected_reward, student)
    torch.testing.assert_close(estimated, -exact, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [
    (1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True),
])  # fmt: skip
def test_grpo_stops_pushing_what_is_already_far(
    ratio: float, advantage: float, moves: bool
) -> None:
    now = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    grpo(now, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.2).sum().backward()
    assert (known(now.grad).abs().item() > 0) is moves


def test_the_reference_kl_is_unbiased_and_never_negative() -> None:
    log_p, log_r = random_model(21).log_softmax(1), random_model(22).log_softmax(1)
    estimate = reference_kl(log_p, log_r)
    assert (estimate >= 0).all()
    exact = (log_p.exp() * (log_p - log_r)).sum(1)
    torch.testing.assert_close((log_p.exp() * estimate).sum(1), exact)


def test_an_advantage_is_cut_off_where_asked() -> None:
    logp = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-9.0, -1.5, 4.0], dtype=torch.float64)
    losses = policy_gradient(logp, logp.detach(), teacher, max_advantage=2.0)
    assert losses.tolist() == pytest.approx([2.0, 0.5, -2.0])


def test_entropy_weights_are_zero_where_the_policy_is_sure() -> None:
    sure = torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    even = torch.full((1, 4), math.log(0.25))
    assert entropy_weights(sure).tolist() == [0.0]
    assert entropy_weights(even).tolist() == pytest.approx([1 - 1 / 4])
