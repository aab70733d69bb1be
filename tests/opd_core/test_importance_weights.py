"""Truncated importance sampling, by enumeration of a tiny vocabulary."""

from __future__ import annotations

import pytest
import torch

from opd_core.objectives import policy_gradient, truncated_importance_weights

LENGTHS = [2, 1, 3]
TRAINER = torch.tensor([-1.0, -0.5, -2.0, -0.1, -0.7, -1.2], dtype=torch.float64)
ENGINE = torch.tensor([-1.1, -1.5, -2.0, -0.3, -0.6, -1.9], dtype=torch.float64)


def test_each_token_has_its_own_ratio_up_to_the_cap():
    weights, cut = truncated_importance_weights(TRAINER, ENGINE, LENGTHS, "token", 2.0)
    ratio = (TRAINER - ENGINE).exp()
    assert torch.equal(weights, ratio.clamp(max=2.0))
    assert cut.tolist() == [False, True, False, False, False, True]


def test_a_sequence_has_one_ratio():
    weights, cut = truncated_importance_weights(TRAINER, ENGINE, LENGTHS, "sequence", 2.0)
    log_ratio = TRAINER - ENGINE
    products = [float(part.sum().exp()) for part in log_ratio.split(LENGTHS)]
    assert products[0] > 2.0
    expected = [2.0, 2.0, products[1], *[min(products[2], 2.0)] * 3]
    assert weights.tolist() == pytest.approx(expected)
    assert cut.tolist() == [True, True, False, *[products[2] > 2.0] * 3]


def test_engines_that_agree_have_weights_of_one():
    for level in ("token", "sequence"):
        weights, cut = truncated_importance_weights(TRAINER, TRAINER, LENGTHS, level, 2.0)
        assert weights.tolist() == [1.0] * 6 and not cut.any()


def test_no_gradient_flows_through_the_weights():
    trainer = TRAINER.clone().requires_grad_()
    weights, _ = truncated_importance_weights(trainer, ENGINE, LENGTHS, "token", 2.0)
    assert not weights.requires_grad


def expected_gradient(logits, sampler, teacher, cap):
    """Of the policy gradient over all tokens, each as often as the sampler says it."""
    logits = logits.clone().requires_grad_()
    student = logits.log_softmax(0)
    weights, _ = truncated_importance_weights(student, sampler, [1] * 5, "token", cap)
    (sampler.exp() * policy_gradient(student, sampler, teacher, weights)).sum().backward()
    return logits.grad


def test_without_truncation_the_gradient_is_that_of_the_ratio():
    generator = torch.Generator().manual_seed(0)
    logits, sampler, teacher = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    sampler, teacher = sampler.log_softmax(0), teacher.log_softmax(0)
    weighted = expected_gradient(logits, sampler, teacher, cap=1e9)
    plain = logits.clone().requires_grad_()
    loss = policy_gradient(plain.log_softmax(0), sampler, teacher)
    (sampler.exp() * loss).sum().backward()
    assert torch.allclose(weighted, plain.grad, atol=1e-12)
    assert not torch.allclose(
        expected_gradient(logits, sampler, teacher, cap=1.0), plain.grad, atol=1e-3
    )
