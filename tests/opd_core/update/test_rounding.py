"""Why bfloat16 weights are rounded at random: what a small step does to them, with and without."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_core.update.rounding import round_at_random

RATE = 1e-6
"""The method's learning rate, which is about the size of a step of AdamW."""


def weights() -> torch.Tensor:
    """As large as those of a trained layer, bfloat16."""
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 0.045 + 0.005
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (values * signs).bfloat16()


def spacing(values: torch.Tensor) -> torch.Tensor:
    """The distance from each number to the next bfloat16 further from zero."""
    return torch.ldexp(torch.ones(values.shape), torch.frexp(values.float()).exponent - 8)


def test_rounded_to_the_nearest_no_weight_moves() -> None:
    before = weights()
    assert (before.float() + RATE).bfloat16().equal(before)


def test_rounded_at_random_the_expected_share_moves() -> None:
    before = weights()
    after = round_at_random(before.float() + RATE, torch.Generator().manual_seed(2))
    expected = (RATE / spacing(before)).mean()
    moved = (after != before).float().mean()
    assert 0.005 < expected < 0.05
    assert abs(moved - expected) < 5 * (expected / len(before)).sqrt()


def test_the_mean_of_many_is_the_number_itself() -> None:
    before = weights()
    exact = before.float() - 3 * RATE
    generator = torch.Generator().manual_seed(3)
    times = 200
    mean = sum(round_at_random(exact, generator).double() for _ in range(times)) / times
    error = (mean - exact).mean()
    deviation = (spacing(exact).double() ** 2 * 0.25 / times / len(before)).mean().sqrt()
    assert abs(error) < 5 * deviation
    assert abs(error) < 0.01 * 3 * RATE, "far less than the step itself"


@given(
    st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
        min_size=1, max_size=64,
    ),
    st.integers(0, 2**40),
)  # fmt: skip
def test_it_is_one_of_the_two_beside_it(numbers: list[float], seed: int) -> None:
    values = torch.tensor(numbers)
    rounded = round_at_random(values, torch.Generator().manual_seed(seed)).float()
    toward_zero = (values.view(torch.int32) & -(1 << 16)).view(torch.float32)
    away = ((values.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert ((rounded == toward_zero) | (rounded == away)).all()
    exact = values.bfloat16().float() == values
    assert rounded[exact].equal(values[exact]), "what bfloat16 can say stays"


def test_a_seed_gives_the_same_bits_again() -> None:
    values = weights().float() + RATE
    once, again, other = (
        round_at_random(values, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert once.equal(again) and not once.equal(other)
