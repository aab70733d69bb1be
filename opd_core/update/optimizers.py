"""The optimisers that a config can name: AdamW with moments in 32, 8 or 4 bits.

The low-bit ones are torchao's. They work on float32 weights here, whatever the trained weights lie
in (`stepping.py`), and hold moments of fewer than 4,096 numbers in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from opd_core.config.sections import UpdateSection


def make_optimizer(
    settings: UpdateSection, weights: Iterable[nn.Parameter], fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `update.optimizer` names, for float32 weights.

    `fused`: torch's AdamW in one pass over the memory, within a last bit of the other.
    """
    kind = partial(torch.optim.AdamW, fused=fused)
    if settings.optimizer != "adamw":
        from torchao.optim import AdamW4bit, AdamW8bit

        kind = AdamW8bit if settings.optimizer == "adamw_8bit" else AdamW4bit
    return kind(
        list(weights),
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        weight_decay=settings.weight_decay,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's compiled step takes it as an input
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def as_written(settings: UpdateSection, device: torch.device) -> AbstractContextManager[object]:
    """Around a step: on a CPU torchao's runs as it is written. Compiled, the first one would take
    half a minute and a C++ compiler."""
    if settings.optimizer == "adamw" or device.type != "cpu":
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
