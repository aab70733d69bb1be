"""Truncated importance sampling, by enumeration of a tiny vocabulary.

Three policies: mu (the engine that sampled), pi_v (the trainer before its first step), pi (now).
Expected values and gradients here are written out from their definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch

from opd_core.update.objectives import ImportanceLevel as Level
from opd_core.update.objectives import (
    exact_forward_kl,
    exact_reverse_kl,
    generalized_jsd,
    grpo,
    policy_gradient,
    reference_kl,
    truncated_importance_weights,
    weighted,
)
from tests.known import known

LENGTHS = [2, 1, 3]
TRAINER = torch.tensor([-1.0, -0.5, -2.0, -0.1, -0.7, -1.2], dtype=torch.float64)
ENGINE = torch.tensor([-1.1, -1.5, -2.0, -0.3, -0.6, -1.9], dtype=torch.float64)
NO_CAP = 1e9


def test_each_token_has_its_own_ratio_up_to_the_cap() -> None:
    weights, cut = truncated_importance_weights(TRAINER, ENGINE, LENGTHS, "token", 2.0)
    ratio = (TRAINER - ENGINE).exp()
    assert torch.equal(weights, ratio.clamp(max=2.0))
    assert cut.tolist() == [False, True, False, False, False, True]


def test_a_sequence_has_one_ratio() -> None:
    weights, cut = truncated_importance_weights(TRAINER, ENGINE, LENGTHS, "sequence", 2.0)
    log_ratio = TRAINER - ENGINE
    products = [float(part.sum().exp()) for part in log_ratio.split(LENGTHS)]
    assert products[0] > 2.0
    expected = [2.0, 2.0, products[1], *[min(products[2], 2.0)] * 3]
    assert weights.tolist() == pytest.approx(expected)
    assert cut.tolist() == [True, True, False, *[products[2] > 2.0] * 3]


def test_a_prefix_is_the_product_over_the_tokens_strictly_before() -> None:
    r = (TRAINER - ENGINE).exp().tolist()
    weights, cut = truncated_importance_weights(TRAINER, ENGINE, LENGTHS, "prefix", 1.2)
    assert weights.tolist() == pytest.approx([1, r[0], 1, 1, 1.2, min(r[3] * r[4], 1.2)])
    assert cut.tolist() == [False, False, False, False, True, r[3] * r[4] > 1.2]


def test_engines_that_agree_have_weights_of_one() -> None:
    for level in ("token", "prefix", "sequence"):
        weights, cut = truncated_importance_weights(TRAINER, TRAINER, LENGTHS, level, 2.0)
        assert weights.tolist() == [1.0] * 6 and not cut.any()


def test_no_gradient_flows_through_the_weights() -> None:
    for level in ("token", "prefix", "sequence"):
        trainer = TRAINER.clone().requires_grad_()
        weights, _ = truncated_importance_weights(trainer, ENGINE, LENGTHS, level, 2.0)
        assert not weights.requires_grad


# --- the mismatch counts once --------------------------------------------------------------------


def gradient_of_one_token(pi_over_mu: float, advantage: float, moved: float = 1.0) -> float:
    """d loss / d log pi of GRPO with a weight by token; `moved` is pi / pi_v."""
    mu = torch.tensor([-1.0], dtype=torch.float64)
    old = mu + math.log(pi_over_mu)
    now = (old + math.log(moved)).requires_grad_()
    weights, _ = truncated_importance_weights(old, mu, [1], "token", 2.0)
    grpo(now, old, torch.tensor([advantage]), 0.2, 0.2, weights).sum().backward()
    return float(known(now.grad))


@pytest.mark.parametrize(("pi_over_mu", "advantage", "moved", "expected"), [
    (1.105, 0.5, 1.0, -1.105 * 0.5),
    (1.35, 0.5, 1.0, -1.35 * 0.5),
    (0.6, -0.5, 1.0, 0.6 * 0.5),
    (5.0, 0.5, 1.0, -2.0 * 0.5),          # the weight is cut off
    (1.35, 0.5, 1.1, -1.35 * 1.1 * 0.5),
    (1.35, 0.5, 1.3, 0.0),                # clipped: the trainer has moved far enough
    (0.5, 0.5, 1.3, 0.0),                 # also where the product of both is inside the clip
    (1.35, -0.5, 1.3, 1.35 * 1.3 * 0.5),
])  # fmt: skip
def test_grpo_multiplies_by_the_mismatch_once_and_clips_what_the_trainer_moved(
    pi_over_mu: float, advantage: float, moved: float, expected: float
) -> None:
    assert gradient_of_one_token(pi_over_mu, advantage, moved) == pytest.approx(expected, abs=1e-12)


# --- by enumeration ------------------------------------------------------------------------------

VOCABULARY, DEPTH = 3, 3
ANSWERS = list(product(range(VOCABULARY), repeat=DEPTH))
STATES = [prefix for n in range(DEPTH) for prefix in product(range(VOCABULARY), repeat=n)]


def model(seed: int) -> torch.Tensor:
    """Logits [state, V] of a language model whose every prefix is a state of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(STATES), VOCABULARY, generator=generator, dtype=torch.float64)


