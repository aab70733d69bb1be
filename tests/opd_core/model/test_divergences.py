"""Divergences and entropy, by enumeration of a tiny vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from opd_core.model.divergences import divergences, entropies
from opd_core.model.lm_head import teacher_distribution

INF = float("inf")


def test_divergences_are_the_sums_of_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) * 4
    logits[:, :, 3] = -INF  # a token that nobody may say
    p, q = logits.log_softmax(dim=2)
    found = divergences(p, q)
    for row in range(5):
        pairs = [(a, b) for a, b in zip(p[row].tolist(), q[row].tolist(), strict=True) if a > -INF]
        middle = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in pairs]
        forward = sum(math.exp(b) * (b - a) for a, b in pairs)
        reverse = sum(math.exp(a) * (a - b) for a, b in pairs)
        both = zip(pairs, middle, strict=True)
        js = sum(math.exp(a) * (a - m) + math.exp(b) * (b - m) for (a, b), m in both) / 2
        assert found.forward_kl[row].item() == pytest.approx(forward, abs=1e-12)
        assert found.reverse_kl[row].item() == pytest.approx(reverse, abs=1e-12)
        assert found.js[row].item() == pytest.approx(js, abs=1e-12)


def test_divergences_at_their_ends() -> None:
    a = torch.tensor([[0.0, -INF, -INF], [math.log(0.5), math.log(0.5), -INF]])
    b = torch.tensor([[-INF, 0.0, -INF], [math.log(0.5), math.log(0.5), -INF]])
    forward, reverse, js = divergences(a, b)
    assert forward.tolist() == [INF, 0.0] and reverse.tolist() == [INF, 0.0]
    assert js.tolist() == [pytest.approx(math.log(2)), 0.0], "finite where the KLs are not"


def test_entropy_leaves_out_what_nobody_may_say() -> None:
    rows = torch.tensor([[0.0, -INF, -INF], [math.log(0.25), math.log(0.75), -INF]])
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert entropies(rows).tolist() == [0.0, pytest.approx(expected)]


def test_heads_that_are_padded_to_unlike_sizes_are_compared_on_the_tokens_of_the_tokenizer() -> (
    None
):
    generator = torch.Generator().manual_seed(1)
    head, hidden = torch.randn(8, 4, generator=generator), torch.randn(3, 4, generator=generator)
    expected = teacher_distribution(hidden, head[:6], (1,), 6)
    longer = teacher_distribution(hidden, head[:6], (1, 6, 7), 8)
    assert longer[:, :6].equal(expected) and bool((longer[:, 6:] == -INF).all())
    assert torch.allclose(teacher_distribution(hidden, head, (1,), 6), expected)
