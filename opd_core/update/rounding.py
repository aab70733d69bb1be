"""Rounding at random: a float32 number becomes one of the two bfloat16 beside it.

The nearer one more often, by so much that the mean is the number itself. A weight then moves by
steps that are far smaller than bfloat16 can tell apart: seldom, and by a whole such difference.
"""

from __future__ import annotations

import torch
from torch import Tensor


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 `values` in bfloat16, of any shape, on the device of `generator`.

    bfloat16 is the upper half of a float32: the lower half is the chance, of 65,536, of the next
    number away from zero.
    """
    chance = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    upper = (values.view(torch.int32) + chance).bitwise_and_(-(1 << 16))
    return upper.view(torch.float32).to(torch.bfloat16)