def rows(answer: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([STATES.index(answer[:t]) for t in range(DEPTH)])


def chosen(logprobs: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
    return logprobs[rows(answer), torch.tensor(answer)]


def near(seed: int, of: torch.Tensor) -> torch.Tensor:
    """Log-probs of a policy some way off another's."""
    return (of.detach() + 0.4 * model(seed)).log_softmax(1)


def expected_gradient(
    logits: torch.Tensor,
    mu: torch.Tensor,
    loss_of: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor],
) -> torch.Tensor:
    """Of the summed loss of an answer that mu gives; `loss_of(log pi, answer)` is its [T]."""
    pi = logits.log_softmax(1)
    losses = [chosen(mu, a).sum().exp() * loss_of(pi, a).sum() for a in ANSWERS]
    return torch.autograd.grad(torch.stack(losses).sum(), logits)[0]


def visits(policy: torch.Tensor) -> torch.Tensor:
    """How often each state is met under a policy."""
    met = []
    for state in STATES:
        steps = [policy[STATES.index(state[:t]), state[t]] for t in range(len(state))]
        met.append(torch.stack(steps).sum().exp() if steps else torch.ones((), dtype=policy.dtype))
    return torch.stack(met).detach()


Exact = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EXACT: dict[str, tuple[Exact, Exact]] = {
    "reverse": (exact_reverse_kl, lambda p, q: (p.exp() * (p - q)).sum(1)),
    "forward": (exact_forward_kl, lambda p, q: (q.exp() * (q - p)).sum(1)),
    "jsd": (
        lambda p, q: generalized_jsd(p, q, 0.3),
        lambda p, q: (
            0.3 * (q.exp() * (q - (0.3 * q.exp() + 0.7 * p.exp()).log())).sum(1)
            + 0.7 * (p.exp() * (p - (0.3 * q.exp() + 0.7 * p.exp()).log())).sum(1)
        ),
    ),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later step"])
def test_an_exact_loss_is_unbiased_with_the_prefix_and_not_with_the_tokens_own_ratio(
    name: str, moved: bool
) -> None:
    """Over answers of mu it has to be the loss at the states of pi_v, whatever pi has become."""
    loss, definition = EXACT[name]
    logits, q = model(0).requires_grad_(), model(1).log_softmax(1)
    old = near(2, logits) if moved else logits.detach().log_softmax(1)
    mu = near(3, old)
    at_states_of_old = visits(old) @ definition(logits.log_softmax(1), q)
    (right,) = torch.autograd.grad(at_states_of_old, logits)

    def bias(level: Level | None) -> float:
        def loss_of(pi: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
            weights = None
            if level:
                a = (chosen(old, answer), chosen(mu, answer), [DEPTH])
                weights, _ = truncated_importance_weights(*a, level, NO_CAP)
            return weighted(loss(pi[rows(answer)], q[rows(answer)]), weights)

        return float((expected_gradient(logits, mu, loss_of) - right).abs().max())

    assert bias("prefix") < 1e-12 and bias("sequence") < 1e-12
    assert bias(None) > 1e-3
    assert bias("token") == pytest.approx(bias(None), rel=1e-9), "it changes nothing but noise"


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_policy_gradient_is_that_of_the_reverse_kl_at_the_trainers_policy(level: Level) -> None:
    """At the first step: by sequence at the states of pi_v, by token at those of mu."""
    logits, q = model(4).requires_grad_(), model(5).log_softmax(1)
    old = logits.detach().log_softmax(1)
    mu = near(6, old)

    def loss_of(pi: torch.Tensor, answer: tuple[int, ...], weigh: bool = True) -> torch.Tensor:
        of = (chosen(old, answer), chosen(mu, answer))
        weights, _ = truncated_importance_weights(*of, [DEPTH], level, NO_CAP)
        return policy_gradient(
            chosen(pi, answer), of[0], chosen(q, answer), weights if weigh else None
        )

    kl = EXACT["reverse"][1](logits.log_softmax(1), q)
    (right,) = torch.autograd.grad(visits(mu if level == "token" else old) @ kl, logits)
    got = expected_gradient(logits, mu, loss_of)
    torch.testing.assert_close(got, right, atol=1e-12, rtol=0)
    without = expected_gradient(logits, mu, lambda pi, a: loss_of(pi, a, weigh=False))
    assert (without - right).abs().max() > 1e-3


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later step"])
def test_grpo_is_the_gradient_under_the_trainers_policy(moved: bool) -> None:
    """Unclipped, by sequence: the expectation under pi_v of `pi / pi_v * A` of every token."""
    logits = model(7).requires_grad_()
    old = near(8, logits) if moved else logits.detach().log_softmax(1)
    mu = near(9, old)
    rewards = torch.rand(len(ANSWERS), generator=torch.Generator().manual_seed(10)).double()
    advantage = dict(zip(ANSWERS, rewards - rewards.mean(), strict=True))
    pi = logits.log_softmax(1)
    surrogate = sum(
        chosen(old, a).sum().exp() * (chosen(pi, a) - chosen(old, a)).exp().sum() * advantage[a]
        for a in ANSWERS
    )
    (right,) = torch.autograd.grad(-surrogate, logits)

    def loss_of(pi: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
        of = (chosen(old, answer), chosen(mu, answer))
        weights, _ = truncated_importance_weights(*of, [DEPTH], "sequence", NO_CAP)
        advantages = advantage[answer].expand(DEPTH)
        return grpo(chosen(pi, answer), of[0], advantages, 0.99, 1e6, weights)

    got = expected_gradient(logits, mu, loss_of)
    torch.testing.assert_close(got, right, atol=1e-12, rtol=0)


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later step"])
def test_the_reference_kl_has_the_gradient_of_the_kl(moved: bool) -> None:
    """Of KL(pi || reference) at the states of pi_v, not of KL(reference || pi)."""
    logits, reference = model(11).requires_grad_(), model(12).log_softmax(1)
    old = near(13, logits) if moved else logits.detach().log_softmax(1)
    mu = near(14, old)
    kl = EXACT["reverse"][1](logits.log_softmax(1), reference)
    (right,) = torch.autograd.grad(visits(old) @ kl, logits)

    def loss_of(pi: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
        of = (chosen(old, answer), chosen(mu, answer))
        weights, _ = truncated_importance_weights(*of, [DEPTH], "sequence", NO_CAP)
        return reference_kl(chosen(pi, answer), chosen(reference, answer), of[0], weights)

    got = expected_gradient(logits, mu, loss_of)
    torch.testing.assert_close(got, right, atol=1e-12, rtol=0)


def test_gradients_equal_finite_differences_of_the_formulas() -> None:
    """The weight is constant and the advantage is against pi_v: written out with `math`."""
    old, mu, q = -1.0, -1.3, -0.4
    weight = min(math.exp(old - mu), 2.0)

    def paper(now: float) -> float:
        return -weight * math.exp(now - old) * (q - old)

    def clipped(now: float, advantage: float = 0.7) -> float:
        ratio = math.exp(now - old)
        return -weight * min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)

    def tensor(x: float) -> torch.Tensor:
        return torch.tensor([x], dtype=torch.float64)

    weights, _ = truncated_importance_weights(tensor(old), tensor(mu), [1], "token", 2.0)
    for now in (-1.0, -0.9, -1.5, -0.7):
        x = tensor(now).requires_grad_()
        for loss, formula in (
            (policy_gradient(x, tensor(old), tensor(q), weights), paper),
            (grpo(x, tensor(old), tensor(0.7), 0.2, 0.2, weights), clipped),
        ):
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            assert float(loss.detach()) == pytest.approx(formula(now), abs=1e-12)
            slope = (formula(now + 1e-6) - formula(now - 1e-6)) / 2e-6
            assert float(gradient) == pytest.approx(slope, abs=1e-8)
